"""Prompt sets: bundled, public, or from a file."""

import os
from pathlib import Path

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import unknown_name
from safety_neurons.prompts.named import NamedSet, load_named, named_set, named_sets
from safety_neurons.prompts.prompt_set import Prompt, PromptSet, tell
from safety_neurons.prompts.read import ENDINGS, read_prompts

__all__ = ["NamedSet", "Prompt", "PromptSet", "load_prompts", "named_sets", "read_prompts", "tell"]


def load_prompts(
    name_or_path: str | Path | PromptSet | list[str], column: str | None = None, data_dir: str | Path | None = None
) -> PromptSet:
    """Load prompts from a set's name, a file's path, a list of texts, or a set.

    A bundled or public set takes precedence over a file of the same name; write ./harmful for the file.

    Args:
        column: the column of the prompts in a file. Default: the first well-known name.
        data_dir: a folder with copies of public sets, searched before downloading.

    Raises:
        SafetyNeuronsError: there is no such set, or it cannot be read or downloaded.
    """
    if isinstance(name_or_path, PromptSet):
        return name_or_path
    if isinstance(name_or_path, list | tuple):
        return PromptSet.from_texts("prompts", name_or_path)
    if isinstance(name_or_path, Path):
        return read_prompts(name_or_path, column)
    row = named_set(name_or_path)
    if row is not None:
        return load_named(row, data_dir)
    if _looks_like_path(name_or_path):
        return read_prompts(name_or_path, column)
    message = unknown_name("prompt set", name_or_path, [row.name for row in named_sets()])
    raise SafetyNeuronsError(f"{message} The path of a file must end in {', '.join(ENDINGS)}.")


def _looks_like_path(text: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return bool(Path(text).suffix) or any(mark in text for mark in separators) or os.path.exists(text)
