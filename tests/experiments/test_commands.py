"""The commands of experiments, and guard: what arrives, what is shown, and how they fail."""

from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside, one_paragraph
from safety_neurons.core.files import read_json
from safety_neurons.experiments import dose_response as dose_response_module
from safety_neurons.experiments import guard_test as guard_test_module
from safety_neurons.experiments import smallest_intervention as search_module
from safety_neurons.runs import pipeline as pipeline_module


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment", "dose-response", "run", "--alphas", "nonsense"], "'nonsense' is not a range of alphas"),
        (["experiment", "dose-response", "run", "--alphas", "2:1"], "'2:1'"),
        (["experiment", "dose-response", "run", "--alphas", ""], "is not a range"),
        (["experiment", "dose-response", "run", "--alphas"], "alpha"),
        (["experiment", "dose-response", "run", "--on", "harmful:benign"], "--alphas"),
        (["calibrate", "run", "--on", "harmful:benign"], "--on"),
        (["experiment", "dose-response", "run", "--alphas", "1", "--calibrate.subset", "none"], "subset"),
        (["experiment", "dose-response", "run", "--alphas", "1", "--calibrate.layers", "2", "1"], "layers"),
        (
            ["experiment", "dose-response", "run", "--alphas", "1", "--calibrate.prompt-positions", "65"],
            "prompt-positions",
        ),
        (["experiment", "search", "run", "--trials", "0"], "trials"),
        (["experiment", "seeds", "run", "--seeds", "0"], "seeds"),
        (["experiment", "seeds", "run", "--budgets", "0.5"], "0.5:1e-3"),
        (["experiment", "seeds", "run", "--budgets", "200:1e-3"], "percent"),
        (["experiment", "search", "run", "--trials", "many"], "trials"),
        (["experiment", "search", "run", "--target", "2"], "target"),
        (["experiment", "search", "run", "--max-broken", "-1"], "broken"),
        (["experiment", "search", "run", "--max-kl", "0"], "kl-divergence"),
        (["experiment", "search", "run", "--max-kl", "nan"], "kl-divergence"),
        (["experiment", "search", "run", "--max-percent", "101"], "percent"),
        (["experiment", "search", "run", "--max-alpha", "0"], "alpha"),
        (["experiment", "search", "run", "--max-alpha", "inf"], "alpha"),
        (["experiment", "lengths", "run", "--tokens", "24"], "two"),
        (["experiment", "lengths", "run", "--tokens", "0", "24"], "tokens"),
        (["experiment", "lengths", "run", "--requests", "0"], "requests"),
        (["guard", "run", "--guard.false-positive-rate", "2"], "false-positive-rate"),
        (["guard", "run", "--guard.false-positive-rate", "0"], "false-positive-rate"),
        (["guard", "run", "--guard.layer", "-1"], "layer"),
        (["guard", "run", "--guard.generated-tokens", "template"], "generated-tokens"),
        (["guard"], "run"),
        (["experiment", "search", "run", "--config", "missing.toml"], "missing.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_paragraph_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline_module, "locate", lambda name, _listener: (name, "identity"))
    monkeypatch.setattr(pipeline_module, "_run", lambda *_: pytest.fail("the run began"))
    assert inside(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert told in " ".join(shown.replace("_", "-").split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment", "dose-response", "RUN", "--alphas", "1"],
        ["experiment", "search", "RUN", "--trials", "1", "--max-percent", "40"],
        ["experiment", "adaptive", "RUN"],
        ["guard", "RUN", "--no-answers"],
    ],
    ids=lambda value: value[-3],
)
@pytest.mark.parametrize("pair", ["no-such-set:benign", "benign:no-such-set", "nonsense", "missing.csv:benign"])
def test_sets_that_are_not_there_are_told_in_one_paragraph(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: Path,
    arguments: list[str],
    pair: str,
) -> None:
    before = (found / "results.json").read_bytes()
    assert inside(monkeypatch, *(str(found) if one == "RUN" else one for one in arguments), "--on", pair) == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert pair.replace(":", "").replace("benign", "") in shown.replace("\n", "")
    assert (found / "results.json").read_bytes() == before
    assert not (found / "guard.safetensors").exists()


def test_a_contrast_set_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: Path
) -> None:
    assert inside(monkeypatch, "guard", str(found), "--contrast", "no-such-set") == 2
    shown = capsys.readouterr().err
    assert one_paragraph(shown)
    assert "no-such-set" in shown


@pytest.mark.parametrize("arguments", [("--alphas", "-6:6:6"), ("--alphas=-6:6:6",), ("--alphas", "-6,6")], ids=str)
def test_alphas_below_zero_arrive(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    asked: list[list[float]] = []

    def fake(_path: Path, alphas: list[float], given: dict[str, Any], **options: Any) -> None:
        asked.append(alphas)
        assert given == {"calibrate": {"generated_tokens": 4}}
        assert options["on"] == "one:other"
        raise KeyboardInterrupt

    monkeypatch.setattr(dose_response_module, "dose_response", fake)
    inside(
        monkeypatch,
        *("experiment", "dose-response", "run", *arguments, "--on", "one:other", "--calibrate.generated-tokens", "4"),
    )
    assert asked == [[-6, 0, 6]]


def test_limits_and_several_pairs_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fake(_path: Path, given: dict[str, Any], **options: Any) -> None:
        asked.append(options | {"given": given})
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "search", fake)
    monkeypatch.setattr(guard_test_module, "guard_run", fake)
    limits = ("--target", "0.5", "--max-alpha", "2")
    inside(monkeypatch, "experiment", "search", "run", "--trials", "3", *limits, "--on", "a:b", "c:d")
    inside(monkeypatch, "guard", "run", "--on", "a:b", "c:d", "--no-answers", "--guard.layer", "2")
    assert asked[0]["trials"] == 3
    assert asked[0]["limits"] == search_module.Limits(target=0.5, alpha=2.0)
    assert list(asked[0]["on"]) == list(asked[1]["on"]) == ["a:b", "c:d"]
    assert asked[1]["answers"] is False
    assert asked[1]["given"] == {"guard": {"layer": 2}}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["experiment", "dose-response", "RUN", "--alphas", "-3:3:3"], ["random, equal dose", "3"]),
        (
            ["experiment", "search", "RUN", "--trials", "1", "--max-percent", "40"],
            ["oward conformity", "oward rejection", "found"],
        ),
        (["guard", "RUN", "--no-answers"], ["AUROC", "contrast"]),
        (["guard", "RUN"], ["base", "guard"]),
        (
            ["experiment", "left-out", "RUN", "--tune.disguises", "story", "turns"],
            ["without this kind", "story", "mean"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_results_are_shown_and_the_page_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: Path,
    arguments: list[str],
    shown: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert inside(monkeypatch, *(str(found) if one == "RUN" else one for one in arguments)) == 0
    out = capsys.readouterr().out
    assert [text for text in shown if text not in out] == []
    assert "report.html" in out
    assert (found / "report.html").exists()


def test_scores_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, Any], tmp_path: Path
) -> None:
    options = [f"--{name}={value}" for name, value in given.items() if isinstance(value, str)]
    options += ["--budgets", "5", "20", "--seeds", "2", "--evaluate.answer-tokens", "2", "--overlap-at", "20"]
    assert inside(monkeypatch, "experiment", "scores", str(tmp_path / "scores"), *options) == 0
    shown = capsys.readouterr().out
    results = read_json(tmp_path / "scores" / "scores.json")
    assert results["budgets"] == [5, 20]
    assert results["overlap"]["percent"] == 20
    assert "oward rejection" in shown
    assert "write-contrast" in shown
