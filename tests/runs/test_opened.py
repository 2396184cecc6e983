"""An existing run that something is added to: which prompts it is tested on."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.prompts import Prompt, load_prompts
from safety_neurons.report.results import RunResults
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.opened import keep_section, opened, prompts_to_test
from safety_neurons.settings import Settings


@pytest.fixture
def run(found: Path) -> RunContext:
    with opened(found, None, None, "") as run:
        return run


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A file of eleven prompts that no run knows."""
    path = tmp_path / "foreign.jsonl"
    path.write_text("".join(json.dumps({"text": f"Where is street number {n}?"}) + "\n" for n in range(11)))
    return str(path)


def numbers(prompts: Sequence[Prompt]) -> list[int]:
    return [int(prompt.id.rsplit("-", 1)[1]) for prompt in prompts]


def test_the_runs_own_test_split_is_asked(run: RunContext) -> None:
    assert {side: numbers(prompts) for side, prompts in prompts_to_test(run).items()} == {
        "harmful": [11, 12, 13, 14],
        "benign": [11, 12, 13, 14],
    }


def test_a_foreign_set_is_asked_whole_and_a_known_one_its_test_split(
    run: RunContext, given: dict[str, Any], foreign: str
) -> None:
    for known in (given["harmful"], given["benign"], given["borderline"], given["contrast"]):
        found = prompts_to_test(run, f"{foreign}:{known}")
        assert numbers(found["harmful"]) == list(range(1, 12))
        assert numbers(found["benign"]) == [11, 12, 13, 14]
        assert numbers(prompts_to_test(run, f"{known}:{foreign}")["harmful"]) == [11, 12, 13, 14]


def test_a_copy_of_a_set_that_the_run_learned_from_gives_none_of_the_prompts_learned_from(
    run: RunContext, given: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever the file is called, and whatever else is in it."""
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(given["harmful"]).read_text() + json.dumps({"text": "Something new.", "split": "train"}))
    learned = set(load_prompts(given["harmful"]).split("train").texts)
    assert not learned & {prompt.text for prompt in prompts_to_test(run, f"{copy}:{given['benign']}")["harmful"]}


def test_no_more_prompts_are_asked_than_the_settings_say(run: RunContext, foreign: str) -> None:
    few = Settings.model_validate(run.settings.model_dump() | {"evaluate": {"prompts": 2}})
    for pair in (None, f"{foreign}:{foreign}"):
        found = prompts_to_test(RunContext(run.folder, few, run.prompts, run.listener), pair)
        assert [len(prompts) for prompts in found.values()] == [2, 2]


@pytest.mark.parametrize(
    "pair", ["", ":", "harmful", "harmful:", ":benign", "no-such-set:benign", "benign:no-such-set"]
)
def test_what_is_no_pair_of_sets_is_an_error(run: RunContext, pair: str) -> None:
    with pytest.raises(SafetyNeuronsError):
        prompts_to_test(run, pair)


def test_paths_with_colons_can_be_named(run: RunContext, given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "mine.txt"
    path.write_text("One\nTwo\n")
    assert [prompt.text for prompt in prompts_to_test(run, f"{path}:{given['benign']}")["harmful"]] == ["One", "Two"]


def test_nobody_else_works_on_an_opened_run(found: Path) -> None:
    def open_it() -> None:
        with opened(found, None, None, ""):
            pass

    with opened(found, None, None, ""), ThreadPoolExecutor(1) as elsewhere:
        # Within one thread, `opened` can be nested.
        open_it()
        with pytest.raises(SafetyNeuronsError, match="Another process"):
            elsewhere.submit(open_it).result()
    with filelock.FileLock(found / ".lock", timeout=0):
        pass


def test_sections_are_added_to_what_is_there_with_the_settings_they_were_made_with(
    run: RunContext, found: Path
) -> None:
    before = json.loads((found / "results.json").read_text())
    results = keep_section(run, "search_of_mine", {"one": 1})
    written = json.loads((found / "results.json").read_text())
    assert written == before | {"search_of_mine": {"one": 1, "settings": run.settings.to_record()}}
    assert results == RunResults.of(written)
