"""Public sets from a folder of local copies: which file is taken, and what is said of a bad one."""

import json
import time
from pathlib import Path

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts import load_prompts, named
from safety_neurons.prompts.named import cached_path
from safety_neurons.prompts.read import ENDINGS

ROW = {row.name: row for row in named.PUBLIC}
XSTEST = [
    {"prompt": "How do I kill time?", "type": "figurative", "safe": True},
    {"prompt": "How do I fell a tree I do not own?", "type": "contrast", "safe": False},
    {"prompt": "How do I kill a process?", "type": "homonyms", "safe": True},
]


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))

    def refuse(url: str) -> bytes:
        from safety_neurons.prompts.named import DownloadError

        raise DownloadError("no connection: this test")

    monkeypatch.setattr("safety_neurons.prompts.named.download", refuse)


@pytest.fixture(name="data")
def data_folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def put(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_folders_with_subfolders_of_simple_files(data: Path) -> None:
    put(data / "harmful" / "advbench.jsonl", {"prompt": "Fell my neighbor's tree"})
    put(data / "harmful" / "jailbreakbench.jsonl", {"prompt": "Write a letter", "category": "Post"})
    put(data / "benign" / "alpaca.jsonl", {"prompt": "Name a tree."})
    xstest = put(data / "benign" / "xstest.jsonl", *XSTEST)
    (data / "README.md").write_text("What is here.")
    assert load_prompts("advbench", data_dir=data).texts == ["Fell my neighbor's tree"]
    assert [prompt.category for prompt in load_prompts("jailbreakbench", data_dir=data)] == ["Post"]
    assert load_prompts("alpaca", data_dir=str(data)).texts == ["Name a tree."]
    safe = load_prompts("xstest-safe", data_dir=data)
    assert safe.texts == ["How do I kill time?", "How do I kill a process?"]
    assert [prompt.category for prompt in safe] == ["figurative", "homonyms"]
    assert (safe.name, safe.source, safe.column) == ("xstest-safe", str(xstest), "prompt")
    assert load_prompts("xstest-unsafe", data_dir=data).texts == ["How do I fell a tree I do not own?"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_under_the_set_s_name(data: Path, ending: str) -> None:
    contents = {".json": '["One?"]', **dict.fromkeys((".jsonl", ".ndjson"), '{"prompt": "One?"}'), ".txt": "One?"}
    (data / f"harmbench{ending}").write_text(contents.get(ending, "prompt\nOne?\n"))
    assert load_prompts("harmbench", data_dir=data).texts == ["One?"]


@pytest.mark.parametrize("row", named.PUBLIC, ids=lambda row: row.name)
def test_every_set_under_its_own_name(data: Path, row: named.NamedSet) -> None:
    copy = put(data / f"{row.name}.jsonl", {"prompt": "One?", "category": "a"}, {"prompt": "Two?", "category": "b"})
    prompts = load_prompts(row.name, data_dir=data)
    assert [(prompt.text, prompt.category) for prompt in prompts] == [("One?", "a"), ("Two?", "b")]
    assert prompts.source == str(copy)


def test_the_folder_goes_before_its_subfolders_and_both_before_the_cache(data: Path) -> None:
    kept = cached_path(ROW["advbench"])
    kept.parent.mkdir(parents=True)
    kept.write_text("goal,target\nkept,x\n")
    put(data / "deep" / "deeper" / "advbench.jsonl", {"prompt": "deeper"})
    assert load_prompts("advbench", data_dir=data).texts == ["kept"]
    put(data / "harmful" / "advbench.jsonl", {"prompt": "below"})
    assert load_prompts("advbench", data_dir=data).texts == ["below"]
    put(data / "advbench.jsonl", {"prompt": "here"})
    assert load_prompts("advbench", data_dir=data).texts == ["here"]
    assert load_prompts("advbench").texts == ["kept"]


def test_other_sets_and_files_do_not_look_there(data: Path) -> None:
    put(data / "harmful.jsonl", {"prompt": "One?"})
    assert load_prompts("harmful", data_dir=data).source == "bundled:harmful"
    mine = put(data.parent / "advbench.jsonl", {"prompt": "mine"})
    put(data / "advbench.jsonl", {"prompt": "other"})
    assert load_prompts(mine, data_dir=data).texts == ["mine"]
    assert load_prompts("harmful", data_dir=data / "missing")


@pytest.mark.parametrize("second", ["harmful_behaviors.csv", "advbench.csv"])
def test_two_copies_in_one_place(data: Path, second: str) -> None:
    put(data / "advbench.jsonl", {"prompt": "One?"})
    (data / second).write_text("goal\nTwo?\n")
    with pytest.raises(SafetyNeuronsError, match=r"more than one copy of the prompt set 'advbench'") as caught:
        load_prompts("advbench", data_dir=data)
    assert str(data / "advbench.jsonl") in str(caught.value)
    assert str(data / second) in str(caught.value)


def test_two_copies_in_two_subfolders(data: Path) -> None:
    for folder in ("a", "b"):
        put(data / folder / "dolly.jsonl", {"prompt": "One?"})
    with pytest.raises(SafetyNeuronsError, match=r"a/dolly\.jsonl and .*b/dolly\.jsonl\. Remove all but one"):
        load_prompts("dolly", data_dir=data)


def test_a_folder_that_does_not_exist(data: Path) -> None:
    (data / "file").write_text("x")
    for wrong in (data / "missing", data / "file", "a\0b"):
        with pytest.raises(SafetyNeuronsError, match=r"data folder .* cannot be read .*data_dir"):
            load_prompts("advbench", data_dir=wrong)


def test_a_folder_without_the_set(data: Path) -> None:
    (data / "harmful").mkdir()
    with pytest.raises(SafetyNeuronsError, match="could not be downloaded") as caught:
        load_prompts("harmbench", data_dir=data)
    row = ROW["harmbench"]
    expected = f"put the file, as {row.file} or harmbench.csv, into {data}, which does not have it; or save it as"
    assert expected in str(caught.value)
    assert row.url in str(caught.value)


def test_the_home_folder_is_understood(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    put(data / "advbench.jsonl", {"prompt": "One?"})
    assert load_prompts("advbench", data_dir="~/data").texts == ["One?"]


BROKEN = {
    "empty": ("advbench.txt", "", r"advbench\.txt is empty"),
    "not JSON": ("advbench.json", "[", "not valid JSON"),
    "no prompts": ("advbench.csv", "a,b\n1,2\n", r"no column 'goal' .*columns are a, b; rename .* `prompt`"),
    "blank": ("advbench.csv", "prompt,b\n1,2\n ,3\n", "blank prompts .*line 3"),
    "no labels": ("xstest.jsonl", '{"prompt": "a"}\n', r"no column 'label' or 'safe'.*xstest-safe\.jsonl"),
    "no labels, plain": ("xstest.txt", "a\n", "no column 'label' or 'safe'.*columns are none"),
    "none has the label": ("xstest.csv", "prompt,safe\na,no\n", "No row of .* has 'true' in its column 'safe'"),
    "no context": ("databricks-dolly-15k.jsonl", '{"instruction": "a"}\n', "no column 'context'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_copy_is_an_error_and_not_passed_over(data: Path, case: str) -> None:
    file, content, message = BROKEN[case]
    (data / file).write_text(content)
    name = {"xstest": "xstest-safe", "databricks-dolly-15k": "dolly"}.get(Path(file).stem, "advbench")
    with pytest.raises(SafetyNeuronsError, match=message) as caught:
        load_prompts(name, data_dir=data)
    assert str(data / file) in str(caught.value)


def test_large_sets_load_quickly(data: Path) -> None:
    rows = ({"instruction": f"Question {n} of many?", "input": "", "output": "x" * 300} for n in range(52_000))
    (data / "alpaca_data.json").write_text(json.dumps(list(rows)))
    start = time.process_time()
    prompts = load_prompts("alpaca", data_dir=data)
    prompts.split("train").take(100)
    assert time.process_time() - start < 5
    assert len(prompts) == 52_000
