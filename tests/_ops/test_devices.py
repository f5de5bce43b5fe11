"""Rows and factors that no kernel can read, and devices that are not here: an error names them, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import leace_fast as lf
from leace_fast._ops import device_here

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
KINDS = {
    "sparse_coo": (X.to_sparse(), "x is of layout torch.sparse_coo"),
    "sparse_csr": (X.to_sparse_csr(), "x is of layout torch.sparse_csr"),
    "mkldnn": (X.to_mkldnn(), "x is of layout torch._mkldnn"),
    "nested": (torch.nested.nested_tensor([X[:3], X[:5]], layout=torch.jagged), "x is a nested tensor"),
}


def eraser() -> lf.Eraser:
    return lf.leace(lf.Moments(6, 2).update(X, Y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["call", "apply_", "update"])
@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_not_dense_are_refused(kind: str, call: str) -> None:
    x, message = KINDS[kind]
    moments, erase = lf.Moments(6, 2).update(X, Y), eraser()
    act: Any = {"call": erase, "apply_": erase.apply_, "update": lambda x: moments.update(x, Y)}[call]
    with pytest.raises(TypeError, match=f"{message}.*expected a dense"):
        act(x)
    assert moments.count == 12


@pytest.mark.parametrize("name", ["x", "y", "mask", "weight"])
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_no_argument_of_update_is_sparse_or_without_values(name: str, kind: str) -> None:
    parts: dict[str, Any] = {"x": X, "y": Y, "mask": Y == 0, "weight": torch.ones(12)}
    parts[name] = parts[name].to_sparse() if kind == "sparse" else parts[name].to("meta")
    with pytest.raises(TypeError, match=f"{name} is o"):
        lf.Moments(6, 2).update(parts.pop("x"), parts.pop("y"), **parts)


def test_sparse_factors_are_refused() -> None:
    with pytest.raises(TypeError, match="a factor is of layout torch.sparse_coo"):
        lf.Eraser(torch.eye(6)[:, :1].to_sparse(), torch.eye(6)[:1])


@pytest.mark.parametrize("device", ["foo", "cuda:99", "mps"])
def test_a_device_that_is_not_here_is_named(device: str, tmp_path: Path) -> None:
    moments, erase = lf.Moments(6, 2).update(X, Y), eraser()
    moments.save(tmp_path / "moments")
    erase.save(tmp_path / "eraser")
    for act in (
        lambda: lf.Moments(6, 2, device=device),
        lambda: lf.Moments.load(tmp_path / "moments", device=device),
        lambda: lf.Eraser.load(tmp_path / "eraser", device=device),
        lambda: erase.to(device),
        lambda: lf.EraserTable([erase], device=device),
    ):
        with pytest.raises(ValueError, match=f"^device is '{device}'.*name another"):
            act()
    assert device_here(torch.device("cpu")) == torch.device("cpu")


def test_a_strength_is_a_number_and_a_width_is_one_that_can_be() -> None:
    with pytest.raises(TypeError, match="strength is '1', expected a number"):
        eraser().scaled("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim is 1000000000, expected at most"):
        lf.Moments(10**9, 2)
