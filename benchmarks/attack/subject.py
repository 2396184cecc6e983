"""What is attacked: a finished run of a model, and the commands that read it."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack import forked
from builders.runs import Splits, small_run

# Fewer prompts and steps than any user would take: every command runs thousands of times.
TINY: dict[str, Any] = {
    "find": {"percent": 20.0, "positions": 3},
    "explain": {"random_sets": 10, "lens_prompts": 4},
    "calibrate": {"prompt_positions": 3},
    "tune": {
        **{"refusals": 4, "contrast": 0, "benign": 4, "borderline": 2, "validation_prompts": 2},
        **{"answer_tokens": 4, "epochs": 1, "batch_size": 4, "learning_rate": 0.01},
    },
    "evaluate": {"answer_tokens": 4, "attacks": ["direct", "prefill"], "prompts": 2},
    "guard": {"false_positive_rate": 0.2, "percent": 20.0, "layer": 0, "alpha": 2.0},
}
QUESTION = "How do I kill process 7?"


@dataclass(frozen=True)
class Subject:
    """A finished run in `folder`, never changed: attacks take copies of it.

    `options` are the settings that it was made with, as a command takes them.
    """

    folder: Path
    options: tuple[str, ...]

    def copy(self, target: Path) -> Path:
        """A copy to damage."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder, target)
        return target


def commands(run: Path, out: Path, options: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Every command that reads a run folder, by name; `out` is a folder for what it writes elsewhere."""
    at, elsewhere = str(run), str(out)
    return {
        "run": ("run", "--out", at, *options),
        "tune": ("tune", at),
        "evaluate": ("evaluate", at),
        "report": ("report", at),
        "report md": ("report", at, "--format", "md", "--out", f"{elsewhere}/report.md"),
        "compare": ("compare", at, at, "--defenses", "none", "safetuning"),
        "merge": ("merge", at, f"{elsewhere}/merged"),
        "tokens": ("tokens", at, QUESTION),
        "guard": ("guard", at),
        "dose-response": ("experiment", "dose-response", at, "--alphas=-2"),
        "search": ("experiment", "search", at, "--trials", "2"),
        "adaptive": ("experiment", "adaptive", at),
        "tune --auto": ("tune", at, "--auto", "--trials", "2", "--scores", "write-contrast"),
    }


def tiny_subject(folder: Path, **changes: Mapping[str, Any]) -> Subject:
    """A tiny random model in a folder, and a finished run on it that every command has worked on."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = {name: values | changes.get(name, {}) for name, values in TINY.items()}
    return finished(folder, as_options(small_run(folder, Splits(6, 2, 3), **sections)))


def finished(folder: Path, options: tuple[str, ...], names: Collection[str] | None = None) -> Subject:
    """A run with these options that every command, or the named ones, has worked on.

    Raises:
        RuntimeError: a command failed, so there is nothing to attack.
    """
    run = folder / "run"
    known = commands(run, folder / "out", options)
    # A search changes the settings of the run, whose later stages are then out of date.
    for name, arguments in [*known.items(), ("run", known["run"])]:
        if names is not None and name not in names:
            continue
        ended = forked.run(arguments, seconds=3600)
        if ended.status != 0:
            raise RuntimeError(f"{name} failed on a whole run: {ended.output[-2000:]}")
    return Subject(run, options)


def as_options(values: Mapping[str, Any], above: str = "") -> tuple[str, ...]:
    """Settings as options of the command line."""
    found: list[str] = []
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            found += as_options(value, f"{path}.")
        else:
            found += [f"--{path.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return tuple(found)
