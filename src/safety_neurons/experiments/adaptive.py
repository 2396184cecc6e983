"""The adaptive attack: with access to the tuned weights, find their neurons and calibrate toward conformity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.progress import Listener
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.experiments.intervention import Intervention, InterventionRunner
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.prompts import Prompt
from safety_neurons.report.results import RunResults
from safety_neurons.runs.artifacts import load_delta
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import find_neurons_of
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test
from safety_neurons.runs.selection import change_of


def adaptive(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    on: str | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Attack a run's tuned model by calibration toward conformity, with the run's own settings.

    Calibrates the base model with its neurons, and the tuned model with the neurons of the base model and with those
    found on the tuned one. Runs missing stages first. Returns the run's results, with the section "adaptive".

    Args:
        given: settings that override the run's own.
        on: a HARMFUL:BENIGN pair of prompt sets. Default: the run's test split.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    with opened(path, given, listener, command, until="tune", on=[on]) as run:
        sets = prompts_to_test(run, on)
        delta = load_delta(run.folder)
        rows = _attack(run, sets, "base", {"found": run.neurons}, run.engine)
        with delta.apply(run.model):
            neurons = {
                "found before tuning": run.neurons,
                "found afresh": find_neurons_of(run, "finding neurons on the tuned model"),
            }
            rows += _attack(run, sets, "tuned", neurons, run.engine.under(change_of(delta)))
        section = {
            "rows": rows,
            "on": on or f"{run.settings.harmful}:{run.settings.benign}",
            "calibrate": run.settings.calibrate.model_dump(mode="json"),
        }
        return keep_section(run, "adaptive", section)


def _attack(
    run: RunContext,
    sets: dict[str, list[Prompt]],
    model: str,
    neurons: Mapping[str, NeuronSet],
    engine: CachedEngine,
) -> list[dict[str, Any]]:
    settings = run.settings.calibrate
    interventions: dict[str, Intervention | None] = {"none": None}
    for name, found in neurons.items():
        interventions[name] = Intervention(name, found, "conformity", settings.alpha_conformity, settings)
    rows = [({"model": model, "calibrated": name}, one) for name, one in interventions.items()]
    return InterventionRunner.open(run, sets, engine).rows(f"calibrating the {model} model", rows)
