"""Addresses: what is taken out of them, what stays, and what counts as a secret."""

import pytest

from safety_neurons.core import addresses
from safety_neurons.core.addresses import Credentials, credentials_of, take_credentials, without_credentials


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_remembered", {})
    monkeypatch.setattr(addresses, "_secrets", {})


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://u:pw@h:1/v1", "http://h:1/v1"),
        ("HTTPS://token@h", "HTTPS://h"),
        ("http://[::1]:80/v1?k=v#f", "http://[::1]:80/v1"),
        ("http://h?k=a@b", "http://h"),
        ("http://h/v1#f", "http://h/v1"),
        ("http://u:p/w@h/v1", "http://h/v1"),
        ("http://u:p@w@h/v1", "http://h/v1"),
        ("http://u:p#w@h/v1", "http://h/v1"),
        ("http://u:p?w@h/v1", "http://h/v1"),
        ("socks5://u:pw@proxy:1080", "socks5://proxy:1080"),
        ("judge:endpoint=http://u:p,a=w@h/v1?k=x,model=a@b", "judge:endpoint=http://h/v1,model=a@b"),
        ("judge:endpoint=http://h/v1?k=a,b,c,model=d", "judge:endpoint=http://h/v1,model=d"),
        ("one:endpoint=http://u:p@h,two:endpoint=https://v:q@i", "one:endpoint=http://h,two:endpoint=https://i"),
        ("http://u:p@h1,http://v:q@h2", "http://h1,http://h2"),
        ('see "http://u:p@h/a" and http://h/b?k=v now', 'see "http://h/a" and http://h/b now'),
    ],
)
def test_credentials_are_taken_out_wherever_an_address_stands(text: str, clean: str) -> None:
    assert without_credentials(text) == clean
    assert without_credentials(clean) == clean
    assert take_credentials({"a": [text, 1, None], "b": (text,)}) == {"a": [clean, 1, None], "b": (clean,)}


@pytest.mark.parametrize(
    "text", ["", "a@b", "http://", "http://h/a@b", "http://h:80/v1,model=a@b", "file.txt?x#y", "://@"]
)
def test_what_holds_no_credentials_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


def test_what_is_taken_out_is_remembered_for_the_address() -> None:
    assert take_credentials("http://me:s%2Fcret@one.example/v1/?key=a%20b") == "http://one.example/v1/"
    found = credentials_of("http://one.example/v1")
    assert found == Credentials("me", "s%2Fcret", "key=a%20b")
    # me:s/cret in base64.
    assert found.authorization == "Basic bWU6cy9jcmV0"
    assert {"s%2Fcret", "s/cret", "bWU6cy9jcmV0"} <= set(addresses.secrets())
    take_credentials("http://me:other@one.example/v1")
    take_credentials("http://one.example/v1")
    assert credentials_of("http://one.example/v1").password == "other"
    assert credentials_of("http://two.example/v1") == Credentials()


def test_addresses_of_strangers_are_cleaned_and_not_remembered() -> None:
    before = addresses.secrets()
    assert without_credentials("http://me:planted-secret@three.example") == "http://three.example"
    assert addresses.hidden("at http://me:planted-secret@three.example", 100) == "at http://three.example"
    assert credentials_of("http://three.example") == Credentials()
    assert addresses.secrets() == before


def test_secrets_in_answers_and_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", "sk-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    known = addresses.secrets()
    assert addresses.without_secrets("sk-0123456789 is EMPTY", known) == "[key] is EMPTY"
    assert addresses.replaced("sk-0123456789 is EMPTY", known) == "[key] is [key]"
    assert addresses.hidden("a " * 100 + "sk-0123456789", 20) == "a " * 10 + " ..."


@pytest.mark.parametrize(
    "form",
    [
        "sk-Abc%2Fdef%2Bghi%3Dq%22z%261%3C2+x",
        "sk-Abc/def%2Bghi%3Dq%22z%261%3C2%20x",
        "sk-Abc%2fdef%2bghi%3dq%22z%261%3c2%20x",
        "sk-Abc/def+ghi=q&quot;z&amp;1&lt;2 x",
        'sk-Abc/def+ghi=q"z&amp;1&lt;2 x',
        r"sk-Abc/def+ghi=q\"z&1<2 x",
        r"sk-Abc\/def+ghi=q\"z&1<2 x",
        r"sk-Abc/def+ghi=q\\\"z&1<2 x",
        "c2stQWJjL2RlZitnaGk9cSJ6JjE8MiB4",
        "QmVhcmVyIHNrLUFiYy9kZWYrZ2hpPXEieiYxPDIgeA",
    ],
)
def test_encoded_secrets_in_answers_and_messages(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_NEURONS_API_KEY", 'sk-Abc/def+ghi=q"z&1<2 x')
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert addresses.without_secrets(f"Not {form}!", addresses.secrets()) == "Not [key]!"
    assert addresses.hidden(f"Not {form}!", 100) == "Not [key]!"


def test_passwords_as_a_server_repeats_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_secrets", {})
    addresses.take_credentials("http://user:p%3Fss~0123@four.example")
    known = addresses.secrets()
    for form in ("dXNlcjpwP3NzfjAxMjM=", "dXNlcjpwP3NzfjAxMjM%3D", "p%3Fss~0123", "p?ss~0123"):
        assert addresses.without_secrets(f"I got {form}.", known) == "I got [hidden]."
