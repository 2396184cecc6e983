"""How numbers and untrusted text are written, in tables, sentences and figures."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from safety_neurons.core.fields import Change
from safety_neurons.core.statistics import Rate
from safety_neurons.core.tables import TableCell
from safety_neurons.core.visible import spelled_out, visible

NONE = "\N{EN DASH}"
# A difference this unlikely by chance is marked with a star.
SIGNIFICANT = 0.05
_EMPTY_LINES = re.compile(r"\s*\n\s*\n\s*")
# Plotly also knows links and style attributes.
_FOREIGN_TAG = re.compile(r"<(?!(?:br|b|/b|extra|/extra)>)")


def untrusted(text: Any, limit: int = 600) -> Markup:
    """Text that others wrote: visible, escaped, and kept from reordering what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(visible(text, limit))


def passage(text: Any, limit: int = 600) -> Markup:
    """`untrusted` text of several lines, such as a prompt or an answer, with at most one empty line at a time."""
    lines = _EMPTY_LINES.sub("\n\n", str(text)[: 2 * limit].strip())
    return Markup('<bdi class="passage">{}</bdi>').format(visible(lines, limit, lines=True))


def label(text: Any, limit: int = 26) -> str:
    """Untrusted text inside a figure, where Plotly reads tags, values (%{x}) and formulas ($...$)."""
    shown = visible(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown.replace("$", "&#36;").replace("%{", "%&#123;")


def drawn(value: Any) -> Any:
    """What Plotly draws, with no tag in any text but line breaks, bold type and the end of a label."""
    return everywhere(lambda one: _FOREIGN_TAG.sub("&lt;", spelled_out(one)), value)


def everywhere(function: Callable[[str], str], value: Any) -> Any:
    """JSON with the function applied to every string in it, names as well."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {everywhere(function, key): everywhere(function, content) for key, content in value.items()}
    return [everywhere(function, one) for one in value] if isinstance(value, list | tuple) else value


def token(text: str) -> str:
    """A vocabulary entry: a dot stands for the space that begins most words."""
    if not text.strip():
        return visible(text.replace(" ", "␣"), 24) or "(empty)"
    stripped = text.lstrip(" ")
    return ("·" if stripped != text else "") + visible(stripped, 24)


def tokens(words: list[str], detail: str = "") -> TableCell:
    """A cell of vocabulary entries."""
    shown = tuple(map(token, words))
    return TableCell(", ".join(shown) or NONE, detail, shown)


def percent(value: float | None) -> str:
    """A rate from 0 to 1: "48%", "6.5%"; never "0%" or "100%" for what is neither."""
    if value is None:
        return NONE
    points = 100 * value
    if 10 <= points <= 99 or points == round(points):
        return f"{points:.0f}%"
    if points < 0.05 or 99.95 <= points < 100:
        return f"{points:.2g}%" if points < 1 else "over 99.9%"
    return f"{points:.1f}".removesuffix(".0") + "%"


def share(value: float | None) -> str:
    """A small part of a whole with two digits: "1.0%", "0.25%"."""
    if value is None:
        return NONE
    points = 100 * value
    return f"{points:.0f}%" if points >= 9.95 else f"{points:.1f}%" if points >= 0.995 else f"{points:.2g}%"


def score(value: float | None) -> str:
    """An AUROC, or another number around 0 to 1, with two digits."""
    return NONE if value is None else f"{value:.2f}"


def auroc(value: float | None) -> str:
    """An AUROC that may be near to 1, with three digits; never "1.000" for what is less."""
    if value is None:
        return NONE
    return "over 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def nats(value: float | None) -> str:
    """A KL divergence in nats per token, with two digits; a small one is not shown as 0."""
    if value is None:
        return NONE
    return "under 0.01" if 0 < value < 0.01 else f"{value:.2f}"


def p_value(value: float | None) -> str:
    return NONE if value is None else f"{value:.2g}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,}"


def signed(value: float | None) -> str:
    """A difference of rates in percentage points, with its sign."""
    return NONE if value is None else f"{100 * value:+.0f}".replace("-", "\N{MINUS SIGN}")


def alpha(value: float) -> str:
    """An alpha of the dose-response, whose sign is the direction; 0 has none."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def interval(low: float | None, high: float | None) -> str:
    """A 95% interval of a rate: "44-52%" with an en dash."""
    if low is None or high is None:
        return NONE
    return f"{percent(low).removesuffix('%')}{NONE}{percent(high)}"


def rate(found: Rate | None, star: bool = False, **options: Any) -> TableCell:
    """A cell with a rate, its interval, and how many answers could not be judged."""
    if found is None or found.value is None:
        return TableCell(NONE, f"{found.unscored:,} unscored" if found and found.unscored else "", **options)
    parts = [] if found.low is None else [f"({interval(found.low, found.high)})"]
    parts += [f"{found.unscored:,} unscored"] if found.unscored else []
    return TableCell(percent(found.value) + "*" * star, ", ".join(parts), **options)


def mean(found: Rate | None, form: Callable[[float | None], str] = score, ends: str = ".2f") -> TableCell:
    """A cell with a mean, or another number, and its interval."""
    if found is None or found.value is None:
        return TableCell(NONE)
    return TableCell(form(found.value), "" if found.low is None else f"({found.low:{ends}}{NONE}{found.high:{ends}})")


def change(found: Change | None, star: bool = False) -> TableCell:
    """A cell with a difference of rates in percentage points."""
    if found is None or found.value is None:
        return TableCell(NONE)
    return TableCell(signed(found.value) + "*" * star, f"({signed(found.low)} to {signed(found.high)})")


def spoken(found: Rate) -> str:
    return f"{percent(found.value)} ({interval(found.low, found.high)}), n = {found.n:,}, unscored {found.unscored:,}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that people use: "12 s", "3.4 minutes", "2.1 hours"."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def date(iso: str | None) -> str:
    """An ISO time as "2 January 2026, 14:03 UTC"; anything else is shown unchanged."""
    if not iso:
        return NONE
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return visible(iso, 40)
    zone = ""
    if moment.tzinfo is not None:
        moment, zone = moment.astimezone(UTC), " UTC"
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"
