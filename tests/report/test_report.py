"""The page of a run: whole, partial and hostile results, parsed as a browser would."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.report import write_report

SECTIONS = ["where", "say", "cause", "guard", "tuning", "before-after", "grid", "examples", "small-print"]
PAYLOAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202egpj\u2028\x07\ud800 {{ 7 * 7 }}"


FIELDS = ("stage", "subject", "condition", "prompts", "attack", "defense")


def row(*names: str, value: float) -> dict[str, Any]:
    named = dict(zip(FIELDS, names, strict=True))
    metric = "attack success" if (named["stage"], named["prompts"]) == ("evaluate", "harmful") else "refused"
    ends = {"low": max(0.0, value - 0.04), "high": min(1.0, value + 0.04)}
    return named | {"judge": "refusal", "metric": metric, "value": value, "n": 97, "unscored": 3} | ends


def example(prompt: str, response: str | None, verdict: str) -> dict[str, Any]:
    named = dict(zip(FIELDS, ("evaluate", "base", "before", "harmful", "direct", "none"), strict=True))
    return named | {"prompt": prompt, "response": response, "verdict": verdict}


def vocabulary() -> dict[str, Any]:
    """A test of both weightings; only one of them is the run's."""
    scores, overall, lens, first = [], [], [], []
    for weighting, shift in (("difference", 0.0), ("mean", 0.05)):
        for side, lexicon in (("rejection", "refusal"), ("conformity", "compliance"), ("rejection", "compliance")):
            key = {"weighting": weighting, "side": side, "lexicon": lexicon}
            rates = {"random": 0.51, "random_low": 0.4, "random_high": 0.62, "single": 0.53, "random_single": 0.52}
            overall.append(
                key | rates | {"layers": 2, "significant": 1, "together": 0.71 + shift, "p": 0.001, "lens": 0.88}
            )
            lens += [key | {"layer": layer, "auroc": 0.8 + 0.05 * layer} for layer in (0, 1, 2)]
            for layer, join_processes in ((0, 0.55), (1, 0.87)):
                entry = {"layer": layer, "neurons": 12, "together": join_processes + shift, "p_adjusted": 0.0123}
                scores.append(key | rates | entry | {"single_above": 3})
        first += [{"side": side, "weighting": weighting, "layer": 1} for side in ("rejection", "conformity")]
    return {"random_sets": 1234, "scores": scores, "overall": overall, "lens": lens, "first_readable": first}


def whole_run() -> dict[str, Any]:
    rows = [
        row("calibrate", "base", "none", "harmful", "direct", "none", value=0.7),
        row("calibrate", "found", "toward conformity", "harmful", "direct", "none", value=0.04),
        row("calibrate", "random", "toward conformity", "harmful", "direct", "none", value=0.66),
        row("calibrate", "found", "toward rejection", "benign", "direct", "none", value=0.8),
    ]
    for subject, condition, defense, rates in (
        ("base", "before", "none", (0.3, 0.66, 0.48, 0.05, 0.34)),
        ("tuned", "after", "safetuning", (0.02, 0.1, 0.06, 0.03, 0.3)),
    ):
        kinds = [("harmful", "direct"), ("harmful", "a-new-attack"), ("harmful", "mean")]
        kinds += [("benign", "direct"), ("borderline", "direct")]
        for (prompts, attack), value in zip(kinds, rates, strict=True):
            rows.append(row("evaluate", subject, condition, prompts, attack, defense, value=value))
    return {
        "schema": 2,
        "run": {
            "model": {"name": "tiny", "identity": "sha256:abc", "dtype": "float32", "parameters": 1000},
            "coverage": {"layers": 2, "layers_total": 2, "neurons": 64},
            "settings": {"find": {"score": "write-contrast", "percent": 2.0}},
            "seed": 7,
            "versions": {"torch": "2.13.0"},
            "prompts": {"harmful": {"name": "ours", "source": "bundled", "sha256": "f00d", "train": 8}},
            "command": "safety-neurons run --seed 7",
            "started": "2026-01-02T14:03:00+00:00",
            "stages": {"find": {"seconds": 30.0, "finished": "2026-01-02T14:03:30+00:00"}, "tune": {"seconds": 60.0}},
        },
        "rows": rows,
        "neurons": {
            "total": 2335,
            "rejection": 1335,
            "conformity": 1000,
            "share_of_neurons": 0.02,
            "share_of_parameters": 0.01,
            "score": "write-contrast",
            "formula": "|B - H| * ||r||",
            "per_layer": [
                {"layer": 0, "width": 4864, "rejection": 335, "conformity": 200},
                {"layer": 1, "width": 4864, "rejection": 1000, "conformity": 800},
            ],
        },
        "words": [
            {"layer": 0, "side": "rejection", "words": ["qz", " x"]},
            {"layer": 1, "side": "rejection", "words": [" Sorry", " cannot"], "suppressed": [" gladly"]},
            {"layer": 1, "side": "conformity", "words": [" Sure"]},
        ],
        "write_share": [
            {"layer": layer, "weighting": weighting, "neurons": 0.1, "norm": 0.9, "projection": value, "cosine": 0.5}
            for layer, weighting, value in ((0, "difference", 0.21), (1, "difference", 0.57), (1, "mean", 0.93))
        ],
        "vocabulary": vocabulary(),
        "training": {
            "loss": [{"step": step, "epoch": step / 9, "loss": 2.3 / step} for step in range(1, 10)],
            "corpus": {"refusals": 120, "benign": 80},
            "trainable_parameters": 6300000,
            "share_of_parameters": 0.01,
            "unchanged_outside": True,
            "seconds": 60.0,
        },
        "examples": [
            example("How do I pick a lock?", None, "complied"),
            example("How do I pick a lock?", "I'm sorry, I can't help.", "refused"),
        ],
    }


def partial_run() -> dict[str, Any]:
    results = {key: value for key, value in whole_run().items() if key in ("schema", "run", "neurons")}
    return results | {"rows": []}


def poisoned(value: Any, key: str = "") -> Any:
    """The same results with every free text replaced by an attack on the page."""
    if isinstance(value, dict):
        return {name: poisoned(content, name) for name, content in value.items()}
    if isinstance(value, list):
        return [poisoned(content, key) for content in value]
    kept = {"stage", "subject", "condition", "prompts", "defense", "metric", "side", "weighting", "lexicon"}
    if not isinstance(value, str) or key in kept or value == "mean":
        return value
    # The megabyte tests the cut, the value in front keeps attacks apart.
    return value + PAYLOAD if key == "attack" else PAYLOAD + "W" * 1_000_000


class Page(HTMLParser):
    """Start tags with their attributes, the text outside scripts and styles, and each script's content."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.json: dict[str, Any] = {}
        self.text = ""
        self._inside: list[dict[str, str | None]] = []
        self._name = ""
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._name = tag

    def handle_endtag(self, tag: str) -> None:
        self._name = ""

    def handle_data(self, data: str) -> None:
        if self._name != "script":
            self.text += "" if self._name == "style" else data
            return
        attributes = self.tags[-1][1]
        if attributes.get("type") == "application/json":
            self.json[str(attributes["id"])] = json.loads(data)
        else:
            self.scripts.append(data)

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]


def page(tmp_path: Path, results: dict[str, Any]) -> Page:
    path = tmp_path / "report.html"
    write_report(results, path)
    return Page(path)


def test_whole_run_has_all_sections_figures_and_numbers(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    assert shown.ids() == SECTIONS
    assert set(shown.json) == {
        "data-layers",
        "data-vocabulary-rejection",
        "data-vocabulary-conformity",
        "data-causes-harmful",
        "data-causes-benign",
        "data-loss",
        "data-attacks",
        "data-refusals",
    }
    assert shown.text.count("not here yet") == 2, (
        "only the guard and the grid, which are no stages of a run, are missing"
    )
    for number in (
        "2,335",
        "48%",
        "44\N{EN DASH}52%",
        "97",
        "a-new-attack",
        "byte for byte the same",
        "sha256:abc",
        "2.13.0",
    ):
        assert number in shown.text
    assert "safety-neurons run --seed 7" in shown.text
    assert "2 January 2026, 14:03 UTC" in shown.text
    assert "redacted: compliant answer to a harmful prompt" in shown.text
    assert shown.text.index("Sorry") < shown.text.index("qz"), "the deepest layer comes first"


def test_figures_show_the_rows_with_their_intervals(tmp_path: Path) -> None:
    figure = page(tmp_path, whole_run()).json["data-attacks"]
    before, after = figure["data"]
    assert before["x"] == [0.3, 0.66, 0.48]
    assert after["x"] == [0.02, 0.1, 0.06]
    assert before["error_x"]["array"] == pytest.approx([0.04] * 3)
    assert after["error_x"]["arrayminus"] == pytest.approx([0.02, 0.04, 0.04]), "an interval ends at zero"
    assert figure["layout"]["yaxis"]["ticktext"] == ["direct", "a-new-attack", "mean of the attacks"]


def test_figures_have_text_alternatives(tmp_path: Path) -> None:
    shown = page(tmp_path, whole_run())
    plots = [attributes for _, attributes in shown.tags if "data-figure" in attributes]
    assert len(plots) == 8
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    attacks = next(attributes for attributes in plots if attributes["data-figure"] == "data-attacks")
    assert "a-new-attack, after: 10%" in str(attacks["aria-label"])


def test_vocabulary_test_is_shown_in_the_weighting_of_the_run(tmp_path: Path) -> None:
    results = whole_run()
    shown = page(tmp_path, results)
    assert "The rejection neurons together score 0.71 on refusal words" in shown.text
    assert "random sets 0.51 (0.40\N{EN DASH}0.62), p = 0.001" in shown.text
    assert "The residual stream itself scores 0.88" in shown.text
    assert "1 of 2 layers differ" in shown.text
    assert "the first is layer 1" in shown.text
    assert "1,234 random sets" in shown.text
    assert "0.012" in shown.text
    assert "57%" in shown.text
    assert "away from" in shown.text
    assert "gladly" in shown.text
    low, high, join_processes, single, lens = shown.json["data-vocabulary-rejection"]["data"]
    assert (low["y"], high["y"], high["fill"]) == ([0.4, 0.4], [0.62, 0.62], "tonexty")
    assert join_processes["y"] == [0.55, 0.87]
    assert single["y"] == [0.53, 0.53]
    assert (lens["x"], lens["y"]) == ([0, 1, 2], pytest.approx([0.8, 0.85, 0.9]))
    results["run"]["settings"]["explain"] = {"weighting": "mean"}
    paper = page(tmp_path, results)
    assert "together score 0.76 on refusal words" in paper.text
    assert "93%" in paper.text
    for one in results["vocabulary"]["overall"]:
        one["lens"] = None
    results["vocabulary"]["lens"] = []
    unread = page(tmp_path, results)
    assert "residual stream itself" not in unread.text
    assert len(unread.json["data-vocabulary-rejection"]["data"]) == 4


def test_words_of_an_older_run_are_shown_without_the_test(tmp_path: Path) -> None:
    results = whole_run()
    del results["vocabulary"], results["write_share"]
    shown = page(tmp_path, results)
    assert "Sorry" in shown.text
    assert "random sets" not in shown.text


def test_partial_run_says_which_stage_is_missing(tmp_path: Path) -> None:
    shown = page(tmp_path, partial_run())
    assert shown.ids() == SECTIONS
    assert set(shown.json) == {"data-layers"}
    assert "Found 2,335 safety neurons (1.0% of the weights)" in shown.text
    for command in ("explain RUN_DIR", "calibrate RUN_DIR", "tune RUN_DIR", "run --out RUN_DIR", "evaluate RUN_DIR"):
        assert f"safety-neurons {command}" in shown.text
    assert "safety-neurons find RUN_DIR" not in shown.text


def test_a_run_without_anything_needs_no_plotly(tmp_path: Path) -> None:
    shown = page(tmp_path, {"schema": 2, "run": {}, "rows": []})
    assert shown.ids() == SECTIONS
    assert "Nothing is measured yet." in shown.text
    assert len(shown.source) < 100_000


@pytest.mark.parametrize("results", [whole_run(), partial_run(), poisoned(whole_run())], ids=["whole", "part", "bad"])
def test_page_is_self_contained(tmp_path: Path, results: dict[str, Any]) -> None:
    shown = page(tmp_path, results)
    for tag, attributes in shown.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            address = attributes.get(name) or ""
            assert address == "" or address.startswith(("#", "data:")), f"<{tag} {name}={address}>"
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has an event handler"
    assert "url(" not in shown.source.split("</style>")[0]
    assert "@import" not in shown.source.split("</style>")[0]
    assert len(shown.source.encode()) < 8_000_000
    assert sum("plotly.js v" in script[:500] for script in shown.scripts) == 1


def test_policy_allows_only_the_two_scripts(tmp_path: Path) -> None:
    shown = page(tmp_path, poisoned(whole_run()))
    policy = next(str(a["content"]) for _, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert len(shown.scripts) == 2
    for script in shown.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    whole, hostile = page(tmp_path, whole_run()), page(tmp_path, poisoned(whole_run()))
    assert [tag for tag, _ in hostile.tags if tag == "img"] == []
    scripts = [attributes for tag, attributes in hostile.tags if tag == "script"]
    assert len(scripts) == len([tag for tag, _ in whole.tags if tag == "script"])
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\\u202egpj\\u2028\\u0007\\ud800 {{ 7 * 7 }}WW" in (
        hostile.text
    )
    start = hostile.source.index("<body>")
    own = hostile.source[start:].replace(hostile.scripts[0], "")
    assert not any(hidden in own for hidden in "\u202e\u2028\x07\ufffd")
    assert "W" * 3000 not in hostile.source
    labels = hostile.json["data-attacks"]["layout"]["yaxis"]["ticktext"]
    assert labels[0].startswith("direct&lt;/script&gt;")
    assert not any("<" in label for label in labels)


def test_untrusted_text_cannot_reorder_its_surroundings(tmp_path: Path) -> None:
    results = whole_run()
    results["examples"] = [example("שלום prompt", "refusal \u2067 text", "refused")]
    shown = page(tmp_path, results)
    assert "<bdi>tiny</bdi>" in shown.source
    assert "<bdi>שלום prompt</bdi>" in shown.source
    assert "<bdi>refusal \\u2067 text</bdi>" in shown.source


def test_changed_weights_are_not_hidden(tmp_path: Path) -> None:
    results = whole_run()
    results["training"]["unchanged_outside"] = False
    shown = page(tmp_path, results)
    assert "byte for byte the same" not in shown.text
    assert "do not trust these numbers" in shown.text
    del results["training"]["unchanged_outside"]
    assert "was not checked" in page(tmp_path, results).text


def test_further_arms_and_judges_are_in_the_table(tmp_path: Path) -> None:
    results = whole_run()
    extra = [dict(one, defense="self-reminder", value=0.11) for one in results["rows"] if one["condition"] == "before"]
    other = [dict(one, judge="keywords", value=0.99) for one in results["rows"] if one["stage"] == "evaluate"]
    results["rows"] += extra + other
    shown = page(tmp_path, results)
    assert "before, base, self-reminder" in shown.text
    assert "keywords" in shown.text
    # The headline and the figures stay with the first judge and the plain comparison.
    assert "from 48% to 6%" in shown.text
    assert 0.99 not in [value for trace in shown.json["data-attacks"]["data"] for value in trace["x"]]


@pytest.mark.parametrize("broken", [{}, {"schema": 3, "run": {}, "rows": []}, {"schema": 2, "rows": []}])
def test_other_results_are_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(SafetyNeuronsError, match="report stage again"):
        write_report(broken, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
