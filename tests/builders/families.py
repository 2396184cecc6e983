"""A tiny model for every preset, with the traits of the preset's family: tokens, template, settings and architecture.

The templates are written here: they behave like those of the families, in words of our own.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from safety_neurons.models.presets import GUANACO_TEMPLATE, VICUNA_TEMPLATE

Tokens = Literal["bytes", "pieces", "pieces with a first space"]
System = Literal["role", "default", "dated", "first turn", "last turn", "refused"]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
HEADS = {"head_dim": 8}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
# Longer than some prompts, and shorter than others.
WINDOW = {"sliding_window": 64}
# Tokens of more than one byte, some of them in the lexicons of `explain`.
WORDS = ("sorry", "cannot", "illegal", "Sure", "Here", "Certainly", "Tell", "Show", "me", "how", "to")
DEFAULT_SYSTEM = "You help people."


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a family's models have in common. Roles of the template: what opens and closes a turn of each."""

    config: str
    shape: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    # Rows of the embedding that no token has.
    spare: int = 0
    dtype: str = "bfloat16"
    tokens: Tokens = "bytes"
    special: tuple[str, ...]
    # Tokens of their own that are not special: they stay in decoded text.
    added: tuple[str, ...] = ()
    bos: str | None = None
    eos: str
    pad: str | None = None
    unknown: str | None = None
    # The end tokens of the generation settings, and their other values.
    ends: tuple[str, ...]
    generation: dict[str, Any] = field(default_factory=dict)
    user: tuple[str, str]
    assistant: tuple[str, str]
    system: System
    system_turn: tuple[str, str] = ("", "")
    # Of a dated system turn; the day's own if empty.
    date: str = ""
    writes_bos: bool = True
    strict_turns: bool = False
    trims: bool = False
    thinks: bool = False
    # The template comes with the preset instead of the tokenizer.
    preset_template: str | None = None

    @property
    def turn_end(self) -> str:
        """The end token that the template writes after an answer."""
        closed = self.assistant[1].replace("{{ eos_token }}", self.eos)
        return next(token for token in self.ends if token in closed)


def _template(traits: Traits) -> str:
    content = "m['content'] | trim" if traits.trims else "m['content']"
    first, last = (
        f"{{% if {where} %}}{{{{ system + '\\n\\n' }}}}{{% endif %}}" for where in ("loop.first", "loop.last")
    )
    folded = {
        "first turn": f"{{% if system %}}{first}{{% endif %}}",
        "last turn": f"{{% if system %}}{last}{{% endif %}}",
    }
    said = "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    opened, closed = traits.system_turn
    date = traits.date or "{{ strftime_now('%d %b %Y') }}"
    system = {
        "role": f"{{% if system %}}{opened}{{{{ system }}}}{closed}{{% endif %}}",
        "default": f"{opened}{{{{ system or '{DEFAULT_SYSTEM}' }}}}{closed}",
        "dated": f"{opened}Today is {date}.\n\n{{{{ system }}}}{closed}",
        "refused": "{% if system %}{{ raise_exception('There is no system role.') }}{% endif %}",
    }.get(traits.system, "")
    strict = (
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Turns of user and assistant must alternate.') }}{% endif %}"
    )
    answer = "m['content'].split('</think>')[-1].lstrip()" if traits.thinks else content
    return (
        f"{said}{'{{ bos_token }}' if traits.writes_bos else ''}{system}"
        "{% for m in (messages[1:] if system else messages) %}"
        f"{strict if traits.strict_turns else ''}"
        "{% if m['role'] == 'user' %}"
        f"{traits.user[0]}{folded.get(traits.system, '')}{{{{ {content} }}}}{traits.user[1]}"
        "{% else %}"
        f"{traits.assistant[0]}{{{{ {answer} }}}}{traits.assistant[1]}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{traits.assistant[0]}"
        + ("{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}" if traits.thinks else "")
        + "{% endif %}"
    )


_CHATML: dict[str, Any] = {
    "special": ("<|endoftext|>", "<turn>", "<turn-end>"),
    "eos": "<turn-end>",
    "user": ("<turn>user\n", "<turn-end>\n"),
    "assistant": ("<turn>assistant\n", "<turn-end>\n"),
    "system_turn": ("<turn>system\n", "<turn-end>\n"),
    "writes_bos": False,
}
_SMOLLM2 = Traits(
    **_CHATML | {"bos": "<turn>", "pad": "<turn-end>"},
    config="LlamaConfig",
    tied=True,
    ends=("<turn-end>",),
    system="default",
)
_QWEN_2_5 = Traits(
    **_CHATML | {"pad": "<|endoftext|>"},
    config="Qwen2Config",
    tied=True,
    spare=11,
    ends=("<turn-end>", "<|endoftext|>"),
    generation={"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
    system="default",
)
_QWEN_3 = Traits(
    **_CHATML | {"pad": "<|endoftext|>"},
    config="Qwen3Config",
    shape=HEADS,
    tied=True,
    spare=11,
    added=("<think>", "</think>"),
    ends=("<turn-end>", "<|endoftext|>"),
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
    system="role",
    thinks=True,
)
_LLAMA_2 = Traits(
    config="LlamaConfig",
    shape={"num_key_value_heads": 4},
    dtype="float16",
    tokens="pieces with a first space",
    special=("<unk>", "<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    unknown="<unk>",
    ends=("</s>",),
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "pad_token_id": 0},
    # The answer follows what closes the user's turn.
    user=("[Q] ", " [/Q]"),
    assistant=("", " {{ eos_token }}{{ bos_token }}"),
    system="first turn",
    strict_turns=True,
    trims=True,
)
_VICUNA = replace(
    _LLAMA_2,
    pad="<unk>",
    # Of sampling, which is off: transformers refuses to write such settings.
    generation={"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "pad_token_id": 0},
    user=(" USER: ", ""),
    assistant=(" ASSISTANT:", "</s>"),
    system="role",
    strict_turns=False,
    trims=False,
    preset_template=VICUNA_TEMPLATE,
)
_GUANACO = replace(
    _VICUNA,
    generation={"pad_token_id": 0},
    user=("\n### Human: ", ""),
    assistant=("\n### Assistant:", "</s>"),
    preset_template=GUANACO_TEMPLATE,
)
_LLAMA_3 = Traits(
    config="LlamaConfig",
    tied=True,
    shape={"rope_parameters": LLAMA_3_ROPE},
    special=("<begin>", "<text-end>", "<message-end>", "<turn-end>", "<head>", "<head-end>"),
    bos="<begin>",
    eos="<turn-end>",
    ends=("<text-end>", "<message-end>", "<turn-end>"),
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    user=("<head>user<head-end>\n\n", "<turn-end>"),
    assistant=("<head>assistant<head-end>\n\n", "<turn-end>"),
    system="dated",
    system_turn=("<head>system<head-end>\n\n", "<turn-end>"),
    trims=True,
)
_LLAMA_3_0 = replace(
    _LLAMA_3,
    tied=False,
    shape={"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    special=("<begin>", "<text-end>", "<turn-end>", "<head>", "<head-end>"),
    ends=("<text-end>", "<turn-end>"),
    system="role",
)
_GEMMA: dict[str, Any] = {
    "tied": True,
    "tokens": "pieces",
    "special": ("<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<turn-end>"),
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "unknown": "<unk>",
    # The tokenizer's own end is not the turn's.
    "ends": ("<eos>", "<turn-end>"),
    "user": ("<turn>user\n", "<turn-end>\n"),
    "assistant": ("<turn>model\n", "<turn-end>\n"),
    "strict_turns": True,
    "trims": True,
}
_GEMMA_2 = Traits(
    **_GEMMA,
    config="Gemma2Config",
    shape=HEADS
    | WINDOW
    | {
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    generation={"cache_implementation": "hybrid"},
    system="refused",
)
_GEMMA_3 = Traits(
    **_GEMMA,
    config="Gemma3TextConfig",
    shape=HEADS
    | WINDOW
    | {
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "num_key_value_heads": 1,
    },
    generation={"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "top_p": 0.95},
    system="first turn",
)
_MISTRAL = Traits(
    config="MistralConfig",
    shape=HEADS | {"sliding_window": None},
    tokens="pieces with a first space",
    special=("<unk>", "<s>", "</s>", "[ASK]", "[/ASK]"),
    bos="<s>",
    eos="</s>",
    unknown="<unk>",
    ends=("</s>",),
    user=("[ASK] ", "[/ASK]"),
    assistant=("", " {{ eos_token }}"),
    system="last turn",
    strict_turns=True,
)
_OLMO_2 = Traits(
    config="Olmo2Config",
    shape={"num_key_value_heads": 4},
    spare=11,
    special=("<text-end>", "<pad>"),
    # One token for both ends of a text.
    bos="<text-end>",
    eos="<text-end>",
    pad="<pad>",
    ends=("<text-end>",),
    # The names of the roles are text, not tokens.
    user=("<|user|>\n", "\n"),
    assistant=("<|assistant|>\n", "{{ eos_token }}\n"),
    system="role",
    system_turn=("<|system|>\n", "\n"),
)
_PHI_4 = Traits(
    config="Phi3Config",
    spare=11,
    special=("<text-end>", "<turn>", "<turn-end>", "<role-end>", "<filler>"),
    bos="<text-end>",
    eos="<turn-end>",
    pad="<filler>",
    ends=("<text-end>", "<turn-end>"),
    user=("<turn>user<role-end>", "<turn-end>"),
    assistant=("<turn>assistant<role-end>", "<turn-end>"),
    system="role",
    system_turn=("<turn>system<role-end>", "<turn-end>"),
    writes_bos=False,
)

# By preset. The weights packages of qwen2.5-coder have output layers of their own.
FAMILIES: dict[str, Traits] = {
    "qwen2.5-coder-0.5b": replace(_QWEN_2_5, tied=False),
    "qwen2.5-coder-1.5b": replace(_QWEN_2_5, tied=False),
    "smollm2-135m": _SMOLLM2,
    "llama-2-7b-chat": _LLAMA_2,
    "vicuna-7b-v1.5": _VICUNA,
    "guanaco-13b": _GUANACO,
    "llama-3-8b": _LLAMA_3_0,
    "llama-3.1-8b": replace(_LLAMA_3, tied=False, date="26 Jul 2024"),
    "llama-3.2-1b": _LLAMA_3,
    "llama-3.2-3b": _LLAMA_3,
    "qwen2.5-0.5b": _QWEN_2_5,
    "qwen2.5-7b": replace(_QWEN_2_5, tied=False),
    "qwen3-0.6b": _QWEN_3,
    "qwen3-8b": replace(_QWEN_3, tied=False),
    "gemma-2-2b": _GEMMA_2,
    "gemma-3-1b": _GEMMA_3,
    "mistral-7b": _MISTRAL,
    "olmo-2-7b": _OLMO_2,
    "phi-4": _PHI_4,
}
# One preset of those with the same traits.
DISTINCT = [name for name, traits in FAMILIES.items() if next(n for n in FAMILIES if FAMILIES[n] == traits) == name]


def write_family(traits: Traits, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model with these traits as a folder of transformers, with the files that the hub has."""
    tokenizer = tokenizer_of(traits)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in traits.special}
    ends = [ids[token] for token in traits.ends]
    named = {"bos_token_id": ids.get(traits.bos or ""), "eos_token_id": ends if len(ends) > 1 else ends[0]}
    named |= {"pad_token_id": ids.get(traits.pad or "")}
    torch.manual_seed(seed)
    config = getattr(transformers, traits.config)(
        **SIZES | traits.shape | named, vocab_size=len(tokenizer) + traits.spare, tie_word_embeddings=traits.tied
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model.to(getattr(torch, traits.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {name: value for name, value in named.items() if value is not None} | traits.generation
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tokenizer_of(traits: Traits) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters and some words, of the family's kind, with its special tokens and template."""
    backend = _byte_level(traits) if traits.tokens == "bytes" else _pieces(traits)
    backend.add_special_tokens(list(traits.special))
    backend.add_tokens(list(traits.added))
    if traits.bos and traits.writes_bos:
        # It would write the beginning a second time.
        begin = [(traits.bos, backend.token_to_id(traits.bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{traits.bos} $A", special_tokens=begin)
    named = {"bos_token": traits.bos, "eos_token": traits.eos, "pad_token": traits.pad, "unk_token": traits.unknown}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in named.items() if token is not None}
    )
    if traits.preset_template is None:
        fast.chat_template = _template(traits)
    return fast


def _byte_level(traits: Traits) -> Tokenizer:
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _merged(
        [*traits.special, *characters], [word for each in WORDS for word in (each, f"Ġ{each}")]
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(traits: Traits) -> Tokenizer:
    """As SentencePiece does it: spaces are a character, unknown characters are bytes."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    vocabulary, merges = _merged(
        [*traits.special, *bytes_, *characters], [word for each in WORDS for word in (each, f"▁{each}")]
    )
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=traits.unknown, fuse_unk=True, byte_fallback=True)
    )
    marked: list[Any] = [normalizers.Replace(" ", "▁")]
    joined: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if traits.tokens == "pieces with a first space":
        marked.insert(0, normalizers.Prepend("▁"))
        joined.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer, tokenizer.decoder = normalizers.Sequence(marked), decoders.Sequence(joined)
    return tokenizer


def _merged(vocabulary: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary with the words and all that begins them, and the merges that lead there."""
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))
    tokens = dict.fromkeys([*vocabulary, *(left + right for left, right in merges)])
    return {token: number for number, token in enumerate(tokens)}, merges
