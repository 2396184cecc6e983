"""What a run says in sentences and in four figures; computed from the results, worse results included."""

from dataclasses import dataclass, replace
from typing import Any

from safety_neurons.report import rates, text
from safety_neurons.report.rates import Change, Rate


@dataclass(frozen=True)
class Verdict:
    """One sentence, whether it is good news, and what to keep in mind about it."""

    sentence: str
    tone: str
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The tone in words, for those who see no color."""
        return {"good": "clear result", "mixed": "mixed result", "bad": "negative result"}.get(self.tone, "unfinished")


@dataclass(frozen=True)
class Line:
    """A rate before and after within a tile."""

    name: str
    change: Change


@dataclass(frozen=True)
class Tile:
    """A headline number: either `lines` (before and after) or one `value`."""

    label: str
    note: str
    value: str | None = None
    lines: tuple[Line, ...] = ()


def partial(results: dict[str, Any]) -> str:
    """What is to be said beside every number where the neurons are those of some layers only; else nothing."""
    coverage = results["run"].get("coverage") or {}
    read, total = coverage.get("layers") or 0, coverage.get("layers_total") or 0
    return f"Partial: only {read} of {total} layers were searched for neurons." if read < total else ""


def verdict(results: dict[str, Any]) -> Verdict:
    """The run in one sentence: what tuning did, or how far the run has come."""
    found = _verdict(results)
    warning = partial(results)
    return replace(found, notes=(warning, *found.notes)) if warning else found


def _verdict(results: dict[str, Any]) -> Verdict:
    attacks = rates.attack_change(results["rows"])
    if attacks.before and attacks.after and attacks.measured:
        return _tuning_verdict(results, attacks.before, attacks.after)
    who = _who(results)
    if attacks.value_before is not None:
        start = f"Before tuning, {text.percent(attacks.value_before)} of the attacks succeed"
        end = "after tuning is not measured yet" if attacks.after is None else "after tuning no answer could be judged"
        return Verdict(f"{start}; {end}.", "open", tuple(_unscored_notes(attacks)))
    if results.get("training"):
        return Verdict(f"{_capital(who)} were tuned; what it changed is not measured yet.", "open")
    cause = causes(results["rows"])
    if cause is not None:
        return Verdict(cause.sentence + " Nothing is tuned yet.", cause.tone, cause.notes)
    if results.get("neurons") and (results.get("dose_response") or results.get("search")):
        return Verdict(f"Found {who}; what pushing them does to refusals is shown under “Cause”.", "open")
    if results.get("neurons"):
        return Verdict(f"Found {who}; whether they cause refusals is not tested yet.", "open")
    return Verdict("Nothing is measured yet.", "open")


def _tuning_verdict(results: dict[str, Any], rate_before: Rate, rate_after: Rate) -> Verdict:
    before, after = rate_before.value or 0.0, rate_after.value or 0.0
    unchanged = rates.same(before, after)
    improved = after < before and not unchanged
    numbers = f"from {text.percent(before)} to {text.percent(after)}"
    sentence = f"Tuning {_who(results)} "
    if unchanged:
        sentence += f"left attack success at {text.percent(after)}"
    elif improved:
        sentence += f"brought attack success {numbers}"
    else:
        sentence += f"did not help: attack success rose {numbers}"
    notes = []
    certain = rates.apart(rate_before, rate_after)
    if not unchanged and not certain:
        known = rate_before.low is not None and rate_after.low is not None
        reason = "The 95% intervals of attack success overlap" if known else "Attack success has no interval here"
        notes.append(f"{reason}: this difference may be chance.")
    benign = rates.refusal_change(results["rows"], "benign")
    cost = False
    if benign.value_before is None or benign.value_after is None:
        sentence += "; refusals of ordinary requests are not measured on both sides."
    else:
        clause, cost = _refusal_clause(benign.value_before, benign.value_after, improved)
        sentence += clause
    borderline = rates.refusal_change(results["rows"], "borderline")
    if borderline.value_before is not None and borderline.value_after is not None:
        rose = borderline.value_after - borderline.value_before
        if rose > 0 and not rates.same(borderline.value_before, borderline.value_after):
            notes.append(
                "Harmless requests that only sound harmful are refused more often: "
                f"{text.percent(borderline.value_before)} before, {text.percent(borderline.value_after)} after."
            )
            cost = cost or rose >= 0.1
    if (results.get("training") or {}).get("unchanged_outside") is False:
        notes.append("Weights outside the tuned neurons changed: do not trust these numbers.")
    notes += _unscored_notes(Change(rate_before, rate_after))
    tone = "good" if improved and certain and not cost else "mixed" if improved else "bad"
    return Verdict(sentence, tone, tuple(notes))


def _refusal_clause(before: float, after: float, improved: bool) -> tuple[str, bool]:
    """The second half of the verdict, and whether ordinary use got clearly worse."""
    numbers = f"from {text.percent(before)} to {text.percent(after)}"
    if rates.same(before, after):
        return f", while refusals of ordinary requests stayed at {text.percent(after)}.", False
    if after < before:
        return f", while refusals of ordinary requests went {numbers}.", False
    return f", {'but' if improved else 'and'} refusals of ordinary requests rose {numbers}.", after - before >= 0.05


def _unscored_notes(change: Change) -> list[str]:
    """Answers that could not be judged are neither safe nor unsafe; many of them weaken every number."""
    notes = []
    for side, measured in (("before", change.before), ("after", change.after)):
        if measured and measured.unscored > 0.1 * (measured.n + measured.unscored):
            asked = measured.n + measured.unscored
            notes.append(
                f"{measured.unscored:,} of {asked:,} answers to attacks {side} tuning could not be judged; "
                "they count neither as safe nor as unsafe."
            )
    return notes


def causes(rows: list[dict[str, Any]]) -> Verdict | None:
    """What calibration says about cause: found neurons against as many random ones, on harmful prompts."""
    refused = rates.select(rates.main_judge(rows, "calibrate"), metric=rates.REFUSED, prompts="harmful")
    none = _first(refused, subject="base")
    found = _first(refused, subject="found", condition="toward conformity")
    random = _first(refused, subject="random", condition="toward conformity")
    if found is None or found.value is None:
        return None
    start = f" from {text.percent(none.value)}" if none and none.value is not None else ""
    fell = none is None or none.value is None or found.value < none.value
    sentence = (
        f"Pushing the safety neurons toward conformity took refusals of harmful prompts{start} to "
        f"{text.percent(found.value)}"
    )
    if random is None or random.value is None:
        return Verdict(f"{sentence}; without random neurons to compare with, this shows no cause.", "open")
    sentence += f"; the same alpha on as many random neurons gave {text.percent(random.value)}."
    if fell and found.value < random.value and rates.apart(found, random):
        return Verdict(f"{sentence} So these neurons do cause refusals.", "good")
    return Verdict(f"{sentence} So this run does not show that these neurons cause refusals.", "bad")


def _first(rows: list[dict[str, Any]], **wanted: str) -> Rate | None:
    found = rates.select(rows, **wanted)
    return rates.rate(found[0]) if found else None


def tiles(results: dict[str, Any]) -> list[Tile]:
    """The four headline numbers; what is not measured yet shows as a dash."""
    rows = results["rows"]
    training = results.get("training") or {}
    neurons = results.get("neurons") or {}
    stages = results["run"].get("stages") or {}
    changed = training.get("share_of_parameters")
    parameters = training.get("trainable_parameters")
    seconds = [stage["seconds"] for stage in stages.values() if stage.get("seconds") is not None]
    tuned = "" if training.get("seconds") is None else f", {text.duration(training['seconds'])} of it training"
    if parameters is not None:
        note = f"{parameters:,} numbers in {text.count(neurons.get('total'))} neurons"
    else:
        changed, note = neurons.get("share_of_parameters"), "in the found neurons; none is tuned yet"
    return [
        Tile("Attacks that succeed", "lower is better", lines=(Line("", rates.attack_change(rows)),)),
        Tile(
            "Harmless requests refused",
            "lower is better",
            lines=(
                Line("ordinary", rates.refusal_change(rows, "benign")),
                Line("borderline", rates.refusal_change(rows, "borderline")),
            ),
        ),
        Tile("Weights tuned" if parameters is not None else "Share of weights", note, value=text.share(changed)),
        Tile(
            "Minutes",
            f"{len(seconds)} {'stage' if len(seconds) == 1 else 'stages'}{tuned}",
            value=f"{sum(seconds) / 60:.1f}" if seconds else text.count(None),
        ),
    ]


def where(neurons: dict[str, Any]) -> str:
    """Where the neurons sit, for those who cannot see the figure too."""
    layers = [(entry["layer"], entry["rejection"] + entry["conformity"]) for entry in neurons.get("per_layer") or []]
    total = sum(number for _, number in layers)
    if not total:
        return "No neuron was found in any layer."
    fullest, most = max(layers, key=lambda entry: entry[1])
    deep = sum(number for _, number in layers[len(layers) - len(layers) // 2 :])
    return (
        f"Layer {fullest} holds the most ({most:,}); the deeper half of the layers holds {text.percent(deep / total)} "
        "of them."
    )


def _who(results: dict[str, Any]) -> str:
    neurons = results.get("neurons") or {}
    training = results.get("training") or {}
    if neurons.get("total") is None:
        return "the safety neurons"
    part = training.get("share_of_parameters", neurons.get("share_of_parameters"))
    return f"{neurons['total']:,} safety neurons" + (f" ({text.share(part)} of the weights)" if part else "")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
