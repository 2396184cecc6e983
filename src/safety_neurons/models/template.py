"""Chat templates: read from files, and rendered so that no word of a conversation is lost or changed."""

import contextlib
import datetime
import functools
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jinja2

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import read_object
from safety_neurons.models import bounded_jinja

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]

# A template is code: its filters and operators raise Python's errors, too.
TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError),
)
# Templates that write the current date would make the prompts, and so the results, depend on the day. Llama 3 falls
# back to this date where there is no clock.
TODAY = datetime.datetime(2024, 7, 26, 12)
_WITH_CHANGES = "Pass a template that writes every turn's content once and unchanged (chat_template)."


class Turn(NamedTuple):
    """One message."""

    role: Role
    content: str


def read_template(path: Path) -> str:
    """The Jinja template in a UTF-8 file, without a byte-order mark.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, or holds no template.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SafetyNeuronsError(f"The chat template {path} does not exist. Check the path.") from error
    except IsADirectoryError as error:
        raise SafetyNeuronsError(f"The chat template {path} is a folder. Name a file with a Jinja template.") from error
    except UnicodeDecodeError as error:
        raise SafetyNeuronsError(
            f"The chat template {path} is not UTF-8 text: invalid byte at offset {error.start}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise SafetyNeuronsError(f"The chat template {path} cannot be read ({error.strerror}).") from error
    if not is_jinja(text):
        holds = "holds no Jinja, so that it would write the same for all prompts" if text.strip() else "is empty"
        raise SafetyNeuronsError(f"The chat template {path} {holds}. Name a file with a Jinja template.")
    return text


def is_jinja(text: str) -> bool:
    """Whether a text is a template, not a name."""
    return "{{" in text or "{%" in text


def named_or_read(value: str | Path) -> str:
    """A template's text, or the name that a tokenizer may have for one: from a text, a path or a name.

    Raises:
        SafetyNeuronsError: the file is missing or unreadable, or holds no template.
    """
    if isinstance(value, str) and is_jinja(value):
        return value
    path = Path(value)
    is_path = path.suffix or len(path.parts) > 1 or os.path.isfile(path)
    return read_template(path) if is_path else str(value)


def template_of_processor(folder: Path) -> str | None:
    """The template in chat_template.json, where processors of images and text kept theirs; None without this file."""
    path = folder / "chat_template.json"
    advice = "Correct it, or pass a template (chat_template)."
    template = read_object(path, advice).get("chat_template") if path.is_file() else None
    return template if isinstance(template, str) and is_jinja(template) else None


def check_syntax(text: str, value: str | Path) -> None:
    """Raise SafetyNeuronsError for a template, named or read from `value`, that is not one."""
    try:
        _compiled(text)
    except jinja2.TemplateSyntaxError as error:
        name = "" if value == text else f" {value}"
        raise SafetyNeuronsError(
            f"The chat template{name} is not valid Jinja: {error.message} (line {error.lineno}). Correct it."
        ) from error


def chosen_template(tokenizer: "PreTrainedTokenizerBase", value: str, model: str) -> str:
    """A template's text, or the text of the tokenizer's template of this name.

    Raises:
        SafetyNeuronsError: the tokenizer has no such template.
    """
    own = tokenizer.chat_template
    if is_jinja(value):
        return value
    if isinstance(own, dict) and value in own:
        return str(own[value])
    has = f"has the templates {', '.join(own)}" if isinstance(own, dict) and own else "has no templates with names"
    raise SafetyNeuronsError(
        f"{value!r} is neither a file nor a name of a chat template: the tokenizer of {model} {has}. Name a file with "
        "a Jinja template."
    )


class _Form(NamedTuple):
    """How a template writes turns of certain roles.

    `text` is without white space and has a mark in place of each turn's content. `parts` are the roles whose content
    the template wants as a list of parts.
    """

    text: str
    parts: frozenset[Role]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer. `options` are its arguments; `model` is the model's name in messages."""

    tokenizer: "PreTrainedTokenizerBase"
    model: str
    options: Mapping[str, Any]
    # By the template's text and the roles of the turns; a text says what is wrong.
    _forms: dict[tuple[str, tuple[Role, ...]], _Form | str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The template.

        Raises:
            SafetyNeuronsError: the tokenizer has none, or several and no default.
        """
        text = self.tokenizer.chat_template
        if isinstance(text, dict):
            if text and "default" not in text:
                raise SafetyNeuronsError(
                    f"The tokenizer of {self.model} has several chat templates ({', '.join(text)}) and no "
                    "default. Choose one by its name (chat_template)."
                )
            text = text.get("default")
        # The mark of a file that was saved with one.
        text = (text or "").removeprefix("\ufeff")
        if not text.strip():
            raise SafetyNeuronsError(
                f"{self.model} has no chat template: it is a base model, or its tokenizer was saved without one. "
                "Choose the instruction-tuned version, or pass a template (chat_template)."
            )
        return text

    def render(self, turns: Sequence[Turn]) -> str:
        """Write turns up to the beginning of the assistant's answer.

        A system prompt goes before the first user turn if the template has no system role.

        Raises:
            SafetyNeuronsError: the template cannot render these turns, or does not write the content of each of them
                once and unchanged, except for white space.
        """
        form = self._form(_roles(turns))
        if isinstance(form, str) and turns[0].role == "system":
            system, first, *others = turns
            turns = [Turn(first.role, f"{system.content}\n\n{first.content}"), *others]
            form = self._form(_roles(turns))
            if not isinstance(form, str):
                self._note("has no system role: the prompt is put before the user turn")
        if isinstance(form, str):
            raise SafetyNeuronsError(form)
        text = self._apply(turns, form.parts)
        self._check(turns, form, text)
        return text

    def turn_end(self) -> str:
        """What the template writes after the assistant's turn; empty if it writes nothing, or cannot write one."""
        turns = _marked(("user", "assistant"))
        for parts in (frozenset[Role](), frozenset(_roles(turns))):
            with contextlib.suppress(SafetyNeuronsError):
                _, found, after = self._apply(turns, parts, answer=False).rpartition(turns[-1].content)
                if found:
                    return after
        return ""

    def _form(self, roles: tuple[Role, ...]) -> _Form | str:
        key = (self.text, roles)
        if key not in self._forms:
            self._forms[key] = self._try(roles)
        return self._forms[key]

    def _try(self, roles: tuple[Role, ...]) -> _Form | str:
        """Render marks, with the content of each role as a text or as a list of parts, until all are written once."""
        turns, kinds = _marked(roles), tuple(dict.fromkeys(roles))
        problems = []
        for choice in itertools.product((False, True), repeat=len(kinds)):
            parts = frozenset(itertools.compress(kinds, choice))
            try:
                text = self._apply(turns, parts)
                problem = self._problem(turns, text, self._apply(turns, parts))
            except SafetyNeuronsError as error:
                problem = str(error)
            if not problem:
                self._say(turns, parts, text)
                return _Form(_squeezed(text), parts)
            problems.append(problem)
        return problems[0]

    def _problem(self, turns: Sequence[Turn], text: str, again: str) -> str:
        if again != text:
            return f"The chat template of {self.model} writes another text each time. {_WITH_CHANGES}"
        squeezed = _squeezed(text)
        for index, turn in enumerate(turns):
            times = squeezed.count(_squeezed(turn.content))
            if times == 1:
                continue
            changed = "changes (escapes, for example)" if _mark(index) in text else "leaves out"
            what = f"writes {times} times" if times else changed
            return f"The chat template of {self.model} {what} the content of the {turn.role} turn. {_WITH_CHANGES}"
        return ""

    def _check(self, turns: Sequence[Turn], form: _Form, text: str) -> None:
        squeezed, expected = _squeezed(text), form.text
        for index, turn in enumerate(turns):
            expected = expected.replace(_squeezed(_marked_content(index)), _squeezed(turn.content))
        if squeezed == expected:
            return
        # Templates may write other things around some contents, and leave thoughts out of earlier answers.
        for turn in turns:
            if turn.role != "assistant" and _squeezed(turn.content) not in squeezed:
                raise SafetyNeuronsError(
                    f"The chat template of {self.model} changes the content of a {turn.role} turn: what begins with "
                    f"{turn.content.strip()[:60]!r} is not in the text that it writes. {_WITH_CHANGES}"
                )

    def _say(self, turns: Sequence[Turn], parts: frozenset[Role], text: str) -> None:
        """Tell what is unusual about the template, once."""
        if "strftime_now" in self.text:
            self._note(f"writes the current date: it is always {TODAY:%Y-%m-%d} here, so that results do not change")
        answered = _marked((*_roles(turns), "assistant"))
        try:
            closed = self._apply(turns, parts, answer=False)
            whole = self._apply(answered, parts | ({"assistant"} if parts else set()), answer=False)
        except SafetyNeuronsError:
            return
        before, found, _ = whole.partition(answered[-1].content)
        # Some templates end the user's turn with what opens the assistant's (Llama 2, Mistral), and need no more.
        if found and text == closed and before.startswith(text) and before[len(text) :].strip():
            self._note(
                "does not open the assistant's turn (add_generation_prompt has no effect): the model may go on with "
                "the user's"
            )

    def _note(self, problem: str) -> None:
        # Python shows the same text from the same line once.
        warnings.warn(f"The chat template of {self.model} {problem}.", stacklevel=1)

    def _apply(self, turns: Iterable[Turn], parts: frozenset[Role], *, answer: bool = True) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": content}] if role in parts else content}
            for role, content in turns
        ]
        # As `apply_chat_template` passes them.
        variables = {**self.tokenizer.special_tokens_map, "tools": None, "documents": None, **self.options}
        variables["add_generation_prompt"] = answer
        try:
            return bounded_jinja.render(_compiled(self.text), messages, **variables)
        except bounded_jinja.TooMuchWorkError as error:
            raise SafetyNeuronsError(
                f"The chat template of {self.model} was stopped: {error}. Pass another template (chat_template)."
            ) from error
        except TEMPLATE_ERRORS as error:
            # The text of a syntax error has several lines.
            reason = error.message if isinstance(error, jinja2.TemplateError) else error
            raise SafetyNeuronsError(f"The chat template of {self.model} cannot be rendered: {reason}") from error


def _strftime(format: str) -> str:
    return TODAY.strftime(format)


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    return _environment().bounded(text)


@functools.cache
def _environment() -> bounded_jinja.BoundedEnvironment:
    return bounded_jinja.BoundedEnvironment(_strftime)


def _roles(turns: Iterable[Turn]) -> tuple[Role, ...]:
    return tuple(turn.role for turn in turns)


def _marked(roles: Sequence[Role]) -> list[Turn]:
    return [Turn(role, _marked_content(index)) for index, role in enumerate(roles)]


def _marked_content(index: int) -> str:
    # With what HTML and JSON escape.
    return f"""{_mark(index)} <b> & "c" 'd' {_mark(index)}"""


def _mark(index: int) -> str:
    return f"Xq{index}probe{index}qX"


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim."""
    return "".join(text.split())
