"""One file fetched over https, or copied from a file URL."""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

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
