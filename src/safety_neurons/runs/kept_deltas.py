"""Deltas that experiments trained, kept in a folder of the run so that none is trained twice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safety_neurons.core.errors import DivergedError, SafetyNeuronsError
from safety_neurons.core.files import disk_errors, fingerprint
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.report.scale_curve import ScaleCurve
from safety_neurons.runs.context import RunContext
from safety_neurons.runs.corpus import corpus_of
from safety_neurons.runs.folder import RunFolder, stage_fingerprints
from safety_neurons.runs.selection import select_delta
from safety_neurons.runs.workers import train
from safety_neurons.tuning.checkpoint import discard
from safety_neurons.tuning.delta import NeuronDelta


class KeptDelta(Line):
    """A delta by the key of all that it follows from, and how it was selected: a line of deltas.jsonl."""

    digest: str
    scale_curve: ScaleCurve | None


@dataclass(frozen=True)
class DeltaStore:
    """Deltas by key, each in a file of its own."""

    folder: Path
    known: JsonlCache[KeptDelta]
    listener: Listener

    @classmethod
    def open(cls, run: RunFolder, listener: Listener) -> Self:
        """The store of a run, which is made if it is missing.

        Raises:
            SafetyNeuronsError: the folder cannot be read or written, or holds links or devices.
        """
        with disk_errors(run.deltas):
            run.deltas.mkdir(exist_ok=True)
        run.check()
        return cls(run.deltas, JsonlCache.read(run.deltas / "deltas.jsonl", KeptDelta), listener)

    @property
    def checkpoint(self) -> Path:
        """Of a training that is not finished."""
        return self.folder / ".checkpoint.safetensors"

    def load(self, key: str, neurons: NeuronSet) -> tuple[NeuronDelta, ScaleCurve | None] | None:
        """The delta of these neurons and its selection; None if it was not kept, or was replaced, which is said."""
        if (entry := self.known.entries.get(key)) is None:
            return None
        path = self._path(key)
        try:
            found = NeuronDelta.load(path, advice="It is trained again.")
        except SafetyNeuronsError as error:
            self.listener.say(str(error))
            return None
        same_base = found.neurons.provenance.identity == neurons.provenance.identity
        if found.digest != entry.digest or not same_base or found.neurons.indices() != neurons.indices():
            self.listener.say(f"{path} is not the delta that was kept: it was replaced. It is trained again.")
            return None
        return found, entry.scale_curve

    def keep(self, key: str, delta: NeuronDelta, curve: ScaleCurve | None) -> None:
        """Write a delta, and only then the line that makes it known."""
        delta.save(self._path(key))
        self.known.add(KeptDelta(key=key, digest=delta.digest, scale_curve=curve))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.safetensors"


def delta_key(run: RunContext, *parts: Any) -> str:
    """The key of a training with the run's settings: of all that its tune stage depends on, the precision included.

    Args:
        parts: what else tells this training from others of the run.
    """
    inputs = stage_fingerprints(run.settings, run.model.identity, run.prompts)["tune"]
    return fingerprint(inputs, run.engine.identity, *parts)


def tuned(
    run: RunContext, store: DeltaStore, key: str, neurons: NeuronSet, title: str, subject: str = "found"
) -> tuple[NeuronDelta, ScaleCurve | None]:
    """The kept delta of this key and its selection, or one that is trained and selected now, as the run's stage does.

    Args:
        run: with the settings of the training. The corpus is made with its own neurons.
        title: what is trained, for progress and errors.
        subject: which neurons are tuned: found or random.

    Raises:
        DivergedError: training diverged.
    """
    if (kept := store.load(key, neurons)) is not None:
        return kept
    try:
        trained = train(run, neurons, corpus_of(run), store.checkpoint, title)
    except DivergedError as error:
        raise DivergedError(f"{title}: {error}") from error
    delta, curve = select_delta(run, trained, run.settings.tune, subject)
    store.keep(key, delta, curve)
    # Until here, a killed experiment selects again without training again.
    discard(store.checkpoint)
    return delta, curve
