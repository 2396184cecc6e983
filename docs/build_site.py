"""What the documentation site takes from the code itself: pages of commands, settings and members, and the notebook.

mkdocs calls the functions whose names begin with `on_` (mkdocs.yml, `hooks`). Formulas become MathML here, so that a
browser draws them without a script; a link to the net that has no proper form is a warning, which fails the build.
"""

import html
import inspect
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docstring_parser
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

from safety_neurons.audits.config import Thresholds
from safety_neurons.audits.power import POWER, power_table
from safety_neurons.cli.app import commands as every_command
from safety_neurons.core.plugins import options_of
from safety_neurons.evaluation import attacks, defenses, judges
from safety_neurons.neurons import scores
from safety_neurons.settings import Settings

log = logging.getLogger("mkdocs.hooks.build_site")

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
LINK = re.compile(r'<a [^>]*?href="([a-z]+:[^"]*)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written from the code."""
    pages = {
        "notebook.md": notebook(Path(config.docs_dir) / "tutorial.ipynb"),
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/members.md": members(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the tables that are computed in the place of their marks."""
    if page.file.src_uri == "howto/audit.md":
        for mark, table in (("<!-- thresholds -->", thresholds()), ("<!-- power -->", power())):
            markdown = markdown.replace(mark, table)
    return markdown


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Formulas as MathML, bars in tables as bars; links to the net checked for their form."""
    for address in LINK.findall(content):
        parts = urlsplit(html.unescape(address))
        if parts.scheme != "mailto" and (parts.scheme not in ("https", "http") or "." not in (parts.hostname or "")):
            log.warning("%s links to %r, which is no web address.", page.file.src_uri, address)
    # A bar in a table's cell is escaped, and within code this Markdown leaves the escape there.
    content = CELL.sub(lambda found: found[0].replace(r"\|", "|"), content)
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    drawn = convert(html.unescape(found[2]), display=display)
    return f'<div class="formula">{drawn}</div>' if display == "block" else drawn


def notebook(path: Path) -> str:
    """The cells of the notebook one after the other."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    parts.insert(1, f"This page is [{path.name}]({path.name}): download it to run it.")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every command: what it does, its examples, and the options that are its own."""
    parts = [
        "# Commands",
        "`safety-neurons COMMAND --help` says the same in the terminal. Most commands also take every "
        "[setting](settings.md) as an option.",
    ]
    for name, command in every_command():
        text = inspect.getdoc(command.default_command) or ""
        about = {one.arg_name: " ".join((one.description or "").split()) for one in docstring_parser.parse(text).params}
        parts += [f"## {name}", text.partition("\nParameters\n---")[0].strip()]
        arguments = [argument for argument in command.assemble_argument_collection() if argument.show]
        rows = []
        for argument in (argument for argument in arguments if not argument.keys):
            field = argument.field_info
            shown = argument.names[0] if field.is_keyword_only else field.name.upper()
            rows.append([_code(shown), argument.parameter.help or about.get(field.name, ""), _default(field.default)])
        parts.append(_table(["argument", "what it is", "default"], rows))
        if any(argument.keys for argument in arguments):
            parts.append("And every [setting](settings.md).")
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """Every field of `Settings` by section."""
    parts = [
        "# Settings",
        "As an option (`--find.percent 1`), in a TOML file (`--config FILE`, `[find]` and `percent = 1`), or in Python "
        'as nested dictionaries (`{"find": {"percent": 1}}`). A run folder remembers what was given.',
    ]
    for title, model, prefix in (("General", Settings, ""), *_sections()):
        rows = [
            [
                _code(f"--{prefix}{name.replace('_', '-')}"),
                " ".join((field.description or "").split()),
                _default(field.get_default(call_default_factory=True)),
            ]
            for name, field in model.model_fields.items()
            if not _is_section(field.annotation)
        ]
        about = inspect.getdoc(model) or ""
        parts += [f"## {title}", about, _table(["setting", "what it is", "default"], rows)]
    return "\n\n".join(parts) + "\n"


def thresholds() -> str:
    """Every threshold of an audit."""
    rows = []
    for name, field in Thresholds.model_fields.items():
        levels = field.get_default()
        about = " ".join((inspect.getdoc(type(levels)) or "").split())
        shown = ["never" if level is None else f"{level:g}" for level in (levels.warn, levels.block)]
        rows.append([_code(name), about, *shown])
    return _table(["table", "what it is about", "`warn`", "`block`"], rows)


def power() -> str:
    """How many prompts it takes to see a loss, and to exclude one."""
    rows = [
        [f"{100 * loss:g} points", f"{100 * churn:g}%", *(f"{count:,}" if count else "-" for count in counts)]
        for loss, churn, *counts in power_table()
    ]
    flips = "requests that flip either way by chance"
    return _table(["loss", flips, f"prompts to see it, power {100 * POWER:g}%", "prompts to exclude it"], rows)


def _sections() -> Iterable[tuple[str, type[BaseModel], str]]:
    for name, field in Settings.model_fields.items():
        if _is_section(field.annotation):
            yield name, field.annotation, f"{name}."  # type: ignore[misc]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def members() -> str:
    """All scores, attacks, defenses and judges, with their options and sources."""
    parts = [
        "# Scores, attacks, defenses and judges",
        "Each is a file that is found by its name. Options of attacks, defenses and judges are given as "
        "`name:option=value,option=value`.",
        "## Scores",
        "For `--find.score`. [Which score](../scores.md) compares them.",
        _table(
            ["name", "formula", "tokens", "budget per", "source"],
            [
                [_code(one.name), _code(one.formula), one.tokens, one.scope, one.source]
                for one in map(scores.get, scores.names())
            ],
        ),
    ]
    for title, family, about in (
        (
            "Attacks",
            attacks,
            "For `--evaluate.attacks`.",
        ),
        ("Defenses", defenses, "For `--evaluate.defenses`."),
        ("Judges", judges, "For `--evaluate.judges`; those without a model for `--evaluate.judge`."),
    ):
        rows = [
            [_code(one.name), getattr(one, "description", ""), _options(one), one.source]
            for one in map(family.get, family.names())
        ]
        parts += [f"## {title}", about, _table(["name", "what it does", "options", "source"], rows)]
    return "\n\n".join(parts) + "\n"


def _options(member: Any) -> str:
    """With the values that they have when nothing is said."""
    return ", ".join(_code(name if value is None else f"{name}={value}") for name, value in options_of(member).items())


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty or value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _code(" ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)) if value != [] else ""


def _code(text: str) -> str:
    return f"`{text}`"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table without the columns in which nothing stands."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    lines = [[columns[place] for place in kept], ["---"] * len(kept), *([row[place] for place in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
