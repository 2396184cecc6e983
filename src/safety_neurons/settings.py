"""All settings of a run: the TOML file, the command line and the documentation are these fields."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from safety_neurons.calibration.config import CalibrationConfig, Direction, Edit, Subset, Toward
from safety_neurons.core.config import Config
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.tuning.config import Schedule, Training


class FindSettings(Config):
    """Which neurons are safety neurons."""

    score: str = "gradient"
    """How neurons are ranked: change, contrast, effect-size, gradient, magnitude, random, removal, wanda,
    write-contrast. The table of docs/scores.md compares them."""
    percent: float = Field(2.0, gt=0, le=100)
    """Budget in percent of the neurons."""
    scope: Literal["layer", "model"] | None = None
    """Spend the budget in each layer or over the whole model; the score's own habit when left out."""
    selection: Literal["difference", "none"] = "difference"
    """The top of harmful prompts minus the top of benign ones, and the reverse, or the top of harmful prompts alone."""
    tokens: Literal["last", "prompt", "response"] | None = None
    """Whose activations count: the last of the prompt, the whole prompt, or the response's; the score's own habit when
    left out."""
    last_tokens: int = Field(1, ge=1, le=64)
    """How many tokens at the prompt's end are the last."""
    other_model: str | None = None
    """A second checkpoint of the model for the score `change`: a preset, a hub id, a folder or a .gguf file."""
    prompts: int = Field(100, ge=1)
    """How many training prompts of each set are read, at most."""
    positions: int = Field(5, ge=1, le=64)
    """For how many positions at the prompt's end directions are kept."""


class ExplainSettings(Config):
    """What the neurons say."""

    words: int = Field(10, ge=1, le=100)
    """How many words per layer, side and direction (promoted, suppressed)."""
    weighting: Literal["difference", "mean"] = "difference"
    """Weigh write vectors with the mean activation (the paper) or with what it adds over the other prompts."""
    neurons: int = Field(3, ge=0, le=100)
    """How many single neurons per layer and side are read in words, too."""
    random_sets: int = Field(1000, ge=0)
    """With how many random sets of as many neurons the vocabulary is compared; 0 leaves that test out."""
    lens_prompts: int = Field(40, ge=0)
    """From how many prompts of each set the residual stream is read, to compare with; 0 leaves that out."""


class CalibrateSettings(Config):
    """The causal test."""

    alpha_conformity: float = Field(4.0, ge=0)
    """Strength toward conformity: how many times the difference of the mean activations is added."""
    alpha_rejection: float = Field(3.0, ge=0)
    """Strength toward rejection; the tuning corpus' refusals are made with it, too."""
    subset: Subset = "both"
    """Which of the found neurons are calibrated."""
    prompt_positions: Annotated[int, Field(ge=0, le=64)] | Literal["template", "all"] = 5
    """At how many positions at the prompt's end; template: what the chat template puts after the user's words."""
    generated_tokens: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Also while so many of the first generated tokens are read."""
    direction: Direction = "position"
    """Each position's own difference of means, or one pooled over positions."""
    edit: Edit = "add"
    """Add the difference, or clamp: go the share alpha of the way to the other class's mean."""
    keep_norm: bool = False
    """Scale the calibrated neurons of a layer back to the length that they had together."""
    layers: tuple[int, int] | None = None
    """The first and the last layer that are calibrated; all when left out."""

    @model_validator(mode="after")
    def _are_knobs(self) -> Self:
        try:
            self.knobs()
        except SafetyNeuronsError as error:
            raise ValueError(str(error).removesuffix(".")) from error
        return self

    def knobs(self) -> CalibrationConfig:
        """All but the two strengths."""
        return CalibrationConfig(**{name: getattr(self, name) for name in CalibrationConfig.__dataclass_fields__})

    def alpha(self, toward: Toward) -> float:
        return self.alpha_conformity if toward == "conformity" else self.alpha_rejection


class GuardSettings(Config):
    """Calibration toward rejection for the prompts that the neurons find harmful."""

    percent: float = Field(0.3, gt=0, le=100)
    """Budget of the guard's own neurons, in percent: the best by the run's score. With many it decides too late."""
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    """Which share of ordinary prompts may be flagged; the threshold follows from it."""
    layer: int | None = Field(None, ge=0)
    """The layer in which it is decided; the earliest one that is nearly as good as the best when left out."""
    alpha: float | None = Field(None, ge=0)
    """Strength of the calibration toward rejection, its other knobs being those of calibrate; of 2, 3, 4 and 6 the one
    that is best on the validation prompts when left out."""
    generated_tokens: Annotated[int, Field(ge=0)] | Literal["all"] = 4
    """Also while so many of the first generated tokens are read."""


class TuneSettings(Config):
    """SafeTuning."""

    corpus: Path | None = None
    """A .jsonl file of pairs (kind, user, response ...) to train on, instead of pairs that the model makes."""
    refusals: int = Field(192, ge=1)
    """From how many harmful training prompts refusals are made."""
    contrast: int = Field(40, ge=0)
    """From how many unsafe twins of borderline prompts refusals are made."""
    benign: int = Field(192, ge=0)
    """How many benign training prompts the base model answers for the corpus."""
    borderline: int = Field(56, ge=0)
    """How many borderline-benign training prompts are answered for the corpus; those that the base model refuses,
    calibrated toward conformity."""
    samples: int = Field(8, ge=0)
    """How often a refusal is drawn for a prompt whose greedy answer is none, or is said too often already."""
    temperature: float = Field(0.7, gt=0)
    """The temperature at which refusals are drawn."""
    largest_share: float = Field(0.1, gt=0, le=1)
    """In what share of the refusals one sentence may stand."""
    plain_refusals: float = Field(0.43, ge=0, le=1)
    """Share of the harmful requests that are trained on as they are; the others are disguised."""
    plain_benign: float = Field(0.6, ge=0, le=1)
    """Likewise for benign requests."""
    answer_tokens: int = Field(24, ge=1)
    """Longest answer in the corpus, in tokens. Refusing is decided at its start; a long tail would drown it."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW; the fewer the neurons, the higher (1e-3 for 0.5% of them, 2e-3 for 0.1%)."""
    epochs: int = Field(2, ge=1)
    """Passes over the corpus."""
    batch_size: int = Field(8, ge=1)
    """Pairs in an optimizer step."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warming up: cosine, linear, or constant (not at all)."""
    warmup: float = Field(0.1, ge=0, le=1)
    """For which share of the steps the learning rate rises."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    kl: float = Field(2.0, ge=0)
    """How much a token of an answer to a benign request costs for each nat that the model moves away from the base
    one there (KL divergence). Borderline requests are left out: some of these the base model refuses."""
    length_pool: int = Field(1, ge=1)
    """A batch has pairs of similar length, from a random pool of so many batches; 1 makes it random, and is slower, but
    refusals are short, and batches of nothing else teach worse."""
    accumulate: int = Field(1, ge=1)
    """Into how many parts a batch is split that are computed one after the other, which takes less memory."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again instead of keeping them: less memory, more time."""
    shard: bool = False
    """Share the frozen base out among the processes of torchrun while training."""
    patience: int | None = Field(None, ge=1)
    """Validate while training, end with the best weights, and stop early after so many validations without better
    ones; no validation when left out."""
    validate_every: int = Field(25, ge=1)
    """Optimizer steps from one validation to the next."""
    checkpoint_every: int = Field(25, ge=1)
    """A training that is killed goes on from a checkpoint; how many steps there are from one to the next."""
    report_to: tuple[str, ...] = ()
    """Trackers that are told of the loss, by transformers' names: wandb, mlflow, tensorboard ..."""

    @model_validator(mode="after")
    def _are_options(self) -> Self:
        try:
            self.training(0)
        except SafetyNeuronsError as error:
            raise ValueError(str(error).removesuffix(".")) from error
        return self

    def training(self, seed: int) -> Training:
        """How the slices are trained."""
        given = {name: getattr(self, name) for name in Training.__dataclass_fields__ if name in type(self).model_fields}
        return Training(**given, seed=seed)


class Settings(Config):
    """Everything that a run depends on."""

    model: str = DEFAULT_MODEL
    """A preset (see `safety-neurons models`), a hub id, a folder or a .gguf file."""
    harmful: str = "harmful"
    """Harmful prompts: ours, a public set (advbench, jailbreakbench, harmbench, strongreject, malicious-instruct,
    xstest-unsafe), or a .txt, .csv, .json or .jsonl file."""
    benign: str = "benign"
    """Ordinary prompts: ours, a public set (alpaca, alpaca-eval, dolly, jailbreakbench-benign), or a file."""
    borderline: str = "borderline"
    """Prompts that sound unsafe and are safe: ours, a public set (xstest-safe), or a file."""
    contrast: str = "contrast"
    """Unsafe prompts that look like the borderline ones: ours, a public set (xstest-unsafe), or a file."""
    data_dir: Path | None = None
    """A folder with copies of public sets (advbench.jsonl, xstest_prompts.csv ...), searched before the network."""
    column: str | None = None
    """Which column of your prompt files holds the prompts; guessed, and said, when left out."""
    seed: int = 0
    """Seed of everything random."""
    device: str | None = None
    """cpu, cuda, mps ...; the best there is when left out."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision; bfloat16 where it is fast when left out."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread a large model over several devices."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the weights packed by bitsandbytes. Neurons are tuned beside them; merging takes the full weights."""
    write_matrices: str | None = None
    """Where the neurons are not found: a pattern of the matrices that write them ('model.layers.*.mlp.down_proj')."""
    allow_partial: bool = False
    """Go on without the layers that cannot be read; every output says so."""
    system: str | None = None
    """A system prompt."""
    chat_template: Path | None = None
    """A Jinja chat template that replaces the model's own."""
    thinking: bool | None = None
    """Switch the thinking of models on or off whose template can."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models whose authors you trust."""
    batch_size: int = Field(40, ge=1)
    """Prompts that are run together; halved when memory runs out."""
    show_responses: bool = False
    """Keep compliant answers to harmful prompts in the report instead of redacting them."""
    find: FindSettings = FindSettings()
    explain: ExplainSettings = ExplainSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    guard: GuardSettings = GuardSettings()
    tune: TuneSettings = TuneSettings()
    evaluate: EvaluationConfig = EvaluationConfig()


def explain_problems(error: ValidationError) -> str:
    """What is wrong with which setting, in one paragraph."""
    problems = (f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors())
    return f"These settings are not allowed: {'; '.join(problems)}."
