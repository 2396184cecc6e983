"""The sentences of the page: better, worse, the same, missing; and numbers as they are shown."""

import json
from typing import Any

import pytest

from builders.report import calibrated, evaluation
from safety_neurons.report import RunResults, run_tables, summary, text
from safety_neurons.report.page import script_json
from safety_neurons.report.results import CalibrationRow

NEURONS = {
    "total": 2335,
    "rejection": 1335,
    "conformity": 1000,
    "share_of_neurons": 0.02,
    "share_of_parameters": 0.01,
    "score": "gradient",
}


Pair = tuple[float | None, float | None]
UNKNOWN: Pair = (None, None)


def run(attacks: Pair | None = None, benign: Pair = UNKNOWN, borderline: Pair = UNKNOWN, **parts: Any) -> RunResults:
    """Results with attack success and refusals before and after."""
    options: dict[str, Any] = {name: parts.pop(name) for name in ("width", "unscored", "n") if name in parts}
    content: dict[str, Any] = {"schema": 3, "run": {}, "rows": [], "neurons": NEURONS} | parts
    if attacks is not None:
        safe = {name: rates for name, rates in (("benign", benign), ("borderline", borderline)) if rates != UNKNOWN}
        options = {"width": 0.03, "unscored": 0} | options
        content["evaluation"] = evaluation({"direct": attacks}, attacks, safe, **options)
    return RunResults.of(content)


def test_better() -> None:
    verdict = summary.verdict(run((0.48, 0.06), (0.05, 0.03)))
    assert verdict.sentence == (
        "Tuning 2,335 safety neurons (1.0% of the weights) brought attack success from 48% to 6%, "
        "while refusals of ordinary requests went from 5% to 3%."
    )
    assert (verdict.tone, verdict.notes) == ("good", ())


def test_better_at_the_price_of_ordinary_use() -> None:
    verdict = summary.verdict(run((0.48, 0.06), (0.05, 0.3)))
    assert verdict.sentence.endswith("to 6%, but refusals of ordinary requests rose from 5% to 30%.")
    assert verdict.tone == "mixed"


def test_better_at_the_price_of_borderline_requests() -> None:
    verdict = summary.verdict(run((0.48, 0.06), (0.05, 0.05), (0.3, 0.7)))
    assert "stayed at 5%" in verdict.sentence
    assert verdict.tone == "mixed"
    assert "30% before, 70% after" in verdict.notes[0]


def test_worse_is_said_plainly() -> None:
    verdict = summary.verdict(run((0.48, 0.6), (0.05, 0.09)))
    assert "did not help: attack success rose from 48% to 60%, and refusals of ordinary requests rose" in (
        verdict.sentence
    )
    assert verdict.tone == "bad"


def test_unchanged() -> None:
    verdict = summary.verdict(run((0.4801, 0.4799), (0.05, 0.05)))
    assert "left attack success at 48%, while refusals of ordinary requests stayed at 5%." in verdict.sentence
    assert verdict.tone == "bad"


def test_overlapping_intervals_are_not_good_news() -> None:
    verdict = summary.verdict(run((0.48, 0.4), (0.05, 0.05), width=0.05))
    assert "may be chance" in verdict.notes[0]
    assert verdict.tone == "mixed"


def test_ordinary_use_not_measured() -> None:
    verdict = summary.verdict(run((0.48, 0.06), (0.05, None)))
    assert verdict.sentence.endswith("refusals of ordinary requests are not measured on both sides.")


def test_unscored_answers_and_skipped_layers_are_told() -> None:
    results = run((0.48, 0.06), unscored=100, n=100, run={"coverage": {"layers": 20, "layers_total": 24}})
    notes = summary.verdict(results).notes
    assert any("100 of 200 answers to attacks after tuning could not be judged" in note for note in notes)
    assert "Partial: only 20 of 24 layers were searched for neurons." in notes


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (
            run(evaluation=evaluation({"direct": (0.48,)}, (0.48,), {}, ("none",))),
            "48% of the attacks succeed; after tuning is not measured yet.",
        ),
        (run((0.48, None)), "after tuning no answer could be judged."),
        (run(training={"trainable_parameters": 5}), "were tuned; what it changed is not measured yet."),
        (run(), "Found 2,335 safety neurons (1.0% of the weights); whether they cause refusals is not tested yet."),
        (run(neurons=None), "Nothing is measured yet."),
        (
            run(rows=[calibrated("found", "toward conformity", "harmful", 0.04)]),
            "shows no cause. Nothing is tuned yet.",
        ),
    ],
)
def test_unfinished_runs(results: RunResults, said: str) -> None:
    verdict = summary.verdict(results)
    assert verdict.sentence.endswith(said)
    assert verdict.tone == "open"


def test_means_over_different_attacks_are_noted() -> None:
    content = run((0.48, 0.06), (0.05, 0.05)).to_json()
    content["evaluation"]["summary"][1]["attacks"] = []
    assert "the means are not over the same attacks" in summary.verdict(RunResults.of(content)).notes[0]


def test_cause_needs_random_neurons_that_do_less() -> None:
    def rows(random: float) -> list[CalibrationRow]:
        values = (("base", "none", 0.7), ("found", "toward conformity", 0.04), ("random", "toward conformity", random))
        return [CalibrationRow(**calibrated(who, condition, "harmful", value)) for who, condition, value in values]

    shown = summary.causes(rows(0.66))
    assert shown is not None
    assert shown.sentence.endswith(
        "from 70% to 4%; the same alpha on as many random neurons gave 66%. So these neurons do cause refusals."
    )
    not_shown = summary.causes(rows(0.05))
    assert not_shown is not None
    assert "does not show" in not_shown.sentence
    assert summary.causes([]) is None


def test_tiles() -> None:
    training = {"trainable_parameters": 6_300_000, "share_of_parameters": 0.01, "seconds": 110.0}
    stages = {"find": {"seconds": 60.0}, "tune": {"seconds": 120.0}, "evaluate": {}}
    results = run((0.48, 0.06), borderline=(0.3, 0.2), training=training, run={"stages": stages})
    attacks, harmless, weights, minutes = summary.tiles(results)
    assert [change.values for _, change in attacks.lines if change] == [(0.48, 0.06)]
    assert [(name, change and change.values[1]) for name, change in harmless.lines] == [("borderline", 0.2)]
    assert list(summary.tiles(run())[1].lines) == [("ordinary", None), ("borderline", None)]
    assert weights.value == "1.0%"
    assert (minutes.value, minutes.note) == ("3.0", "2 stages, 1.8 minutes of it training")


def test_before_and_after_keep_the_order_of_the_attacks_and_show_gaps() -> None:
    section = evaluation({"zeta": (0.4, 0.1), "alpha": (0.2, None)}, (0.3, 0.1), {"benign": (0.1, 0.1)})
    results = RunResults.of({"schema": 3, "run": {}, "rows": [], "evaluation": section})
    lines = summary.before_after(results.evaluation)
    assert [line.attack for line in lines] == ["zeta", "alpha", "mean", "direct"]
    assert lines[1].tuned is None
    table = run_tables.before_after(results)
    assert [cell.value for cell in table.rows[1].cells[-2:]] == [text.NONE, text.NONE]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.48, "48%"),
        (0.07, "7%"),
        (0.0625, "6.2%"),
        (0.0004, "0.04%"),
        (0.996, "99.6%"),
        (0.99999, "over 99.9%"),
        (None, "\N{EN DASH}"),
    ],
)
def test_percent_never_rounds_to_none_or_all(value: float | None, shown: str) -> None:
    assert text.percent(value) == shown


def test_visible_escapes_what_hides_and_cuts_what_is_long() -> None:
    assert text.visible("a\u202eb\x00\n\u200b\U000e0041") == "a\\u202eb\\u0000↵\\u200b\\U000e0041"
    assert text.visible("x" * 1_000_000, 5) == "xxxxx…"
    assert text.visible("e" + "\u0301" * 6).count("\\u0301") == 2
    assert text.visible("抱歉 é नमस्ते") == "抱歉 é नमस्ते"


def test_tokens_show_their_spaces() -> None:
    assert [text.token(word) for word in (" Sorry", "  ", "")] == ["·Sorry", "␣␣", "(empty)"]
    assert text.tokens([" Sorry", "Sure"]).value == "·Sorry, Sure"


def test_durations_and_dates() -> None:
    assert [text.duration(seconds) for seconds in (1.23, 12.3, 110, 9000)] == [
        "1.2 s",
        "12 s",
        "1.8 minutes",
        "2.5 hours",
    ]
    assert text.date("2026-01-02T15:03:00+01:00") == "2 January 2026, 14:03 UTC"
    assert text.date("yesterday\u202e") == "yesterday\\u202e"


def test_json_cannot_leave_its_script() -> None:
    value = {"</script>": ["<!--", "&lt;", "\u2028\u2029", "\ud800"]}
    encoded = script_json(value)
    assert not set("<>&\u2028\u2029\ud800") & set(encoded)
    assert json.loads(encoded) == {"</script>": ["<!--", "&lt;", "\\u2028\\u2029", "\\ud800"]}


def test_a_short_run_says_so() -> None:
    settings = {"find": {"prompts": 50}, "tune": {"refusals": 340, "benign": 400}, "evaluate": {"prompts": 30}}
    verdict = summary.verdict(run((0.48, 0.06), (0.05, 0.03), run={"settings": settings}))
    (note,) = verdict.notes
    assert note == (
        "A short run, whose intervals are wide: find.prompts 50 instead of 100, evaluate.prompts 30 instead of 40."
    )
