"""The prompt sets that have a name: bundled ones, and public ones at a pinned revision, which are downloaded once."""

import json
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder, exists
from safety_neurons.core.folders import prepare_cache
from safety_neurons.prompts.prompt_set import PromptSet
from safety_neurons.prompts.read import ENDINGS, REQUEST_COLUMNS, listed, make_set, read_table
from safety_neurons.prompts.table import PLAIN

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class NamedSet:
    """A prompt set with a name.

    A public set's file is at `home`/`revision`/`path`; all three are empty for a bundled set. `keep` holds columns and
    values: the set consists of the rows with the value in the first of these columns that the file has. A local copy
    may also be named after the set's `family`. `substitute` is the bundled set to use if the public one is unavailable.
    """

    name: str
    description: str
    license: str
    home: str = ""
    revision: str = ""
    path: str = ""
    column: str = "prompt"
    category: str = "category"
    keep: tuple[tuple[str, str], ...] = ()
    family: str = ""
    substitute: str = ""

    @property
    def url(self) -> str:
        """The URL of a public set's file; empty for a bundled set."""
        return f"{self.home}/{self.revision}/{self.path}" if self.home else ""

    @property
    def file(self) -> str:
        """The file name of a public set."""
        return self.path.rsplit("/", 1)[-1]


def _read_sets() -> tuple[NamedSet, ...]:
    rows = json.loads((Path(__file__).parent / "sets.json").read_text(encoding="utf-8"))
    return tuple(NamedSet(**row | {"keep": tuple(row.get("keep", {}).items())}) for row in rows)


_SETS = _read_sets()
BUNDLED = tuple(row for row in _SETS if not row.url)
PUBLIC = tuple(row for row in _SETS if row.url)


def named_sets() -> tuple[NamedSet, ...]:
    """All named sets, the bundled ones first."""
    return BUNDLED + PUBLIC


def named_set(name: str) -> NamedSet | None:
    """The set of this name, or None; nothing is read or downloaded."""
    return next((row for row in named_sets() if row.name == name), None)


def load_named(row: NamedSet, data_dir: str | Path | None = None) -> PromptSet:
    """Read a named set; a public one from `data_dir`, else from the cache, else by download.

    Raises:
        SafetyNeuronsError: a copy is unusable or ambiguous, or there is no copy and the download fails.
    """
    if not row.url:
        return _read(row, BUNDLED_FOLDER / f"{row.name}.jsonl", f"bundled:{row.name}")
    if data_dir is not None:
        copy = local_copy(row, data_dir)
        if copy is not None:
            return _read(row, copy, str(copy))
    path = cached_path(row)
    if not exists(path):
        _download(row, path, data_dir)
    try:
        return _read(row, path, row.url)
    except SafetyNeuronsError as error:
        raise SafetyNeuronsError(
            f"The cached copy of {row.name}, {path}, cannot be used: {error} Delete it to download it again."
        ) from error


def cached_path(row: NamedSet) -> Path:
    """The cached file of a public set; sets from the same file share it, revisions do not."""
    return cache_folder() / "prompts" / row.revision[:12] / row.file


def local_copy(row: NamedSet, data_dir: str | Path) -> Path | None:
    """The file of a public set in a folder or else in one of its direct subfolders; None if there is none.

    The file is named like the public one, or like the set or its family with any supported ending.

    Raises:
        SafetyNeuronsError: the folder cannot be read, or there are two such files.
    """
    folder = Path(os.path.expanduser(data_dir))
    try:
        entries = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise SafetyNeuronsError(
            f"The data folder {folder} cannot be read ({getattr(error, 'strerror', None) or error}). "
            "Correct data_dir, or omit it."
        ) from error
    names = [row.file, *(f"{stem}{ending}" for stem in (row.name, row.family) if stem for ending in ENDINGS)]
    for places in ([folder], [folder / entry for entry in entries]):
        # Path.is_file would raise for a folder without permission.
        found = [place / name for place in places for name in names if os.path.isfile(place / name)]
        if len(found) > 1:
            raise SafetyNeuronsError(
                f"There is more than one copy of the prompt set {row.name!r} in {folder}: "
                f"{' and '.join(str(path) for path in found)}. Remove all but one."
            )
        if found:
            return found[0]
    return None


def _read(row: NamedSet, path: Path, source: str) -> PromptSet:
    """Read a set's file; a user's copy may have a well-known column such as `prompt` instead of the usual one."""
    table = read_table(path, source)
    column = table.find(row.column, *REQUEST_COLUMNS) if table.columns else PLAIN
    if column is None:
        raise SafetyNeuronsError(
            f"{source} has no column {row.column!r} with the prompts of {row.name!r}. Its columns are "
            f"{listed(table.columns)}; rename the one with the prompts to `prompt`."
        )
    keep = next(((found, value) for name, value in row.keep if (found := table.find(name)) is not None), None)
    # A file named after the set holds nothing else, so it does not need the column.
    if row.keep and keep is None and path.stem != row.name:
        raise SafetyNeuronsError(
            f"{source} has no column {' or '.join(repr(name) for name, _ in row.keep)}, which marks the rows of "
            f"{row.name!r}. Its columns are {listed(table.columns)}; add it, or name a file with only these rows "
            f"{row.name}{path.suffix}."
        )
    category = table.find(row.category, "category")
    return make_set(table, row.name, source, column, shown=column, category=category, keep=keep)


def _download(row: NamedSet, path: Path, data_dir: str | Path | None) -> None:
    bundled = f"use the bundled set {row.substitute!r}, which needs no network"
    try:
        content = download(row.url)
    except DownloadError as error:
        folder = f"{data_dir}, which does not have it" if data_dir else "a folder that you pass as data_dir"
        raise SafetyNeuronsError(
            f"The prompt set {row.name!r} could not be downloaded from {row.url} ({error}). Download it on another "
            f"machine and put the file, as {row.file} or {row.name}{path.suffix}, into {folder}; or save it as {path}; "
            f"or {bundled}."
        ) from error
    prepare_cache(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        try:
            # Checked before it is cached: the login page of a network also comes with status 200.
            if content.lstrip().startswith(b"<"):
                raise SafetyNeuronsError(f"{row.url} sent a web page.")
            _read(row, temporary, row.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"The download for {row.name!r} is not the prompt set and was discarded: {error} Open the URL in a "
                f"browser to see what it sends, or {bundled}."
            ) from error


SCHEMES = ("https", "file")
TIMEOUT_SECONDS = 30.0
LIMIT_BYTES = 100 * 1024 * 1024


class DownloadError(Exception):
    """A download failed; the message is the reason, for use within a sentence."""


def download(url: str) -> bytes:
    """The content at a URL.

    Raises:
        DownloadError: no network, a server error, a timeout, too large, cut off, or neither https nor file.
    """
    # Imported late: urllib.request takes longer to load than a bundled set takes to read.
    import http.client
    import urllib.error
    import urllib.request

    class CheckedRedirects(urllib.request.HTTPRedirectHandler):
        """Does not follow redirects from https to a connection that anyone could alter."""

        def redirect_request(
            self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> urllib.request.Request | None:
            _check_scheme(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    _check_scheme(url)
    # Like urlopen, build_opener respects the proxies of the environment.
    opener = urllib.request.build_opener(CheckedRedirects)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            announced = response.headers.get("Content-Length", "")
            content: bytes = response.read(LIMIT_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"no connection: {error.reason}") from error
    # A ValueError: the address of the proxy, or of a redirect, is invalid.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(f"the connection failed: {str(error) or type(error).__name__}") from error
    if len(content) > LIMIT_BYTES:
        raise DownloadError(f"it is larger than {LIMIT_BYTES} bytes")
    # A read with a limit does not fail by itself if the connection is closed early.
    if announced.isdigit() and len(content) < int(announced):
        raise DownloadError(f"it was cut off after {len(content)} of {announced} bytes")
    return content


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise DownloadError(f"the scheme of {url} is not {' or '.join(SCHEMES)}")
