"""What each dose does: refusals, broken answers and the distance to the base model over alpha."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_neurons.calibration.calibration import dose
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.experiments.intervention import NLL_LIMIT, Intervention, InterventionRunner, described
from safety_neurons.neurons.read import write_norms
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test

MOST_ALPHAS = 101


def parse_alphas(text: str) -> list[float]:
    """ "-6:6" (by 1), "-6:6:2" or "-4,0,4" as sorted numbers; 0, the model as it is, is always among them.

    Raises:
        SafetyNeuronsError: it is none of these, or far too many.
    """
    try:
        if ":" in text:
            low, high, *rest = (float(part) for part in text.split(":"))
            step = rest[0] if rest else 1.0
            if len(rest) > 1 or step <= 0 or high < low or (high - low) / step > MOST_ALPHAS:
                raise ValueError
            values = [low + number * step for number in range(int((high - low) / step + 1e-9) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
        if len(values) > MOST_ALPHAS or any(abs(value) > 1e6 or value != value for value in values):
            raise ValueError
    except ValueError:
        raise SafetyNeuronsError(
            f"{text!r} is no range of alphas. Give LOW:HIGH, LOW:HIGH:STEP (such as -6:6:2) or a list (-4,0,4), of at "
            f"most {MOST_ALPHAS} numbers; below zero leads toward rejection, above toward conformity."
        ) from None
    return sorted({round(value, 6) for value in values} | {0.0})


def dose_response(
    path: Path,
    alphas: Sequence[float],
    given: Mapping[str, Any] | None = None,
    *,
    on: str | None = None,
    listener: Listener | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Calibrate a run's neurons at each alpha and ask its test prompts; the section "dose_response" of its results.

    Beside the found neurons stand as many random ones of the same layers: with the same alpha, and with the alpha
    that makes their dose the same (`calibrate.dose`), which is much higher. Alphas above 0 lead toward conformity,
    below toward rejection.

    Args:
        given: settings that override the run's own.
        on: a HARMFUL:BENIGN pair of prompt sets instead of the run's test split.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    with opened(path, given, listener, command, on=[on]) as work:
        found = work.neurons
        random = found.random_like(work.settings.seed + 1)
        norms = write_norms(work.model).norm_2
        knobs = work.settings.calibrate
        units = dose(found, norms, knobs), dose(random, norms, knobs)
        # Without a neuron in this subset or these layers nothing is pushed, whatever the alpha.
        factor = units[0] / units[1] if units[1] else 1.0
        sets = prompts_to_test(work, on)
        laboratory = InterventionRunner.open(work, sets)
        subjects = {"found": (found, 1.0), "random": (random, 1.0), "random, equal dose": (random, factor)}
        cells: list[tuple[float, Intervention | None]] = []
        for alpha in alphas:
            if alpha == 0:
                cells.append((alpha, None))
                continue
            for subject, (neurons, times) in subjects.items():
                toward: Toward = "conformity" if alpha > 0 else "rejection"
                cells.append((alpha, Intervention(subject, neurons, toward, abs(alpha) * times, knobs)))
        rows: list[dict[str, Any]] = []
        each = sum(len(prompts) for prompts in sets.values())
        with work.listener.task(f"dose-response over {len(alphas)} alphas", each * len(cells)) as advance:
            for alpha, push in cells:
                for name in sets:
                    measurement = laboratory.measurement(name, push, advance)
                    names = {"alpha": alpha, "subject": push.subject if push else "base", "prompts": name}
                    rows.append(names | {"alpha_used": push.alpha if push else 0.0} | described(measurement))
        section = {
            "rows": rows,
            "on": on or f"{work.settings.harmful}:{work.settings.benign}",
            "neurons": len(found),
            "equal_dose_factor": factor,
            "nll_limit": NLL_LIMIT,
            "calibrate": work.settings.calibrate.model_dump(mode="json"),
        }
        return keep_section(work.folder, "dose_response", section)
