"""Several runs side by side: what came out of each, and in what they differ."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.tables import TextTable
from safety_neurons.report import clouds, rates, summary, tables, text
from safety_neurons.report.rates import Change
from safety_neurons.report.run_tables import share

_MOST_RUNS = 24
# A run by its name.
Runs = Mapping[str, dict[str, Any]]


def names(folders: list[Path]) -> list[str]:
    """A short name for each run's folder, longer where two are called the same.

    Raises:
        SafetyNeuronsError: a folder is given twice, or there are too many.
    """
    if len(set(folders)) < len(folders):
        raise SafetyNeuronsError("Name each run once.")
    if len(folders) > _MOST_RUNS:
        raise SafetyNeuronsError(f"{len(folders)} runs do not fit side by side: name at most {_MOST_RUNS}.")
    short = [folder.resolve().name for folder in folders]
    return [str(folder) if short.count(name) > 1 else name for folder, name in zip(folders, short, strict=True)]


def comparison_tables(runs: Runs) -> list[TextTable]:
    """The tables of the comparison, with a column for each run; without those that no run has numbers for."""
    made = [
        _overview(runs),
        _rates(runs),
        _causes(runs),
        _vocabulary(runs),
        _separability(runs),
        *_grid(runs),
        _differences(runs),
    ]
    return [table for table in made if table.rows]


def _table(runs: Runs, title: str, first: str, lines: Mapping[str, Callable[[dict[str, Any]], str]]) -> TextTable:
    """One row for each line that any run has something for."""
    rows = [[name, *(said(results) for results in runs.values())] for name, said in lines.items()]
    return TextTable(
        title, [first, *runs], [row for row in rows if any(cell not in ("-", "", text.count(None)) for cell in row[1:])]
    )


def _overview(runs: Runs) -> TextTable:
    def neurons(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda results: (results.get("neurons") or {}).get(name)

    def minutes(results: dict[str, Any]) -> str:
        return summary.tiles(results)[-1].value or "-"

    def unchanged(results: dict[str, Any]) -> str:
        known = (results.get("training") or {}).get("unchanged_outside")
        return "-" if known is None else "yes" if known else "no: do not trust these numbers"

    return _table(
        runs,
        "The runs",
        "",
        {
            "model": lambda results: str((results["run"].get("model") or {}).get("name") or "-"),
            "started": lambda results: text.date(results["run"].get("started")),
            "seed": lambda results: str(results["run"].get("seed", "-")),
            "score": lambda results: str(neurons("score")(results) or "-"),
            "neurons": lambda results: text.count(neurons("total")(results)),
            "share of the neurons": lambda results: text.share(neurons("share_of_neurons")(results)),
            "share of the weights changed": lambda results: text.share(
                (results.get("training") or {}).get("share_of_parameters")
            ),
            "weights outside them unchanged": unchanged,
            "minutes": minutes,
            "result": lambda results: summary.verdict(results).said,
        },
    )


def _rates(runs: Runs) -> TextTable:
    evaluated = {name: rates.main_judge(results["rows"], "evaluate") for name, results in runs.items()}
    keys = dict.fromkeys(
        (str(row["metric"]), str(row["prompts"]), str(row["attack"])) for rows in evaluated.values() for row in rows
    )
    lines = [
        [
            f"{attack} ({prompts}, {metric})",
            *(
                _change(rates.change(rows, metric=metric, prompts=prompts, attack=attack))
                for rows in evaluated.values()
            ),
        ]
        for metric, prompts, attack in list(keys)[: tables.MOST_ROWS]
    ]
    return TextTable("Before and after tuning", ["what", *runs], lines)


def _change(change: Change) -> str:
    if change.before is None and change.after is None:
        return "-"
    return f"{share(change.before)} → {share(change.after)}"


def _causes(runs: Runs) -> TextTable:
    pushed = {name: rates.main_judge(results["rows"], "calibrate") for name, results in runs.items()}
    keys = dict.fromkeys(
        (str(row["prompts"]), str(row["condition"]), str(row["subject"])) for rows in pushed.values() for row in rows
    )
    lines = []
    for prompts, condition, subject in list(keys)[: tables.MOST_ROWS]:
        found = [rates.select(rows, prompts=prompts, condition=condition, subject=subject) for rows in pushed.values()]
        lines.append(
            [f"{prompts}, {condition}: {subject}", *(share(rates.rate(rows[0])) if rows else "-" for rows in found)]
        )
    return TextTable("Refused while neurons are pushed", ["prompts, push: neurons", *runs], lines)


def _vocabulary(runs: Runs) -> TextTable:
    sides = {name: {one.side: one for one in tables.vocabulary_sides(results)} for name, results in runs.items()}
    lines = []
    for side in dict.fromkeys(side for found in sides.values() for side in found):
        for what in ("together", "random", "single"):
            said = [text.score(found[side].overall[what]) if side in found else "-" for found in sides.values()]
            lines.append([f"{side}: {_READ[what]}", *said])
    return TextTable("What the neurons write: AUROC of the words, 0.5 is chance", ["neurons", *runs], lines)


_READ = {"together": "found neurons together", "random": "random sets", "single": "one by one"}


def _separability(runs: Runs) -> TextTable:
    """All neurons of a run together: the page of each run has its layers."""

    def read(whose: str) -> Callable[[dict[str, Any]], str]:
        def said(results: dict[str, Any]) -> str:
            join_processes = [one for one in clouds.layers(results) if one.number is None]
            return clouds.measured(getattr(join_processes[0], whose)) if join_processes else "-"

        return said

    title = "Harmful and benign prompts told apart by activations: AUROC"
    return _table(runs, title, "neurons", {"found": read("found"), "random": read("random")})


def _grid(runs: Runs) -> list[TextTable]:
    """Mean attack success, and one table for the refusals of each safe set."""
    measured = {
        name: {
            (what, f"{row['defense']} ({row['model']}, judge {row['judge']})"): rates.rate(dict(rate))
            for row in (results.get("evaluation") or {}).get("summary") or []
            for what, rate in {_SUCCESS: row["attack_success"], **row["over_refusal"]}.items()
            if rate
        }
        for name, results in runs.items()
    }
    keys = dict.fromkeys(key for found in measured.values() for key in found)
    made = []
    for what in dict.fromkeys(what for what, _ in keys):
        rows = [
            [who, *(share(found.get((what, who))) for found in measured.values())] for also, who in keys if also == what
        ]
        title = "mean attack success" if what == _SUCCESS else f"{what} requests refused"
        made.append(TextTable(f"Attack by defense: {title}", ["defense", *runs], rows[: tables.MOST_ROWS]))
    return made


# No set of prompts is called so.
_SUCCESS = ""


def _differences(runs: Runs) -> TextTable:
    """The settings, prompts and versions that are not the same in all runs."""
    described = {name: dict(tables.described(results)) for name, results in runs.items()}
    keys = dict.fromkeys(key for found in described.values() for key in found)
    rows = [[key, *(found.get(key, "-") for found in described.values())] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    return TextTable("In what they differ", ["setting", *runs], different[: tables.MOST_ROWS])
