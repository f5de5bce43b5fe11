"""What erasing at every site costs a whole `generate`: after the norms, inside them, in the weights.

The clean model and the erased one, each with weights of its own, generate side by side and take turns token by token,
in an order that is drawn for each. A round is one `generate` of both; its overhead is the median of the ratios of their
steps, which hold everything that `generate` does for a token. `untouched` is the same comparison of two clean models.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor
from turns import step_times

import leace_fast as lf

RANK, PROMPT, TOKENS, ROUNDS = 1, 32, 32, 20
EXAMPLE = torch.arange(3, 3 + PROMPT)[None]


def random_model() -> Any:
    """A Llama of 8 layers, d = 768: 80 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
    config = LlamaConfig(**sizes, num_attention_heads=12, vocab_size=16384, pad_token_id=0, eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def demo_model() -> Any:
    from transformers import AutoModelForCausalLM

    folder = str(files("leace_fast.demo") / "assets" / "model")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def scrubber_of(model: Any) -> lf.Scrubber:
    """A random projection of rank 1 at each of the two norms of each layer."""
    generator = torch.Generator().manual_seed(0)

    def eraser(dim: int) -> lf.Eraser:
        left = torch.linalg.qr(torch.randn(dim, RANK, generator=generator)).Q
        return lf.Eraser(left, left.mT, torch.randn(dim, generator=generator))

    return lf.Scrubber({site.name: eraser(site.width) for site in lf.find_sites(model, {"input_ids": EXAMPLE})})


@contextmanager
def folded(scrubber: lf.Scrubber, model: Any) -> Iterator[None]:
    left_out = {site: lf.Eraser(e.left, e.right, site=site) for site, e in scrubber.items()}  # Llama has no biases
    lf.Scrubber(left_out).fold_(model, {"input_ids": EXAMPLE})
    yield


WAYS: dict[str, Callable[[lf.Scrubber, Any], AbstractContextManager[Any]]] = {
    "attached": lambda scrubber, model: scrubber.attached(model),
    "fused": lambda scrubber, model: scrubber.attached(model, fuse=True),
    "folded": folded,
    "untouched": lambda scrubber, model: nullcontext(),  # the noise of the comparison
}
MODELS = {"llama d=768 L=8": random_model, "demo d=256 L=5": demo_model}


def generate(model: Any, streamer: Any = None) -> Tensor:
    return model.generate(EXAMPLE, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, streamer=streamer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def bench_generate(benchmark, name: str, way: str) -> None:
    clean = MODELS[name]()
    model = copy.deepcopy(clean)
    with WAYS[way](scrubber_of(model), model):
        assert generate(model).shape == (1, PROMPT + TOKENS)
        generate(clean)
        overheads = []

        def round_of_both() -> None:
            times = step_times([partial(generate, clean), partial(generate, model)], seed=len(overheads))
            overheads.append(statistics.median(ours / theirs for theirs, ours in zip(*times, strict=True)) - 1)

        benchmark.group = f"generate {name}"
        benchmark.pedantic(round_of_both, rounds=ROUNDS)
    first, median, third = statistics.quantiles(overheads, n=4)
    benchmark.extra_info.update(peer=way, overhead=median, overhead_quartiles=[first, third])
