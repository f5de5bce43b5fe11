"""A leak planted in groups that no eraser was fitted on is seen, and none where nothing was planted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from leace_fast import Scrubber, evaluate, scrub
from leace_fast.evaluation import Probe

WIDTH, LENGTH = 256, 100
GAP = 0.3  # standard deviations between two classes: .011 nats to gain; 1e5 rows cost 256 / 2e5 = .0013


class Through(nn.Module):
    """One site, which hands its rows on."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.site.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x)


def batches(rows: int, gap: float, seed: int) -> list[dict[str, Tensor]]:
    """Rows of two classes, in sequences of 100, that are `gap` apart along one direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=generator)
    direction /= direction.norm()
    made = []
    for _ in range(rows // (50 * LENGTH)):
        y = torch.randint(2, (50, LENGTH), generator=generator)
        x = torch.randn(50, LENGTH, WIDTH, generator=generator)
        made.append({"x": x + gap * (y - 0.5)[..., None] * direction, "concept_labels": y})
    return made


def probed(gap: float, seed: int, rows: int = 100_000) -> Probe:
    model = Through()
    scrubber = scrub(model, batches(10_000, 0, 1000 + seed), sites="site")
    return evaluate(model, batches(rows, gap, seed), scrubber).probes["site"]


def test_a_small_leak_is_seen_and_none_is_invented():
    found, nothing = probed(GAP, 0), probed(0.0, 0)
    assert found.leaks and found.nats > 0.003 and 0.5 < found.accuracy < 0.62
    assert not nothing.leaks and abs(nothing.nats) < 0.001
    assert found.test_groups == found.train_groups == 500 and found.train_rows == found.test_rows == 20_000


@pytest.mark.slow
def test_twenty_of_twenty_leaks_are_seen():
    assert sum(probed(GAP, seed).leaks for seed in range(20)) == 20


@pytest.mark.slow
def test_at_most_one_of_twenty_is_invented():
    assert sum(probed(0.0, seed).leaks for seed in range(20)) <= 1


def test_the_eraser_of_rows_with_the_leak_hides_it_from_a_probe_of_them():
    model, rows = Through(), batches(20_000, GAP, 0)
    in_sample = evaluate(model, rows, scrub(model, rows, sites="site"), in_sample=True).probes["site"]
    assert in_sample.in_sample and not in_sample.leaks
    assert isinstance(scrubber := scrub(model, rows, sites="site"), Scrubber)
    with pytest.raises(ValueError, match="fitted on sequence 0 of batch 0 of batches and 49 more of it"):
        evaluate(model, rows, scrubber)
