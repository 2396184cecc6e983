"""The corpus that a run trains on: made from its training prompts by the model itself, or brought by the user."""

from collections.abc import Sequence

from safety_neurons.evaluation.judging import JudgedAnswer
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import Sampling
from safety_neurons.runs.context import RunContext
from safety_neurons.tuning.augmentation import augment
from safety_neurons.tuning.config import CorpusConfig
from safety_neurons.tuning.corpus import Corpus, Pair, PairKind, varied

# The least likely token to sample, relative to the likeliest: others would break the answers at a high temperature.
LIKELY = 0.05


def corpus_of(run: RunContext, settings: CorpusConfig | None = None) -> Corpus:
    """The corpus that the settings name, or one that the model makes: refusals, and helpful answers to what is safe.

    Args:
        settings: other ones than the run's own.

    Raises:
        SafetyNeuronsError: the user's corpus cannot be read.
    """
    settings = settings or run.settings.tune
    if settings.corpus is not None:
        return _fitting(run, Corpus.load(settings.corpus))
    return _fitting(run, Corpus((*_refusals(run, settings), *_benign(run, settings), *_borderline(run, settings))))


def _fitting(run: RunContext, corpus: Corpus) -> Corpus:
    """The pairs that fit the model's context, with the end of the turn."""
    texts = [run.model.render(pair.user, pair.prefill) + pair.response for pair in corpus.pairs]
    unfit = run.model.too_long(texts, new_tokens=1)
    for index, reason in unfit.items():
        named = corpus.pairs[index].prompt_id or f"number {index + 1}"
        run.said_once(f"Pair {named} of the corpus is left out: {reason}.")
    return Corpus(tuple(pair for index, pair in enumerate(corpus.pairs) if index not in unfit))


def _refusals(run: RunContext, settings: CorpusConfig) -> list[Pair]:
    """Refusals by the model calibrated toward rejection.

    They are made for the plain request and learned for its augmented form. Up to `tune.samples` answers are sampled,
    until one is a refusal that does not repeat an over-represented one; those that end by themselves are preferred.
    """
    harmful = run.split("harmful", "train", settings.refusals)
    # The unsafe counterparts of borderline prompts stay plain: only their wording tells them apart.
    contrast = run.split("contrast", "train", settings.contrast) if settings.contrast else []
    prompts = [*harmful, *contrast]
    sent = augment([prompt.text for prompt in harmful], settings.plain_refusals)
    sent += [AttackedPrompt(prompt.text) for prompt in contrast]
    drawn: list[list[JudgedAnswer]] = [[] for _ in prompts]
    chosen: list[int | None] = [None] * len(prompts)
    with run.calibrated("rejection", run.neurons) as engine:
        for number in range(settings.samples):
            missing = [place for place, choice in enumerate(chosen) if choice is None]
            if not missing:
                break
            answers = run.ask(
                [prompts[place] for place in missing],
                "corpus: refusals of harmful prompts",
                engine=engine,
                tokens=settings.answer_tokens,
                # No two seeds share a draw.
                sampling=Sampling(settings.temperature, run.settings.seed * settings.samples + number, LIKELY),
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
    """Benign requests, answered by the base model in the form in which they are learned."""
    if not settings.benign:
        return []
    prompts = run.split("benign", "train", settings.benign)
    sent = augment([prompt.text for prompt in prompts], settings.plain_benign)
    answers = run.ask(prompts, "corpus: answers to benign prompts", sent=sent, tokens=settings.answer_tokens)
    return _complied("benign", answers)


def _borderline(run: RunContext, settings: CorpusConfig) -> list[Pair]:
    """Borderline requests, answered helpfully: they are safe, but the base model refuses some of them.

    Just those must be learned, so what it refuses is asked again with the conformity calibration on.
    """
    if not settings.borderline:
        return []
    prompts = run.split("borderline", "train", settings.borderline)
    title = "corpus: answers to borderline prompts"
    answers = run.ask(prompts, title, tokens=settings.answer_tokens)
    refused = [answer.prompt for answer in answers if answer.verdict != "complied"]
    if refused:
        with run.calibrated("conformity", run.neurons) as engine:
            answers += run.ask(refused, f"{title} refused before", engine=engine, tokens=settings.answer_tokens)
    return _complied("borderline", answers)


def _complied(kind: PairKind, answers: Sequence[JudgedAnswer]) -> list[Pair]:
    return [_pair(kind, answer, answer.sent) for answer in answers if answer.verdict == "complied"]


def _pair(kind: PairKind, answer: JudgedAnswer, sent: AttackedPrompt) -> Pair:
    return Pair(kind, answer.prompt.id, sent.user, sent.prefill, answer.continuation, answer.cut_off)
