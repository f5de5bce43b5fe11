"""The subspace of a concept in the plain metric of x: what the orthogonal projections drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..statistics import Moments
from ._concept import concept_of, concepts_of, fullest, union_of
from ._span import described, span_of
from ._whitening import scaling_of


@dataclass(frozen=True)
class Subspace:
    """All directions of some concepts.

    Attributes:
        every: the moments of each concept.
        main: those with the most rows.
        basis: (d, r) orthonormal, float64.
        not_erased: what has no rows, or is hidden by rounding.
        concepts: a line on each, if there are several.
    """

    every: list[Moments]
    main: Moments
    basis: Tensor
    not_erased: list[str]
    concepts: tuple[str, ...]

    def strongest(self, columns: Tensor, rank: int) -> tuple[Tensor, str]:
        """Return (d, rank) the left singular vectors of some columns in the subspace, and a line on what is left."""
        total = self.basis.shape[1]
        turn = torch.linalg.svd(self.basis.mT @ columns, full_matrices=False)[0][:, :rank]
        return self.basis @ turn, f"{total - rank} of {total} directions: rank={rank} was asked for"


def concept_subspace(moments: Moments | Sequence[Moments]) -> Subspace:
    """Return the subspace that the concepts of some moments span.

    Raises:
        TypeError, ValueError: as in `concepts_of` and `concept_of`.
    """
    every = concepts_of(moments)
    main = fullest(every)
    concepts = [concept_of(one) for one in every]
    union = union_of(concepts)
    # The rank is told in units of the standard deviations: there, no column hides what another one shows.
    metric = scaling_of(main)
    span = span_of(union, metric)
    basis = torch.linalg.qr(span.left)[0]
    return Subspace(every, main, basis, [*union.absent, *span.unresolved], described(concepts, metric))
