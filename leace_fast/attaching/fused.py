"""Norm modules that erase what they return, in one pass over the rows.

Nothing here knows a class of norms: which formula a module computes is found by running it on probe rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..eraser import Eraser
from ..ops import add_layer_norm_project, add_rms_norm_project
from ..reference import ROW_DTYPES, layer_norm, rms_norm
from ..sites import acts_of, is_hidden
from ..subtypes import put_on, take_off, wears

LAYER = "fused"  # of modules: see `subtypes`
TINY = 1e-8  # rows of this size are far below the root of any eps, and their squares are no subnormal numbers
EPS_DIGITS = 1e-4  # relative; within that an attribute of the module is taken to be its eps
ROUNDINGS = 2.0  # error allowed, in units in the last place of the rows: some norms round twice


class Erasure:
    """An eraser at work at one site: called by a hook, or inside a fused norm.

    Attributes:
        ran: whether the site has been run.
        active: False leaves the rows as they are, for a comparison.
    """

    def __init__(self, eraser: Eraser) -> None:
        self.eraser, self.ran, self.active = eraser, False, True

    def __call__(self, x: Any) -> Any:
        self.ran = True
        if not isinstance(x, Tensor):
            raise ValueError(f"the output of {self.eraser.site!r} is a {type(x).__name__}, expected one float tensor")
        return self.eraser(x) if self.active else x

    def __deepcopy__(self, memo: Any) -> Erasure:
        return Erasure(self.eraser)


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


def fuse(module: nn.Module, erasure: Erasure) -> Callable[[], None]:
    """Let a norm erase its output in the pass that norms; returns what ends that.

    The module stays the same object with the same parameters, hooks and names in a `state_dict`; its type changes.
    Whatever the fused kernel does not cover (other arguments, a dtype of its own, autocast) runs as before and is
    erased afterwards.

    Raises:
        ValueError: no known formula gives what the module does, or it has been given erasers already; says why.
    """
    if acts_of(module) is not None or wears(module, LAYER):
        raise ValueError("something else is attached there, which acts first")
    formula = find_formula(module, erasure.eraser.dim)
    try:
        put_on(module, LAYER, forward=_forward_over(type(module)))
    except TypeError as error:
        raise ValueError(f"its type cannot change ({error})") from error
    vars(module)["_fused"] = (formula, erasure)

    def end() -> None:
        # first: without it the norm is its own again, also under a type that cannot be taken off
        vars(module).pop("_fused", None)
        take_off(module, LAYER)

    return end


@functools.cache
def _forward_over(kind: type[nn.Module]) -> Callable[..., Any]:
    original = kind.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fused = getattr(self, "_fused", None)
        if fused is None:
            return original(self, *args, **kwargs)
        formula, erasure = fused
        erasure.ran = True
        if erasure.active and len(args) == 1 and not kwargs and is_hidden(args[0]):
            x = args[0]
            weight = None if formula.weight is None else getattr(self, formula.weight)
            same = weight is None or weight.dtype == x.dtype
            if same and x.dtype in formula.dtypes and not torch.is_autocast_enabled(x.device.type):
                factors = erasure.eraser._factors_for(x)
                if formula.centred:
                    bias = None if formula.bias is None else getattr(self, formula.bias)
                    return add_layer_norm_project(x, None, weight, bias, formula.eps, *factors)[0]
                offset = formula.weight_offset
                return add_rms_norm_project(x, None, weight, formula.eps, *factors, weight_offset=offset)[0]
        return erasure(original(self, *args, **kwargs))

    return forward


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
