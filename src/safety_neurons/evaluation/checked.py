"""Members of the families where they are called: what they return is checked, as their code may be a user's."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NoReturn

import torch

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import raised_in, user_file
from safety_neurons.evaluation.contracts import (
    Attack,
    Defended,
    Defense,
    EvaluationContext,
    Judge,
    JudgeInput,
    Judgment,
    Response,
)
from safety_neurons.models.chat import AttackedPrompt


def judgments(
    judge: Judge, exchanges: Sequence[JudgeInput], done: frozenset[int] = frozenset()
) -> Iterator[tuple[int, Judgment]]:
    """`Judge.judge_all`, checked.

    Raises:
        SafetyNeuronsError: the judge gives something else, or nothing for an exchange; or its file fails.
    """
    missing = set(range(len(exchanges))) - done
    with _failures("judge", judge):
        for one in judge.judge_all(exchanges, done):
            match one:
                case (int() as index, Judgment() as found) if 0 <= index < len(exchanges):
                    missing.discard(index)
                    yield index, found
                case (int(), other):
                    _refuse("judge", judge, other, "a Judgment of each response")
                case other:
                    _refuse("judge", judge, other, "a Judgment of each response")
    if missing:
        _refuse("judge", judge, None, "a Judgment of each response")


def attacked(
    attack: Attack, requests: Sequence[str], defended: Defended, context: EvaluationContext
) -> Sequence[AttackedPrompt | None]:
    """`Attack.prompts`, checked; errors as `judgments`, and CannotRunError."""
    with _failures("attack", attack):
        found = attack.prompts(requests, defended, context)
    _check("attack", attack, found, len(requests), _is_prompt, "a sequence with an AttackedPrompt or None a request")
    return found


def returned(
    attack: Attack, responses: Sequence[Response], defended: Defended, context: EvaluationContext
) -> Sequence[Response]:
    """`Attack.returned`, checked; errors as `attacked`."""
    with _failures("attack", attack):
        found = attack.returned(responses, defended, context)
    _check("attack", attack, found, len(responses), _is_response, "a sequence with a Response to each prompt")
    return found


@contextlib.contextmanager
def opened(defense: Defense, context: EvaluationContext) -> Iterator[Defended]:
    """`Defense.opened`, checked, and so is what it responds; errors as `attacked`."""
    with contextlib.ExitStack() as stack:
        with _failures("defense", defense):
            found: Any = defense.opened(context)
            if isinstance(found, AbstractContextManager):
                found = stack.enter_context(found)
        if not isinstance(found, Defended):
            _refuse("defense", defense, found, "a context manager that gives a Defended")
        respond = found.respond

        def checked(prompts: Sequence[AttackedPrompt]) -> list[Response]:
            with _failures("defense", defense):
                responses = respond(prompts)
            wanted = "a list with a Response to each prompt"
            _check("defense", defense, responses, len(prompts), _is_response, wanted)
            return responses

        yield replace(found, respond=checked)


def _is_prompt(one: Any) -> bool:
    return one is None or (
        isinstance(one, AttackedPrompt) and isinstance(one.user, str) and isinstance(one.prefill, str)
    )


def _is_response(one: Any) -> bool:
    return isinstance(one, Response) and isinstance(one.text, str)


def _check(kind: str, member: Any, found: Any, length: int, right: Callable[[Any], bool], wanted: str) -> None:
    if not isinstance(found, Sequence) or len(found) != length:
        _refuse(kind, member, found, f"{wanted}, {length} in all")
    for one in found:
        if not right(one):
            _refuse(kind, member, one, wanted)


def _refuse(kind: str, member: Any, found: Any, wanted: str) -> NoReturn:
    size = f" of {len(found)}" if isinstance(found, Sequence) and not isinstance(found, str) else ""
    raise SafetyNeuronsError(
        f"The {kind} {member.name} gave {found!r:.80} ({type(found).__name__}{size}) instead of {wanted}. Correct it, "
        f"or choose another {kind}."
    )


@contextlib.contextmanager
def _failures(kind: str, member: Any) -> Iterator[None]:
    """Name the member where code of a user's file fails; a failure of the project's own is a bug, and stays one."""
    try:
        yield
    except (SafetyNeuronsError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        # The code is the user's, so it can raise anything.
        if (file := user_file(member.name)) is None:
            raise
        raise SafetyNeuronsError(
            f"The {kind} {member.name} failed ({raised_in(file, error)}): {error}. Correct it, or choose another "
            f"{kind}."
        ) from error
