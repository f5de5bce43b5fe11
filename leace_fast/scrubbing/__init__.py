"""A model scrubbed site after site, and `Scrubber`: its erasers by site."""

from __future__ import annotations

from ._replay import without_cache
from ._scrub import scrub
from ._scrubber import Scrubber
from ._seen import Seen, hashes_of

__all__ = [
    "Scrubber",
    "Seen",
    "hashes_of",
    "scrub",
    "without_cache",
]
