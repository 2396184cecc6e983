"""Numbers and untrusted text as a reader should see them."""

import unicodedata
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

# What a reader cannot see, or what changes the order of what is seen: controls, formats (all bidi marks are among
# them), halves of surrogate pairs, private use, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_NAMED = {"\n": "↵", "\t": "→", "\r": "\\r"}
# More marks than this on one letter are no language; they climb over the lines above.
_MARKS_ON_A_LETTER = 4
_NOTHING = "\N{EN DASH}"


def visible(text: Any, limit: int = 4000) -> str:
    """The text with every hidden character as an escape, cut after `limit` characters.

    Applying it twice changes nothing more, so that it can also be the last guard before the page.
    """
    text = str(text)
    shown: list[str] = []
    marks = 0
    # The cut comes first: a megabyte of one word costs no more than its beginning.
    for letter in text[:limit]:
        category = unicodedata.category(letter)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if letter in _NAMED:
            shown.append(_NAMED[letter])
        elif category in _HIDDEN or marks > _MARKS_ON_A_LETTER:
            shown.append(f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}")
        else:
            shown.append(letter)
    if len(text) > limit:
        shown.append("…")
    return "".join(shown)


def untrusted(text: Any, limit: int = 600) -> Markup:
    """Text that others wrote: visible, escaped, and kept from reordering what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(visible(text, limit))


def token(text: Any) -> Markup:
    """A vocabulary entry: a dot stands for the space that begins most words."""
    text = str(text)
    if not text.strip():
        return untrusted(text.replace(" ", "␣") or "(empty)", 24)
    stripped = text.lstrip(" ")
    space = Markup('<span class="space">·</span>') if stripped != text else Markup()
    return space + untrusted(stripped, 24)


def label(text: Any, limit: int = 26) -> str:
    """Untrusted text inside a figure: Plotly reads tags in labels, so none may be left."""
    return visible(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def percent(value: float | None) -> str:
    """A rate from 0 to 1: "48%", "6.5%"; never "0%" or "100%" for what is neither."""
    if value is None:
        return _NOTHING
    points = 100 * value
    if 10 <= points <= 99 or points == round(points):
        return f"{points:.0f}%"
    if points < 0.05 or 99.95 <= points < 100:
        return f"{points:.2g}%" if points < 1 else "over 99.9%"
    return f"{points:.1f}".removesuffix(".0") + "%"


def share(value: float | None) -> str:
    """A small part of a whole with two digits: "1.0%", "0.25%"."""
    if value is None:
        return _NOTHING
    points = 100 * value
    return f"{points:.0f}%" if points >= 9.95 else f"{points:.1f}%" if points >= 0.995 else f"{points:.2g}%"


def score(value: float | None) -> str:
    """An AUROC, or another number around 0 to 1, with two digits."""
    return _NOTHING if value is None else f"{value:.2f}"


def auroc(value: float | None) -> str:
    """An AUROC that may be near to 1, with three digits; never "1.000" for what is less."""
    if value is None:
        return _NOTHING
    return "over 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def nats(value: float | None) -> str:
    """A divergence in nats per token, with two digits; a small one is not shown as nothing."""
    if value is None:
        return _NOTHING
    return "under 0.01" if 0 < value < 0.01 else f"{value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """A 95% interval, its ends joined by a dash and one percent sign after them."""
    if low is None or high is None:
        return _NOTHING
    return f"{percent(low).removesuffix('%')}{_NOTHING}{percent(high)}"


def count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "12 s", "3.4 minutes", "2.1 hours"."""
    if seconds is None:
        return _NOTHING
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def date(iso: str | None) -> str:
    """An ISO time as "2 January 2026, 14:03 UTC"; what is no ISO time is shown as it is."""
    if not iso:
        return _NOTHING
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return visible(iso, 40)
    zone = ""
    if moment.tzinfo is not None:
        moment, zone = moment.astimezone(UTC), " UTC"
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"
