"""Packages that not every install has: an import that fails says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# The extra of leace-fast that brings a package, by the name that is imported; "" for what every install brings.
EXTRAS = {
    "transformers": "hf",
    "tokenizers": "hf",
    "pyarrow": "hf",
    "datasets": "hf",
    "sklearn": "audit",
    "matplotlib": "audit",
    "datasketches": "quantiles",
    "typer": "",
    "rich": "",
}
CALLED = {"sklearn": "scikit-learn"}  # where a package has another name than what is imported


@contextmanager
def optional(what_needs: str) -> Iterator[None]:
    """Turn the failed import of a package that is missing into an ImportError that says what to install.

    An import that fails for another reason, inside a package that is there, is raised as it is.

    Args:
        what_needs: the begin of the sentence, such as "models need".

    Raises:
        ImportError: a package of `EXTRAS` is missing.

    >>> with optional("pictures need"):
    ...     raise ModuleNotFoundError(name="matplotlib.figure")
    Traceback (most recent call last):
    ImportError: pictures need matplotlib: pip install 'leace-fast[audit]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        install = f"'leace-fast[{extra}]'" if extra else "leace-fast"
        raise ImportError(f"{what_needs} {CALLED.get(package, package)}: pip install {install}") from error
