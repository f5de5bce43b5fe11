"""A tiny random model of any family of transformers, by shrinking what its config has by known names."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

VOCABULARY, WIDTH, LENGTH = 96, 32, 12
MOST = 8e6  # parameters: what is larger has a size of another name

_SIZES: list[tuple[Any, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (WIDTH, "hidden_size d_model n_embd dim embed_dim model_dim emb_dim embedding_size word_embed_proj_dim d_embed"),
    (WIDTH, "projection_dim attention_hidden_size embedding_dim decoder_hidden_size lru_width"),
    (48, "hidden_dim intermediate_size ffn_dim d_ff n_inner dim_ff encoder_ffn_dim decoder_ffn_dim d_inner inner_dim"),
    (48, "feed_forward_proj_dim ffn_hidden_size dense_intermediate_size mlp_hidden_size intermediate_size_mlp"),
    (16, "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size mamba_head_dim"),
    (2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth layers"),
    (
        2,
        "num_encoder_layers num_key_value_heads num_kv_heads num_query_groups multi_query_group_num",
    ),
    (
        2,
        "num_experts_per_tok moe_topk num_experts_per_token moe_k moe_num_active_experts expand",
    ),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads"),
    (4, "num_local_experts num_experts n_routed_experts moe_num_experts qk_rope_head_dim qk_nope_head_dim rotary_dim"),
    (4, "state_size mamba_d_state mamba_d_conv mamba_dt_rank mamba_n_heads mamba_chunk_size time_step_rank chunk_size"),
    (
        4,
        "mamba_num_heads ssm_state_size linear_num_value_heads linear_conv_kernel_dim d_state",
    ),
    (8, "head_dim d_kv kv_channels attention_head_size d_head q_lora_rank kv_lora_rank v_head_dim rank lora_rank"),
    (8, "linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input attention_window_size patch_size"),
    (4, "attention_window laurel_rank"),
    (2, "linear_num_key_heads altup_num_inputs"),
    (16, "mamba_d_head sliding_window local_attention window_size num_mel_bins clamp_len"),
    (1, "n_shared_experts n_group topk_group first_k_dense_replace mamba_n_groups n_groups div_val bos_token_id"),
    (2, "full_attention_interval type_vocab_size num_random_blocks eos_token_id"),
    (64, "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx max_seq_len seq_length"),
    (0, "pad_token_id decoder_start_token_id mem_len num_nextn_predict_layers num_kv_shared_layers"),
    (0.0, "encoder_layerdrop decoder_layerdrop layerdrop embd_pdrop"),
    (None, "forced_eos_token_id forced_bos_token_id activation_sparsity_pattern"),
    (False, "use_cache use_kernels"),
    ("eager", "experts_implementation"),
    (32, "image_size"),
]
SMALL = {name: size for size, names in _SIZES for name in names.split()}
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")  # one entry a layer: the first two kinds


def shrunk(kind: Any) -> Any:
    """A config of a type whose sizes are small where their names are known."""
    default = kind()
    known = default.to_dict()
    taken = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {
        name: size
        for name, size in SMALL.items()
        if (name in known or name in taken) and not isinstance(known.get(name), (list, tuple))
    }
    for name, sub in (getattr(kind, "sub_configs", None) or {}).items():
        inner = getattr(default, name, None)
        options[name] = shrunk(sub if inner is None else type(inner)).to_dict()
    for name in KINDS:
        if listed := known.get(name):
            options[name] = (list(dict.fromkeys(listed)) * 2)[:2]
    return kind(**options)


def build(name: str) -> Any:
    """A random model of a class, in evaluation mode.

    Raises:
        OverflowError: it is large all the same.
    """
    import transformers

    kind = getattr(transformers, name)
    config = shrunk(kind.config_class)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST:
        raise OverflowError(f"{size / 1e6:.1f} million parameters")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)  # the default makes every token nearly alike
    return model


def batches(model: Any, count: int = 3, rows: int = 4) -> list[dict[str, Tensor]]:
    """Labelled batches: of tokens, or of whole sequences where there is an encoder and a decoder."""
    generator = torch.Generator().manual_seed(0)
    names, made = inspect.signature(model.forward).parameters, []
    vocabulary = min(model.config.get_text_config().vocab_size, 80)
    for number in range(count):
        ids = torch.randint(5, vocabulary, (rows, LENGTH), generator=generator)
        batch = {"input_ids": ids, "concept_labels": ids % 3}
        if "attention_mask" in names:
            batch["attention_mask"] = torch.ones_like(ids)
        if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
            batch["decoder_input_ids"] = torch.randint(5, vocabulary, (rows, LENGTH - 2), generator=generator)
            batch["concept_labels"] = (torch.arange(rows) + number) % 2
        made.append(batch)
    return made
