"""The report in other forms: Markdown, runs side by side, figures as files, and the command that writes them."""

import json
from pathlib import Path
from typing import Any

import plotly.io
import pytest

from builders.report import (
    DASH,
    PAYLOAD,
    Page,
    Rows,
    before_and_after,
    clouds,
    extended_grid,
    full,
    grid,
    guard,
    other_run,
    partial_run,
    poisoned,
    share,
    whole_run,
)
from safety_neurons.cli import app
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.report import RunResults, exports
from safety_neurons.report.comparison import comparison_figures, names
from safety_neurons.report.exports import write_figures, write_markdown
from safety_neurons.report.page import write_comparison


def all_sections() -> dict[str, Any]:
    return full() | {"evaluation": before_and_after()}


def read(*runs: dict[str, Any]) -> dict[str, RunResults]:
    return {name: RunResults.of(results) for name, results in zip(("first", "second", "third"), runs, strict=False)}


def folder(path: Path, results: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(results))
    return path


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_markdown_has_every_part(tmp_path: Path) -> None:
    write_markdown(read(all_sections()), tmp_path / "report.md")
    found = lines(tmp_path / "report.md")
    assert found[0].startswith("Tuning 2,335 safety neurons")
    rates = f"48% (44{DASH}52%), 3 unscored | 97 | 6% (2{DASH}10%), 3 unscored | 97"
    assert f"| harmful | mean | attack success | {rates} |" in found
    titles = [line.strip("*") for line in found if line.startswith("**")]
    for start in (
        "Before",
        "Refused while",
        "What the",
        "Dose",
        "The smallest",
        "Detectors",
        "Refused without",
        "Pareto",
    ):
        assert any(title.startswith(start) for title in titles), start
    assert "Defenses, tiny, judge refusal" in titles
    tables = [block for block in "\n".join(found).split("\n\n") if block.startswith("|")]
    assert all(len({line.replace("\\|", "").count("|") for line in block.split("\n")}) == 1 for block in tables)


def test_markdown_of_a_run_that_has_only_found_neurons(tmp_path: Path) -> None:
    write_markdown(read(partial_run()), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "whether they cause refusals is not tested yet" in text
    assert "safety-neurons run --seed 7" in text
    assert "|" not in text


def test_the_clouds_and_the_doses_of_the_guard_in_markdown(tmp_path: Path) -> None:
    results = whole_run() | {"clouds": clouds(), "guard": guard()}
    write_markdown(read(results), tmp_path / "report.md")
    found = lines(tmp_path / "report.md")
    assert sum(line.startswith(("| layer ", "| all layers ")) for line in found) == len(results["clouds"]["layers"])
    assert "| no guard | 62% | 0% |" in found
    assert "| 3, chosen | 13% | 5% |" in found
    write_markdown(read(results, whole_run()), tmp_path / "both.md")
    assert "**Harmful and benign prompts told apart by activations: AUROC**" in lines(tmp_path / "both.md")


def test_hostile_names_stay_text_in_markdown(tmp_path: Path) -> None:
    results = poisoned(whole_run() | {"evaluation": extended_grid()})
    write_markdown(read(results), tmp_path / "report.md")
    write_markdown(read(results, whole_run()), tmp_path / "both.md")
    for name in ("report.md", "both.md"):
        text = (tmp_path / name).read_text(encoding="utf-8").split("```")
        assert "&lt;script\\>" in "".join(text[::2])
        assert "<" not in "".join(text[::2])
        assert "\u202e" not in "".join(text)


def test_runs_side_by_side(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    write_comparison(read(whole_run(), other_run(), partial_run()), page)
    rows = Rows(page.read_text(encoding="utf-8")).found
    mean = f"48% (44{DASH}52%), 3 unscored → 6% (2{DASH}10%), 3 unscored"
    assert f"harmful, mean (attack success) | {mean} | {mean} | {DASH}" in rows
    assert "find.score | write-contrast | gradient | write-contrast" in rows
    assert "seed | 7 | 8 | 7" in rows
    assert not any(row.startswith("find.percent") for row in rows), "only what differs is listed"
    assert "result | clear result | clear result | unfinished" in rows
    shown = Page(page)
    assert len(shown.source) < 8_000_000
    assert set(shown.json) == {"data-compared-attacks", "data-compared-refusals"}


def test_runs_that_measured_nothing_side_by_side_have_no_figure_and_no_script(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    write_comparison(read(whole_run(), partial_run()), page)
    shown = Page(page)
    assert shown.scripts == []
    assert len(shown.source) < 100_000
    policies = [str(a["content"]) for _, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "script-src 'none'" in policies[0]


def test_figures_of_runs_side_by_side() -> None:
    attacks, refusals = comparison_figures(read(whole_run(), other_run(), partial_run()))
    drawn = [trace for trace in attacks.specification["data"] if trace.get("showlegend", True)]
    assert [trace["name"] for trace in drawn] == ["first", "second"]
    assert drawn[0]["x"] == [0.02, 0.1, 0.06]
    assert "first, mean: 48% before, 6% after" in attacks.alternative
    assert "harmless requests refused" in refusals.alternative


def test_grids_side_by_side(tmp_path: Path) -> None:
    section = grid()
    section["summary"][0]["over_refusal"] = {"benign": share(0.25) | {"n": 4, "unscored": 1}}
    runs = [partial_run() | {"evaluation": one} for one in (section, grid())]
    write_markdown(read(*runs), tmp_path / "both.md")
    found = lines(tmp_path / "both.md")
    assert f"| icd (tiny, judge asked) | 25% (65{DASH}82%) | 25% (65{DASH}82%) |" in found
    assert "**Attack by defense: benign requests refused**" in found
    assert f"| none (tiny, judge rules) | 25% (15{DASH}32%), 1 unscored | {DASH} |" in found


def test_hostile_runs_side_by_side(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    results = poisoned(whole_run() | {"evaluation": extended_grid()})
    runs = {"a" + PAYLOAD: RunResults.of(results), "b": RunResults.of(whole_run())}
    write_comparison(runs, page)
    shown = Page(page)
    # Plotly's script and ours; what the runs hold is data.
    assert len(shown.scripts) == 2
    assert [tag for tag, _ in shown.tags if tag == "img"] == []
    assert shown.text.count("<script>alert(1)</script>") > 5
    assert "\u202e" not in shown.source
    assert "W" * 3000 not in shown.source


def test_names_are_short_unless_they_clash(tmp_path: Path) -> None:
    one, two, other = tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "demo"
    assert names([one, other]) == ["run", "demo"]
    assert names([one, two, other]) == [str(one), str(two), "demo"]
    with pytest.raises(SafetyNeuronsError, match="each run once"):
        names([one, one])


def test_command_writes_what_is_asked_for(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "first", whole_run()), folder(tmp_path / "second", other_run())
    for arguments, written in (
        ([str(first)], first / "report.html"),
        ([str(first), "--format", "md"], first / "report.md"),
        ([str(first), str(second)], tmp_path / "comparison.html"),
        ([str(first), str(second), "--format", "md", "--out", str(tmp_path / "x.md")], tmp_path / "x.md"),
    ):
        app(["report", *arguments], result_action="return_value")
        assert written.stat().st_size > 0
        written.unlink()
    with pytest.raises(SafetyNeuronsError, match="holds no run"):
        app(["report", str(first), str(tmp_path / "missing")], result_action="return_value")


def test_figures_without_kaleido_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SafetyNeuronsError, match=r"safety-neurons\[figures\]"):
        write_figures(RunResults.of(all_sections()), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_every_figure_is_written_twice_and_on_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def write_images(**given: Any) -> None:
        calls.append(given)
        for path in given["file"]:
            path.write_text("")

    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plotly.io, "write_images", write_images)
    files = write_figures(RunResults.of(all_sections()), tmp_path / "figures")
    made = {path.name for path in files}
    assert {"layers.png", "layers.svg", "attacks.svg", "grid-1.png", "doses-harmful.svg"} <= made
    (call,) = calls
    assert len(call["fig"]) == len(call["height"]) == len(call["scale"]) == len(files)
    assert {figure["layout"]["paper_bgcolor"] for figure in call["fig"]} == {"#fff"}
    for figure in call["fig"]:
        plotly.io.from_json(json.dumps(figure, default=list))


@pytest.mark.parametrize("writes", [True, False], ids=["no Chrome", "nothing written"])
def test_a_failing_export_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool) -> None:
    def write_images(**given: Any) -> None:
        if writes:
            raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\n")

    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plotly.io, "write_images", write_images)
    with pytest.raises(SafetyNeuronsError, match="Chrome"):
        write_figures(RunResults.of(whole_run()), tmp_path)
