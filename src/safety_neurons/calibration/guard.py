"""The guard: calibration toward rejection, for the prompts that the early safety neurons classify as harmful.

One pass reads the prompt, as in any generation. The safety neurons of the early layers decide at its last token; those
of the later layers are then calibrated in the same pass, for flagged prompts alone. Other prompts keep their bits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_neurons.calibration.calibration import directions_of, open_window, reach_of, shifts
from safety_neurons.calibration.config import CalibrationConfig, GuardConfig
from safety_neurons.calibration.detector import Detector, LastTokens, check_rate, fit_detector, last_token_activations
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.progress import Advance, ignore
from safety_neurons.core.records import Record
from safety_neurons.core.tensors import StoredTensors, digest_of, write_tensors
from safety_neurons.models.chat import ChatModel
from safety_neurons.models.forward import PromptPositions, follow_positions
from safety_neurons.models.generate import BATCH_SIZE
from safety_neurons.models.neurons.hook_points import activation_hooks
from safety_neurons.neurons.neuron_set import Directions, NeuronRecord, NeuronSet

# The earliest layer whose out-of-fold AUROC is this near to the best layer's decides.
NEAR_ENOUGH = 0.01
# The penalty for comparing layers; the detector's own is chosen afterwards.
COMPARING_PENALTY = 1e-2
# What a guard's file holds, and what can be done about one that cannot be used, where nothing is known of a run.
KIND = "guard"
AGAIN = "Fit the guard again (sn.fit_guard), and save it with Guard.save."


class GuardRecord(Record):
    """What a guard's file says of it besides its tensors. `calibration` has default strengths: `alpha` counts."""

    neurons: NeuronRecord
    layer: Annotated[int, Field(ge=0)]
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)]
    alpha: Annotated[float, Field(ge=0)]
    calibration: CalibrationConfig
    bias: float
    auroc: Annotated[float, Field(ge=0, le=1)]
    penalty: Annotated[float, Field(gt=0)]
    origin: str

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        """Only what `guard` can use without a tokenizer, and layers that there are."""
        if self.calibration.prompt_positions == "template":
            raise ValueError("a guard calibrates a number of prompt positions, or all")
        layers = self.calibration.layers
        if max(self.layer, layers[0] if layers else 0) > self.neurons.layers[-1]:
            raise ValueError(f"the layers are 0 to {self.neurons.layers[-1]}")
        return self


@dataclass(frozen=True)
class Guard:
    """A fitted guard, with all that `guard` needs besides the model; saved as one file.

    The neurons of layers up to `layer` decide, those of later layers are calibrated toward rejection with `alpha`.
    `origin` identifies the run and the settings that it was fitted with; it is empty without a run.
    """

    neurons: NeuronSet
    detector: Detector
    layer: int
    false_positive_rate: float
    alpha: float
    calibration: CalibrationConfig
    origin: str = ""

    def at(self, false_positive_rate: float) -> Self:
        """The same guard with the threshold for another false-positive rate.

        Raises:
            SafetyNeuronsError: it was fitted on too few ordinary prompts for this rate.
        """
        check_rate(false_positive_rate, len(self.detector.ordinary))
        return replace(self, false_positive_rate=false_positive_rate)

    @property
    def deciding(self) -> list[Tensor]:
        """The neurons that decide, by hook point."""
        layers = zip(self.neurons.layers, self.neurons.both, strict=True)
        return [indices if layer <= self.layer else indices[:0] for layer, indices in layers]

    def scores(self, model: ChatModel, prompts: Sequence[str], batch_size: int = BATCH_SIZE) -> Tensor:
        """The detector's scores of requests: float32 [prompts]; those above `threshold` are flagged."""
        texts = [model.render(prompt) for prompt in prompts]
        return self.detector.scores(last_token_activations(model, self.deciding, texts, batch_size))

    @property
    def threshold(self) -> float:
        return self.detector.threshold(self.false_positive_rate)

    @property
    def digest(self) -> str:
        """Hash of the guard: the beginning of its file's digest."""
        return digest_of(KIND, self._named(), self._record().model_dump(mode="json"))[:16]

    def save(self, path: Path) -> None:
        """Write the guard as safetensors."""
        write_tensors(path, KIND, self._named(), self._record())

    def _named(self) -> dict[str, Tensor]:
        directions = self.neurons.directions
        assert directions is not None
        detector = {"detector.weight": self.detector.weight, "detector.ordinary": self.detector.ordinary}
        return detector | self.neurons.named() | directions.named()

    def _record(self) -> GuardRecord:
        return GuardRecord(
            neurons=self.neurons.record,
            layer=self.layer,
            false_positive_rate=self.false_positive_rate,
            alpha=self.alpha,
            calibration=CalibrationConfig.checked(self.calibration.but_alphas()),
            bias=self.detector.bias,
            auroc=self.detector.auroc,
            penalty=self.detector.penalty,
            origin=self.origin,
        )

    @classmethod
    def load(cls, path: str | Path, *, advice: str = AGAIN) -> Self:
        """Read what `save` wrote.

        Args:
            advice: what can be done about a file that cannot be used; ends the error message.

        Raises:
            SafetyNeuronsError: the file is missing, damaged, or not a guard.
        """
        stored = StoredTensors.read(Path(path), KIND, advice)
        about = stored.about(GuardRecord)
        directions = Directions.of(stored, about.neurons.widths)
        neurons = NeuronSet.of(stored, about.neurons, directions)
        weight, ordinary = (stored.get(f"detector.{name}", torch.float32, (None,)) for name in ("weight", "ordinary"))
        detector = Detector(weight, about.bias, ordinary, about.auroc, about.penalty)
        found = cls(
            neurons, detector, about.layer, about.false_positive_rate, about.alpha, about.calibration, about.origin
        )
        stored.check_names(found._named())
        deciding = sum(map(len, found.deciding))
        if len(weight) != deciding or not 0 < deciding < sum(map(len, neurons.both)):
            raise stored.problem("the detector's weights are not those of the neurons that decide")
        if (ordinary.diff() < 0).any():
            raise stored.problem("the detector's scores of ordinary prompts are not sorted")
        try:
            check_rate(about.false_positive_rate, len(ordinary))
        except SafetyNeuronsError:
            raise stored.problem("it has too few ordinary prompts for its false-positive rate") from None
        reach = about.calibration.prompt_positions
        if about.calibration.direction == "position" and isinstance(reach, int) and reach > directions.positions:
            raise stored.problem(f"{reach} prompt positions have no directions")
        return found


def fit_guard(
    model: ChatModel,
    neurons: NeuronSet,
    harmful: Sequence[str],
    benign: Sequence[str],
    borderline: Sequence[str] = (),
    config: GuardConfig = GuardConfig(),
    *,
    calibration: CalibrationConfig = CalibrationConfig(),
    rendered: bool = False,
    batch_size: int = BATCH_SIZE,
    advance: Advance = ignore,
    **options: Any,
) -> Guard:
    """Fit a guard on requests, as a user would type them.

    Args:
        borderline: safe requests that sound unsafe; they count as safe, but not for the threshold.
        config: how to guard; `percent` concerns runs alone.
        calibration: how to calibrate toward rejection. The config's `generated_tokens` replaces that field; its
            `alpha`, unless None, replaces `alpha_rejection`.
        rendered: the requests are in the chat template already, so that they can include the beginning of an answer.
        options: fields of `GuardConfig` that replace those of `config`.

    Raises:
        SafetyNeuronsError: too few prompts or neurons, a rate that they cannot give, or an option that is not allowed.
    """
    config = config.override(options)
    directions = directions_of(model, neurons)
    check_rate(config.false_positive_rate, len(benign))
    calibration = calibration.override({"generated_tokens": config.generated_tokens})
    open_window(PromptPositions(), model, directions, calibration)
    if calibration.prompt_positions == "template":
        # A number needs no tokenizer, so that the guard can be used on a plain transformers model.
        calibration = calibration.override({"prompt_positions": model.template_tail})
    texts = [prompt if rendered else model.render(prompt) for prompt in (*harmful, *benign, *borderline)]
    features = last_token_activations(model, neurons.both, texts, batch_size, advance)
    by_site = zip(neurons.layers, neurons.both, strict=True)
    layer_of = torch.cat([torch.full((len(found),), number) for number, found in by_site])
    # The last layer cannot decide: no neurons would be left to act.
    candidates = sorted(set(layer_of.tolist()))[:-1]
    if not candidates:
        raise SafetyNeuronsError(
            "A guard needs safety neurons in at least two layers, to decide and, later, to act. Raise percent."
        )

    def fitted(last: int, **options: Any) -> Detector:
        parts = features[:, layer_of <= last].split([len(harmful), len(benign), len(borderline)])
        return fit_detector(parts[0], parts[1], parts[2], **options)

    layer = config.layer
    if layer is None:
        aurocs = {one: fitted(one, penalties=(COMPARING_PENALTY,)).auroc for one in candidates}
        layer = next(one for one in candidates if aurocs[one] >= max(aurocs.values()) - NEAR_ENOUGH)
    if not (layer_of <= layer).any() or not (layer_of > layer).any():
        raise SafetyNeuronsError(
            f"A guard cannot decide in layer {layer}: it needs safety neurons up to it and after it, and they are in "
            f"the layers {int(layer_of.min())} to {int(layer_of.max())}."
        )
    alpha = calibration.alpha_rejection if config.alpha is None else config.alpha
    return Guard(neurons, fitted(layer), layer, config.false_positive_rate, alpha, calibration)


@dataclass
class Decisions:
    """The guard's scores and flags [prompts] of the last batch."""

    scores: Tensor
    flagged: Tensor


@contextlib.contextmanager
def guard(model: ChatModel | PreTrainedModel, fitted: Guard) -> Iterator[Decisions]:
    """Guard a model, including its `generate`, while the context is open.

    Yields the decisions on the last batch of prompts. The guard decides when a prompt is read: a pass that continues
    from the cache of an earlier turn, and later chunks of a prompt that is read in chunks, keep the first decision.

    Of a plain transformers model only the shape is checked: it does not say which weights it has, and a guard that was
    fitted on others flags at random.

    Raises:
        SafetyNeuronsError: the guard was fitted on another model, or on one of another shape.
    """
    if isinstance(model, PreTrainedModel):
        nothing = cast(PreTrainedTokenizerBase, None)
        model = ChatModel(model, nothing, model.config.name_or_path or type(model).__name__, "")
    first, last = fitted.calibration.layers or (0, max(fitted.neurons.layers))
    calibration = fitted.calibration.override({"layers": (max(first, fitted.layer + 1), max(last, fitted.layer + 1))})
    directions = directions_of(model, fitted.neurons)
    decisions = Decisions(torch.empty(0), torch.empty(0, dtype=torch.bool))

    def decide() -> Tensor:
        decisions.scores = fitted.detector.scores(gathered.values).detach()
        decisions.flagged = decisions.scores > fitted.threshold
        return decisions.flagged

    # Deferred to the first calibrated layer: by then all deciding neurons have been read.
    reach = reach_of(model, calibration)
    # The last token decides, also where no token of the prompt is calibrated.
    reach = reach and max(reach, 1)
    with follow_positions(model.model, at_prompt=lambda: window.defer(decide), reach=reach) as where:
        window = open_window(where, model, directions, calibration)
        gathered = LastTokens(where, fitted.deciding)
        with (
            activation_hooks(gathered.hooks(model.hook_points)),
            activation_hooks(shifts(model, fitted.neurons, window, "rejection", fitted.alpha, calibration)),
        ):
            yield decisions
