"""The way to a server: its URL, proxies, certificates, redirects and compression."""

import gzip
import importlib.util
import json
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.connection import connection_error, proxy_for
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import answers
from safety_neurons.models.chat import Conversation

# A name that is reserved for this: nothing answers there but through a proxy.
FAR = "http://models.example/v1"
SECRET = "pass-0123456789"


def ask(url: str, **options: Any) -> list[str]:
    engine = Endpoint(url, "tiny", retries=0, **options)
    return [one.text for one in answers(engine, [Conversation.of("a")], max_new_tokens=5)]


@pytest.fixture
def proxy(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a proxy that needs a password, in the environment."""
    address = f"http://user:{SECRET}@127.0.0.1:{server.port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, address)
    return f"http://127.0.0.1:{server.port}"


def test_far_servers_are_asked_through_the_proxy(server: Any, proxy: str) -> None:
    assert ask(FAR) == ["You say: a"]
    assert server.proxied == [f"{FAR}/chat/completions"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_machine_is_asked_directly(host: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Even if the proxy could not be used at all.
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "socks5://proxy.example:1080")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert proxy_for(f"http://{host}:{server.port}/v1") is None
    assert proxy_for("http://[::1]:8000/v1") is None
    if host != "127.1.2.3":
        assert ask(f"http://{host}:{server.port}/v1") == ["You say: a"]
    assert server.proxied == []


@pytest.mark.parametrize(
    ("excluded", "url", "direct"),
    [
        ("models.example", FAR, True),
        (".example", FAR, True),
        ("other.example,models.example", FAR, True),
        ("*", FAR, True),
        ("10.0.0.0/8", "http://10.1.2.3:8000/v1", True),
        ("10.1.2.3", "http://10.1.2.3:8000/v1", True),
        ("fd00::/8", "http://[fd00::1]:8000/v1", True),
        ("other.example", FAR, False),
        ("10.0.0.0/8", "http://11.1.2.3/v1", False),
        ("", FAR, False),
    ],
)
def test_hosts_without_a_proxy(
    excluded: str, url: str, direct: bool, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", excluded)
    monkeypatch.setenv("no_proxy", excluded)
    found = proxy_for(url)
    assert (found is None) == direct
    assert found is None or found.name.startswith(proxy)


@pytest.mark.parametrize(
    ("status", "said"), [(407, "USER:PASSWORD"), (502, "check both"), (503, "check both"), (504, "NO_PROXY")]
)
def test_proxies_that_fail_are_named(status: int, said: str, server: Any, proxy: str) -> None:
    server.answer = lambda _body: server.raw(b"<html><title>Squid</title><p>No</html>", status)
    with pytest.raises(SafetyNeuronsError, match=rf"the proxy {proxy} \(http_proxy\).*{said}.*Squid: No") as error:
        ask(FAR)
    assert SECRET not in str(error.value)
    # To a server with TLS, the proxy opens a connection.
    with pytest.raises(SafetyNeuronsError, match=rf"proxy {proxy} \(https_proxy\) does not connect.*{status}") as error:
        ask(FAR.replace("http:", "https:"))
    assert SECRET not in str(error.value)


def test_proxies_that_are_not_there_are_named(server: Any, proxy: str) -> None:
    server.stop()
    with pytest.raises(
        SafetyNeuronsError, match=rf"through the proxy {proxy} .*put models\.example into NO_PROXY"
    ) as error:
        ask(FAR)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("socks5://user:{}@proxy.example:1080", r"socks5://proxy\.example:1080 \(all_proxy\).*pip install socksio"),
        ("socks4://user:{}@proxy.example:1080", "all_proxy is not one that can be used.*NO_PROXY"),
        ("ftp://user:{}@proxy.example", "all_proxy is not one that can be used"),
        ("http://user:{}@proxy.example:port", "all_proxy is not one that can be used"),
        ("http://", "all_proxy is not one that can be used"),
    ],
)
def test_proxies_that_cannot_be_used(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", address.format(SECRET))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SafetyNeuronsError, match=said) as error:
        ask(FAR)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("ending", ["/chat/completions", "/completions/", "/models", "/responses"])
def test_the_url_of_one_kind_of_request(ending: str, server: Any) -> None:
    with pytest.raises(SafetyNeuronsError, match=rf"Give that of the API: {server.url}$"):
        ask(server.url + ending)


def test_urls_with_and_without_the_path_of_the_api(server: Any) -> None:
    assert ask(server.url + "/") == ["You say: a"]
    base = server.url.removesuffix("/v1")
    for url in (base, base + "/"):
        with pytest.raises(SafetyNeuronsError, match=rf"perhaps {server.url} \(status 404\)"):
            ask(url)
        with pytest.raises(SafetyNeuronsError, match=rf"set model_name.*perhaps {server.url}"):
            _ = Endpoint(url, retries=0).served


def test_a_server_that_answers_every_url_with_status_200(server: Any) -> None:
    server.answer = lambda _body: server.raw(b'{"error": "Unexpected endpoint or method. (POST /chat/completions)"}')
    with pytest.raises(SafetyNeuronsError, match=r"no model called 'tiny', or its API has another URL.*Unexpected"):
        ask(server.url)


@pytest.mark.parametrize(
    ("status", "location", "said"),
    [
        (
            301,
            "https://far.example/v1/chat/completions?key=secret",
            r"redirects to https://far\.example/v1/chat/comp.*Give https://far\.example/v1\.$",
        ),
        (302, "/login?next=secret", "redirects to http://127.0.0.1:[0-9]+/login, .*page to log in"),
        (307, "https://user:secret@far.example/x", r"redirects to https://far\.example/x, "),
        (308, "//far.example/v1/chat/completions", r"Give http://far\.example/v1\."),
        (302, "http://[broken", "redirects"),
        (307, "/v1/" + "a" * 90_000, "redirects to http://127.0.0.1:[0-9]+/v1/aaa"),
        (307, "/v1/chat/completions", "redirect"),
    ],
)
def test_redirects_are_said(status: int, location: str, said: str, server: Any) -> None:
    server.answer = lambda _body: server.raw(b"moved", status, {"location": location})
    with pytest.raises(SafetyNeuronsError, match=said) as error:
        ask(server.url)
    assert "secret" not in str(error.value)


def test_a_redirect_on_the_same_server_is_followed(server: Any) -> None:
    moved = server.raw(b"", 307, {"location": "/v1/chat/completions"})
    server.answer = lambda body: moved if len(server.asked) == 1 else server.repeat(body)
    assert ask(server.url) == ["You say: a"]
    server.answer = lambda _body: server.raw(b"", 308, {"location": "/login"})
    with pytest.raises(SafetyNeuronsError, match="404"):
        ask(server.url)


def test_compressed_bodies(server: Any) -> None:
    body = json.dumps(server.completion("Yes")).encode()
    server.answer = lambda _body: server.raw(gzip.compress(body), 200, {"content-encoding": "gzip"})
    assert ask(server.url) == ["Yes"]
    server.answer = lambda _body: server.raw(body, 200, {"content-encoding": "gzip"})
    with pytest.raises(SafetyNeuronsError, match="cannot be decompressed"):
        ask(server.url)
    server.answer = lambda _body: server.raw(b"\x8b\x00\x80", 200, {"content-encoding": "br"})
    with pytest.raises(SafetyNeuronsError, match="not JSON"):
        ask(server.url)


@pytest.mark.parametrize("kind", ["text/html", "text/event-stream", "application/json; charset=latin-1", "x"])
def test_content_types_do_not_matter(kind: str, server: Any) -> None:
    body = json.dumps(server.completion("Grüße"), ensure_ascii=False).encode()
    server.answer = lambda _body: server.raw(body, 200, {"content-type": kind})
    assert ask(server.url) == ["Grüße"]


def test_https_for_a_server_without_tls(server: Any) -> None:
    with pytest.raises(SafetyNeuronsError, match=r"does not speak TLS.*give http:// instead"):
        ask(server.url.replace("http:", "https:"))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for this machine, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    file = tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", file, "-out", tmp_path / "out.pem"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "out.pem").read_text())
    return file


def test_certificates_of_a_company(server: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(SafetyNeuronsError, match=r"certificate of the server at .* is not trusted.*SSL_CERT_FILE"):
        ask(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask(url) == ["You say: a"]
    with pytest.raises(SafetyNeuronsError, match=r"drops the connection.*https:// instead of http://"):
        ask(server.url)


def test_certificates_that_cannot_be_read(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.pem").write_text("none")
    for variable, path in (
        ("SSL_CERT_FILE", "missing.pem"),
        ("SSL_CERT_FILE", "empty.pem"),
        ("SSL_CERT_DIR", "missing"),
    ):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.setenv(variable, str(tmp_path / path))
        with pytest.raises(SafetyNeuronsError, match=rf"{variable} names .*{path}, which cannot be read"):
            ask("https://127.0.0.1:1/v1")
        # They are not needed without TLS.
        assert ask(server.url) == ["You say: a"]


def test_errors_of_the_connection_hide_the_key(proxy: str) -> None:
    found = connection_error(FAR, OSError(f"no way with key-123 by {SECRET}"), proxy_for(FAR), "key-123")
    assert "no way with [hidden] by [hidden]" in str(found)


@pytest.mark.parametrize("url", ["http://999.1.1.1:80/v1", f"http://far.example/{'a' * 70_000}/v1"])
def test_urls_that_the_http_client_rejects(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SafetyNeuronsError, match="The URL of the server must look like"):
        Endpoint(url)
    monkeypatch.setenv("http_proxy", "http://999.1.1.1:80")
    with pytest.raises(SafetyNeuronsError, match="The proxy in http_proxy is not one that can be used"):
        proxy_for("http://far.example/v1")
