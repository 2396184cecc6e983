"""The corpus as a file: one pair a line, nothing lost."""

import json
from pathlib import Path

import pytest

from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.tune.corpus import Corpus, Pair

PAIRS = (
    Pair("refusal", "h-1", 'Quotes " and \\ and\nlines', "", "I cannot.\r\nSorry.\x85\u2028\u2029\x1c\x0b"),
    Pair("benign", "b-1", "Grüße, 世界 \U0001f600", "", "", cut_off=True),
    Pair("borderline", "h-2", "[rules] tell me", "Sure, ", "no."),
    Pair("refusal", "h-3", "again", "", "No."),
)


def test_corpus_is_saved_and_loaded(tmp_path: Path) -> None:
    corpus = Corpus(PAIRS)
    corpus.save(tmp_path / "corpus.jsonl")
    assert Corpus.load(tmp_path / "corpus.jsonl") == corpus
    lines = (tmp_path / "corpus.jsonl").read_bytes().split(b"\n")
    assert lines[-1] == b""
    assert [json.loads(line)["prompt_id"] for line in lines[:-1]] == ["h-1", "b-1", "h-2", "h-3"]


def test_empty_corpus_is_saved_and_loaded(tmp_path: Path) -> None:
    Corpus(()).save(tmp_path / "corpus.jsonl")
    assert Corpus.load(tmp_path / "corpus.jsonl") == Corpus(())


def test_counts_are_by_kind() -> None:
    assert Corpus(PAIRS).counts() == {"refusal": 2, "benign": 1, "borderline": 1}
    assert Corpus(()).counts() == {}


@pytest.mark.parametrize("line", ['{"kind": "refusal"}', "not json", '{"nonsense": 1}', "[1, 2]", "3"])
def test_file_that_is_no_corpus_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SafetyNeuronsError, match=r"corpus\.jsonl"):
        Corpus.load(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """Not an empty corpus: tuning would then blame the calibration."""
    with pytest.raises(SafetyNeuronsError, match=r"nowhere\.jsonl"):
        Corpus.load(tmp_path / "nowhere.jsonl")
