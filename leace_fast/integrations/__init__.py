"""Erasers in the formats of other programs: GGUF for llama.cpp, and what files of any kind say of themselves."""

from __future__ import annotations

from ._commands import lora_commands
from ._gguf import write_gguf
from ._gguf_lora import write_lora_gguf
from ._inspecting import inspect_file

__all__ = ["inspect_file", "lora_commands", "write_gguf", "write_lora_gguf"]
