"""Which passes and scales are measured, which is selected, and what a run leaves of it."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders.judges import BY_HASH
from builders.listeners import Recorder
from builders.models import drawn_neurons
from builders.runs import lines_of, results_of
from safety_neurons.core.statistics import Rate
from safety_neurons.models.chat import ChatModel
from safety_neurons.report.scale_curve import ScaleCurve, ScalePoint, ValidationPoint, select
from safety_neurons.runs import pipeline, selection
from safety_neurons.runs.selection import SCALES, change_of, select_delta
from safety_neurons.tuning.config import SelectionConfig
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.neuron_deltas import empty_delta

# Attack success and the refusals of two safe sets, by pass and scale; (0, 0) is the base model.
Rates = Mapping[tuple[int, float], tuple[float, float, float]]
BASE = {(0, 0.0): (0.6, 0.1, 0.3)}
NOTHING = {(epoch, scale): (0.6, 0.1, 0.3) for epoch in (1, 2, 3) for scale in SCALES}


def rate(value: float) -> Rate:
    return Rate(value, None, None, 100, 0)


@pytest.fixture
def trained(model: ChatModel) -> NeuronDelta:
    """Three passes, each of which moves the model further; no two candidates are the same change."""
    neurons = drawn_neurons(model)
    zeros, generator = empty_delta(model, neurons), torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=generator) / 100 for name, value in zeros.items()}
    passes = [{name: value * reach for name, value in noise.items()} for reach in (1.0, 2.1, 3.3)]
    return NeuronDelta(neurons, passes[-1], 3, earlier=tuple(passes[:-1]))


class Measured:
    """`select_delta` with rates that are known beforehand, and what it asked for."""

    def __init__(self, model: ChatModel, trained: NeuronDelta, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.trained, self.notes = model, trained, Recorder()
        self.safe: list[tuple[int, float]] = []
        self.attacks: list[tuple[int, float]] = []
        self.rates: Rates = {}
        self.places = {
            change_of(trained.after(epoch).scale(scale)): (epoch, scale) for epoch in (1, 2, 3) for scale in SCALES
        } | {"": (0, 0.0)}
        monkeypatch.setattr(selection, "Validator", SimpleNamespace(open=lambda *_: self))
        monkeypatch.setattr(selection, "count_of", lambda _: 1)
        self.harmful = self.disguised = ()

    def __call__(self, rates: Rates, max_over_refusal: float = 0.02) -> tuple[NeuronDelta, ScaleCurve]:
        self.rates = {**NOTHING, **BASE, **rates}
        engine = SimpleNamespace(change="", under=lambda change: SimpleNamespace(change=change))
        run: Any = SimpleNamespace(model=self.model, engine=engine, listener=self.notes)
        delta, curve = select_delta(run, self.trained, SelectionConfig(max_over_refusal=max_over_refusal))
        assert curve is not None
        return delta, curve

    def attack_success(self, engine: Any, _advance: object) -> Rate:
        self.attacks.append(self.places[engine.change])
        return rate(self.rates[self.places[engine.change]][0])

    def refused(self, engine: Any, _advance: object) -> dict[str, Rate]:
        self.safe.append(self.places[engine.change])
        _, benign, borderline = self.rates[self.places[engine.change]]
        return {"benign": rate(benign), "borderline": rate(borderline)}

    def refused_disguised(self, _engine: Any, _advance: object) -> dict[str, Rate]:
        """Never within the margin: it limits nothing."""
        return {"benign, disguised": rate(float(len(self.safe) > 1))}


@pytest.fixture
def measured(model: ChatModel, trained: NeuronDelta, monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(model, trained, monkeypatch)


def test_the_least_attack_success_within_the_margin_is_selected_and_applied(measured: Measured) -> None:
    """Scale 1.25 and 1.5 stop more attacks, and refuse too much of one set."""
    rates = {(3, 0.75): (0.2, 0.1, 0.3), (3, 1.0): (0.1, 0.12, 0.2), (3, 1.25): (0.0, 0.1, 0.33)}
    delta, curve = measured(rates | {(3, 1.5): (0.0, 0.5, 0.3)})
    assert (curve.selection.epoch, curve.selection.scale, curve.meets_margin) == (3, 1.0, True)
    assert (delta.epoch, delta.factor) == (3, 1.0)
    expected = measured.trained.after(curve.selection.epoch).scale(curve.selection.scale)
    assert delta.digest == expected.digest
    assert curve.selection.norm == pytest.approx(delta.norm)
    # All scales of the last pass, and the neighbors of the best one in the pass before, which is no better.
    near = [(2, scale) for scale in (0.75, 1.0, 1.25)]
    assert measured.safe == [(0, 0.0), *((3, scale) for scale in SCALES), *near]
    # Refusals of disguised requests limit nothing.
    (disguised,) = curve.selection.disguised.values()
    assert disguised.value == 1.0
    # 1.5 is far above the margin: its attacks are neither asked nor shown.
    assert set(measured.safe) - set(measured.attacks) == {(3, 1.5)}
    (out,) = [point for point in curve.points if point.attack_success is None]
    assert (out.epoch, out.scale, out.disguised) == (3, 1.5, {})
    assert any("pass 3 at scale 1." in said and "60% → 10%" in said for said in map(str, measured.notes.said))


def test_earlier_passes_are_tried_as_long_as_they_are_better(measured: Measured) -> None:
    rates = {(3, 1.0): (0.3, 0.1, 0.3), (2, 1.25): (0.2, 0.1, 0.3), (1, 1.5): (0.1, 0.1, 0.3)}
    delta, curve = measured(rates)
    assert (curve.selection.epoch, curve.selection.scale) == (1, 1.5)
    assert (delta.epoch, delta.factor) == (1, 1.5)
    assert [place for place in measured.safe if place[0] == 1] == [(1, 1.0), (1, 1.25), (1, 1.5)]


def test_ties_go_to_the_smaller_change(measured: Measured) -> None:
    """The second pass is about two thirds of the third one."""
    tie = (0.1, 0.1, 0.3)
    _, curve = measured({(3, 1.0): tie, (3, 1.25): tie, (2, 1.25): tie, (2, 1.0): (0.2, 0.1, 0.3)})
    assert (curve.selection.epoch, curve.selection.scale) == (2, 1.25)


def test_without_a_candidate_within_the_margin_the_nearest_is_taken_and_it_is_said(measured: Measured) -> None:
    rates = dict.fromkeys(NOTHING, (0.0, 0.1, 0.9)) | {(3, 0.5): (0.4, 0.2, 0.3), (3, 0.75): (0.3, 0.2, 0.3)}
    _, curve = measured(rates)
    assert (curve.selection.scale, curve.meets_margin) == (0.75, False)
    assert curve.excess(curve.selection) == pytest.approx(0.08)
    assert any("Tuning missed its margin" in str(said) for said in measured.notes.said)


def test_the_attacks_of_a_selected_candidate_are_known_even_if_it_is_far_off(measured: Measured) -> None:
    rates = dict.fromkeys(NOTHING, (0.0, 0.1, 0.9)) | {(3, 0.5): (0.4, 0.5, 0.3)}
    _, curve = measured(rates)
    assert curve.selection.scale == 0.5
    assert curve.selection.attack_success is not None
    assert [place for place in measured.attacks if place != (0, 0.0)] == [(3, 0.5)]


def test_the_selection_is_what_a_naive_search_of_the_points_finds() -> None:
    draw = random.Random(0)

    def point(number: int) -> ScalePoint:
        refused = {name: rate(draw.randrange(10) / 50) for name in ("benign", "borderline")}
        return ScalePoint(epoch=1, scale=1, norm=number, attack_success=rate(draw.randrange(4) / 9), refused=refused)

    for _ in range(200):
        points = [point(number) for number in range(8)]
        base = ValidationPoint(attack_success=rate(0.5), refused=point(0).refused)
        margin = draw.randrange(4) / 50
        found = points[select(points, base, margin)]

        def above(one: ScalePoint, base: ValidationPoint = base) -> int:
            """In answers of 50."""
            return max(
                round(50 * ((one.refused[name].value or 0) - (old.value or 0))) for name, old in base.refused.items()
            )

        allowed = round(50 * margin)
        within = [one for one in points if above(one) <= allowed]
        if not within:
            least = min(map(above, points))
            within = [one for one in points if above(one) == least]
        attacks = [one.attack_success.value for one in within if one.attack_success]
        best = [one for one in within if one.attack_success and one.attack_success.value == min(attacks)]  # type: ignore[type-var]
        assert found is best[0]


def test_a_run_keeps_what_was_selected(finished: Path) -> None:
    training = results_of(finished)["training"]
    curve = ScaleCurve.model_validate(training["scale_curve"])
    delta = NeuronDelta.load(finished / "delta.safetensors")
    assert (delta.epoch, delta.factor) == (curve.selection.epoch, curve.selection.scale)
    assert delta.norm == pytest.approx(curve.selection.norm)
    assert curve.subject == "found"
    assert [point.scale for point in curve.points if point.epoch == 1] == list(SCALES)
    assert not (finished / ".checkpoint.safetensors").exists()


def test_killed_while_it_measures_a_run_trains_nothing_again(found: Path, tmp_path: Path) -> None:
    """It goes on to the same delta as a run that was not killed."""
    whole = Path(shutil.copytree(found, tmp_path / "never-killed"))
    given = {
        "tune": {"learning_rate": 0.05, "epochs": 2, "samples": 1, "largest_share": 1.0},
        "evaluate": {"judge": BY_HASH.name},
    }
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(found, given, until="tune", listener=Recorder("^selecting", 25))
    assert (found / ".checkpoint.safetensors").exists()
    answered = len(lines_of(found / "responses.jsonl"))
    again = Recorder()
    pipeline.run(found, None, until="tune", listener=again)
    (all_at_once,) = again.steps("tuning")
    assert all_at_once > 1
    assert len(lines_of(found / "responses.jsonl")) > answered > 25
    assert not (found / ".checkpoint.safetensors").exists()
    pipeline.run(whole, given, until="tune")
    one, two = ((folder / "delta.safetensors").read_bytes() for folder in (whole, found))
    assert one == two
    one, two = (results_of(folder)["training"] | {"seconds": 0} for folder in (whole, found))
    assert one == two
