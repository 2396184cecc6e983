"""The corpus that a run trains on: made from its training prompts by the model itself, or brought by the user."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from safety_neurons.engines.engine import CachedEngine
from safety_neurons.evaluation.judging import JudgedAnswer
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.models.generate import Sampling
from safety_neurons.prompts import Prompt
from safety_neurons.runs.context import RunContext
from safety_neurons.tuning.batches import rendered
from safety_neurons.tuning.config import CorpusConfig, DisguiseKind
from safety_neurons.tuning.corpus import Corpus, Pair, PairKind, varied
from safety_neurons.tuning.disguises import Disguise, in_turn, renderable

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
    kinds = renderable(run.model, settings.disguises)
    if unused := ", ".join(kind for kind in settings.disguises if kind not in kinds):
        run.said_once(f"The chat template of {run.model.name} cannot write these disguises: {unused}.")
    harmful, benign = _requests(run, settings, kinds, "harmful", "benign")
    # Only their wording tells these apart. Undisguised, fewer safe ones were refused (docs/tuning.md).
    contrast, borderline = _requests(run, settings, (), "contrast", "borderline")
    refusals = _refusals(run, settings, [*harmful, *contrast])
    return _fitting(run, Corpus((*refusals, *_benign(run, settings, benign), *_borderline(run, settings, borderline))))


class Request(NamedTuple):
    """A training prompt, the disguise in which it is sent, and the name that it shares with its counterpart."""

    prompt: Prompt
    disguise: Disguise
    match: str

    @property
    def sent(self) -> AttackedPrompt:
        return self.disguise(self.prompt.text)


def _requests(
    run: RunContext, settings: CorpusConfig, kinds: Sequence[DisguiseKind], unsafe: str, safe: str
) -> tuple[list[Request], list[Request]]:
    """The training requests of an unsafe and of a safe set: each prompt as it is, and in disguises of these kinds.

    Counterparts, whose ids end with the same number, are preferred and sent in the same disguises: the harm is all that
    tells them apart.
    """
    counts = {"harmful": settings.refusals, "contrast": settings.contrast}
    counts |= {"benign": settings.benign, "borderline": settings.borderline}
    first = run.split(unsafe, "train", counts[unsafe]) if counts[unsafe] else []
    second = _with_counterparts(run, safe, counts[safe], first) if counts[safe] else []
    shared = {_number(prompt) for prompt in first} & {_number(prompt) for prompt in second} - {None}
    found: tuple[list[Request], list[Request]] = ([], [])
    for variant in range(1 + (settings.variants if kinds else 0)):
        counterparts: dict[int | None, Disguise] = {}
        for prompts, requests in zip((first, second), found, strict=True):
            new = [prompt for prompt in prompts if _number(prompt) not in counterparts]
            forms = in_turn(len(new), kinds if variant else (), variant - 1)
            chosen = dict(zip((prompt.id for prompt in new), forms, strict=True))
            counterparts |= {_number(prompt): chosen[prompt.id] for prompt in new if _number(prompt) in shared}
            for prompt in prompts:
                number = _number(prompt)
                match = f"{unsafe}-{number}-{variant}" if number in shared else ""
                requests.append(Request(prompt, chosen.get(prompt.id) or counterparts[number], match))
    return found


def _with_counterparts(run: RunContext, name: str, count: int, others: Sequence[Prompt]) -> list[Prompt]:
    """At most `count` training prompts of a set; those with a counterpart among the others come before the rest."""
    prompts = run.prompts[name].split("train")
    numbers = {_number(prompt) for prompt in others} - {None}
    parts = ([prompt for prompt in prompts if (_number(prompt) in numbers) is wanted] for wanted in (True, False))
    chosen: set[str] = set()
    for part in parts:
        if part and len(chosen) < count:
            taken = replace(prompts, prompts=tuple(part)).take(count - len(chosen))
            chosen |= {prompt.id for prompt in taken}
    return run.fitting([prompt for prompt in prompts if prompt.id in chosen], f"train prompt of {prompts.name}")


def _number(prompt: Prompt) -> int | None:
    """The number at the end of a prompt's id."""
    found = re.search(r"\d+$", prompt.id)
    return None if found is None else int(found[0])


def _fitting(run: RunContext, corpus: Corpus) -> Corpus:
    """The pairs that fit the model's context, with the end of the turn."""
    texts = [rendered(run.model, pair) + pair.response for pair in corpus.pairs]
    unfit = run.model.too_long(texts, new_tokens=1)
    for index, reason in unfit.items():
        named = corpus.pairs[index].prompt_id or f"number {index + 1}"
        run.said_once(f"Pair {named} of the corpus is left out: {reason}.")
    return Corpus(tuple(pair for index, pair in enumerate(corpus.pairs) if index not in unfit))


def _refusals(run: RunContext, settings: CorpusConfig, requests: Sequence[Request]) -> list[Pair]:
    """Refusals by the model calibrated toward rejection.

    They are made for the plain request and learned for each of its forms, after the opening of the answer if it has
    one. Up to `tune.samples` answers are sampled, until one is a refusal that does not repeat an over-represented one;
    those that end by themselves are preferred.
    """
    prompts = list({request.prompt.id: request.prompt for request in requests}.values())
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
    refusals = {
        prompt.id: answers[choice]
        for prompt, answers, choice in zip(prompts, drawn, chosen, strict=True)
        if choice is not None
    }
    return [
        _pair("refusal", request, refusals[request.prompt.id]) for request in requests if request.prompt.id in refusals
    ]


def _benign(run: RunContext, settings: CorpusConfig, requests: Sequence[Request]) -> list[Pair]:
    """Benign requests, answered by the base model in the form in which they are learned."""
    answers = _ask(run, settings, requests, "corpus: answers to benign prompts")
    return _complied("benign", requests, answers)


def _borderline(run: RunContext, settings: CorpusConfig, requests: Sequence[Request]) -> list[Pair]:
    """Borderline requests, answered helpfully: they are safe, but the base model refuses some of them.

    Just those must be learned, so what it refuses is asked again with the conformity calibration on.
    """
    title = "corpus: answers to borderline prompts"
    answers = _ask(run, settings, requests, title)
    refused = [number for number, answer in enumerate(answers) if answer.verdict != "complied"]
    if refused:
        again = [requests[number] for number in refused]
        with run.calibrated("conformity", run.neurons) as engine:
            for number, answer in zip(
                refused, _ask(run, settings, again, f"{title} refused before", engine), strict=True
            ):
                answers[number] = answer
    return _complied("borderline", requests, answers)


def _ask(
    run: RunContext,
    settings: CorpusConfig,
    requests: Sequence[Request],
    title: str,
    engine: CachedEngine | None = None,
) -> list[JudgedAnswer]:
    if not requests:
        return []
    prompts, sent = [one.prompt for one in requests], [one.sent for one in requests]
    return run.ask(prompts, title, engine=engine, sent=sent, tokens=settings.answer_tokens)


def _complied(kind: PairKind, requests: Sequence[Request], answers: Sequence[JudgedAnswer]) -> list[Pair]:
    both = zip(requests, answers, strict=True)
    return [_pair(kind, request, answer) for request, answer in both if answer.verdict == "complied"]


def _pair(kind: PairKind, request: Request, answer: JudgedAnswer) -> Pair:
    sent, response = request.sent, answer.continuation
    if sent.prefill != answer.sent.prefill and not sent.prefill[-1].isspace():
        # The answer was made without the opening that it now follows.
        response = f" {response}"
    return Pair(kind, request.prompt.id, sent.user, sent.prefill, response, answer.cut_off, sent.before, request.match)
