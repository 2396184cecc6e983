"""The forms in which spreadsheets, pandas, data sets and servers save prompts: what is read, and what is said of it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts import PromptSet, read_prompts, tell
from safety_neurons.prompts.json_forms import parse_json_lines

TEXTS = ["First, one; please", 'Say "two"\n\nthen 3 | 4']
FLAT = ["First, one; please", "Then\u2019s two | three", "Last: caf\u00e9"]
ROWS = [{"id": f"r{number}", "prompt": text} for number, text in enumerate(FLAT)]


def read(folder: Path, name: str, content: str | bytes) -> PromptSet:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(path)


def delimited(separator: str, end: str = "\r\n", ending: str = "") -> str:
    quoted = ['"' + text.replace('"', '""').replace("\n", end) + '"' for text in TEXTS]
    rows = [f"id{separator}prompt", *(f"r{number}{separator}{text}" for number, text in enumerate(quoted))]
    return "".join(f"{row}{ending}{end}" for row in rows)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.tab"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_are_found_out_whatever_the_ending(tmp_path: Path, name: str, separator: str, end: str) -> None:
    prompts = read(tmp_path, name, delimited(separator, end))
    assert prompts.texts == TEXTS
    assert [prompt.id for prompt in prompts] == ["r0", "r1"]
    names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    usual = "," if name == "a.csv" else "\t"
    assert (f"separated by {names[separator]}" in prompts.notes) == (separator != usual)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_line_in_which_excel_names_the_separator(tmp_path: Path, separator: str) -> None:
    for first in (f"sep={separator}", f'"sep={separator}"'):
        prompts = read(tmp_path, "a.csv", f"\ufeff{first}\r\n{delimited(separator)}")
        assert prompts.texts == TEXTS
        assert any(note.startswith("separated by") for note in prompts.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_can_be_told_for_sure(tmp_path: Path, encoding: str) -> None:
    lines = "".join(f"{text}\n" for text in FLAT).encode(encoding)
    prompts = read(tmp_path, "a.txt", lines)
    assert prompts.texts == FLAT
    assert prompts.notes == (() if encoding == "utf-8-sig" else (f"read as {encoding[:6].upper()}",))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_empty_rows_and_columns_are_skipped(tmp_path: Path, separator: str) -> None:
    empty = f"{separator * 4}\r\n"
    content = empty + delimited(separator, ending=separator * 3) + empty + "\r\n" + empty
    prompts = read(tmp_path, "a.csv", content)
    assert prompts.texts == TEXTS
    assert "3 empty rows skipped" in prompts.notes


def test_one_column_with_separators_in_its_prompts(tmp_path: Path) -> None:
    content = "prompt\r\n" + "".join(f"{text}\r\n" for text in FLAT) + '"Quoted, with ""marks"""\r\n'
    prompts = read(tmp_path, "a.csv", content)
    assert prompts.texts == [*FLAT, 'Quoted, with "marks"']
    assert "one column, whose texts are taken with all their separators" in prompts.notes
    # A comma at the end of some rows is part of their texts; at the end of each, it is an empty column.
    assert read(tmp_path, "b.csv", "prompt\nDear sir,\nHello\n").texts == ["Dear sir,", "Hello"]
    assert read(tmp_path, "c.csv", "prompt\nDear sir,\nHello,\n").texts == ["Dear sir", "Hello"]


def test_what_other_programs_do_to_tables(tmp_path: Path) -> None:
    spaced = read(tmp_path, "spaced.csv", 'id, prompt\n1, "one, two"\n')
    assert spaced.texts == ["one, two"]
    escaped = read(tmp_path, "escaped.csv", 'id,prompt\n1,"say \\"one\\", two"\n2,plain\n')
    assert (escaped.texts, escaped.notes) == (['say "one", two', "plain"], ("with backslashes as escapes",))
    literal = read(tmp_path, "literal.tsv", 'id\tprompt\n1\t"Yes" is what I say\n')
    assert literal.texts == ['"Yes" is what I say']
    joined = read(tmp_path, "joined.csv", "\ufeffid,prompt\n1,one\n\ufeffid,prompt\n2,two\n")
    assert (joined.texts, joined.notes) == (["one", "two"], ("1 repeated header skipped",))


def test_rows_that_are_messages_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"line 3 of .* is a message of the assistant.*Delete the rows"):
        read(tmp_path, "a.csv", "role,text\nuser,one\nassistant,No.\n")
    assert read(tmp_path, "a.csv", "role,text\nuser,one\n").texts == ["one"]


def test_a_table_that_cannot_be_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"Line 2 of .* has 2 values for 1 column\. Quote"):
        read(tmp_path, "a.csv", "prompt;\none; two\n")


def test_a_web_page_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match="is a web page"):
        read(tmp_path, "a.csv", "<!DOCTYPE html>\n<html>Sign in</html>\n")


def test_plain_lines_stay_plain(tmp_path: Path) -> None:
    for text in ("Question, what is it?\nTell me, please, now\n", "one, two\nthree, four\n", "one;two\nthree;four\n"):
        assert read(tmp_path, "a.txt", text).texts == text.splitlines()
    quoted = read(tmp_path, "b.txt", '"one"\ntwo\n')
    assert (quoted.texts, quoted.notes) == (
        ['"one"', "two"],
        ("1 line in quotation marks, which are part of the prompts",),
    )
    assert read(tmp_path, "c.txt", '{"prompt": "one"}\n{"prompt": "two"}\n').texts == ["one", "two"]
    assert read(tmp_path, "d.txt", "prompt\none\ntwo\n").texts == ["one", "two"]


COLUMNS: dict[str, list[Any]] = {"id": ["r0", "r1", "r2"], "prompt": FLAT}
JSON: dict[str, Any] = {
    "records": ROWS,
    "pandas columns": {name: dict(zip("012", values, strict=True)) for name, values in COLUMNS.items()},
    "pandas split": {"columns": ["id", "prompt"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
    "pandas index": {str(number): row for number, row in enumerate(ROWS)},
    "pandas table": {"schema": {"fields": []}, "data": [{"index": 0} | row for row in ROWS]},
    "pandas series": dict(zip("012", FLAT, strict=True)),
    "lists": COLUMNS,
    "rows with a header": [["id", "prompt"], *(list(row.values()) for row in ROWS)],
    "texts in lists": [[text] for text in FLAT],
    "wrapped": {"version": 1, "tags": [], "data": ROWS},
    "wrapped texts": {"name": "mine", "prompts": FLAT},
    "dataset server": {"features": [], "rows": [{"row_idx": 0, "row": row, "truncated_cells": []} for row in ROWS]},
    "messages": [{"messages": [{"role": "user", "content": text}]} for text in FLAT],
    "bare conversations": [[{"role": "user", "content": text}] for text in FLAT],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "No."}]} for text in FLAT
    ],
    "columns of messages": {"messages": [[{"role": "user", "content": text}] for text in FLAT]},
    "parts": [{"prompt": [{"role": "user", "content": [{"type": "text", "text": text}]}]} for text in FLAT],
    "gemini": [{"contents": [{"role": "user", "parts": [{"text": text}]}]} for text in FLAT],
    "exchanges": [{"conversation": [{"human": text, "assistant": "No."}]} for text in FLAT],
    "batch": [{"custom_id": text, "body": {"messages": [{"role": "user", "content": text}]}} for text in FLAT],
    "batch of responses": [{"custom_id": text, "body": {"model": "m", "input": text}} for text in FLAT],
    "preferences": [
        {"input": {"messages": [{"role": "user", "content": text}]}, "preferred_output": []} for text in FLAT
    ],
    "templated": [{"text": f"<|user|>{text}", "messages": [{"role": "user", "content": text}]} for text in FLAT],
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("form", JSON)
def test_forms_of_json(tmp_path: Path, form: str, name: str) -> None:
    assert read(tmp_path, name, json.dumps(JSON[form])).texts == FLAT
    assert read(tmp_path, name, "\ufeff" + json.dumps(JSON[form], indent=1)).texts == FLAT
    if isinstance(JSON[form], list) and isinstance(JSON[form][0], dict):
        for indent in (None, 2):
            lines = "\r\n".join(json.dumps(row, indent=indent) for row in JSON[form])
            assert read(tmp_path, name, lines).texts == FLAT


def test_what_is_inside_of_objects_is_named_by_its_path(tmp_path: Path) -> None:
    nested = "".join(json.dumps({"meta": row, "n": 1}) + "\n" for row in ROWS)
    with pytest.raises(
        SafetyNeuronsError, match=r"columns are meta\.id, meta\.prompt, n\. .* It may be 'meta\.prompt'"
    ):
        read(tmp_path, "a.jsonl", nested)
    assert read_prompts(tmp_path / "a.jsonl", "meta.prompt").texts == FLAT


def test_the_user_s_first_turn_is_taken_and_said(tmp_path: Path) -> None:
    system, answer = {"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hi."}
    asked = [{"role": "user", "content": text} for text in ("one", "two", "three")]
    rows = [
        {"messages": [system, asked[0], answer, asked[1]]},
        # What the user says in two messages is one turn, and a greeting is none.
        {"messages": [answer, asked[1], asked[2], answer]},
        {"messages": [asked[2]]},
    ]
    prompts = read(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert prompts.texts == ["one", "two\n\nthree", "three"]
    assert prompts.column == "messages (guessed), the user's first turn"
    said = (
        "1 system message left out (a system prompt is set with `system`)",
        "the later turns of 1 conversation left out",
    )
    assert prompts.notes == said
    assert prompts.remarks == "; ".join((f"column {prompts.column}", *said))


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_conversations_in_the_cells_of_a_table(tmp_path: Path, write: Any) -> None:
    cells = [write([{"content": text, "role": "user"}]).replace('"', '""') for text in FLAT]
    prompts = read(tmp_path, "a.csv", "messages,source\n" + "".join(f'"{cell}",x\n' for cell in cells))
    assert prompts.texts == FLAT
    assert prompts.column == "messages (guessed), the user's first turn"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "a"}], "has no message of the user"),
        ([{"role": "owner", "content": "a"}], "unknown role 'owner'"),
        ([{"role": "system", "content": "a"}, {"content": "a"}], "without a role"),
        ([{"role": "user", "content": None}], "without text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"part that is not text \(image_url\)"),
    ],
)
def test_conversations_that_cannot_be_read(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(SafetyNeuronsError, match=f"'messages' in line 1 of .* {message}"):
        read(tmp_path, "a.jsonl", json.dumps({"messages": messages}))


@pytest.mark.parametrize("missing", ["", "NaN", "null", "None", "N/A", "#N/A", "#NAME?", "<NA>", "Err:502"])
def test_one_missing_prompt_among_hundreds_is_an_error(tmp_path: Path, missing: str) -> None:
    rows = [f"r{number},Question {number}" for number in range(300)]
    rows[200] = f"r200,{missing}"
    with pytest.raises(SafetyNeuronsError, match=r"blank prompts .* line 202"):
        read(tmp_path, "a.csv", "\n".join(["id,prompt", *rows]))
    with pytest.raises(SafetyNeuronsError, match=r"blank prompts .* line 2\."):
        read(tmp_path, "a.jsonl", '{"prompt": "a"}\n{"prompt": NaN}\n')


def test_windows_1252_is_not_guessed_and_the_command_for_it_works(tmp_path: Path) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"byte 0x92 in line 2.*'Then\u2019s two") as caught:
        read(tmp_path, "my prompts.txt", "\n".join(FLAT).encode("cp1252"))
    command = str(caught.value).split("`")[1]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    (converted,) = [path for path in tmp_path.iterdir() if path.name != "my prompts.txt"]
    assert read_prompts(converted).texts == FLAT


def test_damaged_utf_8_is_not_taken_for_windows_1252(tmp_path: Path) -> None:
    whole = ("\u00e9" * 9 + "\n").encode()
    with pytest.raises(SafetyNeuronsError, match="ends within a character, so it is cut off"):
        read(tmp_path, "a.txt", whole[:-2])
    with pytest.raises(SafetyNeuronsError, match=r"in line 2, though most of the file is\. Correct that line\.$"):
        read(tmp_path, "b.txt", whole + b"\xe9t\xe9\n" + whole)


def test_letters_that_were_lost_before_are_said(tmp_path: Path) -> None:
    broken = FLAT[1].encode().decode("cp1252")
    prompts = read(tmp_path, "a.txt", f"fine\n{broken}\nlost \ufffd\n")
    assert prompts.notes[0].startswith("it has 1 replacement characters")
    assert prompts.notes[1].startswith("line 2 has '\u00e2\u20ac\u2122'")
    assert not read(tmp_path, "b.txt", "N\u00c3O \u00e9 \u00c2mbar, \u00e2ge, \u20ac 5\n").notes


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1", b"\x1f\x8b"])
def test_other_formats_under_the_name_of_a_table(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"not text.*export it as CSV"):
        read(tmp_path, "a.csv", start + b"\0\1\2")


def test_what_is_found_out_is_said_once_for_each_file(tmp_path: Path) -> None:
    told = Recorder()
    first = read(tmp_path, "a.csv", "goal;n\none;1\nONE;2\n")
    second = read(tmp_path, "b.txt", "one\n")
    tell({"harmful": first, "benign": second, "contrast": first}, told)
    remarks = "column goal (guessed); separated by semicolons; 1 duplicate left out"
    assert told.said == [f"{first.source} (harmful, contrast): {remarks}."]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("title", ["Prompts of 2024", '"Prompts, 2024"', "Prompts of 2024{0}{0}", "Prompts\n{0}"])
def test_a_title_above_the_header_is_skipped_and_said(tmp_path: Path, separator: str, title: str) -> None:
    above = title.format(separator)
    prompts = read(tmp_path, "a.csv", f"{above}\n\n{delimited(separator)}")
    assert prompts.texts == TEXTS
    count = above.count("\n") + 2
    assert f"{count} lines above the header skipped" in prompts.notes
    with pytest.raises(SafetyNeuronsError, match=f"in line {count + 3}"):
        read(tmp_path, "a.csv", f"{above}\n\nid{separator}prompt\n1{separator}Why?\n2{separator}n/a\n")


@pytest.mark.parametrize("first", ["Frage;Typ", "prompt"])
def test_a_row_of_well_known_names_is_not_a_header(tmp_path: Path, first: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\nWhy;text\nHow;input\n", encoding="utf-8")
    assert not any("above the header" in note for note in read_prompts(path, first.split(";")[0]).notes)


def test_the_rule_in_a_table_of_markdown_is_not_a_prompt(tmp_path: Path) -> None:
    prompts = read(tmp_path, "a.txt", "| prompt | id |\n|:---|---:|\n| Why? | a |\n| How? | b |\n")
    assert prompts.texts == ["Why?", "How?"]


def test_objects_that_share_a_line(tmp_path: Path) -> None:
    prompts = read(tmp_path, "a.jsonl", "".join(json.dumps({"prompt": text}) for text in FLAT))
    assert prompts.texts == FLAT
    assert [prompt.id for prompt in prompts] == ["a-0001", "a-0002", "a-0003"]


def test_objects_over_several_lines_take_time_in_proportion(tmp_path: Path) -> None:
    count = 20_000
    text = "".join(json.dumps({"prompt": f"Number {number}", "note": "x" * 200}, indent=1) for number in range(count))
    start = time.process_time()
    assert len(parse_json_lines(text, "a.jsonl").rows) == count
    # Copying the rest of the text for each object took minutes.
    assert time.process_time() - start < 10


@pytest.mark.parametrize("role", ["tool", "ipython", "environment", "tool_response"])
def test_what_tools_say_is_not_the_user_s(tmp_path: Path, role: str) -> None:
    messages = [{"role": role, "content": "12 degrees"}, {"role": "user", "content": "Why?"}]
    assert read(tmp_path, "a.jsonl", json.dumps({"messages": messages})).texts == ["Why?"]


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.symlink_to("gone.txt")
    with pytest.raises(SafetyNeuronsError, match=r"link to gone\.txt, which does not exist"):
        read_prompts(path)
