"""ACE: affine concept editing, the concept's part of x replaced by that of a reference class."""

from __future__ import annotations

from ..erasers import Eraser
from ..fitting import check_class, check_moments, concept_subspace, fitted, warn_of
from ..statistics import Moments


def ace(moments: Moments, reference: int = 0, *, to: int | None = None, strength: float = 0.0) -> Eraser:
    """Return `x - V V' (x - m)`, V a basis of the differences of class means, m the reference class's mean.

    Every row gets the reference's part, that is erased *to* a class which has a meaning, not to the mean of all.
    `strength` then adds so much of the way to another class: `m = m_ref + strength (m_to - m_ref)`.

    Args:
        moments: statistics of (x, labels), with classes.
        reference: the class without the concept.
        to: the class that `strength` leads to; not needed with two classes.
        strength: 0 gives the reference, 1 that class, beyond them exaggerates.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: real-valued targets, a class is unknown or has no rows, or `strength` could lead to several classes.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal, that of the reference along V.

    Source: Marshall, Scherlis and Belrose 2024, https://arxiv.org/abs/2411.09003, equation 7.

    >>> import torch
    >>> y = torch.arange(90) % 2
    >>> x = torch.randn(90, 4, dtype=torch.float64) + y[:, None]
    >>> moments = Moments(4, 2).update(x, y)
    >>> means = Moments(4, 2).update(ace(moments)(x), y).class_means
    >>> torch.allclose(means[0], moments.class_means[0]) and torch.allclose(means[1], means[0])
    True
    """
    check_moments(moments)
    found = concept_subspace(moments)
    check_class(moments, "reference", reference)
    mean = moments.class_means[reference]
    if strength:
        others = [j for j in (moments.class_counts > 0).nonzero().flatten().tolist() if j != reference]
        if to is None and len(others) > 1:
            raise ValueError(f"classes {others} could be where strength={strength} leads: say which with to=")
        goal = check_class(moments, "to", others[0] if to is None else to)
        mean = mean + strength * (moments.means_about_shift[goal] - moments.means_about_shift[reference])
    warn_of(found.not_erased)
    return fitted("ace", moments, found.basis, found.basis.mT, mean, not_erased=found.not_erased)
