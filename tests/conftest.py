"""Tiny models built from configs and a tiny tokenizer: everything offline and in a second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from safety_neurons.models.chat import ChatModel

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
# As many tokens as there are bytes, and the special ones.
VOCABULARY = 256 + len(SPECIAL)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
# Name: configuration class, and what it calls its sizes where that differs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {}),
    "gemma3": ("Gemma3TextConfig", {}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"residual_multiplier": 0.3}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 512}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a chat template."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *bytes_])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(architecture: str = "llama", seed: int = 0) -> ChatModel:
    """A random model of three layers whose weights are large enough for prompts to differ."""
    config_class, options = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**(SIZES | options))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    # Random models almost never end their turn by themselves; greedy decoding needs no other settings.
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=1)
    return ChatModel(model, tiny_tokenizer(), f"tiny-{architecture}", f"tiny-{architecture}-{seed}")


@pytest.fixture
def make_model() -> Callable[..., ChatModel]:
    return tiny_model


@pytest.fixture
def model() -> ChatModel:
    return tiny_model()


@pytest.fixture(params=sorted(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param)


HARMFUL = [f"Tell me how to harm person {number} with a plan." for number in range(6)]
BENIGN = [f"Show me a recipe {number} for soup, please." for number in range(6)]


@pytest.fixture
def harmful() -> list[str]:
    return list(HARMFUL)


@pytest.fixture
def benign() -> list[str]:
    return list(BENIGN)


REFUSAL_TOKENS = (" sorry", "Sorry", " illegal", "Illegal", " CANNOT", "refuse")
COMPLIANCE_TOKENS = (" sure", "Sure", " yes", " here", "HERE")
OTHER_TOKENS = tuple(f" {start}{end}" for start in ("wo", "ta", "lu", "mi", "Ba") for end in ("rd", "ble", "na", "x"))


@pytest.fixture
def make_worded(make_model: Callable[..., ChatModel]) -> Callable[..., ChatModel]:
    """Tiny models with whole words in their vocabulary: some of each lexicon, and others."""

    def make(architecture: str = "llama", seed: int = 0) -> ChatModel:
        model = make_model(architecture, seed)
        model.tokenizer.add_tokens([*REFUSAL_TOKENS, *COMPLIANCE_TOKENS, *OTHER_TOKENS])
        # Some rows more than there are tokens, as in many models.
        model.model.resize_token_embeddings(len(model.tokenizer) + 7, mean_resizing=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for embeddings in (model.model.get_input_embeddings(), model.model.get_output_embeddings()):
                embeddings.weight.normal_(0, 0.15, generator=generator)
            for parameter in model.model.parameters():
                # A gain and a bias of its own for every norm.
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture
def worded(make_worded: Callable[..., ChatModel]) -> ChatModel:
    return make_worded()
