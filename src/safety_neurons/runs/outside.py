"""What the record of a run names outside of the run's folder is said before it is used.

The folder may be a stranger's: it can name any file, model and server.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safety_neurons.core.plugins import listed
from safety_neurons.core.progress import Listener
from safety_neurons.models.presets import PRESETS
from safety_neurons.prompts.named import named_set
from safety_neurons.runs.folder import STAGES
from safety_neurons.settings import PERMISSIONS, Settings

# What a command does that loads a run's model and nothing else that the record names.
LOAD = "load"
_STAGES = STAGES[:-1]
_MODEL, _RUN = (*_STAGES, LOAD), _STAGES
# The settings that name something outside of the folder, or show what is hidden; and what uses them.
_USES: dict[str, Collection[str]] = {
    **dict.fromkeys(("model", "adapter", "chat_template"), _MODEL),
    **dict.fromkeys(("harmful", "benign", "borderline", "contrast", "data_dir", "evaluate.judge"), _RUN),
    "show_responses": ("calibrate", "evaluate"),
    **dict.fromkeys(("find.score", "find.other_model"), ("find",)),
    "tune.corpus": ("tune",),
    **{
        f"evaluate.{name}": ("evaluate",)
        for name in (
            *("attacks", "defenses", "judges", "on", "judge_errors", "tasks", "task_folder", "gsm8k"),
            *("preference_judge", "preference_endpoint", "questions"),
        )
    },
}
_MODELS = ("model", "find.other_model", "evaluate.preference_judge")
_PROMPTS = ("harmful", "benign", "borderline", "contrast", "evaluate.on")
_MEMBERS = ("find.score", "evaluate.judge", "evaluate.attacks", "evaluate.defenses", "evaluate.judges")
# Options of attacks, defenses and judges that name something outside, whatever their value looks like.
_OPTIONS = ("model", "endpoint", "path")
_PERMITTED_BY = {"trust_remote_code": (*_STAGES, LOAD), "tune.report_to": ("tune",)}
_MEANS = {
    "trust_remote_code": "run code that comes with the model",
    "tune.report_to": "send the training's progress to trackers",
}


def tell_outside(
    folder: Path,
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    settings: Settings,
    uses: Collection[str],
    listener: Listener,
) -> None:
    """Say what the record names outside of the folder and this call does not, and which permissions it cannot give.

    Args:
        stored: the record's settings.
        settings: those with what was `given` to this call.
        uses: the stages that this command will run, or LOAD.
    """
    named = [f"{path} {shown}" for path, shown in _outside(given, settings, uses)]
    if stored and named:
        listener.say(
            f"The record of {folder}, not this call, names what is outside of the folder: {'; '.join(named)}. If the "
            "folder is not yours, check first that you want this."
        )
    for path in PERMISSIONS:
        asked = _value(stored, path)
        if asked and not _is_given(given, path) and set(uses) & set(_PERMITTED_BY[path]):
            what = f"{_MEANS[path]} ({path})"
            listener.say(
                f"The record of {folder} asks to {what}, which no record can permit: it is ignored. If you want it, "
                f"give {path} in this call."
            )


def _outside(given: Mapping[str, Any], settings: Settings, uses: Collection[str]) -> Iterator[tuple[str, str]]:
    """The settings that this call did not name, by path, and what they name outside."""
    values, defaults = settings.model_dump(mode="json"), Settings().model_dump(mode="json")
    for path, users in _USES.items():
        value = _value(values, path)
        if value in (None, _value(defaults, path)) or _is_given(given, path) or not set(uses) & set(users):
            continue
        texts = value.split(":") if path == "evaluate.on" else value if isinstance(value, list) else [value]
        if path == "show_responses":
            yield path, "(answers to harmful prompts are not redacted)"
        elif shown := [str(text) for text in texts if _reaches_out(path, str(text))]:
            yield path, listed(shown, most=10)


def _reaches_out(path: str, text: str) -> bool:
    if path in _MODELS:
        return text not in PRESETS
    if path in _PROMPTS:
        return named_set(text) is None
    if path in _MEMBERS:
        name, _, options = text.partition(":")
        pairs = [part.partition("=") for part in options.split(",")]
        return name.endswith(".py") or any(
            option.strip() in _OPTIONS or any(mark in value for mark in "/\\~") for option, _, value in pairs
        )
    return True


def _value(settings: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    within = settings.get(section) if section else settings
    return within.get(name) if isinstance(within, Mapping) else None


def _is_given(given: Mapping[str, Any], path: str) -> bool:
    section, _, name = path.rpartition(".")
    within = given.get(section, {}) if section else given
    return isinstance(within, Mapping) and name in within
