"""`fold_`: erasers multiplied into the weights that read their sites, so that they cost nothing at run time.

`W (x - L R (x - mu)) = (W - W L R) x + W L R mu`: the offset goes into the bias, and where there is none the
least-squares linear map takes the eraser's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..erasers import MAX_COST_RATIO, Eraser
from ..models import Inside, check_module, forget_compiled, unwrapped
from ._agreement import (
    attached_distance,
    check_agrees,
    example_of,
    hooked_output,
    output_of,
    share,
    told,
    warn_if_far,
)
from ._edits import Edits, add_biases
from ._plan import Plan, bias_name, plan
from ._readers import Reader
from ._record import record_of


@dataclass(frozen=True)
class FoldReport:
    """What `fold_` did.

    Attributes:
        readers: names of the modules whose weights changed, by site.
        cost_ratio: mean squared change of x over that of the affine eraser, by site; 1 where the offset was kept.
        leak: the largest share of the concept's covariance that rounded weights still read.
        difference: norm of the folded model's output less that of the same maps in hooks, over the latter's norm. These
            are the maps that were folded, without the offset where it was lost: it says that the folding is right.
        from_attached: norm of the folded model's output less that of the attached erasers, which keep every offset,
            over the norm of what attaching them changes in the output: 0 for the attached model, 1 for the clean one.
        lost_offset: sites whose linear map took the eraser's place, as their readers have no bias.
        bytes_kept: host memory that the original weights take until `unfold_`.
    """

    readers: dict[str, tuple[str, ...]]
    cost_ratio: dict[str, float]
    leak: float
    difference: float
    from_attached: float
    lost_offset: tuple[str, ...]
    bytes_kept: int

    def __str__(self) -> str:
        count = sum(map(len, self.readers.values()))
        kept = f"; {self.bytes_kept / 2**20:.1f} MiB kept for unfold_" if self.bytes_kept else ""
        return (
            f"folded {len(self.readers)} sites into {count} modules: the weights still read {self.leak:.1e} of the "
            f"concept's covariance, the output is {self.difference:.1e} from that of the same maps in hooks, and "
            f"{told(self.from_attached, self.lost_offset)}; the change of x is at most "
            f"{max(self.cost_ratio.values()):.4f} of the affine erasers'{kept}"
        )


# what was there before, for each folded model; None where it was not kept
FOLDED: WeakKeyDictionary[nn.Module, Edits | None] = WeakKeyDictionary()
# what was done to each
RECORDS: WeakKeyDictionary[nn.Module, Mapping[str, Any]] = WeakKeyDictionary()
# the sites of each, whose output is what it was: the weights that read it leave the concept out
SITES: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def fold_(
    model: nn.Module,
    erasers: Mapping[str, Eraser],
    example: Mapping[str, Any] | Tensor | None = None,
    *,
    add_bias: bool = False,
    max_cost_ratio: float = MAX_COST_RATIO,
    keep_originals: bool = True,
) -> FoldReport:
    """Fold erasers into the weights of every layer that reads their sites.

    A site all of whose readers have a bias keeps its offset; at any other the linear map of
    `Eraser.without_offset` is folded. So it is where the model multiplies what they read by the mask of padding, as
    state space models do: there a bias would be added to padded rows, which an offset in front of the mask is not.
    The folded model is then compared with the same maps in hooks on the example, and with the attached erasers. What a
    site gives out is left as it was, and still holds the concept: the weights that read it do not. `evaluate` refuses
    to probe there.

    Args:
        model: changed in place; on any failure it is restored to the bit. Of a wrapper, the model inside.
        erasers: by the name of the site.
        example: a batch, as in `find_sites`; None for the model's own `dummy_inputs`.
        add_bias: give biases to readers that lack them, with the flags of the config that make them; not where a mask
            multiplies what they read.
        max_cost_ratio: refuse a linear map that changes x more than so many times the affine one.
        keep_originals: keep the original weights in host memory, as `unfold_` needs them.

    Raises:
        ValueError: a site is read by something else than a product with a plain weight of its own, which is named;
            or a linear map is dear or unknown; or the model is folded already.
        TypeError: the model is no module.
        RuntimeError: the folded model does not do what the same maps in hooks do.

    Warns:
        UserWarning: the output is more than a fifth of the erasers' effect from that of the attached erasers.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).double()
    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], torch.ones(4))
    >>> report = fold_(model, {"0": eraser}, torch.randn(3, 4).double())
    >>> model[1].weight[:, 0].tolist(), report.readers
    ([0.0, 0.0], {'0': ('1',)})
    >>> unfold_(model)
    """
    inside = Inside(model)
    model, erasers = inside.model, {inside.name(site): eraser for site, eraser in erasers.items()}
    check_not_folded(model)
    example = example_of(model) if example is None else example
    plans = plan(model, erasers, example, add_bias=add_bias, max_cost_ratio=max_cost_ratio)
    lost = tuple(inside.given(p.site) for p in plans if p.lost_offset)
    clean, wanted = output_of(model, example), hooked_output(model, {p.site: p.eraser for p in plans}, example)
    attached = hooked_output(model, erasers, example) if lost else wanted
    edits, record = Edits(), record_of(model, plans, erasers, "fold")
    with undone_on_error(model, edits):
        leak = _fold_all(model, edits, plans)
        dtypes = {model.get_parameter(reader.parameter).dtype for p in plans for reader in p.readers}
        got = output_of(model, example)
        difference = check_agrees(dtypes, clean, wanted, got)
        distance = attached_distance(clean, attached, got)
        warn_if_far(distance, plans, "add_bias")
    return FoldReport(
        readers={inside.given(p.site): tuple(dict.fromkeys(inside.given(r.module) for r in p.readers)) for p in plans},
        cost_ratio={inside.given(p.site): p.cost_ratio for p in plans},
        leak=leak,
        difference=difference,
        from_attached=distance,
        lost_offset=lost,
        bytes_kept=remember(model, edits, keep_originals, erasers, record),
    )


def unfold_(model: nn.Module) -> None:
    """Restore the weights, biases and config of a folded model to the bit.

    Args:
        model: that `fold_` or `fold_residual_` has folded.

    Raises:
        ValueError: the model is not folded, was changed since, or was folded with `keep_originals=False`.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> before = model[1].weight.detach().clone()
    >>> report = fold_(model, {"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])}, torch.randn(3, 4))
    >>> unfold_(model)
    >>> torch.equal(model[1].weight, before)
    True
    """
    check_module(model)
    model = unwrapped(model)
    if model not in FOLDED:
        raise ValueError("this model is not folded (a copy or a loaded model does not know its original weights)")
    edits = FOLDED[model]
    if edits is None:
        raise ValueError("this model was folded with keep_originals=False: load it again")
    edits.check_unchanged(model)
    edits.undo(model)
    forget_compiled()
    del FOLDED[model], SITES[model]
    RECORDS.pop(model, None)


def folded_sites(model: nn.Module) -> tuple[str, ...]:
    """The sites that `fold_` has folded in a model: what they give out still holds the concept."""
    return SITES.get(model, ())


def folded_record(model: nn.Module) -> Mapping[str, Any] | None:
    """What folding did to a model, as `record_of` has it; None for one that is not folded."""
    return RECORDS.get(model)


def check_not_folded(model: nn.Module) -> None:
    """Raise ValueError for a model, or one that holds a model, that is folded."""
    if any(module in FOLDED for module in model.modules()):
        raise ValueError("this model is folded already: unfold_ it first")


def remember(
    model: nn.Module,
    edits: Edits,
    keep_originals: bool,
    sites: Iterable[str] = (),
    record: Mapping[str, Any] | None = None,
) -> int:
    """Note that a model is folded, with what `unfold_` needs if that is kept; returns the bytes that it takes."""
    forget_compiled()
    FOLDED[model], SITES[model] = edits if keep_originals else None, tuple(sites)
    if record is not None:
        RECORDS[model] = record
    return edits.bytes_kept if keep_originals else 0


@contextmanager
def undone_on_error(model: nn.Module, edits: Edits) -> Iterator[None]:
    """Undo the edits if the block fails."""
    try:
        yield
    except BaseException:
        edits.undo(model)
        raise


def _fold_all(model: nn.Module, edits: Edits, plans: Iterable[Plan]) -> float:
    """Fold everything, into new biases where they are wanted; return the largest share that `_fold` leaves."""
    missing = {bias_name(r) for p in plans if p.eraser.mean is not None for r in p.readers if r.bias is None}
    if missing:
        add_biases(model, edits, missing)
    return max(_fold(model, edits, p.eraser, reader) for p in plans for reader in p.readers)


def _fold(model: nn.Module, edits: Edits, eraser: Eraser, reader: Reader) -> float:
    """Fold into one weight and its bias; return the share of the concept's covariance that is left by rounding."""
    parameter = model.get_parameter(reader.parameter).detach()
    left, right = (part.to(parameter.device, torch.float64) for part in (eraser.left, eraser.right))
    weight = parameter.double() if reader.axis == -1 else parameter.double().mT
    seen = weight @ left
    folded = (weight - seen @ right).to(parameter.dtype)
    edits.write(model, reader.parameter, folded if reader.axis == -1 else folded.mT)
    if eraser.mean is not None:
        bias = model.get_parameter(bias_name(reader))
        offset = seen @ (right @ eraser.mean.to(left))
        edits.write(model, bias_name(reader), (bias.detach().double() + offset).to(bias.dtype))
    left_over = folded.double() @ left - (seen - seen @ (right @ left))
    return share(left_over, seen)
