"""The parts of benchmarks/calibration_rivals.py that could mislead: what each rival changes, and at which strength."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibration_rivals as benchmark
import pytest
import torch
from rivals import measured as measured_module
from rivals.contract import Candidate, Lessons
from rivals.difference_in_means import difference_in_means
from rivals.neurons import found, random_like
from rivals.refusal_direction import refusal_direction
from rivals.residual import ResidualSteering, read_residuals
from rivals.scav import TARGET, Probe, scav
from torch import Tensor

from builders.judges import BY_HASH
from builders.models import BENIGN, HARMFUL, tiny_model
from builders.runs import Splits, lines_of, save_model, small_run
from safety_neurons.calibration.config import Toward
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.experiments import intervention as intervention_module
from safety_neurons.experiments.intervention import InterventionRunner, Steering
from safety_neurons.models.neurons.trace import decoder_layers
from safety_neurons.runs.opened import opened

OPTIONS = benchmark.Options(levels=(0.05,), percents=(10.0, 20.0), layers=1, seeds=2)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(
        tmp_path_factory.mktemp("inputs"),
        Splits(6, 3, 3),
        find={"percent": 20.0, "positions": 3, "scope": "layer"},
        calibrate={"prompt_positions": 3},
        evaluate={"answer_tokens": 4, "judge": BY_HASH.name},
    )


@pytest.fixture(scope="module")
def lessons(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    with opened(tmp_path_factory.mktemp("lessons") / "run", given, None, "") as run:
        yield Lessons.read(run, 2, (10.0, 20.0))


def residuals(lessons: Lessons, one: Steering | None, prompts: list[str], positions: int) -> Tensor:
    """Outputs of all layers [prompts, layers, positions, hidden], with or without a change of them."""
    if one is None:
        return read_residuals(lessons.run.model, prompts, positions, 8)
    with one.opened(lessons.run, lessons.run.engine):
        return read_residuals(lessons.run.model, prompts, positions, 8)


def test_lessons_are_the_training_prompts_at_the_last_positions(lessons: Lessons) -> None:
    model = lessons.run.model
    layers = len(decoder_layers(model.model))
    assert lessons.harmful.shape == (6, layers, model.template_tail, 32)
    assert [len(side) for side in lessons.held_out] == [3, 3]
    text = model.render(next(iter(lessons.run.prompts["harmful"].split("train"))).text)
    with torch.no_grad():
        states = model.model(**model.encode([text]), output_hidden_states=True).hidden_states
    # The last of the hidden states is behind the final norm.
    for layer in range(layers - 1):
        torch.testing.assert_close(lessons.harmful[0, layer, -1], states[layer + 1][0, -1])


@pytest.mark.parametrize("toward", ["conformity", "rejection"])
def test_difference_in_means_moves_one_layer_after_the_users_words(lessons: Lessons, toward: Toward) -> None:
    tail = lessons.run.model.template_tail
    for candidate, layer in zip(difference_in_means(lessons, toward), lessons.layers, strict=True):
        before = residuals(lessons, None, HARMFUL, tail + 3)
        after = residuals(lessons, candidate.steer(0.5), HARMFUL, tail + 3)
        sign = 1 if toward == "conformity" else -1
        vector = sign * (lessons.benign[:, layer, -1].mean(0) - lessons.harmful[:, layer, -1].mean(0))
        assert torch.equal(after[:, :layer], before[:, :layer])
        assert torch.equal(after[:, layer, :3], before[:, layer, :3])
        moved = after[:, layer, 3:] - before[:, layer, 3:]
        torch.testing.assert_close(moved, (0.5 * vector).expand_as(moved), rtol=1e-4, atol=1e-5)
        assert (candidate.changed, candidate.of) == (32, 32 * len(decoder_layers(lessons.run.model.model)))


def test_ablation_leaves_no_layer_a_component_along_the_direction(lessons: Lessons) -> None:
    candidates = refusal_direction(lessons, "conformity")
    assert len({one.variant for one in candidates}) == len(candidates)
    layer = lessons.layers[0]
    direction = lessons.harmful[:, layer, 0].mean(0) - lessons.benign[:, layer, 0].mean(0)
    unit = direction / direction.norm()
    positions = 5
    before = residuals(lessons, None, HARMFUL, positions) @ unit
    assert float(before.abs().mean()) > 1e-3
    whole = residuals(lessons, candidates[0].steer(1.0), HARMFUL, positions) @ unit
    torch.testing.assert_close(whole, torch.zeros_like(whole), rtol=0, atol=1e-5)


def test_addition_moves_one_layer_at_all_tokens(lessons: Lessons) -> None:
    candidate, layer = refusal_direction(lessons, "rejection")[0], lessons.layers[0]
    direction = lessons.harmful[:, layer, 0].mean(0) - lessons.benign[:, layer, 0].mean(0)
    before, after = (residuals(lessons, one, BENIGN, 12) for one in (None, candidate.steer(2.0)))
    # Prompts that change at all tokens share no prefix, which rounds otherwise.
    torch.testing.assert_close(after[:, :layer], before[:, :layer], rtol=1e-4, atol=1e-5)
    moved = after[:, layer] - before[:, layer]
    torch.testing.assert_close(moved, (2 * direction).expand_as(moved), rtol=1e-4, atol=1e-5)


def test_a_probes_perturbation_is_the_smallest_that_reaches_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    away, target = (torch.randn(40, 8, generator=generator) + shift for shift in (1.0, -1.0))
    probe = Probe.fit(away, target, (away, target))
    assert probe.accuracy > 0.9
    log_odds = away @ probe.weight + probe.bias
    assert probe.highest == pytest.approx(float(log_odds.max()))
    # Strength 0 moves no training prompt, and 1 is the paper's probability.
    torch.testing.assert_close(probe.perturbed(0.0, away), away, rtol=0, atol=1e-5)
    moved = probe.perturbed(1.0, away)
    goal = math.log(TARGET / (1 - TARGET))
    torch.testing.assert_close(moved @ probe.weight + probe.bias, torch.full((40,), goal), rtol=0, atol=1e-3)
    # Along the weight alone, so that no smaller change has the same effect.
    apart = moved - away
    torch.testing.assert_close(
        apart, (apart @ probe.weight)[:, None] * probe.weight / probe.weight.square().sum(), rtol=0, atol=1e-4
    )
    halfway = probe.perturbed(0.5, away) @ probe.weight + probe.bias
    assert float(halfway.max()) == pytest.approx((probe.highest + goal) / 2, abs=1e-3)


def test_scav_perturbs_the_layers_whose_probes_are_good(lessons: Lessons) -> None:
    (candidate,) = scav(lessons, "conformity")
    before, after = (residuals(lessons, one, HARMFUL, 4) for one in (None, candidate.steer(1.0)))
    assert candidate.changed == 32 * int(candidate.variant.split()[0])
    # The first perturbed layer changes at the last token alone.
    layer = next(layer for layer in range(before.shape[1]) if not torch.equal(before[:, layer], after[:, layer]))
    assert torch.equal(before[:, layer, :-1], after[:, layer, :-1])


def test_answers_under_probes_that_stop_elsewhere_are_not_shared(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Probe.fit

    def higher(*given: Any) -> Probe:
        probe = fit(*given)
        return replace(probe, highest=probe.highest + 1.0)

    identities = []
    for fitted in (fit, higher):
        monkeypatch.setattr(Probe, "fit", fitted)
        with scav(lessons, "conformity")[0].steer(0.5).opened(lessons.run, lessons.run.engine) as engine:
            identities.append(engine.identity)
    assert identities[0] != identities[1]


def test_a_model_with_norms_after_its_layers_parts_is_not_ablated(given: dict[str, Any], tmp_path: Path) -> None:
    settings = given | {"model": save_model(tiny_model("gemma2"), tmp_path / "model")}
    with opened(tmp_path / "run", settings, None, "") as run:
        normed = Lessons.read(run, 1, (20.0,))
        with pytest.raises(SafetyNeuronsError, match=r"norm.*--rivals"):
            refusal_direction(normed, "conformity")
        # Nothing is ablated there.
        assert refusal_direction(normed, "rejection")


def test_a_strength_at_which_the_model_overflows_is_too_strong(lessons: Lessons) -> None:
    run = lessons.run
    layer = decoder_layers(run.model.model)[0]
    overflowed: list[float] = []

    def steer(strength: float) -> ResidualSteering:
        def edit(stream: Tensor) -> Tensor:
            if strength < 2:
                return stream + strength * torch.arange(stream.shape[1])
            overflowed.append(strength)
            return stream * math.inf

        return ResidualSteering(f"overflow {strength}", [(layer, edit)], 2)

    runner = InterventionRunner.open(run, {"benign": run.split("benign", "validation", None)})
    bench = measured_module.Bench(lessons, runner, {}, (), (), 0)
    candidate = Candidate("overflow", 1, 1, "values", steer)
    scaled = bench._scaled(candidate, 1e6, "overflow")
    assert overflowed
    assert not scaled.matched.reached
    assert scaled.matched.strength < 2
    assert math.isfinite(scaled.matched.kl_divergence)


def test_found_and_random_neurons_are_as_many(lessons: Lessons) -> None:
    small, large = found(lessons, "rejection")
    assert small.changed < large.changed
    control = random_like(lessons, "rejection", 10.0, 1)
    assert (control.changed, control.of, control.unit) == (small.changed, small.of, "neurons")


def test_steering_of_generated_tokens_is_that_of_the_prompt(lessons: Lessons) -> None:
    """With a cache, token by token, as without one."""
    run = lessons.run
    layer = decoder_layers(run.model.model)[0]
    one = ResidualSteering("test", [(layer, lambda stream: stream + 3.0)], 2)
    inputs = run.model.encode([run.model.render("Hi"), run.model.render("Tell me about the sea, please.")])
    outputs = []
    for use_cache in (True, False):
        with one.opened(run, run.engine), torch.no_grad():
            made = run.model.model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=use_cache)
            outputs.append(made.tolist())
    assert outputs[0] == outputs[1]
    with torch.no_grad():
        assert run.model.model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist() != outputs[0]


@pytest.fixture(autouse=True, scope="module")
def _some_are_broken() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervention_module, "NLL_LIMIT", 6.0)
        yield


def test_a_killed_benchmark_resumes_and_everyone_is_at_the_level(given: dict[str, Any], tmp_path: Path) -> None:
    whole = benchmark.benchmark(tmp_path / "whole", given, OPTIONS)
    assert json.loads((tmp_path / "whole" / "calibration_rivals.json").read_text())["rows"] == whole["rows"]
    cells = {(row["toward"], row["level"], row["rival"]) for row in whole["rows"]}
    expected = {(toward, 0.0, "base") for toward in ("conformity", "rejection")}
    expected |= {
        (toward, level, rival)
        for toward in ("conformity", "rejection")
        for level in OPTIONS.levels
        for rival in measured_module.NAMES
    }
    assert cells == expected
    for row in whole["rows"]:
        assert row["n"] == 3
        assert row["sets"] == (2 if row["rival"] == "random" else 1)
        for scaled in row["scaled"]:
            if scaled["reached"]:
                assert scaled["kl_divergence"] == pytest.approx(row["level"], rel=0.051)
            assert 0 < scaled["share"] <= 1
        # An incoherent answer is a miss, and stays in the denominator.
        verdict = "complied" if row["toward"] == "conformity" else "refused"
        hits = [each == verdict for verdicts in row["verdicts"] for each in verdicts]
        assert row["effect"]["value"] == pytest.approx(sum(hits) / len(hits))
        assert ("minus_found" in row) == (row["rival"] not in ("base", "found"))
    # A kill leaves a part of what was cached.
    for name in ("responses.jsonl", "measurements.jsonl"):
        lines = (tmp_path / "whole" / name).read_text().splitlines(keepends=True)
        (tmp_path / "whole" / name).write_text("".join(lines[: 2 * len(lines) // 3]))
    again = benchmark.benchmark(tmp_path / "whole", given, OPTIONS)
    assert again["rows"] == whole["rows"]
    keys = [line["key"] for line in lines_of(tmp_path / "whole" / "responses.jsonl")]
    assert len(keys) == len(set(keys))
    assert (tmp_path / "whole" / "calibration_rivals.md").read_text().count("Toward") >= 2


@pytest.mark.parametrize(
    "options",
    [
        {"rivals": ("nobody",)},
        {"rivals": ("random",)},
        {"rivals": ()},
        {"levels": (0.0,)},
        {"levels": (1.0, 1.0)},
        {"percents": (0.0,)},
        {"layers": 0},
        {"seeds": 0},
    ],
    ids=str,
)
def test_bad_options_are_errors_before_any_work(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError):
        benchmark.benchmark(tmp_path / "run", {}, benchmark.Options(**options))
    assert not (tmp_path / "run").exists()
