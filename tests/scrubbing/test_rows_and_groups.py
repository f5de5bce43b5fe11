"""`scrub`: which rows least change is measured on, and groups."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from leace_fast import Moments, Scrubber, leace, scrub, tap

Batch = dict[str, Any]


def batches(count: int, labelled: bool = True, seed: int = 0) -> list[Batch]:
    """Return batches with padding, a third of whose tokens have no label, in which each sequence has a speaker."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 60, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        batch: Batch = {"input_ids": ids, "attention_mask": mask}
        if labelled:
            batch["concept_labels"] = torch.where(ids % 3 == 2, -100, ids % 2)
            batch["speaker"] = torch.randint(20, (4,), generator=generator)
        made.append(batch)
    return made


def first_site(model: nn.Module, given: list[Batch]) -> tuple[str, Tensor, Tensor]:
    """Return the first norm's name, its rows (n, d) that are not masked, and their labels."""
    name = next(iter(scrub(model, given, groups="speaker")))
    rows: list[Tensor] = []
    with torch.no_grad(), tap(model, [name], lambda _, x: rows.append(x)):
        for batch in given:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    kept = torch.cat([batch["attention_mask"].bool() for batch in given])
    nothing = torch.full((4, 12), -100)
    labels = torch.cat([batch.get("concept_labels", nothing) for batch in given])
    return name, torch.cat(rows)[kept], labels[kept]


@pytest.fixture
def model() -> nn.Module:
    return tiny_models.build("llama")


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("rows", ["all", "labelled", "neutral"])
def test_the_metric_is_of_the_rows_that_were_named(model: nn.Module, mode: Any, rows: str) -> None:
    given, neutral = batches(12), batches(5, labelled=False, seed=1)
    site, x, y = first_site(model, given)
    used = x if rows != "labelled" else x[y != -100]
    options: dict[str, Any] = {"metric": "labelled"} if rows == "labelled" else {}
    if rows == "neutral":
        used = torch.cat([x, first_site_rows(model, site, neutral)])
        options["neutral"] = neutral
    scrubber = scrub(model, given, mode=mode, num_classes=2, groups="speaker", **options)
    wanted = leace(Moments(x.shape[1], 2).update(x, y), metric=Moments(x.shape[1]).update(used))
    found = scrubber[site]
    assert found.mean is not None and wanted.mean is not None
    assert torch.allclose(found.mean, wanted.mean, atol=1e-5)
    assert torch.allclose(found.left @ found.right, wanted.left @ wanted.right, atol=2e-3)
    assert found.report is not None and found.report.rows == int((y != -100).sum())


def first_site_rows(model: nn.Module, site: str, given: list[Batch]) -> Tensor:
    rows: list[Tensor] = []
    with torch.no_grad(), tap(model, [site], lambda _, x: rows.append(x)):
        for batch in given:
            model(**batch)
    return torch.cat(rows)[torch.cat([batch["attention_mask"].bool() for batch in given])]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("sites", ["norms", "residual"])
def test_class_means_are_equal_at_every_site_whatever_the_metric(model: nn.Module, mode: Any, sites: str) -> None:
    given, neutral = batches(12), batches(5, labelled=False, seed=1)
    scrubber = scrub(model, given, sites, mode=mode, num_classes=2, groups="speaker", neutral=neutral)
    wanted = list(scrubber) if mode == "sequential" else list(scrubber)[:1]
    moments: dict[str, Moments] = {}
    with scrubber.attached(model), torch.no_grad(), tap(model, wanted, functools.partial(_take, moments, given)):
        for batch in given:
            moments["batch"] = batch  # type: ignore[assignment]
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    del moments["batch"]
    for site, each in moments.items():
        gap = (each.class_means[0] - each.class_means[1]).abs().max() / each.variance.max().sqrt()
        assert gap < 1e-5, site


def _take(moments: dict[str, Any], given: list[Batch], site: str, x: Tensor) -> None:
    batch = moments["batch"]
    moments.setdefault(site, Moments(x.shape[-1], 2)).update(x, batch["concept_labels"], mask=batch["attention_mask"])


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_groups_reach_the_report_and_contrasts(model: nn.Module, mode: Any) -> None:
    given = batches(20)
    speakers = len(torch.cat([batch["speaker"] for batch in given]).unique())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = scrub(model, given, mode=mode, num_classes=2, groups="speaker")
        more = scrub(
            model, given, method=functools.partial(leace, contrasts=2), mode=mode, num_classes=2, groups="speaker"
        )
    for scrubber, rank in ((plain, 1), (more, 3)):
        for eraser in scrubber.values():
            assert eraser.rank == rank and eraser.report is not None and eraser.report.groups == speakers
    renamed = [{("concept_groups" if k == "speaker" else k): v for k, v in batch.items()} for batch in given]
    assert same(plain, scrub(model, renamed, mode=mode, num_classes=2)), "the entry's own name"
    each = [batch | {"speaker": batch["speaker"][:, None].expand(4, 12)} for batch in given]
    assert same(plain, scrub(model, each, mode=mode, num_classes=2, groups="speaker")), "a group for each token"


def same(one: Scrubber, two: Scrubber) -> bool:
    return all(torch.equal(one[site].left, two[site].left) for site in one)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_checkpoint_keeps_the_other_rows_and_the_groups(
    model: nn.Module, mode: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 2)
    given, neutral = batches(8), batches(5, labelled=False, seed=1)
    options: dict[str, Any] = {"mode": mode, "num_classes": 2, "groups": "speaker", "neutral": neutral}
    whole = scrub(model, given, checkpoint=tmp_path / "whole", **options)

    def stopping(items: Any, stage: str) -> Any:
        for number, item in enumerate(items):
            if (stage, number) in (("neutral", 3), ("sites", 3)):
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        scrub(model, given, checkpoint=tmp_path / "cut", track=stopping, **options)
    resumed = scrub(model, given, checkpoint=tmp_path / "cut", **options)
    assert same(whole, resumed)
    assert [e.report for e in whole.values()] == [e.report for e in resumed.values()]
    with pytest.raises(ValueError, match="it differs in metric"):
        scrub(model, given, checkpoint=tmp_path / "cut", **{**options, "neutral": (), "metric": "labelled"})
    others: list[Any] = [(), batches(5, labelled=False, seed=2)]
    for other in others:
        with pytest.raises(ValueError, match="it differs in (neutral, )?data"):
            scrub(model, given, checkpoint=tmp_path / "cut", **{**options, "neutral": other})


def test_neutral_streams_of_no_known_length(model: nn.Module) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(batches(3, labelled=False))

    given = batches(12)
    of_list = scrub(model, given, groups="speaker", neutral=list(Stream()), mode="parallel")
    once_only, loaded = iter(Stream()), DataLoader(Stream(), batch_size=None)
    assert same(scrub(model, given, groups="speaker", neutral=once_only, mode="parallel"), of_list)
    assert same(scrub(model, given, groups="speaker", neutral=loaded, mode="parallel"), of_list)


def test_groups_in_some_batches_only_are_refused_by_number(model: nn.Module) -> None:
    bare = [{k: v for k, v in batch.items() if k != "speaker"} for batch in batches(2)]
    grouped = [{**batch, "concept_groups": torch.arange(len(batch["concept_labels"]))} for batch in bare]
    with pytest.raises(ValueError, match="batch 1 has no concept_groups, unlike those before"):
        scrub(model, [grouped[0], bare[1]])
    with pytest.raises(ValueError, match="in batch 1: concept_groups has shape"):
        scrub(model, [grouped[0], {**grouped[1], "concept_groups": torch.arange(99)}])


def test_a_method_without_a_metric_takes_no_neutral_batches(model: nn.Module) -> None:
    given = batches(12)
    bare = [{k: v for k, v in batch.items() if k != "speaker"} for batch in given]
    labelled = scrub(model, bare, method="orth", metric="labelled")
    assert same(scrub(model, given, method="orth", groups="speaker"), labelled)
    with pytest.raises(ValueError, match="the method 'orth' has no metric that neutral batches could count in"):
        scrub(model, given, method="orth", groups="speaker", neutral=batches(2, labelled=False))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "some"}, ValueError, 'metric is \'some\', expected "all" or "labelled"'),
        ({"neutral": [3]}, TypeError, "neutral batch 0 is a int, expected the model's inputs by name"),
        ({"neutral": {"input_ids": 3}}, TypeError, "neutral is a dict, expected several batches"),
        ({"neutral": [{}]}, ValueError, "in neutral batch 0: a neutral batch holds no tensor"),
        ({"groups": "author"}, ValueError, "batch 0 has no 'author', which groups names"),
    ],
)
def test_what_is_refused(model: nn.Module, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scrub(model, batches(2), **{"groups": "speaker", **options})


def test_groups_of_another_shape_name_the_batch(model: nn.Module) -> None:
    given = batches(3)
    given[1]["speaker"] = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="in batch 1: concept_groups has shape"):
        scrub(model, given, groups="speaker")
    given[1]["speaker"] = torch.zeros(4)
    with pytest.raises(TypeError, match="in batch 1: concept_groups is a float32 tensor"):
        scrub(model, given, groups="speaker")


def test_activations_of_neutral_text_that_are_not_finite_are_named(model: nn.Module) -> None:
    given, neutral = batches(3), batches(3, labelled=False, seed=1)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    rare = 61
    with torch.no_grad():
        embedding.weight[rare] = float("nan")
    neutral[1]["input_ids"][2, 3] = rare
    with pytest.raises(ValueError, match="activations at .* are not finite in neutral batch 1"):
        scrub(model, given, groups="speaker", neutral=neutral)
