"""The corpus that a run trains on: made from its training prompts by the model itself, or brought by the user."""

from collections.abc import Sequence

from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import Sampling
from safety_neurons.runs.answers import Answer
from safety_neurons.runs.context import RunContext
from safety_neurons.tuning.augmentation import augment
from safety_neurons.tuning.config import CorpusConfig
from safety_neurons.tuning.corpus import Corpus, Kind, Pair, varied


def corpus_of(run: RunContext, settings: CorpusConfig | None = None) -> Corpus:
    """The corpus that the settings name, or one that the model makes: refusals, and helpful answers to what is safe.

    Args:
        settings: other ones than the run's own.

    Raises:
        SafetyNeuronsError: the user's corpus cannot be read.
    """
    settings = settings or run.settings.tune
    if settings.corpus is not None:
        return Corpus.load(settings.corpus)
    return Corpus((*_refusals(run, settings), *_benign(run, settings), *_borderline(run, settings)))


def _refusals(run: RunContext, settings: CorpusConfig) -> list[Pair]:
    """Refusals by the model calibrated toward rejection.

    They are made for the plain request and learnt for its disguised form. The greedy answer is tried first; prompts for
    which it is no refusal, or one that was said too often already, are asked again, up to `tune.samples` times, and
    answers that end by themselves are preferred.
    """
    harmful = run.chosen("harmful", "train", settings.refusals)
    # The unsafe twins of borderline prompts stay as they are: what tells them apart is their plain wording.
    twins = run.chosen("contrast", "train", settings.contrast) if settings.contrast else []
    prompts = [*harmful, *twins]
    sent = augment([prompt.text for prompt in harmful], settings.plain_refusals)
    sent += [AttackedPrompt(prompt.text) for prompt in twins]
    drawn: list[list[Answer]] = [[] for _ in prompts]
    chosen: list[int | None] = [None] * len(prompts)
    with run.calibrated_model("rejection", run.neurons):
        for number in range(settings.samples + 1):
            missing = [place for place, choice in enumerate(chosen) if choice is None]
            if not missing:
                break
            answers = run.ask(
                run.calibrated("rejection", "found"),
                "harmful",
                [prompts[place] for place in missing],
                tokens=settings.answer_tokens,
                sampling=Sampling(settings.temperature, run.settings.seed + number) if number else None,
            )
            for place, answer in zip(missing, answers, strict=True):
                if answer.verdict == "refused":
                    drawn[place].append(answer)
                    drawn[place].sort(key=lambda one: one.cut_off)
            chosen = varied([[one.continuation for one in each] for each in drawn], settings.largest_share)
    return [
        _pair("refusal", answers[choice], form)
        for answers, choice, form in zip(drawn, chosen, sent, strict=True)
        if choice is not None
    ]


def _benign(run: RunContext, settings: CorpusConfig) -> list[Pair]:
    """Benign requests, answered by the base model in the form in which they are learnt."""
    if not settings.benign:
        return []
    prompts = run.chosen("benign", "train", settings.benign)
    sent = augment([prompt.text for prompt in prompts], settings.plain_benign)
    answers = run.ask(run.base(), "benign", prompts, attack="disguised", sent=sent, tokens=settings.answer_tokens)
    return _complied("benign", answers)


def _borderline(run: RunContext, settings: CorpusConfig) -> list[Pair]:
    """Borderline requests, answered helpfully: they are safe, but the base model refuses some of them.

    Just those must be learnt, so what it refuses is asked again with the conformity calibration on.
    """
    if not settings.borderline:
        return []
    prompts = run.chosen("borderline", "train", settings.borderline)
    answers = run.ask(run.base(), "borderline", prompts, tokens=settings.answer_tokens)
    refused = [answer.prompt for answer in answers if answer.verdict != "complied"]
    if refused:
        with run.calibrated_model("conformity", run.neurons):
            answers += run.ask(
                run.calibrated("conformity", "found"), "borderline", refused, tokens=settings.answer_tokens
            )
    return _complied("borderline", answers)


def _complied(kind: Kind, answers: Sequence[Answer]) -> list[Pair]:
    return [_pair(kind, answer, answer.sent) for answer in answers if answer.verdict == "complied"]


def _pair(kind: Kind, answer: Answer, sent: AttackedPrompt) -> Pair:
    return Pair(kind, answer.prompt.id, sent.user, sent.prefill, answer.continuation, answer.cut_off)
