"""What servers and gateways report: content filters, prompts that are too long, and everything else."""

import json
from typing import Any

import pytest

from safety_neurons.engines.problems import problem_in
from safety_neurons.engines.replies import problem_of

# As providers and gateways are documented, or quoted by their users, to answer.
FILTERED: list[tuple[int, Any]] = [
    (400, {"error": {"message": "The response was filtered.", "code": "content_filter", "status": 400}}),
    (400, {"error": {"message": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    (400, {"error": {"message": "Invalid prompt: your prompt was flagged", "code": "invalid_prompt"}}),
    (400, {"error": {"message": "Your request was rejected as a result of our safety system."}}),
    (400, {"error": {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}}),
    (400, {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."}),
    (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
    (400, {"error": {"message": "rejected because it was considered high risk", "type": "content_filter"}}),
    (400, {"contentFilter": [{"level": 1, "role": "user"}], "error": {"code": "1301", "message": "敏感内容"}}),
    (403, {"error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["violence"]}}}),
    (403, {"error": {"code": 403, "message": "no", "metadata": {"raw": '{"error": {"code": "content_filter"}}'}}}),
    (400, [{"error": {"code": 400, "message": "Prompt was blocked due to safety reasons", "status": "SAFETY"}}]),
    (400, {"error": {"message": "PROHIBITED_CONTENT"}}),
    (400, {"message": "Guardrail intervened", "type": "guardrail_intervened"}),
    (422, {"detail": "The prompt violates our content policy."}),
    (446, {"error": {"message": "The guardrail checks defined in the config failed."}}),
    (451, "Blocked by content moderation"),
]
TOO_LONG: list[tuple[int, Any]] = [
    (400, {"error": {"message": "x", "code": "context_length_exceeded", "param": "messages"}}),
    (400, {"object": "error", "message": "This model's maximum context length is 512 tokens.", "code": 400}),
    (400, {"object": "error", "message": "The input (900 tokens) is longer than the model's context length (512)."}),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 900"}),
    (422, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 900"}),
    (400, {"error": {"code": 400, "message": "the request exceeds it", "type": "exceed_context_size_error"}}),
    (400, {"type": "error", "error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
    (400, {"error": "Trying to keep the first 900 tokens when context the overflows. The context length is 512."}),
    (400, {"message": "Input is too long for requested model."}),
    (400, {"message": "Prompt contains 900 tokens, too large for model with 512 maximum context length"}),
    (400, {"error": {"message": "The input token count (900) exceeds the maximum number of tokens allowed (512)."}}),
    (400, {"error": {"message": "Range of input length should be [1, 512]", "code": "invalid_parameter_error"}}),
    (400, {"error": {"message": "Please reduce the length of the messages or completion."}}),
    (413, "<html><head><title>413 Request Entity Too Large</title></head></html>"),
    (
        429,
        {"error": {"message": "Request too large for m on tokens per min: Limit 500", "code": "rate_limit_exceeded"}},
    ),
]
OTHER: list[tuple[int, Any]] = [
    (400, {"error": {"message": "Unknown parameter: 'top_z'", "param": "top_z"}}),
    (400, {"error": {"message": "max_tokens is too large: 9999. This model supports at most 4096 completion tokens"}}),
    (401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}),
    (403, {"error": {"message": "Your account has been blocked due to violations of our usage policies"}}),
    (403, {"error": {"message": "The project is disabled for policy reasons"}}),
    (404, {"error": {"message": "The model `safety-guardrail` does not exist", "code": "model_not_found"}}),
    (429, {"error": {"message": "Rate limit reached: 500 tokens per min, maximum context length 9"}}),
    (500, {"error": {"message": "content policy service is down"}}),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": "content policy"}]}),
]


def problem(status: int, body: Any) -> Any:
    return problem_of(body.encode() if isinstance(body, str) else json.dumps(body).encode(), status)


@pytest.mark.parametrize(("status", "body"), FILTERED)
def test_content_filters(status: int, body: Any) -> None:
    found = problem(status, body)
    assert found.filtered
    assert not found.too_long


@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_prompts_that_are_too_long(status: int, body: Any) -> None:
    found = problem(status, body)
    assert found.too_long
    assert found.concerns_prompt
    assert not found.filtered


@pytest.mark.parametrize(("status", "body"), OTHER)
def test_other_problems(status: int, body: Any) -> None:
    found = problem(status, body)
    assert (found.filtered, found.too_long) == ("", False)


def test_filters_name_their_categories() -> None:
    result = {"violence": {"filtered": True, "severity": "high"}, "hate": {"filtered": False}}
    azure = {"error": {"code": "content_filter", "message": "No.", "innererror": {"content_filter_result": result}}}
    assert problem(400, azure).filtered == "content_filter (violence): No."
    flagged = {
        "error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["violence", "self-harm"]}}
    }
    assert problem(403, flagged).filtered == "content filter (violence, self-harm): Input was flagged"


def test_the_words_of_the_prompt_do_not_count() -> None:
    """Servers repeat the prompt, and a prompt may speak of content filters and context lengths."""
    said = "What is a content filter, and what is the maximum context length?"
    found = problem_in({"error": {"message": f"Cannot parse: {said}"}}, 400, [said])
    assert (found.filtered, found.too_long) == ("", False)
    assert problem_in({"error": {"message": f"Cannot parse: {said}"}}, 400).filtered


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "Provider returned error", "code": 429}, 429),
        ({"message": "Provider returned error", "code": "502"}, 502),
        ({"message": "Rate limit exceeded", "code": None}, 429),
        ({"message": "x", "type": "server_error"}, 503),
        ("The model is loading, try again", 503),
        ("Unexpected endpoint or method. (POST /chat/completions)", 404),
        ("You did something", 400),
    ],
)
def test_the_status_of_an_error_in_a_response_of_status_200(error: Any, status: int) -> None:
    found = problem_in({"error": error}, 200, reported=False)
    assert found.status == status
    assert found.temporary == (status in (429, 502, 503))


def test_nothing_in_a_body_breaks_the_reading() -> None:
    deep: Any = "end"
    for _ in range(400):
        deep = {"error": [deep]}
    assert problem(400, deep).status == 400
    assert problem(400, {"error": {"message": "{" * 3000}}).message.startswith("{")
    assert problem(400, {"error": {"metadata": {"reasons": 5}, "code": {"a": float("nan")}}}).status == 400
    assert problem(400, "").message == ""
