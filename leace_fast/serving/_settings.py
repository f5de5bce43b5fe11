"""What a server is told of erasers: which ones, by path and digest, and what a request that names none gets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._schema import DIGEST, FINITE, OBJECT, TEXT, Field, check_fields, list_of, object_of, parse_json, short
from ..scrubbing import Scrubber

KEY = "leace_fast"  # in vLLM's additional_config, and of what a request says
VARIABLE = "LEACE_FAST_VLLM"  # in the environment: the same settings, or a file that holds them
NONE = "none"  # the choice of a request that is not erased
INDEX = "scrubber.json"

OF_ONE = {"path": TEXT, "digest": DIGEST, "strengths": list_of(FINITE)}
OF_MANY = {"erasers": object_of(OBJECT), "default": TEXT}
ONE = '{"path": ..., "digest": ...}'
SETTINGS = f'{ONE}, or {{"erasers": {{NAME: {ONE}}}, "default": NAME or "{NONE}"}}'


@dataclass(frozen=True)
class Entry:
    """One scrubber: its folder, the digest of that, and the strengths that a request may ask for.

    The first strength is that of a request which asks for none.
    """

    path: str
    digest: str
    strengths: tuple[float, ...] = (1.0,)

    def load(self) -> Scrubber:
        """Read the erasers; ValueError where the folder holds others than the digest says."""
        self._check()
        scrubber = Scrubber.from_pretrained(self.path)
        self._check()  # they may have been exchanged meanwhile
        return scrubber

    def _check(self) -> None:
        found = digest_of_folder(self.path)
        if found != self.digest:
            raise ValueError(f"the erasers in {self.path} have the digest {found}, expected {self.digest}")


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        erasers: by the name that requests choose them by.
        default: the name of the eraser that a request gets which names none, or "none".
        by_request: whether requests may choose; else all get the only eraser.
    """

    erasers: Mapping[str, Entry]
    default: str
    by_request: bool

    @classmethod
    def read(cls, values: Any) -> Settings:
        """Return the settings that a configuration holds.

        Args:
            values: the object of the key "leace_fast".

        Raises:
            ValueError: it is not of the form that is expected.

        >>> Settings.read({"path": "erasers", "digest": "0" * 64}).default
        'erasers'
        """
        try:
            if isinstance(values, dict) and "path" in values:
                entry = _entry({**values})
                if len(entry.strengths) > 1:
                    raise ValueError("several strengths are for requests to choose from: name the eraser in erasers")
                return cls({"erasers": entry}, "erasers", by_request=False)
            check_fields(values, OF_MANY)
            _check_known(values, OF_MANY)
            erasers = {name: _entry(entry) for name, entry in values["erasers"].items()}
            if not erasers or NONE in erasers or not all(name.isidentifier() for name in erasers):
                raise ValueError(
                    f"the names of erasers are {list(erasers)}, expected at least one word, and not {NONE!r}"
                )
            if values["default"] not in (NONE, *erasers):
                raise ValueError(f"default is {values['default']!r}, expected {NONE!r} or one of {list(erasers)}")
        except ValueError as error:
            raise ValueError(f"{KEY} is {short(values)} ({error}), expected {SETTINGS}") from error
        return cls(erasers, values["default"], by_request=True)

    @classmethod
    def of(cls, additional: Any) -> Settings | None:
        """Return the settings of a server, or None where it is told of no erasers.

        Args:
            additional: vLLM's additional_config. What the environment says is written into it, so that it counts in
                vLLM's own keys.

        Raises:
            ValueError: they are not of the form that is expected, stand in both places, or name no file.
        """
        given = additional.get(KEY) if isinstance(additional, dict) else None
        told = os.environ.get(VARIABLE)
        if told:
            text = told if told.lstrip().startswith("{") else _text_of(told)
            try:
                values = parse_json(text)
            except ValueError as error:
                raise ValueError(
                    f"{VARIABLE} holds no JSON ({error}), expected {SETTINGS}, or the file of it"
                ) from error
            if given is not None and given != values:
                raise ValueError(f"{VARIABLE} and additional_config speak of other erasers: say it in one place")
            if not isinstance(additional, dict):
                raise ValueError(f"additional_config is a {type(additional).__name__}, expected a dict with {VARIABLE}")
            given = additional[KEY] = values
        return None if given is None else cls.read(given)

    @property
    def choices(self) -> list[tuple[str, float]]:
        """All that a request may choose: name and strength, in the order of the rows of the tables."""
        return [(name, strength) for name, entry in self.erasers.items() for strength in entry.strengths]

    def salt(self, choice: int) -> str:
        """Return what tells cached activations of a choice from those of others, whatever server made them."""
        name, strength = self.choices[choice]
        return f"{KEY}:{self.erasers[name].digest}:{strength!r}"

    def __str__(self) -> str:
        return json.dumps(
            {name: [entry.path, entry.digest[:12], *entry.strengths] for name, entry in self.erasers.items()}
        )


def digest_of_folder(folder: str | os.PathLike[str]) -> str:
    """The digest of a scrubber's folder: the SHA-256 of its scrubber.json, which names those of all its files.

    Args:
        folder: that `Scrubber.save_pretrained` wrote.

    Raises:
        FileNotFoundError: it holds no scrubber.

    Source: what `sha256sum FOLDER/scrubber.json` prints.

    >>> import tempfile, torch
    >>> from leace_fast import Eraser
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Scrubber({"norm": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])}).save_pretrained(folder)
    ...     len(digest_of_folder(folder))
    64
    """
    path = Path(folder) / INDEX
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder} holds no {INDEX}: name a folder that save_pretrained wrote") from None


def _entry(values: dict[str, Any]) -> Entry:
    if "path" in values and "digest" not in values:
        raise ValueError(f"the digest is missing; that of the folder is now {digest_of_folder(values['path'])}")
    check_fields(values, OF_ONE, optional=["strengths"])
    _check_known(values, OF_ONE)
    strengths = tuple(float(strength) for strength in values.get("strengths", [1.0]))
    if not strengths or len(set(strengths)) < len(strengths):
        raise ValueError(f"strengths are {list(strengths)}, expected at least one, and each once")
    return Entry(values["path"], values["digest"], strengths)


def _check_known(values: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{unknown[0]!r} is unknown, expected {', '.join(fields)}")


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{VARIABLE} is {short(path)}, expected JSON or the file of it ({error.strerror})") from error
