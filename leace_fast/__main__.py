"""`python -m leace_fast`: the command line, as `leace-fast`."""

from __future__ import annotations

from .cli import app

if __name__ == "__main__":
    app(prog_name="leace-fast")
