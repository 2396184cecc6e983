"""Prompts and prompt sets: identity, fixed splits and deterministic samples."""

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.plugins import unknown_name
from safety_neurons.core.progress import Listener

SPLITS = ("train", "validation", "test")
# Upper ends of the splits in the hash range: 60%, 15% and 25%.
SPLIT_ENDS = (0.60, 0.75, 1.0)
# What pandas, Excel and LibreOffice write for values that are missing or could not be computed.
_MISSING = re.compile(
    r"nan|null|none|nil|<na>|n/?a|nat|undefined|\[object object\]|err:\d+|"
    r"#(n/a|null!|name\?|ref!|value!|num!|div/0!|calc!|spill!|error!|nv|wert!|bezug!)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Prompt:
    """One request to a model. `split` is train, validation or test."""

    id: str
    text: str
    category: str = ""
    split: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their source, without duplicates.

    `source` is a path, a URL or a remark; `duplicates` is the number of dropped duplicates; `column` is the column of
    the texts in a table, such as "goal", "goal (guessed)" or "messages (guessed), the user's first turn"; `notes` are
    phrases on what else was found out or left out when its file was read.
    """

    name: str
    prompts: tuple[Prompt, ...]
    source: str
    duplicates: int = 0
    column: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [prompt.text for prompt in self.prompts]

    @property
    def remarks(self) -> str:
        """What a user should know about how the set was read; empty if there is nothing to say."""
        guessed = [f"column {self.column}"] if self.column.endswith(("(guessed)", "first turn")) else []
        dropped = [f"{self.duplicates} duplicate{'s' * (self.duplicates > 1)} left out"] if self.duplicates else []
        return "; ".join([*guessed, *self.notes, *dropped])

    @property
    def sha256(self) -> str:
        """Identity of the set: a hash of its ids, texts and splits, in order."""
        content = json.dumps([[prompt.id, prompt.text, prompt.split] for prompt in self.prompts])
        return hashlib.sha256(content.encode()).hexdigest()

    def split(self, name: str) -> "PromptSet":
        """The prompts of one split.

        Raises:
            SafetyNeuronsError: there is no such split, or it has no prompts.
        """
        if name not in SPLITS:
            raise SafetyNeuronsError(unknown_name("split", name, list(SPLITS)))
        chosen = tuple(prompt for prompt in self.prompts if prompt.split == name)
        if not chosen:
            counts = {split: sum(prompt.split == split for prompt in self.prompts) for split in SPLITS}
            listed = ", ".join(f"{split} {count}" for split, count in counts.items())
            raise SafetyNeuronsError(
                f"The prompt set {self.name!r} ({self.source}) has no prompts in its {name} split "
                f"({listed}). Use a larger set, or set the split of each prompt (train, validation or test) in a "
                "column `split`."
            )
        return dataclasses.replace(self, prompts=chosen)

    def take(self, count: int | None) -> "PromptSet":
        """A deterministic sample of `count` prompts (None: all), in the order of the set.

        The prompts are taken at equal distances from the list sorted by category, so each category keeps its share to
        within one prompt.

        Raises:
            SafetyNeuronsError: `count` is below 1.
        """
        if count is None or count >= len(self.prompts):
            return self
        if count < 1:
            raise SafetyNeuronsError(f"The sample of the set {self.name!r} needs at least 1 prompt, not {count}.")
        by_category = sorted(range(len(self.prompts)), key=lambda place: self.prompts[place].category)
        # The middle of each of `count` equal parts.
        chosen = sorted(by_category[(2 * piece + 1) * len(by_category) // (2 * count)] for piece in range(count))
        return dataclasses.replace(self, prompts=tuple(self.prompts[place] for place in chosen))

    @classmethod
    def from_texts(cls, name: str, texts: Iterable[str]) -> "PromptSet":
        """A set of texts from Python, with fixed splits.

        Raises:
            SafetyNeuronsError: there are no texts, or some are blank or not strings.
        """
        if isinstance(texts, str):
            raise SafetyNeuronsError(f"The prompts of {name!r} are one string: pass a list of strings.")
        entries = []
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise SafetyNeuronsError(f"Prompt {number} of {name!r} is of type {kind}: pass a list of strings.")
            entries.append(Entry(number, text))
        return assemble(name, entries, source=f"{name} (texts from Python)", unit="item")


def tell(prompts: Mapping[str, PromptSet], listener: Listener) -> None:
    """Say how sets were read, by their role or name, where there is something to say; each file once."""
    by_source: dict[tuple[str, str], list[str]] = {}
    for name, found in prompts.items():
        if found.remarks:
            by_source.setdefault((found.source, found.remarks), []).append(name)
    for (source, remarks), names in by_source.items():
        role = "" if names == [source] else f" ({', '.join(names)})"
        listener.say(f"{source}{role}: {remarks}.")


@dataclass(frozen=True)
class Entry:
    """An unchecked prompt. `place` is its line or its position in a list, from 1."""

    place: int
    text: str
    id: str = ""
    category: str = ""
    split: str = ""


def normalized(text: str) -> str:
    """The text for comparison, without differences in case, spacing and Unicode composition."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_missing(text: str) -> bool:
    """Whether a text is blank, or the mark of a value that is missing or could not be computed."""
    return not text.strip() or _MISSING.fullmatch(text.strip()) is not None


def split_of(text: str) -> str:
    """The split of a prompt without one, from its text alone."""
    digest = hashlib.sha256(normalized(text).encode()).digest()
    share = int.from_bytes(digest[:6]) / 2**48
    return next(split for split, end in zip(SPLITS, SPLIT_ENDS, strict=True) if share < end)


def assemble(
    name: str,
    entries: Sequence[Entry],
    source: str,
    unit: str = "line",
    column: str = "",
    notes: tuple[str, ...] = (),
) -> PromptSet:
    """Check entries and make a set: strip the texts, drop duplicates (all but the first), assign ids and splits.

    `unit` is what a place is called in messages (line or item).

    Raises:
        SafetyNeuronsError: no entries, blank or broken prompts, wrong or missing splits, or duplicate ids.
    """
    if not entries:
        raise SafetyNeuronsError(f"There are no prompts in {source}. Give at least one.")
    _check(entries, source, unit)
    own_splits = any(entry.split.strip() for entry in entries)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    places_of_ids: dict[str, int] = {}
    for entry in entries:
        key = normalized(entry.text)
        if key in seen:
            continue
        seen.add(key)
        identity = entry.id.strip() or f"{name}-{entry.place:04d}"
        if identity in places_of_ids:
            raise SafetyNeuronsError(
                f"Two different prompts have the id {identity!r} in {source}, in {unit} {places_of_ids[identity]} and "
                f"{unit} {entry.place}. Give each prompt its own id, or omit the ids."
            )
        places_of_ids[identity] = entry.place
        split = entry.split.strip().casefold() if own_splits else split_of(entry.text)
        prompts.append(Prompt(identity, entry.text.strip(), entry.category.strip(), split))
    return PromptSet(name, tuple(prompts), source, len(entries) - len(prompts), column, notes)


def _check(entries: Sequence[Entry], source: str, unit: str) -> None:
    blank = [entry.place for entry in entries if is_missing(entry.text)]
    if blank:
        marks = [entry.text.strip() for entry in entries if is_missing(entry.text) and entry.text.strip()]
        mark = f" ({marks[0]!r} stands for a missing value)" if marks else ""
        raise SafetyNeuronsError(
            f"There are blank prompts in {source}, in {places(unit, blank)}{mark}. Fill them in or delete them."
        )
    # JSON can hold lone surrogates and NUL, which tokenizers reject.
    broken = [entry.place for entry in entries if not _is_encodable(entry.text + entry.id + entry.category)]
    if broken:
        raise SafetyNeuronsError(
            f"There are invalid characters (a lone surrogate or NUL) in {source}, in {places(unit, broken)}. Correct "
            "these prompts."
        )
    if any(entry.split.strip() for entry in entries):
        wrong = [entry for entry in entries if entry.split.strip().casefold() not in SPLITS]
        if wrong:
            raise SafetyNeuronsError(
                f"The split {wrong[0].split!r} in {source} is not train, validation or test "
                f"({places(unit, [entry.place for entry in wrong])}). Correct it, or remove all splits "
                "to have them assigned."
            )


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def places(unit: str, numbers: Sequence[int]) -> str:
    """Places for a message: "line 3", "lines 3, 5 and 9", "lines 1, 2, 3, 4, 5 and 12 more"."""
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    shown = [str(number) for number in numbers[:5]]
    if len(numbers) > len(shown):
        return f"{unit}s {', '.join(shown)} and {len(numbers) - len(shown)} more"
    return f"{unit}s {', '.join(shown[:-1])} and {shown[-1]}"
