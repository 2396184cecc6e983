"""The user's request in a conversation, as chat models' training sets and servers' batch files write it.

The request is the user's first turn: what the user says before the first answer. It needs nothing that was said before,
which later turns do.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
_OTHER_ROLES = (
    *("tool", "tool_call", "tool_calls", "tool_response", "tool_result", "function", "function_call"),
    *("function_response", "observation", "ipython", "environment", "context"),
)
_ROLE_KEYS = ("role", "from", "author", "speaker")
_TEXT_KEYS = ("content", "value", "text", "parts")
_LISTS = ("messages", "conversations", "conversation", "contents")
# Both sides of an exchange in one object.
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("prompt", "response"))


class NotAConversation(ValueError):
    """The message says why, for use within a sentence."""


@dataclass(frozen=True)
class Message:
    """`role` is system, user, assistant or other."""

    role: str
    text: str


@dataclass(frozen=True)
class Request:
    """The user's first turn, and what of the conversation is not in it."""

    text: str
    system: bool
    later_turns: bool


def looks_like_conversation(value: Any) -> bool:
    """Whether a value is meant as messages: a list of objects, an object with such a list, or either as a string."""
    if isinstance(value, str):
        return _unquoted(value) is not None
    if isinstance(value, Mapping):
        return any(isinstance(value.get(name), list) for name in _LISTS)
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def request_of(messages: Sequence[Message]) -> Request:
    """The user's first turn: all that the user says before the first answer to it.

    Raises:
        NotAConversation: the user says nothing.
    """
    start = next((place for place, one in enumerate(messages) if one.role == "user"), None)
    if start is None:
        raise NotAConversation("has no message of the user")
    end = next(
        (place for place, one in enumerate(messages) if place > start and one.role == "assistant"), len(messages)
    )
    said = [one.text.strip() for one in messages[start:end] if one.role == "user" and one.text.strip()]
    system = any(one.role == "system" and one.text.strip() for one in messages)
    return Request("\n\n".join(said), system, any(one.role == "user" for one in messages[end:]))


def messages_of(value: Any) -> list[Message]:
    """The messages of a conversation.

    Raises:
        NotAConversation: it has another form.
    """
    if isinstance(value, str):
        value = _unquoted(value)
    if isinstance(value, Mapping):
        value = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), None)
    if not isinstance(value, list) or not value:
        raise NotAConversation("is not a list of messages")
    messages: list[Message] = []
    for one in value:
        if not isinstance(one, Mapping):
            raise NotAConversation("has a message that is not an object")
        messages += _read(one)
    return messages


def _read(message: Mapping[str, Any]) -> list[Message]:
    for user, assistant in _PAIRS:
        if user in message and assistant in message:
            return [Message("user", _text(message[user])), Message("assistant", _text(message[assistant] or ""))]
    role = next((message[key] for key in _ROLE_KEYS if key in message), None)
    if isinstance(role, Mapping):
        role = role.get("role")
    if not isinstance(role, str):
        raise NotAConversation("has a message without a role (`role` or `from`)")
    name = role.strip().casefold()
    if name in _OTHER_ROLES:
        return [Message("other", "")]
    if name not in ROLES:
        raise NotAConversation(f"has a message with the unknown role {role!r} (known: {', '.join(ROLES)})")
    content = next((message[key] for key in _TEXT_KEYS if key in message), None)
    # A call of a tool has no text.
    if content is None and ROLES[name] != "user":
        return [Message(ROLES[name], "")]
    return [Message(ROLES[name], _text(content))]


def _text(content: Any) -> str:
    """The text of a message: a string, or parts such as {"type": "text", "text": "..."}."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = content.get("parts", [content])
    if not isinstance(content, list) or not content:
        raise NotAConversation("has a message without text (`content` or `value`)")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise NotAConversation(f"has a message with a part that is not text ({kind})")
        texts.append(text)
    return "\n".join(texts)


def _unquoted(text: str) -> list[Any] | dict[str, Any] | None:
    """The list of messages that a table's cell holds as JSON or, written by pandas, as Python; None if it has none."""
    stripped = text.strip()
    if not stripped.startswith(("[{", "[ {", "[\n", '{"messages"', "{'messages'")) or not stripped.endswith(("]", "}")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(stripped)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        found: list[Any] | dict[str, Any] | None = value if looks_like_conversation(value) else None
        first = found[0] if isinstance(found, list) else found
        return found if first and {*_ROLE_KEYS, *_LISTS} & set(first) else None
    return None
