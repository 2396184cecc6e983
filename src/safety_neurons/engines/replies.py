"""What a server sends back: chat completions in the forms that servers and gateways use, read leniently."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safety_neurons.core.addresses import without_secrets
from safety_neurons.engines.problems import Problem, problem_in
from safety_neurons.models.quoting import well_formed
from safety_neurons.models.reasoning import Parted, part

# Names of the end of an answer at the limit of tokens, and of one that a content filter ended.
_LIMITS = re.compile(r"(?:max_|model_)?length|max_(?:output_|completion_)?tokens")
_FILTERS = re.compile(
    r"content_filter(?:ed)?|(?:image_)?safety|prohibited_content|blocklist|recitation|spii|sensitive"
    r"|guardrail_intervened|refusal"
)
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_text", "thinking_content")
_REASONING_PARTS = ("reasoning_details", "thinking_blocks")
_SSE = re.compile(r"(?::|data:|event:|id:|retry:)")
# What is not closed reaches to the end: a page of openings is read once, and not once from each of them.
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_NOT_SHOWN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|title)\b.*?(?:</\1\s*>|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL
)


class UnreadableError(Exception):
    """A body that is not a chat completion; `broken` if it may be whole the next time."""

    def __init__(self, what: str, broken: bool) -> None:
        super().__init__(what)
        self.broken = broken


class ReportedError(Exception):
    """A response of status 200 that holds a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Reply:
    """A chat completion. Token counts are None if the server reports none.

    `reasoning` is what the server sends apart from the text; `filtered` is the reason of a content filter.
    """

    text: str
    reasoning: str = ""
    finish: str = ""
    filtered: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    hidden_tokens: int = 0

    def without(self, secrets: Collection[str]) -> "Reply":
        """The same where the server repeats none of its secrets."""
        text, reasoning, finish, filtered = (
            without_secrets(one, secrets) for one in (self.text, self.reasoning, self.finish, self.filtered)
        )
        return replace(self, text=text, reasoning=reasoning, finish=finish, filtered=filtered)

    @property
    def written(self) -> str:
        """The reasoning and the text."""
        return self.reasoning + self.text

    @property
    def cut_off(self) -> bool:
        return bool(_LIMITS.fullmatch(self.finish))

    def parted(self, prefill: str = "") -> Parted:
        """Reasoning and answer, without a prefill that the server repeats."""
        found = part(self.text.removeprefix(prefill))
        reasoning = self.reasoning + found.reasoning
        # Some servers do not even say that there was a thought.
        hidden = self.hidden_tokens or (0 if self.text or not self.cut_off else self.completion_tokens or 0)
        if hidden and not reasoning and not found.answer.strip():
            reasoning = f"[{hidden:,} tokens of reasoning that the server does not show]"
        return Parted(reasoning, found.answer, found.unfinished)

    @property
    def unfinished(self) -> bool:
        """Whether the answer ended at the limit of tokens inside its reasoning."""
        found = self.parted()
        return self.cut_off and bool(found.reasoning) and not found.answer.strip()


def decoded(raw: bytes) -> str:
    """A body as text, whatever its content type says."""
    return raw.decode(json.detect_encoding(raw), errors="replace").strip("\0\ufeff \t\r\n")


def plain_text(text: str) -> str:
    """The words of an HTML page; other text is unchanged."""
    if not text.lstrip().startswith("<"):
        return text
    title = _TITLE.search(text)
    words = " ".join(_NOT_SHOWN.sub(" ", text).split())
    return f"{' '.join(title[1].split())}: {words}" if title else words


def problem_of(raw: bytes, status: int, said: Collection[str] = ()) -> Problem:
    """The problem in the response of an HTTP error."""
    text = decoded(raw)
    try:
        return problem_in(json.loads(text, strict=False), status, said)
    except (ValueError, RecursionError):
        return replace(problem_in(plain_text(text), status, said), page=text.startswith("<"))


def read_reply(raw: bytes, said: Collection[str] = ()) -> Reply:
    """The chat completion in a body; `said`: texts of the request.

    Raises:
        ReportedError: the body holds a problem instead.
        UnreadableError: the body is neither.
    """
    body = _body(decoded(raw))
    if isinstance(body, list) and len(body) == 1:
        # Some gateways wrap an error in a list.
        body = body[0]
    if not isinstance(body, dict):
        raise UnreadableError("It is JSON, but not an object.", broken=False)
    choices = body.get("choices")
    choices = [choices] if isinstance(choices, dict) else choices
    choice = next((one for one in choices if isinstance(one, dict)), None) if isinstance(choices, list) else None
    if choice is None:
        raise _without_choices(body, said)
    if choice.get("error"):
        raise ReportedError(problem_in(choice, 200, said, reported=False))
    found = _read_choice(choice, body)
    if body.get("error") and not found.written:
        raise ReportedError(problem_in({"error": body["error"]}, 200, said, reported=False))
    return found


def read_model_names(raw: bytes) -> list[str]:
    """The names of a server's models.

    Raises:
        ReportedError, UnreadableError: the body is not a list of models.
    """
    body = _body(decoded(raw))
    models = body
    if isinstance(body, dict):
        models = body["data"] if "data" in body else body.get("models") or None
        if models is None and "data" in body:
            models = []
    if not isinstance(models, list):
        raise _without_choices(body, ()) if isinstance(body, dict) else UnreadableError("It lists no models.", False)
    names = [one if isinstance(one, str) else _first(one, "id", "name", "model") for one in models]
    return list(dict.fromkeys(name for name in names if name))


def _body(text: str) -> Any:
    """The JSON value in a body, or that of the events that it streams."""
    if not text:
        raise UnreadableError("Its response was empty.", broken=True)
    if text.startswith("<"):
        raise UnreadableError("It sent a web page (HTML).", broken=False)
    if _SSE.match(text):
        return _joined(_events(text), ended="[DONE]" in text)
    try:
        return json.loads(text, strict=False)
    except RecursionError:
        raise UnreadableError("Its JSON is nested too deeply.", broken=False) from None
    except ValueError as error:
        try:
            lines = [json.loads(line, strict=False) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            lines = []
        if len(lines) > 1 and all(isinstance(line, dict) for line in lines):
            return _joined(lines, ended=False)
        if text[0] in "{[":
            raise UnreadableError(f"Its JSON is broken or cut off ({error}).", broken=True) from None
        raise UnreadableError("It is not JSON.", broken=False) from None


def _events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events; comments and the end mark are left out."""
    found = []
    for event in re.split(r"\r?\n\r?\n|\r\r", text):
        lines = [line[5:].removeprefix(" ") for line in event.splitlines() if line.startswith("data:")]
        data = "\n".join(lines).strip()
        if not data or data == "[DONE]":
            continue
        # Some servers leave out the empty lines between events.
        for one in [data] if _is_json(data) else [line for line in lines if line.strip() not in ("", "[DONE]")]:
            try:
                value = json.loads(one, strict=False)
            except (ValueError, RecursionError) as error:
                raise UnreadableError(f"Its stream is broken or cut off ({error}).", broken=True) from None
            if isinstance(value, dict):
                found.append(value)
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _joined(events: list[dict[str, Any]], ended: bool) -> dict[str, Any]:
    """The chat completion that streamed events add up to."""
    parts: dict[str, list[Any]] = {}
    finish: Any = None
    usage: Any = None
    seen = False
    for event in events:
        usage = event.get("usage") or usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        if choice is None:
            if event.get("error"):
                return event
            continue
        seen = True
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if value is not None:
                before = parts.setdefault(name, [])
                if not (before and type(before[0]) is type(value) and isinstance(value, str | list) and name != "role"):
                    before.clear()
                before.append(value)
    if not seen and events:
        return events[-1]
    if not seen:
        raise UnreadableError("Its stream of events holds no answer.", broken=True)
    if not ended and finish is None:
        raise UnreadableError("Its stream of events is cut off.", broken=True)
    message = {name: _whole(values) for name, values in parts.items()}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _whole(parts: list[Any]) -> Any:
    """One value from the parts of a text or of a list, or the only part."""
    if isinstance(parts[0], str):
        return "".join(parts)
    return [one for part in parts for one in part] if isinstance(parts[0], list) else parts[0]


def _without_choices(body: Mapping[str, Any], said: Collection[str]) -> Exception:
    """The error for a body that has no answer."""
    feedback = body.get("prompt_feedback") or body.get("promptFeedback")
    blocked = isinstance(feedback, dict) and any("block" in str(name).lower() for name in feedback)
    reports = ("error", "errors", "detail", "message", "msg", "base_resp", "error_msg", "error_code", "errorCode")
    reported = [name for name in reports if body.get(name) and not (name == "message" and isinstance(body[name], dict))]
    if blocked or body.get("contentFilter") or reported:
        found = problem_in(body, 200, said, reported=False)
        if blocked and not found.filtered:
            found = Problem(400, found.message, ("content_filter", *found.codes), reported=False)
        return ReportedError(found)
    if "choices" in body:
        return UnreadableError("It holds no answer (choices is empty).", broken=True)
    return UnreadableError("It has no field choices.", broken=False)


def _read_choice(choice: Mapping[str, Any], body: Mapping[str, Any]) -> Reply:
    message = choice.get("message") or choice.get("delta")
    if message is None:
        message = {"content": choice.get("text")}
    if not isinstance(message, dict):
        raise UnreadableError("Its field message is not an object.", broken=False)
    text, reasoning = _content(message.get("content"))
    reasoning = next((found for name in _REASONING if (found := _text(message.get(name)))), "") or reasoning
    reasoning = reasoning or "".join(_text(message.get(name)) for name in _REASONING_PARTS)
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip() and refusal not in text:
        text = f"{text}\n{refusal}".lstrip("\n")
    finish = str(choice.get("finish_reason") or choice.get("stop_reason") or "").lower()
    if finish == "error":
        raise ReportedError(problem_in(choice, 503, reported=True))
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    assert isinstance(usage, dict)
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    return Reply(
        text=well_formed(text or _calls(message)),
        reasoning=well_formed(reasoning),
        finish=finish,
        filtered=_filter_of(choice, finish) if _FILTERS.fullmatch(finish) else "",
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
        hidden_tokens=(_count(details, "reasoning_tokens") or 0) if isinstance(details, dict) else 0,
    )


def _filter_of(choice: Mapping[str, Any], finish: str) -> str:
    """The name of the filter, with the categories of harm that it reports."""
    results = choice.get("content_filter_results") or choice.get("content_filter_result")
    names = [
        str(name)
        for name, found in (results.items() if isinstance(results, dict) else ())
        if isinstance(found, dict) and found.get("filtered")
    ]
    return f"{finish} ({', '.join(names)})" if names else finish


def _content(content: Any) -> tuple[str, str]:
    """Text and reasoning of a message's content: a text, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise UnreadableError("Its field content is neither a text nor a list of parts.", broken=False)
    texts, thoughts = [], []
    for one in content:
        kind = str(one.get("type") or "").lower() if isinstance(one, dict) else ""
        if "think" in kind or "reason" in kind:
            thoughts.append(_text(one))
        elif not kind or "text" in kind or kind == "refusal":
            texts.append(_text(one))
    return "".join(texts), "".join(thoughts)


def _text(value: Any, depth: int = 0) -> str:
    """The text in a part of a message, in whatever it is wrapped."""
    if isinstance(value, str):
        return value
    if depth < 8 and isinstance(value, list):
        return "".join(_text(one, depth + 1) for one in value)
    if depth < 8 and isinstance(value, dict):
        names = ("text", "value", "content", "thinking", "reasoning", "summary", "refusal")
        return next((found for name in names if (found := _text(value.get(name), depth + 1))), "")
    return ""


def _calls(message: Mapping[str, Any]) -> str:
    """The calls of functions in a message without text, as the model writes them: JSON."""
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    functions = [one.get("function") for one in calls if isinstance(one, dict)] if isinstance(calls, list) else []
    return "\n".join(
        json.dumps({"name": one.get("name"), "arguments": one.get("arguments")}, ensure_ascii=False, default=str)
        for one in functions
        if isinstance(one, dict)
    )


def _count(counts: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = counts.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
            return int(value)
    return None


def _first(value: Any, *names: str) -> str:
    found = (value.get(name) for name in names) if isinstance(value, dict) else iter(())
    return next((one for one in found if isinstance(one, str) and one), "")
