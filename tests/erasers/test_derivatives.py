"""Derivatives of every order and mode: those of plain torch, whatever calls the kernels, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from leace_fast import ConditionalEraser, Eraser, EraserTable, QuantileNormalizer, TargetEraser, tap
from leace_fast._ops import BoundNorm
from leace_fast.concept_erasure import LeaceEraser

D = 8
GENERATOR = torch.Generator().manual_seed(0)
Q = torch.linalg.qr(torch.randn(D, 2, generator=GENERATOR))[0]
MEAN = torch.randn(D, generator=GENERATOR)
Y, Z = torch.tensor([0, 1, 1, 0]), torch.randn(4, 2, generator=GENERATOR)
ERASER = Eraser(Q, Q.mT, MEAN)
TABLE = EraserTable([ERASER, Eraser(Q[:, :1], Q[:, :1].mT)])
FACTORS = (Q.mT.contiguous().mT, Q.mT.contiguous(), MEAN)


def plain(x: Tensor) -> Tensor:
    q, mean = Q.to(x.dtype), MEAN.to(x.dtype)
    return x - ((x - mean) @ q) @ q.mT


def erased_copy(x: Tensor) -> Tensor:
    copy = x.clone()
    with torch.no_grad():
        ERASER.apply_(copy)
    return copy


def hooked(x: Tensor) -> Tensor:
    model = nn.Identity()
    with tap(model, [""], lambda name, output: ERASER(output)):
        return model(x)


LAYER, RMS = BoundNorm(FACTORS, True, 1e-5), BoundNorm(FACTORS, False, 1e-5)
MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "eraser": (ERASER, plain),
    "eraser in place": (erased_copy, plain),
    "isolate": (ERASER.isolate, lambda x: x - plain(x)),
    "table": (lambda x: TABLE(x, torch.zeros(4, dtype=torch.int64)), plain),
    "table in place": (lambda x: TABLE.apply_(x.clone(), 0), plain),
    "drop-in": (LeaceEraser(Q, Q.mT, MEAN), plain),
    "hook": (hooked, plain),
    "layer norm": (lambda x: LAYER(x), lambda x: plain(nn.functional.layer_norm(x, (D,)))),
    "RMS norm": (lambda x: RMS(x), lambda x: plain(nn.functional.rms_norm(x, (D,), eps=1e-5))),
    "translations": (
        lambda x: ConditionalEraser(torch.stack([MEAN, -MEAN]), torch.zeros(2, D))(x, Y),
        lambda x: x - torch.stack([MEAN, -MEAN])[Y],
    ),
    "maps by class": (
        lambda x: ConditionalEraser(torch.zeros(2, D), torch.zeros(2, D), torch.stack([Q @ Q.mT, 2 * Q @ Q.mT]))(x, Y),
        lambda x: (x @ Q @ Q.mT) * (1 + Y)[:, None],
    ),
    "targets": (lambda x: TargetEraser(Q, torch.zeros(2))(x, Z), lambda x: x - Z @ Q.mT),
    "quantiles": (
        lambda x: QuantileNormalizer(
            torch.tensor([-9.0, 9.0]).expand(2, D, 2), torch.tensor([-18.0, 18.0]).expand(2, D, 2)
        )(x, Y),
        lambda x: 2 * x,
    ),
}


@pytest.fixture(params=MAPS)
def maps(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    yield MAPS[request.param]


def rows(seed: int) -> Tensor:
    return torch.randn(4, D, generator=torch.Generator().manual_seed(seed))


def close(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recording", [torch.enable_grad, torch.no_grad])
def test_tangents(maps: tuple[Any, Any], recording: Any) -> None:
    x, direction = rows(1), rows(2)
    with recording(), forward_ad.dual_level():
        one, two = (forward_ad.unpack_dual(each(forward_ad.make_dual(x, direction))) for each in maps)
        if two.tangent is not None:
            close(one.tangent, two.tangent)
        close(one.primal, two.primal)


def test_plain_rows_beside_tangents(maps: tuple[Any, Any]) -> None:
    with forward_ad.dual_level():
        close(maps[0](rows(1)), maps[1](rows(1)))


@pytest.mark.parametrize("of", [torch.func.jvp, torch.func.vjp], ids=lambda of: of.__name__)
def test_functions_of_derivatives(maps: tuple[Any, Any], of: Any) -> None:
    if maps[0] in (erased_copy,):
        pytest.skip("what is done under no_grad has no gradient")
    found = []
    for each in maps:
        if of is torch.func.jvp:
            found.append(of(each, (rows(1),), (rows(2),)))
        else:
            value, back = of(each, rows(1))
            found.append((value, back(rows(2))[0]))
    close(*found)


@pytest.mark.parametrize("name", ["eraser", "isolate", "drop-in", "layer norm", "RMS norm", "hook"])
def test_jacobians_hessians_and_batches(name: str) -> None:
    ours, theirs = MAPS[name]
    x = rows(1)[0]
    for transform in (torch.func.jacfwd, torch.func.jacrev, lambda f: torch.func.hessian(lambda x: f(x).pow(3).sum())):
        close(transform(ours)(x), transform(theirs)(x))
    close(torch.func.vmap(ours)(rows(1)), theirs(rows(1)))
    per_row = torch.func.vmap(torch.func.grad(lambda x: ours(x).pow(2).sum()))(rows(1))
    close(per_row, torch.func.vmap(torch.func.grad(lambda x: theirs(x).pow(2).sum()))(rows(1)))


def test_gradients_of_gradients(maps: tuple[Any, Any]) -> None:
    if maps[0] in (erased_copy,):
        pytest.skip("what is done under no_grad has no gradient")
    found = []
    for each in maps:
        x = rows(1).requires_grad_()
        (first,) = torch.autograd.grad(each(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        found.append((first.detach(), second))
    close(*found)


def test_tangents_of_weights_of_a_norm() -> None:
    x, weight, direction = rows(1), rows(3)[0], rows(2)[0]
    found = []
    for norm in (lambda w: LAYER(x, w), lambda w: plain(nn.functional.layer_norm(x, (D,), w))):
        with forward_ad.dual_level(), torch.no_grad():
            found.append(forward_ad.unpack_dual(norm(forward_ad.make_dual(weight, direction))).tangent)
    close(*found)
