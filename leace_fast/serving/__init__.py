"""Erasers in a serving stack: the plugin for vLLM, and the check of what a running server serves."""

from __future__ import annotations

from ._asking import Server
from ._check import Served, check_served
from ._plugin import activate
from ._settings import digest_of_folder

__all__ = ["Served", "Server", "activate", "check_served", "digest_of_folder"]
