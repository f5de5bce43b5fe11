"""What a scrubber was fitted on: known again however it is batched, padded, stored or copied."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle

import numpy as np
import pytest
import tiny_models
import torch
from labelled_models import Blocks, blocks_batches, labelled_batches
from scrubbed_models import FIRST, eraser_of

from leace_fast import Scrubber, random_like, scrub
from leace_fast.scrubbing import Seen, _seen


def batch(*sequences: list[int], padded: int = 0) -> dict[str, torch.Tensor]:
    """Sequences with padding of 9 at the right, up to the longest and `padded` more."""
    length = max(map(len, sequences)) + padded
    ids = torch.tensor([each + [9] * (length - len(each)) for each in sequences])
    mask = torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in sequences])
    return {"input_ids": ids, "attention_mask": mask}


def seen_of(*batches) -> Seen:
    seen = Seen()
    for each in batches:
        seen.add(each)
    return seen


def test_sequences_are_known_in_other_batches_and_with_other_padding():
    seen = seen_of(batch([1, 2, 3], [4, 5]), batch([6]))
    assert seen.sequences == 3
    assert seen.found(batch([7], [6], [4, 5], [4, 5, 9], [5, 4], padded=3)) == [1, 2]
    left = {"input_ids": torch.tensor([[0, 0, 4, 5]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    assert seen.found(left) == [0]
    assert seen.found({"input_ids": torch.tensor([[4, 5]], dtype=torch.int32)}) == [0]
    assert seen.found(batch([4], [1, 2])) == []


def test_a_sequence_of_padding_alone_is_none():
    empty = {"input_ids": torch.tensor([[0, 0]]), "attention_mask": torch.zeros(1, 2, dtype=torch.int64)}
    assert seen_of(empty, batch([1])).found(empty) == []


def test_without_ids_all_inputs_tell_a_sequence():
    x, z = torch.randn(4, 3, 2).bfloat16(), torch.arange(4.0)
    labels = torch.zeros(4, 3, dtype=torch.int64)
    seen = seen_of({"x": x, "z": z, "option": "a", "concept_labels": labels})
    assert seen.sequences == 4
    assert seen.found({"z": z[1:], "x": x[1:], "concept_labels": labels[1:] + 1, "labels": labels[1:]}) == [0, 1, 2]
    assert seen.found({"z": z + 1, "x": x, "concept_labels": labels}) == []
    assert seen.found({"x": x, "concept_labels": {"a": labels, "b": labels}}) == []


def test_the_smallest_hashes_are_kept_however_they_came(monkeypatch):
    monkeypatch.setattr(_seen, "MOST", 50)
    sequences = [[1, number] for number in range(400)]
    one = seen_of(*[batch(each) for each in sequences])
    other = seen_of(batch(*sequences[200:]), batch(*sequences[:200]))
    assert one.to_bytes() == other.to_bytes() and one.sequences == 400
    found = one.found(batch(*sequences))
    assert len(found) == 50 and one.found(batch(*[[2, number] for number in range(400)])) == []
    everything = seen_of(batch(*sequences[:30]), batch(*sequences[:30]))
    assert everything.found(batch(*sequences[:30])) == list(range(30)) and everything.sequences == 60


def test_bytes_round_trip_and_others_are_refused():
    seen = seen_of(batch([1, 2], [3]))
    again = Seen.from_bytes(seen.to_bytes())
    assert again.to_bytes() == seen.to_bytes() and again.found(batch([3], [4])) == [0]
    assert Seen.from_bytes(Seen().to_bytes()).sequences == 0
    numbers = np.frombuffer(seen.to_bytes(), dtype="<u8")
    for wrong in (b"", seen.to_bytes()[:-1], numbers[[0, 2, 1]].tobytes(), numbers[[0, 1, 1]].tobytes()):
        with pytest.raises(ValueError, match="digest|order"):
            Seen.from_bytes(wrong)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_scrubber_knows_what_it_was_fitted_on(mode, tmp_path):
    model, batches = tiny_models.build("llama", torch.float32), labelled_batches("llama")
    other = tiny_models.batch("llama", 4, seed=99)
    scrubber = scrub(model, batches, mode=mode, checkpoint=tmp_path / "half")
    scrubber.save_pretrained(tmp_path / "saved")
    copies = {
        "itself": scrubber,
        "moved": scrubber.to(torch.float64),
        "copied": copy.deepcopy(scrubber),
        "pickled": pickle.loads(pickle.dumps(scrubber)),
        "of a model": Scrubber.of_model(model, scrubber),
        "taken over": Scrubber(scrubber),
        "control": random_like(scrubber),
        "loaded": Scrubber.from_pretrained(tmp_path / "saved"),
        "resumed": scrub(model, batches, mode=mode, checkpoint=tmp_path / "half"),
    }
    for name, each in copies.items():
        assert each._seen is not None, name
        assert all(each._seen.found(part) == [0, 1, 2, 3] for part in batches), name
        assert each._seen.found(other) == [] and each._seen.sequences == 12, name
    assert Scrubber(dict(scrubber))._seen is None


def test_models_without_ids_know_it_too():
    batches = blocks_batches()
    seen = scrub(Blocks(), batches)._seen
    assert seen is not None and all(seen.found(each) == list(range(6)) for each in batches)


def test_folders_from_before_have_none_and_damaged_ones_are_refused(tmp_path):
    scrubber = Scrubber({FIRST: eraser_of(FIRST)})
    scrubber.save_pretrained(tmp_path / "before")
    assert not (tmp_path / "before" / "seen.bin").exists()
    assert Scrubber.from_pretrained(tmp_path / "before")._seen is None
    folder = tmp_path / "folder"
    scrubber._knowing(seen_of(batch([1, 2], [3]))).save_pretrained(folder)
    whole = (folder / "seen.bin").read_bytes()
    for wrong in (b"", whole[:-8], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
        (folder / "seen.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"seen\.bin"):
            Scrubber.from_pretrained(folder)
    (folder / "seen.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"seen\.bin is missing"):
        Scrubber.from_pretrained(folder)
    (folder / "seen.bin").write_bytes(b"odd")  # under a checksum that fits
    index = json.loads((folder / "scrubber.json").read_bytes())
    index.pop("sha256")
    index["seen"] = hashlib.sha256(b"odd").hexdigest()
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    (folder / "scrubber.json").write_text(json.dumps({**index, "sha256": digest}))
    with pytest.raises(ValueError, match=r"seen\.bin cannot be read \(3 bytes are no digest"):
        Scrubber.from_pretrained(folder)


def test_no_site_takes_the_name_of_the_file(tmp_path):
    sites = {name: eraser_of(name) for name in ("seen", "seen.bin")}
    Scrubber(sites)._knowing(seen_of(batch([1]))).save_pretrained(tmp_path)
    loaded = Scrubber.from_pretrained(tmp_path)
    assert list(loaded) == list(sites) and loaded._seen is not None and loaded._seen.found(batch([1])) == [0]


def test_images_tell_sequences_of_the_same_ids_apart():
    ids = torch.tensor([[5, 6], [5, 6]])
    seen = Seen()
    seen.add({"input_ids": ids, "pixel_values": torch.zeros(2, 3, 4, 4)})
    assert seen.found({"input_ids": ids, "pixel_values": torch.ones(2, 3, 4, 4)}) == []
    padded = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert seen.found({**padded, "pixel_values": torch.zeros(1, 3, 4, 4)}) == [0]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_groups_of_another_name_are_no_part_of_a_sequence(mode):
    batches = [{**batch, "speaker": torch.arange(len(batch["concept_labels"]))} for batch in blocks_batches()]
    seen = scrub(Blocks(), batches, mode=mode, groups="speaker")._seen
    bare = {name: value for name, value in batches[0].items() if name != "speaker"}
    assert seen is not None and seen.found(bare) == list(range(len(bare["concept_labels"])))
