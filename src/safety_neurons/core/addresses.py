"""Addresses without the credentials in them, and the secrets that no file, table or message may contain.

A user, a password and a query (`?key=...`) are taken out of an address where it enters: settings, options, targets, the
command line, `Endpoint`. They are remembered in this process alone, for the requests to that address.
"""

import base64
import functools
import html
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus

KEY_VARIABLES = ("SAFETY_NEURONS_API_KEY", "OPENAI_API_KEY")
KEY, HIDDEN = "[key]", "[hidden]"

# In `judge:endpoint=ADDRESS,model=NAME` and in lists, a comma may end the address.
_ADDRESS = re.compile(
    r"(?P<scheme>https?|socks[45]?[ah]?|ftp)://(?P<rest>(?:[^\s\"<>`,]|,(?![\w-]+[=:]))+)", re.IGNORECASE
)
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")
# The rest of a password in which what looks like the next option stands.
_PASSWORD = re.compile(r"[^\s\"<>`/@]*@[^\s\"<>`,]*")
# Shorter ones would make messages unreadable, and hide nothing that could not be guessed.
_SHORTEST = 4
# In answers, which are data, only what cannot be a word of the model's.
_SHORTEST_IN_ANSWERS, _LONGEST_WORD = 6, 16
_ESCAPED_BYTE = re.compile("%[0-9A-F]{2}")
_URL_SAFE = str.maketrans("+/", "-_")
# What is no secret in a query.
_VERSIONS = ("api-version", "version")
V = TypeVar("V")


class Credentials(NamedTuple):
    """What was taken out of an address, as it was given: in percent-encoding."""

    user: str = ""
    password: str = ""
    query: str = ""

    @property
    def authorization(self) -> str:
        """The header that sends user and password; empty if there are none."""
        if not self.user and not self.password:
            return ""
        both = f"{unquote(self.user)}:{unquote(self.password)}"
        return f"Basic {base64.b64encode(both.encode('utf-8', 'surrogatepass')).decode()}"

    @property
    def secrets(self) -> list[str]:
        """Every form in which a server may repeat them."""
        # A user without a password is a token.
        given = [self.password or self.user]
        for part in self.query.split("&"):
            name, equals, value = part.partition("=")
            if name not in _VERSIONS:
                given.append(value if equals else name)
        plain = [unquote(one) for one in given]
        return [*given, *plain, *(unquote_plus(one) for one in given), self.authorization.partition(" ")[2]]


_remembered: dict[str, Credentials] = {}
_secrets: dict[str, None] = {}


def without_credentials(text: str) -> str:
    """The text with all credentials taken out of the addresses in it."""
    return "".join(piece for piece, _ in _pieces(text))


def take_credentials(value: V) -> V:
    """`without_credentials` of all strings in nested lists and mappings, which the user gave.

    What is taken out is remembered for the requests to these addresses, and is a secret from now on.
    """
    found: Any = value
    if isinstance(value, str):
        pieces = list(_pieces(value))
        for address, taken in pieces:
            if taken != Credentials():
                _remembered[address.rstrip("/")] = taken
                _secrets.update(dict.fromkeys(taken.secrets))
        found = "".join(piece for piece, _ in pieces)
    elif isinstance(value, Mapping):
        found = {name: take_credentials(one) for name, one in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(map(take_credentials, value))  # type: ignore[call-arg, call-overload]
    return found


def credentials_of(address: str) -> Credentials:
    """The credentials that were last given for an address without them."""
    return _remembered.get(address.rstrip("/"), Credentials())


def secrets() -> list[str]:
    """Every secret that this process knows, the longest first: API keys, credentials of addresses and of proxies."""
    # Imported late, as most commands show no secret.
    from urllib.request import getproxies

    for address in getproxies().values():
        take_credentials(address if "://" in address else f"http://{address}")
    found = {one for one in (*_keys(), *_secrets) if len(one) >= _SHORTEST}
    return sorted(found, key=lambda one: (-len(one), one))


def hidden(text: str, length: int) -> str:
    """The beginning of a message, in one line and without secrets: no known one, nor credentials in an address."""
    # Cut before the letters are looked at one by one, as the text may be very long.
    line = without_credentials(" ".join(replaced(text, secrets()).split())[: 10 * length])
    return line if len(line) <= length else f"{line[:length]} ..."


def replaced(message: str, known: Collection[str]) -> str:
    """A message with a word in place of each of the `secrets()`, and of each in an encoding."""
    for secret in known:
        for form in _forms(secret):
            if form in message:
                message = message.replace(form, KEY if secret in _keys() else HIDDEN)
    return message


@functools.lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[str, ...]:
    """A secret, and the encodings in which a server may repeat it; the longest first."""
    data = secret.encode("utf-8", "surrogatepass")
    percent = [quote(data), quote(data, safe=""), quote_plus(data)]
    percent += [_ESCAPED_BYTE.sub(lambda found: found[0].lower(), one) for one in percent]
    escaped = html.escape(secret)
    marks = [escaped, html.escape(secret, quote=False)]
    marks += [escaped.replace("&#x27;", "&#39;"), escaped.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")]
    quoted = [json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]]
    # A body of JSON in a message of JSON; and with the slashes that PHP escapes.
    quoted += [json.dumps(one)[1:-1] for one in quoted]
    quoted += [one.replace("/", r"\/") for one in quoted]
    coded = [base64.b64encode(one).decode() for one in (data, b"Bearer " + data)]
    coded += [one.translate(_URL_SAFE) for one in coded]
    # Some leave the padding out.
    coded += [one.rstrip("=") for one in coded] + [quote(one, safe="") for one in coded]
    return tuple(sorted({secret, *percent, *marks, *quoted, *coded}, key=lambda one: (-len(one), one)))


def without_secrets(answer: str, known: Collection[str]) -> str:
    """An answer without the `secrets()`, where a server repeats one. Keys that are words ("EMPTY") may stay."""
    return replaced(answer, [one for one in known if not _is_word(one)])


def _is_word(secret: str) -> bool:
    return len(secret) < _SHORTEST_IN_ANSWERS or (secret.isalpha() and len(secret) < _LONGEST_WORD)


def _keys() -> list[str]:
    return [os.environ.get(name, "").strip() for name in KEY_VARIABLES]


def _pieces(text: str) -> Iterator[tuple[str, Credentials]]:
    """A text in pieces: addresses with what was taken out of each, and what stands between them."""
    place = 0
    while "://" in text and (match := _ADDRESS.search(text, place)):
        yield text[place : match.start()], Credentials()
        place = match.end()
        rest = match["rest"]
        if not _HOST.fullmatch(_authority(rest)) and "@" not in rest and (more := _PASSWORD.match(text, place)):
            rest, place = rest + more[0], more.end()
        userinfo, rest = _userinfo(rest)
        path, _, query = rest.partition("#")[0].partition("?")
        user, _, password = userinfo.partition(":")
        yield f"{match['scheme']}://{path}", Credentials(user, password, query)
    yield text[place:], Credentials()


def _userinfo(rest: str) -> tuple[str, str]:
    """What stands before the host, and the host with what follows it."""
    authority = _authority(rest)
    userinfo, at, host = authority.rpartition("@")
    if at:
        return userinfo, host + rest[len(authority) :]
    # A password with a slash: its first part looks like a port.
    if "@" in rest and not _HOST.fullmatch(authority):
        userinfo, _, rest = rest.partition("@")
        return userinfo, rest
    return "", rest


def _authority(rest: str) -> str:
    found = _AUTHORITY.match(rest)
    return found[0] if found else ""


def without_known_secrets(message: object) -> str:
    """A message of any library without the secrets that this process knows."""
    return without_credentials(without_secrets(str(message), secrets()))
