"""Norm modules that erase what they return, in one pass over the rows.

Nothing here knows a class of norms: which formula a module computes is found by running it on probe rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._ops import ROW_DTYPES, BoundNorm, layer_norm, rms_norm
from ..erasers import Eraser
from ..models import is_hidden

TINY = 1e-8  # rows of this size are far below the root of any eps, and their squares are no subnormal numbers
EPS_DIGITS = 1e-4  # relative; within that an attribute of the module is taken to be its eps
ROUNDINGS = 2.0  # error allowed, in units in the last place of the rows: some norms round twice


@dataclass(frozen=True)
class Formula:
    """What a norm computes over the last dimension.

    Attributes:
        centred: whether the mean is taken off: LayerNorm, else RMSNorm.
        weight: name of the parameter that scales, None for ones.
        bias: name of the parameter that is added.
        weight_offset: added to the weight.
        eps: added to the variance or mean square.
        dtypes: of rows that come back in the same dtype, so computed.
    """

    centred: bool
    weight: str | None
    bias: str | None
    weight_offset: float
    eps: float
    dtypes: tuple[torch.dtype, ...] = ()

    def __call__(self, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.centred:
            return layer_norm(rows, weight, bias, self.eps)
        return rms_norm(rows, weight, self.eps, self.weight_offset)


class FusedNorm:
    """What a norm returns, erased in the pass that norms, for the rows that the fused kernel covers.

    >>> eraser = Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1])
    >>> norm = nn.LayerNorm(2)
    >>> FusedNorm(find_formula(norm, 2), eraser)(norm, torch.tensor([3.0, 1.0])).round(decimals=4).tolist()
    [0.0, -1.0]
    """

    def __init__(self, formula: Formula, eraser: Eraser) -> None:
        self.formula, self.eraser = formula, eraser
        self._bound: dict[Any, BoundNorm] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bound": {}}  # the devices of where it is loaded may be others

    def __call__(self, module: nn.Module, x: Any) -> Tensor | None:
        """Return the erased norm of x, or None: the module has to run, under autocast or for another dtype."""
        formula = self.formula
        # past `nn.Module.__getattr__`, which costs as much as a row; a parametrised one is found there alone
        weight = module._parameters.get(formula.weight or "")
        bias = module._parameters.get(formula.bias or "")
        if weight is None and formula.weight is not None:
            weight = getattr(module, formula.weight)
        if bias is None and formula.bias is not None:
            bias = getattr(module, formula.bias)
        if not isinstance(x, Tensor) or x.ndim == 0 or x.dtype not in formula.dtypes:
            return None
        if (weight is not None and weight.dtype != x.dtype) or torch.is_autocast_enabled(x.device.type):
            return None
        key = x.dtype if x.is_cpu else (x.dtype, x.device)
        found = self._bound.get(key)
        if found is None:
            factors = self.eraser._factors_for(x)
            found = self._bound[key] = BoundNorm(factors, formula.centred, formula.eps, formula.weight_offset)
        return found(x, weight, bias)


@torch.no_grad()
def find_formula(norm: nn.Module, dim: int) -> Formula:
    """Find by numbers which formula a norm over `dim` numbers computes.

    Raises:
        ValueError: none of the known ones; says why.

    >>> find_formula(nn.LayerNorm(8, eps=1e-3, bias=False), 8)
    Formula(centred=True, weight='weight', bias=None, weight_offset=0.0, eps=0.001, dtypes=(...))
    """
    parameters = dict(norm.named_parameters(recurse=False))
    if "forward" in vars(norm):
        raise ValueError("its forward has been replaced")
    if next(norm.children(), None) is not None:
        raise ValueError("it holds other modules")
    if any(type(part) is not nn.Parameter or part.shape != (dim,) or part.is_meta for part in parameters.values()):
        raise ValueError(f"its parameters are not plain vectors of width {dim}")
    probe = _Probe(norm, dim, tuple(parameters))
    try:
        for guess in _guesses(tuple(parameters)):
            eps = probe.eps(guess)
            if eps is None:
                continue
            formula = Formula(guess.centred, guess.weight, guess.bias, guess.weight_offset, eps)
            dtypes = tuple(dtype for dtype in ROW_DTYPES if probe.agrees(formula, dtype))
            if torch.float32 in dtypes:
                return Formula(**{**vars(formula), "dtypes": dtypes})
    except Exception as error:  # whatever a foreign module raises for rows
        raise ValueError(f"it does not take plain rows ({error})") from error
    raise ValueError("it computes neither an RMSNorm nor a LayerNorm")


def _guesses(names: tuple[str, ...]) -> Iterator[Formula]:
    """Formulas that use all the parameters, with eps left open."""
    for centred in (False, True):
        if not names:
            yield Formula(centred, None, None, 0.0, 0.0)
            continue
        for weight, *rest in itertools.permutations(names):
            if not centred and not rest:
                yield Formula(False, weight, None, 0.0, 0.0)
                yield Formula(False, weight, None, 1.0, 0.0)
            elif centred and len(rest) < 2:
                yield Formula(True, weight, rest[0] if rest else None, 0.0, 0.0)


class _Probe:
    """A norm, run with other parameters than its own; itself it is left alone, and so are its hooks."""

    def __init__(self, norm: nn.Module, dim: int, names: tuple[str, ...]) -> None:
        like = next(itertools.chain(norm.parameters(), norm.buffers()), torch.empty(0))
        self.norm, self.device = norm, like.device
        self.random = torch.Generator().manual_seed(0)
        self.dim, self.parameters = dim, {name: 1 + 0.3 * self.draw(dim) for name in names}

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64).to(self.device)

    def run(self, rows: Tensor, parameters: dict[str, Tensor]) -> Any:
        norm = object.__new__(type(self.norm))
        vars(norm).update(vars(self.norm))
        held: dict[str, Any] = dict(self.norm._parameters)  # with those that are None
        held.update({name: nn.Parameter(part.to(rows.dtype)) for name, part in parameters.items()})
        buffers = {name: None if part is None else part.clone() for name, part in self.norm._buffers.items()}
        vars(norm).update(_parameters=held, _buffers=buffers, training=False)
        return norm.forward(rows)

    def eps(self, guess: Formula) -> float | None:
        """On rows so small that eps alone counts, the factor is `1 / sqrt(mean square + eps)`."""
        row = (TINY * self.draw(1, self.dim)).float()
        parameters = dict(self.parameters)
        if guess.bias is not None:  # which would swallow the digits of what it is added to
            parameters[guess.bias] = torch.zeros_like(parameters[guess.bias])
        output = self.run(row, parameters)
        if not is_hidden(output) or output.shape != row.shape:
            return None
        exact = row.double()
        centred = exact - exact.mean() if guess.centred else exact
        scale = 1.0 if guess.weight is None else parameters[guess.weight] + guess.weight_offset
        scaled = centred * scale
        factor = float((output.double() * scaled).sum() / scaled.square().sum())
        square = float(centred.square().mean())
        if not 0 < factor < float("inf"):
            return None
        eps = factor**-2 - square
        if abs(eps) <= EPS_DIGITS * square:
            return 0.0
        known = [v for v in vars(self.norm).values() if isinstance(v, float) and abs(v - eps) <= EPS_DIGITS * v]
        return known[0] if known else eps if eps > 0 else None

    def agrees(self, formula: Formula, dtype: torch.dtype) -> bool:
        scales = torch.tensor([1e-2, 1.0, 30.0], device=self.device, dtype=torch.float64)
        rows = ((self.draw(2, 3, self.dim) + 0.5) * scales[:, None]).to(dtype)
        try:
            output = self.run(rows, self.parameters)
        except RuntimeError:  # a device without this dtype
            return False
        if not is_hidden(output) or output.shape != rows.shape or output.dtype != dtype:
            return False
        rounded = {name: part.to(dtype).double() for name, part in self.parameters.items()}
        weight = None if formula.weight is None else rounded[formula.weight]
        exact = formula(rows.double(), weight, None if formula.bias is None else rounded[formula.bias])
        # norms that compute in float32 whatever comes are no other formula
        unit = max(torch.finfo(dtype).eps, 8 * torch.finfo(torch.float32).eps)
        error = (output.double() - exact).norm(dim=-1)
        return bool((error <= ROUNDINGS * unit * exact.norm(dim=-1)).all())
