"""Makes tiny random models of many architectures of transformers, to try what lens computes on each."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, END_TOKEN = 97, 2
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END_TOKEN,
    "tie_word_embeddings": False,
}
ONE_EACH = {"layer_types": ["linear_attention", "full_attention"]}
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS = {**EXPERTS, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
LATENT = {  # multi-head latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 16,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

# What each architecture's config needs beside SIZES. Windows and chunks are shorter than the probe's sequences.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "ministral": WINDOW,
    "gemma": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 16},
    "gemma3": {**WINDOW, "query_pre_attn_scalar": 16},
    "gemma4_text": {**WINDOW, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16},
    "vaultgemma": {**WINDOW, "query_pre_attn_scalar": 16},
    "recurrent_gemma": {"attention_window_size": 6, "lru_width": 64, "num_hidden_layers": 3},
    "phi": {},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": EXPERTS,
    "olmo_hybrid": {},
    "smollm3": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gpt_oss": {**WINDOW, **EXPERTS},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "bloom": {},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "falcon": {"head_dim": None},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128, "mamba_chunk_size": 8, "lm_head_multiplier": 0.5},
    "falcon_mamba": {"state_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "cohere": {},
    "cohere2": WINDOW,
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0, **EXPERTS},
    "granitemoehybrid": {
        **MAMBA,
        **EXPERTS,
        "logits_scaling": 4.0,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 96,
    },
    "hyperclovax": {"logits_scaling": 0.5},
    "minicpm3": {**LATENT, "dim_model_base": 16},
    "nanochat": {},
    "deepseek_v2": {**LATENT, **SMALL_EXPERTS},
    "deepseek_v3": {**LATENT, **SMALL_EXPERTS},
    "mixtral": EXPERTS,
    "qwen2_moe": {**SMALL_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": SMALL_EXPERTS,
    "qwen3_next": {**DELTA_NET, **SMALL_EXPERTS, **ONE_EACH, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": {**DELTA_NET, **ONE_EACH},
    "jamba": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "nemotron": {},
    "nemotron_h": {
        **SMALL_EXPERTS,
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "starcoder2": {"sliding_window": 6},
    "stablelm": {},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 96, "attention_chunk_size": 6, "interleave_moe_layer_step": 2},
    "glm": {},
    "glm4": {},
    "exaone4": {"sliding_window": 6, "sliding_window_pattern": 2},
    "seed_oss": {},
    "helium": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "arcee": {},
    "apertus": {},
    "diffllama": {},
    "rwkv": {"attention_hidden_size": 64},
    "qwen3_5_moe_text": {**DELTA_NET, **SMALL_EXPERTS, **ONE_EACH, "shared_expert_intermediate_size": 32},
}
# Architectures with a text model inside, and the config of their vision model.
NESTED = {
    "gemma3": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
}
STRONG = 8.0  # standard deviation of the logits, so that a forgotten soft cap of 30 or scale shows


def make_random_model(model_type: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """Make a tiny model of an architecture with random weights, in float32.

    Args:
        model_type: transformers' name, a key of ARCHITECTURES.
        attention: transformers' name of an attention implementation. None: its own choice.
        changes: other values of its config.
    """
    torch.manual_seed(0)
    sizes = {
        name: value for name, value in {**SIZES, **ARCHITECTURES[model_type], **changes}.items() if value is not None
    }
    make_config = CONFIG_MAPPING[model_type]
    if model_type in NESTED:
        config = make_config(text_config=sizes, vision_config=NESTED[model_type], tie_word_embeddings=False)
    else:
        config = make_config(**sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, trust_remote_code=False).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        ids = torch.arange(3, 23)[None]
        head.weight.mul_(STRONG / model(input_ids=ids).logits.std())
    return model
