"""One HTTP request and its whole response: bounded in time and in size, whatever the server sends.

The connection is used without a client around it: that costs half as much, and a client would read a body of any size
before it lets one look at it.
"""

import functools
import ssl
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import anyio

from safety_neurons.core.addresses import Credentials
from safety_neurons.engines.connection import CONNECT_SECONDS, Proxy, certificates, redirected

if TYPE_CHECKING:
    import httpx2

_AGENT = "safety-neurons"
# Compressed bodies are read as well, but nobody has to compress.
_COMPRESSED = ("gzip", "x-gzip", "deflate")
# gzip or zlib, as the header says.
_EITHER = zlib.MAX_WBITS | 32


class Limits(NamedTuple):
    """What one request may take: seconds for the whole of it, and bytes of its response."""

    seconds: float
    size: int


class Response(NamedTuple):
    """A response with its whole body, decompressed; `url` is where it came from."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


class LateError(Exception):
    """The time is up; `begun` if the server had begun to respond."""

    def __init__(self, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class TooLargeError(Exception):
    """The body is larger than allowed."""


class Transfer:
    """Requests to the API at `url`, on connections that are kept for the next one; close it in the end.

    Args:
        url: of the API, without credentials.
        credentials: what the address had besides.
        key: the API key, if the address has no user.
    """

    def __init__(self, url: str, proxy: Proxy | None, credentials: Credentials, key: str | None) -> None:
        import httpx2

        self.url, self.query = url.rstrip("/"), credentials.query
        self.headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": _AGENT,
            # Local servers need no key, but some reject requests without one.
            "authorization": credentials.authorization or f"Bearer {key or 'none'}",
        }
        self.transport = httpx2.AsyncHTTPTransport(
            proxy=None if proxy is None else httpx2.Proxy(proxy.url),
            trust_env=False,
            verify=certificates() if url.startswith("https:") else True,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def send(self, method: str, path: str, content: bytes, limits: Limits) -> Response:
        """The response to a request for `path` below the URL.

        Raises:
            LateError, TooLargeError: it does not fit into the limits.
            httpx2.RequestError: there is no response.
            SafetyNeuronsError: the server redirects elsewhere.
        """
        import httpx2

        begun = False
        url = f"{self.url}{path}"
        timeouts = {"connect": min(CONNECT_SECONDS, limits.seconds), "read": None, "write": None, "pool": None}
        try:
            with anyio.fail_after(limits.seconds):
                # The longest chain of redirects.
                for _ in range(5):
                    address = f"{url}{'&' if '?' in url else '?'}{self.query}" if self.query else url
                    request = httpx2.Request(
                        method,
                        _parsed(address),
                        headers=self.headers,
                        content=content,
                        extensions={"timeout": timeouts},
                    )
                    response = await self.transport.handle_async_request(request)
                    try:
                        begun = True
                        target = redirected(self.url, url, response.status_code, response.headers.get("location"))
                        if target is None:
                            body = await _body(response, limits.size)
                            return Response(response.status_code, response.headers, body, url)
                        url = target
                    finally:
                        await response.aclose()
        except TimeoutError:
            raise LateError(begun) from None
        except zlib.error as error:
            raise httpx2.DecodingError(str(error)) from None
        except (ssl.SSLError, anyio.EndOfStream) as error:
            # The transport lets some failures of TLS through.
            raise httpx2.ReadError(str(error)) from None
        raise httpx2.TooManyRedirects("it redirects in a circle")

    async def close(self) -> None:
        await self.transport.aclose()


@functools.lru_cache(maxsize=8)
def _parsed(address: str) -> "httpx2.URL":
    """The same few addresses are asked again and again."""
    import httpx2

    return httpx2.URL(address)


async def _body(response: "httpx2.Response", size: int) -> bytes:
    """The decompressed body, of which no more than `size` bytes are ever held."""
    compressed = response.headers.get("content-encoding", "").strip().lower() in _COMPRESSED
    inflater = zlib.decompressobj(_EITHER) if compressed else None
    pieces: list[bytes] = []
    held = read = 0
    async for piece in response.stream:  # type: ignore[union-attr]
        read += len(piece)
        piece = piece if inflater is None else inflater.decompress(piece, size - held + 1)
        held += len(piece)
        if held > size or read > size:
            raise TooLargeError
        pieces.append(piece)
    return b"".join(pieces)
