"""All settings of a run: the TOML file, the command line and the documentation are these fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from safety_neurons.calibration.config import CalibrationConfig, GuardConfig
from safety_neurons.core.config import Config
from safety_neurons.evaluation.config import EvaluationConfig
from safety_neurons.explanation.config import ExplainConfig
from safety_neurons.models.presets import DEFAULT_MODEL
from safety_neurons.neurons.config import FindConfig
from safety_neurons.tuning.config import TuneConfig


class Settings(Config):
    """Everything that a run depends on."""

    model: str = DEFAULT_MODEL
    """A preset (see `safety-neurons list models`), a hub id, a folder or a .gguf file; or a PEFT adapter, which is
    merged in memory into the base that it names."""
    adapter: str | None = None
    """The folder or hub id of a PEFT adapter to merge into the model in memory."""
    harmful: str = "harmful"
    """Harmful prompts: the bundled ones, a public set (advbench, jailbreakbench, harmbench, strongreject,
    malicious-instruct, xstest-unsafe), or a .txt, .csv, .json or .jsonl file."""
    benign: str = "benign"
    """Ordinary prompts: the bundled ones, a public set (alpaca, alpaca-eval, dolly, jailbreakbench-benign), or a
    file."""
    borderline: str = "borderline"
    """Safe prompts that sound unsafe: the bundled ones, a public set (xstest-safe), or a file."""
    contrast: str = "contrast"
    """Unsafe prompts that resemble the borderline ones: the bundled ones, a public set (xstest-unsafe), or a file."""
    data_dir: Path | None = None
    """A folder with copies of public sets (advbench.jsonl, xstest_prompts.csv ...), searched before the network."""
    column: str | None = None
    """Column of your prompt files that holds the prompts. Default: guessed and reported."""
    seed: int = Field(0, ge=0)
    """Seed of all random choices."""
    device: str | None = None
    """cpu, cuda, mps ... Default: the best available."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision. Default: bfloat16 where it is fast, else float32."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread a large model over several devices."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the weights quantized by bitsandbytes. Neurons are tuned beside them; merging takes the full weights."""
    write_matrices: str | None = None
    """Pattern of the matrices that write the neurons ('model.layers.*.mlp.down_proj'), for models whose neurons are not
    found automatically."""
    allow_partial: bool = False
    """Continue without the layers that cannot be read; all outputs are marked as partial."""
    system: str | None = None
    """A system prompt."""
    chat_template: Path | None = None
    """A file with a Jinja chat template that replaces the model's own, or the name of one of the model's templates."""
    thinking: bool | None = None
    """Switch thinking on or off, for models whose template supports it. Default: off."""
    reasoning_tokens: int = Field(1024, ge=0)
    """Maximum number of tokens of a thought, besides those of the answer, for models that think before they answer."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models whose authors you trust. A permission for one call: no run
    keeps it, and no file can give it."""
    batch_size: int = Field(40, ge=1)
    """Prompts per batch; halved when memory runs out. Changes speed, memory and rounding: a run that is finished stays
    finished."""
    show_responses: bool = False
    """Keep compliant answers to harmful prompts in the report instead of redacting them."""
    find: FindConfig = FindConfig()
    explain: ExplainConfig = ExplainConfig()
    calibrate: CalibrationConfig = CalibrationConfig()
    guard: GuardConfig = GuardConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluationConfig = EvaluationConfig()

    def to_record(self) -> dict[str, Any]:
        """The settings as JSON, as a run keeps them: without PERMISSIONS."""
        return without_permissions(self.model_dump(mode="json"))


# Settings that let a call run code or send data elsewhere. No run keeps them, so that none of somebody else's has them.
PERMISSIONS = ("trust_remote_code", "tune.report_to")


def without_permissions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested as in `Settings`, without those of PERMISSIONS."""
    kept = dict(values)
    for path in PERMISSIONS:
        section, _, name = path.rpartition(".")
        if not section:
            kept.pop(name, None)
        elif isinstance(kept.get(section), Mapping):
            kept[section] = {option: value for option, value in kept[section].items() if option != name}
    return kept


Profile = Literal["quick", "paper", "paper-released"]

# The paper's method as printed; docs/paper.md has its numbers beside ours. Also those that are our defaults: a default
# may change, the paper does not.
_PAPER: dict[str, Any] = {
    "harmful": "advbench",
    "benign": "alpaca-eval",
    "find": {"score": "magnitude", "percent": 3.0, "selection": "difference", "prompts": 100, "positions": 5},
    "calibrate": {
        "alpha_conformity": 3.0,
        "alpha_rejection": 3.0,
        "prompt_positions": 5,
        "generated_tokens": 0,
        "direction": "position",
        "edit": "add",
    },
    "tune": {
        "refusals": 300,
        "contrast": 0,
        "benign": 0,
        "borderline": 0,
        "samples": 1,
        "temperature": 0.01,
        "largest_share": 1.0,
        "variants": 0,
        "answer_tokens": 256,
        "learning_rate": 3e-4,
        "epochs": 2,
        "kl": 0.0,
        "select": False,
    },
    "evaluate": {
        "attacks": ("direct", "gcg", "pair", "prompt-rs", "jbc"),
        "judge": "keywords",
        "on": "jailbreakbench:alpaca-eval",
        "prompts": 100,
        "answer_tokens": 256,
    },
}
_RELEASED: dict[str, Any] = {
    "find": {"score": "wanda", "percent": 10.0, "selection": "rejection", "prompts": 300},
    "calibrate": {"alpha_conformity": 4.0, "alpha_rejection": 4.0},
    "tune": {
        "percent": 50.0,
        "answer_tokens": 200,
        "learning_rate": 5e-5,
        "epochs": 1,
        "batch_size": 1,
        "schedule": "constant",
        "warmup": 0.0,
        "max_grad_norm": 1000.0,
    },
    "evaluate": {
        "attacks": ("direct", *(f"{name}:missing=request" for name in ("gcg", "pair", "prompt-rs", "jbc"))),
        "judges": ("keywords", "keywords:first=100"),
    },
}

# Settings under a name. quick: as few prompts and steps as still show what tuning does. paper-released: the paper's
# method as the code of its authors does it.
PROFILES: dict[Profile, dict[str, Any]] = {
    "quick": {
        "find": {"prompts": 50},
        "explain": {"random_sets": 200, "lens_prompts": 20},
        "tune": {
            **{"refusals": 120, "contrast": 48, "benign": 120, "borderline": 104},
            # Selecting would ask many times what the rest of the run asks.
            "select": False,
        },
        "evaluate": {"prompts": 30},
    },
    "paper": _PAPER,
    "paper-released": _PAPER | {section: _PAPER[section] | values for section, values in _RELEASED.items()},
}
