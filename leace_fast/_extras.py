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
    "scipy": "audit",
    "threadpoolctl": "audit",
    "matplotlib": "audit",
    "datasketches": "quantiles",
    "gguf": "gguf",
    "typer": "",
    "rich": "",
}


@contextmanager
def optional(message: str) -> Iterator[None]:
    """Turn the failed import of a package that is missing into an ImportError that says what to install.

    An import that fails for another reason, inside a package that is there, is raised as it is.

    Args:
        message: what needs which package, such as "models need transformers".

    Raises:
        ImportError: a package of `EXTRAS` is missing.

    >>> with optional("pictures need matplotlib"):
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
        raise ImportError(f"{message}: pip install {install}") from error
