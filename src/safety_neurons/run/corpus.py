"""The corpus that a run trains on: made from its training prompts by the model itself, or brought by the user."""

from collections.abc import Sequence

from safety_neurons.attacks import AttackedPrompt
from safety_neurons.models.generate import Sampling
from safety_neurons.run.answers import Answer
from safety_neurons.run.workplace import Workplace
from safety_neurons.settings import TuneSettings
from safety_neurons.tune.corpus import Corpus, Kind, Pair
from safety_neurons.tune.disguises import disguise
from safety_neurons.tune.variety import varied


def corpus_of(work: Workplace, settings: TuneSettings | None = None) -> Corpus:
    """The corpus that the settings name, or one that the model makes: refusals, and helpful answers to what is safe.

    Args:
        settings: other ones than the run's own.

    Raises:
        SafetyNeuronsError: the user's corpus cannot be read.
    """
    settings = settings or work.settings.tune
    if settings.corpus is not None:
        return Corpus.load(settings.corpus)
    return Corpus((*_refusals(work, settings), *_benign(work, settings), *_borderline(work, settings)))


def _refusals(work: Workplace, settings: TuneSettings) -> list[Pair]:
    """Refusals by the model calibrated towards rejection.

    They are made for the plain request and learnt for its disguised form. The greedy answer is tried first; prompts for
    which it is no refusal, or one that was said too often already, are asked again, up to `tune.samples` times, and
    answers that end by themselves are preferred.
    """
    harmful = work.chosen("harmful", "train", settings.refusals)
    # The unsafe twins of borderline prompts stay as they are: what tells them apart is their plain wording.
    twins = work.chosen("contrast", "train", settings.contrast) if settings.contrast else []
    prompts = [*harmful, *twins]
    sent = disguise([prompt.text for prompt in harmful], settings.plain_refusals)
    sent += [AttackedPrompt(prompt.text) for prompt in twins]
    drawn: list[list[Answer]] = [[] for _ in prompts]
    chosen: list[int | None] = [None] * len(prompts)
    with work.calibrated_model("rejection", work.neurons):
        for number in range(settings.samples + 1):
            missing = [place for place, choice in enumerate(chosen) if choice is None]
            if not missing:
                break
            answers = work.ask(
                work.calibrated("rejection", "found"),
                "harmful",
                [prompts[place] for place in missing],
                tokens=settings.answer_tokens,
                sampling=Sampling(settings.temperature, work.settings.seed + number) if number else None,
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


def _benign(work: Workplace, settings: TuneSettings) -> list[Pair]:
    """Benign requests, answered by the untouched model in the form in which they are learnt."""
    if not settings.benign:
        return []
    prompts = work.chosen("benign", "train", settings.benign)
    sent = disguise([prompt.text for prompt in prompts], settings.plain_benign)
    answers = work.ask(
        work.untouched(), "benign", prompts, attack="disguised", sent=sent, tokens=settings.answer_tokens
    )
    return _complied("benign", answers)


def _borderline(work: Workplace, settings: TuneSettings) -> list[Pair]:
    """Borderline requests, answered helpfully: they are safe, but the untouched model refuses some of them.

    Just those must be learnt, so what it refuses is asked again with the conformity calibration on.
    """
    if not settings.borderline:
        return []
    prompts = work.chosen("borderline", "train", settings.borderline)
    answers = work.ask(work.untouched(), "borderline", prompts, tokens=settings.answer_tokens)
    refused = [answer.prompt for answer in answers if answer.verdict != "complied"]
    if refused:
        with work.calibrated_model("conformity", work.neurons):
            answers += work.ask(
                work.calibrated("conformity", "found"), "borderline", refused, tokens=settings.answer_tokens
            )
    return _complied("borderline", answers)


def _complied(kind: Kind, answers: Sequence[Answer]) -> list[Pair]:
    return [_pair(kind, answer, answer.sent) for answer in answers if answer.verdict == "complied"]


def _pair(kind: Kind, answer: Answer, sent: AttackedPrompt) -> Pair:
    return Pair(kind, answer.prompt.id, sent.user, sent.prefill, answer.continuation, answer.cut_off)
