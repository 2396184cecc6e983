"""The adaptive test: who has the tuned weights finds the neurons afresh on them and calibrates toward conformity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.progress import Listener
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.experiments.intervention import Intervention, InterventionRunner
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.find import find_neurons_of
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test
from safety_neurons.tuning.delta import NeuronDelta


def adaptive(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    on: str | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Attack a run's tuned model by calibration; the section "adaptive" of the run's results.

    Toward conformity, with the run's own settings: the base model with its neurons, and the tuned model with
    the neurons that were found on the base one, and with those found afresh on the tuned one.

    Args:
        on: a HARMFUL:BENIGN pair of prompt sets instead of the run's test split.

    Raises:
        SafetyNeuronsError: as `run`.
    """
    with opened(path, given, listener, command, until="tune", on=[on]) as run:
        sets = prompts_to_test(run, on)
        delta = NeuronDelta.load(run.folder.delta)
        rows = _measure(run, sets, "base", {"found": run.neurons}, run.engine)
        with delta.apply(run.model):
            neurons = {
                "found before tuning": run.neurons,
                "found afresh": find_neurons_of(run, "finding neurons on the tuned model"),
            }
            rows += _measure(run, sets, "tuned", neurons, run.engine.under(f"safetuning {delta.digest}"))
        calibration = run.settings.calibrate.model_dump(mode="json")
        section = {
            "rows": rows,
            "on": on or f"{run.settings.harmful}:{run.settings.benign}",
            "calibrate": calibration,
        }
        return keep_section(run.folder, "adaptive", section)


def _measure(
    run: RunContext, sets: Mapping[str, Any], subject: str, neurons: Mapping[str, NeuronSet], engine: CachedEngine
) -> list[dict[str, Any]]:
    runner = InterventionRunner.open(run, dict(sets), engine)
    settings = run.settings.calibrate
    rows = []
    each = sum(map(len, sets.values()))
    with run.listener.task(f"calibrating the {subject} model", each * (1 + len(neurons))) as advance:
        interventions: dict[str, Intervention | None] = {"none": None}
        for name, found in neurons.items():
            interventions[name] = Intervention(name, found, "conformity", settings.alpha_conformity, settings.knobs())
        for name, one in interventions.items():
            for side in sets:
                measurement = runner.measurement(side, one, advance)
                rows.append({"model": subject, "calibrated": name, "prompts": side} | measurement.described())
    return rows
