"""Chat completions in the forms that servers and gateways use."""

import json
from typing import Any

import pytest

from safety_neurons.engines.replies import ReportedError, UnreadableError, read_model_names, read_reply


def reply(message: Any, finish: str | None = "stop", **body: Any) -> Any:
    choice = {"message": message} if finish is None else {"message": message, "finish_reason": finish}
    return read_reply(json.dumps({"choices": [choice], **body}).encode())


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("Yes", "Yes", ""),
        (None, "", ""),
        ([], "", ""),
        ([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}], "Yes", ""),
        ([{"type": "output_text", "text": {"value": "Yes", "annotations": []}}], "Yes", ""),
        (["Ye", "s"], "Yes", ""),
        ({"type": "text", "text": "Yes"}, "Yes", ""),
        ([{"type": "refusal", "refusal": "No."}], "No.", ""),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes"}], "Yes", "Hm."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"text": "Yes"}], "Yes", "Hm."),
        ([{"type": "reasoning", "text": "Hm."}, {"type": "image_url", "image_url": {}}], "", "Hm."),
        ([None, 5, {"type": "text", "text": None}], "", ""),
    ],
)
def test_contents(content: Any, text: str, reasoning: str) -> None:
    found = reply({"content": content})
    assert (found.text, found.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "H"}, {"type": "reasoning.text", "text": "m."}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}, {"type": "x", "data": "gAAA"}]},
        {"thinking": "Hm."},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
        {"reasoning_content": None, "reasoning": {"content": "Hm."}},
    ],
)
def test_reasoning_apart_from_the_text(thought: Any) -> None:
    found = reply({"content": "Yes", **thought})
    assert (found.text, found.reasoning) == ("Yes", "Hm.")


def test_reasoning_in_the_text() -> None:
    assert reply({"content": "<think>\nHm.</think>\n\nYes"}).parted() == ("<think>\nHm.</think>\n\n", "Yes", False)
    # Templates open the thought in the prompt.
    assert reply({"content": "Hm.\n</think>\n\nYes"}).parted() == ("Hm.\n</think>\n\n", "Yes", False)
    assert reply({"content": "<think>\nHm", "reasoning": "Well."}, "length").parted() == ("Well.<think>\nHm", "", True)
    hidden = reply({"content": ""}, "length", usage={"completion_tokens_details": {"reasoning_tokens": 64}})
    assert hidden.unfinished
    assert hidden.parted().reasoning == "[64 tokens of reasoning that the server does not show]"
    assert not reply({"content": ""}, "stop").unfinished
    assert not reply({"content": "\n\n"}, "length").unfinished


def test_refusals_and_calls_are_answers() -> None:
    assert reply({"content": None, "refusal": "I can't."}).text == "I can't."
    assert reply({"content": "Well.", "refusal": "I can't."}).text == "Well.\nI can't."
    assert reply({"content": "I can't.", "refusal": "I can't."}).text == "I can't."
    assert reply({"content": "Yes", "refusal": None}).text == "Yes"
    call = {"name": "look_up", "arguments": '{"a": 1}'}
    for message in ({"tool_calls": [{"function": call}]}, {"function_call": call}):
        assert json.loads(reply({"content": None, **message}).text) == call
    assert reply({"content": None, "tool_calls": [None, 5], "function_call": None}).text == ""


@pytest.mark.parametrize(
    ("finish", "cut_off", "filtered"),
    [
        ("stop", False, ""),
        (None, False, ""),
        ("length", True, ""),
        ("max_tokens", True, ""),
        ("MAX_TOKENS", True, ""),
        ("model_length", True, ""),
        ("content_filter", False, "content_filter"),
        ("SAFETY", False, "safety"),
        ("PROHIBITED_CONTENT", False, "prohibited_content"),
        ("refusal", False, "refusal"),
        ("tool_calls", False, ""),
    ],
)
def test_how_an_answer_ends(finish: str | None, cut_off: bool, filtered: str) -> None:
    found = reply({"content": "Yes"}, finish)
    assert (found.cut_off, found.filtered) == (cut_off, filtered)


def test_filters_in_a_reply_name_their_categories() -> None:
    result = {"violence": {"filtered": True}, "hate": {"filtered": False}, "error": None}
    choice = {"message": {"content": None}, "finish_reason": "content_filter", "content_filter_results": result}
    assert read_reply(json.dumps({"choices": [choice]}).encode()).filtered == "content_filter (violence)"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (None, None)),
        ({}, (None, None)),
        ({"prompt_tokens": None, "completion_tokens": None}, (None, None)),
        ({"prompt_tokens": 3, "completion_tokens": 2.0, "completion_tokens_details": None}, (3, 2)),
        ({"input_tokens": 3, "output_tokens": 2}, (3, 2)),
        ({"prompt_tokens": "3", "completion_tokens": -1}, (None, None)),
        ([3, 2], (None, None)),
    ],
)
def test_token_counts(usage: Any, expected: Any) -> None:
    found = reply({"content": "Yes"}, usage=usage)
    assert (found.prompt_tokens, found.completion_tokens) == expected


def test_legacy_completions() -> None:
    assert read_reply(b'{"choices": {"message": {"content": "Yes"}}, "error": null}').text == "Yes"
    assert read_reply(b'{"choices": [{"text": "Yes", "finish_reason": "length"}]}').cut_off
    assert read_reply(b'{"choices": [null, {"text": "Yes"}]}').text == "Yes"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'"A \ud83d b"', "A \ufffd b"),
        (rb'"A \udc00\ud83d"', "A \ufffd\ufffd"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"A \u0000 b"', "A \ufffd b"),
        (b'"A \xff b"', "A \ufffd b"),
        (b'"two\nlines\tand a bell\x07"', "two\nlines\tand a bell\x07"),
    ],
)
def test_broken_text_is_read(raw: bytes, text: str) -> None:
    found = read_reply(b'{"choices": [{"message": {"content": ' + raw + b"}}]}").text
    assert found == text
    assert found.encode().decode() == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("before", ["", "\n\n   \r\n"])
def test_bodies_in_any_encoding_and_after_white_space(encoding: str, before: str) -> None:
    body = before + json.dumps({"choices": [{"message": {"content": "Grüße"}}]}, ensure_ascii=False)
    assert read_reply(body.encode(encoding)).text == "Grüße"


def event(finish: str | None = None, **delta: Any) -> str:
    return f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': finish}]})}\n\n"


DONE = "data: [DONE]\n\n"
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'


@pytest.mark.parametrize(
    "stream",
    [
        event(role="assistant", content="") + event(content="Ye") + event("stop", content="s") + USAGE + DONE,
        ": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + event(content="Yes") + USAGE + DONE,
        (event(content="Ye") + event("stop", content="s") + USAGE).replace("\n\n", "\r\n\r\n"),
        (event(content="Ye") + event(content="s") + USAGE + DONE).replace("\n\n", "\n"),
        "event: message\nid: 1\n" + event("stop", content="Yes") + USAGE,
        (event(content="Ye") + event("stop", content="s") + USAGE).replace("data: ", "").replace("\n\n", "\n"),
        event("stop", content=[{"type": "text", "text": "Yes"}]) + USAGE,
    ],
)
def test_streams_that_nobody_asked_for(stream: str) -> None:
    found = read_reply(stream.encode())
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("Yes", 3, 2)


def test_streams_hold_reasoning_and_errors() -> None:
    found = read_reply((event(reasoning_content="H") + event(reasoning_content="m.") + event("length")).encode())
    assert (found.text, found.reasoning, found.cut_off) == ("", "Hm.", True)
    with pytest.raises(ReportedError) as error:
        read_reply((event(content="Ye") + 'data: {"error": {"message": "Overloaded", "code": 529}}\n\n').encode())
    assert error.value.problem.status == 529


@pytest.mark.parametrize(
    ("raw", "said", "broken"),
    [
        (b"", "empty", True),
        (b"  \n ", "empty", True),
        (b'{"choices": [{"message": {"content": "Su', "cut off", True),
        (b'{"choices": []}', "no answer", True),
        (b'{"choices": null, "usage": null}', "no answer", True),
        (event(content="Ye").encode(), "cut off", True),
        (b'data: {"choices": [{"del', "cut off", True),
        (DONE.encode(), "no answer", True),
        (b"<html><title>Sign in</title></html>", "HTML", False),
        (b'{"object": "list"}', "no field choices", False),
        (b'{"message": {"content": "Yes"}, "done": true}', "no field choices", False),
        (b'"Yes"', "not an object", False),
        (b"[1, 2]", "not an object", False),
        (b"Bad gateway", "not JSON", False),
        (b"[" * 5000, "nested too deeply|cut off", None),
        (b'{"choices": [{"message": {"content": 5}}]}', "content", False),
        (b'{"choices": [{"message": "Hi"}]}', "message", False),
        (b"9" * 5000, "not JSON", False),
    ],
)
def test_bodies_that_cannot_be_read(raw: bytes, said: str, broken: bool | None) -> None:
    with pytest.raises(UnreadableError, match=said) as error:
        read_reply(raw)
    assert broken is None or error.value.broken is broken


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"choices": None, "error": {"message": "Provider returned error", "code": 429}}, 429),
        ({"error": "Unexpected endpoint or method. (POST /chat/completions)"}, 404),
        ([{"error": {"message": "no", "code": 503}}], 503),
        ({"detail": "Not Found"}, 400),
        ({"object": "error", "message": "no", "code": 40303}, 400),
        ({"choices": [{"error": {"message": "Bad gateway", "code": 502}, "finish_reason": "error"}]}, 502),
        ({"choices": [{"message": {"content": "Ye"}, "finish_reason": "error"}]}, 503),
        ({"choices": [{"message": {"content": ""}}], "error": {"message": "Overloaded", "code": 529}}, 529),
        ({"success": False, "errors": [{"code": 1000, "message": "no"}]}, 400),
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, 429),
    ],
)
def test_problems_in_a_response_of_status_200(body: Any, status: int) -> None:
    with pytest.raises(ReportedError) as error:
        read_reply(json.dumps(body).encode())
    assert error.value.problem.status == status


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [], "prompt_feedback": {"block_reason": "OTHER"}},
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}},
        {"choices": None, "error": {"code": "content_filter", "message": "no"}},
    ],
)
def test_filters_in_a_response_of_status_200(body: Any) -> None:
    with pytest.raises(ReportedError) as error:
        read_reply(json.dumps(body).encode())
    assert error.value.problem.filtered


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}, ["a", "b"]),
        ([{"id": "a"}], ["a"]),
        ({"models": [{"name": "a"}]}, ["a"]),
        ({"data": None}, []),
        ({"data": ["a", {"object": "model"}, None]}, ["a"]),
    ],
)
def test_lists_of_models(body: Any, names: list[str]) -> None:
    assert read_model_names(json.dumps(body).encode()) == names
