"""Tiny models as GGUF files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf

from safety_neurons.models.chat import ChatModel

Weights = dict[str, Any]
# What the modules of a Qwen2 model are called in a GGUF file.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: ChatModel, path: Path, *, tensors_a_part: int = 0, changed: Callable[[Weights], Weights] = lambda same: same
) -> list[Path]:
    """A tiny Qwen2 model with its byte tokenizer as a GGUF file, or as parts; returns the files.

    `changed` gets the weights by their GGUF names, and returns those to write.
    """
    config, vocabulary = model.model.config, model.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    # A file needs at least one merge; the token that it makes takes the place of a byte that no test uses.
    tokens[-1] = "zz"
    special = set(model.tokenizer.added_tokens_decoder)
    writer = gguf.GGUFWriter(path, "qwen2", split_max_tensors=tensors_a_part)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokens))])
    writer.add_token_merges(["z z"])
    writer.add_eos_token_id(model.tokenizer.eos_token_id)
    if model.tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(model.tokenizer.pad_token_id)
    writer.add_chat_template(model.tokenizer.chat_template)
    weights = {}
    for name, value in model.model.state_dict().items():
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours + ".", theirs + ".")
        weights[name] = value.float().numpy()
    for name, value in changed(weights).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)
