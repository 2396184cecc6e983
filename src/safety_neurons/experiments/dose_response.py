"""Dose-response: refusals, broken answers and the KL divergence from the base model at each alpha."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_neurons.calibration.calibration import dose
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.experiments.intervention import NLL_LIMIT, Intervention, InterventionRunner
from safety_neurons.neurons.read import write_norms
from safety_neurons.report.results import RunResults
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test

MOST_ALPHAS = 101


def parse_alphas(text: str) -> list[float]:
    """Sorted numbers from "-6:6" (step 1), "-6:6:2" or "-4,0,4". Always includes 0, the base model.

    Raises:
        SafetyNeuronsError: the text is none of these, or more than `MOST_ALPHAS` numbers.
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
            f"{text!r} is not a range of alphas. Give LOW:HIGH, LOW:HIGH:STEP (such as -6:6:2) or a list (-4,0,4) of "
            f"at most {MOST_ALPHAS} numbers; below zero leads toward rejection, above toward conformity."
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
) -> RunResults:
    """Calibrate a run's neurons at each alpha and ask its test prompts.

    Random neurons, the same number in each layer, are the control: at the same alpha, and at the alpha that gives the
    same dose (`calibration.dose`), which is much higher. Runs missing stages first. Returns the run's results, with the
    section "dose_response".

    Args:
        alphas: strengths; above 0 leads toward conformity, below toward rejection.
        given: settings that override the run's own.
        on: a HARMFUL:BENIGN pair of prompt sets. Default: the run's test split.

    Raises:
        SafetyNeuronsError: bad input, or a failure that the message explains.
    """
    with opened(path, given, listener, command, on=[on]) as run:
        found = run.neurons
        random = found.random_like(run.settings.seed + 1)
        norms = write_norms(run.model).norm_2
        config = run.settings.calibrate
        units = dose(found, norms, config), dose(random, norms, config)
        # If the configured subset and layers hold no random neurons, calibration adds nothing at any alpha.
        factor = units[0] / units[1] if units[1] else 1.0
        subjects = {"found": (found, 1.0), "random": (random, 1.0), "random, equal dose": (random, factor)}
        interventions: list[tuple[dict[str, Any], Intervention | None]] = []
        for alpha in alphas:
            if alpha == 0:
                interventions.append(({"alpha": alpha, "subject": "base", "alpha_used": 0.0}, None))
                continue
            for subject, (neurons, scale) in subjects.items():
                used = abs(alpha) * scale
                one = Intervention(subject, neurons, "conformity" if alpha > 0 else "rejection", used, config)
                interventions.append(({"alpha": alpha, "subject": subject, "alpha_used": used}, one))
        runner = InterventionRunner.open(run, prompts_to_test(run, on))
        section = {
            "rows": runner.rows(f"dose-response over {len(alphas)} alphas", interventions),
            "on": on or f"{run.settings.harmful}:{run.settings.benign}",
            "neurons": len(found),
            "equal_dose_factor": factor,
            "nll_limit": NLL_LIMIT,
            "calibrate": run.settings.calibrate.model_dump(mode="json"),
        }
        return keep_section(run, "dose_response", section)
