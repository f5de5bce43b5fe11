"""Residual adds inside fused norms, in compiled graphs."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import outputs_of, scrubber_of
from torch import Tensor, fx, nn

from leace_fast import Eraser, Scrubber
from leace_fast._ops.operators import EXTENSION
from leace_fast.attaching import inductor
from leace_fast.attaching._compiled_graphs import fuse_residuals

pytestmark = pytest.mark.skipif(not EXTENSION.present, reason="plain torch leaves no operator in the graph")


class Count:
    """A backend that runs the changed graph as it is."""

    def __init__(self) -> None:
        self.fused = self.adds = 0

    def __call__(self, graph: fx.GraphModule, inputs: Any) -> Any:
        self.fused += fuse_residuals(graph)
        return graph.forward


# Norms that erase and read a sum of two tensors of their shape, the first of them where two read the same.
EXPECTED = {"llama": 3, "gemma2": 3, "gpt_neox": 1, "gpt2": 3, "falcon": 1, "bert": 3}


@pytest.mark.parametrize("name", EXPECTED)
def test_adds_move_into_the_norms_and_no_bit_changes(name):
    torch.compiler.reset()
    model, batch = tiny_models.build(name, torch.float32), tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    with scrubber.attached(model, fuse=True):
        wanted = outputs_of(model, batch)
        count = Count()
        got = outputs_of(torch.compile(model, backend=count, fullgraph=True), batch)
        assert torch.equal(got, wanted)
    assert count.fused == EXPECTED[name]


class Stack(nn.Module):
    """Sums that may not move: read before the norm, of two shapes, scaled; and one that may."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.kind = nn.LayerNorm(8), kind

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.kind == "broadcast":
            return self.norm(x + y[:1])
        if self.kind == "scaled":
            return self.norm(torch.add(x, y, alpha=2))
        total = x + y
        early = total * 2 if self.kind == "early" else 0
        normed = self.norm(total)
        return normed + total + early


@pytest.mark.parametrize(("kind", "fused"), [("plain", 1), ("early", 0), ("broadcast", 0), ("scaled", 0)])
@pytest.mark.parametrize("gradient", [False, True])
def test_only_sums_that_may_move_do(kind, fused, gradient):
    torch.compiler.reset()
    model, (x, y) = Stack(kind), torch.randn(2, 5, 8)
    x.requires_grad_(gradient)
    left = torch.linalg.qr(torch.randn(8, 2)).Q
    with Scrubber({"norm": Eraser(left, left.mT, torch.randn(8))}).attached(model, fuse=True):
        wanted, count = model(x, y), Count()
        got = torch.compile(model, backend=count, fullgraph=True)(x, y)
        assert torch.equal(got, wanted) and count.fused == fused
        if gradient:
            gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (got, wanted)]
            assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_inductor(name):
    torch.compiler.reset()
    model, batch = tiny_models.build(name, torch.float32), tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    with scrubber.attached(model, fuse=True):
        wanted = outputs_of(model, batch)
        compiled = torch.compile(model, backend=inductor, fullgraph=True)
        assert torch.allclose(outputs_of(compiled, batch), wanted, rtol=1e-3, atol=1e-4)
        scrubber.verify(model, compiled, batch)
