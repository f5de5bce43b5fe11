"""Imports go down the floors only, and importing the package stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leace_fast"

# A module may import modules of its own floor or of a lower one; a folder stands for all that is in it.
FLOORS = {
    "_version": 0,
    "triton_kernels": 0,
    "_extension": 1,
    "_autograd": 1,
    "reference": 1,
    "arguments": 1,
    "ops": 1,
    "bound": 1,
    "sums": 1,
    "files": 2,
    "statistics": 2,
    "moments": 2,
    "report": 3,
    "eraser": 3,
    "labelled": 3,
    "conditional": 3,
    "quantiles": 3,
    "methods": 3,
    "table": 3,
    "subtypes": 4,
    "modules": 4,
    "places": 4,
    "sites": 4,
    "acts": 4,
    "labels": 4,
    "record": 4,
    "folding": 4,
    "fold": 4,
    "identity": 5,
    "attaching": 5,
    "scrubber": 5,
    "progress": 5,
    "scrubbing": 5,
    "evaluate": 5,
    "stream": 5,
    "shards": 5,
    "data": 5,
    "distributed": 5,
    "_audit": 5,
    "doctor": 6,
    "cli": 6,
    "concept_erasure": 6,
    "sklearn": 6,
    "demo": 6,
    "__init__": 7,
    "__main__": 7,
}
# What a plain `import leace_fast` must not bring along.
HEAVY = ["transformers", "triton", "matplotlib", "sklearn", "scipy", "pandas", "datasets", "typer", "datasketches"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, also inside functions."""
    package = list(path.relative_to(PACKAGE.parent).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                is_module = PACKAGE.parent.joinpath(*base, alias.name).with_suffix(".py").exists()
                is_package = PACKAGE.parent.joinpath(*base, alias.name).is_dir()
                found.add(".".join([*base, alias.name] if is_module or is_package else base))
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS[parts[1] if len(parts) > 1 else "__init__"]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down_the_floors(path: Path) -> None:
    module = module_name(path)
    assert module.split(".")[1] in FLOORS, f"{module} has no floor: add it to FLOORS, and to the design"
    upwards = {name for name in imported_modules(path) if floor(name) > floor(module)}
    assert not upwards, f"{module} (floor {floor(module)}) imports from above: {sorted(upwards)}"


def test_no_import_cycles() -> None:
    def normal(name: str) -> str:
        return f"{name}.__init__" if PACKAGE.parent.joinpath(*name.split(".")).is_dir() else name

    graph = {module_name(path): {normal(name) for name in imported_modules(path)} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    assert {"leace_fast.eraser", "leace_fast._version"} <= imported_modules(PACKAGE / "__init__.py")
    assert "leace_fast._extension" in imported_modules(PACKAGE / "ops.py")
    assert "leace_fast.doctor" in imported_modules(PACKAGE / "cli.py"), "imports inside functions count"
    assert "leace_fast.reference" in imported_modules(PACKAGE / "ops.py"), "from . import module"


def test_importing_the_package_is_light() -> None:
    code = "import json, sys, leace_fast; print(json.dumps(sorted(sys.modules)))"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    modules = json.loads(listed.stdout)
    assert "leace_fast.moments" in modules
    assert not [name for name in HEAVY if name in modules]
