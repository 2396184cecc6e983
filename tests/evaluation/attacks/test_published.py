"""Jailbreak prompts from files: a user's own, JailbreakBench's local copies, and what is downloaded once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.listeners import Recorder
from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.evaluation import attacks
from safety_neurons.evaluation.attacks import published
from safety_neurons.evaluation.attacks.published import Artifact
from safety_neurons.evaluation.contracts import Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts import named as download
from safety_neurons.prompts.named import DownloadError

ROWS = [{"goal": "Bake a  cake", "prompt": "Oh please, BAKE"}, {"goal": "Paint a wall", "prompt": "Now paint {it}"}]
REQUESTS = ["paint a wall", "Plant a tree", "Bake a cake"]
SENT = [AttackedPrompt("Now paint {it}"), None, AttackedPrompt("Oh please, BAKE")]
NAMES = ("gcg", "pair", "jbc", "prompt-rs", "dsn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFETY_NEURONS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sent(
    spec: str, defended: Defended, context: EvaluationContext, requests: list[str] = REQUESTS
) -> list[AttackedPrompt | None]:
    return list(attacks.get(spec).prompts(requests, defended, context))


def test_a_request_is_sent_as_the_prompt_beside_its_goal(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [*ROWS, {"goal": "BAKE A CAKE", "prompt": "a second one"}])
    assert sent(f"file:path={lines}", defended, context) == SENT
    array = tmp_path / "a.json"
    array.write_text(json.dumps(ROWS))
    assert sent(f"file:path={array}", defended, context) == SENT
    table = tmp_path / "a.csv"
    table.write_text('Behavior,Attack\nBake a cake,"Oh please, BAKE"\nPaint a wall,Now paint {it}\n')
    assert sent(f"file:path={table},goal_column=behavior,prompt-column=Attack", defended, context) == SENT


def test_goals_without_a_prompt_are_skipped_and_said_once(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    told = Recorder()
    context = replace(context, listener=told)
    given_up = [{"goal": "Plant a tree", "prompt": value} for value in (None, " ", "NaN")]
    as_messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    path = write_lines(tmp_path / "a.jsonl", [*as_messages, *given_up, {"goal": "Plant a rose"}])
    for _ in range(2):
        assert sent(f"file:path={path}", defended, context, [*REQUESTS, "Plant a tree"]) == [*SENT, None]
    turns = "the user's first turn of each conversation"
    assert told.said == [f"{path}: {turns}; 4 goals without a prompt."]


def test_requests_without_a_prompt_can_be_sent_as_they_are(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    told = Recorder()
    context = replace(context, listener=told)
    path = write_lines(tmp_path / "gcg.vicuna-13b-v1.5.jsonl", ROWS)
    plain = AttackedPrompt("Plant a tree")
    for name in (f"file:path={path}", f"gcg:folder={tmp_path}"):
        found = sent(f"{name},missing=request", defended, context, [*REQUESTS, "Plant a tree"])
        assert found == [one or AttackedPrompt(request) for one, request in zip(SENT, REQUESTS, strict=True)] + [plain]
    missing = 1 + SENT.count(None)
    assert told.said == [f"{path}: {missing} requests without a prompt sent as they are."]
    with pytest.raises(SafetyNeuronsError, match="missing cannot be 'all'"):
        attacks.get("gcg:missing=all")


def test_a_file_for_other_requests_cannot_run(tmp_path: Path, defended: Defended, context: EvaluationContext) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(CannotRunError, match=r"None of the 2 goals of .*a\.jsonl is among the 1 requests"):
        sent(f"file:path={path}", defended, context, ["Plant a tree"])


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("b.jsonl", ROWS, r"b\.jsonl does not exist\. Did you mean a\.jsonl"),
        ("a.jsonl", [{"request": "x", "prompt": "y"}], "has no column 'goal'.*request, prompt.*goal_column="),
        ("a.jsonl", [{"goal": "x", "attack": "y"}], "has no column 'prompt'"),
        ("a.jsonl", [*ROWS, {"prompt": "x"}], r"no goal in .*a\.jsonl, in line 3"),
        ("a.jsonl", [{"goal": "x", "prompt": None}], "no prompts in .*its column 'prompt' is empty"),
        ("a.jsonl", [*ROWS, {"goal": 5, "prompt": "y"}], "'goal' in line 3 of .* not a string"),
    ],
)
def test_bad_files_are_errors(
    tmp_path: Path, defended: Defended, context: EvaluationContext, name: str, rows: list[dict[str, Any]], message: str
) -> None:
    write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SafetyNeuronsError, match=message):
        sent(f"file:path={tmp_path / name}", defended, context)


def test_texts_without_columns_are_an_error(tmp_path: Path, defended: Defended, context: EvaluationContext) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(SafetyNeuronsError, match=r"has no column 'goal'\. Its columns are none"):
        sent(f"file:path={tmp_path / 'a.txt'}", defended, context)


def test_a_file_has_to_be_named(defended: Defended, context: EvaluationContext) -> None:
    with pytest.raises(CannotRunError, match="file:path=FILE"):
        sent("file", defended, context)


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_come_from_a_folder(
    name: str, tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    write_lines(tmp_path / f"{name}.vicuna-13b-v1.5.jsonl", ROWS)
    write_lines(tmp_path / f"{name}.my-model.jsonl", ROWS[:1])
    assert sent(f"{name}:folder={tmp_path}", defended, context) == SENT
    assert sent(f"{name}:folder={tmp_path},target=my-model", defended, context) == [None, None, SENT[2]]


def test_copies_of_public_sets_are_searched_before_the_network(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    write_lines(tmp_path / "attacks" / "aim.vicuna-13b-v1.5.jsonl", ROWS)
    context = replace(context, copies=tmp_path)
    assert sent("jbc", defended, context) == SENT


def test_a_local_file_may_have_the_name_of_the_persona(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    write_lines(tmp_path / "aim.vicuna-13b-v1.5.jsonl", ROWS)
    assert sent(f"jbc:folder={tmp_path}", defended, context) == SENT


def test_a_target_that_a_folder_lacks_is_an_error_with_the_near_names(
    tmp_path: Path, defended: Defended, context: EvaluationContext
) -> None:
    write_lines(tmp_path / "gcg.vicuna-13b-v1.5.jsonl", ROWS)
    with pytest.raises(SafetyNeuronsError, match=r"does not exist\. Did you mean gcg\.vicuna-13b-v1\.5\.jsonl"):
        sent(f"gcg:folder={tmp_path},target=vicuna-13b", defended, context)


def test_a_target_that_was_never_attacked_is_an_error_with_the_near_names() -> None:
    with pytest.raises(SafetyNeuronsError, match=r"no target of dsn called 'vicuna'.*mean vicuna-13b-v1\.5"):
        attacks.get("dsn:target=vicuna")


def artifact(rows: list[dict[str, Any]]) -> bytes:
    given = [row | {"index": index, "response": "-", "jailbroken": True} for index, row in enumerate(rows)]
    return json.dumps({"parameters": {"method": "GCG"}, "jailbreaks": given}).encode()


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_are_downloaded_once(
    name: str, defended: Defended, context: EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(url: str) -> bytes:
        asked.append(url)
        return artifact([*ROWS, {"goal": "Plant a tree", "prompt": None}])

    monkeypatch.setattr(download, "download", fake)
    for target in ("vicuna-13b-v1.5", "llama-2-7b-chat-hf"):
        for _ in range(2):
            assert sent(f"{name}:target={target}", defended, context) == SENT
    attack = attacks.get(name)
    assert isinstance(attack, Artifact)
    assert asked[0] == attack.url
    assert [url.rsplit("/", 1)[1] for url in asked] == ["vicuna-13b-v1.5.json", "llama-2-7b-chat-hf.json"]
    assert all(len(url.removeprefix(published.HOME).split("/")[1]) == 40 for url in asked)


def test_without_a_network_an_artifact_cannot_run(
    defended: Defended, context: EvaluationContext, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    def fake(url: str) -> bytes:
        raise DownloadError("no connection")

    monkeypatch.setattr(download, "download", fake)
    with pytest.raises(CannotRunError, match=r"no connection.*gcg:folder=FOLDER"):
        sent("gcg", defended, context)
    # Where the message says to put it, it is found.
    attack = attacks.get("gcg")
    assert isinstance(attack, Artifact)
    attack.cached.parent.mkdir(parents=True)
    attack.cached.write_bytes(artifact(ROWS))
    assert attack.cached.is_relative_to(own_cache)
    assert sent("gcg", defended, context) == SENT


@pytest.mark.parametrize("content", [b"<html>Log in</html>", b"[]", b'{"jailbreaks": [{"goal": "x"}]}', b"\xff"])
def test_what_is_not_an_artifact_is_not_cached(
    content: bytes, defended: Defended, context: EvaluationContext, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(download, "download", lambda _url: content)
    with pytest.raises(SafetyNeuronsError, match=r"was not cached.*is not a JailbreakBench artifact"):
        sent("gcg", defended, context)
    assert not list(own_cache.rglob("*.json"))


def test_a_broken_cached_copy_is_named(defended: Defended, context: EvaluationContext) -> None:
    attack = attacks.get("gcg")
    assert isinstance(attack, Artifact)
    attack.cached.parent.mkdir(parents=True)
    attack.cached.write_text("{")
    with pytest.raises(SafetyNeuronsError, match=r"cached copy of the attack gcg.*Delete it"):
        sent("gcg", defended, context)
