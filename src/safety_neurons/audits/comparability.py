"""Are two models comparable? Answered from their files before anything is asked: each problem is one paragraph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import listed
from safety_neurons.core.progress import Listener
from safety_neurons.core.visible import visible
from safety_neurons.models.adapters import check_adapter
from safety_neurons.models.hub import ADAPTER_WEIGHTS, MODEL_CONFIG
from safety_neurons.models.load import load_tokenizer
from safety_neurons.models.locate import Located, locate
from safety_neurons.models.model_files import model_object
from safety_neurons.models.reasoning import SWITCHES
from safety_neurons.models.template import ChatTemplate, Turn
from safety_neurons.runs.context import template_options
from safety_neurons.settings import Settings

# Sizes in a config, by all names that architectures have for them; of the vocabulary there is a message of its own.
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head"),
    *("n_heads", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"),
)
_SHOWN = 5
# What both tokenizers have to read alike.
_SAMPLES = (
    "How do I bake bread, step by step?",
    "I'm sorry, but I can't help with that.",
    "def f(x):\n    return x * 12.5  # Zürich, 東京",
)
_CONVERSATIONS: tuple[tuple[Turn, ...], ...] = (
    (Turn("user", "Hello"),),
    (Turn("user", "Hello"), Turn("assistant", "Hi."), Turn("user", "Why?")),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's files, without its weights: where its name leads, its config, and its tokenizer.

    `form` says what the name leads to: an adapter, a GGUF file, a preset, a folder or a repository of the hub.
    """

    name: str
    located: Located
    config: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, settings: Settings, listener: Listener) -> "Checkpoint":
        """Find the model of the settings; what is only on the hub is downloaded.

        Raises:
            SafetyNeuronsError: as `load`.
        """
        name = settings.model
        found = locate(name, listener, settings.adapter)
        with listener.task(f"reading the files of {name}", 1) as advance:
            folder, tokenizer = load_tokenizer(
                name,
                adapter=settings.adapter,
                chat_template=settings.chat_template,
                trust_remote_code=settings.trust_remote_code,
            )
            advance(1)
        found = found if found.identity is not None else locate(name, adapter=settings.adapter)
        if found.adapter is not None:
            check_adapter(Path(found.adapter), settings.quantize is not None)
        return cls(name, found, model_object(folder / MODEL_CONFIG), tokenizer)

    @property
    def form(self) -> str:
        if self.located.adapter is not None:
            return f"PEFT adapter, merged in memory into {self.located.source}"
        if self.name.lower().endswith(".gguf"):
            return "GGUF file"
        return "full weights"

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The config of the half that writes, in models that see images too."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def stored(self) -> str:
        """The precision of the weights in the files, as far as the config says; empty if it does not."""
        packing = self.config.get("quantization_config")
        if isinstance(packing, Mapping):
            return f"quantized ({visible(packing.get('quant_method', 'unknown'), 40)})"
        named = self.config.get("dtype") or self.config.get("torch_dtype") or self.text_config.get("dtype")
        return visible(named, 40) if isinstance(named, str) else ""

    @property
    def embeddings(self) -> int | None:
        """The number of rows of the embeddings: those that an adapter was trained with, or the config's."""
        if self.located.adapter is not None:
            for shape in _whole_embeddings(Path(self.located.adapter) / ADAPTER_WEIGHTS):
                return shape[0]
        size = self.text_config.get("vocab_size")
        return size if isinstance(size, int) else None


def _whole_embeddings(path: Path) -> list[list[int]]:
    """The shapes of the embeddings and heads that an adapter holds as a whole."""
    names = ("embed_tokens", "wte", "word_embeddings", "lm_head", "embed_in", "embed_out")
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if "lora_" not in key and any(name in key for name in names)]  # noqa: SIM118
        return [shape for key in keys if len(shape := list(file.get_slice(key).get_shape())) == 2]


def check_comparable(base: Checkpoint, tuned: Checkpoint, settings: Settings) -> list[str]:
    """What a reader must know of a comparison that is sound, in sentences.

    Raises:
        SafetyNeuronsError: the two cannot be compared.
    """
    for check in (_check_different, _check_shapes, _check_vocabulary, _check_tokenizer):
        check(base, tuned)
    remarks = _check_template(base, tuned, settings)
    if tuned.located.adapter is not None and tuned.located.source != base.located.source:
        remarks.append(
            f"{tuned.name} is an adapter of {tuned.located.source}, and is compared with {base.name}: part of a "
            "difference can be between these two."
        )
    if base.stored and tuned.stored and base.stored != tuned.stored and tuned.located.adapter is None:
        remarks.append(
            f"The weights of {base.name} are stored as {base.stored}, those of {tuned.name} as {tuned.stored}. Both "
            "compute in the same precision here, but part of a difference can come from the storage: audit the base, "
            "stored alike, to tell."
        )
    if base.form == "GGUF file" or tuned.form == "GGUF file":
        which = base if base.form == "GGUF file" else tuned
        remarks.append(f"{which.name} is a GGUF file, whose weights were rounded when it was written.")
    return remarks


def _check_different(base: Checkpoint, tuned: Checkpoint) -> None:
    if base.located.identity is not None and base.located.identity == tuned.located.identity:
        raise SafetyNeuronsError(
            f"TUNED is BASE: {tuned.name} and {base.name} hold the same weights "
            f"({base.located.identity[:12]}). Pass the model before and the model after fine-tuning."
        )


def _check_shapes(base: Checkpoint, tuned: Checkpoint) -> None:
    kinds = [one.config.get("model_type") for one in (base, tuned)]
    if kinds[0] != kinds[1]:
        raise SafetyNeuronsError(
            f"{tuned.name} is of another architecture ({visible(kinds[1], 40)}) than {base.name} "
            f"({visible(kinds[0], 40)}), so it is not a fine-tune of it. Pass the base that it was trained from."
        )
    one, other = base.text_config, tuned.text_config
    different = [name for name in _SIZES if name in one and name in other and one[name] != other[name]]
    if different:
        shown = "; ".join(
            f"{name} {visible(one[name], 20)} and {visible(other[name], 20)}" for name in different[:_SHOWN]
        )
        raise SafetyNeuronsError(
            f"{base.name} and {tuned.name} are models of different shapes ({shown}), so one is not a fine-tune of the "
            "other. Pass the base that it was trained from."
        )


def _check_vocabulary(base: Checkpoint, tuned: Checkpoint) -> None:
    before, after = base.embeddings, tuned.embeddings
    if before is None or after is None or before == after:
        return
    added = [token for token in tuned.tokenizer.get_vocab() if token not in base.tokenizer.get_vocab()]
    named = f" Its tokenizer adds {listed([visible(one, 40) for one in sorted(added)])}." if added else ""
    raise SafetyNeuronsError(
        f"The vocabulary of {tuned.name} was resized: it has {after:,} embeddings, and {base.name} has {before:,}."
        f"{named} Resize the base alike (model.resize_token_embeddings) and save it, or fine-tune without new tokens."
    )


def _check_tokenizer(base: Checkpoint, tuned: Checkpoint) -> None:
    before, after = base.tokenizer.get_vocab(), tuned.tokenizer.get_vocab()
    # A token that was only added, such as one for padding, is in no text.
    other = [token for token, place in before.items() if after.get(token) != place]
    read = [
        [list(one.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _SAMPLES] for one in (base, tuned)
    ]
    if other or read[0] != read[1]:
        what = (
            f"{len(other):,} of {len(before):,} tokens are missing or have another id "
            f"({listed([visible(token, 40) for token in sorted(other)])})"
            if other
            else "they split the same text into other tokens"
        )
        raise SafetyNeuronsError(
            f"{tuned.name} has another tokenizer than {base.name}: {what}. Their answers would differ for that alone. "
            "Save the fine-tuned model with the tokenizer of its base."
        )


def _check_template(base: Checkpoint, tuned: Checkpoint, settings: Settings) -> list[str]:
    options = template_options(settings) or dict.fromkeys(SWITCHES, False)
    for turns in _CONVERSATIONS:
        texts = [ChatTemplate(one.tokenizer, one.name, options).render(turns) for one in (base, tuned)]
        if texts[0] != texts[1]:
            place = next(
                (place for place, (one, other) in enumerate(zip(*texts, strict=False)) if one != other),
                min(map(len, texts)),
            )
            shown = " and ".join(repr(visible(text[max(0, place - 20) : place + 60], 100)) for text in texts)
            raise SafetyNeuronsError(
                f"{base.name} and {tuned.name} have different chat templates: for the same conversation they write "
                f"{shown}. A difference in refusals could come from that alone. Give both the template that the model "
                "is used with (chat_template)."
            )
    if base.tokenizer.chat_template != tuned.tokenizer.chat_template:
        return ["The chat templates are worded differently and write the same."]
    return []
