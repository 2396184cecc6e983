"""GGUF files: the parts of a split one, and their conversion to a transformers folder."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors
from safety_neurons.core.folders import follow_umask
from safety_neurons.core.plugins import listed
from safety_neurons.core.temporary import temporary_path
from safety_neurons.models.gguf_header import ADVICE, HeaderError, read_header
from safety_neurons.models.model_files import is_panic
from safety_neurons.models.unpacked import record

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel

# How llama.cpp names the parts of a split file.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
# Llama 3.x scales its rotary frequencies; a GGUF file holds only the result.
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def gguf_parts(path: Path) -> list[Path]:
    """The parts of a GGUF file in order, whichever of them is named; the file itself if it is not split.

    Raises:
        SafetyNeuronsError: the file or a part does not exist.
    """
    match = _PART.fullmatch(path.name)
    count = int(match["count"]) if match else 1
    if match is None or not 1 <= int(match["number"]) <= count:
        parts = [path]
    else:
        names = (f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}" for number in range(1, count + 1))
        # Some disks and downloads change the case of names.
        present = {one.name.casefold(): one for one in path.parent.glob("*")}
        parts = [present.get(name.casefold(), path.with_name(name)) for name in names]
    missing = [part.name for part in parts if not part.is_file()]
    if path.name in missing:
        raise SafetyNeuronsError(f"The model file {path} does not exist.")
    if missing:
        raise SafetyNeuronsError(
            f"{path} is one of the {count} parts of a model, of which {path.parent.resolve()} lacks "
            f"{listed(missing)}. Download all parts into one folder."
        )
    return parts


def join(parts: Sequence[Path], whole: Path) -> None:
    """Write the parts of a split GGUF file as one file.

    Raises:
        SafetyNeuronsError: the parts are not those of one file.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    # Memory-mapped: tensor by tensor is copied.
    readers = [GGUFReader(part) for part in parts]
    for number, (reader, part) in enumerate(zip(readers, parts, strict=True)):
        said = _integer(reader, NUMBER), _integer(reader, COUNT)
        if said != (number, len(parts)):
            raise SafetyNeuronsError(
                f"{part} is not part {number + 1} of {len(parts)}: it says {NUMBER}={said[0]} and {COUNT}={said[1]}. "
                "Give the parts the names that they had."
            )
    first, tensors = readers[0], [tensor for reader in readers for tensor in reader.tensors]
    expected = _integer(first, TENSORS)
    if expected not in (None, len(tensors)):
        raise SafetyNeuronsError(
            f"{parts[0]} says that its {len(parts)} parts hold {expected} tensors, and they hold {len(tensors)}. "
            "Download all parts again, from one place."
        )
    writer = GGUFWriter(None, first.fields["general.architecture"].contents(), endianess=first.endianess)
    writer.data_alignment = int(first.alignment)
    for name, field in first.fields.items():
        # The writer adds the counts and the architecture by itself.
        if name.startswith("GGUF.") or name in (NUMBER, COUNT, TENSORS, "general.architecture"):
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        # The writer refuses empty arrays.
        if not array or len(field.data):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if array else None)
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file(whole)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=first.endianess)
    writer.close()


def convert(gguf: Sequence[Path], folder: Path, name: str) -> Path:
    """Dequantize a GGUF file, or the parts of one, into a transformers folder that appears only when it is complete.

    Args:
        name: what the user calls the model.

    Raises:
        SafetyNeuronsError: it cannot be read, or its tensors are not exactly the weights of a model.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(folder) as temporary:
        with disk_errors(folder):
            temporary.mkdir()
        try:
            source = gguf[0]
            for part in gguf:
                read_header(part)
            if len(gguf) > 1:
                source = temporary / "joined.gguf"
                with disk_errors(source):
                    join(gguf, source)
            model, tokenizer = _read(source, name)
        except SafetyNeuronsError:
            raise
        except OSError as error:
            raise SafetyNeuronsError(f"{name} cannot be unpacked: {error}.") from error
        except HeaderError as error:
            raise SafetyNeuronsError(f"{name} is not a GGUF file that can be read: {error}. {ADVICE}") from error
        except BaseException as error:
            # The file is untrusted input, and its readers raise anything: struct.error, KeyError, and a bare Exception
            # or a panic in the tokenizers library.
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise SafetyNeuronsError(
                f"{name} is not a GGUF file that transformers can read ({type(error).__name__}: {error}). "
                "Check that the download is complete and that the architecture is supported."
            ) from error
        with disk_errors(folder):
            (temporary / "joined.gguf").unlink(missing_ok=True)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            follow_umask(temporary)
            record(temporary)
            if not folder.exists():
                os.rename(temporary, folder)
    return folder


def _read(gguf: Path, name: str) -> tuple["PreTrainedModel", Any]:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from safety_neurons.models.checkpoint import check_weights
    from safety_neurons.models.declared_sizes import bounded_build, check_declared

    stored, integers = read_header(gguf)
    check_declared(name, integers, stored)
    reader = GGUFReader(gguf)
    count = _integer(reader, COUNT)
    if count not in (None, 1):
        raise SafetyNeuronsError(
            f"{name} is part {(_integer(reader, NUMBER) or 0) + 1} of a model that is split into {count} files, and "
            f"its name does not say so. Put all parts into one folder, named MODEL-00001-of-{count:05}.gguf and so on."
        )
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    with bounded_build(stored):
        model, info = AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            # Reported by `check_weights`.
            ignore_mismatched_sizes=True,
        )
    check_weights(name, info)
    _check_nothing_is_left_over(reader, model, name)
    _set_rope_scaling(reader, model, name)
    # A model loaded from GGUF cannot be saved while it is marked as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _check_nothing_is_left_over(reader: "GGUFReader", model: "PreTrainedModel", name: str) -> None:
    """Check that the model has a place for every value in the file.

    For most architectures, transformers drops the tensors that it does not know without reporting them.

    Raises:
        SafetyNeuronsError: the file holds more than the model.
    """
    architecture = reader.fields["general.architecture"].contents()
    if architecture in _checked_by_transformers():
        return
    # Tied weights share their memory.
    places = {value.data_ptr(): value.numel() for value in model.state_dict().values()}
    tensors = [tensor for tensor in reader.tensors if tensor.name != ROPE_FACTORS]
    left = sum(int(tensor.n_elements) for tensor in tensors) - sum(places.values())
    if left > 0:
        layers = 1 + max(
            (int(found[1]) for each in tensors if (found := re.match(r"blk\.(\d+)\.", each.name))), default=-1
        )
        raise SafetyNeuronsError(
            f"{name} holds {left:,} values in its {len(tensors)} tensors ({layers} layers) for which transformers' "
            f"{type(model).__name__} ({model.config.num_hidden_layers} layers) has no place. Loaded without them, it "
            "would be another model. Use its safetensors version."
        )


def _checked_by_transformers() -> Collection[str]:
    """The architectures for which transformers reports the tensors that are left over."""
    try:
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    except ImportError:
        # Older versions never do.
        return ()
    return tuple(GGUF_ARCHS)


def _set_rope_scaling(reader: "GGUFReader", model: "PreTrainedModel", name: str) -> None:
    """Set the rotary scaling of Llama 3.x, which transformers does not read from GGUF files.

    Raises:
        SafetyNeuronsError: the file's factors are not those of Llama 3.x.
    """
    import numpy
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tensor = next((tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    if tensor is None or not (tensor.data != 1).any():
        return
    config = model.config
    inner = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = config.rope_parameters["rope_theta"] ** (-numpy.arange(0, inner, 2) / inner)
    scaling = {"rope_type": "llama3", "factor": float(tensor.data.max()), **LLAMA3_ROPE}
    config.rope_parameters = {**config.rope_parameters, **scaling}
    expected = frequencies / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    if expected.shape != tensor.data.shape or not numpy.allclose(tensor.data, expected, rtol=1e-3):
        raise SafetyNeuronsError(
            f"{name} scales its rotary positions ({ROPE_FACTORS}) in a way that is unknown here. Use its safetensors "
            "version."
        )


def _integer(reader: "GGUFReader", key: str) -> int | None:
    field = reader.fields.get(key)
    return None if field is None else int(field.contents())
