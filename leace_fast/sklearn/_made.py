"""Transformers made from the table of methods: each has the options of its method, and says what that says of them."""

from __future__ import annotations

import inspect
import re
from inspect import Parameter
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ..erasers import Eraser
from ..methods import Method
from ..statistics import Moments
from ._base import StreamingTransformer

# Options that count where a method is given rows, which no transformer gives it.
OF_ROWS = {"inlp": {"classifier", "seed"}}
# Options of the transformers' own: what they are by default, and what is said of them.
OWN: dict[str, tuple[Any, str]] = {
    "kind": ("auto", '"classes" or "numbers", what y holds; "auto" takes whole numbers for classes, as scikit-learn.'),
    "strength": (1.0, "1 erases, 2 reflects, 0 changes nothing; all but 1 can be undone."),
}
RAISES = """Raises:
    TypeError: an option of another name.
    ValueError: `fit` meets an option that is out of range, or refuses as `leace_fast.methods.{method}` does."""
EXAMPLE = """
>>> import numpy as np
>>> from leace_fast.sklearn import {name}
>>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
>>> transformer = {name}().fit(X + y[:, None], y)
>>> transformer.transform(X).shape, transformer.eraser_.method
((60, 4), {method!r})
"""


def _keeps_something(transformer: ScaledTransformer) -> bool:
    if transformer.strength == 1:
        raise AttributeError("what was erased cannot be brought back: an inverse exists only where strength is not 1")
    return True


class ScaledTransformer(StreamingTransformer):
    """A transformer of a strength: 1 erases, 2 reflects, 0 changes nothing; all but 1 can be undone."""

    strength: float

    def _eraser(self) -> Eraser:
        return self.eraser_.scaled(self.strength)

    @available_if(_keeps_something)
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the X that `transform` would turn into this one; it exists where `strength` is not 1.

        Args:
            X: (n, d) real numbers, float64 or float32.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X is not of the width that was fitted, a number is not finite, or the eraser is no projection.

        Source: `(I - s E) (I - t E) = I` for a projection E and `t = s / (s - 1)`.

        >>> import numpy as np
        >>> from leace_fast.sklearn import LeaceTransformer
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> half = LeaceTransformer(strength=0.5).fit(X, y)
        >>> np.allclose(half.inverse_transform(half.transform(X)), X)
        True
        """
        check_is_fitted(self)
        read = self.eraser_.right @ self.eraser_.left
        if not torch.allclose(read, torch.eye(len(read), dtype=read.dtype)):
            raise ValueError(f"the eraser by {self.eraser_.method!r} is no projection: its inverse is not known")
        undo = self.eraser_.scaled(self.strength / (self.strength - 1))
        return undo(self._rows(X, reset=False)).numpy()


def name_of(method: Method) -> str:
    """Return the name of a method's transformer.

    >>> from leace_fast.methods import METHODS
    >>> name_of(METHODS["mean_projection"])
    'MeanProjectionTransformer'
    """
    return "".join(part.title() for part in method.name.split("_")) + "Transformer"


def transformer_of(method: Method, **defaults: Any) -> type[StreamingTransformer]:
    """Return the transformer of a method that needs no more than the moments of one concept.

    Args:
        method: a row of `METHODS`; one that sends rows to a class (`to=`) has no strength beside its own.
        defaults: of options, where they are to differ from those of the method.
    """
    parameters = list(inspect.signature(method.fit).parameters.values())[1:]
    options = {one.name: one for one in parameters if one.name not in OF_ROWS.get(method.name, ())}
    own = [name for name in OWN if (method.targets if name == "kind" else "to" not in options)]
    init = _constructor(
        name_of(method),
        [
            *(one.replace(default=defaults.get(name, one.default)) for name, one in options.items()),
            *(Parameter(name, Parameter.KEYWORD_ONLY, default=OWN[name][0]) for name in own),
        ],
    )

    def _fit_eraser(self: StreamingTransformer, moments: Moments) -> Eraser:
        return method.fit(moments, **{name: getattr(self, name) for name in options})

    parts: dict[str, Any] = {
        "__module__": __package__,
        "__doc__": _described(method, set(options), own),
        "__init__": init,
        "_fit_eraser": _fit_eraser,
    }
    if not method.targets:
        parts["kind"] = "classes"
    base = ScaledTransformer if "strength" in own else StreamingTransformer
    made: Any = type(name_of(method), (base,), parts)
    return made


def _constructor(name: str, options: list[Parameter]) -> Any:
    """Return an `__init__` that keeps options as attributes, with the signature that scikit-learn reads them from."""
    itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([itself, *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in options)])

    def __init__(self: Any, **given: Any) -> None:
        try:
            bound = signature.bind(self, **given)
        except TypeError as error:
            expected = ", ".join(one.name for one in options) or "none"
            raise TypeError(f"{name}.__init__() {error}; its options are {expected}") from None
        bound.apply_defaults()
        vars(self).update({name: value for name, value in bound.arguments.items() if name != "self"})

    __init__.__qualname__ = f"{name}.__init__"  # errors name it
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _described(method: Method, options: set[str], own: list[str]) -> str:
    """Return the docstring of a transformer, from that of its method."""
    text = inspect.getdoc(method.fit) or ""
    summary = text.split("\n", 1)[0].removeprefix("Return ")
    sections = dict(re.findall(r"^(Args|Source):[ \n](.*?)(?=\n\n|\Z)", text, re.M | re.S))
    lines = []
    for names, what in re.findall(r"^    ([\w, ]+): (.*(?:\n {6,}.*)*)", sections.get("Args", ""), re.M):
        if kept := [name for name in names.split(", ") if name in options]:
            lines.append(f"    {', '.join(kept)}: {what}")
    lines += [f"    {name}: {OWN[name][1]}" for name in own]
    parts = [f"The transformer of `leace_fast.methods.{method.name}`: {summary}"]
    if not method.targets:
        parts.append("An option that names a class takes its position among the sorted ones, `classes_`.")
    if lines:
        parts.append("Args:\n" + "\n".join(lines))
    parts.append(RAISES.format(method=method.name))
    if "Source" in sections:
        parts.append(f"Source: {sections['Source']}")
    parts.append(EXAMPLE.format(name=name_of(method), method=method.name).strip())
    return "\n\n".join(parts) + "\n"
