"""A run's numbers as tables of text, for a paper or a pull request."""

from collections.abc import Mapping
from typing import Any

from safety_neurons.core.tables import TextTable
from safety_neurons.report import causal_tables, clouds, judge_tables, rates, summary, tables, text, tuning_tables
from safety_neurons.report.rates import Rate


def run_tables(results: dict[str, Any]) -> list[TextTable]:
    """Every table that the results have rows for; the share in brackets after a rate is its 95% interval."""
    made = [
        _before_after(results),
        _causes(results),
        _vocabulary(results),
        _separability(results),
        *_doses(results),
        *_pushes(results),
        *_detectors(results),
        _guard_doses(results),
        _guarded(results),
        _front(results),
        _adaptive(results),
        *_evaluation(results),
        _agreement(results),
    ]
    return [table for table in made if table.rows]


def introduction(results: dict[str, Any]) -> list[str]:
    """What stands above the tables: the verdict, what to keep in mind, the model, and the command."""
    run = results["run"]
    verdict = summary.verdict(results)
    model = (run.get("model") or {}).get("name") or "a model"
    parts = [verdict.sentence, *verdict.notes, f"{model}, {text.date(run.get('started'))}. In brackets: 95% intervals."]
    parts += notes(results)
    return parts


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the grid's tables must know."""
    if not results.get("evaluation"):
        return []
    # Imported late: it brings torch, which nothing else here waits for.
    from safety_neurons.report import evaluation_tables as grid

    return grid.notes(results["evaluation"])


def share(rate: Rate | None) -> str:
    """A rate with its interval, and how many answers could not be judged."""
    if rate is None or rate.value is None:
        return "-"
    said = text.percent(rate.value)
    if rate.low is not None and rate.high is not None:
        said += f" ({text.interval(rate.low, rate.high)})"
    return said + (f", {rate.unscored:,} unscored" if rate.unscored else "")


def _share(row: Mapping[str, Any] | None) -> str:
    return share(rates.rate(dict(row)) if row else None)


def _before_after(results: dict[str, Any]) -> TextTable:
    arms, lines = tables.comparisons(results["rows"])
    several = len({one.judge for one in lines}) > 1
    rows = [
        [
            f"{one.attack} ({one.prompts}, {one.metric})" + (f", judge {one.judge}" if several else ""),
            *(share(rate) for rate in one.rates),
        ]
        for one in lines
    ]
    return TextTable("Before and after tuning", ["what", *(arm.label for arm in arms)], rows)


def _causes(results: dict[str, Any]) -> TextTable:
    found = rates.select(results["rows"], stage="calibrate")[: tables.MOST_ROWS]
    rows = [
        [f"{row['prompts']}, {row['condition']}", str(row["subject"]), _share(row), str(row["n"]), str(row["judge"])]
        for row in found
    ]
    return TextTable("Refused while neurons are pushed", ["prompts, push", "neurons", "refused", "n", "judge"], rows)


def _vocabulary(results: dict[str, Any]) -> TextTable:
    rows = []
    for one in tables.vocabulary_sides(results):
        numbers = one.overall
        random, low, high = (text.score(numbers[key]) for key in ("random", "random_low", "random_high"))
        rows.append(
            [
                f"{one.side}: {one.lexicon} words",
                text.score(numbers["together"]),
                f"{random} ({low}-{high})",
                f"{numbers['p']:.2g}",
                text.score(numbers["single"]),
                text.score(numbers["lens"]),
            ]
        )
    columns = ["neurons", "together", "random sets", "p", "one by one", "residual stream"]
    return TextTable("What the neurons write: AUROC of the words, 0.5 is chance", columns, rows)


def _doses(results: dict[str, Any]) -> list[TextTable]:
    columns = ["alpha", "neurons", "refused", "answered", "broken", "KL"]
    return [
        TextTable(
            f"Dose-response, {side} prompts",
            columns,
            [
                [
                    dose.alpha,
                    str(dose.row["subject"]),
                    *_outcome(dose.row),
                    text.nats(dose.row["kl_divergence"]["value"]),
                ]
                for dose in lines
            ],
        )
        for side, lines in causal_tables.doses(results)
    ]


def _outcome(row: Mapping[str, Any]) -> list[str]:
    return [_share(row[name]) for name in ("refused", "answered", "broken")]


def _pushes(results: dict[str, Any]) -> list[TextTable]:
    return [
        TextTable(
            f"The smallest push toward {direction.toward}, on {test['on']}",
            ["neurons", "moving prompts", direction.verb, "broken", "p"],
            [
                [
                    str(row["subject"]),
                    str(test["moving"]),
                    _share(row["moving"][direction.verb]),
                    _share(row["moving"]["broken"]),
                    f"{row['p_value']:.2g}" if "p_value" in row else "-",
                ]
                for row in test["rows"]
            ],
        )
        for direction, one in causal_tables.directions(results)
        for test in one["tests"]
    ]


def _separability(results: dict[str, Any]) -> TextTable:
    rows = [
        [one.name, text.count(one.neurons), clouds.measured(one.found), clouds.measured(one.random)]
        for one in clouds.layers(results)
    ]
    columns = ["neurons of", "how many", "found", "random"]
    return TextTable("Harmful and benign prompts told apart by activations: AUROC", columns, rows)


def _detectors(results: dict[str, Any]) -> list[TextTable]:
    return [
        TextTable(
            f"Detectors of harmful requests, {test.name}: {test.harmful} harmful, {test.benign} safe",
            ["detector", "AUROC", "caught at 1% false alarms", "at 5%"],
            [
                [
                    str(row["detector"]),
                    f"{text.auroc(row['auroc']['value'])} ({text.score(row['auroc']['low'])}-"
                    f"{text.score(row['auroc']['high'])})",
                    _share(row["tpr_at_0.01"]),
                    _share(row["tpr_at_0.05"]),
                ]
                for row in test.rows
            ],
        )
        for test in causal_tables.detector_tests(results)
    ]


def _guard_doses(results: dict[str, Any]) -> TextTable:
    guard = results.get("guard") or {}
    rows = [
        [
            f"{dose['alpha']:g}{', chosen' if dose['alpha'] == guard['alpha'] else ''}"
            if dose["alpha"]
            else "no guard",
            text.percent(dose["attack_success"]),
            text.percent(dose["over_refusal"]),
        ]
        for dose in (guard.get("doses") or [])[: tables.MOST_ROWS]
    ]
    return TextTable("The guard's dose, on validation prompts", ["alpha", "attack success", "over-refusal"], rows)


def _guarded(results: dict[str, Any]) -> TextTable:
    found = ((results.get("guard") or {}).get("rows") or [])[: tables.MOST_ROWS]
    rows = [
        [f"{row['on']}, {row['prompts']}", _share(row["base"]["refused"]), _share(row["guarded"]["refused"])]
        for row in found
    ]
    return TextTable("Refused without and with the guard", ["test, requests", "base", "guarded"], rows)


def _front(results: dict[str, Any]) -> TextTable:
    rows = [
        [
            f"{one.number}, chosen" if one.chosen else str(one.number),
            one.score,
            text.share(one.percent / 100),
            f"{one.learning_rate:.1e}",
            one.pairs,
            f"{one.kl:g}",
            text.percent(one.attack_success),
            text.percent(one.over_refusal),
            text.nats(one.kl_divergence),
        ]
        for one in tuning_tables.tried(results)
        if one.on_front
    ]
    columns = ["trial", "score", "neurons", "rate", "pairs", "KL weight", "attacks", "over-refusal", "KL"]
    return TextTable("Pareto front of the search, on validation prompts", columns, rows)


def _adaptive(results: dict[str, Any]) -> TextTable:
    rows = [
        [
            f"{row['model']}, {row['prompts']}",
            str(row["calibrated"]),
            *_outcome(row),
            text.nats(row["kl_divergence"]["value"]),
        ]
        for row in tuning_tables.adaptive_rows(results)
    ]
    columns = ["model, prompts", "pushed neurons", "refused", "answered", "broken", "KL"]
    return TextTable("When the attacker can reach inside", columns, rows)


def _evaluation(results: Mapping[str, Any]) -> list[TextTable]:
    if not results.get("evaluation"):
        return []
    from safety_neurons.report import evaluation_tables as grid

    return grid.tables(results["evaluation"])


def _agreement(results: Mapping[str, Any]) -> TextTable:
    rows = [
        [f"{one.first} and {one.second}, {one.requests}", text.percent(one.same), text.score(one.kappa), f"{one.n:,}"]
        for one in judge_tables.agreements(results)
    ]
    return TextTable("Agreement of judges", ["judges, requests", "same verdict", "kappa", "n"], rows)
