"""Whether the files of a model's or an adapter's folder are what their names say, answered without reading weights."""

from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_object
from safety_neurons.core.plugins import listed
from safety_neurons.models.hub import ADAPTER_CONFIG, GET_AGAIN, MODEL_CONFIG, WEIGHTS, WEIGHTS_INDEX, shards

_OBJECTS = (MODEL_CONFIG, ADAPTER_CONFIG, "generation_config.json", "tokenizer_config.json")
_POINTER = b"version https://git-lfs"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def check_files(folder: Path) -> None:
    """Check what would make the libraries fail later, with errors that do not name the file.

    Raises:
        SafetyNeuronsError: a file of a model or adapter is empty, broken or a pointer of Git LFS, or the weights are in
            files that are not read.
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.name in _OBJECTS or path.name == "tokenizer.json" or path.suffix == ".safetensors":
            check_not_pointer(path)
            if not path.stat().st_size:
                raise SafetyNeuronsError(f"{path} is empty. {GET_AGAIN}")
        if path.name in _OBJECTS:
            read_object(path, GET_AGAIN)
    if not (folder / MODEL_CONFIG).exists() or (folder / WEIGHTS).exists():
        return
    if (folder / WEIGHTS_INDEX).exists():
        shards(folder / WEIGHTS_INDEX)
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


def check_not_pointer(path: Path) -> None:
    """Raise SafetyNeuronsError if Git has left a note in place of a large file."""
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise SafetyNeuronsError(
            f"{path} is not the file itself, but a pointer to it that Git leaves without Git LFS. Run `git lfs pull` "
            "in its folder, or download the file."
        )
