"""The comparison as tables: headings, columns and rows of text, for Markdown and for the terminal."""

from typing import Any

from safety_neurons.core.tables import TextTable
from safety_neurons.core.tables import markdown as as_markdown

MEGABYTE = 2**20
TITLES = {
    "conformity": "Toward conformity: harmful prompts that are answered",
    "rejection": "Toward rejection: benign prompts that are refused",
}


def tables(results: dict[str, Any]) -> list[TextTable]:
    """All tables of a comparison."""
    return [*(_effects(results, toward) for toward in TITLES), _sizes(results), _overlap(results), _costs(results)]


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    settings, model = results["settings"], results["model"]
    calibrate, evaluate, prompts = settings["calibrate"], settings["evaluate"], results["training_prompts"]
    where = f"the last {calibrate['prompt_positions']} prompt positions"
    if calibrate["generated_tokens"]:
        where += f" and the first {calibrate['generated_tokens']} generated tokens"
    found = [
        f"{model['name']}, {model['neurons']:,} neurons, {model['dtype']} on {model['device']}. Scores from "
        f"{prompts['harmful']} harmful and {prompts['benign']} benign training prompts; answers to up to "
        f"{evaluate['prompts']} test prompts a side, {evaluate['answer_tokens']} tokens, greedy, judge "
        f"`{evaluate['judge']}`.",
        _strength(results, where),
        "Percent of all prompts, with Wilson's 95% interval; an answer that could not be judged counts as not moved, "
        "`?n` says how many there were. `*`: more prompts are moved than by as many random neurons, `<`: fewer "
        "(McNemar's exact test, false discovery rate 5% over all cells).",
    ]
    return found + [f"`{name}` is left out: {why}." for name, why in results["left_out"].items()]


def _strength(results: dict[str, Any], where: str) -> str:
    calibrate = results["settings"]["calibrate"]
    alphas = (
        f"{calibrate['alpha_conformity']:g} toward conformity, {calibrate['alpha_rejection']:g} toward rejection, "
        f"at {where}"
    )
    if results["equal_dose"]:
        return (
            f"The same dose for all scores: that of write-contrast with alpha {alphas}; alpha is scaled for the others."
        )
    return (
        f"The same alpha for all scores: {alphas}. A score that picks neurons whose activations differ more therefore "
        "gives a larger dose."
    )


def _effects(results: dict[str, Any], toward: str) -> TextTable:
    mine = [row for row in results["rows"] if row["toward"] == toward]
    cells = {(row["score"], row["percent"]): row for row in mine}
    budgets = [budget for budget in sorted(results["budgets"]) if any(row["percent"] == budget for row in mine)]
    rows = [
        [about["score"], *(_cell(cells[about["score"], budget]) for budget in budgets)] for about in results["scores"]
    ]
    base = _cell(cells[None, None]) if mine else "-"
    return TextTable(f"{TITLES[toward]} (base: {base})", ["score", *(f"{budget:g}%" for budget in budgets)], rows)


def _cell(row: dict[str, Any]) -> str:
    text = f"{row['value'] * 100:.0f} ({row['low'] * 100:.0f}-{row['high'] * 100:.0f})"
    mark = "" if not row["differs_from_random"] else "*" if row["against_random"] > 0 else "<"
    return text + mark + (f" ?{row['unscored']}" if row["unscored"] else "")


def _sizes(results: dict[str, Any]) -> TextTable:
    rows = {(row["score"], row["percent"]): row for row in results["rows"] if row["toward"] == "conformity"}
    budgets = [budget for budget in sorted(results["budgets"]) if any(percent == budget for _, percent in rows)]

    def cell(score: str, budget: float) -> str:
        row, reference = rows[score, budget], rows["write-contrast", budget]
        share = f" ({row['dose'] / reference['dose']:.2f})" if reference["dose"] else ""
        return f"{row['neurons']:,}{share}"

    cells = [[one["score"], *(cell(one["score"], budget) for budget in budgets)] for one in results["scores"]]
    title = "Neurons in each set, and its dose (summed length of what is added) as a multiple of write-contrast's"
    return TextTable(title, ["score", *(f"{budget:g}%" for budget in budgets)], cells)


def _overlap(results: dict[str, Any]) -> TextTable:
    overlap = results["overlap"]
    rows = [
        [name, *("-" if name == other else f"{value:.2f}" for other, value in zip(overlap["scores"], row, strict=True))]
        for name, row in zip(overlap["scores"], overlap["jaccard"], strict=True)
    ]
    title = f"Overlap of the sets at {overlap['percent']:g}% (Jaccard: shared neurons by all neurons of both)"
    return TextTable(title, ["score", *overlap["scores"]], rows)


def _costs(results: dict[str, Any]) -> TextTable:
    rows = [
        [
            one["score"],
            _number(one["jaccard"]),
            _number(one["spearman"]),
            f"{one['seconds']:.0f}",
            f"{one['peak_bytes'] / MEGABYTE:,.0f}",
            "-" if one["significant"] is None else f"{one['significant']:,}",
        ]
        for one in results["scores"]
    ]
    halves = results["scores"][0]["halves"]
    title = (
        f"Stability over {halves} random halves of the training prompts (Jaccard at "
        f"{results['overlap']['percent']:g}%, Spearman over all neurons), and cost"
    )
    columns = ["score", "Jaccard", "Spearman", "seconds", "peak MB", "significant"]
    return TextTable(title, columns, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def markdown(results: dict[str, Any]) -> str:
    """The tables and their notes as Markdown."""
    command = [f"```\n{results['command']}\n```"] if results["command"] else []
    return as_markdown([*tables(results), _formulas(results)], [*command, *notes(results)])


def _formulas(results: dict[str, Any]) -> TextTable:
    rows = [
        [one["score"], f"`{one['formula']}`", one["tokens"], one["scope"], one["source"]] for one in results["scores"]
    ]
    return TextTable("The scores", ["score", "formula", "tokens", "budget per", "source"], rows)
