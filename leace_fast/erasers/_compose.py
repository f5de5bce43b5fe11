"""Two erasures, one after the other, as one."""

from __future__ import annotations

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, Tensor | None]


def composed(first: Factors, then: Factors) -> Factors:
    """Return the factors of two erasures, one after the other, in float64.

    With `a = R1 (x - m1)` the second one reads `R2 (x - m2) - R2 L1 a`: the factors are stacked, brought to full rank,
    and the mean is a point that both leave where it is.

    Args:
        first: left (d, k), right (k, d) and mean (d,) or None, float64, of the first one.
        then: of the second one.

    Raises:
        ValueError: there is no such point.

    >>> e = torch.eye(2, dtype=torch.float64)
    >>> [part.shape for part in composed((e[:, :1], e[:1], e[0]), (e[:, 1:], e[1:], None))]
    [torch.Size([2, 2]), torch.Size([2, 2]), torch.Size([2])]
    """
    (left, right, mean), (next_left, next_right, next_mean) = first, then
    seen = next_right @ left
    origin = torch.zeros(len(left), dtype=left.dtype, device=left.device)
    means = [origin if one is None else one for one in (mean, next_mean)]
    held = torch.cat([right @ means[0], next_right @ means[1] - seen @ (right @ means[0])])
    size = torch.cat([right.abs(), next_right.abs() + seen.abs() @ right.abs()])  # of what cancels
    right = torch.cat([right, next_right - seen @ right])
    q, t = torch.linalg.qr(torch.cat([left, next_left], 1))
    u, s, v = torch.linalg.svd(t @ right, full_matrices=False)
    size = t.abs() @ size
    kept = s > len(left) * 2.0**-52 * size.norm()
    offset = u.mT @ (t @ held)
    size = size @ (means[0].abs() + means[1].abs())
    if offset[~kept].norm() > 1e-9 * size.norm():
        raise ValueError(
            "the two erasers hold the rows on planes that are parallel and apart, so that no point stays where it is: "
            "erase both concepts at once, or about the same mean"
        )
    left, right, offset = q @ u[:, kept] * s[kept], v[kept], offset[kept] / s[kept]
    if mean is None and next_mean is None:
        return left, right, None
    # Of all fixed points, that nearest to the means: a far one would cost digits.
    return left, right, means[0] + right.mT @ (offset - right @ means[0])
