"""The sentences of the page: better, worse, the same, missing; and numbers as they are shown."""

import json
from typing import Any

import pytest
from safety_neurons.report.render import script_json

from safety_neurons.report import rates, summary, tables, text

NEURONS = {"total": 2335, "share_of_parameters": 0.01}


def measured(prompts: str, side: str, value: float | None, width: float = 0.03, **fields: Any) -> dict[str, Any]:
    subject, defense = ("base", "none") if side == "before" else ("tuned", "safetuning")
    metric = "attack success" if prompts == "harmful" else "refused"
    return {
        "stage": "evaluate",
        "subject": subject,
        "condition": side,
        "prompts": prompts,
        "attack": "mean" if prompts == "harmful" else "direct",
        "defense": defense,
        "judge": "refusal",
        "metric": metric,
        "value": value,
        "low": None if value is None else max(0.0, value - width),
        "high": None if value is None else value + width,
        "n": 100,
        "unscored": 0,
    } | fields


def run(*rows: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"schema": 2, "run": {}, "rows": list(rows), "neurons": NEURONS} | parts


def sides(prompts: str, before: float, after: float, **fields: Any) -> list[dict[str, Any]]:
    return [measured(prompts, "before", before, **fields), measured(prompts, "after", after, **fields)]


def pushed(subject: str, condition: str, value: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "stage": "calibrate",
        "subject": subject,
        "condition": condition,
        "attack": "direct",
        "defense": "none",
    }
    return measured("harmful", "before", value, **fields, metric="refused")


def test_better() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.48, 0.06), *sides("benign", 0.05, 0.03)))
    assert verdict.sentence == (
        "Tuning 2,335 safety neurons (1.0% of the weights) brought attack success from 48% to 6%, "
        "while refusals of ordinary requests went from 5% to 3%."
    )
    assert (verdict.tone, verdict.notes) == ("good", ())


def test_better_at_the_price_of_ordinary_use() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.48, 0.06), *sides("benign", 0.05, 0.3)))
    assert verdict.sentence.endswith("to 6%, but refusals of ordinary requests rose from 5% to 30%.")
    assert verdict.tone == "mixed"


def test_better_at_the_price_of_borderline_requests() -> None:
    rows = [*sides("harmful", 0.48, 0.06), *sides("benign", 0.05, 0.05), *sides("borderline", 0.3, 0.7)]
    verdict = summary.verdict(run(*rows))
    assert "stayed at 5%" in verdict.sentence
    assert verdict.tone == "mixed"
    assert "30% before, 70% after" in verdict.notes[0]


def test_worse_is_said_plainly() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.48, 0.6), *sides("benign", 0.05, 0.09)))
    assert "did not help: attack success rose from 48% to 60%, and refusals of ordinary requests rose" in (
        verdict.sentence
    )
    assert verdict.tone == "bad"


def test_unchanged() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.4801, 0.4799), *sides("benign", 0.05, 0.05)))
    assert "left attack success at 48%, while refusals of ordinary requests stayed at 5%." in verdict.sentence
    assert verdict.tone == "bad"


def test_overlapping_intervals_are_not_good_news() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.48, 0.4, width=0.05), *sides("benign", 0.05, 0.05)))
    assert "may be chance" in verdict.notes[0]
    assert verdict.tone == "mixed"


def test_ordinary_use_not_measured() -> None:
    verdict = summary.verdict(run(*sides("harmful", 0.48, 0.06), measured("benign", "before", 0.05)))
    assert verdict.sentence.endswith("refusals of ordinary requests are not measured on both sides.")


def test_unscored_answers_and_skipped_layers_are_told() -> None:
    results = run(*sides("harmful", 0.48, 0.06, unscored=100), run={"coverage": {"layers": 20, "layers_total": 24}})
    notes = summary.verdict(results).notes
    assert any("100 of 200 answers to attacks after tuning could not be judged" in note for note in notes)
    assert "Partial: only 20 of 24 layers were searched for neurons." in notes


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (run(measured("harmful", "before", 0.48)), "48% of the attacks succeed; after tuning is not measured yet."),
        (
            run(measured("harmful", "before", 0.48), measured("harmful", "after", None, n=0)),
            "after tuning no answer could be judged.",
        ),
        (run(training={"trainable_parameters": 5}), "were tuned; what it changed is not measured yet."),
        (run(), "Found 2,335 safety neurons (1.0% of the weights); whether they cause refusals is not tested yet."),
        (run(neurons=None), "Nothing is measured yet."),
        (run(pushed("found", "toward conformity", 0.04)), "shows no cause. Nothing is tuned yet."),
    ],
)
def test_unfinished_runs(results: dict[str, Any], said: str) -> None:
    verdict = summary.verdict(results)
    assert verdict.sentence.endswith(said)
    assert verdict.tone == "open"


def test_attacks_without_a_mean_are_averaged_without_an_interval() -> None:
    rows = [*sides("harmful", 0.2, 0.1, attack="one"), *sides("harmful", 0.6, 0.2, attack="two")]
    change = rates.attack_change(rows)
    assert change.value_before == pytest.approx(0.4)
    assert change.value_after == pytest.approx(0.15)
    assert change.after is not None
    assert change.after.low is None
    assert "no interval" in summary.verdict(run(*rows)).notes[0]
    assert rates.attack_change(rows[:-1]).after is None, "a part of the attacks is not their mean"


def test_cause_needs_random_neurons_that_do_less() -> None:
    rows = [pushed("base", "none", 0.7), pushed("found", "toward conformity", 0.04)]
    shown = summary.causes([*rows, pushed("random", "toward conformity", 0.66)])
    assert shown is not None
    assert shown.sentence.endswith(
        "from 70% to 4%; the same alpha on as many random neurons gave 66%. So these neurons do cause refusals."
    )
    not_shown = summary.causes([*rows, pushed("random", "toward conformity", 0.05)])
    assert not_shown is not None
    assert "does not show" in not_shown.sentence
    assert summary.causes([]) is None


def test_tiles() -> None:
    training = {"trainable_parameters": 6_300_000, "share_of_parameters": 0.01, "seconds": 110.0}
    stages = {"find": {"seconds": 60.0}, "tune": {"seconds": 120.0}, "evaluate": {}}
    rows = [*sides("harmful", 0.48, 0.06), *sides("borderline", 0.3, 0.2)]
    attacks, harmless, weights, minutes = summary.tiles(run(*rows, training=training, run={"stages": stages}))
    assert (attacks.lines[0].change.value_before, attacks.lines[0].change.value_after) == (0.48, 0.06)
    assert [line.change.value_after for line in harmless.lines] == [None, 0.2]
    assert weights.value == "1.0%"
    assert (minutes.value, minutes.note) == ("3.0", "2 stages, 1.8 minutes of it training")


def test_comparisons_keep_the_attacks_order_and_show_gaps() -> None:
    rows = [*sides("harmful", 0.4, 0.1, attack="zeta"), measured("harmful", "before", 0.2, attack="alpha")]
    arms, lines = tables.comparisons(rows)
    assert [arm.label for arm in arms] == ["before", "after"]
    assert [line.attack for line in lines] == ["zeta", "alpha"]
    assert lines[1].rates[1] is None


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
    assert text.token(" Sorry") == '<span class="space">·</span><bdi>Sorry</bdi>'
    assert text.token("  ") == "<bdi>␣␣</bdi>"
    assert text.token("<b>") == "<bdi>&lt;b&gt;</bdi>"
    assert text.token("") == "<bdi>(empty)</bdi>"


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
    assert json.loads(encoded) == value
