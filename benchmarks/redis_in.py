"""What comes in from Redis: the same messages for redis-py in a loop, and for a store.

Of a stream, the loop reads 100 entries at a time, and the store up to 200, as each would.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from urllib.parse import urlsplit

from .process import BenchmarkError, Server
from .protocol import Done, Order, Setup, payload
from .results import Results, Sample

__all__ = ("SHAPES", "measure")

MODULES = {"redis-py": "redis_py", "tornadose": "tornadose_redis"}
SHAPES = {"Redis Pub/Sub in": False, "Redis Streams in": True}
REPETITIONS = 7


def measure(
    shapes: Collection[str],
    messages: int,
    redis: str,
    results: Results,
    progress: Callable[[str, str], None],
) -> None:
    """Measure the CPU time for each message that is read.

    Args:
        shapes: Which of `SHAPES`.
        messages: How many in a repetition.
        redis: URL.
        results: Where the samples go.
        progress: Is told what happens.
    """
    with ExitStack() as stack:
        servers = {name: Server(module, Setup(redis=redis)) for name, module in MODULES.items()}
        for server in servers.values():
            stack.callback(server.close)
        for shape in (name for name in SHAPES if name in shapes):
            for repetition in range(REPETITIONS + 1):  # the first one warms up
                for name, server in list(servers.items())[:: 1 if repetition % 2 else -1]:
                    progress(shape, f"{name}, {repetition} of {REPETITIONS}")
                    channel = f"{name}-{repetition}"
                    order = Order(
                        do="read", messages=messages, channel=channel, stream=SHAPES[shape]
                    )
                    sample = _sample(server, order, redis)
                    if repetition:
                        results.add(shape, name, sample)


def _sample(server: Server, order: Order, redis: str) -> Sample:
    """Let the server read, and write meanwhile."""
    verb = ("XADD", order.channel, "*", "data") if order.stream else ("PUBLISH", order.channel)
    commands = b"".join(_command(*verb, payload(order.size)) for _ in range(order.messages))
    server.ask(Done, order)
    cpu, start = server.cpu(), time.monotonic()
    _send(redis, commands)
    server.answer(Done)
    wall = time.monotonic() - start
    sample = Sample(cpu=server.cpu() - cpu, wall=wall, count=order.messages)
    _send(redis, _command("DEL", order.channel))
    return sample


def _command(*words: str) -> bytes:
    """Return a command as Redis expects it; words are ASCII."""
    parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{parts}".encode()


def _send(redis: str, commands: bytes) -> None:
    """Send all commands at once, and wait until they are done."""
    parts = urlsplit(redis)
    end = b"$3\r\nend\r\n"
    with socket.create_connection((parts.hostname, parts.port)) as sock:
        sock.sendall(commands + _command("ECHO", "end"))
        tail = b""
        while tail != end:
            if not (data := sock.recv(1 << 16)):
                raise BenchmarkError("Redis has closed the connection")
            tail = (tail + data)[-len(end) :]
