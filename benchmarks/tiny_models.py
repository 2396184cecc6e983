"""A tiny random model of any causal language model that transformers knows, built from its configuration's defaults."""

import dataclasses
import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

LAYERS = 3
HEADS = 4
VOCABULARY = 160
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")
# What a field is set to, by the first pattern that fits its whole name; a function gets the default.
# The sizes differ from each other, so that no shape is right by accident.
UNSET = ("head_dim", "num_experts_per_tok", "n_routed_experts", "n_shared_experts")
SIZES: tuple[tuple[str, Any], ...] = (
    ("|".join(DEPTHS), LAYERS),
    ("encoder_layers|num_encoder_layers|conf_num_hidden_layers|num_blocks|depth", 2),
    ("hidden_size|n_embd|d_model|emb_dim", 64),
    ("moe_intermediate_size|expert_ffn_hidden_size", 40),
    (".*shared.*intermediate_size", lambda size: size and 56),
    ("encoder_ffn_dim", 72),
    (".*intermediate_size.*|.*ffn_dim|dff|dim_ff|d_inner|feed_forward_size|ffn_hidden_size", 88),
    (".*_vocab|.*vocab_size.*", VOCABULARY),
    ("qk_nope_head_dim", 16),
    ("qk_rope_head_dim", 8),
    ("v_head_dim", 20),
    (".*head_dim|dim_head|kv_channels|.*head_size", 24),
    (".*(kv|key|key_value)_heads|kv_n_heads", lambda heads: min(heads, 2)),
    ("(mamba|linear)_num_heads|mamba_n_heads|n_mamba_heads", 8),
    ("(.*_)?(num|n)_(.*_)?heads?|.*attention_heads", lambda heads: min(heads, HEADS)),
    ("first_k_dense_replace|num_dense_layers", 1),
    ("(moe_)?num(_local)?_experts|n_routed_experts", 4),
    ("num_experts_per_tok|moe_(k|topk|top_k)", lambda experts: min(experts, 2)),
    (".*shared_experts", lambda experts: min(experts, 2)),
    ("n_group", lambda groups: min(groups, 2)),
    ("topk_group", 1),
    ("q_lora_rank", 28),
    ("kv_lora_rank", 20),
    ("o_lora_rank", 12),
    (".*rank|hc_lowrank", 16),
    ("rotary_dim", 8),
    ("image_size", 28),
    ("backbone_hidden_size|.*(embedding_size|embed_dim)", 48),
    ("index_topk", 4),
    ("n_groups|mamba_n_?groups", lambda groups: min(groups, 2)),
    ("router_hidden_size", 36),
    ("zero_expert_num", 2),
    ("mlp_dim", 88),
    ("(output|nemo_conv)_channels?|(ext_pw|depthwise_separable)_out_channel", 16),
    ("mamba_d_ssm", 192),
    (".*(d_state|state_size)", 8),
    ("(num_mtp|num_nextn_predict)_layers", 0),
    ("max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_\\w+_positions", 128),
)


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    # A class for the language half alone takes that half's configuration.
    if model_class.config_class in config_class.sub_configs.values():
        config_class = model_class.config_class
    torch.manual_seed(seed)
    config = tiny_config(config_class, OVERRIDES.get(config_class.model_type, {}))
    model = model_class._from_config(config, dtype=torch.float32).eval()
    randomise(model, seed)
    return model


def tiny_config(config_class: type[PreTrainedConfig], overrides: dict[str, Any]) -> PreTrainedConfig:
    options: dict[str, Any] = {}
    for name, sub_class in config_class.sub_configs.items():
        spec = (config_class.sub_configs_defaults or {}).get(name)
        if spec is None or not spec.optional:
            half = type(spec.default_config) if spec else sub_class
            options[name] = tiny_config(half, OVERRIDES.get(half.model_type, {}) | overrides.get(name, {}))
    default = config_class(**options)
    special = VOCABULARY
    for field in dataclasses.fields(config_class):
        value = field.default
        if type(value) is not int and not (
            value is None and field.name in UNSET and vars(default).get(field.name) is None
        ):
            continue
        if re.fullmatch(".*_(token|token_id|token_index|index)", field.name):
            if value >= VOCABULARY:
                special -= 1
                options[field.name] = special
            continue
        for pattern, size in SIZES:
            if re.fullmatch(pattern, field.name):
                options[field.name] = size(value or 2) if callable(size) else size
                break
    if {"kv_lora_rank", "num_key_value_heads"} <= options.keys():
        # Latent attention makes a key for every query.
        options["num_key_value_heads"] = HEADS
    if config_class.model_type in REQUIRED_DECODERS:
        options["is_decoder"] = True
    options |= _layers(default, options)
    options |= {name: value for name, value in overrides.items() if name not in config_class.sub_configs}
    return config_class(**options)


def _layers(default: PreTrainedConfig, options: dict[str, Any]) -> dict[str, Any]:
    depth = next((name for name in DEPTHS if type(vars(default).get(name)) is int), None)
    if depth is None:
        return {}
    count = vars(default)[depth]
    lists = {
        field.name: list(value)
        for field in dataclasses.fields(default)
        if isinstance(value := vars(default).get(field.name), list | tuple)
        and len(value) == count > 2
        and field.default is None
        and len(set(map(str, value))) < count
    }
    kinds = list(zip(*lists.values(), strict=True))
    chosen = {kinds.index(kind) for kind in dict.fromkeys(kinds)}
    chosen |= set([index for index in range(count) if index not in chosen][: max(0, LAYERS - len(chosen))])
    return {depth: len(chosen)} | {name: [value[index] for index in sorted(chosen)] for name, value in lists.items()}


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


REQUIRED_DECODERS = {"reformer"}

OVERRIDES: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_config": {"hidden_size_global": 128},
        "decoder_config": {"hidden_size_global": 128},
        "global_config": {"hidden_size": 128},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}, "ffn_config": {"moe_top_k": 2}},
    "dots3_note_text": {
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 28,
        "swa_kv_lora_rank": 20,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 20,
    },
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
        "num_kv_shared_layers": 2,
    },
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "helium": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "laguna": {"num_attention_heads_per_layer": [4, 4, 4]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "eos_token_id": 1,
        "ple_layer_ids": [2],
        "ngram_vocab_size_base": 32,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 24,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds_dim": (16, 48), "axial_pos_shape": (8, 16)},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
}
