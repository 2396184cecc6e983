"""A run's artifacts, checked before they are used: as their stages left them, and of the run's own model."""

import shlex

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.neurons.neuron_set import NeuronSet, Provenance
from safety_neurons.report.results import RunResults, read_results
from safety_neurons.runs.folder import RunFolder
from safety_neurons.runs.stage_files import check_left
from safety_neurons.tuning.corpus import Corpus
from safety_neurons.tuning.delta import NeuronDelta


def load_neurons(folder: RunFolder) -> NeuronSet:
    """The neurons that `find` left, with their directions.

    Raises:
        SafetyNeuronsError: the stage is not finished, or a file is damaged, was replaced, or is of another model.
    """
    advice = check_left(folder, "find")
    found = NeuronSet.load(folder.neurons, folder.directions, advice=advice)
    _check_model(folder, str(folder.neurons), found.provenance, advice)
    return found


def load_delta(folder: RunFolder) -> NeuronDelta:
    """The delta that `tune` left; errors as `load_neurons`."""
    advice = check_left(folder, "tune")
    found = NeuronDelta.load(folder.delta, advice=advice)
    _check_model(folder, str(folder.delta), found.neurons.provenance, advice)
    return found


def load_corpus(folder: RunFolder) -> Corpus:
    """The corpus that `tune` left; errors as `load_neurons`."""
    check_left(folder, "tune")
    return Corpus.load(folder.corpus)


def load_results(folder: RunFolder) -> RunResults:
    """The results of a run's finished stages.

    Raises:
        SafetyNeuronsError: the file is missing or damaged, or is of another run.
    """
    found, record = read_results(folder.results), folder.whole_record()
    if any(found.run.stages.get(name) != entry for name, entry in record.stages.items()):
        other = found.run.model.name or "an unknown model"
        raise SafetyNeuronsError(
            f"{folder.results} is not of the run that {folder.record_file} describes, but of another one, of {other}. "
            f"Make it again: safety-neurons run --out {shlex.quote(str(folder.path))}"
        )
    return found


def _check_model(folder: RunFolder, path: str, made_for: Provenance, advice: str) -> None:
    model = folder.whole_record().model
    if made_for.identity != model.identity:
        raise SafetyNeuronsError(
            f"{path} is of {made_for.model} ({made_for.identity[:12]}), and this is a run of {model.name} "
            f"({model.identity[:12]}). {advice}"
        )
