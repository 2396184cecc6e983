"""An evaluation as tables of text, for the terminal and for Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from safety_neurons.core.tables import TextTable
from safety_neurons.evaluation.grid import HARMFUL

# A difference this unlikely by chance is marked.
SIGNIFICANT = 0.05


def tables(results: Mapping[str, Any]) -> list[TextTable]:
    """For each judge the standings and, for each model, the grid."""
    found = []
    for judge in results["judges"]:
        found.append(_summary_table(results, judge))
        found += [_grid(results, model, judge) for model in results["models"]]
    found += [_utility(results), _preferences(results), _tasks(results)]
    return [table for table in found if table.rows]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    prompts = results["prompts"]
    safe = ", ".join(f"{count} {name}" for name, count in prompts["safe"].items())
    reasons = {(cell["defense"], cell["reason"]) for cell in results["cells"] if cell["reason"]}
    return [
        f"{prompts['harmful']} harmful requests an attack, at most ({prompts['name']}); safe requests: {safe}. Answers "
        f"of {results['answer_tokens']} tokens. Percent of the answers that could be judged, with 95% intervals "
        "(Wilson; for means a bootstrap over requests); `?n`: so many could not be judged. `*`: differs from the "
        "undefended model (McNemar's exact test, 5%, one test a cell).",
        *(f"{defense}: not run where there is a dash. {reason}" for defense, reason in sorted(reasons)),
    ]


def _summary_table(results: Mapping[str, Any], judge: str) -> TextTable:
    mine = [row for row in results["summary"] if row["judge"] == judge]
    overhead = {(row["model"], row["defense"]): row for row in results["overhead"]}
    sets = list(results["prompts"]["safe"])
    columns = ["defense", "attack success", "change", *(f"{name} refused" for name in sets)]
    corrected = results["judge_errors"].get(judge) is not None
    rows = []
    for row in mine:
        cost = overhead.get((row["model"], row["defense"]))
        rows.append(
            [
                *([row["model"]] if len(results["models"]) > 1 else []),
                row["defense"],
                _share(row["attack_success"]),
                *([_share(row["corrected"])] if corrected else []),
                points(row["against_none"]),
                *(_share(row["over_refusal"].get(name)) for name in sets),
                *([f"{cost['ratio']:.2f}" if cost else "-"] if overhead else []),
            ]
        )
    if corrected:
        columns.insert(2, "corrected for the judge")
    if len(results["models"]) > 1:
        columns.insert(0, "model")
    if overhead:
        columns.append("time ratio")
    return TextTable(f"Defenses, judge {judge}: mean over attacks, in percent (95% interval)", columns, rows)


def _grid(results: Mapping[str, Any], model: str, judge: str) -> TextTable:
    mine = [cell for cell in results["cells"] if cell["model"] == model and cell["prompts"] == HARMFUL]
    attacks, defenses = _unique(cell["attack"] for cell in mine), _unique(cell["defense"] for cell in mine)
    cells = {(cell["attack"], cell["defense"]): cell for cell in mine}
    return TextTable(
        f"Attack success on {model}, judge {judge}, in percent",
        ["defense", *attacks],
        [[defense, *(_cell(cells.get((attack, defense)), judge) for attack in attacks)] for defense in defenses],
    )


def _utility(results: Mapping[str, Any]) -> TextTable:
    several = len(results["models"]) > 1
    rows = []
    for found in results["utility"]:
        words = found["words"]
        rows.append(
            [
                *([found["model"]] if several else []),
                found["defense"],
                f"{words['value']:.1f} ({words['low']:.1f}-{words['high']:.1f})",
                _share(found["looping"]),
                _share(found["blocked"]),
                _number(found["kl_divergence"]),
                _number(found["perplexity"]),
            ]
        )
    columns = ["defense", "words", "looping", "blocked", "KL, nats/token", "perplexity"]
    return TextTable("Ordinary requests", ["model", *columns] if several else columns, rows)


def _preferences(results: Mapping[str, Any]) -> TextTable:
    rows = [
        [
            row["model"],
            row["defense"],
            _share(row["win_rate"]["rate"]),
            "/".join(str(row["win_rate"][name]) for name in ("wins", "ties", "losses", "swayed", "unscored")),
            _number(row["grades"]["mean"]),
        ]
        for row in results["preferences"]
    ]
    columns = ["model", "defense", "win rate over none", "won/tied/lost/swayed/unscored", "grade of 10"]
    return TextTable("Open questions, by the preference judge", columns, rows, words=2)


def _tasks(results: Mapping[str, Any]) -> TextTable:
    rows = [
        [row["model"], row["defense"], task, name, f"{metric['value']:.3f}", _error(metric["stderr"])]
        for row in results["tasks"]
        for task, found in row["results"].items()
        for name, metric in found["metrics"].items()
    ]
    columns = ["model", "defense", "task", "metric", "value", "standard error"]
    return TextTable("Tasks of the LM Evaluation Harness", columns, rows, words=4)


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def _cell(cell: Mapping[str, Any] | None, judge: str) -> str:
    found = None if cell is None else cell["judges"].get(judge)
    if found is None or found["value"] is None:
        return "-"
    against = found["against_none"]
    mark = "*" if against and against["p"] < SIGNIFICANT else ""
    return _share(found) + mark + (f" ?{found['unscored']}" if found["unscored"] else "")


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value'] * 100:.0f} ({found['low'] * 100:.0f}-{found['high'] * 100:.0f})"


def points(found: Mapping[str, Any] | None) -> str:
    """A difference of two shares in percent, with its interval."""
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value'] * 100:+.0f} ({found['low'] * 100:+.0f} to {found['high'] * 100:+.0f})"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
