"""Why a server did not answer, in words that say what to do. No text holds the key."""

import contextlib
from collections.abc import Iterator

from safety_neurons.errors import SafetyNeuronsError

# Of what a server says: enough to recognise it.
SHOWN = 300


@contextlib.contextmanager
def explained(url: str, model_name: str, key: str | None) -> Iterator[None]:
    """Turn the client's errors into ours; the client has tried again by itself where that could help."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    try:
        yield
    except APITimeoutError:
        raise SafetyNeuronsError(
            f"The server at {url} did not answer in time. Ask for shorter answers or fewer at a time, or wait longer "
            "(timeout)."
        ) from None
    except APIConnectionError as error:
        cause = shown(str(error.__cause__ or error), key)
        raise SafetyNeuronsError(
            f"The server at {url} cannot be reached, or drops the connection ({cause}). See that it runs, and that "
            "the url is right."
        ) from None
    except APIStatusError as error:
        status, said = error.status_code, shown(error.response.text, key)
        # The client's own error holds the request, and with it the key.
        raise SafetyNeuronsError(f"The server at {url} {_why(status, model_name, key)} It says: {said}") from None


def not_understood(url: str, text: str, key: str | None) -> SafetyNeuronsError:
    """The error for a body that is not what was asked for."""
    said = f"It says: {shown(text, key)}" if text.strip() else "It says nothing."
    return SafetyNeuronsError(
        f"The server at {url} does not answer as an OpenAI-compatible server does. See that the url is that of its "
        f"API (it ends in /v1, mostly). {said}"
    )


def shown(text: str, key: str | None) -> str:
    """The beginning of a text in one line, without the key and without what a terminal would obey."""
    hidden = text.replace(key, "[key]") if key else text
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(hidden.split()))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def _why(status: int, model_name: str, key: str | None) -> str:
    if status in (401, 403):
        advice = "see that it is the right one" if key else "put one into SAFETY_NEURONS_API_KEY"
        return f"does not accept {'the key' if key else 'requests without a key'}: {advice}."
    if status == 404:
        return f"has no model called {model_name!r}, or its API is elsewhere (urls end in /v1, mostly)."
    if status == 429:
        return "takes no more requests for now: ask for fewer at a time (concurrency), or go on later."
    if status >= 500:
        return f"failed again and again (status {status}): look into its log."
    return f"refused a request (status {status})."
