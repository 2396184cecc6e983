"""Answers that are kept as they come, so that a killed run goes on, and that are judged once."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from safety_neurons.core.files import JsonlCache, append_line, fingerprint, read_lines
from safety_neurons.core.progress import Listener
from safety_neurons.evaluation.judges import RuleJudge, Verdict
from safety_neurons.models.chat import AttackedPrompt, ChatModel
from safety_neurons.models.generate import Completion, Sampling, generate
from safety_neurons.prompts import Prompt
from safety_neurons.runs.folder import RunFolder


class Generate(Protocol):
    """What answers rendered texts: `models.generate.generate`, or something that gives the same."""

    def __call__(
        self, model: ChatModel, texts: Sequence[str], *, max_new_tokens: int, batch_size: int, done: frozenset[int]
    ) -> Iterator[tuple[int, Completion]]: ...


@dataclass(frozen=True)
class Condition:
    """Under what the model answers; `context` is the fingerprint of everything that the answers depend on."""

    subject: str
    name: str
    context: str


@dataclass(frozen=True)
class Answer:
    """One judged answer: what was sent, and what the model wrote after the prefill."""

    prompt: Prompt
    sent: AttackedPrompt
    continuation: str
    verdict: Verdict
    cut_off: bool

    @property
    def response(self) -> str:
        """The assistant's whole turn."""
        return f"{self.sent.prefill}{self.continuation}"


def ask(
    model: ChatModel,
    folder: RunFolder,
    listener: Listener,
    *,
    condition: Condition,
    set_name: str,
    prompts: Sequence[Prompt],
    sent: Sequence[AttackedPrompt],
    attack: str,
    judge: RuleJudge,
    answer_tokens: int,
    batch_size: int,
    sampling: Sampling | None = None,
    answering: Generate | None = None,
) -> list[Answer]:
    """The model's answers to what is sent for each prompt, judged; only those that are missing are generated.

    They are greedy unless `sampling` says otherwise.
    """
    texts = [model.render(request.user, request.prefill) for request in sent]
    drawn = [] if sampling is None else [sampling]
    keys = [fingerprint(condition.context, text, answer_tokens, batch_size, *drawn) for text in texts]
    kept = JsonlCache.read(folder.responses)
    done = frozenset(index for index, key in enumerate(keys) if key in kept.entries)
    title = f"{condition.subject}, {condition.name}: {attack} {set_name} prompts"
    with listener.task(title, len(texts)) as advance:
        advance(len(done))
        for index, answer in (answering or functools.partial(generate, sampling=sampling))(
            model, texts, max_new_tokens=answer_tokens, batch_size=batch_size, done=done
        ):
            line = {
                "subject": condition.subject,
                "condition": condition.name,
                "prompts": set_name,
                "attack": attack,
                "prompt_id": prompts[index].id,
                "response": answer.text,
                "cut_off": answer.cut_off,
            }
            kept.add(keys[index], line)
            advance(1)
    known = {(line["key"], line["judge"]) for line in read_lines(folder.judgments)}
    answers = []
    for prompt, request, key in zip(prompts, sent, keys, strict=True):
        text = kept.entries[key]["response"]
        # The judge reads the plain request: an attack's rules would read as wishes of the user.
        judgment = judge.judge(prompt.text, f"{request.prefill}{text}")
        if (key, judge.name) not in known:
            append_line(
                folder.judgments,
                {"key": key, "judge": judge.name, "verdict": judgment.verdict, "reason": judgment.reason},
            )
        answers.append(Answer(prompt, request, text, judgment.verdict, kept.entries[key]["cut_off"]))
    return answers
