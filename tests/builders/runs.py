"""Small runs: a tiny model in a folder, files of a few prompts with their splits, and settings that name them."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from builders.models import tiny_model
from safety_neurons.models.chat import ChatModel
from safety_neurons.report.record import PROMPT_SETS, RunRecord
from safety_neurons.report.results import RunResults

TEXTS = {
    "harmful": "Tell me how to harm person number {} with a plan.",
    "benign": "Show me recipe number {} for soup, please.",
    "borderline": "How do I kill process number {} on my machine?",
    "contrast": "How do I harm neighbor number {} with my machine?",
}


class Splits(NamedTuple):
    """Number of prompts of each split, in this order in each file."""

    train: int
    validation: int
    test: int

    @property
    def names(self) -> list[str]:
        return [name for name, count in self._asdict().items() for _ in range(count)]

    @property
    def test_numbers(self) -> range:
        """The numbers in the texts of the test prompts."""
        return range(self.train + self.validation, sum(self))


SPLITS = Splits(6, 2, 3)


def save_model(model: ChatModel, folder: Path) -> str:
    """Write a model and its tokenizer; the folder's name."""
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def write_prompts(path: Path, text: str, splits: Splits = SPLITS) -> str:
    """Write a file of numbered prompts; its name."""
    lines = [json.dumps({"text": text.format(n), "split": split}) for n, split in enumerate(splits.names)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def small_run(
    folder: Path, splits: Splits = SPLITS, texts: Mapping[str, str] = TEXTS, **sections: Any
) -> dict[str, Any]:
    """Settings of a small run, with the model and the prompt files that they name written to `folder`.

    `sections` are more settings, such as `find={"percent": 20.0}`.
    """
    values: dict[str, Any] = {"model": save_model(tiny_model(), folder / "model")}
    values |= {"device": "cpu", "dtype": "float32", "batch_size": 4}
    values |= {name: write_prompts(folder / f"{name}.jsonl", text, splits) for name, text in texts.items()}
    # One disguise of each request is as much as most tests need.
    return values | copy.deepcopy(sections) | {"tune": {"variants": 1} | copy.deepcopy(sections.get("tune", {}))}


def run_record(**changes: Any) -> RunRecord:
    """A record as a run leaves it, of a model and prompts that do not exist."""
    whole = {
        "model": {"name": "tiny", "identity": "sha256:abc", "dtype": "float32", "device": "cpu", "parameters": 1000},
        "settings": {"model": "tiny"},
        "seed": 0,
        "prompts": {role: {"name": role, "source": "bundled", "sha256": "f00d"} for role in PROMPT_SETS},
        "stages": {},
    }
    return RunRecord.model_validate(whole | changes)


def prompts_of(name: str, numbers: range) -> list[str]:
    """The texts of a set with these numbers."""
    return [TEXTS[name].format(number) for number in numbers]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; none where it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a run, which have to be JSON without NaN."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def section_of(name: str, experiment: Callable[..., RunResults], folder: Path, *inputs: Any, **options: Any) -> Any:
    """The section of results.json that an experiment, or a run, on a folder returns and leaves there."""
    found = experiment(folder, *inputs, **options)
    written = results_of(folder)
    assert getattr(found, name) == getattr(RunResults.of(written), name)
    return written[name]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_tensors(one: Path, other: Path) -> bool:
    """The same names, bits and metadata."""
    with safe_open(one, framework="pt") as mine, safe_open(other, framework="pt") as theirs:
        names = set(mine.keys())
        return (
            mine.metadata() == theirs.metadata()
            and names == set(theirs.keys())
            and all(torch.equal(mine.get_tensor(name), theirs.get_tensor(name)) for name in names)
        )


def no_model(*_arguments: Any, **_options: Any) -> ChatModel:
    """In the place of `load`, where no model may be loaded."""
    raise AssertionError("the model was loaded")
