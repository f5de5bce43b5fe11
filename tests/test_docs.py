"""The pages of docs/: their examples run as they stand, on tiny models; what they say of the code is so."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from pages import DOCS, ROOT, anchors, blocks, commands, inside, name, pages, prose, run_command
from safetensors.torch import save_file
from test_imports import FLOORS

import leace_fast as lf
from leace_fast.demo._language_model import train_tokenizer

MODEL_IN_PAGES = "EleutherAI/pythia-70m"  # a tiny one takes its place
# Pages whose blocks build on each other, run in order; where the blocks of other pages are run.
STORIES = (
    "index.md",
    "guarantees.md",
    "faq.md",
    "quickstart/researcher.md",
    "quickstart/serving.md",
    "quickstart/benchmarker.md",
)
TUTORIAL = "tutorial.md"
HERE = {"scrubbing.md": 5, "folding.md": 1, "serving.md": 2, "stacks.md": 3, "methods.md": 1, "migrating.md": 1}
ELSEWHERE = {"scikit-learn.md": 1}  # tests/sklearn
SENTENCES = [
    {"text": f"The {who} said {what} that", "label": pronoun, "pronoun": pronoun}
    for what in ("loudly", "quietly", "again", "once", "twice", "often")
    for who, pronoun in (("nurse", "she"), ("smith", "he"), ("cook", "she"), ("king", "he"))
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: a model, labelled texts, activation shards, and erasers of that model."""
    folder = tmp_path_factory.mktemp("pages")
    lines = "\n".join(map(json.dumps, SENTENCES))
    for file in ("texts.jsonl", "sentences.jsonl"):
        (folder / file).write_text(lines)
    shutil.copy(ROOT / "tests" / "data" / "sample.conllu", folder / "train.conllu")
    tokenizer = train_tokenizer([lines, (folder / "train.conllu").read_text()], 300)
    model = tiny_models.build("llama", torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder / "MODEL")
    tokenizer.save_pretrained(folder / "MODEL")
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (600,), generator=generator)
    (folder / "shards").mkdir()
    save_file({"x": torch.randn(600, 8, generator=generator) + y[:, None], "y": y}, folder / "shards" / "0.safetensors")
    ids = torch.randint(3, 63, (8, 16), generator=generator)
    with inside(folder):
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained("MODEL")
        lf.scrub(loaded, [{"input_ids": ids, "concept_labels": ids % 2}] * 2).save_pretrained("erasers")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, with a copy of what the pages name."""
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model() -> Any:
    return tiny_models.build("llama", torch.float32)


@pytest.fixture(scope="module")
def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 63, (8, 16), generator=generator) for _ in range(4)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "concept_labels": i % 6} for i in ids]


@pytest.fixture(scope="module")
def scrubber(batches: list[dict[str, torch.Tensor]]) -> lf.Scrubber:
    return lf.scrub(tiny_models.build("llama", torch.float32), batches)


class Logits(torch.nn.Module):
    """A causal model as a function of its ids."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def run(page: str, index: int, **names: Any) -> dict[str, Any]:
    """Run one block of a page, and return the names that it leaves."""
    scope = {"lf": lf, "torch": torch, **names}
    code = blocks(page)[index].replace("generate(...)", "generate(ids, max_new_tokens=2)")
    exec(compile(code.replace(MODEL_IN_PAGES, "MODEL"), f"{page}, block {index}", "exec"), scope)
    return scope


def test_every_example_of_every_page_is_run_here_or_where_its_page_is_tested() -> None:
    found = [str(page.relative_to(DOCS)) for page in pages()[1:]]
    counted = {page: len(blocks(page)) for page in found if blocks(page)}
    stories = {page: len(blocks(page)) for page in (*STORIES, TUTORIAL)}
    assert counted == {**stories, **HERE, **ELSEWHERE} and all(stories.values())


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize("page", STORIES)
def test_the_blocks_of_a_page_in_order(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    for index in range(len(blocks(page))):
        scope = run(page, index, **scope)
    said = capsys.readouterr().out
    if page == "faq.md":
        assert scope["apart"] == pytest.approx(scope["expected"], rel=0.3), "the estimate that the page gives"
    if page == "guarantees.md":
        gaps = [float(gap) for gap in re.findall(r"gap of the means ([0-9.]+)", said)]
        assert len(gaps) == 3 and gaps[0] > gaps[1] > gaps[2], "contrasts leave less on fresh groups"
    if page == "quickstart/researcher.md":
        clean, erased = map(float, re.findall(r"^(?:clean|erased) (0\.\d+)$", said, flags=re.MULTILINE))
        assert clean > 0.9 and abs(erased - 0.5) < 0.05, "what its comment says"
        assert Path("eraser.safetensors").exists() and Path("erasers/scrubber.json").exists()


@pytest.mark.parametrize("page", [str(p.relative_to(DOCS)) for p in pages()[1:] if any(commands(p.relative_to(DOCS)))])
def test_the_commands_of_a_page(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for words in commands(page):
        if words[0] == "leace-fast":
            said = run_command([word.replace(MODEL_IN_PAGES, "MODEL") for word in words])
            out = words[words.index("--out") + 1] if "--out" in words else ""
            assert said.strip() and Path(out).exists(), words
        elif words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            assert (ROOT / words[1]).exists() and all((ROOT / word).exists() for word in words[2:]), words
        else:
            assert words[0] in ("pip", "git"), f"{words[0]}: a program that this test does not know"


def test_scrubbing(model, batches, capsys) -> None:
    ids = batches[0]["input_ids"]
    held_out = [{**batches[0], "input_ids": ids.flip(1), "concept_labels": ids.flip(1) % 6}]
    run("scrubbing.md", 0, model=model, batches=batches, held_out=held_out, ids=ids)
    assert "KL" in capsys.readouterr().out and lf.Scrubber.from_pretrained("erasers")
    labels = run("scrubbing.md", 1, batch={}, tags=batches[0]["concept_labels"], number=None)["batch"]["concept_labels"]
    assert set(labels) == {"part of speech", "number"}


@pytest.mark.parametrize("index", [2, 3])
def test_labels_of_words_and_of_last_tokens(index: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = {
        "tokenizer": AutoTokenizer.from_pretrained("MODEL"),
        "model": AutoModelForCausalLM.from_pretrained("MODEL"),
    }
    assert len(run("scrubbing.md", index, **parts)["scrubber"]) == 4


@pytest.mark.filterwarnings("ignore:.*rows are few", "ignore:the rows come from", "ignore:the rows that least change")
def test_groups_metric_and_contrasts(model, batches, capsys) -> None:
    ids = batches[0]["input_ids"].flip(1)
    scope = {
        "numbers": [torch.arange(8) // 4 + 2 * number for number in range(len(batches))],
        "ordinary": [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}],
        "held_out": [{**batches[0], "input_ids": ids, "concept_labels": ids % 6}],
    }
    scrubber = run("scrubbing.md", 4, model=model, batches=batches, **scope)["scrubber"]
    assert all(eraser.report.groups == 8 and eraser.rank == 10 for eraser in scrubber.values())
    assert " nats [" in capsys.readouterr().out


def test_folding(model, batches, scrubber) -> None:
    eraser = next(iter(scrubber.values()))
    run("folding.md", 0, model=model, scrubber=scrubber, example={"input_ids": batches[0]["input_ids"]}, eraser=eraser)
    assert Path("adapter/adapter_config.json").exists()


def test_serving(model, batches, scrubber) -> None:
    batch = {"input_ids": batches[0]["input_ids"][:3]}
    run("serving.md", 0, scrubber=scrubber, model=model, batch=batch, capture=lambda model: model)
    scrubber.detach_(model)
    batch = {**batch, "max_new_tokens": 2}
    both = {"gender": scrubber, "number": lf.random_like(scrubber)}
    run("serving.md", 1, **both, sites=list(scrubber), model=model, batch=batch)


def test_stacks_of_interpretability(model, batches, scrubber) -> None:
    """Where they are installed; tests/integrations/test_with_extras.py installs them."""
    nnsight, pyvene = pytest.importorskip("nnsight"), pytest.importorskip("pyvene")
    lens = pytest.importorskip("transformer_lens")
    from transformers import AutoTokenizer

    from leace_fast.integrations import pyvene_config

    model.save_pretrained("bridged")
    tokenizer = AutoTokenizer.from_pretrained("MODEL")
    bridge = lens.TransformerBridge.boot_transformers("bridged", hf_model=copy.deepcopy(model), tokenizer=tokenizer)
    ids = batches[0]["input_ids"]
    logits = run("stacks.md", 0, bridge=bridge, scrubber=scrubber, ids=ids)["logits"]
    with scrubber.attached(model), torch.no_grad():
        torch.testing.assert_close(logits.detach(), model(ids).logits, rtol=0, atol=1e-3)
    scope = {"nnsight": nnsight, "pyvene": pyvene, "pyvene_config": pyvene_config, "torch": torch}
    scope |= {"model": model, "scrubber": scrubber, "ids": ids}
    file = Path("block.py")  # nnsight reads the source of its blocks
    file.write_text(blocks("stacks.md")[1])
    exec(compile(file.read_text(), str(file.absolute()), "exec"), scope)
    assert scope["read"].shape == (*ids.shape, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*isinstance.treespec:FutureWarning")
def test_stacks_export(model, batches, scrubber) -> None:
    onnx = pytest.importorskip("onnxruntime", reason="pip install 'leace-fast[onnx]'")
    logits = Logits(model)
    ids, other = batches[0]["input_ids"], batches[1]["input_ids"][:3, :7]
    run("stacks.md", 2, model=model, logits=logits, ids=ids, scrubber=scrubber)
    session = onnx.InferenceSession("erased.onnx")
    with scrubber.attached(logits.model), torch.no_grad():
        wanted = logits(other)
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.export.load("erased.pt2").module()(other), wanted, rtol=0, atol=1e-4)


def test_methods() -> None:
    y, task = torch.arange(3000) % 6, torch.arange(3000) // 6 % 3
    x = torch.randn(3000, 256) + torch.randn(6, 256)[y] + torch.randn(3, 256)[task]
    page = blocks("methods.md")[0].replace("lf.Moments(dim=256, num_classes=6)", "lf.Moments(256, 6).update(x, y)")
    other, kept = lf.Moments(256, 3).update(x, task), lf.Moments(256, target_dim=1).update(x, x[:, :1])
    scope = {"lf": lf, "x": x, "y": y, "other": other, "task": kept}
    exec(compile(page.replace("import leace_fast as lf", ""), "methods.md", "exec"), scope)
    assert scope["then"].rank >= scope["both"].rank == 7 and scope["first"].rank == 1


def test_migrating() -> None:
    assert run("migrating.md", 0)["LeaceFitter"]


@pytest.mark.slow
def test_the_tutorial(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks in order, on the demo's model; its pictures go to build/."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    scope: dict[str, Any] = {}
    for index in range(len(blocks(TUTORIAL))):
        scope = run(TUTORIAL, index, **scope)
    said = capsys.readouterr().out
    assert "leace: rank 5 of 256 dimensions" in said and "folded 10 sites into 25 modules" in said
    for site, probe in scope["scrubbed"].probes.items():
        before = scope["clean"].probes[site].nats
        assert 0 < probe.nats < before / 4, "far less than before, and not nothing: as the page says"
    (ROOT / "build").mkdir(exist_ok=True)
    for picture in ("tutorial-plane.png", "tutorial-probes.png"):
        assert (DOCS / "images" / picture).stat().st_size < 120_000
        shutil.copy(picture, ROOT / "build")


# ------------------------------------------------------------ what pages say


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file != DOCS / "api" / "command_line.md":  # whose headings are made from the app
            assert anchor in anchors(file), f"{target}#{anchor}"


def test_the_floors_of_the_architecture_page_are_those_of_the_code() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", page, flags=re.MULTILINE)
    told = {room.strip("/"): int(floor) for floor, rooms in rows for room in re.findall(r"`([^`]+)`", rooms)}
    assert told == FLOORS


def test_every_public_name_has_its_place_in_the_reference() -> None:
    """Before the site is built, which looks again: and at the methods of classes."""
    told = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:\w+):: (?:\w+\.)*(\w+)", told, flags=re.MULTILINE))
    for module in re.findall(r"^\.\. every:: (\S+)", told, flags=re.MULTILINE):  # whose names follow from a table
        documented.update(importlib.import_module(module).__all__)
    from leace_fast import concept_erasure, data, sklearn

    public = {one for module in (lf, lf.methods, data, sklearn, concept_erasure) for one in module.__all__}
    assert public - {"__version__", "methods"} <= documented


def test_every_message_in_troubleshooting_stands_in_the_code() -> None:
    said = {text for path in (ROOT / "leace_fast").rglob("*.py") for text in literals(path)}
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    quoted = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    lost = [message for message in quoted if not any(matches(message, text) for text in said)]
    assert len(quoted) > 40 and not lost, f"no code says {lost}"


def literals(path: Path) -> list[str]:
    """The strings of a file; what an f-string fills in is one NUL."""
    strings = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            strings.append("".join(map(str, parts)))
    return strings


def matches(message: str, text: str) -> bool:
    """Whether a string of the code has what a message quotes, where `...` stands for anything."""
    at = 0
    for part in message.split("..."):
        found = text.find(part.strip(), at)
        if found < 0:
            return False
        at = found + len(part.strip())
    return True


def test_the_environment_page_names_the_variables_that_the_code_reads() -> None:
    page = (DOCS / "api" / "environment.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "leace_fast").rglob("*.py"), ROOT / "setup.py", *(ROOT / "csrc").rglob("*.cpp")]
    pattern = r"""(?:environ(?:\.get)?[\[(]|getenv\()["'](\w+)["']"""
    read = {variable for path in sources for variable in re.findall(pattern, path.read_text(encoding="utf-8"))}
    assert read - {"PATH"} <= set(re.findall(r"`(\w+)`", page)), "each stands on docs/api/environment.md"


def build_site(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build a site with every warning an error, as `make docs` does."""
    pytest.importorskip("sphinx", reason="sphinx: pip install 'leace-fast[docs]'")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        *options,
        str(source),
        str(out),
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = build_site(DOCS, tmp_path / "site", "-n")
    assert built.returncode == 0, built.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "warning"),
    [
        ("A [link](nowhere.md).", "no file nowhere.md, to which this page links"),
        ("A [link](../nowhere.py).", "no file ../nowhere.py, to which this page links"),
        ("Nothing.", "json.dumps is public and stands on no page of the reference"),
    ],
)
def test_the_site_is_strict(tmp_path: Path, page: str, warning: str) -> None:
    source = tmp_path / "strict"
    source.mkdir()
    (source / "index.md").write_text(f"# A page\n\n{page}\n")
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / '_extensions')!r})\n"
        "extensions = ['myst_parser', 'public_names', 'repository_links']\npublic_modules = ['json']\n"
    )
    built = build_site(source, tmp_path / "out")
    assert built.returncode == 1 and warning in built.stderr
