"""The guard of a run: its own neurons, its dose from validation prompts, and when the kept one is taken."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from safety_neurons import run
from safety_neurons.calibration.guard import Guard
from safety_neurons.core.progress import Silence
from safety_neurons.runs import guard as fitting
from safety_neurons.runs.guard import ALPHAS, Dose, Learnt, best_dose, fit_and_keep, guard_of
from safety_neurons.runs.opened import opened


class Notes(Silence):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: object) -> None:
        self.said.append(str(message))


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
    doses = [Dose(alpha, *both) for alpha, both in zip((0.0, 2.0, 3.0), rates, strict=True)]
    assert best_dose(doses).alpha == best
    assert best_dose(doses[::-1]).alpha == best


def test_the_dose_is_the_one_that_is_best_on_validation_prompts(found: Path, lines: Any) -> None:
    notes = Notes()
    with opened(found, None, notes, "") as work:
        fitted, _, doses = fit_and_keep(work)
        asked = {line["prompt_id"] for line in lines(found / "responses.jsonl")}
        validation = {prompt.id for prompts in work.prompts.values() for prompt in prompts.split("validation")}
    assert asked <= validation
    assert [dose.alpha for dose in doses] == [0.0, *ALPHAS]
    assert fitted.alpha == best_dose(doses).alpha
    assert Guard.load(found / "guard.safetensors").alpha == fitted.alpha
    assert any(f"{fitted.alpha:g} is best" in said for said in notes.said)


def test_a_guard_that_stops_nothing_is_told(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    useless = (Dose(0.0, 0.5, 0.0), Dose(2.0, 0.5, 0.1))
    monkeypatch.setattr(fitting, "_tried", lambda *_: useless)
    with opened(found, None, notes, "") as work:
        fit_and_keep(work)
    assert any("stops no attack" in said for said in notes.said)


def test_the_guard_has_its_own_neurons(found: Path) -> None:
    with opened(found, {"guard": {"percent": 50.0, "alpha": 1.0}}, None, "") as work:
        more = fit_and_keep(work).guard
        assert len(more.neurons) > len(work.neurons)
    with opened(found, {"guard": {"percent": 20.0, "alpha": 1.0}}, None, "") as work:
        same = fit_and_keep(work).guard
        assert all(one.equal(other) for one, other in zip(same.neurons.both, work.neurons.both, strict=True))


def test_the_kept_guard_is_taken_unless_others_are_asked_for(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def counted(work: Any) -> Any:
        made.append(work.settings.guard.false_positive_rate)
        return fit_and_keep(work)

    monkeypatch.setattr(fitting, "fit_and_keep", counted)

    def guard(as_settings_say: bool = False, **settings: Any) -> Guard:
        with opened(found, {"guard": {"alpha": 1.0} | settings}, None, "") as work:
            return guard_of(work, as_settings_say)

    first = guard()
    before = digest(found / "guard.safetensors")
    assert guard().digest == guard(as_settings_say=True).digest == first.digest
    assert guard(false_positive_rate=0.4).digest == first.digest
    assert (len(made), digest(found / "guard.safetensors")) == (1, before)
    other = guard(as_settings_say=True, false_positive_rate=0.4)
    assert (len(made), other.false_positive_rate) == (2, 0.4)
    assert guard().digest == other.digest
    # The size of the run's own set is not the guard's.
    run(found, {"find": {"percent": 30.0}}, until="find")
    assert guard().digest == other.digest
    assert len(made) == 2
    run(found, {"find": {"score": "magnitude"}}, until="find")
    assert guard().digest != other.digest
    assert len(made) == 3


def test_it_learns_from_disguised_requests_too(found: Path) -> None:
    with opened(found, None, None, "") as work:
        learnt = Learnt.of(work)
        plain = {
            name: [work.model.render(prompt.text) for prompt in work.prompts[name].split("train")]
            for name in ("harmful", "contrast", "benign", "borderline")
        }
    assert learnt.benign == plain["benign"]
    for own, asked in ((learnt.harmful, ("harmful", "contrast")), (learnt.borderline, ("borderline",))):
        expected = [text for name in asked for text in plain[name]]
        assert own[: len(expected)] == expected
        assert not set(own[len(expected) :]) & {text for texts in plain.values() for text in texts}
    # Some disguises begin the answer.
    assert any(not text.endswith("<|assistant|>") for text in learnt.harmful)
