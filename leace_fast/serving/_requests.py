"""What a request chooses: an eraser by name and a strength, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._settings import KEY, NONE, Settings

STRENGTH = f"{KEY}_strength"
ROW = f"{KEY}_row"  # what the engine makes of these for its workers, once the request is salted
UN_ERASED = -1  # the row of a request that is not erased


def choice_of(settings: Settings, said: Mapping[str, Any] | None) -> int:
    """Return the row of a request in the tables, or -1 where it is not erased.

    Args:
        settings: of the server.
        said: `SamplingParams.extra_args`, or `vllm_xargs` of an HTTP request; "leace_fast" names an eraser or is
            "none", "leace_fast_strength" is one of its strengths.

    Raises:
        ValueError: the request names what is not there.

    >>> settings = Settings.read({"erasers": {"gender": {"path": "g", "digest": "0" * 64}}, "default": "none"})
    >>> choice_of(settings, {"leace_fast": "gender"}), choice_of(settings, None)
    (0, -1)
    """
    ours = {key: value for key, value in (said or {}).items() if str(key).startswith(KEY)}
    if unknown := sorted(set(ours) - {KEY, STRENGTH}):
        raise ValueError(f"{unknown[0]!r} is unknown, expected {KEY!r} and {STRENGTH!r}")
    if ours and not settings.by_request:
        raise ValueError(f"{KEY!r}: this server erases every request in the same way, none can choose")
    name = ours.get(KEY, settings.default)
    if not isinstance(name, str) or name not in (NONE, *settings.erasers):
        raise ValueError(f"{KEY} is {name!r}, expected {NONE!r} or one of {list(settings.erasers)}")
    if name == NONE:
        if STRENGTH in ours:
            raise ValueError(f"{STRENGTH!r} without an eraser: name one of {list(settings.erasers)} as {KEY!r}")
        return UN_ERASED
    strengths = settings.erasers[name].strengths
    strength = ours.get(STRENGTH, strengths[0])
    if isinstance(strength, bool) or strength not in strengths:
        raise ValueError(f"{STRENGTH} is {strength!r}, expected one of {list(strengths)} for {name!r}")
    return settings.choices.index((name, strength))


def salted(settings: Settings, choice: int, salt: str | None) -> str | None:
    """Return the salt of a request's prefix cache: that which it came with, and that of its erasers.

    >>> settings = Settings.read({"path": "g", "digest": "0" * 64})
    >>> salted(settings, -1, "tenant"), salted(settings, 0, None)[:13]
    ('tenant', 'leace_fast:00')
    """
    if choice == UN_ERASED:
        return salt
    ours = settings.salt(choice)
    return ours if salt is None else f"{ours}|{salt}"
