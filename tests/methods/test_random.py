"""The random control: a uniform orthogonal projection about the mean."""

from __future__ import annotations

import pytest
import torch

from leace_fast import Moments
from leace_fast.methods import random_subspace


def moments_at(offset: float, dim: int = 6) -> Moments:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, dim, generator=generator, dtype=torch.float64) + offset
    return Moments(dim, 2).update(x, torch.arange(100) % 2)


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_is_an_orthogonal_projection_about_the_mean(rank: int) -> None:
    moments = moments_at(10.0)
    eraser = random_subspace(moments, rank, seed=3)
    projection = eraser.left @ eraser.right
    assert eraser.rank == rank and eraser.method == "random" and eraser.report is None
    torch.testing.assert_close(projection, projection.mT, rtol=0, atol=1e-15)
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-14)
    assert float(projection.trace()) == pytest.approx(rank, abs=1e-12)
    torch.testing.assert_close(eraser(moments.mean), moments.mean, rtol=0, atol=1e-12)


def test_depends_on_the_seed_and_on_the_mean_alone() -> None:
    one, two = random_subspace(moments_at(0.0), 2, seed=1), random_subspace(moments_at(5.0), 2, seed=1)
    assert torch.equal(one.left, two.left) and not torch.equal(one.left, random_subspace(moments_at(0.0), 2).left)
    state = torch.get_rng_state()
    random_subspace(moments_at(0.0), 2)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are not touched"


def test_is_uniform() -> None:
    """The first two moments of the projection are those of the uniform distribution: no direction is preferred."""
    moments, draws, dim, rank = moments_at(0.0), 2000, 6, 2
    erasers = [random_subspace(moments, rank, seed=seed) for seed in range(draws)]
    projections = torch.stack([eraser.left @ eraser.right for eraser in erasers])
    eye = torch.eye(dim, dtype=torch.float64)
    # An entry of one projection has a standard deviation below 0.3, and its square one below 0.2.
    torch.testing.assert_close(projections.mean(0), eye * rank / dim, rtol=0, atol=5 * 0.3 / draws**0.5)
    on, off = rank * (rank + 2) / (dim * (dim + 2)), rank * (dim - rank) / (dim * (dim - 1) * (dim + 2))
    squares = projections.square().mean(0)
    torch.testing.assert_close(squares, eye * on + (1 - eye) * off, rtol=0, atol=5 * 0.2 / draws**0.5)


@pytest.mark.parametrize("rank", [-1, 7])
def test_refuses_a_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}, expected 0 to 6"):
        random_subspace(moments_at(0.0), rank)


def test_needs_rows() -> None:
    with pytest.raises(ValueError, match="none were added, call update"):
        random_subspace(Moments(6, 2), 1)
