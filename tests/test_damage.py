"""Damaged JSON in a run folder, and in files that are given: told or made again, with nothing else lost."""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from builders import damage, report
from builders.damage import Damage, as_json, changes, damages, written
from builders.judges import BY_PROMPT
from builders.listeners import Recorder
from builders.runs import Splits, contents, lines_of, results_of, run_record, small_run
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.core.statistics import share
from safety_neurons.core.temporary import remove
from safety_neurons.engines.engine import CachedAnswer
from safety_neurons.evaluation.attacks.random_search import CachedSuffix
from safety_neurons.evaluation.comparison import compare
from safety_neurons.evaluation.judge_errors import JudgeErrors, corrected, read_labeled, save_errors
from safety_neurons.evaluation.judging import CachedVerdict
from safety_neurons.evaluation.measures import CachedMeasure
from safety_neurons.experiments.auto_tune import SEARCHED, CachedTrial, auto_tune, own_settings
from safety_neurons.experiments.dose_response import dose_response
from safety_neurons.experiments.intervention import CachedMeasurement
from safety_neurons.report import PARTS, tables_of
from safety_neurons.report.page import run_charts
from safety_neurons.report.record import RunRecord
from safety_neurons.report.results import RunResults, read_results
from safety_neurons.runs import pipeline as pipeline_module
from safety_neurons.runs import stages as stages_module
from safety_neurons.runs.folder import RunFolder
from safety_neurons.runs.pipeline import run
from safety_neurons.runs.stage_files import left_by
from safety_neurons.runs.targets import evaluate
from safety_neurons.settings import Settings
from safety_neurons.tuning.corpus import Corpus


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(
        tmp_path_factory.mktemp("damage"),
        Splits(4, 2, 2),
        find={"percent": 20.0, "positions": 3},
        explain={"random_sets": 0},
        calibrate={"prompt_positions": 3},
        tune={"answer_tokens": 3, "epochs": 1, "batch_size": 4, "samples": 1, "largest_share": 1.0},
        evaluate={"answer_tokens": 3, "attacks": ["direct"], "judge": BY_PROMPT.name},
    )


@pytest.fixture(scope="session")
def whole(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, never written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, given)
    return folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "finished"))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are performed, which find nothing, and are done at once."""
    done: list[str] = []
    for name in stages_module.IMPLEMENTATIONS:

        def perform(context: Any, name: str = name) -> stages_module.StageResult:
            done.append(name)
            for file in left_by(context.folder, name):
                file.touch()
            return stages_module.StageResult()

        monkeypatch.setitem(stages_module.IMPLEMENTATIONS, name, perform)
    monkeypatch.setattr(pipeline_module, "_write_report", lambda folder, _: folder.report.touch())
    return done


def fresh(finished: Path, whole: Path, name: str) -> Path:
    """The file in the copy of the run, as it was."""
    remove(finished / name)
    shutil.rmtree(finished / "replaced", ignore_errors=True)
    for entry in whole.iterdir():
        if entry.is_file():
            shutil.copy(entry, finished / entry.name)
    return finished / name


def refusal(call: Callable[[], Any]) -> str:
    """The message of the error that a call ends in; empty where it ends well. Any other error fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except SafetyNeuronsError as error:
            return str(error) or "an empty message"
    return ""


def test_every_value_of_the_results_is_shown_or_refused() -> None:
    shown = 0
    for name, document in changes(report.full(), seed=3, most=90):
        content = json.loads(as_json(document))
        if said := refusal(lambda content=content: RunResults.of(content)):  # type: ignore[misc]
            assert "Run all stages again" in said, name
            continue
        results = RunResults.of(content)
        shown += 1
        tables_of(results, *PARTS, "neurons", "words", "training")
        if shown % 6 == 0:
            run_charts(results)
    assert shown > 8


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("evaluation.summary.0.attack_success.value", 1.5, "from 0 to 1"),
        ("rows.0.n", -1, "greater than or equal to 0"),
        ("neurons.indices.0.rejection", [10**9], "number of neurons"),
        ("clouds.layers.0.points.harmful.x", [0.0], "x and a y"),
        ("evaluation.cells.0.judges.refusal.verdicts", ["refused"], "one verdict for each prompt"),
        ("evaluation.cells.0.judges.refusal.verdicts.0", "maybe", "'refused', 'complied' or 'unscored'"),
        ("auto.chosen", 77, "not among the trials"),
        ("run.stages.find.seconds", 1e300, "less than or equal"),
    ],
)
def test_numbers_without_sense_are_named(place: str, value: Any, problem: str) -> None:
    document = report.full()
    holder: Any = document
    *above, last = place.split(".")
    for key in above:
        holder = holder[int(key) if isinstance(holder, list) else key]
    holder[int(last) if isinstance(holder, list) else last] = value
    with pytest.raises(SafetyNeuronsError, match=rf"{place.split('.')[0]}.*{problem}"):
        RunResults.of(document)


def test_damaged_results_are_told_with_the_command_that_makes_them_again(whole: Path, finished: Path) -> None:
    for way in damages(whole / "results.json", most=20):
        path = fresh(finished, whole, "results.json")
        way.to(path)
        if said := refusal(lambda path=path: read_results(path)):  # type: ignore[misc]
            assert str(path) in said, way.name
            assert "repeat the run in a new folder" in said or f"safety-neurons run --out {finished}" in said, way.name
        refusal(lambda: compare(finished, finished))


def test_run_sets_damaged_results_aside_and_makes_them_again(whole: Path, finished: Path, idle: list[str]) -> None:
    before = contents(whole)
    for way in damages(whole / "results.json", seed=1, most=5, contents_too=7):
        path = fresh(finished, whole, "results.json")
        way.to(path)
        damaged = refusal(lambda path=path: read_results(path))  # type: ignore[misc]
        idle.clear()
        notes = Recorder()
        if path.is_symlink() or (path.exists() and not path.is_file()):
            # Refused at the door; what is said there leads on.
            assert str(path) in refusal(lambda: run(finished))
            remove(path)
            damaged = "removed"
        was_there = path.exists()
        run(finished, listener=notes)
        read_results(path)
        if damaged and was_there:
            assert any(str(path) in said and "replaced/1" in said for said in notes.said), way.name
            assert (finished / "replaced/1/results.json").lstat(), way.name
        assert bool(idle) is bool(damaged), way.name
        others = {name: content for name, content in contents_of_files(finished).items() if name in before}
        assert {name: before[name] for name in others} == others, way.name


def contents_of_files(folder: Path) -> dict[str, bytes]:
    """All but what a run writes anew."""
    skipped = ("results.json", "run.json", ".lock")
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file() and one.name not in skipped}


def test_results_of_another_run_are_not_taken_for_its_own(
    finished: Path, given: dict[str, Any], idle: list[str]
) -> None:
    other = finished.parent / "other"
    run(other, given | {"seed": 3})
    idle.clear()
    shutil.copy(other / "results.json", finished / "results.json")
    notes = Recorder()
    run(finished, listener=notes)
    assert any("results of another run" in said for said in notes.said)
    assert "find" in idle


def test_damaged_record_is_told_and_its_advice_leads_on(whole: Path, finished: Path, idle: list[str]) -> None:
    told = 0
    for way in damages(whole / "run.json", most=24, contents_too=12):
        path = fresh(finished, whole, "run.json")
        way.to(path)
        said = refusal(lambda: run(finished, until="find"))
        refusal(lambda: RunFolder(finished).whole_record())
        if "Delete it and run the same command again" in said:
            told += 1
            assert str(path) in said, way.name
            remove(path)
            idle.clear()
            notes = Recorder()
            run(finished, until="find", listener=notes)
            assert any("written again from the copy" in one for one in notes.said), way.name
            assert idle == []
            assert path.read_bytes() == (whole / "run.json").read_bytes(), way.name
    assert told > 15


def test_each_command_names_a_damaged_record(finished: Path, whole: Path) -> None:
    (finished / "run.json").write_text('{"schema": 3}')
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: run(finished),
        "an experiment": lambda: dose_response(finished, [1.0]),
        "tune --auto": lambda: auto_tune(finished, trials=1),
        "evaluate": lambda: evaluate(finished),
        "side by side": lambda: evaluate([finished, whole], out=finished.parent / "out"),
    }
    for name, call in calls.items():
        assert f"{finished / 'run.json'} is damaged: settings is missing" in refusal(call), name
    assert not (finished.parent / "out").exists()


def test_record_lost_with_its_copy_needs_the_settings_and_keeps_the_caches(
    whole: Path, finished: Path, given: dict[str, Any]
) -> None:
    for name in ("run.json", "results.json"):
        (finished / name).write_text("")
    said = refusal(lambda: run(finished))
    assert "Delete it, and run again with the run's settings, the model among them" in said
    (finished / "run.json").unlink()
    before = contents(finished)
    for call in (run, lambda path: dose_response(path, [1.0])):
        assert "lost its record" in refusal(lambda call=call: call(finished))  # type: ignore[misc]
    assert "lost its record" in refusal(lambda: evaluate([finished, whole], out=finished.parent / "out"))
    assert contents(finished) == before
    notes = Recorder()
    run(finished, given, listener=notes)
    assert lines_of(finished / "responses.jsonl") == lines_of(whole / "responses.jsonl")
    assert results_of(finished)["rows"] == results_of(whole)["rows"]
    assert (finished / "replaced/2/delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()


def test_damaged_record_among_other_peoples_files_is_left_alone(tmp_path: Path, given: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text('{"mine": 1}')
    (tmp_path / "thesis.txt").write_text("all of it")
    assert refusal(lambda: run(tmp_path, given)).endswith("Choose another folder.")
    (tmp_path / "run.json").unlink()
    assert "holds no run" in refusal(lambda: run(tmp_path, given))
    assert contents(tmp_path) == {"thesis.txt": b"all of it"}


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    settings = {"model": "tiny", "find": {"percent": 1.0, "of_the_future": 3}}
    folder.write_record(run_record(settings=settings, versions={"safety-neurons": "9.1"}))
    with pytest.raises(SafetyNeuronsError, match=r"no setting find\.of_the_future.* safety-neurons 9\.1: use that"):
        folder.record()
    # A page shows what it knows.
    assert RunRecord.model_validate({"settings": settings}).settings == settings


RATE = asdict(share([True, False]))
SETTINGS = own_settings(Settings())
LINES: dict[str, tuple[type[Line], dict[str, Any]]] = {
    "answer": (
        CachedAnswer,
        {"model": "tiny", "change": "", "user": "Hello", "prefill": "", "text": "Hi", "cut_off": False},
    ),
    "verdict": (CachedVerdict, {"judge": "refusal", "verdict": "refused", "reason": "says no", "score": 0.5}),
    "measurement": (CachedMeasurement, {"name": "nll", "value": 1.5}),
    "suffix": (CachedSuffix, {"suffix": "!!"}),
    "trial": (
        CachedTrial,
        {
            "start": SETTINGS,
            "settings": SETTINGS,
            "objectives": {"attack_success": 0.5, "over_refusal": 0.1, "kl_divergence": 0.2},
        },
    ),
    "timing": (CachedMeasure, {"found": {"ratio": 1.5, "low": 1.0, "high": 2.0}}),
    "tasks": (CachedMeasure, {"found": {"results": {"arc": {"metrics": {"acc": {"value": 0.5, "stderr": None}}}}}}),
    "utility": (
        CachedMeasure,
        {"found": dict.fromkeys(("words", "looping", "blocked"), RATE) | {"kl_divergence": None, "perplexity": RATE}},
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_damaged_line_is_named_and_set_aside_and_the_others_are_kept(name: str, tmp_path: Path) -> None:
    kind, fields = LINES[name]
    path = tmp_path / "cache.jsonl"
    good = [as_json({"key": key} | fields) for key in "abc"]
    values = {name: as_json(found) for name, found in changes({"key": "b"} | fields, most=150)}
    for way, line in {**damage.contents(good[1]), **values}.items():
        path.write_bytes(b"\n".join([good[0], line.replace(b"\n", b" "), good[2], b""]))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            entries = JsonlCache.read(path, kind).entries
        assert {"a", "c"} <= entries.keys(), way
        if told:
            assert "line 2" in str(told[0].message), way
            assert entries.keys() == {"a", "c"}, way
            assert path.read_bytes().splitlines() == [good[0], good[2]], way
        remove(tmp_path / "cache.jsonl.damaged")


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("verdict", "verdict", "maybe"),
        ("trial", "settings", {"tune.learning_rate": 1}),
        ("trial", "settings", dict.fromkeys(SEARCHED, "much")),
        ("trial", "objectives", {"attack_success": 1.5, "over_refusal": 0.1, "kl_divergence": 0.2}),
        ("timing", "found", {"ratio": -1.0}),
        ("timing", "found", {}),
        ("utility", "found", {"words": RATE | {"n": 10**400}}),
        ("measurement", "value", 1e300),
        ("verdict", "score", 1e300),
    ],
)
def test_lines_without_sense_are_damaged(name: str, place: str, value: Any) -> None:
    kind, fields = LINES[name]
    kind.model_validate_json(as_json({"key": "a"} | fields))
    with pytest.raises(ValueError, match=place):
        kind.model_validate(json.loads(as_json({"key": "a"} | fields | {place: value})))


def test_damaged_lines_of_a_run_are_asked_again(whole: Path, finished: Path) -> None:
    for name in ("responses.jsonl", "verdicts.jsonl"):
        lines = (finished / name).read_bytes().splitlines(keepends=True)
        (finished / name).write_bytes(b"".join([b'{"key": 7}\n', *lines[1:-2], lines[-1]]))
    remove(finished / "results.json")
    with pytest.warns(UserWarning, match=r"lines of .* are damaged \(line 1"):
        run(finished)
    assert results_of(finished)["evaluation"] == results_of(whole)["evaluation"]
    for name in ("responses.jsonl", "verdicts.jsonl"):
        mine, before = ({line["key"]: line for line in lines_of(one / name)} for one in (finished, whole))
        assert mine == before, name


@pytest.mark.parametrize("place", damage.PLACES, ids=lambda place: place.name)
def test_what_is_no_cache_is_told_by_a_run_that_needs_it(finished: Path, place: Damage) -> None:
    path = finished / "responses.jsonl"
    place.to(path)
    remove(finished / "results.json")
    said = refusal(lambda: run(finished, until="calibrate"))
    if place.name == "missing":
        assert said == ""
    else:
        assert str(path) in said
        # Its advice: move it away.
        path.rename(finished.parent / "away")
        assert run(finished, until="calibrate").rows


def test_damaged_evaluations_are_told(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    content = report.before_and_after()
    for cell in content["cells"]:
        for judged in cell["judges"].values():
            judged["verdicts"] = ["complied", "refused"]
    path.write_bytes(as_json(content))
    assert refusal(lambda: compare(tmp_path, tmp_path)) == ""
    for way in damages(path, most=90):
        remove(path)
        path.write_bytes(as_json(content))
        way.to(path)
        if said := refusal(lambda: compare(tmp_path, tmp_path)):
            assert str(tmp_path) in said, way.name
            assert way.name == "missing" or "share no cell" in said or str(path) in said, way.name


def damaged_files(path: Path, good: bytes, most: int) -> Sequence[Damage]:
    path.write_bytes(good)
    bad = [Damage(name, written(content)) for name, content in damage.contents(good.strip()).items()]
    values = changes(json.loads(good.splitlines()[0]), most=most)
    lines = [Damage(name, written(as_json(found) + b"\n" + good)) for name, found in values]
    return [*bad, *damage.PLACES, *lines]


def test_damaged_counts_of_judges_are_told(tmp_path: Path) -> None:
    path = tmp_path / "errors.json"
    rate = replace(share([True] * 3 + [False]), unscored=1)
    save_errors([JudgeErrors("refusal", "people", 30, 2, 1, 3, 40, 0)], path)
    for way in damages(path, most=120):
        remove(path)
        save_errors([JudgeErrors("refusal", "people", 30, 2, 1, 3, 40, 0)], path)
        way.to(path)
        said = refusal(lambda: corrected(rate, JudgeErrors.load(path, "refusal"), "refused"))
        assert not said or str(path) in said, way.name


def test_damaged_labeled_answers_and_corpora_are_told(tmp_path: Path) -> None:
    kinds: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
        "labeled.jsonl": ({"prompt": "Hello?", "response": "Hi.", "label": "complied", "model": "a"}, read_labeled),
        "corpus.jsonl": (
            {"kind": "benign", "prompt_id": "p", "user": "Hi", "prefill": "", "response": "Hey", "cut_off": False},
            Corpus.load,
        ),
    }
    for name, (row, read) in kinds.items():
        path = tmp_path / name
        good = as_json(row) + b"\n"
        for way in damaged_files(path, good, most=60):
            remove(path)
            path.write_bytes(good)
            way.to(path)
            said = refusal(lambda path=path, read=read: read(path))  # type: ignore[misc]
            assert not said or str(path) in said, (name, way.name, said)
