"""Mean projection: the linear map that drops the differences of class means, in one step and without an offset."""

from __future__ import annotations

from ..erasers import Eraser
from ..fitting import check_moments, check_rank, concept_subspace, fitted, warn_of
from ..statistics import Moments


def mean_projection(moments: Moments, *, rank: int | None = None) -> Eraser:
    """Return the orthogonal projection `x - V V' x`, V a basis of the differences between class means.

    Beside `orth` it has no offset, and classes count alike, however rare, when `rank` leaves some directions in.

    Take care: it is about the origin. What the mean of x has along V is dropped with the differences, which may change
    x many times more than `orth` does, the same projection about the mean (the second example). Take `orth` unless the
    map must have no offset.

    Args:
        moments: statistics of (x, labels), with classes.
        rank: drop only so many directions, those along which the class means spread most.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: real-valued targets, no rows, one class only, non-finite rows, or rank is out of range.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal; no offset, so that a mean far from the origin is dropped too.

    Source: Haghighatkhah et al. 2022, https://arxiv.org/abs/2212.04273, section 3.

    >>> import torch
    >>> x, y = torch.randn(600, 4, dtype=torch.float64), torch.arange(600) % 2
    >>> x[:, 0] += 8 * y
    >>> eraser = mean_projection(Moments(4, 2).update(x, y))
    >>> eraser.rank, eraser.mean, bool((eraser.left[0].abs() > 0.99).all())
    (1, None, True)
    >>> from leace_fast.methods import orth
    >>> x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> y = torch.arange(2000) % 2
    >>> x[:, 0] += 4 + y  # the classes are 1 apart where their mean is 4.5
    >>> far = Moments(8, 2).update(x, y)
    >>> [round(fit(far).report.change / float(far.variance.sum()), 2) for fit in (orth, mean_projection)]
    [0.14, 2.52]
    """
    check_moments(moments)
    check_rank(rank)
    if moments.num_classes is None:
        raise ValueError("the moments hold real-valued targets, expected classes: use orth for targets")
    found = concept_subspace(moments)
    basis, not_erased = found.basis, found.not_erased
    if rank is not None and rank < basis.shape[1]:
        means = moments.means_about_shift[moments.class_counts > 0].mT
        basis, left_out = found.strongest(means - means.mean(1, keepdim=True), rank)
        not_erased = [*not_erased, left_out]
    warn_of(found.not_erased)
    return fitted("mean_projection", moments, basis, basis.mT, None, not_erased=not_erased)
