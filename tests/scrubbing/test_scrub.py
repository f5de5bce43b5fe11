"""Concept scrubbing: against a slow reference, at a bounded cost, and what bad input says."""

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
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import leace_fast as lf
from leace_fast import Scrubber, evaluate, leace, scrub
from leace_fast.models import find_sites, record
from leace_fast.scrubbing._buffer import give_back_memory

CLASSES = 3
ARCHITECTURES = tiny_models.ARCHITECTURES


def labelled_batches(name: str, count: int = 3, rows: int = 4) -> list[dict[str, Tensor]]:
    batches = []
    for seed in range(count):
        batch = tiny_models.batch(name, rows, seed)
        labels = (batch["input_ids"] if "input_ids" in batch else torch.arange(rows)) % CLASSES
        if name == "t5":
            labels = (torch.arange(rows) + seed) % CLASSES  # of whole sequences: the decoder's tokens have none
        batches.append({**batch, "concept_labels": labels})
    return batches


def run(model: Any, batch: dict[str, Tensor], **labels: Any) -> Any:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "concept_labels"}, **labels)


def reference(model: nn.Module, batches: list[dict[str, Tensor]], sites: list[str]) -> dict[str, lf.Eraser]:
    """The whole hooked model once for every site."""
    erasers: dict[str, lf.Eraser] = {}
    for site in sites:
        with record(model, [site], num_classes=CLASSES) as moments:
            for batch in batches:
                labels = {"concept_labels": batch["concept_labels"]}
                if erasers:
                    with Scrubber(erasers).attached(model):
                        run(model, batch, **labels)
                else:
                    run(model, batch, **labels)
        erasers[site] = leace(moments[site])
    return erasers


def close(one: lf.Eraser, two: lf.Eraser) -> bool:
    """Equal maps: the factors themselves are unique up to a change of basis."""
    x = torch.randn(50, one.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = x.abs().max() + (two.mean.abs().max() if two.mean is not None else 0)
    return bool(one.rank == two.rank and (one(x) - two(x)).abs().max() < 1e-9 * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sequential_is_the_slow_reference(name):
    model, batches = tiny_models.build(name), labelled_batches(name)
    sites = [site.name for site in find_sites(model, batches[0])]
    clean = run(model, batches[0])[0]
    scrubber = scrub(model, batches)
    assert list(scrubber) == sites
    assert torch.equal(run(model, batches[0])[0], clean), "the model is left as it was"
    for site, wanted in reference(model, batches, sites).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_means_of_the_classes_coincide_in_the_scrubbed_model(name):
    model, batches = tiny_models.build(name), labelled_batches(name)
    scrubber = scrub(model, batches)
    with scrubber.attached(model), record(model, list(scrubber), num_classes=CLASSES) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    for site, each in moments.items():
        gap = each.class_mean_differences.abs().max()
        assert gap < 1e-9 * each.covariance.diagonal().sqrt().max(), site


@pytest.mark.parametrize("name", ["llama", "bert", "falcon"])  # a Falcon layer returns a tuple
@pytest.mark.parametrize("sites", ["residual", "attention_out", ("norms", "residual", "mlp_out")])
def test_other_sites_too(name, sites):
    if name == "falcon" and "mlp_out" in sites:
        sites = ("norms", "residual")  # adds to the MLP's output in place, which the reference cannot record
    model, batches = tiny_models.build(name), labelled_batches(name)
    names = [site.name for site in find_sites(model, batches[0], sites)]
    scrubber = scrub(model, batches, sites)
    assert list(scrubber) == names and len(names) >= 2
    for site, wanted in reference(model, batches, names).items():
        assert close(scrubber[site], wanted), site


SEVERAL = pytest.param(("norms", "attention_out", "mlp_out"), marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sites", ["norms", SEVERAL])
def test_sequential_costs_about_one_forward_pass(name, sites):
    """Whatever the number of sites; up to five more passes over the first batch find and check them."""
    model, batches = tiny_models.build(name), labelled_batches(name, count=8)
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


class Blocks(nn.Module):
    """Blocks with a residual stream, in variants that make replaying hard."""

    def __init__(self, depth: int = 3, kind: str = "plain", width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.count = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x, first = x + 0, None
        everything = []
        for index, layer in enumerate(self.layers):
            change = layer(x)
            if self.kind == "in place":
                x += change
            elif self.kind == "skip":
                first = change if first is None else first
                x = x + change + 0.5 * first
            elif self.kind == "all":
                everything.append(change)
                x = x + change
            elif self.kind == "state" and index == 0:
                self.count += 1
                x = x + change * self.count
            elif self.kind == "random" and index == 0:
                x = x + change * torch.rand(())
            else:
                x = x + change
        return self.norm(x + sum(everything))


def blocks_batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(6, 5, 8, generator=generator, dtype=torch.float64),
            "concept_labels": torch.randint(0, CLASSES, (6, 5), generator=generator),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["plain", "in place", "skip", "all"])
def test_models_whose_layers_are_read_late(kind):
    model, batches = Blocks(4, kind), blocks_batches()
    sites = [site.name for site in find_sites(model, batches[0]["x"], ["norms", "norm"])]
    scrubber = scrub(model, batches, ["norms", "norm"])
    assert len(sites) == 5 and list(scrubber) == sites
    for site, wanted in reference(model, batches, sites).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("kind", ["state", "random"])
def test_a_model_that_cannot_be_resumed_is_refused(kind):
    model, batches = Blocks(3, kind), blocks_batches()
    with pytest.raises(ValueError, match=r"gives other activations at 'layers.1.0' than one that runs through"):
        scrub(model, batches)
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in model.modules())
    assert len(scrub(model, batches, mode="parallel")) == 3


@pytest.mark.parametrize("buffer", [0, "1kB", "8GiB"])
def test_the_buffer_changes_no_bit(buffer):
    model, batches = tiny_models.build("llama", torch.bfloat16), labelled_batches("llama")
    wanted = scrub(model, batches)
    for site, eraser in scrub(model, batches, buffer=buffer).items():
        assert torch.equal(eraser.left, wanted[site].left) and torch.equal(eraser.right, wanted[site].right)


def test_parallel_is_one_record():
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    with record(model, num_classes=CLASSES) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    scrubber = scrub(model, batches, mode="parallel")
    assert list(scrubber) == list(moments)
    assert all(torch.equal(scrubber[site].left, leace(each).left) for site, each in moments.items())
    stream = scrub(model, iter(batches), mode="parallel", num_classes=CLASSES)
    assert all(torch.equal(stream[site].left, scrubber[site].left) for site in scrubber)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_several_concepts_are_erased_together(mode):
    model, batches = tiny_models.build("llama"), labelled_batches("llama", 6)
    both = []
    for batch in batches:
        ids = batch["input_ids"]
        parity = (ids // CLASSES % 2).masked_fill(ids % 5 == 0, -100)
        both.append({**batch, "concept_labels": {"remainder": ids % CLASSES, "parity": parity}})
    scrubber = scrub(model, both, mode=mode)
    first = next(iter(scrubber))
    assert scrubber[first].rank == CLASSES - 1 + 1
    for name, count in (("remainder", CLASSES), ("parity", 2)):
        with scrubber.attached(model), record(model, list(scrubber), num_classes=count) as moments:
            for batch in both:
                run(model, batch, concept_labels=batch["concept_labels"][name])
        gaps = [each.class_mean_differences.abs().max() for each in moments.values()]
        assert max(gaps[: 1 if mode == "parallel" else None]) < 1e-9
        assert mode == "sequential" or max(gaps) > 1e-3


def test_real_valued_concepts():
    model, batches = Blocks(3), blocks_batches()
    for batch in batches:
        batch["concept_labels"] = batch["x"][..., :1] ** 2
    scrubber = scrub(model, batches)
    with scrubber.attached(model), record(model, list(scrubber), target_dim=1) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    assert all(each.cross_covariance.abs().max() < 1e-12 for each in moments.values())


class Interrupted(Exception):
    pass


def interrupt_after(count: int) -> Any:
    taken = []

    def track(items: Any, stage: str) -> Any:
        for item in items:
            taken.append(stage)
            if len(taken) > count:
                raise Interrupted
            yield item

    return track


@pytest.mark.parametrize("after", [2, 9, 14])
def test_an_interrupted_scrub_goes_on_to_the_same_bits(tmp_path, after):
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama")
    wanted = scrub(model, batches)
    with pytest.raises(Interrupted):
        scrub(model, batches, checkpoint=tmp_path, track=interrupt_after(after))
    done = len(list(tmp_path.glob("*.safetensors")))
    assert (done > 0) == (after > 4)
    again = scrub(model, batches, checkpoint=tmp_path)
    for site, eraser in wanted.items():
        assert torch.equal(again[site].left, eraser.left) and torch.equal(again[site].right, eraser.right)
    stages: list[str] = []
    scrub(model, batches, checkpoint=tmp_path, track=lambda items, stage: stages.append(stage) or items)
    assert stages == ["read", "sites"], "nothing is fitted again"


def test_an_interrupted_parallel_scrub_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("leace_fast.scrubbing._scrub.SAVED_EVERY", 2)
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama", 7)
    options: dict[str, Any] = {"mode": "parallel", "num_classes": CLASSES}
    wanted = scrub(model, batches, checkpoint=tmp_path / "one", **options)
    with pytest.raises(Interrupted):
        scrub(model, batches, checkpoint=tmp_path / "two", track=interrupt_after(5), **options)
    again = scrub(model, batches, checkpoint=tmp_path / "two", **options)
    for site, eraser in wanted.items():
        assert torch.equal(again[site].left, eraser.left) and torch.equal(again[site].right, eraser.right)


def test_a_checkpoint_of_another_call_is_refused(tmp_path):
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    scrub(model, batches, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="checkpoint of another call: it differs in method"):
        scrub(model, batches, checkpoint=tmp_path, method="orth")
    with pytest.raises(ValueError, match="it differs in data"):
        scrub(model, labelled_batches("llama", 4), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="it differs in model"):
        scrub(tiny_models.build("llama", seed=1), batches, checkpoint=tmp_path)


def with_labels(change: Any, index: int = 1) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = [dict(batch) for batch in labelled_batches("llama")]
    batches[index]["concept_labels"] = change(batches[index]["concept_labels"])
    return batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": "model.layers.7.input_layernorm"}, "no site 'model.layers.7.input_layernorm'.*the nearest: model"),
        ({"method": "leac"}, "unknown method 'leac'.*did you mean 'leace'"),
        ({"mode": "both"}, 'mode is \'both\', expected "sequential" or "parallel"'),
        ({"buffer": "8 apples"}, "'8 apples' is no size"),
        ({"batches": []}, "got no batches"),
        ({"batches": with_labels(lambda y: y[:, 1:])}, r"in batch 1: concept_labels has shape \(4, 6\), and attention"),
        ({"batches": with_labels(lambda y: y[1:])}, r"in batch 1: concept_labels has shape \(3, 7\)"),
        ({"batches": with_labels(lambda y: None)}, 'batch 1 has no "concept_labels"'),
        ({"batches": with_labels(lambda y: {"a": y})}, "batch 1 has the concepts a, expected concept_labels"),
        ({"batches": with_labels(lambda y: y + 3 * (y == 2))}, "of the classes 0 to 5 of concept_labels, 3, 4 never"),
        ({"num_classes": 5}, "of the classes 0 to 4 of concept_labels, 3, 4 never occur"),
        ({"num_classes": 2}, "in batch 0: concept_labels holds the class 2, expected 0 to 1"),
        (
            {"batches": with_labels(lambda y: y - 1)},
            "in batch 1: concept_labels holds the class -1, expected 0 or more",
        ),
        ({"batches": iter(labelled_batches("llama")), "mode": "parallel"}, "cannot count the classes of a stream"),
        (
            {"batches": labelled_batches("llama"), "mode": "parallel", "num_classes": 4},
            "of the classes 0 to 3 of .*, 3",
        ),
    ],
)
def test_bad_input(arguments, message):
    model = tiny_models.build("llama")
    with pytest.raises(ValueError, match=message):
        scrub(
            model,
            arguments.pop("batches", None) or labelled_batches("llama")[: 0 if "got no" in message else 9],
            **arguments,
        )
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


def test_what_is_no_model_no_batches_and_no_eraser():
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    for act in (scrub, evaluate):
        with pytest.raises(TypeError, match="model is a str, expected a module: load it first"):
            act("org/model", batches)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"batches is a dict, expected several batches: for one, pass \[batch\]"):
            act(model, batches[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the method returned a float at 'model.layers.0.input_layernorm', expected an"):
        scrub(model, batches, method=lambda moments: 1.0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_activations_that_are_not_finite_are_named(mode):
    model, batches = Blocks(3), blocks_batches()
    batches[2]["x"][0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="1 activations at 'layers.0.0' are not finite in batch 2"):
        scrub(model, batches, mode=mode)


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
