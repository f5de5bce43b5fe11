"""Rows of sites, gathered from forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leace_fast import Eraser, Scrubber
from leace_fast.evaluation import SiteRows, erased
from leace_fast.models import Site

MODEL = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
SITES = [Site("0", 4), Site("1", 4)]
X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(15).reshape(5, 3).masked_fill(torch.arange(15).reshape(5, 3) % 4 == 0, -100)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]])
BATCH = {"concept_labels": LABELS, "attention_mask": MASK}
KEPT = (LABELS != -100) & MASK.bool()


def gathered(most: int | None = None, passes: int = 1, **more: torch.Tensor) -> SiteRows:
    rows = SiteRows(MODEL, SITES, most)
    for number in range(passes):
        with torch.no_grad(), rows.gathering({**BATCH, **more}, number):
            MODEL(X)
    return rows


def test_all_labelled_rows_are_gathered_with_their_classes():
    rows = gathered()
    x, y, _ = rows.of("0")
    assert rows.count("0") == len(y) and torch.equal(y, LABELS[KEPT])
    assert torch.equal(x, MODEL[0](X)[KEPT])


def test_each_sequence_is_a_group_unless_groups_are_given():
    sequences = torch.arange(5)[:, None].expand(5, 3)[KEPT]
    assert torch.equal(gathered(passes=2).of("0").groups, torch.cat([sequences, sequences + 5]))
    given = torch.tensor([7, 7, 3, 3, 9])
    assert torch.equal(gathered(concept_groups=given).of("0").groups, given[sequences])
    tokens = torch.arange(15).reshape(5, 3)
    assert torch.equal(gathered(concept_groups=tokens).of("0").groups, tokens[KEPT])


@pytest.mark.parametrize("most", [1, 3, 8, 40, 79, 80, 1000])
def test_so_many_rows_are_drawn_the_same_ones_everywhere(most):
    whole, some = gathered(passes=10), gathered(most, passes=10)
    count = 10 * int(KEPT.sum())
    assert count == 80 and len(some.of("0").y) == len(some.of("1").y) == min(most, count)
    assert torch.equal(some.of("0").y, some.of("1").y)
    for one, other in zip(gathered(most, passes=10).of("0"), some.of("0"), strict=True):
        assert torch.equal(one, other)
    places = {tuple(row): place for place, row in enumerate(zip(*[p.tolist() for p in whole.of("0")[1:]], strict=True))}
    kept = [places[row] for row in zip(*[p.tolist() for p in some.of("0")[1:]], strict=True)]
    assert len(set(kept)) == min(most, count) and kept == sorted(kept)  # of no row twice, in their order
    assert torch.equal(whole.of("0").x[torch.tensor(kept)], some.of("0").x)


def test_rows_are_drawn_evenly_and_no_more_are_held_than_a_quarter_above():
    rows = SiteRows(MODEL, SITES, 400)
    batch = {"concept_labels": torch.zeros(5, 3, dtype=torch.int64)}
    for number in range(400):
        with torch.no_grad(), rows.gathering(batch, number):
            MODEL(X)
        assert rows._held["0"].count <= 500 + 15
    drawn = torch.bincount(rows.of("0").groups // 500, minlength=4)
    assert drawn.sum() == 400 and (drawn - 100).abs().max() < 4 * 75**0.5


def test_rows_are_those_that_the_erasers_leave():
    basis = torch.eye(4, dtype=torch.float64)[:, :1]
    with erased(MODEL, Scrubber({"0": Eraser(basis, basis.mT)})):
        x, _, _ = gathered().of("0")
    clean, _, _ = gathered().of("0")
    assert x[:, 0].abs().max() < 1e-6 < clean[:, 0].abs().max() and torch.equal(x[:, 1:], clean[:, 1:])


def test_labels_that_do_not_fit():
    rows = SiteRows(MODEL, SITES)
    with pytest.raises(ValueError, match="does not fit the output of '0'"), rows.gathering({**BATCH}, 0):
        MODEL(X[:, :2])
