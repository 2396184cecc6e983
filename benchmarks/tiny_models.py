"""A tiny random model of any causal language model that transformers knows, built from its configuration's defaults.

Most is guessed from the names of the configuration's fields; `OVERRIDES` holds what cannot be guessed.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 3
HEADS = 4
VOCABULARY = 160
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")


def at_most(limit: int) -> Callable[[int], int]:
    return lambda default: min(default, limit)


def real(value: float) -> Callable[[float], float]:
    """A factor that the defaults leave at one, though checkpoints do not."""
    return lambda default: value if default == 1 else default


# What a field is set to, by the first pattern that fits its whole name; a function gets the default.
# No two sizes are the same where an architecture lets them differ, so that no shape is right by accident.
VALUES: tuple[tuple[str, Any], ...] = (
    ("encoder_layers|num_encoder_layers|conf_num_hidden_layers|num_blocks|depth", 2),
    ("hidden_size|n_embd|d_model|emb_dim", 64),
    ("hidden_size_per_layer_input", 12),
    ("backbone_hidden_size|.*(embedding_size|embed_dim)|attention_hidden_size|lru_width", 52),
    ("router_hidden_size", 36),
    ("moe_intermediate_size|expert_ffn_hidden_size", 40),
    (".*shared.*intermediate_size", 56),
    ("intermediate_size_mlp|.*dense_intermediate_size", 104),
    (".*intermediate_size.*|.*ffn_dim|dff|dim_ff|d_inner|mlp_dim|feed_forward_size|ffn_hidden_size", 88),
    (".*_vocab|.*vocab_size.*", VOCABULARY),
    ("max_position_embeddings|max_\\w+_positions|n_positions|n_ctx|max_seq_len|context_length", 128),
    ("qk_nope_head_dim", 14),
    ("qk_rope_head_dim|rotary_dim", 8),
    ("v_head_dim", 20),
    (".*head_dim|dim_head|kv_channels|.*head_size", 24),
    (".*(kv|key|key_value)_heads|kv_n_heads|n_groups|mamba_n_?groups", at_most(2)),
    ("(mamba|linear)_num_heads|mamba_n_heads|n_mamba_heads", 8),
    ("(.*_)?(num|n)_(.*_)?heads?|.*attention_heads", at_most(HEADS)),
    ("q_lora_rank", 28),
    ("kv_lora_rank", 18),
    ("o_lora_rank", 12),
    (".*rank", 10),
    (".*(d_state|state_size)", 8),
    ("mamba_d_ssm", 192),
    ("index_topk", 4),
    ("(moe_)?num(_local)?_experts|n_routed_experts", 4),
    ("num_experts_per_tok|moe_(k|topk|top_k)|.*shared_experts|n_group", at_most(2)),
    ("zero_expert_num", 2),
    ("first_k_dense_replace|num_dense_layers|topk_group", 1),
    ("(num_mtp|num_nextn_predict)_layers", 0),
    ("image_size", 28),
    ("(output|nemo_conv)_channels?|(ext_pw|depthwise_separable)_out_channel", 16),
    ("residual_multiplier|mlp_beta_factor", real(0.3)),
    (".*_alpha_factor|.*(routed_scaling_factor|route_scale)", real(1.5)),
)
# Fields of these names that are still empty when the defaults have been worked out get a value too.
NEEDED = {"head_dim", "num_experts_per_tok", "n_routed_experts", "n_shared_experts"}
SPECIAL_TOKEN = ".*_(token|token_id|token_index|index)"

NOT_RUNNABLE = {
    "gemma4_assistant": "it reads the hidden states and keys of the model that it drafts for, not tokens",
    "gemma4_unified_assistant": "it reads the hidden states and keys of the model that it drafts for, not tokens",
}

MIXED = ["linear_attention", "full_attention", "linear_attention"]
SHARING: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
}
DENSE_FIRST = ["dense", "sparse", "sparse"]
# By the model type of the configuration, or of the part of it that holds the language model.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "encoder_config": {"hidden_size_global": 128},
        "decoder_config": {"hidden_size_global": 128},
        "global_config": {"hidden_size": 128},
    },
    "cohere2_moe": {"mlp_layer_types": DENSE_FIRST, "prefix_dense_intermediate_size": 104, "num_shared_experts": 1},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}, "ffn_config": {"moe_top_k": 2}},
    "dots3_note_text": {
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 28,
        "swa_kv_lora_rank": 18,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 20,
    },
    "falcon_h1": {"mlp_multipliers": [0.6, 0.7]},
    "gemma3n_text": SHARING | {"activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0]},
    # Gemma 4 comes with an embedding per layer or with experts: the row of the whole model shows the first.
    "gemma4": {
        "text_config": SHARING
        | {"hidden_size_per_layer_input": 12, "enable_moe_block": False, "use_double_wide_mlp": True}
    },
    "gemma4_text": {
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
    },
    "gemma4_unified_text": {"global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "granitemoehybrid": {"layer_types": MIXED},
    "helium": {"head_dim": 16},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "inkling_text": {"mlp_layer_types": DENSE_FIRST},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "laguna": {"num_attention_heads_per_layer": [HEADS] * 3},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 24},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": {"mlp_layer_types": DENSE_FIRST},
    "minimax_m3_vl_text": {"mlp_layer_types": DENSE_FIRST},
    "mllama_text_model": {"cross_attention_layers": [1]},
    # As many codebooks as there are sequences of tokens.
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
    "rwkv": {"attention_hidden_size": 52, "intermediate_size": 88, "rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "intermediate_size": 88,
    },
}


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of `model_type` (a key of MODEL_FOR_CAUSAL_LM_MAPPING_NAMES): float32, on the CPU, of a few
    hundred thousand parameters, with at least one layer of each kind that the architecture mixes.

    Raises:
        NotImplementedError: a model of this type does not run on tokens alone.
        ImportError: it needs a package that is not installed.
    """
    if model_type in NOT_RUNNABLE:
        raise NotImplementedError(NOT_RUNNABLE[model_type])
    config_class = CONFIG_MAPPING[model_type]
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    # A class for the language half alone takes that half's configuration.
    if model_class.config_class in config_class.sub_configs.values():
        config_class = model_class.config_class
    torch.manual_seed(seed)
    model = model_class(tiny_config(config_class)).eval()
    randomise(model, seed)
    return model


def tiny_config(
    config_class: type[PreTrainedConfig], overrides: dict[str, Any] | None = None, layers: int = LAYERS
) -> PreTrainedConfig:
    """A configuration with every size made small, its parts included."""
    overrides = OVERRIDES.get(config_class.model_type, {}) | (overrides or {})
    parts = {
        name: tiny_config(part, overrides.get(name), layers=2 if re.match("vision|audio", name) else LAYERS)
        for name, part in _parts(config_class).items()
    }
    default = config_class(**parts)
    special_tokens = iter(range(VOCABULARY - 1, 0, -1))
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        value = field.default
        if value is None and field.name in NEEDED and vars(default).get(field.name) is None:
            value = 2
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if re.fullmatch(SPECIAL_TOKEN, field.name):
            options[field.name] = value if value < VOCABULARY else next(special_tokens)
        elif (size := _value(field.name)) is not None:
            options[field.name] = size(value) if callable(size) else size
    if {"kv_lora_rank", "num_key_value_heads"} <= options.keys():
        # Latent attention makes a key for every query.
        options["num_key_value_heads"] = HEADS
    if vars(default).get("is_decoder") is False:
        options["is_decoder"] = True
    return config_class(**(options | _layers(default, layers) | overrides | parts))


def _value(name: str) -> Any:
    return next((value for pattern, value in VALUES if re.fullmatch(pattern, name)), None)


def _parts(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """The classes of the configurations inside a configuration, without those that it can do without."""
    specifications = config_class.sub_configs_defaults or {}
    return {
        name: type(specifications[name].default_config) if name in specifications else part
        for name, part in config_class.sub_configs.items()
        if name not in specifications or not specifications[name].optional
    }


def _layers(default: PreTrainedConfig, layers: int) -> dict[str, Any]:
    """How many layers, and the lists that say what each one is: the first of each kind, and others up to `layers`."""
    depth = next((name for name in DEPTHS if type(vars(default).get(name)) is int), None)
    if depth is None:
        return {}
    count = vars(default)[depth]
    # A list without repetitions holds the numbers of some layers, not a word about each.
    lists = {
        field.name: list(value)
        for field in dataclasses.fields(default)
        if field.default is None
        and isinstance(value := vars(default).get(field.name), list | tuple)
        and len(value) == count > len(set(value))
    }
    kinds = list(zip(*lists.values(), strict=True))
    chosen = sorted({kinds.index(kind) for kind in kinds})
    rest = [index for index in range(count) if index not in chosen]
    chosen = sorted(chosen + rest[: max(0, layers - len(chosen))])
    return {name: [value[index] for index in chosen] for name, value in lists.items()} | {
        depth: len(chosen) if lists else layers
    }


def randomise(model: nn.Module, seed: int) -> None:
    """Weights large enough for activations to be far from zero; biases and gains of norms with values of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for name, buffer in model.named_buffers():
            # Gemma 4 keeps the factor of a layer's output in a buffer.
            if name.endswith("layer_scalar"):
                buffer.fill_(0.8)
