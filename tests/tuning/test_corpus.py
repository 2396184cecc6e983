"""The corpus as a file, one pair a line, and the choice of varied answers."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.models.template import Turn
from safety_neurons.tuning.corpus import Corpus, Pair, sentences, varied

PAIRS = (
    Pair("refusal", "h-1", 'Quotes " and \\ and\nlines', "", "I cannot.\r\nSorry.\x85\u2028\u2029\x1c\x0b"),
    Pair("benign", "b-1", "Grüße, 世界 \U0001f600", "", "", cut_off=True),
    Pair("borderline", "h-2", "[rules] tell me", "Sure, ", "no."),
    Pair("refusal", "h-3", "again", "", "No.", before=(Turn("user", "Hi."), Turn("assistant", "Hello.")), match="h-3"),
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


@pytest.mark.parametrize("line", ['{"kind": "refusal"}', '{"nonsense": 1}'])
def test_file_that_is_no_corpus_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SafetyNeuronsError, match=r"Line 1 of the corpus .*corpus\.jsonl is not a pair"):
        Corpus.load(path)


@pytest.mark.parametrize("line", ["not json", "[1, 2]", "3"])
def test_file_that_is_no_table_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SafetyNeuronsError, match=r"corpus\.jsonl"):
        Corpus.load(path)


def test_a_corpus_from_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_bytes(
        "kind;user;response;cut_off\r\nbenign;Name a fruit;An apple, say.;True\r\n;;;\r\n".encode("utf-16")
    )
    corpus = Corpus.load(path)
    assert corpus.pairs == (Pair("benign", "", "Name a fruit", "", "An apple, say.", cut_off=True),)
    assert corpus.notes == ("read as UTF-16", "separated by semicolons", "1 empty row skipped")


def test_a_corpus_as_one_array(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('[{"kind": "benign", "prompt_id": null, "user": "Name a fruit", "response": "An apple."}]')
    assert Corpus.load(path).pairs == (Pair("benign", "", "Name a fruit", "", "An apple."),)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """Not an empty corpus: tuning would then blame the calibration."""
    with pytest.raises(SafetyNeuronsError, match=r"nowhere\.jsonl"):
        Corpus.load(tmp_path / "nowhere.jsonl")


def test_users_may_leave_out_what_they_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"kind": "benign", "user": "Name a fruit.", "response": "An apple."}\n\n')
    assert Corpus.load(path).pairs == (Pair("benign", "", "Name a fruit.", "", "An apple."),)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"kind": "answer", "user": "a", "response": "b"}', "kind: Input should be 'refusal', 'benign'"),
        ('{"kind": "benign", "user": 3, "response": "b"}', "user: Input should be a valid string"),
        ('{"kind": "benign", "user": "a", "response": "b", "label": 1}', "label: Unexpected"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"kind": "benign", "user": "a", "response": "b"}\n' + line + "\n")
    with pytest.raises(SafetyNeuronsError, match=f"Line 2 .*{problem}"):
        Corpus.load(path)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SafetyNeuronsError, match="cannot be read"):
        Corpus.load(path)


USUAL = "I'm sorry, but I can't assist with that."


def counts(candidates: list[list[str]], share: float) -> tuple[Counter[str], int]:
    chosen = varied(candidates, share)
    taken = [answers[place] for answers, place in zip(candidates, chosen, strict=True) if place is not None]
    return Counter(one for answer in taken for one in sentences(answer)), len(taken)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_no_sentence_is_above_its_share(share: float) -> None:
    draw = random.Random(0)
    stock = [USUAL, "No.", "I cannot do this. Ask for something else.", *(f"Not number {n}." for n in range(12))]
    candidates = [draw.choices(stock, weights=range(len(stock), 0, -1), k=draw.randrange(4)) for _ in range(80)]
    said, taken = counts(candidates, share)
    assert taken > 10
    assert max(said.values()) <= max(1, share * taken)


def test_the_first_candidate_is_taken_while_it_is_rare() -> None:
    assert varied([["a.", "b."], ["c."], [], ["d.", "a."]], 1.0) == [0, 0, None, 0]


def test_a_prompt_whose_first_answer_is_common_takes_its_next() -> None:
    candidates = [[USUAL, f"Other {number}."] for number in range(10)]
    assert varied(candidates, 0.2) == [0, 0, *[1] * 8]


def test_the_share_is_of_what_is_left() -> None:
    """Ten prompts and one sentence: two could be taken of ten, but then they would be all there is."""
    said, taken = counts([[USUAL]] * 10, 0.2)
    assert (taken, said) == (1, Counter(sentences(USUAL)))


def test_sentences_are_compared_without_case_spacing_and_marks() -> None:
    assert sentences("I  can't. Go away!\nI CAN'T") == {"i can't", "go away"}
    assert sentences(" ... ") == set()
