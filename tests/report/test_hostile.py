"""Hostile text in every place of the results that holds text does nothing in page, comparison, Markdown and tables."""

import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from builders.hostile import HOSTILE, READABLE, Elements, forbidden, foreign_markdown, strings
from builders.report import audited, extended_grid, full, share
from safety_neurons.core.tables import Table
from safety_neurons.core.terminal import TerminalTable
from safety_neurons.report import PARTS, RunResults, page, run_tables, tables_of
from safety_neurons.report.comparison import comparison_tables
from safety_neurons.report.drawing import make_figure
from safety_neurons.report.exports import evaluation_markdown, write_markdown
from safety_neurons.report.text import label

# Names that others choose stand as keys here; dotted ones are of our settings.
NAMED = {
    *("settings", "versions", "corpus", "not_run", "blocked_by", "judges", "attacks", "defenses", "over_refusal"),
    *("safe", "remarks", "counts", "judge_errors", "metrics", "results"),
}
# Texts that decide which rows belong together, and where they are shown.
DECIDING = {
    *("stage", "subject", "condition", "prompts", "defense", "metric", "side", "weighting", "lexicon", "toward"),
    *("detector", "model", "judge", "attack"),
}
# What a reader of results accepts nothing but: verdicts among them.
KEPT = {
    *("none", "safetuning", "benign", "borderline", "harmful", "refused", "complied", "unscored"),
    *("PASS", "WARN", "BLOCK", "UNDERPOWERED", "NOT TESTED", "refusals", "over_refusal", "nll", "safety", "costs"),
}


def everything() -> dict[str, Any]:
    """Results with every section, and every field that holds text."""
    section = extended_grid()
    who = {"model": "tiny", "defense": "icd"}
    mean = {"value": 2.5, "low": 2.0, "high": 3.0}
    means = dict.fromkeys(("words", "kl_divergence", "perplexity"), mean)
    section["utility"] = [who | means | {"looping": share(0.2), "blocked": share(0)}]
    wins = {"wins": 10, "ties": 11, "losses": 12, "swayed": 13, "unscored": 14, "rate": share(0.25)}
    section["preferences"] = [who | {"win_rate": wins, "grades": {"mean": mean}}]
    change = {"value": -0.25, "low": -0.5, "high": 0.0}
    section["gsm8k"] = [who | {"exact_match": share(0.25), "cut_off": share(0), "difference": change}]
    section["tasks"] = [who | {"results": {"arc": {"metrics": {"acc,none": {"value": 0.5, "stderr": 0.01}}}}}]
    section["prompts"]["remarks"] = {"harmful": "2 rows have no prompt"}
    for cell in section["cells"]:
        cell |= {"blocked": 3, "blocked_by": {"a filter": 1}, "not_run": {cell["prompt_ids"][0]: "a template refused"}}
    results = full() | {"evaluation": section, "audit": audited()}
    run = results["run"]
    run["coverage"] |= {"without_mlp": 1, "unread": ["layer 1 is of an unknown kind"]}
    run["prompts"]["harmful"] |= {"columns": ["question"], "notes": ["read as CSV"], "category": "weapons"}
    run["settings"] |= {"model": "tiny", "system": "You are a model.", "evaluate": {"attacks": ["direct", "mine.py:A"]}}
    return results


def poisoned(value: Any, text: str, key: str = "", deciding: bool = False) -> Any:
    """The same with `text` after every string and every name, or instead of every text that decides."""
    if key == "settings":
        # Settings with halves of characters are not read at all.
        text = text.encode("utf-8", "ignore").decode()
    if isinstance(value, dict):
        own = "" if key not in NAMED else text
        return {
            name if name in KEPT or "." in name else name + own: poisoned(content, text, name, deciding)
            for name, content in value.items()
        }
    if isinstance(value, list):
        return [poisoned(one, text, key, deciding) for one in value]
    if not isinstance(value, str) or value in KEPT or (key in DECIDING and not deciding):
        return value
    return text if deciding else value + text


def console_text(tables: list[Table], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for table in tables:
        console.print(TerminalTable(table))
    return console.file.getvalue()  # type: ignore[attr-defined]


def all_tables(results: RunResults, name: str) -> Iterator[Table]:
    yield from tables_of(results, "neurons", "words", "training", *PARTS).tables
    yield from run_tables.small_print(results)
    yield run_tables.single_neurons(results)
    yield from comparison_tables({name: results, "other": RunResults.of(everything())})


class Rendered(NamedTuple):
    page: str
    compared: str
    written: list[str]
    tables: list[Table]


def rendered(content: dict[str, Any], name: str, folder: Path) -> Rendered:
    """The page and the comparison without Plotly's script, what is Markdown, and all tables."""
    results = RunResults.of(json.loads(json.dumps(content)))
    pair = {name: results, "other": RunResults.of(everything())}
    with pytest.MonkeyPatch.context() as patch:
        # Megabytes of characters of all kinds.
        patch.setattr(page, "get_plotlyjs", lambda: "")
        source = page.render(results)
        page.write_comparison(pair, folder / "comparison.html")
    write_markdown({name: results}, folder / "one.md")
    write_markdown(pair, folder / "both.md")
    assert results.evaluation
    compared, *written = [(folder / file).read_text("utf-8") for file in ("comparison.html", "one.md", "both.md")]
    written.append(evaluation_markdown(results.evaluation, name))
    return Rendered(source, compared, written, [*all_tables(results, name)])


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Rendered]:
    """The same with a letter in place of the attack."""
    folder = tmp_path_factory.mktemp("harmless")
    return {one: rendered(poisoned(everything(), " b", deciding=one), " b", folder) for one in (False, True)}


# Without the names that decide, most tables are empty: fewer attacks will do.
CASES = [(name, False) for name in HOSTILE] + [
    (name, True) for name in ("escape sequences", "markdown", "web text", "html", "very long")
]


@pytest.mark.parametrize(("name", "deciding"), CASES)
def test_nothing_in_the_results_does_anything(
    tmp_path: Path, harmless: dict[bool, Rendered], name: str, deciding: bool
) -> None:
    text = HOSTILE[name]
    shown, expected = rendered(poisoned(everything(), text, deciding=deciding), text, tmp_path), harmless[deciding]
    for source, other in ((shown.page, expected.page), (shown.compared, expected.compared)):
        found = Elements(source)
        said = [*found.shown, *strings(found.json)]
        assert [one for one in (source, *said) if forbidden(one)] == []
        assert found.found == Elements(other).found
        assert len(source) < 3_000_000
    for written in shown.written:
        assert forbidden(written) == []
        assert foreign_markdown(written) == []
    assert len(shown.tables) == len(expected.tables) > (10 if deciding else 40)
    for width in (80, 120):
        assert forbidden(console_text(shown.tables, width)) == []


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE)
def test_every_script_is_readable_everywhere(tmp_path: Path, text: str) -> None:
    results = everything()
    results["run"]["model"]["name"] = text
    results["examples"][1] |= {"prompt": text, "response": f"1. {text}\n\n\n\n2. b"}
    shown = rendered(results, text, tmp_path)
    source = html.unescape(shown.page)
    assert source.count(text) > 3
    assert f">1. {text}\n\n2. b</bdi>" in source, "answers keep their lines"
    assert text in html.unescape(shown.compared)
    assert all(text in written for written in shown.written)
    printed = "".join(console_text(shown.tables, 120).split())
    assert "".join(text.split()) in printed


def test_figures_draw_no_foreign_tag_even_if_a_text_was_forgotten() -> None:
    text = "<a href='http://x.test'>a</a> <b style='x'>b</b> <br> <span>c\x9b\u202e"
    figure = make_figure("x", text, 90, [{"type": "scatter", "x": [0], "y": [0], "name": text, "hovertext": [text]}])
    shown = list(strings(json.loads(json.dumps(figure.specification))))
    assert [one for one in (*shown, figure.alternative) if forbidden(one)] == []
    assert {tag for one in shown for tag in re.findall("<[^ >]*", one)} == {"</b", "<br"}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_labels_of_figures_hold_no_tag_value_or_formula(text: str) -> None:
    for shown in (label(text), label(text, 400)):
        assert forbidden(shown) == []
        assert not re.search(r"[<>$]|%\{", shown)
