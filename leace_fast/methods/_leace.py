"""LEACE: the affine eraser of least change after which no linear classifier can tell the concept."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..eraser import Eraser
from ..moments import Moments
from ..reference import add_lower_product, cholesky
from ..report import Report
from ._concept import Concept, canonical_columns, concept_of
from ._whitening import EPSILON, Shrinkage, Whitening, smallest_eigenvalue, whitening_of

NOISE_MARGIN = 4  # singular values below this many rounding errors are not told from zero
SMALL_REST = 1e-9  # its square is below rounding: one step of Newton is the inverse
WELL_APART = 1e-3  # singular values of unit columns above this lose no digit that counts


def leace(
    moments: Moments,
    *,
    rank: int | None = None,
    affine: bool = True,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
    max_cost_ratio: float = 1.1,
) -> Eraser:
    """Return the least-squares eraser of the concept in some moments, in closed form.

    With D the standard deviations, K K' the correlation matrix and U the left
    singular vectors of `K^-1 D^-1 C` (C the differences of class means), it is
    `L = D K U`, `R = U' K^-1 D^-1`. Columns of C count alike, however rare their class.

    Args:
        moments: statistics of (x, labels).
        rank: erase only so many directions, those of the largest canonical correlation.
        affine: True keeps the mean; False gives the best map without an offset, which fits weights without a bias.
        shrinkage: see `whitening_of`; it moves the eraser off the least change, never off the erasure.
        ridge: added to the diagonal of the correlation matrix; by default the rounding error of the statistics.
        max_cost_ratio: with `affine=False`, refuse a map that changes x more than so many times the affine one.

    Raises:
        ValueError: no rows, one class only, non-finite rows, or an option out of range.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 4.3 (affine), equation 3 (linear).

    >>> import torch
    >>> y = torch.arange(2000) % 3
    >>> x = torch.randn(2000, 16) + torch.eye(16)[y] * 5
    >>> eraser = leace(Moments(16, 3).update(x, y))
    >>> eraser.rank
    2
    >>> means = Moments(16, 3).update(eraser(x.double()), y).class_mean_differences
    >>> bool(means.abs().max() < 1e-12)
    True
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank is {rank!r}, expected a positive integer or None for all")
    concept = concept_of(moments)
    white = whitening_of(moments, shrinkage, ridge)
    smallest = smallest_eigenvalue(white.factor)
    basis, left, unresolved = _basis(concept, white, smallest)
    not_erased = [*concept.absent, *unresolved]
    if rank is not None and rank < basis.shape[1]:
        not_erased.append(f"{basis.shape[1] - rank} of {basis.shape[1]} directions: rank={rank} was asked for")
        turn = torch.linalg.svd(basis.mT @ white.whiten(canonical_columns(moments)), full_matrices=False)[0][:, :rank]
        basis, left = basis @ turn, left @ turn

    mean = moments.mean
    right = _refined(white.readers(basis), left)
    # A constant column is left alone without an offset too: it could serve as one, but only while it stays constant.
    whitened_mean = white.whiten(torch.where(white.constant, 0.0, mean)[:, None])
    # The mean squared change of centred rows is tr L (R S R') L', and R S R' = U'U = I.
    change, ratio = float(left.square().sum()), 1.0
    if not affine:
        right = _refined(_without_mean(basis, whitened_mean, white), left)
        linear = _change(left, right, white) + float((left @ (right @ mean)).square().sum())
        change, ratio = linear, linear / change if change else 1.0
        if ratio > max_cost_ratio:
            raise ValueError(
                f"without an offset the eraser changes x {ratio:.3g} times as much as the affine one, at most "
                f"{max_cost_ratio} is allowed: use affine=True, or raise max_cost_ratio"
            )
    if concept.absent or unresolved:
        warnings.warn("not erased: " + "; ".join(not_erased), stacklevel=2)
    report = Report(
        method="leace",
        dim=moments.dim,
        rank=basis.shape[1],
        rows=moments.count,
        ridge=white.ridge,
        shrinkage=white.shrinkage,
        smallest_eigenvalue=smallest,
        error_bound=moments.relative_error / smallest,
        change=change,
        cost_ratio=ratio,
        not_erased=tuple(not_erased),
    )
    solve = white.readers(whitened_mean)[0] if affine else None
    return Eraser(left, right, mean if affine else None, method="leace", report=report, mean_solve=solve)


def _basis(concept: Concept, white: Whitening, smallest: float) -> tuple[Tensor, Tensor, list[str]]:
    """Return an orthonormal basis (d, r) of the whitened concept, the same unwhitened, and what rounding hides."""
    columns = torch.where(white.constant[:, None], 0.0, concept.columns)
    whitened = white.whiten(columns)
    length = whitened.norm(dim=0)
    # The norm of K^-1 bounds those of its columns: mostly enough, and it spares an inverse.
    bound = torch.full_like(white.scale, 4 * smallest**-0.5)
    noise = _noise(concept, white, bound, length)
    if NOISE_MARGIN * float(noise.norm()) < WELL_APART and (apart := _well_apart(columns, whitened, length)):
        return *apart, []
    basis, certain = _kept(whitened, length, noise)
    if not certain:
        noise = _noise(concept, white, white.inverse_norms(), length)
        basis, _ = _kept(whitened, length, noise)
    hidden = ((length > 0) & (NOISE_MARGIN * noise >= 1)).tolist()
    unresolved = [f"{name}: less apart than rounding" for name, lost in zip(concept.names, hidden, strict=True) if lost]
    return basis, white.unwhiten(basis), unresolved


def _noise(concept: Concept, white: Whitening, inverse_norms: Tensor, length: Tensor) -> Tensor:
    """Return the rounding error of each whitened column relative to its length (m,)."""
    # Constant columns were set to zero: they bring no error, however large they are.
    weight = torch.where(white.constant, 0.0, inverse_norms / white.scale)
    error = EPSILON * weight[:, None] * concept.size
    return error.norm(dim=0) / torch.where(length > 0, length, 1.0)


def _well_apart(columns: Tensor, whitened: Tensor, length: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the basis, whitened and not, if the directions are so far apart that any way of finding it will do.

    The Cholesky factor T' T of their products gives it by triangles alone: `W T^-1`, and `C T^-1` without a product
    with K. Either loses digits as T comes near to singular.
    """
    if not bool((length > 0).all()):
        return None
    products = whitened.new_zeros(len(length), len(length))
    add_lower_product(products, whitened)
    triangle, failed = cholesky(products.div_(length).div_(length[:, None]))
    if failed or smallest_eigenvalue(triangle) < WELL_APART**2:
        return None
    upper = triangle.mT * length
    basis, left = (torch.linalg.solve_triangular(upper, part, upper=True, left=False) for part in (whitened, columns))
    return basis, left


def _kept(whitened: Tensor, length: Tensor, noise: Tensor) -> tuple[Tensor, bool]:
    """Return a basis of the singular vectors that stand above rounding, and whether less noise would keep the same."""
    told = (length > 0) & (NOISE_MARGIN * noise < 1)
    unit = whitened[:, told] / length[told]
    floor = max(whitened.shape[0], unit.shape[1]) * EPSILON
    threshold = max(floor, NOISE_MARGIN * float(noise[told].norm()))
    all_told = bool((told == (length > 0)).all())
    orthonormal, triangle = torch.linalg.qr(unit)
    if _smallest_singular_value(triangle) > threshold:
        # All directions stand, and any basis of their span will do: no singular vectors are needed.
        return orthonormal, all_told
    vectors, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    above = values > threshold
    return orthonormal @ vectors[:, above], all_told and bool((above == (values > floor)).all())


def _smallest_singular_value(triangle: Tensor) -> float:
    """Return a lower bound of the smallest singular value of an upper triangle (m, n), 0 if it is not square."""
    if triangle.shape[0] != triangle.shape[1] or not bool(triangle.diagonal().all()):
        return 0.0
    eye = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
    inverse = torch.linalg.solve_triangular(triangle, eye, upper=True)
    return 1 / float(inverse.norm()) if inverse.numel() else 0.0


def _refined(right: Tensor, left: Tensor) -> Tensor:
    """Return `(R L)^-1 R`: what rounding left of `R L` from the identity is taken out."""
    product = right @ left
    rest = torch.eye(len(product), dtype=product.dtype, device=product.device) - product
    if float(rest.norm()) < SMALL_REST:
        return torch.addmm(right, rest, right)
    return torch.linalg.solve(product, right)


def _without_mean(basis: Tensor, mean: Tensor, white: Whitening) -> Tensor:
    """Return the readers for the uncentred second moment, that of x plus the mean's outer product.

    Whitened it is I + w w', whose inverse is I - w w' / (1 + w'w): no second factorisation.
    """
    taken = mean * ((mean.mT @ basis) / (1 + mean.square().sum()))
    return white.readers(basis - taken)


def _change(left: Tensor, right: Tensor, white: Whitening) -> float:
    """Return the mean squared change of centred rows, `tr L (R S R') L'`."""
    spread = (right * white.scale) @ white.factor
    return float(((left.mT @ left) * (spread @ spread.mT)).sum())
