"""How fast a server's answers are taken in, how much memory that needs, and how many requests are open at once.

Run it alone: `python benchmarks/server.py`.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from safety_neurons.core.errors import SafetyNeuronsError
from safety_neurons.engines.endpoint import Endpoint
from safety_neurons.models.chat import Conversation

METHOD = """\
A server on this machine, in a process of its own, answers at once. Each prompt is asked once, and an answer is
dropped as soon as it is there, so whatever memory grows is held by the engine. Processor time is that of this process
alone: on a busy machine it says how many answers a second one core can take in, which the wall clock does not.
Memory is what Python has allocated after a tenth of the requests and after all of them. The last row asks a server
that sends a byte now and then and never ends.
"""
ANSWERS_PER_SECOND = 900
# Bytes that may stay allocated for each request.
BYTES_PER_REQUEST = 64
# Seconds beyond the limit within which a request has to end.
GRACE = 2.0


@dataclass(frozen=True)
class Result:
    """What `requests` to an instant server cost; times in seconds, memory in bytes."""

    requests: int
    concurrency: int
    answered: int
    most_at_once: int
    wall: float
    processor: float
    growth: int

    @property
    def per_processor_second(self) -> float:
        return self.answered / self.processor

    @property
    def per_second(self) -> float:
        return self.answered / self.wall


class Instant:
    """Answers chat completions at once, or drips; counts how many requests are open."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1]
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
                )
                await reader.readexactly(length)
                if path == b"/most":
                    self.send(writer, json.dumps(self.most).encode())
                    self.most = 0
                elif path.startswith(b"/drip"):
                    await self.drip(writer)
                else:
                    self.now += 1
                    self.most = max(self.most, self.now)
                    # Other requests that are open show up before this one is answered.
                    await asyncio.sleep(0)
                    self.now -= 1
                    self.send(writer, ANSWER)
                await writer.drain()
        writer.close()

    def send(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    async def drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)


ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "instant",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "I'm sorry, but I can't help with that. " * 4},
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60},
    }
).encode()


async def serve() -> None:
    """Serve on a free port, which is printed, until the process is ended."""
    server = await asyncio.start_server(Instant().connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def instant_server() -> Iterator[str]:
    """The address of the server, without a path, in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def most_at_once(address: str) -> int:
    """The most requests that were open at once since this was asked last."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/most") as response:
        return int(response.read())


def measure(address: str, requests: int, concurrency: int) -> Result:
    """Ask `requests` different prompts, `concurrency` at once, twice: for the time, and for the memory."""
    engine = Endpoint(f"{address}/v1", "instant", concurrency=concurrency)
    conversations = [Conversation.of(f"Question {number}?") for number in range(requests)]
    # What is imported and opened once is not counted.
    drain(engine, conversations[: 2 * concurrency])
    most_at_once(address)
    wall, processor = time.perf_counter(), time.process_time()
    answered, _ = drain(engine, conversations)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    most = most_at_once(address)
    tracemalloc.start()
    try:
        _, memory = drain(engine, conversations, (requests // 10, requests - 1))
    finally:
        tracemalloc.stop()
    return Result(requests, concurrency, answered, most, wall, processor, memory[1] - memory[0])


def drain(engine: Endpoint, conversations: list[Conversation], at: tuple[int, ...] = ()) -> tuple[int, list[int]]:
    """The number of answers, each dropped at once, and the bytes that are allocated `at` so many of them."""
    answered = 0
    memory = []
    for _ in engine.answer(conversations, max_new_tokens=64):
        answered += 1
        if answered in at:
            gc.collect()
            memory.append(tracemalloc.get_traced_memory()[0])
    return answered, memory


def seconds_of_a_drip(address: str, limit: float) -> float:
    """Seconds until a request with a limit is given up whose response never ends."""
    engine = Endpoint(f"{address}/drip", "instant", timeout=limit)
    start = time.perf_counter()
    try:
        drain(engine, [Conversation.of("Hello")])
    except SafetyNeuronsError:
        return time.perf_counter() - start
    raise AssertionError


def table(results: list[Result], drip: float, limit: float) -> Table:
    """The measurements, red where they miss the bar."""
    found = Table(title="Answers of an instant server", title_justify="left")
    for column in ("measured", "value", "bar"):
        found.add_column(column, justify="left" if column == "measured" else "right")

    def add(what: str, value: str, bar: str, good: bool) -> None:
        found.add_row(what, f"[{'green' if good else 'red'}]{value}", bar)

    for one in results:
        name = f"{one.requests:,} requests, {one.concurrency} at once"
        rate = one.per_processor_second
        add(f"{name}: answers a processor second", f"{rate:,.0f}", f"{ANSWERS_PER_SECOND}", rate >= ANSWERS_PER_SECOND)
        found.add_row(f"{name}: answers a second on the wall clock", f"{one.per_second:,.0f}", "")
        add(f"{name}: answered", f"{one.answered:,}", f"{one.requests:,}", one.answered == one.requests)
        add(f"{name}: most at once", str(one.most_at_once), str(one.concurrency), one.most_at_once <= one.concurrency)
        growth = one.growth / (0.9 * one.requests)
        add(f"{name}: bytes a request that stay", f"{growth:,.1f}", str(BYTES_PER_REQUEST), growth <= BYTES_PER_REQUEST)
    add(
        f"a response without end, limit {limit:g} s: seconds",
        f"{drip:.2f}",
        f"{limit + GRACE:g}",
        drip <= limit + GRACE,
    )
    return found


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description="Measure how a server's answers are taken in.",
        epilog=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32], help="requests at once (default: 8 32)")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds for the response without end (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to this file as well")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    warnings.simplefilter("ignore")
    with instant_server() as address:
        results = [measure(address, options.requests, concurrency) for concurrency in options.concurrency]
        drip = seconds_of_a_drip(address, options.limit)
    Console().print(table(results, drip, options.limit))
    if options.json:
        rows = [asdict(row) | {"per_processor_second": row.per_processor_second} for row in results]
        options.json.write_text(json.dumps({"rows": rows, "drip": drip}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
