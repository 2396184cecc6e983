"""Ask and judge: every answer of the project is asked for and judged here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import ValidationError

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import Number
from safety_neurons.core.files import fingerprint
from safety_neurons.core.progress import Advance, Listener, Silence, ignore
from safety_neurons.core.records import JsonlCache, Line, first_problem
from safety_neurons.core.statistics import Verdict
from safety_neurons.engines.engine import CachedEngine, answers
from safety_neurons.evaluation.checked import judgments
from safety_neurons.evaluation.contracts import Judge, JudgeInput, Judgment, Response, RuleJudge
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import Completion, Sampling
from safety_neurons.prompts import Prompt


class CachedVerdict(Line):
    """A judge's verdict on one response: a line of verdicts.jsonl."""

    judge: str
    verdict: Verdict
    reason: str
    score: Number | None = None

    @property
    def judgment(self) -> Judgment:
        return Judgment(self.verdict, self.reason, self.score)


@dataclass(frozen=True)
class JudgedAnswer:
    """What was sent for a prompt, what the model answered, and the verdict on both."""

    prompt: Prompt
    sent: AttackedPrompt
    completion: Completion
    verdict: Verdict

    @property
    def continuation(self) -> str:
        """What the model wrote after the prefill, with its reasoning."""
        return self.completion.written

    @property
    def cut_off(self) -> bool:
        return self.completion.cut_off

    @property
    def response(self) -> str:
        """The assistant's whole turn, without its reasoning."""
        return Response.of(self.sent, self.completion).text


def ask(
    engine: CachedEngine,
    judge: Judge,
    prompts: Sequence[Prompt],
    *,
    verdicts: JsonlCache[CachedVerdict],
    max_new_tokens: int,
    sent: Sequence[AttackedPrompt] | None = None,
    sampling: Sampling | None = None,
    advance: Advance = ignore,
) -> list[JudgedAnswer]:
    """The judged answers to what is sent for each prompt, or to the plain prompts; greedy without `sampling`."""
    sent = sent or [AttackedPrompt(prompt.text) for prompt in prompts]
    completions = answers(
        replace(engine, advance=advance),
        [one.conversation for one in sent],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
    # A judge reads the plain request: an attack's rules would read as wishes of the user.
    inputs = [
        JudgeInput(prompt.text, Response.of(one, completion).text, completion.unscored)
        for prompt, one, completion in zip(prompts, sent, completions, strict=True)
    ]
    judgments = judge_inputs(judge, inputs, verdicts)
    return [
        JudgedAnswer(prompt, one, completion, judgment.verdict)
        for prompt, one, completion, judgment in zip(prompts, sent, completions, judgments, strict=True)
    ]


def judge_inputs(
    judge: Judge, inputs: Sequence[JudgeInput], verdicts: JsonlCache[CachedVerdict], listener: Listener | None = None
) -> list[Judgment]:
    """The judge's verdict on each input. A model is never asked for one twice; rules are applied each time."""
    listener = listener or Silence()
    distinct = list(dict.fromkeys(one for one in inputs if not one.unscored))
    keys = [fingerprint(judge.identity, one.prompt, one.response) for one in distinct]
    # Rules cost nothing, and what they say may change with them.
    done = frozenset(
        index for index, key in enumerate(keys) if key in verdicts.entries and not isinstance(judge, RuleJudge)
    )
    with listener.task(f"judge {judge.name}", len(distinct)) as advance:
        advance(len(done))
        for index, found in judgments(judge, distinct, done):
            try:
                line = CachedVerdict(key=keys[index], judge=judge.name, **asdict(found))
            except ValidationError as error:
                raise SafetyNeuronsError(
                    f"The judge {judge.name} gave a Judgment that is not valid: {first_problem(error)}. Correct it, or "
                    "choose another judge."
                ) from error
            if verdicts.entries.get(line.key) != line:
                verdicts.add(line)
            advance(1)
    if spent := judge.spent():
        listener.say(spent)
    judged = {one: verdicts.entries[key].judgment for one, key in zip(distinct, keys, strict=True)}
    return [Judgment("unscored", one.unscored) if one.unscored else judged[one] for one in inputs]
