"""The guard of a run: its own neurons, its dose from validation prompts, and when the kept one is taken."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.judges import BY_HASH
from builders.listeners import Recorder
from builders.runs import TEXTS, lines_of
from safety_neurons.calibration.guard import Guard
from safety_neurons.runs import guard as guard_module
from safety_neurons.runs import pipeline
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.guard import ALPHAS, DetectorRequests, Fitted, GuardDose, best_dose, fit_and_keep, guard_of
from safety_neurons.runs.opened import opened


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([(0.5, 0.0), (0.2, 0.1), (0.1, 0.1)], 3.0),
        # A dose that stops attacks by refusing, or breaking, everything is none.
        ([(0.5, 0.0), (0.2, 0.1), (0.0, 0.9)], 2.0),
        # Of equal ones the smallest; no guard at all is no choice.
        ([(0.1, 0.0), (0.3, 0.1), (0.1 + 0.2, 0.1)], 2.0),
    ],
)
def test_the_best_dose(rates: list[tuple[float, float]], best: float) -> None:
    doses = [GuardDose(alpha, *both) for alpha, both in zip((0.0, 2.0, 3.0), rates, strict=True)]
    assert best_dose(doses).alpha == best
    assert best_dose(doses[::-1]).alpha == best


def test_the_dose_is_the_one_that_is_best_on_validation_prompts(found: Path) -> None:
    notes = Recorder()
    with opened(found, {"evaluate": {"judge": BY_HASH.name}}, notes, "") as run:
        fitted, _, doses = fit_and_keep(run)
    asked = [line["user"] for line in lines_of(found / "responses.jsonl")]
    validation = [text.format(number) for text in TEXTS.values() for number in (8, 9)]
    assert asked
    assert all(any(text in user for text in validation) for user in asked)
    assert [dose.alpha for dose in doses] == [0.0, *ALPHAS]
    assert len({dose[1:] for dose in doses}) > 1
    assert fitted.alpha == best_dose(doses).alpha
    assert Guard.load(found / "guard.safetensors").alpha == fitted.alpha
    assert any(f"{fitted.alpha:g} is best" in said for said in notes.said)


def test_a_guard_that_stops_nothing_is_told(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Recorder()
    useless = (GuardDose(0.0, 0.5, 0.0), GuardDose(2.0, 0.5, 0.1))
    monkeypatch.setattr(guard_module, "_tried", lambda *_: useless)
    with opened(found, None, notes, "") as run:
        fit_and_keep(run)
    assert any("stops no attack" in said for said in notes.said)


def test_the_guard_has_its_own_neurons(found: Path) -> None:
    with opened(found, {"guard": {"percent": 50.0, "alpha": 1.0}}, None, "") as run:
        more = fit_and_keep(run).guard
        assert len(more.neurons) > len(run.neurons)
    with opened(found, {"guard": {"percent": 20.0, "alpha": 1.0}}, None, "") as run:
        same = fit_and_keep(run).guard
        assert all(one.equal(other) for one, other in zip(same.neurons.both, run.neurons.both, strict=True))


def test_the_kept_guard_is_taken_unless_others_are_asked_for(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def counted(run: RunContext) -> Fitted:
        made.append(run.settings.guard.false_positive_rate)
        return fit_and_keep(run)

    monkeypatch.setattr(guard_module, "fit_and_keep", counted)

    def guard(asked_for: bool = False, **settings: Any) -> Guard:
        """`asked_for`: the settings were given to this call, and are not those of the run."""
        with opened(found, {"guard": {"alpha": 1.0} | settings}, None, "") as run:
            return guard_of(run if asked_for else replace(run, given={}))

    first = guard()
    before = digest(found / "guard.safetensors")
    assert guard().digest == guard(asked_for=True).digest == first.digest
    assert guard(false_positive_rate=0.4).digest == first.digest
    assert (len(made), digest(found / "guard.safetensors")) == (1, before)
    other = guard(asked_for=True, false_positive_rate=0.4)
    assert (len(made), other.false_positive_rate) == (2, 0.4)
    assert guard().digest == other.digest
    # The size of the run's own set is not the guard's.
    pipeline.run(found, {"find": {"percent": 30.0}}, until="find")
    assert guard().digest == other.digest
    assert len(made) == 2
    pipeline.run(found, {"find": {"score": "magnitude"}}, until="find")
    assert guard().digest != other.digest
    assert len(made) == 3


def test_it_learns_from_disguised_requests_too(found: Path) -> None:
    with opened(found, None, None, "") as run:
        learned = DetectorRequests.of(run)
        plain = {
            name: [run.model.render(prompt.text) for prompt in run.prompts[name].split("train")]
            for name in ("harmful", "contrast", "benign", "borderline")
        }
    assert learned.benign == plain["benign"]
    for own, asked in ((learned.harmful, ("harmful", "contrast")), (learned.borderline, ("borderline",))):
        expected = [text for name in asked for text in plain[name]]
        assert own[: len(expected)] == expected
        assert not set(own[len(expected) :]) & {text for texts in plain.values() for text in texts}
    # Some disguises begin the answer.
    assert any(not text.endswith("<|assistant|>") for text in learned.harmful)


def test_it_learns_from_a_limited_number_of_requests_of_each_set(found: Path) -> None:
    with opened(found, {"guard": {"prompts": 2}}, None, "") as run:
        learned = DetectorRequests.of(run)
    assert [len(learned.harmful), len(learned.benign), len(learned.borderline)] == [2 * 4, 2, 2 + 4]
