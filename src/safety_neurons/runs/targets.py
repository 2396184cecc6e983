"""What is evaluated: a run with all that it made, a model, or a model behind a server."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import JsonlCache, read_json
from safety_neurons.core.progress import Listener
from safety_neurons.engines.engine import CachedEngine, Engine, InProcess
from safety_neurons.evaluation.contracts import EvaluationContext, RunArtifacts
from safety_neurons.evaluation.grid import HARMFUL
from safety_neurons.models.locate import locate
from safety_neurons.prompts import Prompt, PromptSet, load_prompts
from safety_neurons.runs.context import load_model
from safety_neurons.runs.folder import RunFolder, merged_settings
from safety_neurons.runs.guard import guard_of
from safety_neurons.runs.opened import opened
from safety_neurons.runs.plan import PROMPT_SETS
from safety_neurons.settings import Settings
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta

# Defenses and attacks that draw on what a run makes after finding.
TUNED = frozenset({"safetuning", "lora", "safedecoding"})
GUARDED = frozenset({"guard"})


@dataclass(frozen=True)
class Requests:
    """What is asked: `harmful` ones are attacked, `safe` ones, by the name of their set, are not."""

    harmful: tuple[Prompt, ...]
    safe: dict[str, tuple[Prompt, ...]]

    @classmethod
    def read(cls, settings: Settings, on: str | None, limit: int, learners: Sequence[Settings]) -> "Requests":
        """The test split of the settings' own sets, or the sets `on`, HARMFUL:SAFE[:SAFE...].

        Without what any of the `learners` may learn from: the settings of all targets.

        Raises:
            SafetyNeuronsError: a set cannot be read, or nothing of it is left to ask.
        """
        learnt = {
            prompt.text
            for one in learners
            for name in PROMPT_SETS
            for prompt in load_prompts(getattr(one, name), one.column, one.data_dir)
            if prompt.split != "test"
        }

        def fresh(name: str, split: str | None) -> tuple[Prompt, ...]:
            prompts: PromptSet = load_prompts(name, settings.column, settings.data_dir)
            if split is not None:
                prompts = prompts.split(split)
            left = replace(prompts, prompts=tuple(prompt for prompt in prompts if prompt.text not in learnt))
            if not len(left):
                raise SafetyNeuronsError(f"Nothing of {name!r} is left to ask: a run learns from all its prompts.")
            return tuple(left.take(limit))

        if on is None:
            safe = {name: fresh(getattr(settings, name), "test") for name in ("benign", "borderline")}
            return cls(fresh(settings.harmful, "test"), safe)
        names = on.split(":")
        if len(names) < 2 or not all(names):
            raise SafetyNeuronsError(
                f"{on!r} names no harmful and safe prompt sets: give them as jailbreakbench:alpaca:xstest-safe."
            )
        if len(set(names)) < len(names) or HARMFUL in names[1:]:
            raise SafetyNeuronsError(f"{on!r} names a set twice, or {HARMFUL!r} as a safe one.")
        harmful, *safe_names = names
        return cls(fresh(harmful, None), {name: fresh(name, None) for name in safe_names})


def is_run(name: str) -> bool:
    return RunFolder(Path(name)).record_file.exists()


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def settings_of(name: str, given: Mapping[str, Any]) -> Settings:
    """The settings under which a target is evaluated.

    Raises:
        SafetyNeuronsError: a value is not allowed.
    """
    if is_run(name):
        return merged_settings(read_json(RunFolder(Path(name)).record_file).get("settings", {}), given)
    return merged_settings({}, given if is_address(name) else {**given, "model": name})


def check_target(name: str, given: Mapping[str, Any], listener: Listener) -> None:
    """Say at once that there is no such model; what is behind an address is only known when it is asked.

    Raises:
        SafetyNeuronsError: no run and no model is called so, or another model is named besides.
    """
    if "model" in given and not is_run(name):
        raise SafetyNeuronsError(
            f"--model is for runs, and {name} is evaluated as it is: name each model to evaluate as a target."
        )
    if not is_address(name):
        locate(settings_of(name, given).model, listener)


@contextlib.contextmanager
def open_target(
    name: str,
    given: Mapping[str, Any],
    *,
    needs: Sequence[str],
    kept: JsonlCache,
    folder: Path,
    served_model: str | None,
    listener: Listener,
    command: str,
) -> Iterator[EvaluationContext]:
    """The bench of one target; a run is first brought as far as the attacks and defenses named in `needs` take it.

    Raises:
        SafetyNeuronsError: it cannot be read or reached.
    """
    settings = settings_of(name, given)
    needed = {one.partition(":")[0] for one in needs}
    harmful, benign = _learnt(settings, "harmful"), _learnt(settings, "benign")

    def context(engine: Engine, made: RunArtifacts) -> EvaluationContext:
        tokens = settings.evaluate.answer_tokens
        return EvaluationContext(
            CachedEngine(engine, kept),
            tokens,
            settings.seed,
            harmful,
            benign,
            made,
            folder,
            settings.data_dir,
            listener,
        )

    if is_address(name):
        from safety_neurons.engines.endpoint import Endpoint

        yield context(Endpoint(name, served_model), RunArtifacts())
    elif is_run(name):
        until = "tune" if TUNED & needed else "find"
        with opened(Path(name), given, listener, command, until=until, alone=False) as work:
            delta = NeuronDelta.load(work.folder.delta) if until == "tune" else None
            corpus = Corpus.load(work.folder.corpus) if until == "tune" else None
            guard = guard_of(work, as_settings_say="guard" in given) if GUARDED & needed else None
            made = RunArtifacts(work.neurons, guard, delta, corpus, settings.calibrate.alpha_conformity)
            yield context(InProcess(work.model, settings.batch_size), made)
    else:
        with listener.task(f"loading {settings.model}", 1) as advance:
            model = load_model(settings)
            model.render("Hello")
            advance(1)
        yield context(InProcess(model, settings.batch_size), RunArtifacts())


def _learnt(settings: Settings, name: str) -> tuple[str, ...]:
    """Training requests for the defenses that learn from some."""
    prompts = load_prompts(getattr(settings, name), settings.column, settings.data_dir)
    return tuple(prompt.text for prompt in prompts.split("train").take(settings.find.prompts))
