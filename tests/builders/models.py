"""Tiny models built from configs, and a tiny tokenizer: everything offline and in a second."""

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from safety_neurons.models.chat import ChatModel
from safety_neurons.neurons.neuron_set import NeuronSet, Provenance

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


def copied_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> ChatModel:
    """A copy of the tiny model whose hook points are found already, which takes longer than all else about it.

    For tests that do not change its modules before they use the hook points. The random numbers that follow are those
    that follow `tiny_model`.
    """
    found, random_state = _found_once(architecture, seed, tuple(changes.items()))
    torch.set_rng_state(random_state)
    return copy.deepcopy(found)


@functools.cache
def _found_once(architecture: str, seed: int, changes: tuple[tuple[str, Any], ...]) -> tuple[ChatModel, Tensor]:
    model = tiny_model(architecture, seed, **dict(changes))
    random_state = torch.get_rng_state()
    assert model.hook_points
    return model, random_state


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


def pack(model: ChatModel) -> ChatModel:
    """The model with its matrices, all but the head, in a format of our own, as bitsandbytes packs them in its own."""
    for module in list(model.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(module, name, Packed(child))
    # Without the hook points of the modules before.
    return replace(model)


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


def drawn_neurons(model: ChatModel, count: int = 12) -> NeuronSet:
    """`count` random neurons of each hook point, half of them for each side."""
    generator = torch.Generator().manual_seed(0)
    widths = tuple(hook_point.width for hook_point in model.hook_points)
    drawn = [torch.randperm(width, generator=generator)[:count] for width in widths]
    provenance = Provenance(
        model.name, model.identity, "by hand", 1.0, "layer", 0, (1,) * len(widths), model.parameters
    )
    return NeuronSet(
        tuple(layer[: count // 2].sort().values for layer in drawn),
        tuple(layer[count // 2 :].sort().values for layer in drawn),
        widths,
        tuple(hook_point.layer for hook_point in model.hook_points),
        provenance,
    )


HARMFUL = [f"Tell me how to harm person {number} with a plan." for number in range(6)]
BENIGN = [f"Show me a recipe {number} for soup, please." for number in range(6)]


REFUSAL_TOKENS = (" sorry", "Sorry", " illegal", "Illegal", " CANNOT", "refuse")
COMPLIANCE_TOKENS = (" sure", "Sure", " yes", " here", "HERE")
OTHER_TOKENS = tuple(f" {start}{end}" for start in ("wo", "ta", "lu", "mi", "Ba") for end in ("rd", "ble", "na", "x"))


def worded_model(architecture: str = "llama", seed: int = 0) -> ChatModel:
    """A tiny model with whole words in its vocabulary: some of each lexicon, and others."""
    model = tiny_model(architecture, seed)
    model.tokenizer.add_tokens([*REFUSAL_TOKENS, *COMPLIANCE_TOKENS, *OTHER_TOKENS])
    # More rows than tokens, as in many models.
    model.model.resize_token_embeddings(len(model.tokenizer) + 7, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for embeddings in (model.model.get_input_embeddings(), model.model.get_output_embeddings()):
            embeddings.weight.normal_(0, 0.15, generator=generator)
        for parameter in model.model.parameters():
            # Every norm gets its own gain and bias.
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def silent_model() -> ChatModel:
    """A model whose every answer is empty."""
    model = tiny_model("gpt2")
    body: Any = model.model
    with torch.no_grad():
        body.transformer.ln_f.weight.zero_()
        body.transformer.ln_f.bias.copy_(torch.eye(32)[0])
        body.transformer.wte.weight[1] = 9 * torch.eye(32)[0]
    return model
