"""Tiny random transformers, one per architecture: no downloads, each under 100 thousand parameters; and `Block`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LENGTH = 64, 16, 7

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in _DECODER.items() if name not in names}


_GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = _without("num_key_value_heads", "head_dim", "sliding_window")
_T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_OPT = {**_without("intermediate_size", "num_key_value_heads", "head_dim", "sliding_window"), "ffn_dim": 24}
_VIT = {**_PLAIN, "image_size": 8, "patch_size": 4, "num_channels": 3}
_EXPERTS = {"num_local_experts": 2, "experts_implementation": "eager"}  # the grouped product has no float64
_ALBERT = {**_PLAIN, "embedding_size": 8}
LATENT: dict[str, Any] = {
    **_PLAIN,
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 6, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8},
    **{"first_k_dense_replace": 1, "num_key_value_heads": 2},
}

# architecture -> (name of the config, name of the model, arguments of the config)
TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _without("sliding_window")),
    "mistral": ("MistralConfig", "MistralForCausalLM", _DECODER),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _without("head_dim")),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _DECODER),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _DECODER),
    "phi": ("PhiConfig", "PhiForCausalLM", _PLAIN),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _PLAIN),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**_GPT2, **_IDS}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**_OPT, "word_embed_proj_dim": WIDTH}),
    "falcon": ("FalconConfig", "FalconForCausalLM", _PLAIN),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_DECODER, **_EXPERTS}),
    "bert": ("BertConfig", "BertForMaskedLM", _PLAIN),
    "t5": ("T5Config", "T5ForConditionalGeneration", {**_T5, "pad_token_id": 0, "decoder_start_token_id": 0}),
    "vit": ("ViTConfig", "ViTModel", _VIT),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", _ALBERT),  # one layer, called once per depth
}

DECODERS = tuple(name for name in TABLE if name not in ("bert", "t5", "vit", "albert"))
ARCHITECTURES = tuple(name for name in TABLE if name != "albert")

_STATE = {**_IDS, "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2}
_MIXED = {**_without("head_dim", "sliding_window"), "tie_word_embeddings": False}
_JAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
_BAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 4}
_MAMBA2 = {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}

# models that multiply rows by the mask of padding before they read them
STATE_SPACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", "MambaForCausalLM", {**_STATE, "state_size": 4, "time_step_rank": 4}),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", {**_STATE, **_MAMBA2}),
    "jamba": ("JambaConfig", "JambaForCausalLM", {**_MIXED, **_JAMBA, "experts_implementation": "eager"}),
    "bamba": ("BambaConfig", "BambaForCausalLM", {**_MIXED, **_BAMBA, "attn_layer_indices": [1]}),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", {**_MIXED, "layer_types": ["conv", "full_attention"]}),
}
TABLE |= STATE_SPACE


class Block(nn.Module):
    """A model small enough to trace and compile in a test, and for another process."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).relu()


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> Any:
    """A random model of the table, in evaluation mode, the same in every dtype; no norm's weight is one.

    The options go to its config.
    """
    import transformers

    config, model, arguments = TABLE[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = getattr(transformers, model)(getattr(transformers, config)(**arguments, **options))
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.data.mul_(4.0)  # the default of 0.02 makes every token nearly alike
    return built.to(dtype).eval()


def batch(name: str, rows: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """An input of the model `name`: random tokens (rows, LENGTH) with padding at the right, or images."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator, dtype=dtype)}
    ids = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
    mask = torch.ones(rows, LENGTH, dtype=torch.int64)
    for row in range(1, rows):
        mask[row, LENGTH - row % LENGTH :] = 0
    inputs = {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}
    if name == "t5":
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, LENGTH - 2), generator=generator)
    return inputs


def state_of(model: nn.Module) -> list[Any]:
    """Return mode and number of hooks of every module."""
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
