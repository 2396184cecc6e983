"""The files of the disguises, read without torch: a finished run only compares them."""

import functools
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from safety_neurons.core.files import fingerprint
from safety_neurons.tuning.config import DisguiseKind


@functools.cache
def read_texts(kind: DisguiseKind) -> dict[str, Any]:
    """The texts of a kind by what they are for: `train`, `validation` and `test`."""
    texts = resources.files("safety_neurons.tuning").joinpath("disguise_texts", f"{kind}.toml")
    return tomllib.loads(texts.read_text(encoding="utf-8"))


def learned_texts(kinds: Sequence[DisguiseKind]) -> str:
    """Hash of the texts of these kinds that a training depends on: all but those to test with."""
    return fingerprint([[read_texts(kind)[use] for use in ("train", "validation")] for kind in kinds])
