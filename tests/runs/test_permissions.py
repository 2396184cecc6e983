"""A run folder of somebody else's runs no code, sends nothing and gets no key, until this call permits it."""

import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils

from builders.commands import inside, one_paragraph
from builders.judges import BY_PROMPT
from builders.listeners import Recorder
from builders.runs import lines_of, small_run
from safety_neurons.core import plugins
from safety_neurons.core import trust as trust_module
from safety_neurons.core.addresses import KEY_VARIABLES
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_json, write_json
from safety_neurons.engines import connection
from safety_neurons.engines.engine import engine_for, served
from safety_neurons.evaluation.utility import lm_eval as lm_eval_module
from safety_neurons.experiments.adaptive import adaptive
from safety_neurons.experiments.auto_tune import Space, auto_tune
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.experiments.guard_test import guard_run
from safety_neurons.experiments.left_out import left_out
from safety_neurons.experiments.lengths import lengths
from safety_neurons.experiments.seeds import repeat_tuning
from safety_neurons.experiments.smallest_intervention import search
from safety_neurons.models.load import load
from safety_neurons.runs import context as context_module
from safety_neurons.runs.folder import merged_settings
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.targets import evaluate
from safety_neurons.settings import PERMISSIONS, Settings

CODE = """
from transformers import LlamaForCausalLM

open({executed!r}, "a").close()


class Theirs(LlamaForCausalLM):
    pass
"""


@dataclass(frozen=True)
class Foreign:
    """A run folder whose record claims the permission to run its model's code, which writes the file `executed`."""

    path: Path
    executed: Path
    model: Path


def with_code(folder: Path, executed: Path) -> None:
    """Let a model's folder bring code along."""
    (folder / "theirs.py").write_text(CODE.format(executed=str(executed)))
    config = read_json(folder / "config.json")
    config["auto_map"] = {"AutoModelForCausalLM": "theirs.Theirs"}
    (folder / "config.json").write_text(json.dumps(config))


def claim(folder: Path, **settings: Any) -> None:
    """Write settings into the record, as somebody else might."""
    record = read_json(folder / "run.json")
    for name, value in settings.items():
        old = record["settings"].get(name)
        record["settings"][name] = {**old, **value} if isinstance(value, dict) else value
    write_json(folder / "run.json", record)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust_module, "_recorded", set())
    monkeypatch.setattr(trust_module, "_named", set())
    # The judge of the small runs is in a file of the tests.
    trust_module.trust(BY_PROMPT.name, None)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    served.cache_clear()


@pytest.fixture(scope="module")
def foreign_once(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    folder = tmp_path_factory.mktemp("foreign")
    executed, model = folder / "executed", folder / "model"
    shutil.copytree(inputs["model"], model)
    with_code(model, executed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        run(folder / "run", {**inputs, "model": str(model), "trust_remote_code": True}, until="evaluate")
    # The permission of that call reached the model.
    assert executed.exists()
    executed.unlink()
    return Foreign(folder / "run", executed, model)


@pytest.fixture
def foreign(foreign_once: Foreign, tmp_path: Path) -> Foreign:
    path = Path(shutil.copytree(foreign_once.path, tmp_path / "run"))
    claim(path, trust_remote_code=True)
    foreign_once.executed.unlink(missing_ok=True)
    return Foreign(path, foreign_once.executed, foreign_once.model)


def test_permissions_are_settings_that_no_record_keeps(foreign_once: Foreign) -> None:
    assert "trust_remote_code" not in read_json(foreign_once.path / "run.json")["settings"]
    given = Settings.checked({"trust_remote_code": True, "find": {"percent": 3.0}})
    kept = given.to_record()
    for path in PERMISSIONS:
        section, _, name = path.rpartition(".")
        assert hasattr(getattr(given, section) if section else given, name)
        assert name not in (kept[section] if section else kept)
    assert kept["find"]["percent"] == 3.0
    claimed = {"trust_remote_code": True, "tune": {"report_to": ["wandb"], "epochs": 3}}
    settings = merged_settings(claimed, {})
    assert (settings.trust_remote_code, settings.tune.report_to, settings.tune.epochs) == (False, (), 3)


COMMANDS: dict[str, Callable[[Path, dict[str, Any], Recorder], Any]] = {
    "run": lambda path, given, notes: run(path, given | {"find": {"percent": 25.0}}, until="find", listener=notes),
    "evaluate": lambda path, given, notes: evaluate([path], given, attacks=("direct",), listener=notes),
    "evaluate side by side": lambda path, given, notes: evaluate(
        [path], given, attacks=("direct",), prompts=1, out=path.parent / "out", listener=notes
    ),
    "guard": lambda path, given, notes: guard_run(
        path, given | {"guard": {"alpha": 1.0}}, answers=False, listener=notes
    ),
    "dose-response": lambda path, given, notes: dose_response(path, [1.0], given, listener=notes),
    "search": lambda path, given, notes: search(path, given, trials=1, listener=notes),
    "adaptive": lambda path, given, notes: adaptive(path, given, listener=notes),
    "lengths": lambda path, given, notes: lengths(path, given, tokens=(1, 2), requests=1, listener=notes),
    "seeds": lambda path, given, notes: repeat_tuning(path, given, seeds=1, listener=notes),
    "left-out": lambda path, given, notes: left_out(path, given, listener=notes),
    "tune --auto": lambda path, given, notes: auto_tune(
        path, given, trials=1, space=Space(("contrast",)), listener=notes
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_record_permits_no_command_to_run_a_models_code(foreign: Foreign, command: str) -> None:
    notes = Recorder()
    COMMANDS[command](foreign.path, {}, notes)
    assert not foreign.executed.exists()
    (ignored,) = [said for said in notes.said if "no record can permit" in said]
    assert "trust_remote_code" in ignored


@pytest.mark.parametrize("command", COMMANDS)
def test_the_permission_of_a_call_reaches_the_model_in_every_command(
    foreign: Foreign, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the command loads it."""
    permitted: list[bool] = []
    load = context_module.load

    def noted(name: str, **options: Any) -> Any:
        permitted.append(options.pop("trust_remote_code"))
        return load(name, **options)

    monkeypatch.setattr(context_module, "load", noted)
    notes = Recorder()
    COMMANDS[command](foreign.path, {"trust_remote_code": True}, notes)
    assert set(permitted) == {True}
    assert not [said for said in notes.said if "no record can permit" in said]


@pytest.mark.parametrize("arguments", [("tokens", "RUN", "Hello there"), ("merge", "RUN", "OUT")], ids=lambda a: a[0])
def test_tokens_and_merge_run_code_only_with_the_option(
    foreign: Foreign,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    for number, (option, runs) in enumerate([((), False), (("--trust-remote-code",), True)]):
        places = {"RUN": str(foreign.path), "OUT": str(tmp_path / f"merged{number}")}
        assert inside(monkeypatch, *(places.get(one, one) for one in arguments), *option) == 0
        assert foreign.executed.exists() == runs
        shown = " ".join(capsys.readouterr().out.split())
        assert ("no record can permit" in shown) != runs
        assert f"model {foreign.model}" in shown


def test_a_model_that_needs_code_is_an_error_that_says_what_to_give(foreign: Foreign, tmp_path: Path) -> None:
    model, executed = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(foreign.model, model)
    (model / "theirs.py").write_text(
        CODE.format(executed=str(executed)).replace("LlamaForCausalLM\n", "LlamaConfig, LlamaForCausalLM\n", 1)
        + '    pass\n\n\nclass Config(LlamaConfig):\n    model_type = "theirs"\n\n\nTheirs.config_class = Config\n'
    )
    config = read_json(model / "config.json")
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Theirs"},
    }
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SafetyNeuronsError, match=r"trust_remote_code=True \(--trust-remote-code\)"):
        load(str(model))
    assert not executed.exists()
    assert load(str(model), trust_remote_code=True).model.config.model_type == "theirs"
    assert executed.exists()


def test_a_permission_is_for_the_models_that_this_call_or_nobody_else_names(foreign: Foreign, tmp_path: Path) -> None:
    """A second model, or an adapter, that only the record names is not meant by it."""
    other, executed = tmp_path / "other", tmp_path / "other-executed"
    shutil.copytree(foreign.model, other)
    with_code(other, executed)
    given: dict[str, Any] = {"trust_remote_code": True, "find": {"percent": 5.0}}
    claim(foreign.path, find={"score": "change", "other_model": str(other)})
    with pytest.raises(SafetyNeuronsError, match=r"which the record of the run names \(find\.other_model\)"):
        run(foreign.path, given, until="find")
    assert not executed.exists()
    given["find"]["other_model"] = str(other)
    with pytest.raises(SafetyNeuronsError, match="found no neurons"):
        # Both models are the same.
        run(foreign.path, given, until="find")
    assert executed.exists()
    claim(foreign.path, adapter=str(tmp_path / "adapter"))
    with pytest.raises(SafetyNeuronsError, match=r"which the record of the run names \(adapter\)"):
        run(foreign.path, given, until="find")


def test_no_permission_reaches_a_model_that_judges_or_translates(foreign: Foreign) -> None:
    merged_settings({}, {"trust_remote_code": True, "evaluate": {"preference_judge": str(foreign.model)}})
    assert engine_for(None, str(foreign.model)).model is not None
    assert not foreign.executed.exists()


MEMBER = """
from safety_neurons.evaluation.contracts import Judgment, RuleJudge, Template
from safety_neurons.evaluation.defenses.from_run import DEFENSES
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.neurons.scores.contrast import SCORE

open({executed!r}, "a").close()
JUDGE = RuleJudge("theirs", "here", lambda prompt, answer: Judgment("refused", "always"))
ATTACK = Template(name="theirs", source="here", description="here", apply=AttackedPrompt)
DEFENSE = DEFENSES[0]
"""


@pytest.mark.parametrize(
    ("section", "name", "member", "stage"),
    [
        ("find", "score", "SCORE", "find"),
        ("evaluate", "judge", "JUDGE", "calibrate"),
        ("evaluate", "judges", "JUDGE", "evaluate"),
        ("evaluate", "attacks", "ATTACK", "evaluate"),
        ("evaluate", "defenses", "DEFENSE", "evaluate"),
    ],
)
def test_members_in_files_that_a_record_names_are_not_executed(
    finished: Path, tmp_path: Path, section: str, name: str, member: str, stage: str
) -> None:
    file, executed = tmp_path / "theirs.py", tmp_path / "executed"
    file.write_text(MEMBER.format(executed=str(executed)))
    spec = f"{file}:{member}"
    claim(finished, **{section: {name: spec if name in ("score", "judge") else [spec]}})
    with pytest.raises(SafetyNeuronsError, match=r"name code in a file.*name the \w+ again"):
        run(finished, {}, until=stage)
    with pytest.raises(SafetyNeuronsError, match=r"name code in a file"):
        run(finished, {"seed": 1}, until=stage)
    assert not executed.exists()


def test_a_stage_that_needs_no_code_of_the_record_runs_without(finished: Path, tmp_path: Path) -> None:
    claim(finished, evaluate={"attacks": [f"{tmp_path / 'theirs.py'}:ATTACK"]})
    run(finished, {"explain": {"words": 3}}, until="explain")
    assert read_json(finished / "run.json")["settings"]["explain"]["words"] == 3


@pytest.mark.parametrize("spec", ["~nobody-of-this-name/theirs.py:SCORE", "a\0b.py:SCORE", ".py:SCORE"])
def test_impossible_paths_of_code_are_errors(finished: Path, spec: str) -> None:
    claim(finished, find={"score": spec})
    with pytest.raises(SafetyNeuronsError, match="name code in a file"):
        run(finished, {}, until="find")


def test_an_installed_package_is_trusted_whoever_names_its_member(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever installed it has run its code."""
    module, executed = types.ModuleType("installed_by_the_user"), tmp_path / "executed"
    exec(MEMBER.format(executed=str(executed)), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint("theirs", f"{module.__name__}:ATTACK", "safety_neurons.attacks")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    claim(finished, evaluate={"attacks": ["theirs"]})
    run(finished, {}, until="evaluate")
    assert executed.exists()


def test_trials_of_a_foreign_search_name_nothing(finished: Path, tmp_path: Path) -> None:
    """Neither code nor settings that no search has."""
    file, executed = tmp_path / "theirs.py", tmp_path / "executed"
    file.write_text(MEMBER.format(executed=str(executed)))
    space = Space(("contrast",))
    auto_tune(finished, {}, trials=1, space=space)
    line = lines_of(finished / "trials.jsonl")[0]
    starts = [
        {**line["start"], "find.score": f"{file}:SCORE"},
        {**line["start"], "tune.report_to": ["wandb"], "evaluate.task_folder": str(tmp_path)},
        {**line["start"], "trust_remote_code": True},
    ]
    text = "".join(json.dumps(line | {"key": str(n), "start": start}) + "\n" for n, start in enumerate(starts))
    (finished / "trials.jsonl").write_text(text)
    found = auto_tune(finished, {}, trials=1, space=space)
    assert found.auto is not None
    assert found.auto.trials[0].settings == line["start"]
    assert not executed.exists()
    kept = read_json(finished / "run.json")["settings"]
    assert (kept["evaluate"]["task_folder"], "report_to" in kept["tune"]) == (None, False)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """In place of the LM Evaluation Harness, which is not installed: it executes what is in the folder of tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').close()\n")

    def evaluate_tasks(_model: Any, _tasks: Any, *, include_path: Path | None, **_options: Any) -> dict[str, Any]:
        assert include_path is not None
        exec((include_path / "theirs.py").read_text())
        return {}

    monkeypatch.setattr("safety_neurons.evaluation.measures.lm_eval", evaluate_tasks)
    yield folder
    assert lm_eval_module.lm_eval is not evaluate_tasks


def test_a_folder_of_tasks_that_a_record_names_is_not_used(finished: Path, harness: Path, tmp_path: Path) -> None:
    claim(finished, evaluate={"tasks": ["theirs"], "task_folder": str(harness)})
    for given in ({}, {"evaluate": {"attacks": ["direct"]}}):
        with pytest.raises(SafetyNeuronsError, match=r"name evaluate\.task_folder again"):
            run(finished, given, until="evaluate")
    assert not (tmp_path / "executed").exists()
    run(finished, {"evaluate": {"task_folder": str(harness)}}, until="evaluate")
    assert (tmp_path / "executed").exists()


ADDRESS = "http://127.0.0.1:9/v1"
ASKING = {
    "judge": {"judges": [f"strongreject:endpoint={ADDRESS},model=m"]},
    "attack": {"attacks": [f"translation:model=m,endpoint={ADDRESS}"]},
    "preferences": {"preference_judge": "m", "preference_endpoint": ADDRESS},
    "another spelling": {"judges": ["strongreject:endpoint=HTTP://127.0.0.1:9/v1/,model=m"]},
}


@pytest.mark.parametrize("asking", ASKING.values(), ids=ASKING)
def test_an_api_key_goes_only_to_servers_that_the_call_names(
    finished: Path, asking: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(finished, evaluate=asking)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    with pytest.raises(SafetyNeuronsError, match=r"sent only to servers that you name.*again in this call") as refused:
        run(finished, {}, until="evaluate")
    assert "sk-of-the-user" not in str(refused.value)
    assert "OPENAI_API_KEY" in str(refused.value)
    # As the message says: name it, or unset the key.
    merged_settings({}, {"evaluate": asking})
    assert connection.key_for(ADDRESS) == "sk-of-the-user"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connection.key_for(ADDRESS) is None


def test_an_address_that_is_a_target_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claim(finished, evaluate=ASKING["judge"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    with pytest.raises(SafetyNeuronsError, match="There is no attack"):
        evaluate([ADDRESS, finished], attacks=("none-such",), out=tmp_path / "out")
    assert connection.key_for(ADDRESS) == "sk-of-the-user"


TOMLS = {
    "trust_remote_code = true": "--trust-remote-code",
    "[find]\nscore = '{file}:SCORE'": "--find.score",
    "[evaluate]\nattacks = ['direct', '{file}:ATTACK']": "--evaluate.attacks",
    "[evaluate]\ntasks = ['theirs']\ntask_folder = '{folder}'": "--evaluate.task-folder",
}


@pytest.mark.parametrize(("text", "option"), TOMLS.items(), ids=TOMLS.values())
def test_a_settings_file_permits_nothing(
    text: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, executed = tmp_path / "theirs.py", tmp_path / "executed"
    file.write_text(MEMBER.format(executed=str(executed)))
    settings = tmp_path / "settings.toml"
    settings.write_text(text.format(file=file, folder=tmp_path))
    assert inside(monkeypatch, "run", "--config", str(settings), "--out", str(tmp_path / "run")) == 2
    told = capsys.readouterr().err
    assert one_paragraph(told)
    assert str(settings) in told.replace("\n", "")
    assert option in " ".join(told.split())
    assert not executed.exists()
    assert not (tmp_path / "run").exists()


def test_code_in_a_settings_file_runs_when_an_option_names_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, executed = tmp_path / "theirs.py", tmp_path / "executed"
    file.write_text(MEMBER.format(executed=str(executed)))
    own = small_run(tmp_path, find={"percent": 20.0, "positions": 3})
    flat = "".join(f"{name} = {json.dumps(value)}\n" for name, value in own.items() if not isinstance(value, dict))
    settings = tmp_path / "settings.toml"
    settings.write_text(f"{flat}[find]\npercent = 20\npositions = 3\nscore = '{file}:SCORE'\n")
    options = ("--config", str(settings), "--find.score", f"{file}:SCORE")
    assert inside(monkeypatch, "find", str(tmp_path / "run"), *options) == 0
    assert executed.exists()
