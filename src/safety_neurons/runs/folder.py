"""The run folder: its files, its record, and which of its stages are up to date."""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safety_neurons.core import plugins
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import disk_errors, exists, fingerprint, read_object, write_json
from safety_neurons.core.folders import atomic_folder, check_entries, remove_leftovers
from safety_neurons.core.locks import NAME as LOCK
from safety_neurons.core.locks import locked
from safety_neurons.core.records import first_problem
from safety_neurons.core.temporary import is_temporary
from safety_neurons.core.trust import trust
from safety_neurons.models.identity import path_identity
from safety_neurons.prompts import PromptSet, load_prompts
from safety_neurons.report.record import PROMPT_SETS, RunRecord
from safety_neurons.report.results import SCHEMA, read_results
from safety_neurons.settings import Settings, without_permissions
from safety_neurons.tuning.disguise_files import learned_texts

STAGES = ("find", "explain", "calibrate", "tune", "evaluate", "report")
# What the processes of torchrun do together.
SHARED = frozenset({"find", "tune", "evaluate"})
# What is written in a run's folder, or in that of an evaluation or a comparison.
FILES = re.compile(r"\.lock|.+\.(json|jsonl|damaged|safetensors|html|md|xml)", re.DOTALL)
FOLDERS = re.compile(r"replaced|deltas|lora-[0-9a-f]{16}")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's artifacts, and the record (`run.json`) of what was done."""

    path: Path

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    @property
    def neurons(self) -> Path:
        return self.path / "neurons.safetensors"

    @property
    def directions(self) -> Path:
        return self.path / "directions.safetensors"

    @property
    def corpus(self) -> Path:
        return self.path / "corpus.jsonl"

    @property
    def delta(self) -> Path:
        return self.path / "delta.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Of a training that is not finished; hidden, because it is gone when it is."""
        return self.path / ".checkpoint.safetensors"

    @property
    def responses(self) -> Path:
        return self.path / "responses.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.path / "verdicts.jsonl"

    @property
    def measurements(self) -> Path:
        return self.path / "measurements.jsonl"

    @property
    def guard(self) -> Path:
        return self.path / "guard.safetensors"

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def deltas(self) -> Path:
        """The folder of the deltas that experiments trained."""
        return self.path / "deltas"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def check(self) -> list[str]:
        """Check that the artifacts are files of this folder, not links or devices; returns the names in the folder.

        Raises:
            SafetyNeuronsError: one is something else, or the folder cannot be read.
        """
        return check_entries(self.path, FILES, FOLDERS)

    def record(self) -> RunRecord | None:
        """What is known of the run so far; None for a new folder, and for a run that lost its record.

        A lost run.json is found again in results.json.

        Raises:
            SafetyNeuronsError: the folder holds other things than a run, or a damaged record; as `check`.
        """
        names = self.check()
        if self.record_file.name in names:
            return self._read_record()
        if all(map(_is_remains, names)):
            return None
        copy = self._copied_record()
        if copy is None and not self.lost_record:
            raise SafetyNeuronsError(
                f"{self.path} is not empty and holds no run. Choose another folder, so that nothing of yours is lost."
            )
        return copy

    def whole_record(self) -> RunRecord:
        """The record of a run that exists.

        Raises:
            SafetyNeuronsError: as `record`, or there is none.
        """
        if (record := self.record()) is None:
            if self.lost_record:
                problem = "lost its record, run.json. Run it again with its settings, the model among them"
            else:
                problem = "holds no run. Correct the folder, or make a run in it"
            raise SafetyNeuronsError(f"{self.path} {problem}: {self.command} --model MODEL")
        return record

    @property
    def lost_record(self) -> bool:
        """Whether a run's files are here without its run.json."""
        there = exists(self.neurons) and exists(self.directions)
        return not exists(self.record_file) and (there or self._copied_record() is not None)

    def _read_record(self) -> RunRecord:
        content = read_object(self.record_file, self._advice())
        schema = content.pop("schema", None)
        if isinstance(schema, int) and schema != SCHEMA:
            raise SafetyNeuronsError(
                f"{self.path} holds a run of another version of safety-neurons (schema {schema} in run.json, and this "
                f"version reads {SCHEMA}): use that version, or choose another folder."
            )
        try:
            if schema is None:
                raise ValueError("schema is missing")
            return RunRecord.model_validate(content).whole()
        except ValueError as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise SafetyNeuronsError(f"{self.record_file} is damaged: {problem}. {self._advice()}") from error

    @property
    def command(self) -> str:
        """The command that runs all stages."""
        return f"safety-neurons run --out {shlex.quote(str(self.path))}"

    def _copied_record(self) -> RunRecord | None:
        """The record in results.json; None where there is no whole one."""
        try:
            return read_results(self.results).run.whole()
        except (SafetyNeuronsError, ValueError):
            return None

    def _advice(self) -> str:
        """What leads on where run.json cannot be read."""
        if self._copied_record() is not None:
            return "Delete it and run the same command again: results.json has a copy of it."
        others = [entry.name for entry in self.path.iterdir() if entry.name != self.record_file.name]
        if (self.neurons.is_file() and self.directions.is_file()) or all(map(_is_remains, others)):
            return (
                "Delete it, and run again with the run's settings, the model among them (answers are cached): "
                f"{self.command} --model MODEL"
            )
        return "Choose another folder."

    @contextlib.contextmanager
    def held(self, advice: str = "Wait for it, or choose another folder.") -> Iterator[None]:
        """Hold the lock of the folder, which is made if it is missing; one that holds other things gets no lock.

        Args:
            advice: what the user can do if another process holds it.

        Raises:
            SafetyNeuronsError: as `record`, or another process works on the run.
        """
        self.record()
        with locked(self.path, advice):
            yield

    def write_record(self, record: RunRecord) -> None:
        """Replace the record in one step."""
        write_json(self.record_file, {"schema": SCHEMA} | record.to_json())

    def set_aside(self, file: Path) -> Path:
        """Move a file of the run, whatever it is, to the next folder `replaced/N`; where it is now.

        Raises:
            SafetyNeuronsError: the folder cannot be written.
        """
        with disk_errors(self.path / "replaced"):
            target = self._next_replaced() / file.name
            target.parent.mkdir()
            file.rename(target)
        return target

    def _next_replaced(self) -> Path:
        above = self.path / "replaced"
        above.mkdir(exist_ok=True)
        remove_leftovers(above)
        numbers = [int(name) for name in os.listdir(above) if re.fullmatch(r"[0-9]{1,9}", name)]
        return above / str(1 + max(numbers, default=0))

    def keep_replaced(self) -> Path:
        """Copy the run to the next folder `replaced/N`, a run folder like this one, before something is replaced.

        Raises:
            SafetyNeuronsError: the disk is full or the folder cannot be written.
        """
        above = self.path / "replaced"
        with disk_errors(above):
            target = self._next_replaced()
            with atomic_folder(target) as partial, os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False) and entry.name != LOCK and not is_temporary(entry.name):
                        _link_or_copy(Path(entry.path), partial / entry.name)
        return target


def _is_remains(name: str) -> bool:
    """Whether a process that was killed before it kept anything left a file of this name."""
    return name == LOCK or is_temporary(name)


def _link_or_copy(file: Path, target: Path) -> None:
    """Files share their bytes where the file system can: they are replaced, or copied before they are appended to."""
    try:
        os.link(file, target)
    except OSError:
        # This file system has no hard links.
        shutil.copy2(file, target)


def merged_settings(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The folder's own settings, overridden by what was given now. PERMISSIONS are never taken from the folder.

    Raises:
        SafetyNeuronsError: a value is not allowed, or the permission to run a model's code was given for a model with
            an adapter that only the folder names.
    """
    values = {name: value for name, value in stored.items() if name in Settings.model_fields}
    trust(given, values)
    settings = Settings.checked(overridden(without_permissions(values), given))
    if settings.adapter is not None:
        check_permitted(settings, "adapter", given)
    return settings


def check_permitted(settings: Settings, path: str, given: Mapping[str, Any]) -> None:
    """Check that the permission to run code was not given before it was known that it concerns this model, too.

    Args:
        path: the setting that names a model or an adapter besides the run's model.

    Raises:
        SafetyNeuronsError: the permission was given, and only the record names this model.
    """
    section, _, name = path.rpartition(".")
    values = settings.model_dump(include={section: {name}} if section else {name})
    model = values[section][name] if section else values[name]
    if settings.trust_remote_code and name not in (given.get(section, {}) if section else given):
        raise SafetyNeuronsError(
            f"trust_remote_code would also run code that comes with {model}, which the record of the run names "
            f"({path}) and this call does not. If you trust its authors as well, give {path} again in this call."
        )


def overridden(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `given` over them; sections are merged, everything else is replaced."""
    merged = dict(values)
    for name, value in given.items():
        old = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged


# Settings on which every stage depends.
COMMON = ("seed", "dtype", "quantize", "system", "thinking", "reasoning_tokens", "write_matrices", "allow_partial")
# Settings for speed, memory and logging. They change results by rounding alone, so they are part of no fingerprint.
SPEED = (
    *("batch_size", "device", "device_map", "tune.accumulate", "tune.gradient_checkpointing", "tune.shard"),
    *("tune.checkpoint_every", "tune.report_to"),
)
# Defenses that need what tuning makes.
TUNED = frozenset({"safetuning", "lora", "safedecoding"})


def _defenses(settings: Settings) -> set[str]:
    """The defenses of the evaluation, without their options."""
    return {name.partition(":")[0] for name in settings.evaluate.defenses}


def inputs_of(settings: Settings) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What each stage depends on besides the model, the prompts and COMMON: earlier stages, and settings by path."""
    defenses = _defenses(settings)
    guarded = ("guard", "calibrate", "find", "tune.disguises") if "guard" in defenses else ()
    return {
        "find": ((), ("find",)),
        "explain": (("find",), ("explain",)),
        "calibrate": (
            ("find",),
            ("calibrate", "evaluate.judge", "evaluate.prompts", "evaluate.answer_tokens", "show_responses"),
        ),
        "tune": (("find",), ("tune", "calibrate", "evaluate.judge", "evaluate.answer_tokens")),
        "evaluate": (("tune" if TUNED & defenses else "find",), ("evaluate", "show_responses", *guarded)),
    }


def stage_fingerprints(settings: Settings, identity: str, prompts: Mapping[str, PromptSet]) -> dict[str, str]:
    """For each stage the fingerprint of all that its result depends on."""
    values = settings.model_dump(mode="json")
    for path in SPEED:
        section, _, name = path.rpartition(".")
        del (values[section] if section else values)[name]

    def value(path: str) -> Any:
        found: Any = values
        for part in path.split("."):
            found = found[part]
        return found

    sets = {name: prompts[name].sha256 for name in PROMPT_SETS}
    common = [identity, sets, [value(name) for name in COMMON], _template(settings)]
    # Files of the user's count by what is in them.
    own_sets = [] if settings.evaluate.on is None else settings.evaluate.on.split(":")
    config, texts = settings.evaluate, learned_texts(settings.tune.disguises)
    files: dict[str, list[str | None]] = {
        "find": [path_identity(settings.find.other_model)],
        "tune": [path_identity(settings.tune.corpus), texts],
        "evaluate": [
            *map(
                path_identity,
                (config.judge_errors, config.questions, config.task_folder, config.gsm8k, config.preference_judge),
            ),
            *(load_prompts(name, settings.column, settings.data_dir).sha256 for name in own_sets if name),
            *([texts] if "guard" in _defenses(settings) else []),
        ],
    }
    prints: dict[str, str] = {}
    for stage, (earlier, own) in inputs_of(settings).items():
        inputs = [value(path) for path in own]
        options = map(path_identity, _options_with_paths(inputs))
        contents = [*plugins.digests(inputs), *options, *files.get(stage, [])]
        prints[stage] = fingerprint(stage, common, [prints[name] for name in earlier], inputs, contents)
    prints["report"] = fingerprint(prints)
    return prints


def _template(settings: Settings) -> str | None:
    """The text of the chat template that replaces the model's, or its name."""
    if settings.chat_template is None:
        return None
    # Imported late, with Jinja.
    from safety_neurons.models.template import named_or_read

    return named_or_read(settings.chat_template)


def _options_with_paths(inputs: Any) -> Iterator[str]:
    """The values of members' options that are files or folders: `attack.jsonl` of `file:path=attack.jsonl`."""
    if isinstance(inputs, str):
        values = (part.partition("=")[2].strip() for part in inputs.partition(":")[2].split(","))
        yield from (value for value in values if value and os.path.exists(os.path.expanduser(value)))
    elif isinstance(inputs, Mapping | list | tuple):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from _options_with_paths(value)


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """The settings that differ, by path, each with both values in words."""
    changed: dict[str, str] = {}
    for name, value in after.items():
        old, path = before.get(name), f"{above}{name}"
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            changed |= changed_settings(old, value, f"{path}.")
        elif old != value:
            changed[path] = f"{path}: {_in_words(old)}, now {_in_words(value)}"
    return changed


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value)


def needed_for(until: str, settings: Settings) -> list[str]:
    """The stages up to `until` that it depends on; for the report, all of them."""
    if until == "report":
        return list(STAGES)
    needed = {until}
    for stage in reversed(STAGES[:-1]):
        if stage in needed:
            needed |= set(inputs_of(settings)[stage][0])
    return [stage for stage in STAGES if stage in needed]
