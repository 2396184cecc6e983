"""Reading prompt sets that have a name: bundled, from a folder of local copies, or downloaded once."""

import os
from pathlib import Path

from safety_neurons.cache import cache_folder
from safety_neurons.errors import SafetyNeuronsError
from safety_neurons.prompts.catalogue import NamedSet
from safety_neurons.prompts.formats import PARSERS, PLAIN
from safety_neurons.prompts.prompt_set import PromptSet
from safety_neurons.prompts.read import WELL_KNOWN_COLUMNS, make_set, read_table
from safety_neurons.storage import atomic_path

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
DATA_DIR_OPTION = "--data-dir (data_dir= in Python)"


def load_named(row: NamedSet, data_dir: str | Path | None = None) -> PromptSet:
    """Read a named set. A public one is looked for in `data_dir`, then in the cache, then downloaded and kept.

    Raises:
        SafetyNeuronsError: a copy cannot be used, there is more than one, or there is none and no network.
    """
    if not row.url:
        return _read(row, BUNDLED_FOLDER / f"{row.name}.jsonl", f"bundled:{row.name}")
    if data_dir is not None:
        copy = local_copy(row, data_dir)
        if copy is not None:
            return _read(row, copy, str(copy))
    kept = kept_path(row)
    if not kept.exists():
        _download(row, kept, data_dir)
    try:
        return _read(row, kept, row.url)
    except SafetyNeuronsError as error:
        raise SafetyNeuronsError(
            f"The kept copy of {row.name}, {kept}, cannot be used: {error} Delete it, and it is downloaded again."
        ) from error


def kept_path(row: NamedSet) -> Path:
    """Where a public set's file is kept: sets that come from the same file share it, revisions do not."""
    return cache_folder() / "prompts" / row.revision[:12] / row.file


def local_copy(row: NamedSet, data_dir: str | Path) -> Path | None:
    """The file of a public set in a folder; failing that, in one of its direct subfolders.

    It has the name of the public file, or the set's (or its family's) with any ending that can be read.

    Raises:
        SafetyNeuronsError: there is no such folder, or there are two such files.
    """
    folder = Path(os.path.expanduser(data_dir))
    try:
        entries = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise SafetyNeuronsError(
            f"The data folder {folder} cannot be read ({getattr(error, 'strerror', None) or error}). "
            f"Correct {DATA_DIR_OPTION}, or leave it out."
        ) from error
    names = [row.file, *(f"{stem}{ending}" for stem in (row.name, row.family) if stem for ending in PARSERS)]
    for places in ([folder], [folder / entry for entry in entries]):
        # os.path, because Path.is_file raises where a folder may not be entered.
        found = [place / name for place in places for name in names if os.path.isfile(place / name)]
        if len(found) > 1:
            raise SafetyNeuronsError(
                f"There is more than one copy of the prompt set {row.name!r} in {folder}: "
                f"{' and '.join(str(path) for path in found)}. Keep one of them there."
            )
        if found:
            return found[0]
    return None


def _read(row: NamedSet, path: Path, source: str) -> PromptSet:
    """Read a set's file; a copy that someone made may have a column `prompt` or the like instead of the usual one."""
    table = read_table(path, source)
    listed = ", ".join(table.columns) or "none"
    column = table.find(row.column, *WELL_KNOWN_COLUMNS) if table.columns else PLAIN
    if column is None:
        raise SafetyNeuronsError(
            f"{source} has no column {row.column!r}, where the prompts of {row.name!r} are. Its columns are {listed}; "
            "call the one that holds the prompts `prompt`."
        )
    keep = next(((found, value) for name, value in row.keep if (found := table.find(name)) is not None), None)
    # A file with exactly this set's name holds nothing else, so it need not say what belongs to the set.
    if row.keep and keep is None and path.stem != row.name:
        raise SafetyNeuronsError(
            f"{source} has no column {' or '.join(repr(name) for name, _ in row.keep)}, which tells the rows of "
            f"{row.name!r} from the others. Its columns are {listed}; add it, or call a file with only these rows "
            f"{row.name}{path.suffix}."
        )
    category = table.find(row.category, "category")
    return make_set(table, row.name, source, column, shown=column, category=category, keep=keep)


def _download(row: NamedSet, kept: Path, data_dir: str | Path | None) -> None:
    # Imported here: urllib takes longer to load than a bundled set takes to read.
    from safety_neurons.prompts.download import DownloadError, download

    bundled = f"use the bundled set {row.substitute!r}, which needs no network"
    try:
        content = download(row.url)
    except DownloadError as error:
        folder = f"{data_dir}, where it is not yet" if data_dir else f"a folder that you name with {DATA_DIR_OPTION}"
        raise SafetyNeuronsError(
            f"The prompt set {row.name!r} could not be downloaded from {row.url} ({error}). Download that address on "
            f"another machine and put the file, as {row.file} or {row.name}{kept.suffix}, into {folder}; or save it "
            f"as {kept}; or {bundled}."
        ) from error
    with atomic_path(kept) as temporary:
        temporary.write_bytes(content)
        try:
            # Checked before it is kept: a network's login page also comes with the status 200.
            if content.lstrip().startswith(b"<"):
                raise SafetyNeuronsError(f"{row.url} sent a web page.")
            _read(row, temporary, row.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"What was downloaded for {row.name!r} is not the prompt set, and was not kept: {error} Open the "
                f"address in a browser to see what it sends, or {bundled}."
            ) from error
