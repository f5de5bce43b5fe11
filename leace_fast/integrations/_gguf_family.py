"""What llama.cpp calls the parts of a model, and how it wants its rows ordered, for the families that are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# model_type of transformers: the architecture of llama.cpp
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
INTERLEAVED = ("llama",)  # architectures whose rotary positions pair neighbours, where transformers pairs halves
ELSEWHERE = "convert the folded folder with llama.cpp's own convert_hf_to_gguf.py"
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Family:
    """One model's config, as llama.cpp needs to know it.

    Attributes:
        config: that of transformers.
        architecture: as llama.cpp calls it.
    """

    config: Any
    architecture: str

    @classmethod
    def of(cls, config: Any) -> Family:
        """Return that of a config; ValueError for a model that would not be the same in llama.cpp."""
        kind = getattr(config, "model_type", type(config).__name__)
        if kind not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"a model of type {kind!r} is not written as GGUF, those of {known} are: {ELSEWHERE}")
        for name, expected in (("hidden_act", "silu"), ("sliding_window", None)):
            value = getattr(config, name, expected)
            off = name == "sliding_window" and not getattr(config, "use_sliding_window", True)
            if value != expected and not off:
                raise ValueError(f"{name} is {value!r}, expected {expected!r}, which llama.cpp computes: {ELSEWHERE}")
        family = cls(config, ARCHITECTURES[kind])
        width = config.hidden_size // config.num_attention_heads
        if family.architecture not in INTERLEAVED and family.head_dim != width:
            raise ValueError(f"head_dim is {family.head_dim}, expected {width}, hidden_size by heads: {ELSEWHERE}")
        return family

    @property
    def head_dim(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def name(self, parameter: str) -> str:
        """Return llama.cpp's name of a parameter; ValueError for one that it does not know there."""
        module, _, kind = parameter.rpartition(".")
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        if found and found[2] in LAYER:
            return f"blk.{found[1]}.{LAYER[found[2]]}.{kind}"
        if module in OUTSIDE and kind == "weight":
            return f"{OUTSIDE[module]}.{kind}"
        why = "a bias of the head has no place there: leave that site out" if parameter == "lm_head.bias" else ELSEWHERE
        raise ValueError(f"{parameter!r} has no name in llama.cpp's {self.architecture!r}: {why}")

    def rows(self, module: str, tensor: Tensor) -> Tensor:
        """Return what a module's weight, bias or lora_B writes in llama.cpp's order of rows: (out, ...), as it came."""
        leaf = module.rpartition(".")[2]
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}.get(leaf)
        if heads is None or self.architecture not in INTERLEAVED:
            return tensor
        halves = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    def check_shapes(self, module: str, down: Tensor, up: Tensor) -> None:
        """Raise ValueError for the factors (r, in) and (out, r) of a LoRA that do not fit a layer of this model."""
        config, leaf = self.config, module.rpartition(".")[2]
        heads = config.num_attention_heads * self.head_dim
        groups = config.num_key_value_heads * self.head_dim
        ins = {"o_proj": heads, "down_proj": config.intermediate_size}
        outs = {"q_proj": heads, "k_proj": groups, "v_proj": groups}
        outs |= dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size)
        wanted = outs.get(leaf, config.hidden_size), ins.get(leaf, config.hidden_size)
        layer = int(module.split(".")[2]) if module.startswith("model.layers.") else 0
        fits = down.ndim == up.ndim == 2 and len(down) == up.shape[1] and (len(up), down.shape[1]) == wanted
        if not fits or layer >= config.num_hidden_layers:
            raise ValueError(
                f"the adapter is for another model: at {module!r} its factors are {tuple(up.shape)} and "
                f"{tuple(down.shape)}, expected a layer (out, in) of {wanted} in one of {config.num_hidden_layers} "
                "blocks: pass the model that it was exported for"
            )

    def fields(self) -> dict[str, int | float]:
        """Return the numbers that llama.cpp reads of a model, by the names of its file."""
        config = self.config
        rope = getattr(config, "rope_parameters", None) or {}
        return {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": self.head_dim,
            "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
            "vocab_size": config.vocab_size,
        }

    def rope_factors(self, model: Any) -> Tensor | None:
        """Return by what each rotary frequency is divided (head_dim / 2,), None for plain ones.

        Raises:
            ValueError: the model scales positions in a way that no such factors tell.
        """
        rope = getattr(self.config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", "default")
        if kind == "default":
            return None
        rotary = model.model.rotary_emb
        if kind not in ("llama3", "linear") or self.architecture not in INTERLEAVED or rotary.attention_scaling != 1:
            raise ValueError(f"rope_type is {kind!r}, expected 'default', 'linear' or 'llama3' of a Llama: {ELSEWHERE}")
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        plain = float(rope["rope_theta"]) ** -exponents
        return (plain / rotary.inv_freq.double().cpu()).float()
