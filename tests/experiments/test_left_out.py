"""Tuning without one kind of disguise at a time: what is trained on, what is asked, and what is not done twice."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.runs import lines_of, section_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.statistics import Verdict, by_request, compare_verdicts
from safety_neurons.experiments.left_out import KindVerdicts, left_out, rows_of
from safety_neurons.runs import kept_deltas
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder
from safety_neurons.tuning.corpus import Corpus

KINDS = ("suffix", "turns")
SMALL = {
    "tune": {
        **{"refusals": 6, "benign": 6, "borderline": 0, "contrast": 0, "answer_tokens": 3, "epochs": 1},
        **{"disguises": KINDS},
    }
}


@pytest.fixture(scope="module")
def measured(found_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Corpus]]:
    """The run, the section, and the corpora that were trained on."""
    folder = Path(shutil.copytree(found_once, tmp_path_factory.mktemp("left-out") / "run"))
    corpora: list[Corpus] = []
    original = kept_deltas.corpus_of
    with pytest.MonkeyPatch.context() as patch:

        def corpus_of(run: RunContext) -> Corpus:
            corpora.append(original(run))
            return corpora[-1]

        patch.setattr(kept_deltas, "corpus_of", corpus_of)
        return folder, section_of("left_out", left_out, folder, SMALL), corpora


def test_each_kind_is_left_out_once(measured: tuple[Path, dict[str, Any], list[Corpus]]) -> None:
    folder, section, corpora = measured
    assert [row["kind"] for row in section["rows"]] == list(KINDS)
    assert len(corpora) == len(list((folder / "deltas").glob("*.safetensors"))) == 2
    own = Corpus.load(folder / "corpus.jsonl")
    for kind, corpus in zip(KINDS, corpora, strict=True):
        # The requests are the same: the kinds that are left take over.
        assert {pair.prompt_id for pair in corpus.pairs} >= {pair.prompt_id for pair in own.pairs if pair.before}
        assert any(pair.before for pair in corpus.pairs) is (kind != "turns")
        assert any("Tutorial" in pair.user for pair in corpus.pairs) is (kind != "suffix")


def test_the_rows_are_shares_of_the_same_requests(measured: tuple[Path, dict[str, Any], list[Corpus]]) -> None:
    _, section, _ = measured
    for row in (*section["rows"], section["mean"]):
        assert row["requests"] == 3
    means = {side: [row[side]["value"] for row in section["rows"]] for side in ("base", "all_kinds", "without")}
    for side, values in means.items():
        if None not in values:
            assert section["mean"][side]["value"] == pytest.approx(sum(values) / len(values))


def test_p_values_are_of_the_requests_of_the_difference_and_adjusted_for_the_number_of_kinds() -> None:
    def verdicts(text: str) -> list[Verdict]:
        names: dict[str, Verdict] = {"c": "complied", "r": "refused", "u": "unscored"}
        return [names[letter] for letter in text]

    refused = verdicts("r" * 12)
    kinds = [
        KindVerdicts("story", refused, refused, verdicts("cccccccc" + "rrrr")),
        # What the run's own model could not answer says nothing of the kind.
        KindVerdicts("rules", refused, verdicts("uuuu" + "r" * 8), verdicts("cccccc" + "r" * 6)),
    ]
    story, rules = rows_of(kinds, 0)
    assert story["difference"]["p"] == pytest.approx(2 * 2 * 0.5**8)
    assert rules["difference"]["p"] == pytest.approx(2 * 0.5**2)
    ids = [str(number) for number in range(12)]
    for row, kind in zip((story, rules), kinds, strict=True):
        paired = compare_verdicts(by_request(ids, kind.all_kinds), by_request(ids, kind.left_out))
        assert row["difference"]["value"] == paired.difference.value


def test_nothing_is_trained_or_asked_twice(
    measured: tuple[Path, dict[str, Any], list[Corpus]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, section, _ = measured
    monkeypatch.setattr(kept_deltas, "train", lambda *_arguments, **_options: pytest.fail("trained again"))
    answers = lines_of(folder / "responses.jsonl")
    assert section_of("left_out", left_out, folder, SMALL) == section
    assert lines_of(folder / "responses.jsonl") == answers


@pytest.mark.usefixtures("other_precision")
def test_another_precision_is_another_training(
    measured: tuple[Path, dict[str, Any], list[Corpus]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(measured[0], tmp_path / "run"))
    left_out(folder, SMALL)
    assert len(lines_of(folder / "deltas" / "deltas.jsonl")) == 4


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        ({"disguises": ["story"]}, "at least two"),
        ({"corpus": "mine.jsonl"}, "makes its own corpus"),
        ({"variants": 0}, "Raise tune.variants"),
    ],
)
def test_what_cannot_be_left_out_is_told_before_anything_is_trained(
    found: Path, tuning: dict[str, Any], told: str
) -> None:
    if "corpus" in tuning:
        path = found.parent / "mine.jsonl"
        path.write_text('{"kind": "refusal", "user": "Tell me how to rob a bank.", "response": "No."}\n')
        tuning = {"corpus": str(path)}
    with pytest.raises(SafetyNeuronsError, match=told):
        left_out(found, {"tune": {"refusals": 2, "benign": 0, "borderline": 0, "contrast": 0} | tuning})
    assert set(RunFolder(found).whole_record().stages) == {"find"}
