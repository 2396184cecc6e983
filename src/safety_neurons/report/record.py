"""What is known of a run: its model, settings, prompts and stages. `run.json` holds it, and results.json a copy."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.fields import Count, Layer, Positive, Section
from safety_neurons.settings import Settings

# The set that is attacked, which every run has.
HARMFUL = "harmful"
# The roles of a run's prompt sets.
PROMPT_SETS = ("harmful", "benign", "borderline", "contrast")


def _allowed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings whose values are allowed; those that only another version knows are left to `RunRecord.whole`."""
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        # Whether values go together, and whether what they name is installed, is checked where they are used.
        others = ("extra_forbidden", "value_error")
        if wrong := [one for one in error.errors(include_context=False) if one["type"] not in others]:
            where = ".".join(str(part)[:80] for part in wrong[0]["loc"])
            raise ValueError(f"the setting {where} is not allowed: {wrong[0]['msg']}") from error
    except SafetyNeuronsError as error:
        raise ValueError(str(error)) from error
    return values


def _unknown(values: dict[str, Any]) -> list[str]:
    """The settings, by path, that this version does not know."""
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        unknown = [one["loc"] for one in error.errors(include_context=False) if one["type"] == "extra_forbidden"]
        return [".".join(str(part)[:80] for part in place) for place in unknown]
    return []


class StageRecord(Section):
    """A finished stage: the fingerprint of its inputs, and the SHA-256 of the files that it wrote, by name."""

    fingerprint: str = ""
    seconds: Positive | None = None
    finished: str | None = None
    files: dict[str, str] = {}


class ModelRecord(Section):
    """The model; `identity` is the checksum or commit of its weights."""

    name: str = ""
    identity: str = ""
    dtype: str = ""
    device: str = ""
    parameters: Count | None = None
    thinking: str = ""


class CoverageRecord(Section):
    """How many layers and neurons were read; `unread` says why others were not."""

    layers: Layer | None = None
    layers_total: Layer | None = None
    without_mlp: Layer = 0
    neurons: Count | None = None
    unread: list[str] = []


class PromptsRecord(Section):
    """A prompt set: its name, where it is from, how it was read, and the prompts of each split."""

    name: str = ""
    source: str = ""
    sha256: str = ""
    column: str | None = None
    notes: list[str] = []
    duplicates: Count = 0
    train: Count = 0
    validation: Count = 0
    test: Count = 0


class RunRecord(Section):
    """A run. A page shows what there is of it; to go on with a run, `whole` wants all of it."""

    model: ModelRecord = ModelRecord()
    coverage: CoverageRecord = CoverageRecord()
    settings: Annotated[dict[str, Any], AfterValidator(_allowed)] = {}
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    versions: dict[str, str] = {}
    prompts: dict[str, PromptsRecord] = {}
    command: str = ""
    started: str = ""
    stages: dict[str, StageRecord] = {}

    def whole(self) -> Self:
        """This record, which lacks nothing that a run needs to go on.

        Raises:
            ValueError: it lacks something, or has settings that this version does not know.
        """
        parts: dict[str, tuple[Section | None, tuple[str, ...]]] = {
            "": (self, ("model", "settings", "prompts", "stages")),
            "model.": (self.model, ("name", "identity", "dtype")),
            **{f"prompts.{role}.": (self.prompts.get(role), ("name", "sha256")) for role in PROMPT_SETS},
            **{f"stages.{name}.": (stage, ("fingerprint",)) for name, stage in self.stages.items()},
        }
        for place, (part, names) in parts.items():
            for name in names:
                if not getattr(part, name, None) and (name != "stages" or name not in self.model_fields_set):
                    raise ValueError(f"{place}{name} is missing")
        if unknown := _unknown(self.settings):
            version = self.versions.get("safety-neurons")
            raise ValueError(
                f"this version knows no setting {', '.join(unknown[:5])}. The run was made with "
                f"{f'safety-neurons {version[:20]}' if version else 'another version of safety-neurons'}: use that "
                "version, or remove the setting from the file"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """The content of run.json, but for its schema."""
        return self.model_dump(by_alias=True, exclude_unset=True)
