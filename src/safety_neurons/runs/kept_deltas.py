"""Deltas that experiments trained, kept in a folder of the run so that none is trained twice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors
from safety_neurons.core.progress import Listener
from safety_neurons.core.records import JsonlCache, Line
from safety_neurons.neurons.neuron_set import NeuronSet
from safety_neurons.report.scale_curve import ScaleCurve
from safety_neurons.runs.folder import RunFolder
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
        with disk_errors(run.seeds):
            run.seeds.mkdir(exist_ok=True)
        run.check()
        return cls(run.seeds, JsonlCache.read(run.seeds / "deltas.jsonl", KeptDelta), listener)

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
        if found.digest != entry.digest or not same_base or _lists(found.neurons) != _lists(neurons):
            self.listener.say(f"{path} is not the delta that was kept: it was replaced. It is trained again.")
            return None
        return found, entry.scale_curve

    def keep(self, key: str, delta: NeuronDelta, curve: ScaleCurve | None) -> None:
        """Write a delta, and only then the line that makes it known."""
        delta.save(self._path(key))
        self.known.add(KeptDelta(key=key, digest=delta.digest, scale_curve=curve))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.safetensors"


def _lists(neurons: NeuronSet) -> list[list[int]]:
    return [indices.tolist() for side in (neurons.rejection, neurons.conformity) for indices in side]
