"""The adaptive test: who has the tuned weights finds the neurons afresh on them and calibrates toward conformity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.progress import Listener
from safety_neurons.experiments.intervention import Intervention, InterventionRunner, described
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test
from safety_neurons.runs.stages import find_as_settings_say
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
        rows = _measure(run, sets, "base", {"found": run.neurons}, "")
        with delta.apply(run.model):
            neurons = {
                "found before tuning": run.neurons,
                "found afresh": find_as_settings_say(run, "finding neurons on the tuned model"),
            }
            rows += _measure(run, sets, "tuned", neurons, delta.digest)
        calibration = run.settings.calibrate.model_dump(mode="json")
        section = {
            "rows": rows,
            "on": on or f"{run.settings.harmful}:{run.settings.benign}",
            "calibrate": calibration,
        }
        return keep_section(run.folder, "adaptive", section)


def _measure(
    run: RunContext, sets: Mapping[str, Any], subject: str, neurons: Mapping[str, NeuronSet], context: str
) -> list[dict[str, Any]]:
    laboratory = InterventionRunner.open(run, dict(sets), context)
    settings = run.settings.calibrate
    rows = []
    each = sum(map(len, sets.values()))
    with run.listener.task(f"calibrating the {subject} model", each * (1 + len(neurons))) as advance:
        pushes: dict[str, Intervention | None] = {"none": None}
        for name, found in neurons.items():
            pushes[name] = Intervention(name, found, "conformity", settings.alpha_conformity, settings)
        for name, push in pushes.items():
            for side in sets:
                measurement = laboratory.measurement(side, push, advance)
                rows.append({"model": subject, "calibrated": name, "prompts": side} | described(measurement))
    return rows
