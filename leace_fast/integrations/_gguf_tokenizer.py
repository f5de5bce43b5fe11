"""A vocabulary in a GGUF file: that of a byte-level BPE tokenizer, or names for bare token ids."""

from __future__ import annotations

import json
from typing import Any

from .._warnings import warn

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
# How text is split before BPE, by the pattern in tokenizer.json: llama.cpp has a name for each that it knows.
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (  # noqa: E501
        "llama-bpe"
    ),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
}
GPT2 = "gpt-2"  # of ByteLevel with its own pattern; llama.cpp needs some name in any case
IDS_ONLY = "send prompts as token ids, not as text"


def vocabulary(tokenizer: Any, size: int) -> dict[str, Any]:
    """Return the fields `tokenizer.ggml.*` of a file by their last names.

    Args:
        tokenizer: a fast one of transformers; None for a model that is sent token ids.
        size: of the model's vocabulary; what the tokenizer lacks of it is filled up.

    Raises:
        ValueError: the tokenizer is of another kind than byte-level BPE, or has more tokens than the model.
    """
    if tokenizer is None:
        # llama.cpp loads no vocabulary without a merge, and prints tokens by their names
        return {
            "model": "gpt2",
            "pre": GPT2,
            "tokens": [f"<{number}>" for number in range(size)],
            "token_type": [NORMAL] * size,
            "merges": ["a b"],
            "add_bos_token": False,
        }
    parts = _byte_level(tokenizer)
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise ValueError(f"the tokenizer has a token {max(by_id)}, the model {size} tokens: pass the model's own")
    added = {each["id"]: CONTROL if each["special"] else USER_DEFINED for each in parts["added_tokens"]}
    merges = [each if isinstance(each, str) else " ".join(each) for each in parts["model"]["merges"]]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = {
        "model": "gpt2",
        "pre": _split(parts["pre_tokenizer"]),
        "tokens": [by_id.get(number, f"[unused {number}]") for number in range(size)],
        "token_type": [added.get(number, NORMAL if number in by_id else UNUSED) for number in range(size)],
        "merges": merges or ["a b"],
        "bos_token_id": bos,
        "eos_token_id": eos,
        "padding_token_id": tokenizer.pad_token_id,
        "add_bos_token": bos is not None and tokenizer("a").input_ids[:1] == [bos],
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _byte_level(tokenizer: Any) -> dict[str, Any]:
    """The content of tokenizer.json; ValueError where it is not that of a byte-level BPE."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {}
    model = parts.get("model") or {}
    byte_level = "ByteLevel" in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
    if model.get("type") != "BPE" or not byte_level or model.get("byte_fallback"):
        kind = model.get("type") or type(tokenizer).__name__
        raise ValueError(
            f"the tokenizer is no byte-level BPE but {kind}: pass tokenizer=None (--no-tokenizer) and send token ids, "
            "or convert the folded folder with llama.cpp's own convert_hf_to_gguf.py"
        )
    return parts


def _split(pre_tokenizer: Any) -> str:
    """llama.cpp's name of the way that text is split before BPE; a warning where it has none for this one."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if not patterns and any(step["type"] == "ByteLevel" and step.get("use_regex", True) for step in steps):
        return GPT2
    if len(patterns) == 1 and patterns[0] in SPLITS:
        return SPLITS[patterns[0]]
    warn(f"llama.cpp splits text otherwise than this tokenizer does, and would find other tokens: {IDS_ONLY}")
    return GPT2
