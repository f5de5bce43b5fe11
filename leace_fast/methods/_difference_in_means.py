"""Difference in means: one fixed direction between two classes dropped, as for refusal, at one site or at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..erasers import Eraser
from ..fitting import absent_of, check_class, fitted, warn_of
from ..statistics import Moments


def difference_in_means(moments: Moments, positive: int = 1, negative: int = 0) -> Eraser:
    """Return `x - v v' x`, v the unit vector from the mean of one class to that of another.

    Other classes have no say. The map has no offset, so that it fits weights without a bias.

    Take care: it is about the origin, as `mean_projection`: what the mean of x has along v is dropped too.

    Args:
        moments: statistics of (x, labels), with classes.
        positive, negative: the classes with and without the concept, as refused and answered requests.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: real-valued targets, a class is unknown or has no rows, or the two means are the same.

    Warns:
        UserWarning: a class has no rows.

    Guarantees: two class means equal; no offset, so that a mean far from the origin is dropped too.

    Source: Arditi et al. 2024, https://arxiv.org/abs/2406.11717, equations 2 and 4.

    >>> import torch
    >>> x, y = torch.randn(400, 3), torch.arange(400) % 2
    >>> x[:, 2] += 50 * y
    >>> bool(difference_in_means(Moments(3, 2).update(x, y)).left[2] > 0.99)
    True
    """
    absent = absent_of(moments)
    check_class(moments, "positive", positive)
    check_class(moments, "negative", negative)
    means = moments.means_about_shift
    difference = means[positive] - means[negative]
    if not bool(difference.any()):
        raise ValueError(f"classes {positive} and {negative} have the same mean: there is no direction between them")
    left = (difference / torch.linalg.vector_norm(difference))[:, None]
    present = (moments.class_counts > 0).nonzero().flatten().tolist()
    others = [j for j in present if j not in (positive, negative)]
    not_erased = [*absent, *(f"class {j}: not asked for" for j in others)]
    warn_of(absent)
    return fitted("difference_in_means", moments, left, left.mT, None, not_erased=not_erased)


def fixed_direction(
    by_site: Mapping[str, Moments], source: str, positive: int = 1, negative: int = 0
) -> dict[str, Eraser]:
    """Return for each site the eraser of one site's direction: a model that reads and writes it nowhere.

    Args:
        by_site: the moments of sites of one width, as `record` gives them.
        source: the site whose direction is taken.
        positive, negative: as in `difference_in_means`.

    Raises:
        TypeError: a site has no `Moments`.
        ValueError: an unknown source, sites of other widths, or as in `difference_in_means`.

    Source: Arditi et al. 2024, https://arxiv.org/abs/2406.11717, section 2.4: the direction is ablated everywhere.

    >>> import torch
    >>> sites = {name: Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2) for name in ("a", "b")}
    >>> erasers = fixed_direction(sites, "a")
    >>> torch.equal(erasers["a"].left, erasers["b"].left), erasers["b"].site
    (True, 'b')
    """
    if source not in by_site:
        raise ValueError(f"no site {source!r}, expected one of {', '.join(by_site)}")
    wrong = [name for name, moments in by_site.items() if moments.dim != by_site[source].dim]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} have another width than {source}: one direction fits sites of one width")
    eraser = difference_in_means(by_site[source], positive, negative)
    return {name: eraser.with_site(name) for name in by_site}
