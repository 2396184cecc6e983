"""Reading prompt sets that have a name: bundled, from a folder of local copies, or downloaded once.

One file fetched over https, or copied from a file URL.

The prompt sets that have a name: those that come with the library, and public ones at a pinned revision."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder
from safety_neurons.prompts.prompt_set import PromptSet
from safety_neurons.prompts.read import PARSERS, PLAIN, WELL_KNOWN_COLUMNS, make_set, read_table

SCHEMES = ("https", "file")
TIMEOUT_SECONDS = 30.0
LIMIT_BYTES = 100 * 1024 * 1024


class DownloadError(Exception):
    """A download that failed; the message is the reason, to be put into a sentence that says what to do."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https down to a connection that anyone could alter."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str) -> bytes:
    """The content at a URL.

    Raises:
        DownloadError: no network, an error of the server, a timeout; too large, cut off; not https or file.
    """
    _check_scheme(url)
    # build_opener gives the proxies of the environment their due, as urlopen does.
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            announced = response.headers.get("Content-Length", "")
            content: bytes = response.read(LIMIT_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"the connection failed: {str(error) or type(error).__name__}") from error
    if len(content) > LIMIT_BYTES:
        raise DownloadError(f"it is larger than {LIMIT_BYTES} bytes")
    # A read with a limit does not complain by itself about a connection that was closed early.
    if announced.isdigit() and len(content) < int(announced):
        raise DownloadError(f"it was cut off after {len(content)} of {announced} bytes")
    return content


def _check_scheme(url: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise DownloadError(f"{url} is not a URL of the kinds {' or '.join(SCHEMES)}")


GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class NamedSet:
    """A prompt set that can be asked for by name.

    A public set's file is at `home`/`revision`/`path`; all three are empty for a bundled set. `keep` are columns
    and values: of the first of these columns that the file has, the rows with the value belong to the set. A
    local copy may also be called by the name of the set's `family`. `substitute` is the bundled set to use where
    the public one cannot be had.
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
        """The address of a public set's file; empty for a bundled set."""
        return f"{self.home}/{self.revision}/{self.path}" if self.home else ""

    @property
    def file(self) -> str:
        """The name of a public set's file."""
        return self.path.rsplit("/", 1)[-1]


BUNDLED = (
    NamedSet("harmful", "320 harmful requests in 16 categories", "Apache-2.0"),
    NamedSet("benign", "320 harmless twins of the harmful requests, alike in form and length", "Apache-2.0"),
    NamedSet("borderline", "120 harmless requests that sound harmful, to measure over-refusal", "Apache-2.0"),
    NamedSet("contrast", "120 harmful twins of the borderline requests, alike in form and length", "Apache-2.0"),
)

_JAILBREAKBENCH = NamedSet(
    "jailbreakbench",
    "JailbreakBench: 100 harmful behaviors in 10 categories (Chao et al. 2024)",
    "MIT",
    home=f"{HUB}/JailbreakBench/JBB-Behaviors/resolve",
    revision="886acc352a31533ffbcf4ef22c744658688086fc",
    path="data/harmful-behaviors.csv",
    column="Goal",
    category="Category",
    substitute="harmful",
)
_XSTEST = NamedSet(
    "xstest-safe",
    "XSTest: 250 safe requests that sound unsafe (Röttger et al. 2024)",
    "CC-BY-4.0",
    home=f"{GITHUB}/paul-rottger/xstest",
    revision="475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5",
    path="xstest_prompts.csv",
    category="type",
    keep=(("label", "safe"), ("safe", "true")),
    family="xstest",
    substitute="borderline",
)

PUBLIC = (
    NamedSet(
        "advbench",
        "AdvBench: 520 harmful instructions (Zou et al. 2023)",
        "MIT",
        home=f"{GITHUB}/llm-attacks/llm-attacks",
        revision="098262edf85f807224e70ecd87b9d83716bf6b73",
        path="data/advbench/harmful_behaviors.csv",
        column="goal",
        substitute="harmful",
    ),
    _JAILBREAKBENCH,
    replace(
        _JAILBREAKBENCH,
        name="jailbreakbench-benign",
        description="JailbreakBench: the 100 benign twins of its harmful behaviors (Chao et al. 2024)",
        path="data/benign-behaviors.csv",
        substitute="benign",
    ),
    NamedSet(
        "harmbench",
        "HarmBench: the 200 standard behaviors, without copyright and context (Mazeika et al. 2024)",
        "MIT",
        home=f"{GITHUB}/centerforaisafety/HarmBench",
        revision="c0423b952435fcc8467108d8f25962dbae5b7de2",
        path="data/behavior_datasets/harmbench_behaviors_text_all.csv",
        column="Behavior",
        category="SemanticCategory",
        keep=(("FunctionalCategory", "standard"),),
        substitute="harmful",
    ),
    NamedSet(
        "strongreject",
        "StrongREJECT: 313 forbidden prompts in 6 categories (Souly et al. 2024)",
        "MIT",
        home=f"{GITHUB}/alexandrasouly/strongreject",
        revision="f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
        path="strongreject_dataset/strongreject_dataset.csv",
        column="forbidden_prompt",
        substitute="harmful",
    ),
    NamedSet(
        "malicious-instruct",
        "MaliciousInstruct: 100 malicious questions (Huang et al. 2023)",
        "not stated by its authors",
        home=f"{GITHUB}/Princeton-SysML/Jailbreak_LLM",
        revision="1e490531c0ef4bc13430178bf1fbc8f813e34b1a",
        path="data/MaliciousInstruct.txt",
        substitute="harmful",
    ),
    _XSTEST,
    replace(
        _XSTEST,
        name="xstest-unsafe",
        description="XSTest: the 200 unsafe counterparts of the safe requests (Röttger et al. 2024)",
        keep=(("label", "unsafe"), ("safe", "false")),
        substitute="harmful",
    ),
    NamedSet(
        "alpaca",
        "Alpaca: 52 thousand everyday instructions (Taori et al. 2023)",
        "CC-BY-NC-4.0",
        home=f"{GITHUB}/tatsu-lab/stanford_alpaca",
        revision="761dc5bfbdeeffa89b8bff5d038781a4055f796a",
        path="alpaca_data.json",
        column="instruction",
        substitute="benign",
    ),
    NamedSet(
        "alpaca-eval",
        "AlpacaEval: 805 instructions from five test sets (Li et al. 2023)",
        "CC-BY-NC-4.0",
        home=f"{HUB}/tatsu-lab/alpaca_eval/resolve",
        revision="2edc6fad8be6b14ea7230aabfd08188da6b8b814",
        path="alpaca_eval.json",
        column="instruction",
        category="dataset",
        substitute="benign",
    ),
    NamedSet(
        "dolly",
        "Dolly: those of 15 thousand instructions that come without a text to work on (Conover et al. 2023)",
        "CC-BY-SA-3.0",
        home=f"{HUB}/databricks/databricks-dolly-15k/resolve",
        revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        path="databricks-dolly-15k.jsonl",
        column="instruction",
        keep=(("context", ""),),
        substitute="benign",
    ),
)


def named_sets() -> tuple[NamedSet, ...]:
    """All sets that have a name, the bundled ones first."""
    return BUNDLED + PUBLIC


def named_set(name: str) -> NamedSet | None:
    """The set of this name, if there is one; nothing is read or downloaded."""
    return next((row for row in named_sets() if row.name == name), None)


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
    pass

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
