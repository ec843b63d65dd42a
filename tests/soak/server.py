"""A server process of the soak: two stores, their event streams, and a publisher for each.

It is told ``go`` and ``stop`` on its standard input, and ends with it. On its standard
output it tells the port that it serves, and in the end a `Report`, a line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count, islice
from typing import TypedDict

from redis.exceptions import RedisError
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tornadose import EventSource, OutcomeUnknownError, RedisStore, RedisStreamStore

BURST, PAUSE = 12, 0.048  # messages, and seconds from one burst to the next: 250 a second
ENOUGH = 1_000_000  # entries, so that nothing is trimmed
TICK = 0.01  # seconds between two looks at the event loop


class Told(TypedDict):
    """What a publisher was told of its messages.

    Args:
        accepted: Numbers, and the ids that their messages have got.
        unknown: Numbers that may have been accepted.
        refused: How many were not, by the name of the error.
    """

    accepted: dict[str, str | None]
    unknown: list[int]
    refused: dict[str, int]


class Figures(TypedDict):
    """What an event loop was like.

    Args:
        cpu: Seconds that its process has computed.
        stall: Seconds, the longest time without a turn.
        busy: Seconds, the same, but no more than the process was computing meanwhile.
    """

    cpu: float
    stall: float
    busy: float


class Report(TypedDict):
    """What the process tells in the end, by the kind of the store where there are two."""

    told: dict[str, Told]
    figures: Figures


def write(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Publisher:
    """Submits bursts at their times, whatever becomes of the earlier ones.

    Attributes:
        told: What it was told.
    """

    def __init__(self, name: str, store: RedisStore | RedisStreamStore) -> None:
        self.told: Told = {"accepted": {}, "unknown": [], "refused": {}}
        self._name = name
        self._store = store

    async def run(self, stopped: asyncio.Event) -> None:
        numbers, due = count(1), asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as submitting:
            while not stopped.is_set():
                for number in islice(numbers, BURST):
                    submitting.create_task(self._submit(number))
                due += PAUSE
                await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))

    async def _submit(self, number: int) -> None:
        try:
            message = await self._store.submit(f"{self._name} {number}")
        except OutcomeUnknownError:
            self.told["unknown"].append(number)
        except (RedisError, TimeoutError) as error:
            refused, name = self.told["refused"], type(error).__name__
            refused[name] = refused.get(name, 0) + 1
        else:
            self.told["accepted"][str(number)] = message.id


async def watch(figures: Figures) -> None:
    """Keep the longest stall of the event loop."""
    while True:
        began, computed = time.perf_counter(), time.process_time()
        await asyncio.sleep(TICK)
        late = time.perf_counter() - began - TICK
        busy = min(late, time.process_time() - computed)
        figures["stall"] = max(late, figures["stall"])
        figures["busy"] = max(busy, figures["busy"])


@asynccontextmanager
async def serving(application: Application) -> AsyncGenerator[int]:
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def main(name: str, redis_port: int) -> None:
    stdin, stopped = await commands(), asyncio.Event()
    figures: Figures = {"cpu": 0.0, "stall": 0.0, "busy": 0.0}
    async with (
        RedisStreamStore(maxlen=ENOUGH, port=redis_port) as stream,
        RedisStore(port=redis_port) as channel,
        serving(
            Application(
                [EventSource.route("/stream", stream), EventSource.route("/channel", channel)]
            )
        ) as port,
    ):
        write(port)
        if await stdin.readline() == b"go\n":
            watching = asyncio.create_task(watch(figures))
            publishers = {"stream": Publisher(name, stream), "channel": Publisher(name, channel)}
            async with asyncio.TaskGroup() as publishing:
                for publisher in publishers.values():
                    publishing.create_task(publisher.run(stopped))
                await stdin.readline()
                stopped.set()
            watching.cancel()
            figures["cpu"] = time.process_time()
            told = {kind: publisher.told for kind, publisher in publishers.items()}
            write(Report(told=told, figures=figures))
        await stdin.read()


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s (%(asctime)s)")
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
