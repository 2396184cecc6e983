"""Passwords and keys reach the server, and nothing else: no file, table, message, warning or name."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.commands import inside
from safety_neurons.core import addresses
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.records import JsonlCache
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import CachedAnswer, CachedEngine, answers
from safety_neurons.evaluation import judges
from safety_neurons.models.chat import Conversation
from safety_neurons.runs.targets import evaluate
from safety_neurons.settings import Settings

PASSWORD, KEY, API_KEY = "p%40ss-0123", "query-4567", "sk-env-89ab"
SECRETS = (PASSWORD, "p@ss-0123", KEY, API_KEY, "dXNlcjpwQHNzLTAxMjM=")
BASIC = "Basic dXNlcjpwQHNzLTAxMjM="


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_remembered", {})
    monkeypatch.setattr(addresses, "_secrets", {})


def with_secrets(url: str) -> str:
    return f"{url.replace('http://', f'http://user:{PASSWORD}@')}?key={KEY}"


def assert_clean(*texts: str) -> None:
    for text in texts:
        assert [secret for secret in SECRETS if secret in text] == []


def files_of(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.read_bytes().decode(errors="replace") for path in files] + [str(path) for path in files]


def repeating(server: Any) -> Callable[[Any], Any]:
    """A server that says in each answer what it was sent."""

    def answer(body: Any) -> Any:
        said = f"You sent {server.keys[-1]} and {server.queries[-1]}. verdict: no"
        return server.completion(said)

    return answer


def test_credentials_reach_the_server_and_no_answer(server: Any, tmp_path: Path) -> None:
    server.answer = repeating(server)
    engine = Endpoint(with_secrets(server.url), "tiny")
    cached = CachedEngine(engine, JsonlCache.read(tmp_path / "answers.jsonl", CachedAnswer))
    [found] = answers(cached, [Conversation.of("Hello")], max_new_tokens=5)
    assert found.text == "You sent Basic [hidden] and key=[hidden]. verdict: no"
    assert server.keys == [BASIC]
    assert server.queries == [f"key={KEY}"]
    assert engine == Endpoint(server.url, "tiny")
    assert engine.identity == Endpoint(server.url, "tiny").identity
    assert_clean(repr(engine), engine.name, *files_of(tmp_path))


def test_the_user_of_an_address_comes_before_the_api_key(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", API_KEY)
    answers(Endpoint(f"{server.url}?key={KEY}", "tiny"), [Conversation.of("Hello")], max_new_tokens=5)
    answers(Endpoint(with_secrets(server.url), "tiny"), [Conversation.of("Hello")], max_new_tokens=5)
    assert server.keys == [f"Bearer {API_KEY}", BASIC]


@pytest.mark.parametrize("status", [200, 302, 400, 401, 407, 422, 500])
def test_errors_that_repeat_the_request(status: int, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", API_KEY)

    def answer(_body: Any) -> Any:
        said = f"bad header {server.keys[-1]} in {with_secrets(server.url)} " + "x" * 178
        error = {"error": {"message": said + API_KEY, "code": API_KEY, "param": PASSWORD}}
        return server.raw(json.dumps(error).encode(), status, {"location": f"{with_secrets('http://far.example')}"})

    server.answer = answer
    for url in (server.url, with_secrets(server.url)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(SafetyNeuronsError) as error:
                answers(Endpoint(url, "tiny", retries=0), [Conversation.of("Hello")], max_new_tokens=5)
        chain = [error.value, error.value.__cause__]
        assert_clean(*map(str, chain), *map(repr, chain), *(str(one.message) for one in told))


def test_a_server_that_is_not_there_is_named_without_them(server: Any) -> None:
    server.stop()
    with pytest.raises(SafetyNeuronsError, match="is unreachable") as error:
        _ = Endpoint(with_secrets(server.url), retries=0).served
    assert server.url in str(error.value)
    assert_clean(str(error.value))


def test_names_settings_and_identities_are_without_them(server: Any) -> None:
    spec = f"jailbreakbench:endpoint={with_secrets(server.url)},model=m"
    judge = judges.get(spec)
    assert judge.name == f"jailbreakbench:endpoint={server.url},model=m"
    assert judge.identity == judges.get(judge.name).identity
    given = {"evaluate": {"judges": [spec], "preference_endpoint": with_secrets(server.url)}, "model": spec}
    settings = Settings.checked(given)
    assert_clean(repr(judge), repr(settings), settings.model_dump_json())
    # What is recorded without them still finds them.
    engine = Endpoint(str(settings.evaluate.preference_endpoint), "m")
    answers(engine, [Conversation.of("Hello")], max_new_tokens=5)
    assert server.keys == [BASIC]


def test_an_evaluation_of_a_server_by_a_judge_behind_it(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", API_KEY)
    server.answer = repeating(server)
    url = with_secrets(server.url)
    settings = {"harmful": "harmful", "evaluate": {"prompts": 2}}
    found = evaluate(
        url,
        settings,
        out=tmp_path,
        served_model="tiny",
        judges=[f"jailbreakbench:endpoint={url},model=m", "refusal"],
        attacks=["direct", f"translation:endpoint={url},model=m"],
        defenses=["none"],
    )
    assert set(server.keys) == {BASIC}
    texts = files_of(tmp_path)
    assert len(texts) > 6
    assert_clean(found.model_dump_json(), repr(found), *texts)


def test_the_command_line_is_recorded_and_shown_without_them(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", API_KEY)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    url = with_secrets(server.url)
    common = ["--evaluate.prompts", "2", "--out", "out", "--evaluate.defenses", "none", "--evaluate.attacks", "direct"]
    judge = f"jailbreakbench:endpoint={url},model=m"
    commands = [
        ["evaluate", url, "--served-model", "tiny", *common, "--evaluate.judges", judge],
        ["evaluate", url, "--served-model", "tiny", "--unknown", url],
        ["evaluate", url.replace("/v1", "/v1/models"), "--served-model", "tiny", *common],
        ["evaluate", url.replace("127.0.0.1", "127.0.0.1 "), "--served-model", "tiny", *common],
        ["run", "--model", url, "--out", "run"],
        ["judge", "check", url, "--judges", f"{judge},unknown={url}"],
    ]
    for arguments in commands:
        status = inside(monkeypatch, *arguments)
        shown = capfd.readouterr()
        assert status == (0 if arguments is commands[0] else 2), shown.err
        assert_clean(shown.out, shown.err)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert f"evaluate {server.url} --served-model" in record["command"]
    assert_clean(*files_of(tmp_path))
