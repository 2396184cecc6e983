"""The tables of the commands."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from safety_neurons.cli.console import console
from safety_neurons.core.tables import TextTable, rich_table
from safety_neurons.models.presets import PRESETS


def percent(row: dict[str, Any]) -> str:
    """A rate with its interval, and what could not be judged."""
    if row["value"] is None:
        return "none could be judged"
    text = f"{row['value']:.0%} ({row['low'] * 100:.0f}-{row['high'] * 100:.0f})"
    return text + (f"\n{row['unscored']} unscored" if row["unscored"] else "")


def print_stage(results: dict[str, Any], stage: str) -> None:
    """The table of one stage, where it has one."""
    if stage == "calibrate":
        _print_calibration(results)
    elif stage == "evaluate":
        _print_evaluation(results)


def print_results(results: dict[str, Any]) -> None:
    """The tables of a whole run."""
    _print_calibration(results)
    _print_evaluation(results)


def _print_calibration(results: dict[str, Any]) -> None:
    rows = [row for row in results["rows"] if row["stage"] == "calibrate"]
    if not rows:
        return
    table = _table(results, "Do the neurons cause refusals? Share refused (95% interval)")
    for column in ("prompts", "calibration", "neurons", "refused", "n"):
        table.add_column(column, justify="right" if column == "n" else "left")
    for row in rows:
        table.add_row(row["prompts"], row["condition"], _subject(row), percent(row), str(row["n"]))
    console.print(Padding(table, (1, 0, 0, 0)))


def _table(results: dict[str, Any], title: str) -> Table:
    """A table that says so where the neurons are those of some layers only."""
    from safety_neurons.report.summary import partial

    caption = partial(results) or None
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)


def _subject(row: dict[str, Any]) -> str:
    return "-" if row["subject"] == "base" else str(row["subject"])


def _print_evaluation(results: dict[str, Any]) -> None:
    rows = [row for row in results["rows"] if row["stage"] == "evaluate"]
    if not rows:
        return
    table = _table(results, "What tuning did (95% interval)")
    for column in ("measure", "attack", "before", "after", "n"):
        table.add_column(column, justify="right" if column == "n" else "left")
    after = {(row["prompts"], row["attack"], row["metric"]): row for row in rows if row["condition"] == "after"}
    for row in rows:
        if row["condition"] == "before":
            measure = row["metric"] if row["prompts"] == "harmful" else f"{row['prompts']} {row['metric']}"
            tuned = after[row["prompts"], row["attack"], row["metric"]]
            last = row["attack"] == "mean"
            table.add_row(measure, row["attack"], percent(row), percent(tuned), str(row["n"]), end_section=last)
    console.print(Padding(table, (1, 0, 1, 0)))


def print_comparison(results: dict[str, Any]) -> None:
    """The tables of a comparison of scores."""
    from safety_neurons.report.score_tables import notes, tables

    _print_tables(tables(results), notes(results))


def print_evaluation_grid(results: dict[str, Any]) -> None:
    """The standings and the grid of an evaluation."""
    from safety_neurons.report.evaluation_tables import notes, tables

    _print_tables(tables(results), notes(results))


def _print_tables(tables: Sequence[TextTable], notes: Sequence[str]) -> None:
    for found in tables:
        console.print(Padding(rich_table(found), (1, 0, 0, 0)))
    for note in notes:
        console.print(escape(note))


def print_dose_response(results: dict[str, Any]) -> None:
    """What each dose did, harmful and benign prompts side by side."""
    found = results["dose_response"]
    for name in ("harmful", "benign"):
        table = _table(results, f"Dose-response on {name} prompts of {escape(found['on'])} (95% interval)")
        for column in ("alpha", "neurons", "answered", "refused", "broken", "KL"):
            table.add_column(column, justify="left" if column == "neurons" else "right")
        for row in (row for row in found["rows"] if row["prompts"] == name):
            alpha = f"{row['alpha']:+.3g}" if row["alpha"] else "0"
            table.add_row(alpha, escape(_subject(row)), *_cells(row))
        console.print(Padding(table, (1, 0, 0, 0)))
    console.print(
        "Below 0 toward rejection, above 0 toward conformity. Equal dose: alpha "
        f"{found['equal_dose_factor']:.1f} times as high, so that random neurons are pushed as hard. KL: to the "
        "base model on its own answers, in nats per token. Broken answers count as neither."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    shares = [_interval(row[name]) for name in ("answered", "refused")]
    return [*shares, f"{row['broken']['value']:.0%}", _number(row["kl_divergence"]["value"])]


def _interval(share: dict[str, float]) -> str:
    return f"{share['value']:.0%} ({share['low'] * 100:.0f}-{share['high'] * 100:.0f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_search(results: dict[str, Any]) -> None:
    """The chosen pushes, and what they and random neurons do on prompts that nothing was chosen on."""
    found = results["search"]
    for direction in found["directions"]:
        chosen, push = direction["chosen"], direction["push"]
        console.print(
            f"\nTowards {direction['toward']}: {push['neurons']:,} neurons ({push['share_of_neurons']:.2%}; "
            f"{push['share_of_parameters']:.2%} of the weights) by {escape(found['score'])}, alpha "
            f"{chosen['alpha']:.2f}, the last {chosen['prompt_positions']} prompt positions and "
            f"{chosen['generated_tokens']} generated tokens. On validation prompts it moves {chosen['moved']:.0%}, "
            f"{chosen['broken']:.0%} broken."
        )
        for test in direction["tests"]:
            verb = "answered" if direction["toward"] == "conformity" else "refused"
            title = f"{escape(test['on'])}: {test['moving']} prompts {verb} (95% interval)"
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
            for column in ("neurons", "alpha", verb, "broken", "moved", f"KL on {test['staying']}", "p"):
                table.add_column(column, justify="left" if column == "neurons" else "right")
            for row in test["rows"]:
                alpha = {"base": "", "found": f"{chosen['alpha']:.1f}"}.get(row["subject"])
                table.add_row(
                    escape(row["subject"]),
                    f"{row['alpha']:.1f}" if alpha is None else alpha,
                    _interval(row["moving"][verb]),
                    f"{row['moving']['broken']['value']:.0%}",
                    _interval(row["moved"]),
                    _number(row["staying"]["kl_divergence"]["value"]) if row["staying"] else "",
                    f"{row['p_value']:.2g}" if "p_value" in row else "",
                )
            console.print(table)


def print_adaptive(results: dict[str, Any]) -> None:
    """What calibration toward conformity makes of the base and of the tuned model."""
    found = results["adaptive"]
    table = _table(results, f"Calibrated toward conformity: shares of {escape(found['on'])} (95% interval)")
    for column in ("model", "neurons", "prompts", "answered", "refused", "broken", "KL"):
        table.add_column(column, justify="left" if column in ("model", "neurons", "prompts") else "right")
    for row in found["rows"]:
        table.add_row(row["model"], row["calibrated"], row["prompts"], *_cells(row))
    console.print(Padding(table, (1, 0, 0, 0)))


def print_auto(results: dict[str, Any]) -> None:
    """All trials of a search for tuning's settings, those of the Pareto front marked."""
    found = results["auto"]
    table = _table(results, "Tuning's settings, on validation prompts; * is on the Pareto front")
    # Eight columns in eighty characters.
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for column in ("trial", "neurons", "rate", "pairs", "KLw", "attacks", "over", "KL"):
        table.add_column(column, justify="left" if column in ("trial", "neurons") else "right", no_wrap=True)
    table.add_row("none", *[""] * 4, *_rates(found["base"] | {"kl_divergence": 0.0}), end_section=True)
    for trial in found["trials"]:
        settings = trial["settings"]
        table.add_row(
            f"{trial['number']}{'*' if trial['number'] in found['front'] else ''}",
            f"{settings['find.percent']:.2g}% {escape(settings['find.score'])}",
            f"{settings['tune.learning_rate']:.0e}",
            "+".join(str(settings[f"tune.{kind}"]) for kind in ("refusals", "contrast", "benign")),
            f"{settings['tune.kl']:g}",
            *_rates(trial["objectives"]),
            style="bold" if trial["number"] == found["chosen"] else None,
            end_section=trial is found["trials"][-1],
        )
    table.add_row("the run", *[""] * 4, *_rates(found["tuned"]))
    console.print(Padding(table, (1, 0, 0, 0)))
    console.print(
        f"Chosen: trial {found['chosen']}; the run is tuned so. Pairs: refusals of harmful requests, of unsafe twins, "
        "and answers to benign requests, as they were asked for. KLw: how much KL counts in training. Attacks: those "
        "that succeed. Over: safe requests that the base model answers and the tuned one does not. KL: to the "
        "base model on its own answers to these, in nats per token."
    )


def _rates(objectives: Mapping[str, float]) -> list[str]:
    shares = [f"{objectives[name]:.0%}" for name in ("attack_success", "over_refusal")]
    return [*shares, f"{objectives['kl_divergence']:.3f}"]


def print_guard(results: dict[str, Any]) -> None:
    """The guard as a detector beside others, and in action."""
    found = results["guard"]
    for test in dict.fromkeys(row["on"] for row in found["detectors"]):
        title = f"{escape(test)}: does it tell harmful from safe prompts? (95% interval)"
        table = _table(results, title)
        for column in ("detector", "AUROC", "at 1%", "at 5%", "flagged harmful", "flagged safe"):
            table.add_column(column, justify="left" if column == "detector" else "right")
        for row in (row for row in found["detectors"] if row["on"] == test):
            auroc = row["auroc"]
            table.add_row(
                escape(row["detector"]),
                f"{auroc['value']:.2f} ({auroc['low']:.2f}-{auroc['high']:.2f})",
                f"{row['tpr_at_0.01']['value']:.0%}",
                f"{row['tpr_at_0.05']['value']:.0%}",
                *(_interval(row[name]) if name in row else "" for name in ("flagged_harmful", "flagged_benign")),
            )
        console.print(Padding(table, (1, 0, 0, 0)))
    console.print(
        f"It decides in layer {found['layer']} by {found['deciding_neurons']:,} neurons; flagged: with the threshold "
        f"for {found['false_positive_rate']:.0%} false positives among the training prompts. At 1% and 5%: the share "
        "of harmful prompts caught with the threshold that gives so many false positives on the test itself."
    )
    if doses := found["doses"]:
        table = _table(results, "Its dose, tried on the validation prompts, plain and disguised")
        for column in ("alpha", "attack success", "over-refusal"):
            table.add_column(column, justify="right")
        for dose in doses:
            alpha = f"{dose['alpha']:g}" + (" (chosen)" if dose["alpha"] == found["alpha"] else "")
            table.add_row(
                alpha if dose["alpha"] else "no guard",
                *(f"{dose[name]:.0%}" for name in ("attack_success", "over_refusal")),
            )
        console.print(Padding(table, (1, 0, 0, 0)))
    if not found["rows"]:
        return
    table = _table(results, "In action: what is refused (95% interval)")
    for column in ("test", "prompts", "base", "guarded", "unscored", "n"):
        table.add_column(column, justify="left" if column in ("test", "prompts") else "right")
    for row in found["rows"]:
        refused = [_interval(row[subject]["refused"]) for subject in ("base", "guarded")]
        unscored = f"{row['base']['unscored']} / {row['guarded']['unscored']}"
        table.add_row(escape(row["on"]), row["prompts"], *refused, unscored, str(row["n"]))
    console.print(Padding(table, (1, 0, 0, 0)))


def print_models() -> None:
    """All presets, and how to get each."""
    from safety_neurons.models.locate import availability

    table = Table(title="Presets", title_justify="left", box=SIMPLE_HEAD)
    for column in ("name", "size", "license", "here", "how to get it"):
        table.add_column(column, no_wrap=column in ("name", "size"), overflow="fold")
    for preset in PRESETS.values():
        here, how = availability(preset)
        table.add_row(preset.name, f"{preset.parameters:g}B", preset.license, here, how)
    console.print(table)
