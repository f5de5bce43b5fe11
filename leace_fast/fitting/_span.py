"""A basis of the directions of a concept that stand above rounding: the rank rule that all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import add_lower_product, cholesky
from ._concept import Concept
from ._whitening import EPSILON, Scaling, smallest_eigenvalue

NOISE_MARGIN = 4  # singular values below this many rounding errors are not told from zero
WELL_APART = 1e-3  # singular values of unit columns above this lose no digit that counts


@dataclass(frozen=True)
class Span:
    """The directions of a concept that stand above rounding.

    Attributes:
        basis: (d, r) orthonormal, whitened.
        left: (d, r) the same in the units of x.
        unresolved: what rounding hides.
    """

    basis: Tensor
    left: Tensor
    unresolved: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]


def span_of(concept: Concept, metric: Scaling) -> Span:
    """Return a basis of the concept's directions, found in a metric; which metric decides nothing but the basis."""
    columns = torch.where(metric.constant[:, None], 0.0, concept.columns)
    whitened = metric.whiten(columns)
    length = whitened.norm(dim=0)
    # The norm of K^-1 bounds those of its columns: mostly enough, and it spares an inverse.
    bound = torch.full_like(metric.scale, 4 * metric.smallest_eigenvalue**-0.5)
    noise = _noise(concept, metric, bound, length)
    if NOISE_MARGIN * float(noise.norm()) < WELL_APART and (apart := _well_apart(columns, whitened, length)):
        return Span(*apart)
    basis, certain, dropped = _kept(whitened, length, noise)
    if not certain:
        noise = _noise(concept, metric, metric.inverse_norms(), length)
        basis, _, dropped = _kept(whitened, length, noise)
    hidden = ((length > 0) & (NOISE_MARGIN * noise >= 1)).tolist()
    unresolved = [f"{name}: less apart than rounding" for name, lost in zip(concept.names, hidden, strict=True) if lost]
    if dropped:
        unresolved.append(f"{dropped} of {basis.shape[1] + dropped} directions: less apart than rounding")
    return Span(basis, metric.unwhiten(basis), tuple(unresolved))


def described(concepts: Sequence[Concept], metric: Scaling) -> tuple[str, ...]:
    """Return a line on the directions of each of several concepts, for the report; nothing for a single one."""
    if len(concepts) == 1:
        return ()
    ranks = [span_of(concept, metric).rank for concept in concepts]
    return tuple(f"concept {i}: {r} direction{'s' if r != 1 else ''}" for i, r in enumerate(ranks))


def _noise(concept: Concept, metric: Scaling, inverse_norms: Tensor, length: Tensor) -> Tensor:
    """Return the rounding error of each whitened column relative to its length (m,)."""
    # Constant columns were set to zero: they bring no error, however large they are.
    weight = torch.where(metric.constant, 0.0, inverse_norms / metric.scale)
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


def _kept(whitened: Tensor, length: Tensor, noise: Tensor) -> tuple[Tensor, bool, int]:
    """Return a basis of the singular vectors above rounding, whether less noise keeps it, and how many it hides."""
    told = (length > 0) & (NOISE_MARGIN * noise < 1)
    unit = whitened[:, told] / length[told]
    floor = max(whitened.shape[0], unit.shape[1]) * EPSILON
    threshold = max(floor, NOISE_MARGIN * float(noise[told].norm()))
    all_told = bool((told == (length > 0)).all())
    orthonormal, triangle = torch.linalg.qr(unit)
    if _smallest_singular_value(triangle) > threshold:
        # All directions stand, and any basis of their span will do: no singular vectors are needed.
        return orthonormal, all_told, 0
    vectors, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    above = values > threshold
    hidden = int((values > floor).sum()) - int(above.sum())
    return orthonormal @ vectors[:, above], all_told and not hidden, hidden


def _smallest_singular_value(triangle: Tensor) -> float:
    """Return a lower bound of the smallest singular value of an upper triangle (m, n), 0 if it is not square."""
    if triangle.shape[0] != triangle.shape[1] or not bool(triangle.diagonal().all()):
        return 0.0
    eye = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
    inverse = torch.linalg.solve_triangular(triangle, eye, upper=True)
    return 1 / float(inverse.norm()) if inverse.numel() else 0.0
