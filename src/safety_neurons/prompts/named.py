"""Prompt sets that have a name: those that come with the library, and public ones, downloaded once."""

from dataclasses import dataclass
from pathlib import Path

from safety_neurons.cache import cache_folder
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.plugins import unknown_name
from safety_neurons.prompts.prompt_set import PromptSet
from safety_neurons.prompts.read import read_table
from safety_neurons.storage import atomic_path

BUNDLED_FOLDER = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class NamedSet:
    """A prompt set that can be asked for by name.

    `url` is empty for a bundled set. `substitute` is the bundled set to use where there is no network. `keep`
    is a column and the value that rows must have in it.
    """

    name: str
    description: str
    licence: str
    url: str = ""
    column: str = "prompt"
    category: str = "category"
    keep: tuple[str, str] | None = None
    substitute: str = ""


BUNDLED = (
    NamedSet("harmful", "240 harmful requests in 12 categories", "Apache-2.0"),
    NamedSet("benign", "240 harmless twins of the harmful requests, alike in form and length", "Apache-2.0"),
    NamedSet("borderline", "120 harmless requests that sound harmful, to measure over-refusal", "Apache-2.0"),
)

PUBLIC = (
    NamedSet(
        "advbench",
        "AdvBench: 520 harmful instructions (Zou et al. 2023)",
        "MIT",
        url="https://raw.githubusercontent.com/llm-attacks/llm-attacks/main/data/advbench/harmful_behaviors.csv",
        column="goal",
        substitute="harmful",
    ),
    NamedSet(
        "jailbreakbench",
        "JailbreakBench: 100 harmful behaviours in 10 categories (Chao et al. 2024)",
        "MIT",
        url="https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors/resolve/main/data/harmful-behaviors.csv",
        column="Goal",
        category="Category",
        substitute="harmful",
    ),
    NamedSet(
        "alpaca",
        "Alpaca: 52 thousand everyday instructions (Taori et al. 2023)",
        "CC-BY-NC-4.0",
        url="https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",
        column="instruction",
        substitute="benign",
    ),
    NamedSet(
        "xstest-safe",
        "XSTest: 250 safe requests that sound unsafe (Röttger et al. 2024)",
        "CC-BY-4.0",
        url="https://raw.githubusercontent.com/paul-rottger/xstest/main/xstest_prompts.csv",
        category="type",
        keep=("label", "safe"),
        substitute="borderline",
    ),
    NamedSet(
        "xstest-unsafe",
        "XSTest: the 200 unsafe counterparts of the safe requests (Röttger et al. 2024)",
        "CC-BY-4.0",
        url="https://raw.githubusercontent.com/paul-rottger/xstest/main/xstest_prompts.csv",
        category="type",
        keep=("label", "unsafe"),
        substitute="harmful",
    ),
)


def named_sets() -> tuple[NamedSet, ...]:
    """All sets that have a name, the bundled ones first."""
    return BUNDLED + PUBLIC


def named_set(name: str) -> NamedSet | None:
    """The set of this name, if there is one; nothing is read or downloaded."""
    return next((row for row in named_sets() if row.name == name), None)


def load_named(name: str) -> PromptSet:
    """Read a named set; a public one is downloaded the first time and kept in the cache folder.

    Raises:
        SafetyNeuronsError: there is no such set, or it could not be downloaded.
    """
    row = named_set(name)
    if row is None:
        raise SafetyNeuronsError(unknown_name("prompt set", name, [known.name for known in named_sets()]))
    if not row.url:
        return _read(row, BUNDLED_FOLDER / f"{name}.jsonl")
    kept = kept_path(row)
    if not kept.exists():
        _download(row, kept)
    try:
        return _read(row, kept)
    except SafetyNeuronsError as error:
        raise SafetyNeuronsError(
            f"The kept copy of {name}, {kept}, cannot be used: {error} Delete it, and it is downloaded again."
        ) from error


def kept_path(row: NamedSet) -> Path:
    """Where a public set's file is kept: sets that come from the same file share it."""
    return cache_folder() / "prompts" / row.url.rsplit("/", 1)[-1]


def _read(row: NamedSet, path: Path) -> PromptSet:
    source = row.url or f"bundled:{row.name}"
    return read_table(path, row.name, source, row.column, row.category, row.keep)


def _download(row: NamedSet, kept: Path) -> None:
    # Imported here: urllib takes longer to load than a bundled set takes to read.
    from safety_neurons.prompts.download import DownloadError, download

    try:
        content = download(row.url)
    except DownloadError as error:
        raise SafetyNeuronsError(
            f"The prompt set {row.name!r} could not be downloaded from {row.url} ({error}). Either download "
            f"that address on another machine and give the file's path instead of the name (saved as {kept}, "
            f"it is found under the name), or use the bundled set {row.substitute!r}, which needs no network."
        ) from error
    with atomic_path(kept) as temporary:
        temporary.write_bytes(content)
        try:
            # Read before it is kept: a network's login page also comes with the status 200.
            _read(row, temporary)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"What was downloaded for {row.name!r} is not the prompt set, and was not kept: {error} Open "
                f"the address in a browser to see what it sends, or use the bundled set {row.substitute!r}."
            ) from error
