"""What a server accepts in a request: learned from its rejections, once, and remembered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safety_neurons.engines.problems import Problem

Messages = list[dict[str, str]]
# A parameter with the value that was rejected; None if the server does not know the parameter at all.
_Rejected = tuple[str, float | None]

# Parameters that a request can go without, the least important first.
_OPTIONAL = ("top_p", "seed", "temperature")
_NOT_KNOWN = re.compile(
    r"not support|unsupported|n't support|unknown|unrecognized|unexpected|not permitted|not allowed|forbid|extra "
    r"(?:input|field|param)|deprecated|not accept|no longer|not available|removed|max_completion_tokens",
    re.IGNORECASE,
)
_NOT_ALLOWED = re.compile(
    _NOT_KNOWN.pattern + r"|invalid|cannot|can't|can not|must|only|should|out of range|between|greater|less|positive"
    r"|is fixed|incompatible|both be specified",
    re.IGNORECASE,
)
_POSITIVE = re.compile(r"positive|greater than (?:0|zero)|> ?0|\((?:0|0\.0), ?\d", re.IGNORECASE)
# As close to greedy as servers get that reject 0.
NEARLY_GREEDY = 0.01
_ONLY_STREAMS = re.compile(
    r"only supports? (?:the )?stream|stream(?:ing)?(?: mode)? (?:is required|only)|enable the stream"
    r"|non-streaming calls?|stream.{0,20}must be (?:set to )?true|non-stream\w* .{0,30}not supported",
    re.IGNORECASE,
)
_NO_SYSTEM = re.compile(
    r"system\W{0,3}(?: \w+){0,3} (?:is |are )?(?:not|un)[ -]?(?:supported|allowed|enabled|permitted|available)"
    r"|(?:not|n't) (?:support|allow|accept|have|enable)\w* .{0,40}\bsystem\b|no system (?:role|prompt|message)"
    r"|developer instruction is not enabled|only user(?:,| and) (?:\w+(?:,| and) )?assistant roles"
    r"|roles must alternate|(?:invalid|unexpected|unsupported|unknown) role\W{0,4}(?:\w+\W{0,3})?system",
    re.IGNORECASE,
)


@dataclass
class Parameters:
    """How requests to one server must be changed.

    `reasoning_tokens` is the number of tokens that an answer gets on top, for the server's reasoning;
    `filter_checked`: whether it is known if the content filter lets anything pass.
    """

    changes: dict[_Rejected, tuple[str, Any] | None] = field(default_factory=dict)
    folds_system: bool = False
    streams: bool = False
    reasoning_tokens: int = 0
    filter_checked: bool = False

    def adjusted(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request without what the server rejects."""
        found: dict[str, Any] = {"stream": True} if self.streams else {}
        for name, value in settings.items():
            change = self._change(name, value)
            if change is not None:
                found[change[0]] = change[1]
        return found

    def folded(self, messages: Messages) -> Messages:
        """The messages, with a system prompt before the user's first turn if the server has no system role."""
        if not self.folds_system or messages[0]["role"] != "system" or len(messages) < 2:
            return messages
        system, user, *rest = messages
        return [{"role": user["role"], "content": f"{system['content']}\n\n{user['content']}"}, *rest]

    def learn(self, problem: Problem, settings: Mapping[str, Any], messages: Messages) -> str | None:
        """Change what a rejection is about; returns what to tell the user.

        Empty if it was known, and the same request can succeed now; None if nothing can be changed.

        Args:
            settings, messages: what was sent.
        """
        if problem.status not in (400, 404, 415, 422, 500, 501) or problem.filtered or problem.too_long:
            return None
        if messages[0]["role"] == "system" and len(messages) > 1 and _NO_SYSTEM.search(problem.message):
            known, self.folds_system = self.folds_system, True
            return "" if known else "has no system role: the system prompt is put before the user's first turn."
        if "stream" not in settings and _ONLY_STREAMS.search(problem.message):
            known, self.streams = self.streams, True
            return "" if known else "answers as a stream only, which is read to its end."
        if "max_tokens" in settings and _concerns(problem, "max_tokens", _NOT_KNOWN):
            note = "does not accept max_tokens: max_completion_tokens is sent in its place."
            return self._note(("max_tokens", None), ("max_completion_tokens", None), note)
        for name in sorted(_OPTIONAL, key=lambda name: name not in problem.parameters):
            if name in settings and _concerns(problem, name, _NOT_ALLOWED):
                return self._without(name, settings[name], problem)
        return None

    def _without(self, name: str, value: float, problem: Problem) -> str:
        if name != "temperature":
            return self._note((name, None), None, f"does not accept {name}, which is left out.")
        if value == 0 and _POSITIVE.search(problem.message):
            note = f"does not accept temperature 0: its answers are not greedy, but sampled at {NEARLY_GREEDY}."
            return self._note((name, value), (name, NEARLY_GREEDY), note)
        if value > 1:
            return self._note((name, value), (name, 1.0), f"does not accept temperature {value:g}: 1 is sent instead.")
        how = "its answers are not greedy, but sampled" if value in (0, NEARLY_GREEDY) else "it samples"
        note = f"does not accept temperature {value:g}: {how} at the temperature that it sets itself."
        return self._note((name, value), None, note)

    def _note(self, rejected: _Rejected, change: tuple[str, Any] | None, note: str) -> str:
        if rejected in self.changes:
            return ""
        self.changes[rejected] = change
        return note

    def _change(self, name: str, value: Any) -> tuple[str, Any] | None:
        for rejected in ((name, None), (name, value)):
            if rejected in self.changes:
                change = self.changes[rejected]
                if change is None:
                    return None
                renamed = (change[0], value if change[1] is None else change[1])
                return renamed if renamed[0] != name else self._change(*renamed)
        return name, value


def _concerns(problem: Problem, name: str, how: re.Pattern[str]) -> bool:
    """Whether the rejection is about a parameter."""
    named = name in problem.parameters or re.search(rf"(?<![\w-]){name}(?![\w-])", problem.message)
    return bool(named) and bool(how.search(problem.words))
