"""The way to a server: its URL, proxies, certificates and redirects, and what goes wrong on it.

No message contains the API key, or a password of a proxy.
"""

import importlib.util
import ipaddress
import os
import ssl
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from safety_neurons.core.addresses import HIDDEN, KEY_VARIABLES, hidden, take_credentials, without_credentials
from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.core.trust import only_recorded

CONNECT_SECONDS = 10.0
# What clients add to the URL of an API.
_ENDINGS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models", "/messages")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# Number of characters of a server's message to quote.
SHOWN = 300
# Longer ones are rejected by servers, and by the HTTP client.
_LONGEST_URL = 8000


def checked_url(address: str) -> str:
    """The URL of an API, without user, password and query, which are remembered for its requests.

    Raises:
        SafetyNeuronsError: it is invalid, or is that of one request.
    """
    url = take_credentials(address)
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        plain = False
    plain = plain and not set(url) & set(" ?#") and url.isascii() and url.isprintable()
    if not plain or len(address) > _LONGEST_URL or not _is_accepted(url):
        # The URL is not repeated, as it may hold a secret.
        raise SafetyNeuronsError(
            "The URL of the server must look like http://127.0.0.1:8000/v1 or http://USER:PASSWORD@HOST/v1, with "
            f"special characters in percent-encoding. Put an API key into the environment variable {KEY_VARIABLES[0]}."
        )
    trimmed = url.rstrip("/")
    for ending in _ENDINGS:
        if trimmed.endswith(ending):
            raise SafetyNeuronsError(
                f"{url} is the URL of one kind of request. Give that of the API: {trimmed.removesuffix(ending)}"
            )
    return url


def _is_accepted(url: str) -> bool:
    """Whether the HTTP client accepts a URL: it rejects a host such as 999.1.1.1."""
    # Imported late, as most commands ask no server.
    import httpx2

    try:
        httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return True


def api_key() -> str | None:
    """The API key from the environment.

    Raises:
        SafetyNeuronsError: it has characters that cannot be sent.
    """
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable()):
                raise SafetyNeuronsError(
                    f"{name} is not a valid API key: it has characters that cannot be sent. Correct it."
                )
            return key
    return None


def key_for(url: str) -> str | None:
    """The API key from the environment, for an address that was named in this process.

    Raises:
        SafetyNeuronsError: there is a key, and only the record of a run names the address; or as `api_key`.
    """
    key = api_key()
    if key is not None and only_recorded(url):
        variable = next(name for name in KEY_VARIABLES if os.environ.get(name, "").strip())
        raise SafetyNeuronsError(
            f"The settings of this run name a server, {shown(url, key)}, and the API key in {variable} is sent only to "
            "servers that you name. If this one should get it, name the judge, the attack or the "
            f"evaluate.preference_endpoint with this address again in this call; otherwise unset {variable}."
        )
    return key


def shown(text: str, key: str | None, length: int = SHOWN) -> str:
    """The beginning of a text in one line, without secrets and without control characters; `key`: the API key."""
    line = hidden(text.replace(key, "[key]") if key else text, length)
    return "".join(letter if letter.isprintable() else "?" for letter in line)


class Proxy(NamedTuple):
    """A proxy, and where its address comes from. The URL may hold a password."""

    url: str
    source: str

    @property
    def name(self) -> str:
        """Without user and password."""
        return f"{without_credentials(self.url)} ({self.source})"


def proxy_for(url: str) -> Proxy | None:
    """The proxy on the way to a URL: that of the environment or the system; None for this machine and NO_PROXY.

    Raises:
        SafetyNeuronsError: the proxy's address is invalid, or it needs a package that is not installed.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    scheme = parts.scheme if proxies.get(parts.scheme) else "all"
    address = proxies.get(scheme)
    if not address or _is_loopback(parts.hostname or "") or _is_excluded(parts.netloc, proxies.get("no", "")):
        return None
    variable = f"{scheme}_proxy"
    variable = next((name for name in (variable, variable.upper()) if os.environ.get(name)), "the system's settings")
    proxy = Proxy(address if "://" in address else f"http://{address}", variable)
    try:
        known = urlsplit(proxy.url).scheme in ("http", "https", "socks5", "socks5h")
        known = known and bool(urlsplit(proxy.url).hostname) and urlsplit(proxy.url).port != 0
        known = known and _is_accepted(proxy.url)
    except ValueError:
        known = False
    if not known:
        # The address is not repeated, as it may hold a password.
        raise SafetyNeuronsError(
            f"The proxy in {variable} is not one that can be used: its address must look like http://HOST:PORT or "
            f"socks5://HOST:PORT. Correct it, or put {parts.hostname} into NO_PROXY."
        )
    if proxy.url.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise SafetyNeuronsError(
            f"The proxy {proxy.name} speaks SOCKS, which needs the package socksio: `pip install socksio`. If the "
            f"server needs no proxy, put {parts.hostname} into NO_PROXY."
        )
    return proxy


def _is_loopback(host: str) -> bool:
    """Whether the host is this machine, where no proxy leads."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _is_excluded(netloc: str, no_proxy: str) -> bool:
    """Whether NO_PROXY or the system says to ask a host directly; networks (10.0.0.0/8) count, too."""
    host = urlsplit(f"//{netloc}").hostname or ""
    if proxy_bypass(netloc) or proxy_bypass(host):
        return True
    for entry in no_proxy.split(","):
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


def certificates() -> ssl.SSLContext | bool:
    """The certificates that the environment names; True: those of the system."""
    name = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
    if name is None:
        return True
    path = os.environ[name]
    try:
        return ssl.create_default_context(cafile=path) if name == "SSL_CERT_FILE" else _of_folder(path)
    except OSError as error:
        # Errors of ssl are OSErrors, too.
        raise SafetyNeuronsError(
            f"{name} names {path}, which cannot be read as certificates ({error.strerror or error}). It must be a file "
            "of certificates in PEM format (SSL_CERT_FILE) or a folder of them (SSL_CERT_DIR)."
        ) from None


def _of_folder(path: str) -> ssl.SSLContext:
    os.listdir(path)
    return ssl.create_default_context(capath=path)


def redirected(url: str, asked: str, status: int, location: str | None) -> str | None:
    """Where a response redirects to on the same server; None if it does not.

    Args:
        url: of the API.
        asked: the URL that was asked.

    Raises:
        SafetyNeuronsError: the redirect would lose the request's body, or send it to another server.
    """
    if not location or not 300 <= status < 400:
        return None
    found = ""
    try:
        found = urljoin(asked, location)
        target, before = urlsplit(found), urlsplit(asked)
        moved = (target.scheme, target.hostname, target.port) != (before.scheme, before.hostname, before.port)
    except ValueError:
        moved = True
        target = urlsplit("")
    # Other statuses turn a POST into a GET.
    plain = found.isascii() and found.isprintable() and " " not in found and len(found) <= _LONGEST_URL
    if status in (307, 308) and not moved and plain and _is_accepted(found):
        return found
    address = shown(f"{target.scheme}://{target.netloc}{target.path}", None)
    given = address
    for ending in _ENDINGS:
        given = given.removesuffix(ending)
    advice = f"Give {given}" if given != address else "If that is not a page to log in, give the URL of the API there"
    raise SafetyNeuronsError(f"The server at {url} redirects to {address}, which is not followed. {advice}.")


def connection_error(url: str, cause: BaseException, proxy: Proxy | None, key: str | None) -> SafetyNeuronsError:
    """What to do when no response came back; `cause` is the error of the HTTP client."""
    said = shown((str(cause) or type(cause).__name__).replace(key or HIDDEN, HIDDEN), None)
    through = "" if proxy is None else f" through the proxy {proxy.name}"
    without = "" if proxy is None else f" If it needs no proxy, put {urlsplit(url).hostname} into NO_PROXY."
    kind = type(cause).__name__
    if proxy is not None and kind == "ProxyError":
        return SafetyNeuronsError(
            f"The proxy {proxy.name} does not connect to the server at {url} ({said}). "
            f"{_proxy_advice(407 if said.startswith('407') else 0, proxy)}{without}"
        )
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return SafetyNeuronsError(
            f"The certificate of the server at {url} is not trusted{through} ({said}). If a company signs it itself, "
            "let SSL_CERT_FILE name the file with the company's certificate (PEM)."
        )
    if url.startswith("https:") and ("WRONG_VERSION_NUMBER" in said or "record layer" in said.lower()):
        return SafetyNeuronsError(
            f"The server at {url} does not speak TLS{through} ({said}). If it is a local one, give http:// instead of "
            f"https://.{without}"
        )
    if kind == "TooManyRedirects":
        return SafetyNeuronsError(f"The server at {url} redirects in a circle{through}. Check its URL.{without}")
    if kind == "DecodingError":
        return SafetyNeuronsError(
            f"The server at {url} sent a body that cannot be decompressed{through} ({said}). Switch off compression "
            f"on the server or on a proxy before it.{without}"
        )
    advice = "Check that it runs and that the URL is right."
    if url.startswith("http:") and kind in ("RemoteProtocolError", "ReadError"):
        advice += " If it speaks TLS, give https:// instead of http://."
    return SafetyNeuronsError(
        f"The server at {url} is unreachable or drops the connection{through} ({said}). {advice}{without}"
    )


def _proxy_advice(status: int, proxy: Proxy) -> str:
    if status == 407:
        return f"It asks for a user and a password: put them into {proxy.source} as http://USER:PASSWORD@HOST:PORT."
    return "Check the proxy's address and that it allows this server."


def proxy_status(url: str, status: int, proxy: Proxy | None) -> str | None:
    """What a status says about the proxy; None if it says nothing."""
    if proxy is None or status not in (407, 502, 503, 504):
        return None
    if status == 407:
        return f"is behind the proxy {proxy.name}, which rejects the request (status 407). {_proxy_advice(407, proxy)}"
    return (
        f"or the proxy {proxy.name} before it failed repeatedly (status {status}): check both, and if the server "
        f"needs no proxy, put {urlsplit(url).hostname} into NO_PROXY."
    )
