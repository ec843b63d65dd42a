"""The server that dies, two processes that publish, and the clients of both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from servers import Server, running
from soak.clients import PATIENCE, Client, Log
from soak.processes import Publishing, publishing
from soak.server import Figures, watch
from soak.verdict import Book
from support import eventually
from tornadose.stores.redis.connection import array_of, bytes_of

CLIENTS = 200  # of each store in each process
RESTLESS = 40  # clients of the stream who reconnect to the other process all the time
STAY = 1.0, 6.0  # seconds until such a one does
HERD = 20  # more who reconnect while the server is away
AWAY = 0.2, 2.0  # seconds that it is
AT_ONCE = 50  # connections that are opened at a time, which a backlog has room for
TESTER, LAST = "tester", b"tester 1"  # who publishes the last message of all
KEY = "tornadose"
TICK = 0.01  # seconds between two looks at the clients


class Scene:
    """What happens, and what has been seen of it.

    Attributes:
        restarts: Of the server that dies.
        figures: Of the event loop that the clients are in.
        delays: Samples of the seconds from Redis to a client of the stream.
        stream: Ids and payloads, at the end.
    """

    def __init__(self, valkey: Server, processes: Sequence[Publishing]) -> None:
        self.restarts = 0
        self.figures: Figures = {"cpu": 0.0, "stall": 0.0, "busy": 0.0}
        self.delays: list[float] = []
        self.stream: list[tuple[str, str]] = []
        self.processes = processes
        self._lost: asyncio.Queue[Client] = asyncio.Queue()
        self.logs = {"stream": Log(), "channel": Log()}
        self.clients = {
            kind: [
                Client(f"/{kind}", log, self._lost.put_nowait)
                for _ in range(CLIENTS * len(processes))
            ]
            for kind, log in self.logs.items()
        }
        self._tester = {"stream": Book(), "channel": Book()}
        self._homes: dict[Client, int] = {}
        self._calm = asyncio.Event()  # when the disturbances are over
        self._valkey = valkey

    def books(self, kind: str) -> Mapping[str, Book]:
        """Return what each publisher was told of its messages, by its name."""
        told = {process.name: process.books[kind] for process in self.processes}
        return {**told, TESTER: self._tester[kind]}

    async def play(self, seconds: float, kills: int) -> None:
        """Publish, kill and restart, and wait until everybody has what came last.

        Args:
            seconds: How long.
            kills: How often the server dies, in equal intervals.
        """
        watching = [
            asyncio.create_task(watch(self.figures)),
            asyncio.create_task(self._bring_back()),
        ]
        listening = [asyncio.create_task(process.listen()) for process in self.processes]
        try:
            await self._gather()
            self._say("go")
            await self._disturb(seconds, kills)
            self._say("stop")
            done, _ = await asyncio.wait(listening, timeout=PATIENCE)
            await asyncio.gather(*done)
            await self._end()
        finally:
            for task in (*watching, *listening):
                task.cancel()
            for client in self._homes:
                client.leave()

    async def _gather(self) -> None:
        for clients in self.clients.values():
            for start in range(0, len(clients), AT_ONCE):
                some = clients[start : start + AT_ONCE]
                await asyncio.gather(*(self._move(client, n) for n, client in enumerate(some)))

    async def _move(self, client: Client, steps: int = 1) -> None:
        """Let a client leave, and connect to the next process."""
        home = self._homes[client] = (self._homes.get(client, 0) + steps) % len(self.processes)
        await client.move(self.processes[home].port)

    async def _bring_back(self) -> None:
        """Connect whoever was too slow once more, as a browser does."""
        while True:
            await self._move(await self._lost.get(), 0)

    def _say(self, command: str) -> None:
        for process in self.processes:
            process.say(command)

    # ---- what disturbs them

    async def _disturb(self, seconds: float, kills: int) -> None:
        restless, others = self.clients["stream"][:RESTLESS], self.clients["stream"][RESTLESS:]
        async with asyncio.TaskGroup() as around:
            for client in restless:
                around.create_task(self._roam(client))
            around.create_task(self._sample())
            began = time.monotonic()
            for kill in range(1, kills + 1):
                await asyncio.sleep(began + seconds * kill / (kills + 1) - time.monotonic())
                await self._fail(random.sample(others, HERD))
            await asyncio.sleep(began + seconds - time.monotonic())
            self._calm.set()

    async def _fail(self, herd: Sequence[Client]) -> None:
        """Kill the server, let some reconnect while it is away, and start it again."""
        await self._followed()  # or it would be the same outage
        self._valkey.kill()
        async with asyncio.TaskGroup() as around:
            for client in herd:
                around.create_task(self._move(client))
            await asyncio.sleep(random.uniform(*AWAY))
        await self._valkey.start()
        self.restarts += 1

    async def _roam(self, client: Client) -> None:
        while not self._calm.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*STAY)):
                    await self._calm.wait()
            await self._move(client)

    async def _sample(self) -> None:
        """Look how long messages take from Redis to here."""
        while not self._calm.is_set():
            await asyncio.sleep(TICK)
            client = random.choice(self.clients["stream"])
            if client.last is not None:
                self.delays.append(client.arrived - added(client.last))

    # ---- the end

    async def _end(self) -> None:
        """Publish one more message, wait until everybody has it, and read the stream."""
        await self._followed()
        cursor = await self._valkey.command("XADD", KEY, "*", "data", LAST)
        await self._valkey.command("PUBLISH", KEY, LAST)
        self._tester["stream"].accepted[1] = bytes_of(cursor).decode()
        self._tester["channel"].accepted[1] = None
        await self._settle()
        self.stream = await self._entries()

    async def _settle(self) -> None:
        """Wait until everybody is done, or nothing has come for a while: the verdict will tell."""
        received = -1
        while received < (received := sum(client.received for client in self._homes)):
            with suppress(AssertionError):
                return await eventually(self._everybody_is_done, PATIENCE)

    async def _followed(self) -> None:
        """Wait until every process is subscribed to the channel."""
        subscribed: object = 0
        async with asyncio.timeout(PATIENCE):
            while subscribed != len(self.processes):
                await asyncio.sleep(TICK)
                _, subscribed = array_of(await self._valkey.command("PUBSUB", "NUMSUB", KEY))

    def _everybody_is_done(self) -> bool:
        return all(b"data: " + LAST in (client.last or b"") for client in self._homes)

    async def _entries(self) -> list[tuple[str, str]]:
        reply: Any = await self._valkey.command("XRANGE", KEY, "-", "+")
        return [(cursor.decode(), fields[b"data"].decode()) for cursor, fields in reply]


def added(event: bytes) -> float:
    """Return when an event of the stream was added, in seconds of the wall clock."""
    return int(event[len("id: ") : event.index(b"-")]) / 1000


@asynccontextmanager
async def staged(folder: Path) -> AsyncGenerator[Scene]:
    """Run the server and the processes; logs and the append-only file are in this folder."""
    async with AsyncExitStack() as stack:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        valkey = await stack.enter_async_context(running("valkey", folder, *options))
        processes = [
            await stack.enter_async_context(publishing(name, valkey.port, folder / f"{name}.log"))
            for name in ("a", "b")
        ]
        yield Scene(valkey, processes)
