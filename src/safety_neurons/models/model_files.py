"""Whether the files of a model's or an adapter's folder are what their names say, answered without reading weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import MOST_BYTES_OF_WEIGHTS, open_regular, read_object, read_text
from safety_neurons.core.plugins import listed
from safety_neurons.models.growth import check_growth
from safety_neurons.models.hub import ADAPTER_CONFIG, GET_AGAIN, MODEL_CONFIG, WEIGHTS, WEIGHTS_INDEX, shards

_OBJECTS = (MODEL_CONFIG, ADAPTER_CONFIG, "generation_config.json", "tokenizer_config.json", "tokenizer.json")
# What the libraries read, by the end of its name.
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_POINTER = b"version https://git-lfs"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_MOST_BYTES, _MOST_CARD_BYTES = 1 << 28, 1 << 22


def check_files(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Check what would make the libraries fail later without naming the file, hang, or run code.

    Args:
        trust_remote_code: kernels that the config names may be downloaded and run.

    Raises:
        SafetyNeuronsError: a file of a model or adapter is missing, empty, broken, too large, a pointer of Git LFS, or
            not a regular file, the weights are in files that are not read, or a config names code to run.
    """
    files = _regular_files(folder)
    for path in files:
        if path.name in _OBJECTS or path.suffix == ".safetensors":
            check_not_pointer(path)
            if not path.stat().st_size:
                raise SafetyNeuronsError(f"{path} is empty. {GET_AGAIN}")
        if path.name in _OBJECTS:
            _check_object(path, trust_remote_code)
        if path.suffix == ".jinja":
            read_text(path, GET_AGAIN)
    if not (folder / MODEL_CONFIG).exists() or (folder / WEIGHTS).exists():
        return
    if (folder / WEIGHTS_INDEX).exists():
        weight_files(folder)
        return
    weights = [path.name for path in files if path.suffix == ".safetensors"]
    pickled = [path.name for path in files if path.suffix in _PICKLED]
    if weights:
        what = f"it has weights in {listed(weights)}, and no {WEIGHTS_INDEX} that says what is in them. Get that, too."
    elif pickled:
        what = (
            f"its weights are pickled ({listed(pickled)}), and reading such files can run code. Get the model as "
            "safetensors, or convert it with save_pretrained of transformers."
        )
    else:
        what = f"it has no weights ({WEIGHTS}). Download them as well."
    raise SafetyNeuronsError(f"The model folder {folder} cannot be read: {what}")


def _regular_files(folder: Path) -> list[Path]:
    """The files in a folder, and chat templates in folders of their own, links followed.

    Raises:
        SafetyNeuronsError: one with a name that the libraries read is a folder, a pipe, a device, a link that leads
            nowhere, unreadable or too large.
    """
    found = []
    for path in [*sorted(folder.iterdir()), *sorted(folder.glob("*/*.jinja"))]:
        if path.suffix in _READ:
            with open_regular(path, GET_AGAIN, MOST_BYTES_OF_WEIGHTS if path.suffix == ".safetensors" else _MOST_BYTES):
                found.append(path)
        elif path.is_file():
            found.append(path)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a model.

    Raises:
        SafetyNeuronsError: the index is broken, or names a file that is missing, outside the folder or pickled.
    """
    index = folder / WEIGHTS_INDEX
    # transformers prefers the whole file.
    if (folder / WEIGHTS).exists() or not index.exists():
        return [folder / WEIGHTS]
    names = sorted(set(shards(index).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SafetyNeuronsError(
                f"{index} names {name!r} as a file with weights. Only safetensors files in the same folder are read. "
                f"{GET_AGAIN}"
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise SafetyNeuronsError(
            f"The model folder {folder} cannot be read: it lacks {listed(missing) or 'weights'}, which {index.name} "
            "names. Download them as well."
        )
    return [folder / name for name in names]


def model_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. Infinity is allowed, which some configs hold.

    Raises:
        SafetyNeuronsError: it holds something else, or cannot be read.
    """
    return read_object(path, GET_AGAIN, _MOST_BYTES, finite=False)


def check_card(path: Path) -> None:
    """Raise SafetyNeuronsError if a model card is not a text file of the usual size."""
    read_text(path, GET_AGAIN, _MOST_CARD_BYTES)


def _check_object(path: Path, trust_remote_code: bool) -> None:
    value = model_object(path)
    if path.name == "tokenizer.json":
        check_growth(path, value)
    if path.name == MODEL_CONFIG:
        if "transformers_weights" in value:
            raise SafetyNeuronsError(
                f"{path} names the file of its weights (transformers_weights), which is not read. Rename the weights "
                f"to {WEIGHTS} and remove that entry."
            )
        if not trust_remote_code and (kernels := sorted(_kernels(value))):
            raise SafetyNeuronsError(
                f"{path} asks for code from elsewhere to run the model with ({listed(kernels)}). Remove that entry, "
                "or allow code that comes with a model: trust_remote_code."
            )


def _kernels(value: Any) -> Iterator[str]:
    """The kernels, from the hub or a folder, that a config or a config inside it names."""
    pending = [("", value)]
    while pending:
        key, each = pending.pop()
        if isinstance(each, dict):
            # Implementations may be given for each part of a model.
            pending += [(name if "implementation" not in key else key, inside) for name, inside in each.items()]
        elif isinstance(each, list):
            pending += [(key, inside) for inside in each]
        elif isinstance(each, str) and "implementation" in key and not set("/\\:@").isdisjoint(each):
            yield each


def code_of(folder: Path) -> list[str]:
    """The code that `trust_remote_code` lets run: Python files of a model's folder, and repositories that it names."""
    named = []
    for name in (MODEL_CONFIG, "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            pending: list[Any] = [model_object(folder / name).get("auto_map")]
            while pending:
                each = pending.pop()
                pending += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
                if isinstance(each, str) and "--" in each:
                    named.append(f"the repository {each.partition('--')[0]}")
    files = [str(path.relative_to(folder)) for path in [*folder.glob("*.py"), *folder.glob("custom_generate/*.py")]]
    return sorted(set(named)) + sorted(files)


def check_not_pointer(path: Path) -> None:
    """Raise SafetyNeuronsError if Git has left a note in place of a large file."""
    with open_regular(path, GET_AGAIN, MOST_BYTES_OF_WEIGHTS) as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise SafetyNeuronsError(
            f"{path} is not the file itself, but a pointer to it that Git leaves without Git LFS. Run `git lfs pull` "
            "in its folder, or download the file."
        )


def is_panic(error: BaseException) -> bool:
    """Whether the Rust code of tokenizers gave up, for example on a pattern that would take forever.

    Its class cannot be imported, and is not an Exception.
    """
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"
