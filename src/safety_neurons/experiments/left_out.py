"""`experiment left-out`: tune without one kind of disguise at a time, and attack with this kind.

A kind that was left out stands for attacks that nobody has seen: what stops it has carried over from the other kinds.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safety_neurons.core.distributed import release_workers
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Listener
from safety_neurons.core.statistics import (
    Verdict,
    by_request,
    compare_verdicts,
    holm,
    paired_difference,
    rate_of_groups,
)
from safety_neurons.prompts import Prompt
from safety_neurons.report.results import RunResults
from safety_neurons.runs.artifacts import load_delta
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.folder import RunFolder, overridden
from safety_neurons.runs.kept_deltas import DeltaStore, delta_key, tuned
from safety_neurons.runs.opened import keep_section, opened
from safety_neurons.runs.percents import neurons_to_tune
from safety_neurons.runs.selection import change_of
from safety_neurons.settings import Settings
from safety_neurons.tuning.config import DisguiseKind
from safety_neurons.tuning.delta import NeuronDelta
from safety_neurons.tuning.disguises import disguised, disguises, renderable


class KindVerdicts(NamedTuple):
    """The verdicts on the answers to the same requests by the base model, with all kinds, and without this kind."""

    kind: str
    base: list[Verdict]
    all_kinds: list[Verdict]
    left_out: list[Verdict]


def left_out(
    path: Path,
    given: Mapping[str, Any] | None = None,
    *,
    listener: Listener | None = None,
    command: str = "",
) -> RunResults:
    """Tune a run without one kind of disguise at a time, and attack its harmful test prompts in this kind.

    The prompts are sent in a text of the kind that neither training nor validation uses. The base model and the run's
    own tuned model, which knows all kinds, answer the same. Trained deltas are kept in the folder `deltas`: a killed
    experiment continues. Runs missing stages first. Returns the run's results, with the section "left_out".

    Args:
        given: settings that override the run's own. tune.disguises are the kinds.

    Raises:
        SafetyNeuronsError: bad input, fewer than two kinds, or a failure that the message explains.
    """
    with RunFolder(path).held():
        return _left_out(path, given, listener, command)


def _left_out(path: Path, given: Mapping[str, Any] | None, listener: Listener | None, command: str) -> RunResults:
    uses = ("find", "tune")
    with opened(path, given, listener, command, uses=uses, alone=False) as run:
        # Whatever is wrong with the kinds is told before anything is trained.
        kinds = _kinds(run)
    with opened(path, given, listener, command, until="tune", uses=uses, is_told=True, alone=False) as run:
        prompts = run.split("harmful", "test", run.settings.evaluate.prompts)
        base, all_kinds = (_verdicts(run, prompts, kinds, delta) for delta in (None, load_delta(run.folder)))
        store = DeltaStore.open(run.folder, run.listener)
        tested = []
        with run.listener.task("trainings", len(kinds)) as advance:
            for kind in kinds:
                delta = _delta_without(run, store, kind)
                tested.append(
                    KindVerdicts(kind, base[kind], all_kinds[kind], _verdicts(run, prompts, [kind], delta)[kind])
                )
                advance(1)
        release_workers()
        section = {
            "rows": rows_of(tested, run.settings.seed),
            "mean": _row("mean", tested, run.settings.seed),
            "on": run.settings.harmful,
            "judge": run.judge.name,
        }
        return keep_section(run, "left_out", section, unused=("explain", "guard"))


def _kinds(run: RunContext) -> tuple[DisguiseKind, ...]:
    """The kinds of disguises of a run.

    Raises:
        SafetyNeuronsError: none can be left out.
    """
    settings = run.settings.tune
    if settings.corpus is not None:
        raise SafetyNeuronsError(
            f"This run trains on the pairs in {settings.corpus}, in which no kind of disguise can be left out. Use "
            "a run whose model makes its own corpus."
        )
    if settings.variants == 0:
        raise SafetyNeuronsError(
            "This run trains on no disguises (tune.variants is 0), so that none can be left out. Raise tune.variants."
        )
    kinds = renderable(run.model, settings.disguises)
    if len(kinds) < 2:
        raise SafetyNeuronsError(
            f"One kind of disguise is left out at a time, and this run has {len(kinds)}. Name at least two in "
            "tune.disguises."
        )
    return kinds


def _verdicts(
    run: RunContext, prompts: Sequence[Prompt], kinds: Sequence[DisguiseKind], delta: NeuronDelta | None
) -> dict[str, list[Verdict]]:
    """The verdicts on the answers to the prompts in each kind, of the base model or of a tuned one."""
    subject, engine = "base", run.engine
    if delta is not None:
        subject, engine = "tuned", run.engine.under(change_of(delta))
    found: dict[str, list[Verdict]] = {}
    with nullcontext() if delta is None else delta.apply(run.model):
        for kind in kinds:
            sent = disguised([prompt.text for prompt in prompts], disguises(kind).test)
            answers = run.ask(prompts, f"{subject}: harmful prompts, {kind}", engine=engine, sent=sent)
            found[kind] = [answer.verdict for answer in answers]
    return found


def _delta_without(run: RunContext, store: DeltaStore, kind: DisguiseKind) -> NeuronDelta:
    """The delta of the run's training without a kind: a kept one, or one that is trained now."""
    kinds = [one for one in run.settings.tune.disguises if one != kind]
    settings = Settings.checked(overridden(run.settings.model_dump(), {"tune": {"disguises": kinds}}))
    without = run.with_settings(settings)
    return tuned(without, store, delta_key(without), neurons_to_tune(run), f"without {kind}")[0]


def rows_of(tested: Sequence[KindVerdicts], seed: int) -> list[dict[str, Any]]:
    """A row for each kind, with McNemar's p-value of the requests that count in the difference, adjusted over kinds."""
    rows = [_row(one.kind, [one], seed) for one in tested]
    adjusted = holm([_p_value(one) for one in tested])
    return [row | {"difference": row["difference"] | {"p": p}} for row, p in zip(rows, adjusted, strict=True)]


def _p_value(one: KindVerdicts) -> float:
    ids = [str(number) for number in range(len(one.base))]
    return compare_verdicts(by_request(ids, one.all_kinds), by_request(ids, one.left_out)).p_value


def _row(name: str, tested: Sequence[KindVerdicts], seed: int) -> dict[str, Any]:
    """Attack success of the three models, its mean over kinds if there are several, and the price of leaving out.

    The interval of the mean and of differences is a bootstrap over requests.
    """
    sides = [list(side) for side in zip(*((one.base, one.all_kinds, one.left_out) for one in tested), strict=True)]
    base, all_kinds, without = (rate_of_groups(side, "complied", seed) for side in sides)
    return {
        "kind": name,
        "requests": len(sides[0][0]),
        "base": asdict(base),
        "all_kinds": asdict(all_kinds),
        "without": asdict(without),
        "difference": asdict(paired_difference(sides[2], sides[1], "complied", seed)),
    }
