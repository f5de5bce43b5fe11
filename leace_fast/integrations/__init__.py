"""Erasers in the formats of other programs: GGUF, hooks of TransformerLens; and what files say of themselves."""

from __future__ import annotations

from ._commands import lora_commands
from ._gguf import write_gguf
from ._gguf_lora import write_lora_gguf
from ._inspecting import inspect_file
from ._pyvene import pyvene_config
from ._transformer_lens import transformer_lens_hooks

__all__ = ["inspect_file", "lora_commands", "pyvene_config", "transformer_lens_hooks", "write_gguf", "write_lora_gguf"]
