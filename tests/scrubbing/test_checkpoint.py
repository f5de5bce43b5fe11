"""A scrub that is interrupted goes on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import CLASSES, labelled_batches
from torch import nn

from leace_fast import Moments, leace, scrub
from leace_fast.scrubbing._concepts import Concepts
from leace_fast.scrubbing._job import Job


class Interrupted(Exception):
    pass


def interrupt_after(count: int) -> Any:
    taken = []

    def track(items: Any, stage: str) -> Any:
        for item in items:
            taken.append(stage)
            if len(taken) > count:
                raise Interrupted
            yield item

    return track


@pytest.mark.parametrize("after", [2, 9, 14])
def test_an_interrupted_scrub_goes_on_to_the_same_bits(tmp_path, after):
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama")
    wanted = scrub(model, batches)
    with pytest.raises(Interrupted):
        scrub(model, batches, checkpoint=tmp_path, track=interrupt_after(after))
    done = len(list(tmp_path.glob("*.safetensors")))
    assert (done > 0) == (after > 4)
    again = scrub(model, batches, checkpoint=tmp_path)
    for site, eraser in wanted.items():
        assert torch.equal(again[site].left, eraser.left) and torch.equal(again[site].right, eraser.right)
    stages: list[str] = []
    scrub(model, batches, checkpoint=tmp_path, track=lambda items, stage: stages.append(stage) or items)
    assert stages == ["read", "sites"], "nothing is fitted again"


def test_an_interrupted_parallel_scrub_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 2)
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama", 7)
    options: dict[str, Any] = {"mode": "parallel", "num_classes": CLASSES}
    wanted = scrub(model, batches, checkpoint=tmp_path / "one", **options)
    with pytest.raises(Interrupted):
        scrub(model, batches, checkpoint=tmp_path / "two", track=interrupt_after(5), **options)
    again = scrub(model, batches, checkpoint=tmp_path / "two", **options)
    for site, eraser in wanted.items():
        assert torch.equal(again[site].left, eraser.left) and torch.equal(again[site].right, eraser.right)


def test_a_checkpoint_goes_on_where_the_activations_are(tmp_path, monkeypatch):
    """On a GPU the statistics that were kept go on there: each is loaded to the device of its site."""
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 2)
    model, batches = tiny_models.build("llama"), labelled_batches("llama", 4)
    options: dict[str, Any] = {"mode": "parallel", "num_classes": CLASSES, "checkpoint": tmp_path}
    scrub(model, batches, **options)
    loaded: list[torch.device] = []
    load, places = Moments.load, iter(torch.device("cuda", n) for n in range(4))

    def watched(path: Path, device: torch.device) -> Moments:
        loaded.append(device)
        return load(path)

    monkeypatch.setattr(Moments, "load", watched)
    monkeypatch.setattr(Job, "device_at", lambda job, site: next(places))
    scrub(model, batches, **options)
    wanted = [torch.device("cuda", n) for n in range(4) for _ in ("labelled", "others")]
    assert loaded == wanted, "one for each site, of the labelled rows and of the others"


def test_a_site_lies_where_its_weights_are_or_else_where_the_model_is():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.LayerNorm(2), nn.ReLU())
    job = Job(model, leace, Concepts(2), lambda items, stage: items, None, {})
    assert {job.device_at(site) for site in ("0", "1", "2", "")} == {torch.device("cpu")}


def test_a_checkpoint_of_another_call_is_refused(tmp_path):
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    scrub(model, batches, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="checkpoint of another call: it differs in method"):
        scrub(model, batches, checkpoint=tmp_path, method="orth")
    with pytest.raises(ValueError, match="it differs in data"):
        scrub(model, labelled_batches("llama", 4), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="it differs in model"):
        scrub(tiny_models.build("llama", seed=1), batches, checkpoint=tmp_path)


def test_files_of_another_kind_are_no_checkpoint_and_stay(tmp_path):
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    scrub(model, batches).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds files that are no checkpoint: name another folder"):
        scrub(model, batches, checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def batches_with(place: int, change: Any) -> list[dict[str, Any]]:
    batches = labelled_batches("llama", 4)
    batches[place] = change(dict(batches[place]))
    return batches


DATA = {
    "a token": lambda batch: batch | {"input_ids": batch["input_ids"].index_fill(0, torch.tensor([1]), 3)},
    "a label": lambda batch: batch | {"concept_labels": batch["concept_labels"].roll(1, 0)},
    "a dtype": lambda batch: batch | {"attention_mask": batch["attention_mask"].bool()},
}


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("change", DATA)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_another_batch_is_refused_wherever_it_comes(tmp_path, monkeypatch, mode, change, place):
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 3)
    model, options = tiny_models.build("llama"), {"mode": mode, "num_classes": CLASSES, "checkpoint": tmp_path}
    scrub(model, labelled_batches("llama", 4), **options)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError, match="checkpoint of another call: it differs in data"):
        scrub(model, batches_with(place, DATA[change]), **options)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    scrub(model, labelled_batches("llama", 4), **options)


def test_a_stream_that_is_shorter_than_its_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 1)
    model, options = tiny_models.build("llama"), {"mode": "parallel", "num_classes": CLASSES, "checkpoint": tmp_path}
    scrub(model, labelled_batches("llama", 4), **options)
    with pytest.raises(ValueError, match="it differs in data: it holds 4 batches, here are 3"):
        scrub(model, labelled_batches("llama", 4)[:3], **options)


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        ({"metric": "all"}, {"metric": "labelled"}, "metric"),
        ({"neutral": ()}, {"neutral": labelled_batches("llama", 1)}, "neutral"),
        ({"method": lambda moments: leace(moments)}, {"method": lambda moments: leace(moments, ridge=1e-3)}, "method"),
        ({"sites": "norms"}, {"sites": "residual"}, "sites"),
        ({"mode": "sequential"}, {"mode": "parallel"}, "mode"),
    ],
)
def test_options_that_differ_are_named(tmp_path, one, two, says):
    model, batches = tiny_models.build("llama"), labelled_batches("llama", 2)
    scrub(model, batches, checkpoint=tmp_path, **{"num_classes": CLASSES, **one})
    with pytest.raises(ValueError, match=f"checkpoint of another call: it differs in .*{says}"):
        scrub(model, batches, checkpoint=tmp_path, **{"num_classes": CLASSES, **two})


def test_no_call_is_told_apart_where_no_checkpoint_was_asked_for(monkeypatch):
    for name in ("_job.fingerprint", "_job.told_apart", "_checkpoint.told_apart"):
        monkeypatch.setattr(f"leace_fast.scrubbing.{name}", lambda *arguments: pytest.fail("nothing asked for it"))
    for mode in ("sequential", "parallel"):
        scrub(tiny_models.build("llama"), labelled_batches("llama"), mode=mode)
