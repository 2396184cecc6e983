"""Tiny models built from configs and a tiny tokenizer: everything offline and in a second."""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from safety_neurons.models.chat import ChatModel

# A width that is there when the console is made would hold for all tests.
os.environ.pop("COLUMNS", None)
# Threads over tensors this small only wait for each other, for many times as long where the cores are shared.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, so that the others fill the gaps when the tests are shared out among processes."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None and item.path.name not in SLOW)


@pytest.fixture(scope="session")
def cores() -> int:
    """How many cores a process of the tests has for itself."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


# Files that wait for processes of their own.
SLOW = ("test_processes.py", "test_tune_processes.py", "test_grid_processes.py", "test_auto_tune.py")
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
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
# For those that do not divide the hidden size by the number of heads.
HEADS = SIZES | {"head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

# Name: configuration class and what it is called with.
Architectures = dict[str, tuple[str, dict[str, Any]]]

GATED: Architectures = {
    "llama": ("LlamaConfig", SIZES),
    "mistral": ("MistralConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", HEADS),
    "granite": ("GraniteConfig", SIZES | {"residual_multiplier": 0.3}),
}
FUSED: Architectures = {
    "phi3": ("Phi3Config", SIZES),
    "glm": ("GlmConfig", HEADS),
}
NOT_GATED: Architectures = {
    "gpt2": ("GPT2Config", SIZES | {"n_inner": 48, "n_positions": 512}),
    "opt": ("OPTConfig", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "falcon": ("FalconConfig", SIZES | {"ffn_hidden_size": 48}),
    "bloom": ("BloomConfig", SIZES),
}
POST_NORM: Architectures = {
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3": ("Gemma3TextConfig", HEADS),
    "olmo2": ("Olmo2Config", SIZES),
    "glm4": ("Glm4Config", HEADS),
}
MIXTURES: Architectures = {
    "mixtral": ("MixtralConfig", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeConfig", SIZES | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", HEADS | EXPERTS | {"num_experts": 4}),
    "olmoe": ("OlmoeConfig", SIZES | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOssConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    # The first layer is dense; the others choose a group of experts first, then experts in it.
    "deepseek_v3": (
        "DeepseekV3Config",
        SIZES
        | EXPERTS
        | {"num_local_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
        | {"num_key_value_heads": 4},
    ),
}
# Models that see images too: only the half that writes has neurons to find.
WITH_VISION: Architectures = {
    "gemma3_vision": (
        "Gemma3Config",
        {"text_config": HEADS, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 260},
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": SIZES | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_index": 260,
        },
    ),
}
DENSE = GATED | FUSED | NOT_GATED | POST_NORM | WITH_VISION
ARCHITECTURES = DENSE | MIXTURES
# One of each kind of MLP, for tests that would say the same of its relatives.
ONE_OF_EACH_DENSE = ("llama", "phi3", "gpt2", "opt", "gemma3")
ONE_OF_EACH = (*ONE_OF_EACH_DENSE, "qwen2_moe", "gpt_oss")


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


def tiny_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> ChatModel:
    """A random model of three layers whose weights are large enough for prompts to differ.

    `changes` are made to the architecture's options.
    """
    config_class, options = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**copy.deepcopy(options | changes))
    auto = transformers.AutoModelForImageTextToText if "vision_config" in options else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
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


@pytest.fixture(params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param)


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> ChatModel:
    """A mixture of experts."""
    return tiny_model(request.param)


@pytest.fixture(params=DENSE)
def tunable_model(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param)


@pytest.fixture(params=ONE_OF_EACH)
def one_of_each(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param)


@pytest.fixture(params=ONE_OF_EACH_DENSE)
def one_of_each_tunable(request: pytest.FixtureRequest) -> ChatModel:
    return tiny_model(request.param)


class Packed(nn.Linear):
    """A weight in whole steps of one size, two of them in each byte: codes from -7 to 7."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        values = linear.weight.detach()
        self.step = float(values.abs().max() / 7)
        codes = ((values / self.step).round() + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter((codes[::2] * 16 + codes[1::2])[:, None], requires_grad=False)
        self.bias = linear.bias

    def unpacked(self) -> Tensor:
        codes = torch.stack([self.weight[:, 0] // 16, self.weight[:, 0] % 16], 1).flatten().float() - 8
        return (codes * self.step).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = PackedProduct.apply(input, self.unpacked().to(input.dtype))
        return product if self.bias is None else product + self.bias


class PackedProduct(torch.autograd.Function):
    """Returns a view, which autograd forbids to change in place, as bitsandbytes may."""

    @staticmethod
    def forward(context: Any, given: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(weight)
        return (given.reshape(-1, given.shape[-1]) @ weight.T).view(*given.shape[:-1], -1)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (weight,) = context.saved_tensors
        return gradients[0] @ weight, None


@pytest.fixture
def pack() -> Callable[[ChatModel], ChatModel]:
    """Packs the matrices of a model into a format of our own, as bitsandbytes does with its: all but the head."""

    def packed(model: ChatModel) -> ChatModel:
        for module in list(model.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and name != "lm_head":
                    setattr(module, name, Packed(child))
        return model

    return packed


@pytest.fixture
def naive_activations() -> Callable[[ChatModel, Tensor], list[tuple[Tensor, Tensor]]]:
    return activations_by_hand


def activations_by_hand(model: ChatModel, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per site of one sequence: activations, and what each is multiplied with when it is written [tokens, neurons].

    Without the library's hooks: experts are computed one token and one expert at a time from their raw weights and
    what the router says. Both are zero for the experts that a token is not sent to.
    """
    inputs: dict[str, tuple[Tensor, ...]] = {}
    handles = []
    for hook_point in model.hook_points:

        def note(_module: nn.Module, args: tuple[Tensor, ...], name: str = hook_point.name) -> None:
            inputs[name] = args

        handles.append(model.model.get_submodule(hook_point.name).register_forward_pre_hook(note))
    with torch.no_grad():
        model.model(input_ids=tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        found = []
        for hook_point in model.hook_points:
            module, given = model.model.get_submodule(hook_point.name), inputs[hook_point.name]
            if hook_point.blocks == 1:
                values = given[0].reshape(-1, hook_point.width)
                found.append((values, torch.ones_like(values)))
            else:
                found.append(_experts_by_hand(module, hook_point.width, *given))
    return found


def _experts_by_hand(
    experts: Any, width: int, hidden: Tensor, chosen: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    values, routing = torch.zeros(len(hidden), width), torch.zeros(len(hidden), width)
    inner = width // len(experts.down_proj)
    for token in range(len(hidden)):
        for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
            read = experts.gate_up_proj[expert]
            if hasattr(experts, "gate_up_proj_bias"):
                # gpt-oss: gate and up take turns, and are clamped.
                mixed = hidden[token] @ read + experts.gate_up_proj_bias[expert]
                gate, up = mixed[::2].clamp(max=7), mixed[1::2].clamp(-7, 7)
                activations = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            else:
                gate, up = (read @ hidden[token]).chunk(2)
                activations = functional.silu(gate) * up
            values[token, expert * inner : (expert + 1) * inner] = activations
            routing[token, expert * inner : (expert + 1) * inner] = weight
    return values, routing


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
