"""Groups of a stream of batches, the parts they make, and what `evaluate` makes of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, evaluate
from leace_fast.evaluation import without_seen
from leace_fast.evaluation._groups import SEVERAL, TEST, TRAIN, Groups, Parts, classes_of, labelled, only
from leace_fast.evaluation._probing import Probing
from leace_fast.models import Inside
from leace_fast.scrubbing import Seen

GENERATOR = torch.Generator().manual_seed(0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


MODEL = Model()
measure = partial(evaluate, sites="norm")


def batch(size: int = 8, **more: Any) -> dict[str, Any]:
    x = torch.randn(size, 5, 6, generator=GENERATOR)
    y = torch.randint(2, (size, 5), generator=GENERATOR)
    x[..., 0] += 4 * y
    return {"x": x, "concept_labels": y, **more}


def test_groups_are_those_of_the_batch_or_its_sequences():
    groups = Groups()
    assert [groups.of(batch(3), index).tolist() for index in (0, 1)] == [[0, 1, 2], [3, 4, 5]]
    given = torch.tensor([4, 4, 7], dtype=torch.int32)
    assert Groups().of(batch(3, concept_groups=given), 0).tolist() == [4, 4, 7]
    tokens = torch.arange(15).reshape(3, 5)
    assert torch.equal(Groups().of(batch(3, concept_groups=tokens), 0), tokens)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), ValueError, r"in batch 3: concept_groups has shape \(2,\)"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, r"shape \(3, 4\), expected \(batch,\)"),
        (torch.zeros(3, 5, 1, dtype=torch.int64), ValueError, "shape"),
        (torch.tensor([0, -1, 2]), ValueError, "holds -1, expected 0 or more"),
        (torch.zeros(3), TypeError, "float32, expected a tensor of integers"),
        ([0, 1, 2], TypeError, "list, expected a tensor"),
    ],
)
def test_bad_groups(groups, error, message):
    with pytest.raises(error, match=message):
        Groups().of(batch(3, concept_groups=groups), 3)


def test_parts_by_turns_follow_the_first_labelled_appearance():
    parts = Parts(by_turns=True)
    every = torch.tensor([SEVERAL] * 4)
    assert parts.of(torch.tensor([5, 2, 5, 9]), every, TEST).tolist() == [TRAIN, TEST, TRAIN, TRAIN]
    assert parts.of(torch.tensor([2, 8, 9, 5]), every, TEST).tolist() == [TEST, TEST, TRAIN, TRAIN]


@pytest.mark.parametrize("order", [[0, 1] * 8, [0, 0, 1, 1] * 4, [0] * 8 + [1] * 8, [0, 1, 2, 3] * 4, [1, 0, 0, 0] * 4])
def test_each_part_has_all_classes_whatever_order_they_come_in(order):
    labels = torch.tensor(order)
    x = torch.randn(len(order), 5, 6, generator=GENERATOR)
    x[..., 0] += 6 * labels[:, None]
    (probe,) = measure(MODEL, [{"x": x, "concept_labels": labels}]).probes.values()
    assert probe.leaks and probe.train_groups == probe.test_groups == 8


def test_many_classes_of_one_group_each_are_split_too():
    parts = Parts(by_turns=True).of(torch.arange(6), torch.arange(6), TEST)
    assert parts.tolist() == [TRAIN, TEST] * 3


def test_training_rows_of_one_class_are_refused():
    inputs = batch(concept_groups=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    inputs["concept_labels"][:4] = 1
    with pytest.raises(ValueError, match="all rows of 'norm' that train the probe are of class 1: it could"):
        measure(MODEL, [inputs])


def test_the_same_sequence_is_one_group():
    one, labels = torch.randn(12, 5, 6, generator=GENERATOR), torch.arange(12) // 2 % 2
    twice = {"x": torch.cat([one, one[:6]]), "concept_labels": torch.cat([labels, labels[:6]])}
    (probe,) = measure(MODEL, [twice]).probes.values()
    assert probe.train_groups == probe.test_groups == 6
    ids = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    groups = Groups()
    assert groups.of({**ids, "concept_labels": labels[:2]}, 0).tolist() == [0, 1]
    assert groups.of({"input_ids": torch.tensor([[5, 6]]), "concept_labels": labels[:1]}, 1).tolist() == [0]


def test_sequences_that_train_are_left_out_of_the_test():
    train, fresh = batch(8), batch(8)
    with pytest.raises(ValueError, match="left to test the probe on.*or other probe_batches"):
        measure(MODEL, [train], probe_batches=[train])
    both = {name: torch.cat([train[name][:3], fresh[name]]) for name in fresh}
    (probe,) = measure(MODEL, [both], probe_batches=[train]).probes.values()
    assert (probe.train_groups, probe.test_groups, probe.test_rows) == (8, 8, 40)


def test_classes_of_sequences_and_tokens():
    inputs = {"concept_labels": torch.tensor([[2, 2, -100], [0, 1, 1], [3, -100, 4]])}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    assert classes_of(inputs, torch.arange(3)).tolist() == [2, 1, -100]
    assert classes_of({"concept_labels": torch.tensor([4, 5])}, torch.zeros(2, 2)).tolist() == [[4, 4], [5, 5]]


def test_groups_of_padding_may_be_below_0():
    inputs = batch(attention_mask=torch.tensor([0, 1, 1, 1, 1]).expand(8, 5))
    numbers = torch.where(inputs["attention_mask"].bool(), torch.arange(8)[:, None], -1)
    assert torch.equal(Groups().of({**inputs, "concept_groups": numbers}, 0), numbers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"probe_rows": -5}, ValueError, "probe_rows is -5, expected an integer of 1 or more"),
        ({"probe_batches": {"x": 1}}, TypeError, r"probe_batches is a dict, expected several batches"),
        ({"scrubber": Eraser(torch.eye(6)[:, :1], torch.eye(6)[:1])}, TypeError, "a Eraser, expected a Scrubber"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        measure(MODEL, [batch()], **options)


def test_labels_that_no_probe_can_read_are_told():
    with pytest.raises(TypeError, match="in batch 0: concept_labels is a list, expected a tensor"):
        measure(MODEL, [{**batch(), "concept_labels": [1] * 8}])
    real = {**batch(), "concept_labels": torch.randn(8, 5, 1)}
    with pytest.warns(UserWarning, match="concept_labels are real-valued") as told:
        assert measure(MODEL, [real, real]).probes == {}
    assert len(told) == 1


def test_wide_sites_are_probed_on_fewer_rows():
    """20,000 rows of 4096 columns would take two gigabytes: the rows, and what a probe makes of them."""
    model = nn.Sequential(nn.LayerNorm(4096, elementwise_affine=False))
    probing = Probing(Inside(model), None, ["0"], True, 20_000, False)
    inputs = {"input": torch.zeros(1, 1, 4096)}
    probing.admit({**inputs, "concept_labels": torch.zeros(1, 1).long()}, 0, TEST, inputs)
    most = probing.rows[TRAIN].most
    assert most is not None and 7_000 < most < 9_000


def test_labelled_and_only():
    inputs = batch(2, attention_mask=torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]))
    inputs["concept_labels"][0, 0] = -100
    assert labelled(inputs, torch.tensor([1, 2])).tolist() == [True, False]
    assert labelled(inputs, torch.zeros(2, 5, dtype=torch.int64)).nonzero().tolist() == [[0, 1]]
    kept = only(inputs, torch.tensor([False, True]))["concept_labels"]
    assert bool((kept[0] == -100).all()) and torch.equal(kept[1], inputs["concept_labels"][1])
    whole = only({"concept_labels": torch.tensor([3, 4])}, torch.eye(2, dtype=torch.bool))["concept_labels"]
    assert whole.tolist() == [[3, -100], [-100, 4]]


def test_training_and_test_share_no_group():
    speakers = [torch.arange(8) % 4, torch.arange(8) % 4 + 2]  # 0 to 5: 0, 2, 4 train
    (probe,) = measure(MODEL, [batch(concept_groups=each) for each in speakers]).probes.values()
    assert (probe.train_groups, probe.test_groups) == (3, 3)
    assert (probe.train_rows, probe.test_rows) == (5 * 8, 5 * 8)
    named = [batch(speaker=each) for each in speakers]  # which the model is not given
    (again,) = measure(MODEL, named, groups="speaker").probes.values()
    assert (again.train_rows, again.train_groups, again.test_groups) == (40, 3, 3)


def test_groups_of_tokens_split_sequences():
    tokens = torch.arange(5).expand(8, 5) // 2  # 0 0 1 1 2
    (probe,) = measure(MODEL, [batch(concept_groups=tokens)]).probes.values()
    assert (probe.train_rows, probe.test_rows, probe.train_groups, probe.test_groups) == (24, 16, 2, 1)


def test_groups_of_padding_are_none():
    mask = torch.ones(8, 5, dtype=torch.int64)
    mask[:, 0] = 0
    tokens = torch.tensor([0, 7, 7, 8, 8]).expand(8, 5)
    inputs = batch(concept_groups=tokens, attention_mask=mask)

    class Masked(Model):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(x)

    (probe,) = measure(Masked(), [inputs]).probes.values()
    assert (probe.train_rows, probe.test_rows) == (16, 16)


def test_a_group_in_both_streams_is_refused():
    one, other = batch(concept_groups=torch.arange(8)), batch(concept_groups=torch.arange(7, 15))
    with pytest.raises(ValueError, match="group 7 is in probe_batches, which train the probes, and in batches"):
        measure(MODEL, [other], probe_batches=[one])
    (probe,) = measure(MODEL, [batch(concept_groups=torch.arange(8, 16))], probe_batches=[one]).probes.values()
    assert (probe.train_groups, probe.test_groups) == (8, 8)
    with pytest.raises(ValueError, match="batch 0 has no concept_groups, unlike those before"):
        measure(MODEL, [batch()], probe_batches=[one])
    with pytest.raises(ValueError, match="batch 0 has no 'speaker', which groups names: it has x, concept_labels"):
        measure(MODEL, [batch()], groups="speaker")


def test_too_few_groups_to_split():
    with pytest.raises(ValueError, match="left to test the probe on: give labelled batches of at least two groups"):
        measure(MODEL, [batch(concept_groups=torch.zeros(8, dtype=torch.int64))])


def test_sequences_that_were_fitted_on_are_refused_unless_they_have_no_label():
    fitted, fresh = batch(), batch()
    basis = torch.eye(6, dtype=torch.float64)[:, :1]
    seen = Seen()
    seen.add(fitted)
    scrubber = Scrubber({"norm": Eraser(basis, basis.mT)})._knowing(seen)
    mixed = {name: torch.cat([fresh[name], fitted[name][:3]]) for name in fresh}
    with pytest.raises(ValueError, match="fitted on sequence 8 of batch 1 of batches and 2 more of it.*in_sample=True"):
        measure(MODEL, [fresh, mixed], scrubber)
    with pytest.raises(ValueError, match="fitted on sequence 0 of batch 0 of probe_batches and 7 more"):
        measure(MODEL, [fresh], scrubber, probe_batches=[fitted])
    assert measure(MODEL, [mixed], scrubber, probe=False).probes == {}
    assert not measure(MODEL, [mixed], in_sample=True).probes["norm"].in_sample  # without erasers
    marked = measure(MODEL, [mixed], scrubber, in_sample=True)
    assert marked.probes["norm"].in_sample and "norm: in-sample probe" in str(marked)
    left = measure(MODEL, [without_seen(mixed, scrubber)], scrubber).probes["norm"]
    assert left.train_rows + left.test_rows == 40 and not left.in_sample
    assert without_seen(fresh, scrubber) is fresh and without_seen(mixed, None) is mixed


def test_the_text_says_what_was_measured():
    clean = measure(MODEL, [batch(40)])
    probe = clean.probes["norm"]
    assert probe.leaks
    assert str(clean) == f"  norm: {probe}" and str(probe).endswith(", 20 groups to train and 20 to test, leaks")
    assert f"probe {probe.accuracy:.3f} [" in str(probe) and f"{probe.nats:+.4f} nats [" in str(probe)
    assert f"best constant {probe.constant:.3f}" in str(probe)
