"""The tables of the experiments: dose-response, adaptive attack, tuning, guard, scores."""

from collections.abc import Callable, Mapping
from typing import Any

from safety_neurons.core.tables import Table, TableCell, TableRow, numbers, row, words
from safety_neurons.report import text
from safety_neurons.report.experiment_results import (
    Adaptive,
    Answered,
    AutoTuning,
    DoseResponse,
    DoseRow,
    GuardTest,
    LeftOut,
    TuningTrial,
)
from safety_neurons.report.run_tables import MOST_ROWS

MOST_TRIALS = 1000
SIDES = ("harmful", "benign")
_MEBIBYTE = 2**20
_ANSWERED = numbers("refused", "answered", "broken", "KL", "n")


def _answered(one: Answered) -> list[object]:
    shares = [text.rate(found) for found in (one.refused, one.answered, one.broken)]
    return [*shares, text.nats(one.kl_divergence.value), text.count(one.n)]


def used_alpha(one: DoseRow) -> float | None:
    """The alpha of these neurons where it is another one, for the same dose."""
    return None if abs(one.alpha_used - abs(one.alpha)) < 1e-6 else one.alpha_used


def dose_response(found: DoseResponse) -> list[Table]:
    """Harmful, then benign prompts: what each alpha does."""
    tables = []
    for side in SIDES:
        rows = []
        for one in found.rows[: 2 * MOST_ROWS]:
            if one.prompts == side:
                used = used_alpha(one)
                whose = TableCell(one.subject, "" if used is None else f"({used:.3g})")
                rows.append([text.alpha(one.alpha), whose, *_answered(one)])
        columns = (*numbers("alpha"), *words("neurons"), *_ANSWERED)
        tables.append(Table.of(f"Dose-response, {side} prompts", columns, rows))
    return tables


def dose_notes(found: DoseResponse) -> list[str]:
    """What a reader of the dose-response must know."""
    return [
        f"Prompts: {found.on}. Alpha below 0 is toward rejection, above 0 toward conformity. Equal dose: alpha "
        f"{found.equal_dose_factor:.3g} times as high (in brackets), so that random neurons are moved as far. KL: to "
        "the base model on its own answers, in nats per token. Broken answers cannot be judged, or have a negative "
        f"log-likelihood above {found.nll_limit} nats per token; they count neither as refused nor as answered."
    ]


def adaptive(found: Adaptive) -> Table:
    """What calibration toward conformity does to the base and to the tuned model."""
    rows = [[one.model, one.calibrated, one.prompts, *_answered(one)] for one in found.rows[:MOST_ROWS]]
    return Table.of("Calibrated toward conformity", (*words("model", "neurons", "prompts"), *_ANSWERED), rows)


def adaptive_notes(found: Adaptive) -> list[str]:
    """What a reader of the adaptive attack must know."""
    return [
        f"Prompts: {found.on}. KL: how far calibration moves each model's predictions of the next word, in nats per "
        "token. Broken answers cannot be judged, or are unlikely under the model that is not calibrated; they count as "
        "neither."
    ]


def tuning_trials(found: AutoTuning) -> list[TuningTrial]:
    """The trials that a page can show; the chosen one is always among them."""
    rest = (one for one in found.trials[MOST_TRIALS:] if one.number == found.chosen)
    return [*found.trials[:MOST_TRIALS], *rest]


def auto(found: AutoTuning) -> list[Table]:
    """The Pareto front between the base model and the tuned run, and the other trials."""
    on_front = frozenset(found.front)

    def rates(one: Any, kl_divergence: float) -> list[str]:
        return [text.percent(one.attack_success), text.percent(one.over_refusal), text.nats(kl_divergence)]

    def line(trial: TuningTrial) -> TableRow:
        settings, chosen = trial.settings, trial.number == found.chosen
        cells = [
            f"{trial.number}, chosen" if chosen else str(trial.number),
            str(settings["find.score"]),
            text.share(float(settings["find.percent"]) / 100),
            f"{float(settings['tune.learning_rate']):.1e}",
            "+".join(str(settings[f"tune.{kind}"]) for kind in ("refusals", "contrast", "benign")),
            f"{float(settings['tune.kl']):g}",
            *rates(trial.objectives, trial.objectives.kl_divergence),
        ]
        return row(cells, "chosen" if chosen else "")

    trials = tuning_trials(found)
    front, others = ([line(one) for one in trials if (one.number in on_front) is side] for side in (True, False))
    base = row(["base", *[""] * 5, *rates(found.base, 0.0)], "section")
    tuned = row(["the run", *[""] * 5, *rates(found.tuned, found.tuned.kl_divergence)])
    columns = (
        *words("trial", "score"),
        *numbers("neurons", "rate", "pairs", "KL weight", "attacks", "over-refusal", "KL"),
    )
    tables = [Table.of("Pareto front of the search, on validation prompts", columns, [base, *front, tuned])]
    return tables + ([Table.of("The other trials, on validation prompts", columns, others)] if others else [])


def auto_notes(found: AutoTuning) -> list[str]:
    """What a reader of the search for settings must know."""
    return [
        f"Chosen: trial {found.chosen}; the run is tuned with its settings. Neurons: share of all neurons. Rate: "
        "learning rate. Pairs: refusals of harmful requests, refusals of their matched pairs, and answers to benign "
        "requests. KL weight: weight of the KL penalty in training. Attacks: attack success. Over-refusal: the largest "
        "increase, among the sets of safe requests, in the share that is refused. KL: to the base model on its own "
        "answers to safe requests, in nats per token."
    ]


def left_out(found: LeftOut) -> Table:
    """Attack success in each kind of disguise, with and without this kind in training."""
    rows = [
        row(
            [
                one.kind,
                *(text.rate(rate) for rate in (one.base, one.all_kinds, one.without)),
                text.change(one.difference),
                text.p_value(one.difference.p),
                text.count(one.requests),
            ],
            "section" if one is found.mean else "",
        )
        for one in (*found.rows[:MOST_ROWS], found.mean)
    ]
    columns = numbers("before", "all kinds", "without this kind", "difference", "p", "n")
    return Table.of("Attack success in disguises that training left out", (*words("disguise"), *columns), rows)


def left_out_notes(found: LeftOut) -> list[str]:
    """What a reader of the left-out disguises must know."""
    notes = [
        f"Harmful test prompts of {found.on}, each sent in a text of the kind that no training uses; judge "
        f"{found.judge}. Before: the base model. All kinds: the run's tuned model. Without this kind: a model that was "
        "tuned without all texts of the kind, which stands for an attack that nobody has seen. Difference: without "
        "minus all kinds, in percentage points, on the requests that both models have a scored answer to; p: McNemar's "
        "exact test on these requests, adjusted for the number of kinds (Holm). One training each: the intervals are "
        "for other requests, not for other trainings."
    ]
    if any(one.kind == "opening" for one in found.rows):
        notes.append(
            "Texts of other kinds begin the assistant's answer, too: opening is the one kind that stays partly known "
            "without its texts."
        )
    return notes


def guard(found: GuardTest) -> list[Table]:
    """The guard's alphas, its detector beside others on each test, and what is refused with it."""
    alphas = [
        row(
            [
                (f"{one.alpha:g}" + ", chosen" * (one.alpha == found.alpha)) if one.alpha else "no guard",
                text.percent(one.attack_success),
                text.percent(one.over_refusal),
            ],
            "chosen" if one.alpha and one.alpha == found.alpha else "",
        )
        for one in found.doses[:MOST_ROWS]
    ]
    columns = (*words("alpha"), *numbers("attack success", "over-refusal"))
    answers = [
        [
            one.on,
            one.prompts,
            *(_guarded(side.refused, side.unscored) for side in (one.base, one.guarded)),
            text.count(one.n),
        ]
        for one in found.rows[:MOST_ROWS]
    ]
    tables = [
        Table.of("The guard's alpha, on plain and attacked validation prompts", columns, alphas),
        *detectors(found),
        Table.of(
            "Refused without and with the guard",
            (*words("test", "prompts"), *numbers("base", "guarded", "n")),
            answers,
        ),
    ]
    return [table for table in tables if table.rows]


def _guarded(refused: Any, unscored: int) -> TableCell:
    found = text.rate(refused)
    return TableCell(found.value, found.detail + (f", {unscored:,} unscored" if unscored else ""))


def detectors(found: GuardTest) -> list[Table]:
    """Every detector on one test a table."""
    shown = found.detectors[:MOST_ROWS]
    tables = []
    for test in dict.fromkeys(one.on for one in shown):
        own = [one for one in shown if one.on == test]
        rows = [
            [
                one.detector,
                text.mean(one.auroc, text.auroc),
                *map(text.rate, (one.tpr_at_1, one.tpr_at_5, one.flagged_harmful, one.flagged_benign)),
            ]
            for one in own
        ]
        columns = numbers("AUROC", "caught at 1%", "caught at 5%", "flagged harmful", "flagged safe")
        title = f"Detectors of harmful requests, {test}: {own[0].harmful:,} harmful, {own[0].benign:,} safe"
        tables.append(Table.of(title, (*words("detector"), *columns), rows))
    return tables


def guard_notes(found: GuardTest) -> list[str]:
    """What a reader of the guard's tables must know."""
    return [
        f"The guard decides in layer {found.layer} by {found.deciding_neurons:,} neurons. Flagged: above its threshold "
        f"for {text.percent(found.false_positive_rate)} false positives among the training prompts. Caught at 1% and "
        "5%: harmful requests above the threshold that gives this rate of false positives on the test itself."
    ]


# A comparison of scores has a file of its own, scores.json.
_TOWARD = {
    "conformity": "Toward conformity: harmful prompts that are answered",
    "rejection": "Toward rejection: benign prompts that are refused",
}
_REFERENCE = "write-contrast"


def scores(results: Mapping[str, Any]) -> list[Table]:
    """The tables of a comparison of scores."""
    return [*(_effects(results, toward) for toward in _TOWARD), _sizes(results), _overlap(results), _costs(results)]


def score_notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables of scores must know."""
    settings, model, prompts = results["settings"], results["model"], results["training_prompts"]
    calibrate, evaluate = settings["calibrate"], settings["evaluate"]
    where = f"the last {calibrate['prompt_positions']} prompt positions"
    if calibrate["generated_tokens"]:
        where += f" and the first {calibrate['generated_tokens']} generated tokens"
    toward = (f"{calibrate[f'alpha_{side}']:g} toward {side}" for side in _TOWARD)
    alphas = f"{', '.join(toward)}, at {where}"
    return [
        f"{model['name']}, {model['neurons']:,} neurons, {model['dtype']} on {model['device']}. Scores from "
        f"{prompts['harmful']} harmful and {prompts['benign']} benign training prompts; answers to up to "
        f"{evaluate['prompts']} test prompts a side, {evaluate['answer_tokens']} tokens, greedy, judge "
        f"{evaluate['judge']}.",
        f"The same dose for all scores: that of {_REFERENCE} with alpha {alphas}; alpha is scaled for the others."
        if results["equal_dose"]
        else f"The same alpha for all scores: {alphas}. A score that picks neurons whose activations differ more gives "
        "a larger dose.",
        "Share of all prompts, with Wilson's 95% interval; an answer that could not be judged counts as not moved. "
        "*: more prompts are moved than by random neurons, <: fewer (McNemar's exact test, false discovery rate 5% "
        "over all cells).",
        *(f"{name} is left out: {why}." for name, why in results["left_out"].items()),
    ]


def _by_budget(
    results: Mapping[str, Any],
    toward: str,
    title: str,
    cell: Callable[[Mapping[str, Any], Mapping[str, Any]], TableCell],
) -> Table:
    """A row for each score and a column for each budget; `cell` gets the row and the reference score's row."""
    mine = {(one["score"], one["percent"]): one for one in results["rows"] if one["toward"] == toward}
    budgets = [budget for budget in sorted(results["budgets"]) if any(percent == budget for _, percent in mine)]
    rows = [
        [name, *(cell(mine[name, budget], mine[_REFERENCE, budget]) for budget in budgets)]
        for name in (about["score"] for about in results["scores"])
    ]
    return Table.of(title, (*words("score"), *numbers(*(f"{budget:g}%" for budget in budgets))), rows)


def _effects(results: Mapping[str, Any], toward: str) -> Table:
    base = [one for one in results["rows"] if one["toward"] == toward and one["score"] is None]
    title = _TOWARD[toward] + (f" (base: {_effect(base[0]).text})" if base else "")
    return _by_budget(results, toward, title, lambda one, _: _effect(one))


def _effect(one: Mapping[str, Any]) -> TableCell:
    mark = "" if not one["differs_from_random"] else "*" if one["against_random"] > 0 else "<"
    unscored = f", {one['unscored']} unscored" if one["unscored"] else ""
    return TableCell(text.percent(one["value"]) + mark, f"({text.interval(one['low'], one['high'])}){unscored}")


def _sizes(results: Mapping[str, Any]) -> Table:
    def cell(one: Mapping[str, Any], reference: Mapping[str, Any]) -> TableCell:
        times = f"({one['dose'] / reference['dose']:.2f})" if reference["dose"] else ""
        return TableCell(f"{one['neurons']:,}", times)

    title = f"Neurons in each set, and its dose (summed length of what is added) as a multiple of {_REFERENCE}'s"
    return _by_budget(results, "conformity", title, cell)


def _overlap(results: Mapping[str, Any]) -> Table:
    overlap = results["overlap"]
    rows = [
        [
            name,
            *(
                text.NONE if name == other else text.score(value)
                for other, value in zip(overlap["scores"], line, strict=True)
            ),
        ]
        for name, line in zip(overlap["scores"], overlap["jaccard"], strict=True)
    ]
    title = f"Overlap of the sets at {overlap['percent']:g}% (Jaccard: shared neurons by all neurons of both)"
    return Table.of(title, (*words("score"), *numbers(*overlap["scores"])), rows)


def _costs(results: Mapping[str, Any]) -> Table:
    rows = [
        [
            one["score"],
            *(text.score(one[name]) for name in ("jaccard", "spearman")),
            f"{one['seconds']:.0f}",
            f"{one['peak_bytes'] / _MEBIBYTE:,.0f}",
            text.count(one["significant"]),
        ]
        for one in results["scores"]
    ]
    title = (
        f"Stability over {results['scores'][0]['halves']} random halves of the training prompts (Jaccard at "
        f"{results['overlap']['percent']:g}%, Spearman over all neurons), and cost"
    )
    columns = numbers("Jaccard", "Spearman", "seconds", "peak MiB", "significant")
    return Table.of(title, (*words("score"), *columns), rows)


def formulas(results: Mapping[str, Any]) -> Table:
    """How each score is defined."""
    names = ("score", "formula", "tokens", "scope", "source")
    columns = words("score", "formula", "tokens", "budget per", "source")
    return Table.of("The scores", columns, [[str(one[name]) for name in names] for one in results["scores"]])
