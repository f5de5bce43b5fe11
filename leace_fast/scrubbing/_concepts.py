"""`Concepts`: the concepts that a stream of batches labels, the classes of each, and moments of that kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import LABELS, MASK, BatchLabels
from ..statistics import IGNORE, Moments

Classes = int | Mapping[str, int] | None


class Concepts:
    """The concepts of a stream of batches.

    Attributes:
        names: those of the first batch, which the others must have too.
        options: of the `Moments` of each, once its classes are known.

    Args:
        num_classes: number of classes, by name for several concepts; None where the labels are to tell.
    """

    def __init__(self, num_classes: Classes) -> None:
        self.num_classes = num_classes
        self.names: list[str] = []
        self.options: dict[str, dict[str, Any]] = {}

    def labels(self, batch: Any, index: int) -> dict[str, BatchLabels]:
        """The labels of a batch by concept.

        Raises:
            ValueError, TypeError: there are none, or not of this shape, kind or concepts; names the batch.
        """
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch {index} is a {type(batch).__name__}, expected the model's inputs by name")
        found = batch.get(LABELS)
        if found is None:
            raise ValueError(
                f'batch {index} has no "{LABELS}": (batch, length) with {IGNORE} for tokens to leave out, or (batch,) '
                "for whole sequences"
            )
        concepts = found if isinstance(found, Mapping) else {LABELS: found}
        made = {}
        for name, labels in concepts.items():
            try:
                made[name] = self._checked(name, labels, batch)
            except (ValueError, TypeError) as error:
                raise type(error)(f"in batch {index}: {error}") from None
        self.names = self.names or list(made)
        if set(made) != set(self.names):
            raise ValueError(f"batch {index} has the concepts {', '.join(made)}, expected {', '.join(self.names)}")
        return made

    def count(self, all_labels: Iterable[Mapping[str, BatchLabels]]) -> None:
        """Learn the kind of each concept from all batches.

        Raises:
            ValueError: a label is no class, or a class never occurs.
        """
        seen: dict[str, set[int]] = {}
        for index, labels in enumerate(all_labels):
            for name, each in labels.items():
                if each.axes:
                    self.options[name] = {"target_dim": each.labels.shape[-1]}
                    continue
                classes, count = each.used.unique().tolist(), self._given(name)
                if wrong := [label for label in classes if label < 0 or (count and label >= count)]:
                    wanted = f"0 to {count - 1}" if count else "0 or more"
                    raise ValueError(f"in batch {index}: {name} holds the class {wrong[0]}, expected {wanted}")
                seen.setdefault(name, set()).update(classes)
        for name, classes in seen.items():
            count = self._given(name) or max(classes, default=-1) + 1
            _refuse_absent(name, count, classes)
            self.options[name] = {"num_classes": count}

    def take(self, labels: Mapping[str, BatchLabels]) -> None:
        """Learn the kind of each concept from the first batch and the caller."""
        for name, each in labels.items():
            count = self._given(name)
            if not each.axes and count is None:
                raise ValueError(
                    "parallel mode cannot count the classes of a stream that is read once: pass num_classes, or "
                    "batches that can be read again"
                )
            self.options[name] = {"target_dim": each.labels.shape[-1]} if each.axes else {"num_classes": count or 2}

    def moments(self, dim: int, device: torch.device) -> dict[str, Moments]:
        """Empty moments of each concept for rows of a width."""
        return {name: Moments(dim, **options, device=device) for name, options in self.options.items()}

    def check_classes(self, moments: Mapping[str, Moments]) -> None:
        """Raise ValueError for classes that these moments hold no row of."""
        for name, each in moments.items():
            if each.num_classes:
                _refuse_absent(name, each.num_classes, set(each.class_counts.nonzero().flatten().tolist()))

    def _given(self, name: str) -> int | None:
        return self.num_classes.get(name) if isinstance(self.num_classes, Mapping) else self.num_classes

    def _checked(self, name: str, labels: Any, batch: Mapping[str, Any]) -> BatchLabels:
        real = isinstance(labels, Tensor) and labels.is_floating_point()
        made = BatchLabels(labels, batch, labels.shape[-1] if real else None, name)
        if name in self.options:  # the moments know which labels they take
            mask = made.masks.get(MASK) if len(made.lead) == 2 else None
            rows = torch.zeros(*made.lead, 1)
            Moments(1, **self.options[name]).update(rows, labels.cpu(), mask=None if mask is None else mask.cpu())
        return made


def _refuse_absent(name: str, count: int, classes: set[int]) -> None:
    """Raise ValueError for classes 0 to count - 1 of a concept that never occur, or for a single one."""
    if missing := sorted(set(range(count)) - classes):
        listed = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ValueError(
            f"of the classes 0 to {count - 1} of {name}, {listed} never occur in these batches: number the classes "
            "without gaps, or give batches that hold them"
        )
    if count < 2:
        raise ValueError(f"{name} holds {count} classes, expected at least two: there is nothing to tell apart")
