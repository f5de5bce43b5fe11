"""Every warning of the package points to the line of the user's that led to it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import nn

from leace_fast import METHODS, Moments, scrub
from leace_fast import _warnings as module
from leace_fast.concept_erasure import LeaceFitter

X, Y = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
ALIKE = 1 / 3 * (torch.arange(120) < 60)  # the same rows of both: only rounding tells them apart


def absent() -> Moments:
    """Return moments of which one class has no rows."""
    return Moments(4, 3, per_class=True).update(X, Y)


FITS: dict[str, Callable[[], object]] = {
    **{
        name: lambda name=name: METHODS[name](absent())
        for name in METHODS
        if not METHODS[name].needs or "class covariances" in METHODS[name].needs
    },
    "splince": lambda: METHODS["splince"](absent(), Moments(4, target_dim=1).update(X, X[:, 3:])),
    "LeaceFitter": lambda: LeaceFitter(4, 1, dtype=torch.float64).update(X.repeat(2, 1), ALIKE).eraser,
    "Moments": lambda: Moments(4, 2).update(X * 1e-170, Y).count,
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_it_points_to_the_line_that_asked(fit: Callable[[], object]) -> None:
    with pytest.warns(UserWarning) as told:
        fit()
    assert {warning.filename for warning in told} == {__file__}


def test_frames_of_torch_between_are_passed_over() -> None:
    inside = types.FunctionType(
        compile("warn('from a hook')", module.__file__, "exec"), {"warn": module.warn, "__name__": "leace_fast.inside"}
    )

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    layer = Layer()
    layer.register_forward_hook(lambda *_: inside())
    with pytest.warns(UserWarning, match="from a hook") as told:
        line = sys._getframe().f_lineno + 1
        torch.no_grad()(inside)()
    assert (told[0].filename, told[0].lineno) == (__file__, line)
    with pytest.warns(UserWarning, match="from a hook") as told:
        layer(X)
    assert told[0].filename == __file__


def test_where_all_is_inside_it_points_to_the_outermost_line(monkeypatch) -> None:
    monkeypatch.setattr(module, "BETWEEN", ("", *module.BETWEEN))  # every file
    with pytest.warns(DeprecationWarning, match="^old$"):
        module.warn("old", DeprecationWarning)


class Stack(nn.Module):
    """Ten sites, whose rows fill few dimensions, in each site more than in the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128)) for _ in range(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_what_each_of_ten_sites_says_is_said_once(mode) -> None:
    generator = torch.Generator().manual_seed(0)
    base, y = torch.randn(2, 128, generator=generator), torch.arange(16) % 2
    x = torch.randn(16, 9, 2, generator=generator) @ base + y[:, None, None] * base[1]
    batch = {"x": x, "concept_labels": y, "concept_groups": torch.arange(16) % 3}
    for _ in range(2):  # a later call says it again
        with pytest.warns(UserWarning) as told:
            scrubber = scrub(Stack(), [batch], mode=mode)
        said = [str(warning.message) for warning in told]
        assert len(scrubber) == 10 and len(said) == 3, said
        ends = (
            "144 rows are few for 128 columns",
            "the rows come from 3 groups",
            "the rows that least change is measured",
        )
        assert all(message.startswith(begin) for message, begin in zip(said, ends, strict=True)), said
        assert {warning.filename for warning in told} == {__file__}
