"""The adaptive test: who has the tuned weights finds the neurons afresh on them and calibrates towards conformity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safety_neurons.causal.laboratory import Laboratory, Push
from safety_neurons.causal.summary import described
from safety_neurons.find.neuron_set import NeuronSet
from safety_neurons.progress import Listener
from safety_neurons.run.opened import keep_section, opened, prompts_to_test
from safety_neurons.run.stages import find_as_settings_say
from safety_neurons.run.workplace import Workplace
from safety_neurons.tune.delta import NeuronDelta


def adaptive(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    on: str | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Attack a run's tuned model by calibration; the section "adaptive" of the run's results.

    Towards conformity, with the run's own settings: the untouched model with its neurons, and the tuned model with
    the neurons that were found on the untouched one, and with those found afresh on the tuned one.

    Args:
        on: a HARMFUL:BENIGN pair of prompt sets instead of the run's test split.

    Raises:
        SafetyNeuronsError: as `run`.
    """
    with opened(path, given, listener, command, until="tune", on=[on]) as work:
        sets = prompts_to_test(work, on)
        delta = NeuronDelta.load(work.folder.delta)
        rows = _measure(work, sets, "untouched", {"found": work.neurons}, "")
        with delta.apply(work.model):
            neurons = {
                "found before tuning": work.neurons,
                "found afresh": find_as_settings_say(work, "finding neurons on the tuned model"),
            }
            rows += _measure(work, sets, "tuned", neurons, delta.digest)
        calibration = work.settings.calibrate.model_dump(mode="json")
        section = {
            "rows": rows,
            "on": on or f"{work.settings.harmful}:{work.settings.benign}",
            "calibrate": calibration,
        }
        return keep_section(work.folder, "adaptive", section)


def _measure(
    work: Workplace, sets: Mapping[str, Any], subject: str, neurons: Mapping[str, NeuronSet], context: str
) -> list[dict[str, Any]]:
    laboratory = Laboratory.open(work, dict(sets), context)
    settings = work.settings.calibrate
    rows = []
    each = sum(map(len, sets.values()))
    with work.listener.task(f"calibrating the {subject} model", each * (1 + len(neurons))) as advance:
        pushes: dict[str, Push | None] = {"none": None}
        for name, found in neurons.items():
            pushes[name] = Push(name, found, "conformity", settings.alpha_conformity, settings.knobs())
        for name, push in pushes.items():
            for side in sets:
                outcome = laboratory.outcome(side, push, advance)
                rows.append({"model": subject, "calibrated": name, "prompts": side} | described(outcome))
    return rows
