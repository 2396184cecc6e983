"""Files that settings name count by their content: an edited one is another input, a moved one is not."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from builders.models import TEMPLATE
from builders.runs import results_of
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation import judges
from safety_neurons.runs.folder import overridden, stage_fingerprints
from safety_neurons.runs.pipeline import read_prompts, run
from safety_neurons.settings import Settings
from safety_neurons.tuning import disguise_files
from safety_neurons.tuning.disguise_files import read_texts


def test_edited_template_is_another_input(given: dict[str, Any], tmp_path: Path) -> None:
    template, out = tmp_path / "template.jinja", tmp_path / "run"
    template.write_text(TEMPLATE)
    run(out, given | {"chat_template": str(template)}, until="find")
    first = results_of(out)["neurons"]
    moved = shutil.copy(template, tmp_path / "moved.jinja")
    for change in ({}, {"chat_template": str(moved)}, {"chat_template": str(template)}):
        notes = Recorder()
        run(out, change, until="find", listener=notes)
        assert notes.tasks == []
    template.write_text(TEMPLATE.replace("<|assistant|>", "\n<|assistant|>\n Well"))
    notes = Recorder()
    run(out, until="find", listener=notes)
    assert any("redone: find" in str(message) for message in notes.said)
    assert results_of(out)["neurons"] != first


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Where a setting names a file or a folder, the file in it, and the first stage that depends on it.
NAMED: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "template": (lambda path: {"chat_template": path}, "", "find"),
    "other model": (lambda path: {"find": {"score": "change", "other_model": str(path)}}, "config.json", "find"),
    "corpus": (lambda path: {"tune": {"corpus": path}}, "", "tune"),
    "attack": (lambda path: {"evaluate": {"attacks": [f"file:path={path}"]}}, "", "evaluate"),
    "published attack": (lambda path: {"evaluate": {"attacks": [f"gcg:folder={path}"]}}, "gcg.jsonl", "evaluate"),
    "judge": (lambda path: {"evaluate": {"judges": [f"strongreject:model={path}"]}}, "config.json", "evaluate"),
    "measured errors": (lambda path: {"evaluate": {"judge_errors": path}}, "", "evaluate"),
    "questions": (lambda path: {"evaluate": {"questions": path}}, "", "evaluate"),
    "tasks": (lambda path: {"evaluate": {"task_folder": path}}, "inside/task.yaml", "evaluate"),
    "preferences": (lambda path: {"evaluate": {"preference_judge": str(path)}}, "config.json", "evaluate"),
}
LATER = {"find": set(), "tune": {"find", "explain", "calibrate"}, "evaluate": {"find", "explain", "calibrate", "tune"}}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_setting_names_counts_by_its_content(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    setting, inside, stage = NAMED[name]
    path = tmp_path / "named.jinja"
    settings = Settings.checked(given | setting(path))
    prompts = read_prompts(settings)

    def prints(text: str) -> dict[str, str]:
        write(path / inside if inside else path, f"{{{{ messages }}}} {text}")
        return stage_fingerprints(settings, "identity", prompts)

    first, second, again = prints("one"), prints("two"), prints("one")
    assert first == again
    changed = {each for each in first if first[each] != second[each]}
    assert stage in changed
    assert not changed & LATER[stage]


def test_edited_disguises_are_another_input_of_what_learns_from_them(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"tune": {"disguises": ["rules", "story"]}, "evaluate": {"defenses": ["none", "guard"]}}
    guarded = Settings.checked(overridden(given, named))
    without = Settings.checked(overridden(given, {"tune": {"disguises": ["rules", "turns"]}}))
    prompts, texts = read_prompts(guarded), copy.deepcopy(read_texts("story"))
    before = [stage_fingerprints(one, "identity", prompts) for one in (guarded, without)]
    monkeypatch.setattr(disguise_files, "read_texts", lambda kind: texts if kind == "story" else read_texts(kind))

    def changed() -> list[set[str]]:
        after = [stage_fingerprints(one, "identity", prompts) for one in (guarded, without)]
        return [{name for name in one if one[name] != other[name]} for one, other in zip(before, after, strict=True)]

    texts["test"][0]["text"] += " Please."
    assert changed() == [set(), set()]
    texts["train"][0]["text"] += " Please."
    assert changed() == [{"tune", "evaluate", "report"}, set()]


def test_verdicts_of_a_judge_in_a_folder_depend_on_its_weights(tmp_path: Path) -> None:
    def identity(text: str) -> str:
        write(tmp_path / "judge" / "config.json", text)
        return judges.get(f"strongreject:model={tmp_path / 'judge'}").identity

    assert identity("{}") == identity("{}") != identity('{"a": 1}')


def test_template_that_vanished_is_one_paragraph(given: dict[str, Any], tmp_path: Path) -> None:
    for missing in (tmp_path / "none.jinja", tmp_path):
        with pytest.raises(SafetyNeuronsError, match=f"chat template {missing}"):
            run(tmp_path / "run", given | {"chat_template": str(missing)})
    assert not (tmp_path / "run").exists()
