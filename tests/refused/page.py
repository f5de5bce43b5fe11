"""The page docs/refused.md from the tables of this folder: `python -m refused.page` in tests/ writes it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from refused.refusal import Refusal

PAGE = Path(__file__).parents[2] / "docs" / "refused.md"
HEAD = """# What is refused, and why

leace-fast raises where it could not keep its promise, and where it would lose data. These are the cases that its tests
hold; the page is written from them (`tests/refused/`). No call that is refused changes anything.
"""


def tables() -> list[ModuleType]:
    """The modules of this folder that hold a table: TITLE and REFUSALS."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = [import_module(f"refused.{name}") for name in names if not name.startswith(("_", "test_"))]
    return [module for module in modules if hasattr(module, "REFUSALS")]


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for table in tables():
        rows = "\n".join(_row(refusal) for refusal in table.REFUSALS)
        parts.append(f"## {table.TITLE}\n\n| What comes | Error | It says | Why |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _row(refusal: Refusal) -> str:
    says = refusal.says.replace("|", "\\|")
    return f"| {refusal.what} | `{refusal.error.__name__}` | {says} | {refusal.why} |"


if __name__ == "__main__":
    PAGE.write_text(page())
