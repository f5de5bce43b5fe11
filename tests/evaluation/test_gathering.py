"""Rows of sites, gathered from forward passes by a sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber
from leace_fast.evaluation import SiteRows, erased
from leace_fast.evaluation._gathering import every_other_sequence, every_row
from leace_fast.models import Site

MODEL = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
SITE = Site("0", 4)
X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(15).reshape(5, 3).masked_fill(torch.arange(15).reshape(5, 3) % 4 == 0, -100)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]])
BATCH = {"concept_labels": LABELS, "attention_mask": MASK}
KEPT = (LABELS != -100) & MASK.bool()


def gathered(choose, passes: int = 1) -> SiteRows:
    rows = SiteRows(MODEL, [SITE], choose)
    for number in range(passes):
        with torch.no_grad(), rows.gathering(BATCH, number):
            MODEL(X)
    return rows


def test_all_labelled_rows_are_gathered_with_their_classes():
    rows = gathered(every_row)
    x, y = rows.of("0")
    assert rows.count("0") == len(y) and torch.equal(y, LABELS[KEPT])
    assert torch.equal(x, MODEL[0](X)[KEPT])


def test_sequences_by_turns_are_all_of_them():
    sides = [gathered(every_other_sequence(turn)).of("0")[1] for turn in (0, 1)]
    assert [y.tolist() for y in sides] == [LABELS[turn::2][KEPT[turn::2]].tolist() for turn in (0, 1)]
    assert len(sides[0]) + len(sides[1]) == int(KEPT.sum())


def test_the_sampler_is_told_the_batch_and_the_labelled_rows():
    seen: list[tuple[int, Tensor]] = []

    def second_batch(number: int, labelled: Tensor) -> Tensor:
        seen.append((number, labelled))
        return labelled & bool(number == 1)

    rows = gathered(second_batch, passes=3)
    assert [number for number, _ in seen] == [0, 1, 2] and all(torch.equal(kept, KEPT) for _, kept in seen)
    assert torch.equal(rows.of("0")[1], LABELS[KEPT])


@pytest.mark.parametrize(("most", "step"), [(None, 1), (100, 1), (5, 2), (3, 3), (1, 9)])
def test_at_most_so_many_rows_are_taken_evenly(most, step):
    x, y = gathered(every_row).of("0", most)
    assert torch.equal(y, LABELS[KEPT][::step]) and len(x) == len(y) <= (most or 9)


def test_rows_are_those_that_the_erasers_leave():
    basis = torch.eye(4, dtype=torch.float64)[:, :1]
    with erased(MODEL, Scrubber({"0": Eraser(basis, basis.mT)})):
        x, _ = gathered(every_row).of("0")
    clean, _ = gathered(every_row).of("0")
    assert x[:, 0].abs().max() < 1e-6 < clean[:, 0].abs().max() and torch.equal(x[:, 1:], clean[:, 1:])


def test_labels_that_do_not_fit():
    rows = SiteRows(MODEL, [SITE], every_row)
    with pytest.raises(ValueError, match="does not fit the output of '0'"), rows.gathering({**BATCH}, 0):
        MODEL(X[:, :2])
