"""A package that is missing is named together with what installs it, wherever the package of this name is imported."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import leace_fast
from leace_fast._extras import EXTRAS, optional

PACKAGE = Path(leace_fast.__file__).parent
# What is reached through a module that imports these packages first, inside `optional`.
BEHIND = {"typer": PACKAGE / "cli", "sklearn": PACKAGE / "sklearn"}


def load_model() -> None:
    from leace_fast.study import load_model

    load_model("org/model")


def tokenizer(name: str) -> Callable[[], None]:
    def call() -> None:
        module = importlib.import_module(name)
        if name.endswith("_language_model"):
            module.train_tokenizer(["text"], 300)
        else:
            module.copy_tokenizer("org/model", Path("out"), Path("out"))

    return call


def demo() -> None:
    from leace_fast.demo import load_demo

    load_demo()


def fresh(name: str) -> Callable[[], Any]:
    """A call that imports a module anew."""
    return lambda: importlib.import_module(name)


def inlp() -> None:
    leace_fast.methods.inlp([(torch.randn(20, 3), torch.arange(20) % 2)], classifier="logistic")


def median() -> None:
    leace_fast.methods.median([(torch.randn(20, 3), torch.arange(20) % 2)])


def picture() -> None:
    from leace_fast.study._plots import _figure

    _figure(2.0)


def bars() -> None:
    from leace_fast._progress import progress_bars

    progress_bars()


def screen() -> None:
    from leace_fast.cli._running import screen

    screen()


def doctor() -> None:
    from leace_fast.cli._doctor import doctor

    doctor(False)


def gguf_file() -> None:
    from leace_fast.integrations._gguf import load_gguf

    load_gguf()


HF, AUDIT = "pip install 'leace-fast[hf]'", "pip install 'leace-fast[audit]'"
MISSING: list[tuple[str, Callable[[], Any], str]] = [
    ("transformers", load_model, f"models need transformers: {HF}"),
    ("transformers", tokenizer("leace_fast.cli._fold"), f"tokenizers need transformers: {HF}"),
    ("tokenizers", tokenizer("leace_fast.demo._language_model"), f"tokenizers need transformers: {HF}"),
    ("transformers", demo, f"models need transformers: {HF}"),
    ("transformers", fresh("leace_fast.demo.train"), f"training the demo's model needs transformers: {HF}"),
    ("sklearn", inlp, f"INLP on rows needs scikit-learn: {AUDIT}"),
    ("sklearn", fresh("leace_fast.sklearn"), f"transformers of X need scikit-learn: {AUDIT}"),
    ("matplotlib", picture, f"pictures need matplotlib: {AUDIT}"),
    ("datasketches", median, "quantiles need datasketches: pip install 'leace-fast[quantiles]'"),
    ("gguf", gguf_file, "GGUF files need gguf: pip install 'leace-fast[gguf]'"),
    ("rich", bars, "progress bars need rich: pip install leace-fast"),
    ("rich", screen, "tables need rich: pip install leace-fast"),
    ("rich", doctor, "tables need rich: pip install leace-fast"),
    ("rich", fresh("leace_fast.study._present"), "tables need rich: pip install leace-fast"),
    ("typer", fresh("leace_fast.cli"), "the command line needs typer: pip install leace-fast"),
]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Hide a package, and forget what was imported of this one; both come back."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "leace_fast"}

    def hide(package: str) -> None:
        for name in list(sys.modules):
            if name.split(".")[0] == package:
                monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, package, None)
        for name in ("leace_fast.demo.train", "leace_fast.sklearn", "leace_fast.study._present", "leace_fast.cli"):
            for each in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
                if package in ("typer", "sklearn") or each == name:
                    del sys.modules[each]

    yield hide
    for name in [name for name in sys.modules if name.split(".")[0] == "leace_fast"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize(("package", "call", "message"), MISSING, ids=[message[:40] for _, _, message in MISSING])
def test_what_is_missing_says_what_to_install(package: str, call: Any, message: str, without: Any) -> None:
    without(package)
    with pytest.raises(ImportError) as told:
        call()
    assert str(told.value) == message


def test_an_error_inside_a_package_that_is_there_is_raised_as_it_is() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nope'"), optional("models need transformers"):
        from json import nope  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="nowhere"), optional("models need transformers"):
        import nowhere  # type: ignore[import-not-found]  # noqa: F401


def unguarded(path: Path) -> list[str]:
    """The imports of optional packages that stand neither in `with optional(...)` nor below `if TYPE_CHECKING`."""
    found = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            guarded = guarded or any(ast.unparse(item.context_expr).startswith("optional(") for item in node.items)
            guarded = guarded or any("suppress(ImportError)" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Try):
            guarded = guarded or any("ImportError" in ast.unparse(each.type) for each in node.handlers if each.type)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            guarded = True
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for package in {name.partition(".")[0] for name in names} & set(EXTRAS):
            if not guarded and BEHIND.get(package) not in path.parents:
                found.append(f"{path.name}:{node.lineno}: {package}")  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def test_every_optional_import_says_what_to_install() -> None:
    assert [line for path in sorted(PACKAGE.rglob("*.py")) for line in unguarded(path)] == []


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {"": project["dependencies"], **project["optional-dependencies"]}
    of_others = {"tokenizers"}  # transformers brings it
    for package, extra in EXTRAS.items():
        name = {"sklearn": "scikit-learn"}.get(package, package)
        assert package in of_others or name in brought[extra], package
