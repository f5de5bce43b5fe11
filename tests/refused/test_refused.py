"""Every entry of the tables is refused, with the error and the words that docs/refused.md gives."""

from pathlib import Path

import pytest

from refused.page import PAGE, page, tables
from refused.refusal import Refusal

ALL = [pytest.param(r, id=f"{t.__name__.split('.')[-1]}-{r.what}") for t in tables() for r in t.REFUSALS]


@pytest.mark.parametrize("refusal", ALL)
def test_it_is_refused_with_these_words(refusal: Refusal, tmp_path: Path) -> None:
    if refusal.needs:
        pytest.importorskip(refusal.needs)
    with pytest.raises(refusal.error) as caught:
        refusal.call(tmp_path)
    assert refusal.says in str(caught.value)


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(), "run `python -m refused.page` in tests/"


def test_nothing_is_said_twice() -> None:
    whats = [(table.TITLE, refusal.what) for table in tables() for refusal in table.REFUSALS]
    assert len(whats) == len(set(whats)) and whats
