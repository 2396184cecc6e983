"""What a server reports instead of an answer: read from any of the forms that servers and gateways use."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from safety_neurons.core.addresses import without_secrets

# Names under which servers put messages, codes and the parameter at fault.
_MESSAGES = re.compile(
    r"message|msg|detail|raw|errors?|error_?(?:message|msg|description)|description|status_msg|title|blockreasonmessage"
)
_CODES = re.compile(r"(?:error_?|status_?)?code|type|status|reasons?|error_type|block_?reason|finish_?reason|object")
_PARAMETERS = frozenset(("param", "loc", "parameter", "field"))
# Fields that repeat the request.
_ECHOES = frozenset(("input", "flagged_input", "ctx", "body", "request", "messages", "prompt"))
_DEPTH = 8
# Of a long message, only its start and its end are read.
_START, _END = 3000, 1000
_CODE = 200
_LEAVES = 200

# Statuses that say nothing about one prompt: key, payment, proxy, time, conflict, rate.
GENERAL = (401, 402, 407, 408, 409, 429)

_FILTER_CODES = re.compile(
    r"content_?filter(?:ed)?|content_policy_?violation(?:error)?|responsibleaipolicyviolation|data_?inspection_?failed"
    r"|(?:content_|input_|output_)?moderation(?:_blocked)?|prohibited_content|(?:image_)?safety|blocked|blocklist"
    r"|recitation|spii|sensitive|guardrails?(?:_intervened)?|invalid_prompt|refusal|cyber_policy|1301|1026|1027",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content[_ -]?(?:filter|polic|moderation|management|inspection|safety|exists[_ -]risk|risk|violation|restriction)"
    r"|responsible ?ai|data[_ ]?inspection|\bmoderat(?:ion|ed)\b|prohibited[_ ](?:content|use)|usage polic"
    r"|(?:was|were|been|is|are|got|input|prompt|request|content) flagged|flagged (?:as|by|for|because)"
    r"|safety (?:system|filter|setting|reason|polic|check|guard|violation|rating)|guard ?rails?\b"
    r"|(?:blocked|filtered|rejected|refused|stopped) (?:by|due to|because of|for) .{0,40}"
    r"(?:safety|polic|filter|moderation|guard|content|harm|high risk)"
    r"|considered high risk|inappropriate content|sensitive (?:word|content|topic|info)|new_sensitive"
    r"|unsafe (?:content|prompt|input)|harmful (?:content|categor)"
    r"|(?:prompt|input|response|output|message)s? (?:was|were|is|has been) (?:blocked|filtered|censored)"
    r"|violat\w* .{0,60}(?:polic|guideline|terms)|sexual/minors|敏感|不安全|违规|审核不通过|内容安全",
    re.IGNORECASE,
)
# What concerns the account and not the prompt.
_ACCOUNT = re.compile(
    r"\b(?:account|organi[sz]ation|project|api key|subscription|user|ip(?: address)?|billing)s?\b.{0,30}"
    r"\b(?:suspended|blocked|disabled|banned|deactivated|terminated|restricted)",
    re.IGNORECASE,
)
_LONG_CODES = re.compile(
    r"(?:model_)?context_?(?:length|window)_?exceeded(?:error)?|exceed_context_size_error|string_above_max_length"
    r"|request_too_large|prompt_too_long",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[_ -]?(?:length|window|size)|exceed_context|max_model_len|when context the overflows"
    r"|max(?:imum)?[_ ](?:allowed )?(?:context|model|input|prompt|sequence)[_ ](?:len|size|tok)"
    r"|(?:prompt|input|request|conversation|message|text|content|sequence)s?(?: \([^)]{0,80}\))? (?:is|are|was|were) "
    r"(?:too (?:long|large|big)|longer)|too many (?:input |prompt )?tokens|longer than the (?:max|model|context)"
    r"|(?:entity|payload|body|request|prompt|input)(?: body)? too (?:large|long)|too large for model"
    r"|`inputs` tokens|must have less than \d+ tokens|range of input length|token (?:count|limit).{0,40}exceed"
    r"|(?:prompt|input)\b.{0,60}\bexceed.{0,60}(?:token|length|limit)|exceed\w* .{0,40}maximum.{0,30}tokens"
    r"|reduce (?:the |your )?(?:length|size) of|上下文长度|超过.{0,10}长度",
    re.IGNORECASE,
)
_TEMPORARY = re.compile(
    r"rate[_ -]?limit|too[_ ]many[_ ]requests|overload|timed?[_ -]?out|temporar|try again|retry|unavailable|capacity"
    r"|\bbusy\b|loading|server_error|internal[_ ](?:server[_ ])?error|bad gateway|upstream|connection (?:reset|error)",
    re.IGNORECASE,
)
_NO_SUCH_URL = re.compile(r"unexpected endpoint|unknown (?:endpoint|url|path|route)|no route", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """What a server reports: the status, the message, and the codes and parameters that it names.

    `reported`: the status is that of the response, and not only in the body of a 200. `page`: the body is a web page,
    as proxies and firewalls send them.
    """

    status: int
    message: str
    codes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    reported: bool = True
    page: bool = False

    def without(self, secrets: Collection[str]) -> "Problem":
        """The same where the server repeats none of its secrets; those that are words may be part of its message."""
        codes, parameters, categories = (
            tuple(without_secrets(one, secrets) for one in several)
            for several in (self.codes, self.parameters, self.categories)
        )
        message = without_secrets(self.message, secrets)
        return replace(self, message=message, codes=codes, parameters=parameters, categories=categories)

    @property
    def label(self) -> str:
        """The status, for messages."""
        return f"status {self.status}" if self.reported else "an error in a response of status 200"

    @property
    def words(self) -> str:
        return " ".join([*self.codes, self.message])

    @property
    def filtered(self) -> str:
        """The reason of a content filter; empty if none blocked the request."""
        if self.status in GENERAL or self.status == 404 or _ACCOUNT.search(self.message):
            return ""
        code = next(filter(_FILTER_CODES.fullmatch, self.codes), "")
        # The page of a proxy may speak of content filters, too, but it concerns the whole server.
        if not code and (self.page or self.status >= 500 or not _FILTERED.search(self.words)):
            return ""
        categories = f" ({', '.join(dict.fromkeys(self.categories))})" if self.categories else ""
        return f"{code or 'content filter'}{categories}: {_first_sentence(self.message)}".rstrip(": ")

    @property
    def too_long(self) -> bool:
        """Whether the prompt, with the room for its answer, is too long for the model or the server."""
        if self.filtered:
            return False
        # Some limits per minute are lower than one request, so waiting does not help.
        if self.status in GENERAL:
            return self.status == 429 and "request too large" in self.message.lower()
        return (
            self.status in (413, 414)
            or any(map(_LONG_CODES.fullmatch, self.codes))
            or bool(_TOO_LONG.search(self.words))
        )

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 409, 425, 429) or self.status >= 500

    @property
    def concerns_prompt(self) -> bool:
        """Whether the prompt may be the cause: others can succeed."""
        return self.too_long or (400 <= self.status <= 501 and self.status not in GENERAL)

    @property
    def summary(self) -> str:
        """Why the prompt was not run, the same for all prompts if the cause is the same."""
        if self.too_long:
            return f"too long for the server ({self.label}): {_first_sentence(self.message)}"
        return f"rejected by the server ({self.label}): {self.message}"


def problem_in(body: Any, status: int, said: Collection[str] = (), reported: bool = True) -> Problem:
    """The problem in a response's body, JSON or text.

    Args:
        said: texts of the request, which do not count where the server repeats them.
        reported: see `Problem`.
    """
    messages: list[str] = []
    codes: list[str] = []
    parameters: list[str] = []
    categories: list[str] = []
    for number, (name, value) in enumerate(_leaves(body)):
        if number > _LEAVES:
            break
        if name in _PARAMETERS:
            parameters.append(str(value)[:_CODE])
        elif _CODES.fullmatch(name):
            codes.append(str(value)[:_CODE])
        elif _MESSAGES.fullmatch(name) and isinstance(value, str) and value.strip():
            messages.append(value.strip())
        elif name.endswith(":filtered") and value is True:
            categories.append(name.removesuffix(":filtered"))
    codes = [code for code in codes if code not in ("error", "invalid_request_error", "None", "False", "True")]
    reasons = _part(body, "error", "metadata", "reasons")
    categories += [str(one)[:_CODE] for one in reasons[:_LEAVES]] if isinstance(reasons, list) else ()
    text = body if isinstance(body, str) else " ".join(dict.fromkeys(messages)) or json.dumps(body, default=str)
    for one in said:
        if len(one) > 3:
            text = text.replace(one, "...")
    if len(text) > _START + _END:
        text = f"{text[:_START]} ... {text[-_END:]}"
    if reported:
        known = status
    else:
        numbers = [int(code) for code in codes if code.isdigit() and 400 <= int(code) < 600]
        known = numbers[0] if numbers else _status_of(f"{' '.join(codes)} {text}")
    return Problem(known, text, tuple(codes), tuple(parameters), tuple(categories), reported)


def _status_of(words: str) -> int:
    if _NO_SUCH_URL.search(words):
        return 404
    if re.search(r"rate[_ -]?limit|too[_ ]many[_ ]requests", words, re.IGNORECASE):
        return 429
    return 503 if _TEMPORARY.search(words) else 400


def _part(body: Any, *names: str) -> Any:
    for name in names:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The (name, value) of all plain values, but for those that repeat the request."""
    if depth > _DEPTH:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            plain = str(key).lower()
            if plain == "filtered":
                yield f"{name}:filtered", inner
            elif plain not in _ECHOES:
                yield from _leaves(inner, plain, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name, depth + 1)
    elif isinstance(value, str) and value.lstrip().startswith(("{", "[")) and _MESSAGES.fullmatch(name):
        # A gateway passes on the provider's error as text.
        try:
            yield from _leaves(json.loads(value, strict=False), name, depth + 1)
        except (ValueError, RecursionError):
            yield name, value
    else:
        yield name, value


def _first_sentence(text: str) -> str:
    line = " ".join(text.split())
    return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0][:200]
