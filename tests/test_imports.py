"""Imports go down the floors only, and importing the package stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import leace_fast

PACKAGE = Path(__file__).parent.parent / "leace_fast"

# A file may import from rooms of its own floor or of a lower one; a folder is one room, whatever is in it.
FLOORS = {
    "_version": 0,
    "_warnings": 0,
    "_extras": 0,
    "_schema": 0,
    "triton_kernels": 0,
    "_ops": 1,
    "_files": 1,
    "_folders": 1,
    "_progress": 1,
    "statistics": 2,
    "erasers": 3,
    "fitting": 3,
    "methods": 3,
    "models": 4,
    "attaching": 5,
    "folding": 5,
    "scrubbing": 5,
    "data": 5,
    "evaluation": 5,
    "study": 6,
    "integrations": 6,
    "serving": 6,
    "doctor": 7,
    "cli": 7,
    "concept_erasure": 7,
    "sklearn": 7,
    "demo": 7,
    "__init__": 8,
    "__main__": 8,
}
# What a plain `import leace_fast` must not bring along.
HEAVY = [
    "transformers",
    "triton",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "datasets",
    "typer",
    "datasketches",
    "gguf",
    "onnx",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, also inside functions."""
    package = list(path.relative_to(PACKAGE.parent).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found.update(str(each.value) for each in node.args if isinstance(each, ast.Constant))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                is_module = PACKAGE.parent.joinpath(*base, alias.name).with_suffix(".py").exists()
                is_package = PACKAGE.parent.joinpath(*base, alias.name).is_dir()
                found.add(".".join([*base, alias.name] if is_module or is_package else base))
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def room(module: str) -> str:
    """Return the folder of a module, or the module itself at the package's root."""
    return (module.split(".") + ["__init__"])[1]


SOURCES = sorted({*PACKAGE.rglob("*.py"), *PACKAGE.glob("triton_kernels/*.py")})  # that one is a link


def test_every_room_has_a_floor_and_every_floor_its_room() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(FLOORS) == rooms, "FLOORS, and the table in docs/architecture.md, name each folder and root module"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down_the_floors(path: Path) -> None:
    here = room(module_name(path))
    upwards = {name for name in imported_modules(path) if FLOORS[room(name)] > FLOORS[here]}
    assert not upwards, f"{module_name(path)} (floor {FLOORS[here]}) imports from above: {sorted(upwards)}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_room_is_entered_by_its_door(path: Path) -> None:
    """A file with a leading underscore is imported from its own folder alone."""
    here = room(module_name(path))
    inside = {
        name
        for name in imported_modules(path)
        if room(name) != here and any(part.startswith("_") for part in name.split(".")[2:])
    }
    assert not inside, f"{module_name(path)} imports {sorted(inside)}: export it from the folder's __init__"


def test_no_import_cycles_between_files() -> None:
    def normal(name: str) -> str:
        return f"{name}.__init__" if PACKAGE.parent.joinpath(*name.split(".")).is_dir() else name

    graph = {module_name(path): {normal(name) for name in imported_modules(path)} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_no_import_cycles_between_folders() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        here = room(module_name(path))
        graph.setdefault(here, set()).update({room(name) for name in imported_modules(path)} - {here, "__init__"})
    TopologicalSorter(graph).prepare()


def test_no_module_shares_a_name_with_what_it_exports() -> None:
    def exported(path: Path) -> set[str]:
        names = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")]
        return {node.name for node in names}  # type: ignore[attr-defined]

    # The one has its peer's names, the other a file for each kernel.
    ours = [path for path in SOURCES if path.parent.name not in ("concept_erasure", "triton_kernels")]
    shared = [module_name(path) for path in ours if path.stem in exported(path)]
    doors = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert not shared and not (doors - {"methods"}) & set(leace_fast.__all__)


def test_the_reader_of_imports_sees_them() -> None:
    assert {"leace_fast.erasers", "leace_fast._version"} <= imported_modules(PACKAGE / "__init__.py")
    assert "leace_fast._ops.extension" in imported_modules(PACKAGE / "_ops" / "operators.py")
    assert "leace_fast.doctor" in imported_modules(PACKAGE / "cli" / "_doctor.py"), "imports inside functions count"
    assert "leace_fast._ops.reference" in imported_modules(PACKAGE / "_ops" / "operators.py"), "from . import module"


def test_importing_the_package_is_light() -> None:
    code = "import json, sys, leace_fast; print(json.dumps(sorted(sys.modules)))"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    modules = json.loads(listed.stdout)
    assert "leace_fast.statistics" in modules
    assert not [name for name in HEAVY if name in modules]
