"""What benchmarks/tuning.py asks of every model: held-out attacks, safe and unsafe requests, and how far it moved."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuning_contenders import Tuned

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import fingerprint
from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation import attacks
from safety_neurons.evaluation.attacks.from_file import read_attack
from safety_neurons.evaluation.judges import Verdict
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import in_batches
from safety_neurons.models.likelihood import kl_divergence, nll, read_answers
from safety_neurons.prompts import PromptSet, load_prompts
from safety_neurons.prompts.prompt_set import normalized
from safety_neurons.runs.context import RunContext

TEMPLATES = ("direct", "prefix-injection", "refusal-suppression", "prefill")
HARMFUL = "jailbreakbench"
BENIGN = "alpaca"
SETS = (BENIGN, "xstest-safe", "xstest-unsafe")
# Over so many tokens of the base model's answers to Alpaca divergence and perplexity are taken.
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
            by_goal = read_attack(data_dir / "attacks" / f"{name}.jsonl").prompts
            sent[name] = [by_goal.get(normalized(text)) for text in requests.texts]
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


def measure(run: RunContext, exam: Exam, tuned: Tuned | None) -> dict[str, Any]:
    """Every verdict, and the distances to the base model; `tuned` is None for the base model itself.

    `attacks` and `sets` hold verdicts by name, null where a request was not made; `kl_divergence` is KL(base || tuned)
    and `nll` the negative log-likelihood of the base model's answers, both in nats per token and for each answer.
    """
    own, texts = _own_answers(run, exam)
    if tuned is None:
        return _verdicts(run, exam, run.engine) | {"kl_divergence": [0.0] * len(own), "nll": _nll(run, texts, own)}
    moved = in_batches(
        texts,
        run.settings.batch_size,
        lambda batch: kl_divergence(
            run.model,
            [texts[index] for index in batch],
            [own[index] for index in batch],
            tuned.applied,
            ANSWER_TOKENS,
        ),
    )
    with tuned.applied():
        verdicts = _verdicts(run, exam, run.engine.under(f"tuned {tuned.digest}"))
        return verdicts | {"kl_divergence": moved, "nll": _nll(run, texts, own)}


def _own_answers(run: RunContext, exam: Exam) -> tuple[list[str], list[str]]:
    """The base model's answers, and the rendered requests that they answer."""
    prompts = list(exam.sets[BENIGN].take(exam.own_answers))
    answers = run.ask(prompts, f"answering ({BENIGN})", tokens=ANSWER_TOKENS)
    return [answer.continuation for answer in answers], [run.model.render(prompt.text) for prompt in prompts]


def _verdicts(run: RunContext, exam: Exam, engine: CachedEngine) -> dict[str, Any]:
    attacked: dict[str, Verdicts] = {}
    for name, sent in exam.attacks.items():
        places = [place for place, one in enumerate(sent) if one is not None]
        prompts = [exam.requests.prompts[place] for place in places]
        made = [one for one in sent if one is not None]
        answers = run.ask(prompts, f"answering ({HARMFUL}, {name})", engine=engine, sent=made)
        attacked[name] = [None] * len(sent)
        for place, answer in zip(places, answers, strict=True):
            attacked[name][place] = answer.verdict
    sets = {
        name: [answer.verdict for answer in run.ask(list(prompts), f"answering ({name})", engine=engine)]
        for name, prompts in exam.sets.items()
    }
    return {"attacks": attacked, "sets": sets}


def _nll(run: RunContext, texts: list[str], answers: list[str]) -> list[float | None]:
    return in_batches(
        texts,
        run.settings.batch_size,
        lambda batch: nll(
            read_answers(
                run.model, [texts[index] for index in batch], [answers[index] for index in batch], ANSWER_TOKENS
            )
        ),
    )
