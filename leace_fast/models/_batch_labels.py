"""The labels of a batch, checked once and fitted to the rows of each site's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..statistics import IGNORE
from ._modules import LABELS, submodules

MASK = "attention_mask"
DECODER_MASK = "decoder_attention_mask"


class BatchLabels:
    """One batch's labels and masks.

    Args:
        labels: integers (batch, length), -100 for tokens to leave out, or (batch,) for whole sequences; real-valued
            with `target_dim`: with an axis more.
        inputs: the batch's other inputs, of which the attention masks are read.
        target_dim: width of real-valued labels, None for classes.
        name: what errors call the labels.
        look: whether the values of masks are checked here, which waits for the device where they are on one.

    Raises:
        TypeError: labels or a mask are no tensor.
        ValueError: their shapes do not fit each other.

    >>> labels = BatchLabels(torch.tensor([0, 1]), {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
    >>> labels.rows("norm", torch.zeros(2, 3, 8))[0].tolist()
    [[0, 0, 0], [1, 1, 1]]
    """

    def __init__(
        self,
        labels: Any,
        inputs: Mapping[str, Any],
        target_dim: int | None = None,
        name: str = LABELS,
        look: bool = True,
    ) -> None:
        self.axes = 0 if target_dim is None else 1  # axes of the labels that are not those of batch and length
        self.name = name
        masks = {key: inputs.get(key) for key in (MASK, DECODER_MASK)}
        self.masks = {key: _mask(key, value, look) for key, value in masks.items() if value is not None}
        if not isinstance(labels, Tensor):
            raise TypeError(f"{name} is a {type(labels).__name__}, expected a tensor")
        self.labels = labels
        self._moved: dict[tuple[int, torch.device], Tensor] = {}
        mask = self.masks.get(MASK)
        if not 1 <= len(self.lead) <= 2 or (mask is not None and mask.shape[: len(self.lead)] != self.lead):
            fit = "" if mask is None else f", and {MASK} has shape {tuple(mask.shape)}"
            target = ", target_dim" if self.axes else ""
            raise ValueError(
                f"{name} has shape {tuple(labels.shape)}{fit}; expected (batch, length{target}) with the length of "
                f"the inputs, or (batch{target or ','}) for whole sequences"
            )

    @property
    def lead(self) -> torch.Size:
        """The labels' axes of batch and, for token labels, length."""
        return self.labels.shape[: self.labels.ndim - self.axes]

    @property
    def used(self) -> Tensor:
        """The class labels that count, as one axis: not -100, and for tokens not masked."""
        mask = self.masks.get(MASK)
        kept = self.labels != IGNORE
        if mask is not None and len(self.lead) == 2:
            kept &= mask.to(kept.device)
        return self.labels[kept]

    def rows(self, site: str, x: Tensor, decoder: bool = False) -> tuple[Tensor, Tensor | None]:
        """The labels and the mask of each row of x, which is (batch, ..., dim) or (batch * length, dim).

        Args:
            site: the place that x is the output of, for errors.
            decoder: whether it is in the decoder of an encoder-decoder.

        Raises:
            ValueError: the rows of x are not those of the labels.
        """
        labels = self._near(self.labels, x.device)
        lead, rest = self.lead, labels.shape[len(self.lead) :]
        mask, rows = self.masks.get(MASK), x.shape[:-1]
        if decoder:
            mask = self.masks.get(DECODER_MASK)
            if len(lead) == 2:
                raise ValueError(
                    f"{site!r} is in the decoder, whose tokens have no labels: {self.name} of shape "
                    f"{tuple(labels.shape)} is for the encoder's; choose sites of the encoder, or give one label a "
                    "sequence"
                )
        if len(lead) == 1:
            # pooled, one row a sequence; or rows of an image or of frames of sound, beside tokens without padding
            if mask is not None and mask.numel() != rows.numel() and (rows == lead or bool(mask.all())):
                mask = None
            length = (rows[0] // max(lead[0], 1),) if len(rows) == 1 else rows[1:]
            labels = labels.reshape(*lead, *[1] * len(length), *rest).expand(*lead, *length, *rest)
        lead = labels.shape[: labels.ndim - self.axes]
        if rows not in (lead, (lead.numel(),)) or (mask is not None and mask.shape != lead):
            fit = "" if mask is None else f" with a mask of shape {tuple(mask.shape)}"
            raise ValueError(
                f"{self.name} of shape {tuple(self.labels.shape)}{fit} does not fit the output of {site!r}, of shape "
                f"{tuple(x.shape)}{self._advice(rows)}"
            )
        return labels.reshape(*rows, *rest), None if mask is None else self._near(mask, x.device).reshape(rows)

    def _advice(self, rows: torch.Size) -> str:
        """What to do where a model makes rows of something else than the places of its inputs, as frames of sound."""
        if len(rows) != 2 or rows[0] != self.lead[0]:
            return ""
        if len(self.lead) == 2:
            return f": it has {rows[1]} rows of a sequence; give labels (batch, {rows[1]}), or one a sequence"
        return (
            f": the mask does not tell which of {rows[1]} rows are padding; choose sites whose rows are what it masks, "
            "or batch inputs of one length"
        )

    def _near(self, part: Tensor, device: torch.device) -> Tensor:
        """Return labels or a mask on a device, moved there once for all sites."""
        key = (id(part), device)
        if part.device != device and key not in self._moved:
            self._moved[key] = part.to(device)
        return self._moved.get(key, part)


def decoder_sites(model: Any, sites: Any) -> set[str]:
    """Those of the named sites that lie in the decoder of an encoder-decoder, whose tokens are not the encoder's."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return set()
    encoder: set[nn.Module] = set(model.get_encoder().modules())
    return {name for name, module in submodules(model, sites).items() if module not in encoder}


def _mask(name: str, mask: Any, look: bool) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is a {type(mask).__name__}, expected a tensor")
    if mask.ndim != 2 or (look and not bool(((mask == 0) | (mask == 1)).all())):
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, expected (batch, length), 1 for tokens and 0 for padding: the "
            "labels cannot be told from padding by other masks"
        )
    return mask.bool() if look or mask.is_floating_point() else mask
