"""A small run, made once in a session, and what its tests watch."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_PROMPT
from builders.models import tiny_model
from builders.runs import Splits, save_model, small_run
from safety_neurons.engines import engine as engine_module
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import Completion
from safety_neurons.runs import stages as stages_module
from safety_neurons.runs.pipeline import run

Generate = Callable[..., Iterator[tuple[int, Completion]]]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a small run; a model with other weights lies beside its model."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(tiny_model(seed=1), folder / "other-model")
    return small_run(
        folder,
        Splits(8, 2, 4),
        find={"percent": 20.0, "positions": 3},
        calibrate={"prompt_positions": 3},
        tune={
            **{"answer_tokens": 4, "epochs": 1, "batch_size": 4, "learning_rate": 0.01},
            # Others are too long for the model's context.
            "disguises": ["suffix", "opening", "turns"],
        },
        evaluate={"answer_tokens": 4, "attacks": ["direct", "prefill"], "judge": BY_PROMPT.name},
        # There are too few prompts for a rate of 1%.
        guard={"false_positive_rate": 0.2, "percent": 20.0},
    )


@pytest.fixture
def given(inputs: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(inputs)


@pytest.fixture(scope="session")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, never written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, inputs)
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run."""
    return Path(shutil.copytree(whole, tmp_path / "finished"))


@pytest.fixture(scope="session")
def found_once(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose neurons are found, never written to."""
    folder = tmp_path_factory.mktemp("found") / "run"
    run(folder, inputs, until="find")
    return folder


@pytest.fixture
def found(found_once: Path, tmp_path: Path) -> Path:
    """A copy of a run whose neurons are found."""
    return Path(shutil.copytree(found_once, tmp_path / "found"))


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rendered prompts of the answers that are generated from here on."""
    texts: list[str] = []
    original = engine_module.generate

    def generate(model: ChatModel, prompts: list[str], **options: Any) -> Iterator[tuple[int, Completion]]:
        for index, answer in original(model, prompts, **options):
            texts.append(prompts[index])
            yield index, answer

    monkeypatch.setattr(engine_module, "generate", generate)
    return texts


@pytest.fixture
def replace_generate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Generate], None]:
    """Puts another function in the place of `generate`, for answers that are known beforehand."""
    return lambda generate: monkeypatch.setattr(engine_module, "generate", generate)


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are performed from here on, the report apart."""
    stages: list[str] = []
    for name, implementation in stages_module.IMPLEMENTATIONS.items():

        def perform(context: Any, name: str = name, implementation: Any = implementation) -> Any:
            stages.append(name)
            return implementation(context)

        monkeypatch.setitem(stages_module.IMPLEMENTATIONS, name, perform)
    return stages
