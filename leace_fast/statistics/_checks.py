"""Rows before they are added: tensors whose shapes and dtypes fit, then values that can be used, flattened."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from .._ops import ROW_DTYPES, check_dense, tensor_from
from ._block_sums import all_finite
from ._group_sums import MOST_GROUP
from ._kind import Kind
from ._rows import IGNORE, Rows

DENSE = torch.strided
MOST_WEIGHT = 1e100
MOST_VALUE = 1e150  # of a float64 row: its square must stay finite
MOST_PRODUCT = 1e290  # of a weight and two values: sums of many must stay finite


def check_shapes(
    kind: Kind, x: Tensor, y: Tensor | None, mask: Tensor | None = None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return x, y, mask and weight as tensors whose shapes and dtypes fit; no value is looked at.

    Raises `TypeError` or `ValueError` for what cannot be used, naming what came and what was expected.
    """
    x = _tensor("x", x)
    if x.dtype not in ROW_DTYPES:
        raise TypeError(
            f"x has dtype {x.dtype}, expected a floating dtype of 16 bits or more: convert it, as by x.float()"
        )
    if x.ndim == 0 or x.shape[-1] != kind.dim:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {kind.dim}): its last dimension must be dim")
    lead = x.shape[:-1]
    y = _labels(kind, y, x)
    if kind.target_dim is not None:
        _check_targets(y, lead, kind.target_dim)
    else:
        _check_labels(y, lead, kind.labels or 1)
    if mask is not None:
        mask = _tensor("mask", mask)
        _check_mask(mask, lead)
    if weight is not None:
        weight = _tensor("weight", weight)
        _check_weight(weight, lead)
    return x, y, mask, weight


def check_rows(
    kind: Kind,
    device: torch.device,
    x: Tensor,
    y: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    groups: Tensor | None = None,
) -> tuple[Rows, int]:
    """Return the rows to use, flat, and the number of those left out because they are not finite.

    Raises `TypeError` or `ValueError` for what cannot be used, naming what came and what was expected.
    """
    x, y, mask, weight = check_shapes(kind, x, y, mask, weight)
    try:
        n = x.shape[:-1].numel()
        targets = labels = None
        if kind.target_dim is None:
            labels = y.long().to(device).reshape(n).contiguous()  # the kernels take bare pointers
        else:
            targets = y.double().to(device).reshape(n, kind.target_dim)
        if groups is not None:
            groups = _groups(groups, x.shape[:-1]).to(device).reshape(n).contiguous()

        kept: list[Tensor] = []
        if mask is not None:
            kept.append(_mask(mask).to(device).reshape(n))
        if weight is not None:
            weight = _weight(weight).to(device).reshape(n).contiguous()
            kept.append(weight > 0)
        if labels is not None and kind.labels is not None and _out_of_range(labels, kind.labels):
            kept.append(labels != IGNORE)
            _check_range(labels[torch.stack(kept).all(0)], kind.labels)
        rows = Rows(x.to(device).reshape(n, kind.dim), labels, targets, weight, n, groups)
        if kept:
            rows = rows.where(torch.stack(kept).all(0))
    except RuntimeError:
        for name, part in (("x", x), ("y", y), ("mask", mask), ("weight", weight)):
            if part is not None and part.is_meta:
                raise TypeError(f"{name} is on the meta device, expected a tensor with values") from None
        raise
    finite = _finite_rows(rows)
    skipped = 0
    if finite is not None:
        rows, skipped = rows.where(finite), int((~finite).sum())
    _check_size("x", rows.x)
    _check_size("y", rows.targets)
    if rows.weight is not None:
        _check_products(rows, rows.weight)
    _check_group_range(rows.groups, kind.num_classes or 1)
    return rows, skipped


def _labels(kind: Kind, y: Any, x: Tensor) -> Tensor:
    """Return the labels or targets as a tensor; those of rows without any are of one class, 0."""
    if not kind.is_plain:
        if y is None:
            raise TypeError("y is missing, expected the labels of the rows: Moments(dim) alone is for rows without")
        return _tensor("y", y)
    if y is not None:
        raise ValueError(
            "these moments hold no labels, but y was given: call update(x), or make them with num_classes= or "
            "target_dim="
        )
    return torch.zeros((), dtype=torch.int64, device=x.device).expand(x.shape[:-1])


def _groups(groups: Any, lead: torch.Size) -> Tensor:
    groups = _tensor("groups", groups)
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise TypeError(
            f"groups has dtype {groups.dtype}, expected integers: number the texts, speakers or modules that rows "
            "come from"
        )
    if groups.shape != lead:
        raise ValueError(f"groups has shape {tuple(groups.shape)}, expected {tuple(lead)}, one for each row of x")
    return groups.long()


def _check_group_range(groups: Tensor | None, num_classes: int) -> None:
    if groups is None or not groups.numel():
        return
    least, most = (int(value) for value in groups.aminmax())
    end = min(MOST_GROUP, 2**63 // num_classes)  # a group times the number of classes must stay in int64
    if least < 0 or most >= end:
        raise ValueError(f"groups holds {least if least < 0 else most}, expected integers from 0 to {end - 1}")


def _check_range(labels: Tensor, num_classes: int) -> None:
    if _out_of_range(labels, num_classes):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        raise ValueError(
            f"label {int(wrong[0])} is out of range ({len(wrong)} such rows), expected 0 to {num_classes - 1}, or "
            f"{IGNORE} for rows to leave out: check num_classes={num_classes}"
        )


def _check_size(name: str, part: Tensor | None) -> None:
    if part is None or part.dtype != torch.float64 or not part.numel():
        return
    most = float(torch.stack(part.aminmax()).abs().max())
    if most > MOST_VALUE:
        raise ValueError(
            f"{name} holds {most:.0e} in size, expected at most {MOST_VALUE:.0e}, whose square float64 can "
            f"hold: multiply {name} by a constant first"
        )


def _check_products(rows: Rows, weight: Tensor) -> None:
    """Raise ValueError if a weight times the square of a value is too large for sums in float64."""
    parts = [part for part in (rows.x, rows.targets) if part is not None]
    if not len(weight) or all(part.dtype != torch.float64 for part in parts):
        return
    sizes = torch.stack([part.abs().amax(1).double() for part in parts]).amax(0)
    # In this order no product overflows on the way.
    most, at = (weight * sizes / MOST_PRODUCT * sizes).max(0)
    if float(most) > 1:
        raise ValueError(
            f"a weight of {float(weight[at]):.0e} meets a value of {float(sizes[at]):.0e}, expected weight * value^2 "
            f"up to {MOST_PRODUCT:.0e}, so that sums stay in range: only ratios of weights count, multiply all by a "
            "constant"
        )


def _out_of_range(labels: Tensor, num_classes: int) -> bool:
    """Tell whether a label is none of 0..num_classes-1."""
    if labels.numel() == 0:
        return False
    least, most = labels.aminmax()
    return int(least) < 0 or int(most) >= num_classes


def _finite_rows(rows: Rows) -> Tensor | None:
    """Return which rows are finite, or None if all are; the common case is one look at each number."""
    parts = [rows.x] if rows.targets is None else [rows.x, rows.targets]
    if all(map(all_finite, parts)):
        return None
    return torch.stack([part.isfinite().all(1) for part in parts]).all(0)


def _tensor(name: str, value: Any) -> Tensor:
    if type(value) is Tensor and value.layout is DENSE and not value.requires_grad:
        return value
    number = "; number the names of classes, as by np.unique(y, return_inverse=True)[1]" if name == "y" else ""
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        try:
            return tensor_from(value if isinstance(value, numpy.ndarray) else numpy.asarray(value), name)
        except TypeError as error:
            raise TypeError(f"{error}{number}") from None
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        cause = str(error).partition(". ")[0]
        raise TypeError(f"{name} is a {kind} that holds no numbers ({cause}), expected a tensor{number}") from error
    check_dense(tensor, name)
    return tensor


def _check_labels(y: Tensor, lead: torch.Size, num_classes: int) -> None:
    if y.is_floating_point() or y.is_complex():
        raise TypeError(
            f"y has dtype {y.dtype}, expected integer labels of {num_classes} classes: convert labels with y.long(), "
            "or make the moments with target_dim= for real-valued targets"
        )
    if y.shape != lead:
        hint = ": for one-hot labels pass y.argmax(-1)" if y.shape == (*lead, num_classes) else ""
        raise ValueError(f"y has shape {tuple(y.shape)}, expected {tuple(lead)}, one label for each row of x{hint}")


def _check_targets(y: Tensor, lead: torch.Size, target_dim: int) -> None:
    if not y.is_floating_point():
        raise TypeError(
            f"y has dtype {y.dtype}, expected real-valued targets: integer labels are classes, make the moments with "
            "num_classes=; if these integers are amounts, pass y.double()"
        )
    if y.shape != (*lead, target_dim) and not (target_dim == 1 and y.shape == lead):
        raise ValueError(f"y has shape {tuple(y.shape)}, expected {(*lead, target_dim)}, one target for each row of x")


def _check_mask(mask: Tensor, lead: torch.Size) -> None:
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"mask has dtype {mask.dtype}, expected bool or 0/1 integers: use weight= for real numbers")
    if mask.shape != lead:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {tuple(lead)}, one for each row of x")


def _check_weight(weight: Tensor, lead: torch.Size) -> None:
    if weight.dtype == torch.bool or weight.is_complex():
        raise TypeError(f"weight has dtype {weight.dtype}, expected real numbers: use mask= to choose rows")
    if weight.shape != lead:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {tuple(lead)}, one for each row of x")


def _mask(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("mask holds integers other than 0 and 1: use weight= for weights")
    return mask.bool()


def _weight(weight: Tensor) -> Tensor:
    weight = weight.double()
    good = weight.isfinite() & (weight >= 0)
    if not bool(good.all()):
        bad = weight[~good]
        raise ValueError(f"weight holds {float(bad[0])}, expected finite numbers >= 0 ({bad.numel()} are not)")
    least = 1 / MOST_WEIGHT
    extreme = weight[(weight > 0) & ((weight < least) | (weight > MOST_WEIGHT))]
    if extreme.numel():
        raise ValueError(
            f"weight holds {float(extreme[0])}, expected 0 or {least:.0e} to {MOST_WEIGHT:.0e} ({extreme.numel()} are "
            "not), so that squares stay in range: only ratios of weights count, multiply all by a constant"
        )
    return weight
