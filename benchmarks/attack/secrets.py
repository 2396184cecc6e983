"""Passwords in addresses and keys in the environment, and every file and output that could hold them."""

import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from attack import forked
from attack.outcome import Tally
from attack.subject import Subject

PASSWORD, KEY = "pass-4711-word", "key-0815-key"
ANSWER = b'{"choices": [{"message": {"role": "assistant", "content": "Sorry, no."}, "finish_reason": "stop"}]}'


class Server(BaseHTTPRequestHandler):
    """Answers what the path says: politely, or with an error that repeats what it was sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(200 if "polite" in self.path else 418 if "teapot" in self.path else 401)

    def do_GET(self) -> None:
        self._send(404)

    def _send(self, status: int) -> None:
        body = ANSWER if status == 200 else f"You sent {self.path} with {dict(self.headers)}".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def secrets(subject: Subject, work: Path) -> Tally:
    """Evaluate servers whose addresses have passwords, which tell what they were sent; then look everywhere."""
    tally = Tally("passwords and keys of servers")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    prompts = [one for one in subject.options if one.endswith(".jsonl")]
    for path in ("polite", "teapot", "denied"):
        for query in ("", f"?api_key={KEY}"):
            out = work / "served"
            shutil.rmtree(out, ignore_errors=True)
            address = f"http://user:{PASSWORD}@127.0.0.1:{server.server_port}/{path}/v1{query}"
            options = (
                "--evaluate.on",
                ":".join(prompts[:2]),
                "--evaluate.attacks",
                "direct",
                "--evaluate.prompts",
                "2",
            )
            ended = forked.run(("evaluate", address, "--out", str(out), *options), lambda: _set_key())
            tally.tried += 1
            if ended.crashed:
                tally.note("traceback", f"{path}{query}", ended.output)
            shown = {"terminal": ended.output.encode(), **_files(out)}
            for name, content in shown.items():
                if any(one.encode() in content for one in (PASSWORD, KEY)):
                    tally.note("secret", f"{path}{query[:5]}, {name}", content.decode(errors="replace")[-400:])
    server.shutdown()
    return tally


def _set_key() -> None:
    os.environ["OPENAI_API_KEY"] = KEY


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
