"""The stages of a run: their order, and what each depends on."""

import hashlib
from collections.abc import Mapping
from typing import Any

from safety_neurons.core.files import fingerprint
from safety_neurons.core.plugins import digests
from safety_neurons.prompts import PromptSet
from safety_neurons.settings import Settings

STAGES = ("find", "explain", "calibrate", "tune", "evaluate", "report")
# What the processes of torchrun do together.
SHARED = frozenset({"find", "tune"})
PROMPT_SETS = ("harmful", "benign", "borderline", "contrast")

# What each stage depends on besides the model and the prompts: earlier stages, and settings by their path.
INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "find": ((), ("find",)),
    "explain": (("find",), ("explain",)),
    "calibrate": (
        ("find",),
        ("calibrate", "evaluate.judge", "evaluate.prompts", "evaluate.answer_tokens", "show_responses"),
    ),
    "tune": (("find",), ("tune", "calibrate", "evaluate.judge")),
    "evaluate": (("tune",), ("evaluate", "show_responses")),
}
COMMON = (
    *("seed", "dtype", "quantize", "system", "chat_template", "thinking", "write_matrices", "allow_partial"),
    "batch_size",
)


def stage_fingerprints(settings: Settings, identity: str, prompts: Mapping[str, PromptSet]) -> dict[str, str]:
    """For each stage the fingerprint of all that its result depends on."""
    values = settings.model_dump(mode="json")

    def value(path: str) -> Any:
        found: Any = values
        for part in path.split("."):
            found = found[part]
        return found

    common = [identity, {name: prompts[name].sha256 for name in PROMPT_SETS}, [value(name) for name in COMMON]]
    # A corpus of the user's is what stands in it, not where it is kept.
    brought = None if settings.tune.corpus is None else hashlib.sha256(settings.tune.corpus.read_bytes()).hexdigest()
    prints: dict[str, str] = {}
    for stage, (earlier, own) in INPUTS.items():
        inputs = [value(path) for path in own]
        files = [*digests(inputs), *([brought] if stage == "tune" else [])]
        prints[stage] = fingerprint(stage, common, [prints[name] for name in earlier], inputs, files)
    prints["report"] = fingerprint(prints)
    return prints


def needed_for(until: str) -> list[str]:
    """The stages up to `until` that it depends on; the report takes what there is, the whole run makes all."""
    if until == "report":
        return list(STAGES)
    needed = {until}
    for stage in reversed(STAGES[:-1]):
        if stage in needed:
            needed |= set(INPUTS[stage][0])
    return [stage for stage in STAGES if stage in needed]
