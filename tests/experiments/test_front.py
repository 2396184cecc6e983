"""Which trials nothing beats, and which of them is taken."""

import random

import pytest

from safety_neurons.experiments.auto_tune import Objectives, Trial, choose, front


def trials(*objectives: tuple[float, float, float]) -> list[Trial]:
    return [Trial(number, {}, Objectives(*values)) for number, values in enumerate(objectives)]


def test_the_front_is_what_is_nowhere_worse_and_somewhere_better() -> None:
    made = trials((0.5, 0.0, 0.0), (0.1, 0.1, 0.2), (0.1, 0.2, 0.2), (0.0, 0.5, 0.9), (0.1, 0.1, 0.2), (0.6, 0.1, 0.1))
    assert [trial.number for trial in front(made)] == [0, 1, 3, 4]


def test_the_front_by_optuna_is_the_same() -> None:
    optuna = pytest.importorskip("optuna")
    draw = random.Random(0)
    made = trials(*((draw.randrange(5) / 4, draw.randrange(5) / 4, draw.randrange(5) / 4) for _ in range(40)))
    study = optuna.create_study(directions=["minimize"] * 3)
    for trial in made:
        one = trial.objectives
        study.add_trial(
            optuna.trial.create_trial(
                values=[one.attack_success, one.over_refusal, one.kl_divergence], params={}, distributions={}
            )
        )
    assert [trial.number for trial in front(made)] == sorted(trial.number for trial in study.best_trials)


def test_the_margin_of_over_refusal_decides_first() -> None:
    made = trials((0.0, 0.05, 0.1), (0.2, 0.02, 0.9), (0.2, 0.02, 0.1), (0.4, 0.0, 0.0))
    assert choose(made, 0.02).number == 2
    assert choose(made, 1.0).number == 0
    assert choose(trials((0.0, 0.3, 0.0), (0.5, 0.03, 0.0)), 0.01).number == 1
