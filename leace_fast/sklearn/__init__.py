"""Estimators for scikit-learn: transformers that take a concept out of X.

Each method that needs the statistics of one concept alone has one, made from its row in `METHODS`; those that also
take a task or the rows themselves have their own. Methods that need the label of each row where it is erased
(`oracle`, `quadratic`, `mimic`, `swap`) do not fit scikit-learn's protocol and are called as functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._extras import optional
from ..methods import METHODS

with optional("transformers of X need scikit-learn"):
    from ._made import name_of, transformer_of
from ._rlace import RlaceTransformer
from ._splince import SplinceTransformer
from ._switch import SwitchTransformer

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # those that are made


_WRITTEN = {each.__name__: each for each in (RlaceTransformer, SplinceTransformer, SwitchTransformer)}
_MADE = {
    name_of(method): transformer_of(method)
    for method in METHODS.values()
    if not method.needs and name_of(method) not in _WRITTEN
}
globals().update(_MADE)

__all__ = sorted([*_WRITTEN, *_MADE])  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted(__all__)
