"""The files of a scrubber, and their way to and from the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from scrubbed_models import FIRST, eraser_of

from leace_fast.scrubbing import Scrubber, _folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Scrubber]:
    scrubber = Scrubber({FIRST: eraser_of(FIRST), "odd/../name": eraser_of("odd")}, "org/model", "abc")
    scrubber.save_pretrained(tmp_path / "new" / "folder")
    return tmp_path / "new" / "folder", scrubber


def equal(one: Scrubber, two: Scrubber) -> bool:
    def parts(scrubber: Scrubber) -> list[Any]:
        return [getattr(eraser, part) for eraser in scrubber.values() for part in ("left", "right", "mean")]

    same = (list(one), one.model_id, one.revision) == (list(two), two.model_id, two.revision)
    return same and all(map(torch.equal, parts(one), parts(two)))


def test_files_round_trip(saved):
    folder, scrubber = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{FIRST}.safetensors",
        "odd%2F..%2Fname.safetensors",
        "scrubber.json",
    ]
    loaded = Scrubber.from_pretrained(folder)
    assert equal(loaded, scrubber) and all(eraser.site == site for site, eraser in loaded.items())
    index = json.loads((folder / "scrubber.json").read_text())
    assert index["format_version"] == 1 and index["model_id"] == "org/model" and index["revision"] == "abc"
    scrubber.save_pretrained(folder)  # over itself
    assert equal(Scrubber.from_pretrained(folder), scrubber)


@pytest.mark.parametrize("name", ["scrubber.json", f"{FIRST}.safetensors"])
def test_no_flipped_bit_or_truncation_goes_unnoticed(saved, name):
    folder, scrubber = saved
    path = folder / name
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 41)]
    damaged += [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    caught = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            loaded = Scrubber.from_pretrained(folder)
        except ValueError:
            caught += 1
        else:  # white space between the values of the index means nothing
            assert name == "scrubber.json" and equal(loaded, scrubber)
    assert caught >= 0.8 * len(damaged)


def test_files_of_two_saves_do_not_mix(saved, tmp_path):
    folder, scrubber = saved
    Scrubber({FIRST: eraser_of("other")}).save_pretrained(tmp_path)
    (folder / f"{FIRST}.safetensors").write_bytes((tmp_path / f"{FIRST}.safetensors").read_bytes())
    with pytest.raises(ValueError, match="of another save"):
        Scrubber.from_pretrained(folder)


def test_missing_files_and_later_formats(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="holds no scrubber.json"):
        Scrubber.from_pretrained(tmp_path)
    index = json.loads((folder / "scrubber.json").read_text())
    (folder / "scrubber.json").write_text(json.dumps({**index, "format_version": 2, "sites": "of another kind"}))
    with pytest.raises(ValueError, match="format version 2.*update leace-fast"):
        Scrubber.from_pretrained(folder)
    (folder / "scrubber.json").write_text(json.dumps(index))
    (folder / f"{FIRST}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{FIRST}.safetensors is missing"):
        Scrubber.from_pretrained(folder)


# ------------------------------------------------------------------------------ the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, bytes]]:
    """A hub that holds the files of repositories, in the place of the one on the network."""
    repositories: dict[str, dict[str, bytes]] = {}

    class Made:
        def __init__(self, repo_id: str) -> None:
            self.repo_id = repo_id

    def create_repo(self: HfApi, repo_id: str, *, private: Any, exist_ok: bool) -> Made:
        assert exist_ok and private is None
        repositories.setdefault(repo_id, {})
        return Made(repo_id)

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Any, revision: Any, **commit: Any) -> str:
        assert set(commit) == {"commit_message", "create_pr"}
        repositories[repo_id].update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return f"https://huggingface.co/{repo_id}/commit/{revision}"

    def fetch(repo_id: str, names: list[str]) -> Path:
        folder = tmp_path / "cache" / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name not in repositories.get(repo_id, {}):
                raise LocalEntryNotFoundError(f"{repo_id} has no {name}")
            (folder / name).write_bytes(repositories[repo_id][name])
        return folder

    def hf_hub_download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append(options)
        return str(fetch(repo_id, [filename]) / filename)

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(options)
        return str(fetch(repo_id, allow_patterns))

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(_folder, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(_folder, "snapshot_download", snapshot_download)
    monkeypatch.setattr(_folder, "asked", asked, raising=False)
    return repositories


def test_a_scrubber_goes_to_the_hub_and_comes_back(saved, hub):
    folder, scrubber = saved
    url = scrubber.push_to_hub("someone/erasers", branch="v2")
    assert url == "https://huggingface.co/someone/erasers/commit/v2"
    files = hub["someone/erasers"]
    card: Any = ModelCard(files.pop("README.md").decode())
    assert card.data.library_name == "leace-fast" and card.data.tags == ["concept-erasure"]
    assert card.data.base_model == "org/model" and 'from_pretrained("someone/erasers")' in card.text
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}, "what save_pretrained writes"
    files["model.safetensors"] = b"not fetched"
    loaded = Scrubber.from_pretrained("someone/erasers", revision="v2", token="secret", local_files_only=True)
    assert equal(loaded, scrubber)
    for options in _folder.asked:  # type: ignore[attr-defined]
        assert options["revision"] == "v2" and options["token"] == "secret" and options["local_files_only"]
        assert options["force_download"] is False and options["cache_dir"] is None


def test_what_the_hub_gives_is_checked(saved, hub):
    _, scrubber = saved
    scrubber.push_to_hub("someone/erasers")
    name = f"{FIRST}.safetensors"
    hub["someone/erasers"][name] = hub["someone/erasers"][name][:-1] + b"?"
    with pytest.raises(ValueError, match="is damaged or of another save"):
        Scrubber.from_pretrained("someone/erasers")


def test_a_folder_goes_before_the_hub(saved, hub, tmp_path, monkeypatch):
    _, scrubber = saved
    monkeypatch.chdir(tmp_path)
    assert equal(Scrubber.from_pretrained("new/folder"), scrubber), "no repository: nothing was asked"
    with pytest.raises(FileNotFoundError, match=r"new/other is no folder here, and the hub gives no scrubber.json"):
        Scrubber.from_pretrained("new/other")
    with pytest.raises(FileNotFoundError, match=r"new/other holds no scrubber.json"):
        Scrubber.from_pretrained(Path("new/other"))

    class Refused(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "no such repository")

    def refused(*arguments: Any, **options: Any) -> str:
        raise Refused

    monkeypatch.setattr(_folder, "hf_hub_download", refused)
    with pytest.raises(FileNotFoundError, match="the hub gives no scrubber.json for it: no such repository"):
        Scrubber.from_pretrained("someone/else")
