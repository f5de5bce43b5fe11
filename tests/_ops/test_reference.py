"""Tests of the plain operations where torch has its own of the same kind."""

from __future__ import annotations

import pytest
import torch

from leace_fast._ops import add_lower_product, cholesky
from leace_fast._ops.reference import FACTOR_PANEL, panels


def positive(d: int) -> torch.Tensor:
    rows = torch.randn(3 * d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("d", [1, 2, FACTOR_PANEL - 1, FACTOR_PANEL, FACTOR_PANEL + 1, 2 * FACTOR_PANEL + 5])
def test_cholesky_reads_the_lower_triangle_only(d: int) -> None:
    matrix = positive(d)
    before = matrix.tril() + torch.full_like(matrix, torch.nan).triu(1)
    factor, failed = cholesky(before.clone())
    assert not failed
    torch.testing.assert_close(factor, torch.linalg.cholesky(matrix), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(factor @ factor.mT, matrix, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("at", [0, FACTOR_PANEL - 1, FACTOR_PANEL, 2 * FACTOR_PANEL + 4])
def test_cholesky_tells_that_it_failed(at: int) -> None:
    matrix = positive(2 * FACTOR_PANEL + 5)
    matrix[at, at] = -1.0
    assert cholesky(matrix)[1]


@pytest.mark.parametrize("d", [1, 63, 64, 65, 1000])
def test_lower_product_adds_to_what_is_there(d: int) -> None:
    tile = torch.randn(40, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    product = torch.eye(d, dtype=torch.float64)
    add_lower_product(product, tile)
    exact = (torch.eye(d, dtype=torch.float64) + tile.mT @ tile).tril()
    torch.testing.assert_close(product.tril(), exact, rtol=1e-12, atol=1e-12)
    covered = torch.zeros(d, d, dtype=torch.bool)
    for rows, columns in panels(d):
        covered[rows, columns] = True
    assert bool(covered[torch.ones(d, d, dtype=torch.bool).tril()].all())
