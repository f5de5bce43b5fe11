"""Every eraser takes arrays of NumPy where it takes tensors, and is held where and as it is asked to."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from leace_fast import ConditionalEraser, Eraser, EraserTable, QuantileNormalizer, TargetEraser

GENERATOR = numpy.random.default_rng(0)
LEFT, RIGHT, MEAN = GENERATOR.normal(size=(4, 2)), GENERATOR.normal(size=(2, 4)), GENERATOR.normal(size=4)
QUANTILES = numpy.sort(GENERATOR.normal(size=(2, 3, 4, 5)))
Y, Z = numpy.arange(6) % 3, GENERATOR.normal(size=(6, 2))
TABLE = EraserTable([Eraser(LEFT, RIGHT), Eraser(LEFT[:, :1], RIGHT[:1])])


def both(make: Callable[..., Any], *parts: numpy.ndarray) -> tuple[Any, Any]:
    """Return an eraser made from arrays, and the same from tensors."""
    return make(*parts), make(*(torch.from_numpy(part) for part in parts))


ERASERS: dict[str, tuple[tuple[Any, Any], tuple[Any, ...]]] = {
    "Eraser": (both(Eraser, LEFT, RIGHT, MEAN), ()),
    "translations": (both(ConditionalEraser, QUANTILES[0, ..., 0], QUANTILES[1, ..., 0]), (Y,)),
    "ConditionalEraser": (both(ConditionalEraser, *QUANTILES[..., 0], GENERATOR.normal(size=(3, 4, 4))), (Y,)),
    "editor": (both(ConditionalEraser, *GENERATOR.normal(size=(2, 3, 3, 4))), (Y, 1)),
    "TargetEraser": (both(TargetEraser, LEFT, MEAN[:2]), (Z,)),
    "QuantileNormalizer": (both(QuantileNormalizer, *QUANTILES), (Y,)),
    "QuantileNormalizer, directions": (
        both(QuantileNormalizer, *QUANTILES[:, :, :2], numpy.linalg.qr(LEFT)[0]),
        (Y,),
    ),
    "EraserTable": ((TABLE, TABLE), (Y - 1,)),
}
EACH = pytest.mark.parametrize(("erasers", "told"), ERASERS.values(), ids=ERASERS)
ROWS: dict[str, Callable[[numpy.ndarray], numpy.ndarray]] = {
    "dense": lambda x: x,
    "strided": lambda x: x.repeat(2, 0).repeat(3, 1)[::2, ::3],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "of another byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": lambda x: numpy.broadcast_to(x, (1, *x.shape))[0],
}


def rows(eraser: Any, dtype: str = "float64") -> numpy.ndarray:
    """Return rows of a dtype; a table of float32 factors takes no float64 ones."""
    table = isinstance(eraser, EraserTable) and dtype == "float64"
    return numpy.random.default_rng(1).normal(size=(6, 4)).astype("float32" if table else dtype)


@EACH
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_array_gives_the_bits_of_a_tensor(erasers: tuple[Any, Any], told: tuple[Any, ...], dtype: str) -> None:
    of_arrays, of_tensors = erasers
    x = rows(of_arrays, dtype)
    out = of_arrays(x, *told)
    expected = of_tensors(torch.from_numpy(x), *(torch.as_tensor(each) for each in told))
    assert isinstance(out, numpy.ndarray) and out.dtype == x.dtype
    assert torch.equal(torch.from_numpy(out), expected)


@EACH
@pytest.mark.parametrize("laid", ROWS.values(), ids=ROWS)
def test_arrays_of_any_layout(erasers: tuple[Any, Any], told: tuple[Any, ...], laid: Any) -> None:
    eraser = erasers[0]
    x = rows(eraser)
    given = laid(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = eraser(
            given, *(laid(each) if isinstance(each, numpy.ndarray) and each.ndim == 2 else each for each in told)
        )
    assert (given == x).all() and (out == eraser(x, *told)).all()


@EACH
@pytest.mark.parametrize("wrong", [[[1.0] * 4] * 6, None, 1.0])
def test_rows_that_are_neither_are_named(erasers: tuple[Any, Any], told: tuple[Any, ...], wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"x is a {kind}, expected a tensor or an array of NumPy"):
        erasers[0](wrong, *told)
    with pytest.raises(TypeError, match="x has dtype torch.int64, expected a floating"):
        erasers[0](rows(erasers[0]).astype(int), *told)


def test_targets_that_are_neither_are_named() -> None:
    with pytest.raises(TypeError, match="z is a list, expected a tensor or an array of NumPy"):
        ERASERS["TargetEraser"][0][0](rows(None), Z.tolist())


IN_PLACE = {name: ERASERS[name] for name in ("Eraser", "EraserTable")}


@pytest.mark.parametrize(("erasers", "told"), IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("name", ROWS)
def test_in_place(erasers: tuple[Any, Any], told: tuple[Any, ...], name: str) -> None:
    eraser = erasers[0]
    x = rows(eraser)
    given, expected = ROWS[name](x.copy()), eraser(x, *told)
    if name == "read-only":
        with pytest.raises(
            ValueError, match="x is a read-only array and cannot change in place: call the eraser itself"
        ):
            eraser.apply_(given, *told)
        assert (given == x).all(), "unchanged"
        return
    assert eraser.apply_(given, *told) is given
    assert numpy.allclose(given, expected, rtol=1e-6, atol=1e-12) and not (given == x).all()
    with pytest.raises(TypeError, match="x is a list, expected a tensor"):
        eraser.apply_(x.tolist(), *told)
    with pytest.raises(ValueError, match=r"x has shape \(6, 3\)"):
        eraser.apply_(given[:, :3], *told)


def test_isolate() -> None:
    eraser = ERASERS["Eraser"][0][0]
    x = rows(eraser)
    out = eraser.isolate(x)
    assert isinstance(out, numpy.ndarray) and numpy.allclose(x - out, eraser(x))
    with pytest.raises(TypeError, match="x is a list"):
        eraser.isolate(x.tolist())


@EACH
def test_is_held_as_it_is_asked_to_be(erasers: tuple[Any, Any], told: tuple[Any, ...]) -> None:
    eraser = erasers[0]
    x = rows(eraser, "float32")
    for moved in (eraser.to(torch.float32), eraser.to(dtype=torch.float32), eraser.to("cpu", torch.float32)):
        assert type(moved) is type(eraser) and moved is not eraser
        assert moved.dtype == torch.float32 and moved.device == torch.device("cpu")
        assert (moved(x, *told) == eraser(x, *told)).all(), "rows of float32 are computed in float32 anyway"
    again, wide = eraser.to(), eraser.to("cpu").to(torch.float64)
    assert again.dtype == eraser.dtype and wide.dtype == torch.float64
    assert (again(x, *told) == eraser(x, *told)).all()
    if not isinstance(eraser, EraserTable):
        assert eraser.dtype == torch.float64 and (wide(rows(None), *told) == eraser(rows(None), *told)).all()
        assert (moved.method, moved.report) == (eraser.method, eraser.report)
    for dtype in (torch.bfloat16, torch.int64):
        for call in (lambda dtype=dtype: eraser.to(dtype), lambda dtype=dtype: eraser.to("cpu", dtype)):
            with pytest.raises(ValueError, match=f"dtype is {dtype}, expected torch.float32 or torch.float64"):
                call()


def test_a_table_moves_with_what_was_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(None, "float32")
    for static in (False, True):
        monkeypatch.setattr(EraserTable, "_keeps_memory", lambda table, static=static: static)
        table = EraserTable([Eraser(LEFT, RIGHT), Eraser(LEFT[:, :1], RIGHT[:1])], rank=3)
        table.swap(0, Eraser(LEFT, RIGHT, MEAN))
        wide = table.to(torch.float64)
        assert (len(wide), wide.rank, wide.dtype, wide.dim) == (2, 3, torch.float64, 4)
        assert (wide.to(torch.float32)(x, Y - 1) == table(x, Y - 1)).all()
        wide.swap(1, Eraser(LEFT, RIGHT))
        assert not (wide.to(torch.float32)(x, Y - 1) == table(x, Y - 1)).all()


def test_no_rows_are_erased_in_place_too() -> None:
    eraser = Eraser(torch.eye(6)[:, :1], torch.eye(6)[:1])
    for empty in (numpy.ones((3, 6), numpy.float32)[:0].copy(), numpy.ones((0, 6))):
        assert eraser.apply_(empty) is empty
