"""What a scrub costs: about one forward pass, and no more memory than it may take."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import CLASSES, Blocks, blocks_batches, labelled_batches, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from leace_fast import scrub
from leace_fast.scrubbing._buffer import give_back_memory

SEVERAL = pytest.param(("norms", "attention_out", "mlp_out"), marks=pytest.mark.slow)


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("sites", ["norms", SEVERAL])
def test_sequential_costs_about_one_forward_pass(name, sites):
    """Whatever the number of sites; some passes over the first sequences find and check them."""
    model, batches = tiny_models.build(name), labelled_batches(name, count=12)
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            run(model, batch)
    once = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        scrub(model, batches, sites)
    assert counter.get_total_flops() <= 1.75 * once


def test_depth_does_not_matter():
    costs = []
    for depth in (2, 8):
        model, batches = Blocks(depth), blocks_batches(8)
        with linear_work(model) as once:
            for batch in batches:
                run(model, batch)
        with linear_work(model) as whole:
            scrub(model, batches)
        costs.append(sum(whole) / sum(once))
    assert min(costs) > 0.5 and max(costs) < 1.4


@contextmanager
def linear_work(model: nn.Module) -> Iterator[list[int]]:
    """Collect what the model's own linear layers multiply; what erases and adds up meanwhile does not count."""
    work: list[int] = []
    handles = [
        layer.register_forward_hook(lambda layer, _, out: work.append(out.numel() * layer.in_features))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    yield work
    for handle in handles:
        handle.remove()


class Memory:
    """The most memory that this process held inside a block, over what it held before.

    Without huge pages: where the kernel gives them to all, it counts 2 MiB for every touched hole of the heap.
    """

    def _allow_huge_pages(self, allowed: bool) -> None:
        ctypes.CDLL(None).prctl(41, not allowed, 0, 0, 0)  # PR_SET_THP_DISABLE

    def __enter__(self) -> Memory:
        self._allow_huge_pages(False)
        gc.collect()
        give_back_memory()
        self.done, self.peak = threading.Event(), 0
        self.before = self._resident()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _resident(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self._resident() - self.before)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self._allow_huge_pages(True)


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
def test_memory_stays_under_the_budget_for_a_deep_model_and_a_million_tokens():
    """All that waits would take 73 MB. The labels (8 MB) and the running batch (10 MB) come on top of the budget."""
    rows, length, budget = 128, 64, 2**24
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=24, num_attention_heads=1
    )
    model: Any = GPTNeoXForCausalLM(config).eval()

    def stream(count: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            ids = torch.randint(0, 64, (rows, length), generator=generator)
            yield {"input_ids": ids, "concept_labels": ids % CLASSES}

    scrub(model, stream(1))  # what is allocated once
    with Memory() as memory:
        scrubber = scrub(model, stream(124), buffer=budget)  # 1,015,808 tokens
    assert len(scrubber) == 48
    assert memory.peak < budget + 2**25
