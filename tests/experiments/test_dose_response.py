"""Dose-response on a tiny run: which rows there are, and what each is a row of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.judges import by_hash
from builders.listeners import Recorder
from builders.runs import TEXTS, lines_of, results_of, section_of
from safety_neurons import run
from safety_neurons.calibration.calibration import dose
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Verdict
from safety_neurons.experiments import intervention as intervention_module
from safety_neurons.experiments.dose_response import MOST_ALPHAS, dose_response, parse_alphas
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.generate import generate
from safety_neurons.models.likelihood import nll, read_answers
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.neurons.read import write_norms

SUBJECTS = ("found", "random", "random, equal dose")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2:2", [-2, -1, 0, 1, 2]),
        ("-6:6:3", [-6, -3, 0, 3, 6]),
        ("1:2:0.25", [0, 1, 1.25, 1.5, 1.75, 2]),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("1:2.5", [0, 1, 2]),
        ("3:3", [0, 3]),
        ("-4,0,4", [-4, 0, 4]),
        ("4,-4", [-4, 0, 4]),
        ("2", [0, 2]),
        (" 1 , 1.0 , 2 ", [0, 1, 2]),
        ("-50:50", list(range(-50, 51))),
    ],
)
def test_ranges_and_lists_become_sorted_alphas_with_zero_among_them(text: str, expected: list[float]) -> None:
    assert parse_alphas(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "nonsense", "1:", ":", "1:2:3:4", "2:1", "1:2:0", "1:2:-1", "1,,2", "1;2", "1:2,3"),
        *("nan", "inf", "-inf,1", "nan:1", "0:inf", "-inf:0", "inf:inf", "0:1:nan", "0:1:inf:", "1e9", "0:1:1e-300"),
        *("0:1000", "0:1:0.001", ",".join(map(str, range(MOST_ALPHAS + 1)))),
    ],
)
def test_what_is_no_range_of_alphas_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(SafetyNeuronsError, match="LOW:HIGH") as error:
        parse_alphas(text)
    assert repr(text) in str(error.value)


def test_every_alpha_has_a_row_for_every_subject_and_side(found: Path) -> None:
    rows = section_of("dose_response", dose_response, found, parse_alphas("-8,8"))["rows"]
    expected = {(0.0, "base", side) for side in ("harmful", "benign")} | {
        (alpha, subject, side) for alpha in (-8.0, 8.0) for subject in SUBJECTS for side in ("harmful", "benign")
    }
    cells = [(row["alpha"], row["subject"], row["prompts"]) for row in rows]
    assert len(cells) == len(set(cells))
    assert set(cells) == expected
    for row in rows:
        assert row["n"] == 3
        assert sum(row[name]["value"] for name in ("refused", "answered", "broken")) == pytest.approx(1)
        assert (row["kl_divergence"]["value"] == 0) == (row["alpha"] == 0)
        assert row["kl_divergence"]["value"] >= 0
    assert (found / "report.html").exists()


def test_alpha_zero_is_the_base_model(found: Path, make_model: Callable[..., ChatModel]) -> None:
    rows = section_of("dose_response", dose_response, found, [0.0, 5.0])["rows"]
    model = make_model()
    verdicts: list[Verdict] = []
    for number in (8, 9, 10):
        text = model.render(TEXTS["harmful"].format(number))
        answer = dict(generate(model, [text], max_new_tokens=4))[0].text
        (how,) = nll(read_answers(model, [text], [answer], 4))
        assert how is not None
        verdicts.append("unscored" if how > intervention_module.NLL_LIMIT else by_hash(answer))
    (row,) = [row for row in rows if row["alpha"] == 0 and row["prompts"] == "harmful"]
    assert (row["subject"], row["alpha_used"], row["kl_divergence"]["value"]) == ("base", 0, 0)
    counted: dict[str, Verdict] = {"refused": "refused", "answered": "complied", "broken": "unscored"}
    for name, verdict in counted.items():
        assert row[name]["value"] == verdicts.count(verdict) / 3


def subset(neurons: NeuronSet, name: str, layers: tuple[int, int] | None) -> NeuronSet:
    """The neurons that are calibrated."""
    first, last = layers or (0, 99)
    chosen = tuple(
        indices if first <= layer <= last else indices[:0]
        for layer, indices in zip(neurons.layers, getattr(neurons, name), strict=True)
    )
    empty = tuple(indices[:0] for indices in chosen)
    return NeuronSet(chosen, empty, neurons.widths, neurons.layers, neurons.provenance, neurons.directions)


@pytest.mark.parametrize("knobs", [{}, {"subset": "rejection"}, {"layers": (1, 2)}], ids=str)
def test_equal_doses_are_equal_for_what_is_calibrated(
    found: Path, knobs: dict[str, Any], make_model: Callable[..., ChatModel]
) -> None:
    section = section_of("dose_response", dose_response, found, [-3.0, 3.0], {"calibrate": knobs})
    norms = write_norms(make_model()).norm_2
    neurons = NeuronSet.load(found / "neurons.safetensors", found / "directions.safetensors")
    control = neurons.random_like(1)
    sets = {"found": neurons, "random": control, "random, equal dose": control}
    chosen = knobs.get("subset", "both"), knobs.get("layers")
    doses = {name: dose(subset(one, *chosen), norms) for name, one in sets.items()}
    for row in section["rows"]:
        if row["subject"] in ("found", "random"):
            assert row["alpha_used"] == 3
        else:
            assert row["alpha_used"] * doses[row["subject"]] == pytest.approx(3 * doses["found"], rel=1e-4)


def test_the_section_stays_until_the_neurons_change(found: Path, given: dict[str, Any]) -> None:
    section = section_of("dose_response", dose_response, found, [0.0, 5.0])
    assert results_of(found)["dose_response"] == section
    run(found, {"calibrate": {"alpha_rejection": 2.0}}, until="calibrate")
    assert results_of(found)["dose_response"] == section
    run(found, {"find": {"percent": 10.0}}, until="find")
    assert "dose_response" not in results_of(found)


def test_the_same_seed_gives_the_same_rows_and_asks_nothing_again(
    found: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    first = section_of("dose_response", dose_response, found, [-5.0, 0.0])
    answers = (found / "responses.jsonl").read_bytes()
    assert section_of("dose_response", dose_response, found, [-5.0, 0.0]) == first
    assert (found / "responses.jsonl").read_bytes() == answers
    # In another folder, from the beginning: neurons are found on the way.
    assert section_of("dose_response", dose_response, tmp_path / "new", [-5.0, 0.0], given) == first


def test_a_killed_dose_response_goes_on_to_the_same_rows(found: Path, given: dict[str, Any], tmp_path: Path) -> None:
    whole = section_of("dose_response", dose_response, tmp_path / "whole", [-5.0, 5.0], given)
    for after in (1, 11, 21):
        with pytest.raises(KeyboardInterrupt):
            dose_response(found, [-5.0, 5.0], listener=Recorder("dose-response", after))
    assert section_of("dose_response", dose_response, found, [-5.0, 5.0]) == whole
    keys = [line["key"] for line in lines_of(found / "responses.jsonl")]
    assert len(keys) == len(set(keys))


def test_other_prompts_are_asked_instead(found: Path, given: dict[str, Any], foreign: str) -> None:
    pair = f"{foreign}:{given['benign']}"
    section = section_of("dose_response", dose_response, found, [2.0], on=pair)
    assert section["on"] == pair
    # The run learnt from one of them, so of that only the test split is asked.
    assert {row["prompts"]: row["n"] for row in section["rows"]} == {"harmful": 11, "benign": 3}


def test_a_model_without_answers_has_no_distances(silent: dict[str, Any], tmp_path: Path) -> None:
    rows = section_of("dose_response", dose_response, tmp_path / "run", [0.0, 3.0], silent)["rows"]
    assert {row["nll"]["value"] for row in rows} == {None}
    assert {row["kl_divergence"]["value"] for row in rows if row["alpha"]} == {None}
