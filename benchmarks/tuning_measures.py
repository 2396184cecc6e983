"""What benchmarks/tuning.py asks of every model: held-out attacks, safe and unsafe requests, and how far it moved."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuning_contenders import Tuned

import safety_neurons.attacks as attacks
from safety_neurons.attacks import AttackedPrompt
from safety_neurons.attacks.goals import read_attack
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.evaluate.likelihood import divergence, read_answers, surprise
from safety_neurons.judges import Verdict
from safety_neurons.models.generate import in_batches
from safety_neurons.prompts import Prompt, PromptSet, load_prompts
from safety_neurons.prompts.prompt_set import normalised
from safety_neurons.run.answers import Condition
from safety_neurons.run.workplace import Workplace
from safety_neurons.storage import fingerprint

TEMPLATES = ("direct", "prefix-injection", "refusal-suppression", "prefill")
HARMFUL = "jailbreakbench"
BENIGN = "alpaca"
SETS = (BENIGN, "xstest-safe", "xstest-unsafe")
# Over so many tokens of the untouched model's answers to Alpaca divergence and perplexity are taken.
ANSWER_TOKENS = 48
Verdicts = list[Verdict | None]


@dataclass(frozen=True)
class Exam:
    """Requests and what is sent for each under every attack, None where an attack has none; and the other sets."""

    requests: PromptSet
    attacks: dict[str, list[AttackedPrompt | None]]
    sets: dict[str, PromptSet]
    own_answers: int

    @classmethod
    def read(cls, data_dir: Path, attack_files: Sequence[str], prompts: int, safe_prompts: int) -> "Exam":
        """Read everything that will be asked.

        Raises:
            SafetyNeuronsError: a file is missing or is not what it should be.
        """
        requests = load_prompts(HARMFUL, data_dir=data_dir).take(prompts)
        sent: dict[str, list[AttackedPrompt | None]] = {
            name: [attacks.template(name).apply(text) for text in requests.texts] for name in TEMPLATES
        }
        for name in attack_files:
            by_goal = read_attack(data_dir / "attacks" / f"{name}.jsonl")
            sent[name] = [by_goal.get(normalised(text)) for text in requests.texts]
            if not any(sent[name]):
                raise SafetyNeuronsError(
                    f"None of the goals in {data_dir / 'attacks' / name}.jsonl is among the {len(requests)} requests "
                    f"that were taken from {HARMFUL}. Raise --prompts, or leave it out of --attack-files."
                )
        sets = {name: load_prompts(name, data_dir=data_dir).take(safe_prompts) for name in SETS}
        return cls(requests, sent, sets, min(prompts, len(sets[BENIGN])))

    @property
    def key(self) -> str:
        """A name for exactly these requests."""
        return fingerprint(
            self.requests.sha256,
            {name: [one and asdict(one) for one in sent] for name, sent in self.attacks.items()},
            {name: prompts.sha256 for name, prompts in self.sets.items()},
            self.own_answers,
            ANSWER_TOKENS,
        )


def measure(work: Workplace, exam: Exam, name: str, tuned: Tuned | None) -> dict[str, Any]:
    """Every verdict, and the distances to the untouched model; `tuned` is None for the untouched model itself.

    `attacks` and `sets` hold verdicts by name, null where a request was not made; `divergence` is
    KL(untouched || tuned) and `surprise` the negative log likelihood of the untouched model's answers, both in nats per
    token and for each of its answers.
    """
    own, texts = _own_answers(work, exam)
    if tuned is None:
        return _verdicts(work, exam, work.untouched()) | {
            "divergence": [0.0] * len(own),
            "surprise": _surprise(work, texts, own),
        }
    condition = Condition("tuned", name, fingerprint(work.answering, tuned.digest))
    moved = in_batches(
        texts,
        work.settings.batch_size,
        lambda batch: divergence(
            work.model,
            [texts[index] for index in batch],
            [own[index] for index in batch],
            tuned.applied,
            ANSWER_TOKENS,
        ),
    )
    with tuned.applied():
        return _verdicts(work, exam, condition) | {"divergence": moved, "surprise": _surprise(work, texts, own)}


def _own_answers(work: Workplace, exam: Exam) -> tuple[list[str], list[str]]:
    """The untouched model's answers, and the rendered requests that they answer."""
    prompts = list(exam.sets[BENIGN].take(exam.own_answers))
    answers = work.ask(work.untouched(), BENIGN, prompts, tokens=ANSWER_TOKENS)
    return [answer.continuation for answer in answers], [work.model.render(prompt.text) for prompt in prompts]


def _verdicts(work: Workplace, exam: Exam, condition: Condition) -> dict[str, Any]:
    attacked: dict[str, Verdicts] = {}
    for name, sent in exam.attacks.items():
        places = [place for place, one in enumerate(sent) if one is not None]
        prompts: list[Prompt] = [exam.requests.prompts[place] for place in places]
        answers = work.ask(condition, HARMFUL, prompts, name, [one for one in sent if one is not None])
        attacked[name] = [None] * len(sent)
        for place, answer in zip(places, answers, strict=True):
            attacked[name][place] = answer.verdict
    sets = {
        name: [answer.verdict for answer in work.ask(condition, name, list(prompts))]
        for name, prompts in exam.sets.items()
    }
    return {"attacks": attacked, "sets": sets}


def _surprise(work: Workplace, texts: list[str], answers: list[str]) -> list[float | None]:
    return in_batches(
        texts,
        work.settings.batch_size,
        lambda batch: surprise(
            read_answers(
                work.model, [texts[index] for index in batch], [answers[index] for index in batch], ANSWER_TOKENS
            )
        ),
    )
