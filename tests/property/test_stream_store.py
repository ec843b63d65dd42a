"""A model of `RedisStreamStore`: whatever happens in whatever order, nothing is lost unsaid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from harness import recorded
from servers import BINARIES, Server
from support import Told, balanced, eventually
from tornadose import Gap, RedisStreamStore
from tornadose.stores.redis.connection import bytes_of

POISON = b"\xff"
LAST = "last"

streams = (f"stream {number}" for number in count())


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run one server for all examples, each of which has a stream of its own."""
    server = Server(str(BINARIES["valkey"]), tmp_path_factory.mktemp("valkey"))
    asyncio.run(server.start())
    yield server.port
    server.kill()


@dataclass
class Client:
    """A subscriber, and where in the stream it has begun, or may have."""

    told: Told[str]
    earliest: int
    latest: int

    def check(self, log: Sequence[str | None], trimmed: int) -> None:
        """See that it has got all that follows, but for what a gap stands in place of."""
        at, gaps = self.earliest - 1, list[Gap]()
        for event in self.told.events:
            if isinstance(event, Gap):
                assert event.reason == "poisoned" or (event.reason == "expired" and trimmed)
                gaps.append(event)
                continue
            assert event != "closed"
            index = log.index(event)
            assert index > at, "order"
            between = range(at + 1, index)
            missed = [i for i in between if i >= min(index, self.latest)]
            assert all(log[i] is None or i < trimmed for i in missed), "loss"
            assert gaps or not missed, "loss without a gap"
            assert trimmed or not gaps or None in log[at + 1 : index], "gap without a loss"
            at, gaps = index, []


class World:
    """Two stores on one stream, another program, and subscribers of the first store."""

    def __init__(self, port: int, policy: Literal["block", "disconnect"]) -> None:
        self.stream = next(streams)
        backlog = 1 if policy == "block" else 1024
        self.here = RedisStreamStore(
            self.stream, port=port, policy=policy, backlog=backlog, block_timeout=60
        )
        self.there = RedisStreamStore(self.stream, port=port)
        self.redis = Redis(port=port, protocol=2)
        self.log: list[str | None] = []  # all payloads; none for what is poisoned
        self.ids: list[str] = []
        self.trimmed = 0
        self.accepted = 0  # entries up to the last that the store itself has submitted
        self.clients: list[Client] = []
        self.gone: list[tuple[Client, int]] = []

    async def run(self, steps: Sequence[tuple[str, int]]) -> None:
        do: dict[str, Callable[[int], Awaitable[None]]] = {
            name: getattr(self, name) for name, _ in steps
        }
        async with self.here, self.there:
            for name, number in steps:
                await do[name](number)
            for client in self.clients:
                client.told.running.set()
            await self.submitted(self.here, LAST)
            await eventually(lambda: all(c.told.got[-1:] == [LAST] for c in self.clients))
            for client in self.clients:
                client.check(self.log, self.trimmed)
            for client, events in self.gone:
                assert len(client.told.events) == events
                client.check(self.log, self.trimmed)
            books = self.here.statistics()
            assert balanced(books)
            assert books.dropped == books.pending == 0
        await self.redis.aclose()

    async def submitted(self, store: RedisStreamStore[str], data: str) -> None:
        self.ids.append(str((await store.submit(data)).id))
        self.log.append(data)
        if store is self.here:
            self.accepted = len(self.log)

    async def added(self, field: str, data: str | bytes) -> None:
        reply = await self.redis.execute_command("XADD", self.stream, "*", field, data)
        self.ids.append(bytes_of(reply).decode())
        self.log.append(data if isinstance(data, str) else None)

    # ---- what may happen

    async def submit(self, number: int) -> None:
        for _ in range(number):
            await self.submitted(self.here, f"here {len(self.log)}")

    async def submit_there(self, number: int) -> None:
        for _ in range(number):
            await self.submitted(self.there, f"there {len(self.log)}")

    async def add(self, number: int) -> None:
        for _ in range(number):
            await self.added("data", f"foreign {len(self.log)}")

    async def poison(self, number: int) -> None:
        await self.added("data", POISON)

    async def trim(self, number: int) -> None:
        await self.redis.execute_command("XTRIM", self.stream, "MAXLEN", number)
        self.trimmed = max(self.trimmed, len(self.log) - number)

    async def register(self, number: int) -> None:
        client = Client(Told(), self.accepted, len(self.log))
        self.here.register(client.told)
        self.clients.append(client)

    async def resume(self, number: int) -> None:
        """Resume after the last entry but so many."""
        if len(self.ids) > number:
            index = len(self.ids) - number
            client = Client(Told(), index, index)
            self.here.resume(client.told, self.ids[index - 1])
            self.clients.append(client)

    async def deregister(self, number: int) -> None:
        if self.clients:
            client = self.clients.pop(number % len(self.clients))
            self.here.deregister(client.told)
            self.gone.append((client, len(client.told.events)))
            client.told.running.set()

    async def stop(self, number: int) -> None:
        if self.clients:
            self.clients[number % len(self.clients)].told.running.clear()

    async def start(self, number: int) -> None:
        for client in self.clients[number % 2 :]:
            client.told.running.set()

    async def turn(self, number: int) -> None:
        """Let the stores do what they have to, for so many turns of the loop."""
        for _ in range(5 * number):
            await asyncio.sleep(0)

    async def read(self, number: int) -> None:
        """Let them have the time to read."""
        await asyncio.sleep(0.002 * number)


SMALL, ANY = st.integers(1, 3), st.integers(0, 20)
STEPS = st.one_of(
    *(
        st.tuples(st.just(name), numbers)
        for name, numbers in (
            ("submit", SMALL),
            ("submit", ANY),
            ("submit_there", SMALL),
            ("add", SMALL),
            ("add", ANY),
            ("poison", SMALL),
            ("trim", ANY),
            ("register", SMALL),
            ("resume", ANY),
            ("resume", ANY),
            ("deregister", ANY),
            ("stop", ANY),
            ("stop", ANY),
            ("start", SMALL),
            ("turn", SMALL),
            ("read", SMALL),
        )
    )
)


@given(st.lists(STEPS, min_size=5, max_size=30), st.sampled_from(["block", "disconnect"]))
def test_p1_p2_p8_p9_every_subscriber_gets_all_in_order_or_a_gap_where_the_hole_is(
    port: int, steps: list[tuple[str, int]], policy: Literal["block", "disconnect"]
) -> None:
    records: list[logging.LogRecord] = []

    async def run() -> None:
        await World(port, policy).run(steps)

    with recorded(records.append):
        asyncio.run(run())
    noted = [record for record in records if record.levelno >= logging.WARNING]
    assert all("cannot be decoded" in record.getMessage() for record in noted)
