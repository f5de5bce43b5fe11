"""Links from a page to files of the repository: on GitHub they work as they stand, on the site they lead to GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

BLOCK = re.compile(r"(^```.*?^```)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)([^)]*\))")

logger = logging.getLogger(__name__)


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links that leave docs/ into links to the repository, and warn of those that lead nowhere."""
    pages, page = Path(app.srcdir).resolve(), Path(app.env.doc2path(docname))
    parts = BLOCK.split(source[0])
    parts[::2] = [LINK.sub(lambda link: _target(app, pages, page, docname, link), part) for part in parts[::2]]
    source[0] = "".join(parts)


def _target(app: Sphinx, pages: Path, page: Path, docname: str, link: re.Match[str]) -> str:
    target = link[2]
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    file = (page.parent / target).resolve()
    if not file.exists():
        logger.warning("no file %s, to which this page links", target, location=docname, type="links")
        return link[0]
    if file.is_relative_to(pages):
        return link[0]
    return f"{link[1]}{app.config.repository_url}/{file.relative_to(pages.parent)}{link[3]}"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
