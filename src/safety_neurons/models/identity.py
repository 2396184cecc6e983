"""The identity of a folder of weights."""

import hashlib
from pathlib import Path

from safety_neurons.core.files import open_regular
from safety_neurons.models.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GET_AGAIN, MODEL_CONFIG


def folder_identity(folder: Path) -> str:
    """Identity of a folder of weights: a hash of the names, sizes and samples of the bytes of its files.

    An adapter beside a model does not count.
    """
    digest = hashlib.sha256()
    beside = (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / MODEL_CONFIG).exists() else ()
    # Chat templates with names lie in a folder of their own.
    for path in [*sorted(folder.glob("*")), *sorted(folder.glob("*/*.jinja"))]:
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt", ".py") or not path.is_file():
            continue
        if path.name in beside:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with open_regular(path, GET_AGAIN, 1 << 42) as file:
            for start in sorted({0, *(size * part // 32 for part in range(32))}):
                file.seek(start)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()
