"""Rows of odd shapes and memory, none at all, of any strides, sharing memory: every eraser takes them or says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leace_fast import ConditionalEraser, Eraser, EraserTable, Moments, QuantileNormalizer, TargetEraser, leace
from leace_fast.concept_erasure import LeaceEraser, LeaceFitter, OracleEraser, QuadraticFitter

D = 4
EYE = torch.eye(D)
ERASER = Eraser(EYE[:, :1], EYE[:1], torch.ones(D))
TABLE = EraserTable([ERASER])


def labels(x: Any) -> Any:
    made = torch.zeros(tuple(x.shape[:-1]), dtype=torch.int64)
    return made if isinstance(x, Tensor) else made.numpy()


def targets(x: Any) -> Any:
    made = torch.zeros((*x.shape[:-1], 1))
    return made if isinstance(x, Tensor) else made.numpy()


TABLES = torch.tensor([0.0, 1.0]).expand(2, D, 2)
CALLS: dict[str, Callable[[Any], Any]] = {
    "call": ERASER,
    "in place": ERASER.apply_,
    "isolate": ERASER.isolate,
    "scaled": ERASER.scaled(2.0),
    "no rank": Eraser(EYE[:, :0], EYE[:0]),
    "table": lambda x: TABLE(x, labels(x)),
    "table in place": lambda x: TABLE.apply_(x, labels(x)),
    "conditional": lambda x: ConditionalEraser(EYE[:2], EYE[2:])(x, labels(x)),
    "conditional maps": lambda x: ConditionalEraser(EYE[:2], EYE[2:], EYE.expand(2, D, D))(x, labels(x)),
    "targets": lambda x: TargetEraser(EYE[:, :1], torch.zeros(1))(x, targets(x)),
    "quantiles": lambda x: QuantileNormalizer(TABLES, TABLES)(x, labels(x)),
    "drop-in": LeaceEraser(EYE[:, :1], EYE[:1], None),
    "drop-in oracle": lambda x: OracleEraser(EYE[:, :1], torch.zeros(1))(x, targets(x)),
}
EMPTY: dict[str, Callable[[], Tensor]] = {
    "no rows": lambda: torch.zeros(0, D),
    "no batch": lambda: torch.zeros(0, 5, D),
    "no positions": lambda: torch.zeros(3, 0, D),
    "strides of zero": lambda: torch.empty_strided((0, D), (0, 0)),
    "transposed": lambda: torch.zeros(D, 0).mT,
    "expanded": lambda: torch.zeros(1, 0, D).expand(7, 0, D),
    "a slice": lambda: torch.zeros(9, 2 * D)[9:, ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("call", CALLS)
def test_no_rows(call: str, shape: str, dtype: torch.dtype) -> None:
    if call.startswith("table") and dtype == torch.float64:
        pytest.skip("a table is of one dtype")
    x = EMPTY[shape]().to(dtype)
    found = CALLS[call](x)
    assert found.shape == x.shape and found.dtype == dtype
    if dtype in (torch.float32, torch.float64):
        found = CALLS[call](x.numpy())
        assert isinstance(found, (np.ndarray, Tensor)) and tuple(found.shape) == tuple(x.shape)


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize(
    "options", [{"num_classes": 2}, {"num_classes": 2, "per_class": True}, {"target_dim": 1}, {}], ids=str
)
def test_no_rows_change_no_statistics(shape: str, options: dict[str, Any]) -> None:
    x, moments = EMPTY[shape](), Moments(D, **options)
    y = None if not options else targets(x) if "target_dim" in options else labels(x)
    assert moments.update(x, y).count == 0


@pytest.mark.parametrize("shape", EMPTY)
def test_no_rows_for_the_drop_in(shape: str) -> None:
    x = EMPTY[shape]()
    assert int(LeaceFitter(D, 1).update(x, targets(x)).n) == 0
    assert QuadraticFitter(D, 2).update(x, labels(x)).n.tolist() == [0, 0]


OVERLAPPING: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.arange(4.0).expand(3, D),
    "expanded columns": lambda: torch.arange(3.0)[:, None].expand(3, D),
    "expanded batch": lambda: torch.ones(1, 3, D).expand(5, 3, D),
    "windows": lambda: torch.arange(9.0).unfold(0, D, 1),
    "rows that overlap by one": lambda: torch.arange(20.0).as_strided((3, D), (3, 1)),
}


@pytest.mark.parametrize("shape", OVERLAPPING)
@pytest.mark.parametrize("call", [name for name in CALLS if "in place" in name])
def test_rows_that_share_memory_do_not_change_in_place(call: str, shape: str) -> None:
    x = OVERLAPPING[shape]()
    before = x.clone()
    with pytest.raises(ValueError, match="rows share memory and cannot change in place, clone it first"):
        CALLS[call](x)
    assert torch.equal(x, before) and torch.equal(CALLS["call"](x), CALLS["call"](before))


SPACED: dict[str, Callable[[], Tensor]] = {
    "every other row": lambda: torch.arange(40.0).view(10, D)[::2],
    "every other column": lambda: torch.arange(40.0).view(5, 2 * D)[:, ::2],
    "transposed": lambda: torch.arange(20.0).view(D, 5).mT,
    "permuted": lambda: torch.arange(60.0).view(D, 3, 5).permute(2, 1, 0),
    "one expanded row": lambda: torch.arange(4.0).expand(1, D),
    "channels first": lambda: torch.arange(48.0).view(2, D, 6).transpose(1, 2),
}


@pytest.mark.parametrize("shape", SPACED)
@pytest.mark.parametrize("call", [name for name in CALLS if "in place" in name])
def test_rows_of_any_strides_change_in_place(call: str, shape: str) -> None:
    x = SPACED[shape]().clone(memory_format=torch.preserve_format) if shape == "transposed" else SPACED[shape]()
    expected = CALLS["call"](x.clone())
    assert torch.equal(CALLS[call](x), expected) and torch.equal(x, expected)


@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e-20, 1e20, 1e34])
def test_columns_of_any_size_in_float32_are_erased(size: float) -> None:
    """What reads a column of 1e-42 is 1e42, which float32 does not hold: the ranks are scaled."""
    y = torch.arange(2000) % 2
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = size * (1 + y)
    eraser = leace(Moments(4, 2).update(x, y))
    for erase in (eraser, eraser.to(dtype=torch.float32), EraserTable([eraser.to(dtype=torch.float32)])):
        out = (erase(x, 0) if isinstance(erase, EraserTable) else erase(x)).double()
        apart = (out[y == 0].mean(0) - out[y == 1].mean(0)).abs()
        assert apart[2] < 1e-2 * size and apart.isfinite().all()
