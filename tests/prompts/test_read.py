"""Reading prompt files of every kind, good and bad."""

import csv
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core import files
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts import read_prompts
from safety_neurons.prompts.prompt_set import SPLITS


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = {
    "plain.txt": "First, one.\n\n  \nSecond\n",
    "windows.txt": "First, one.\r\nSecond",
    "marked.txt": "\ufeffFirst, one.\nSecond\n",
    "table.csv": 'note,prompt\nx,"First, one."\n\ny,Second\n',
    "table.tsv": "prompt\tnote\nFirst, one.\tx\nSecond\ty\n",
    "marked.csv": '\ufeffprompt\n"First, one."\nSecond\n',
    "index.csv": ',prompt\n0,"First, one."\n1,Second\n',
    "lines.jsonl": '{"prompt": "First, one."}\n\n{"prompt": "Second", "other": 1}\n',
    "objects.json": '[{"prompt": "First, one."},\n {"prompt": " Second "}]',
    "strings.json": '["First, one.", "Second"]',
    "UPPER.JSON": '["First, one.", "Second"]',
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, GOOD[name])
    prompts = read_prompts(path)
    assert prompts.texts == ["First, one.", "Second"]
    assert prompts.name == path.stem
    assert prompts.source == str(path)
    has_columns = name not in ("plain.txt", "windows.txt", "marked.txt", "strings.json", "UPPER.JSON")
    assert prompts.column == ("prompt (guessed)" if has_columns else "")


def test_prompts_keep_their_inner_lines_and_odd_separators(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "a.csv", 'goal\n"one\ntwo"\n')).texts == ["one\ntwo"]
    assert read_prompts(written(tmp_path, "a.txt", "one\u2028two\x0bthree\n")).texts == ["one\u2028two\x0bthree"]
    assert read_prompts(written(tmp_path, "a.jsonl", '{"text": "one\u2028two"}\n')).texts == ["one\u2028two"]


def test_id_category_and_split_are_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "ID,Category,Split,Goal\n7,fraud,test,one\n8,,train,two\n,,train,three\n")
    prompts = list(read_prompts(path))
    assert [prompt.id for prompt in prompts] == ["7", "8", "a-0004"]
    assert [prompt.category for prompt in prompts] == ["fraud", "", ""]
    assert [prompt.split for prompt in prompts] == ["test", "train", "train"]


def test_numbers_and_null_as_id_and_category(tmp_path: Path) -> None:
    rows = lines_of({"id": 7, "category": None, "prompt": "one"}, {"id": None, "category": 3, "prompt": "two"})
    prompts = list(read_prompts(written(tmp_path, "a.jsonl", rows)))
    assert [(prompt.id, prompt.category) for prompt in prompts] == [("7", ""), ("a-0002", "3")]


def test_the_column_is_guessed_in_order_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "Behavior,Goal\nshort,long\n")
    assert (read_prompts(path).texts, read_prompts(path).column) == (["long"], "Goal (guessed)")
    chosen = read_prompts(path, column="behavior")
    assert (chosen.texts, chosen.column) == (["short"], "Behavior")


def test_alpaca_inputs_are_appended(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum this up.", "input": "A long text.", "output": "x"},
        {"instruction": "Say hello.", "input": "", "output": "x"},
        {"instruction": "Sum this up.", "input": "Another text.", "output": "x"},
    ]
    prompts = read_prompts(written(tmp_path, "a.json", json.dumps(rows)))
    assert prompts.texts == ["Sum this up.\n\nA long text.", "Say hello.", "Sum this up.\n\nAnother text."]


def test_splits_survive_shuffling_the_file(tmp_path: Path) -> None:
    texts = [f"Question number {number}, please" for number in range(300)]
    shuffled = random.Random(1).sample(texts, len(texts))
    first = read_prompts(written(tmp_path, "a.txt", "\n".join(texts)))
    # Another kind of file with other columns, repeated prompts and other spacing.
    path = tmp_path / "b.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["n", "prompt"], *([n, f" {text.upper()} "] for n, text in enumerate(shuffled))])
        csv.writer(file).writerows([[0, text] for text in texts[:50]])
    second = read_prompts(path)
    assert (len(second), second.duplicates) == (300, 50)
    for split in SPLITS:
        assert {text.lower() for text in first.split(split).texts} == {
            text.lower() for text in second.split(split).texts
        }


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.txt", "", r"a\.txt is empty"),
    "only spaces": ("a.jsonl", " \n\n", "is empty"),
    "only a mark": ("a.csv", "\ufeff", "is empty"),
    "only a header": ("a.csv", "prompt,id\n", "no prompts in .*a.csv"),
    "empty array": ("a.json", "[]", "no prompts in .*a.json"),
    "unknown kind": ("a.xlsx", "x", r"must end in .*Export it as CSV"),
    "no kind": ("prompts", "x", "must end in"),
    "latin": (
        "a.txt",
        "Caf\u00e9\n".encode("latin-1"),
        r"byte 0xe9 in line 1\. Save it as UTF-8.*'Café'.*Windows-1252.*iconv -f WINDOWS-1252",
    ),
    "latin after a mark": ("a.txt", b"\xef\xbb\xbfCaf\xe9\n", r"byte 0xe9 in line 1\."),
    "cut-off utf-16": ("a.csv", "prompt\none\n".encode("utf-16")[:-1], "begins like UTF-16 text"),
    "nul in csv": ("a.csv", b"prompt\none\0two\n", "NUL byte in line 2"),
    "escaped nul": ("a.jsonl", '{"prompt": "a\\u0000b"}\n', r"invalid characters .* line 1\."),
    "half a pair": ("a.jsonl", '{"prompt": "a"}\n{"prompt": "\\ud83d"}\n', r"invalid characters .* line 2\."),
    "broken line": ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "Line 2 of .* not valid JSON"),
    "array in lines": ("a.jsonl", '[\n{"prompt": "a"},\n', "Line 1 of .* not valid JSON"),
    "string in lines": ("a.jsonl", '{"prompt": "a"}\n\n"b"\n', "Line 3 of .* a string, not an object"),
    "number in lines": ("a.jsonl", "12\n", "Line 1 of .* a number, not an object"),
    "deep": ("a.jsonl", "[" * 100_000, "Line 1 .*nested too deeply"),
    "deep array": ("a.json", "[" * 100_000, "nested too deeply"),
    "long number": ("a.json", "1" * 5000, "not valid JSON"),
    "broken json": ("a.json", '[{"prompt": "a"},\n', "not valid JSON .*at line 2"),
    "broken lines in json": ("a.json", '{"prompt": "a"}\n{"prompt": "b"\n', "not valid JSON .*at line 2"),
    "object": ("a.json", '{"name": "a"}', r"holds an object with name \(a string\). It must hold an array"),
    "several lists": ("a.json", '{"a": ["b"], "c": ["d"]}', r"several lists \(a, c\)"),
    "mixed": ("a.json", '["a", {"prompt": "b"}]', "Item 1 of .* is a string"),
    "numbers": ("a.json", '[{"prompt": "b"}, null]', "Item 2 of .* is null"),
    "unknown columns": ("a.csv", "one,two\n1,2\n", r"columns are one, two\. .*column"),
    "no header": ("a.csv", "1;one\n2;two\n", r"columns are 1, one\. .*put the names of the columns above it"),
    "header twice": ("a.csv", "prompt,prompt\n1,2\n", "'prompt' more than once"),
    "unquoted comma": ("a.csv", "id,prompt\n\n1,one, two\n", "Line 3 of .* 3 values for 2 columns"),
    "open quotation": ("a.csv", 'prompt\none\n"two\nthree\n', "row starting in line 3 .*unclosed quotation"),
    "huge field": (
        "a.csv",
        "prompt\n" + "x" * 140_000 + "\n",
        "row starting in line 2 .*more than 131072",
    ),
    "blank in csv": (
        "a.csv",
        'id,prompt\n1,"a\nb"\n2, \n3,c\n4,\n5\n',
        r"blank prompts .* lines 4, 6 and 7\.",
    ),
    "blank in lines": ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": " "}\n{"prompt": null}\n', "lines 3 and 4"),
    "missing in lines": ("a.jsonl", '{"prompt": "a"}\n{"id": 4}\n', "blank prompts .* line 2"),
    "no fields": ("a.jsonl", "{}\n", "blank prompts .* line 1"),
    "not a string": ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "'prompt' in line 2 of .* not a string"),
    "a list of messages": (
        "a.json",
        '[{"prompt": [{"role": "user"}]}]',
        "conversation in 'prompt' in item 1 of .* has a message without text",
    ),
    "wrong split": ("a.csv", "prompt,split\na,train\nb,dev\n", r"'dev' .*not train, .*\(line 3\)"),
    "missing split": ("a.jsonl", '{"prompt": "a", "split": "test"}\n{"prompt": "b"}\n', r"\(line 2\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_say_what_is_wrong(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = written(tmp_path, name, content)
    with pytest.raises(SafetyNeuronsError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wished_column_that_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "prompt,id\na,1\n")
    with pytest.raises(SafetyNeuronsError, match=r"no column 'goal'\. Its columns are prompt, id\. .*column"):
        read_prompts(path, column="goal")
    with pytest.raises(SafetyNeuronsError, match="no columns, so it has no column 'goal'"):
        read_prompts(written(tmp_path, "a.txt", "one\n"), column="goal")


def test_missing_files(tmp_path: Path) -> None:
    written(tmp_path, "harmful_prompts.csv", "prompt\na\n")
    with pytest.raises(SafetyNeuronsError, match=r"does not exist\. Did you mean harmful_prompts\.csv\?"):
        read_prompts(tmp_path / "harmful_prompt.csv")
    with pytest.raises(SafetyNeuronsError, match=r"does not exist\. Check the path\."):
        read_prompts(tmp_path / "zzz.jsonl")
    with pytest.raises(SafetyNeuronsError, match="there is no folder"):
        read_prompts(tmp_path / "nowhere" / "a.csv")
    with pytest.raises(SafetyNeuronsError, match="is a folder"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5000 + ".txt", "a\0b.txt", "~no-such-user-here/a.txt"])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(SafetyNeuronsError, match="does not exist"):
        read_prompts(path)


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "a.txt", "one\n")
    assert read_prompts("~/a.txt").texts == ["one"]


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.txt", "one\n")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    # Not chmod: the tests may run as root, who may read everything.
    monkeypatch.setattr(files, "_open_at_once", refuse)
    with pytest.raises(SafetyNeuronsError, match=r"cannot be read \(Permission denied\)"):
        read_prompts(path)


@pytest.mark.parametrize("depth", [10, 900])
def test_deeply_nested_json(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a":' * depth + '{"prompt":"no"}' + "}" * depth)
    with pytest.raises(SafetyNeuronsError, match=r"deep.json holds an object with a \(an object\)\."):
        read_prompts(path)


def test_a_cell_that_is_no_value_of_python(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("prompt\n[{['a']:1}]\n")
    assert read_prompts(path).texts == ["[{['a']:1}]"]


def test_wide_tables_take_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = ["prompt", *(f"column {number}" for number in range(30_000))]
    path.write_text(f"{','.join(names)}\n{','.join('x' * len(names))}\n")
    start = time.process_time()
    assert read_prompts(path).texts == ["x"]
    assert time.process_time() - start < 4
