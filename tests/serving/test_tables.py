"""Erasers on the norms of a model whose norms add the residual, as those of serving stacks do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import leace_fast as lf
from leace_fast._ops import load_extension
from leace_fast.serving._tables import Placed

pytestmark = pytest.mark.skipif(not load_extension().present, reason="the plugin needs the compiled kernels")
WIDTH = 16


class AddingNorm(nn.Module):
    """A norm that returns what it normed, and the sum that it normed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        summed = x if residual is None else x + residual
        normed = nn.functional.rms_norm(summed, (WIDTH,), self.weight)
        return normed if residual is None else (normed, summed)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = AddingNorm(), AddingNorm()
        self.inner, self.spare = nn.Linear(WIDTH, WIDTH), AddingNorm()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed, summed = self.second(self.inner(self.first(x)), x)
        return normed, summed


def eraser(seed: int, rank: int = 2) -> lf.Eraser:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator)).Q
    return lf.Eraser(basis, basis.mT.contiguous(), torch.randn(WIDTH, generator=generator))


ONE = {"first": eraser(0), "second": eraser(1)}
TWO = {"second": eraser(2, rank=1)}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@torch.no_grad()
def test_each_row_meets_its_own_eraser_and_others_keep_their_bits(model: Model) -> None:
    x = torch.randn(5, WIDTH)
    clean = model(x)
    placed = Placed(model, [ONE, TWO], 8, default=-1)
    assert all(torch.equal(a, b) for a, b in zip(model(x), clean, strict=True)), "rows start un-erased"
    placed.route(torch.tensor([0, -1, 1, 0, -1]))
    normed, summed = model(x)
    for rows, first, second in (([0, 3], ONE["first"], ONE["second"]), ([2], None, TWO["second"])):
        kept = nn.functional.rms_norm(x[rows], (WIDTH,), model.first.weight)
        total = model.inner(first(kept) if first else kept) + x[rows]
        wanted = second(nn.functional.rms_norm(total, (WIDTH,), model.second.weight))
        assert torch.allclose(normed[rows], wanted, atol=1e-5) and torch.allclose(summed[rows], total, atol=1e-5)
    assert torch.equal(normed[[1, 4]], clean[0][[1, 4]]) and torch.equal(summed[[1, 4]], clean[1][[1, 4]])


@torch.no_grad()
def test_padding_behind_a_batch_is_never_erased_as_one_before_was(model: Model) -> None:
    x = torch.randn(8, WIDTH)
    clean = model(x)[0]
    placed = Placed(model, [ONE], 8, default=0)
    assert not torch.equal(model(x)[0], clean)
    placed.route(torch.tensor([0]))
    assert torch.equal(model(x)[0][1:], clean[1:])


@torch.no_grad()
def test_each_site_must_erase_once_in_a_pass(model: Model) -> None:
    x = torch.randn(3, WIDTH)
    placed = Placed(model, [ONE], 8, default=0)
    placed.check_ran(lambda: model(x))
    with pytest.raises(RuntimeError, match="'first': its eraser ran 2 times"):
        placed.check_ran(lambda: (model(x), model.first(x)))
    model.second._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="without being erased at 'second': its eraser ran 0 times"):
        placed.check_ran(lambda: model(x))


@torch.no_grad()
def test_compiled_code_is_looked_into(model: Model) -> None:
    """One graph that was compiled with erasers shows them; one that was compiled before does not."""
    torch.compiler.reset()
    x = torch.randn(3, WIDTH)
    captured = torch.export.export(model, (x,)).module()
    placed = Placed(model, [ONE], 8, default=0)
    compiled = torch.export.export(model, (x,)).module()
    placed.check_ran(lambda: compiled(x))
    with pytest.raises(RuntimeError, match="its eraser ran 0 times"):
        placed.check_ran(lambda: captured(x))


@pytest.mark.parametrize(
    "erasers, message",
    [
        ({"third": eraser(0)}, "has no 'third'; its norms are first, second, spare"),
        ({"inner": eraser(0)}, "'inner' is a Linear of the served model: only norms"),
        ({"first": lf.Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])}, "'first' has width 16, its eraser 4"),
    ],
)
def test_what_does_not_fit_places_nothing(model: Model, erasers: dict[str, lf.Eraser], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placed(model, [{**ONE, **erasers}], 8, default=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_sites_are_found_by_the_names_of_the_served_model(model: Model) -> None:
    renamed = {f"model.{site}": each for site, each in ONE.items()}
    placed = Placed(model, [renamed], 8, default=0, served_name=lambda site: site.removeprefix("model."))
    assert placed.sites == ["model.first", "model.second"]
    with pytest.raises(ValueError, match="has no 'model.first'"):
        Placed(model, [renamed], 8, default=0)


def test_without_compiled_kernels_nothing_is_served(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import leace_fast.serving._tables as tables
    from leace_fast._ops import Extension

    monkeypatch.setattr(tables, "load_extension", lambda: Extension(False, "switched off by a test"))
    with pytest.raises(ValueError, match="no compiled kernels here: switched off by a test"):
        Placed(model, [ONE], 8, default=0)


@torch.no_grad()
def test_rows_of_another_form_are_refused(model: Model) -> None:
    placed = Placed(model, [ONE], 8, default=0)
    placed.route(torch.tensor([0, -1, 0]))
    x = torch.randn(3, WIDTH)
    assert torch.equal(model(x[None])[0][0], model(x)[0]), "one batch of all tokens is the same"
    with pytest.raises(ValueError, match=r"'first' gave rows of shape \(2, 3, 16\), expected \(tokens, width\)"):
        model(torch.randn(2, 3, WIDTH))
