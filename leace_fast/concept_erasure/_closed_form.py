"""The factors of the LEACE projection from covariance matrices, real or complex, by the engine's own rank rule.

A complex matrix A + iB stands as the real one [[A, -B], [B, A]]: the projection of the real problem has that form too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import EPSILON, Concept, Scaling, Whitening, factored, span_of


def projection_factors(
    sigma_xx: Tensor | None, sigma_xz: Tensor, spread_x: Tensor, spread_z: Tensor, error: float, tolerance: float | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return `left` (d, r) and `right` (r, d) of what is erased, `left @ right`, and what rounding hides.

    Args:
        sigma_xx: (d, d) covariance of x, or None for the orthogonal projection.
        sigma_xz: (d, k) cross-covariance.
        spread_x: (d,) standard deviations of x, not shrunk.
        spread_z: (k,) those of z.
        error: relative rounding error of the correlation matrix.
        tolerance: drop singular values of the whitened cross-covariance below this; None for the rounding error.
    """
    if sigma_xz.is_complex():
        return _complex_factors(sigma_xx, sigma_xz, spread_x, spread_z, error, tolerance)
    metric = _metric(sigma_xx, spread_x, error)
    columns = torch.where(metric.constant[:, None], 0.0, sigma_xz)
    if tolerance is not None:
        whitened = columns if sigma_xx is None else metric.whiten(columns)
        vectors, values, _ = torch.linalg.svd(whitened, full_matrices=False)
        basis, unresolved = vectors[:, values > tolerance], ()
        left = basis if sigma_xx is None else metric.unwhiten(basis)
    else:
        names = tuple(f"column {j} of z" for j in range(sigma_xz.shape[1]))
        span = span_of(Concept(columns, torch.outer(spread_x, spread_z), names, ()), metric)
        basis, left, unresolved = span.basis, span.left, span.unresolved
    if not isinstance(metric, Whitening):
        basis = torch.linalg.qr(left)[0]
        return basis, basis.mT, unresolved
    right = metric.readers(basis)
    return left, torch.linalg.solve(right @ left, right), unresolved


def _metric(sigma_xx: Tensor | None, spread_x: Tensor, error: float) -> Scaling:
    variance = spread_x.square() if sigma_xx is None else sigma_xx.diagonal().clamp_min(0)
    constant = variance <= (4 * EPSILON) ** 2 * variance.max()
    scale = torch.where(constant, 1.0, variance.sqrt())
    if sigma_xx is None:
        return Scaling(scale, constant)
    inverse = torch.where(constant, 0.0, 1 / scale)
    factor, ridge = factored(sigma_xx * inverse * inverse[:, None], max(4 * len(scale) * EPSILON, error))
    return Whitening(scale, constant, factor, ridge, 0.0, float(len(scale)))


def _complex_factors(
    sigma_xx: Tensor | None, sigma_xz: Tensor, spread_x: Tensor, spread_z: Tensor, error: float, tolerance: float | None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    d = len(sigma_xz)
    left, right, unresolved = projection_factors(
        None if sigma_xx is None else _as_real(sigma_xx),
        _as_real(sigma_xz),
        spread_x.repeat(2),
        spread_z.repeat(2),
        error,
        tolerance,
    )
    real, imaginary = (left @ right)[:, :d].split(d)
    u, s, vh = torch.linalg.svd(torch.complex(real, imaginary))
    rank = left.shape[1] // 2
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank], unresolved


def _as_real(matrix: Tensor) -> Tensor:
    real, imaginary = matrix.real, matrix.imag
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
