"""A real server, `transformers serve`, gives what the same model gives in this process."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.engines.engine import InProcess, answers
from safety_neurons.models.chat import ChatModel, Conversation, Turn
from safety_neurons.models.generate import Sampling

pytest.importorskip("fastapi", reason="pip install 'safety-neurons[serving]'")
pytest.importorskip("uvicorn", reason="pip install 'safety-neurons[serving]'")

START = "from transformers.cli.transformers import main; main()"
PATIENCE = 180.0


@pytest.fixture
def served(model: ChatModel, tmp_path: Path) -> Iterator[Endpoint]:
    """The tiny model, saved and served."""
    folder = tmp_path / "tiny"
    settings = model.model.generation_config
    assert settings is not None
    # Without it this server draws nothing.
    settings.do_sample = True
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", START, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=environment)
    try:
        until = time.monotonic() + PATIENCE
        while not answers_at(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield Endpoint(f"http://127.0.0.1:{port}/v1", retries=1, timeout=60)
    finally:
        process.kill()
        process.wait()


def answers_at(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_a_real_server(served: Endpoint, model: ChatModel) -> None:
    # One test, since a server takes long to start.
    conversations = [Conversation.of(f"Tell me about {thing}.") for thing in ("the sea", "soup", "a long way home")]
    conversations.append(Conversation((Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Why?"))))
    here = InProcess(model, batch_size=1)
    expected = answers(here, conversations, max_new_tokens=12)
    assert answers(served, conversations, max_new_tokens=12) == expected
    assert len({answer.text for answer in expected}) > 1
    assert served.name.endswith("tiny")
    lengths = [len(model.tokenizer(model.render_conversation(one))["input_ids"]) for one in conversations]
    assert served.usage.prompt_tokens == sum(lengths)
    assert served.usage.completion_tokens == 12 * len(conversations)

    one = [Conversation.of("Draw")]
    drawn = [answers(served, one, max_new_tokens=12, sampling=Sampling(1.5, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]

    with pytest.raises(CannotRunError, match=r"does not support prefill.*continue_final_message"):
        answers(served, [Conversation.of("Tell me", "Sure,")], max_new_tokens=4)
    with pytest.raises(SafetyNeuronsError, match=r"pinned to"):
        answers(Endpoint(served.url, "another", retries=0), one, max_new_tokens=4)
