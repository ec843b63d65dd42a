"""A model of `RedisStore`: what is lost is lost in an outage, which everybody is told of once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from harness import recorded
from servers import BINARIES, KINDS, Proxy, Server, proxied
from support import Told, balanced, eventually, program
from tornadose import Gap, OutcomeUnknownError, RedisStore

OUTAGE = Gap("outage")
CUT = "cut"  # stands in the log where the connections were
LAST = "last"
BREAKS = 2  # at most, as the store waits twice as long after each
PATIENCE = 0.02  # seconds until a mark is taken for lost, and another one is published

PUBLISH = "for _, data in ipairs(ARGV) do redis.call('PUBLISH', KEYS[1], data) end"

channels = (f"channel {number}" for number in count())


@pytest.fixture(scope="module", params=KINDS)
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Run one server for all examples, each of which has a channel of its own."""
    binary = BINARIES[request.param] or program("redis-server")
    server = Server(binary, tmp_path_factory.mktemp(request.param))
    asyncio.run(server.start())
    yield server.port
    server.kill()


def check_witness(events: Sequence[object], log: Sequence[str], uncertain: set[str]) -> None:
    """See that it has got the log in order, but for what a gap stands in place of.

    A gap stands where the connections were cut: nothing from before that comes after it,
    and nothing from after that before it. Until it is told, messages may be lost.
    """
    left, cut = deque(log), False
    for event in events:
        if event == OUTAGE:
            assert CUT in left, "gap without an outage"
            while left.popleft() != CUT:
                continue
            cut = True
            continue
        assert event in left, "order"
        while (item := left.popleft()) != event:
            assert item != CUT, "outage without a gap"
            assert cut or item in uncertain, "loss"
        cut = False
    assert not left, "loss at the end"


@dataclass
class Client:
    """A subscriber that began when a witness had heard so much of what was accepted.

    Args:
        told: The subscriber.
        heard: Events of the witness.
        ahead: Messages accepted that the witness had not got yet.
        cut: Whether there was an outage that may have been announced already.
    """

    told: Told[str]
    heard: int
    ahead: int
    cut: bool

    def check(self, witness: Sequence[object], complete: bool) -> None:
        """See that it has got what the witness has, from its time on."""
        expected, ahead = deque(list(witness)[self.heard :]), self.ahead
        while ahead:
            ahead -= expected.popleft() != OUTAGE
        events = self.told.events
        if self.cut and expected and expected[0] == OUTAGE and events[:1] != [OUTAGE]:
            expected.popleft()
        assert events == (list(expected) if complete else list(expected)[: len(events)])


class World:
    """A store behind a proxy, another program that is not, and subscribers of the store."""

    def __init__(self, port: int, proxy: Proxy, policy: Literal["block", "disconnect"]) -> None:
        self.channel = next(channels)
        backlog, inbox = (1, 2) if policy == "block" else (1024, 1024)
        self.store = RedisStore(
            self.channel,
            port=proxy.port,
            policy=policy,
            backlog=backlog,
            inbox=inbox,
            block_timeout=60,
        )
        self.proxy = proxy
        self.redis = Redis(port=port, protocol=2)
        self.log: list[str] = []
        self.uncertain: set[str] = set()
        self.mended = True
        self.breaks = 0
        self.witness = Told[str]()
        self.clients: list[Client] = []
        self.gone: list[tuple[Client, int]] = []

    async def run(self, steps: Sequence[tuple[str, int]]) -> None:
        do: dict[str, Callable[[int], Awaitable[None]]] = {
            name: getattr(self, name) for name, _ in steps
        }
        async with self.store:
            self.store.register(self.witness)
            for name, number in steps:
                await do[name](number)
            await self.mend(0)
            for client in self.clients:
                client.told.running.set()
            await self.published(LAST)
            everybody = self.witness, *(client.told for client in self.clients)
            await eventually(lambda: all(told.got[-1:] == [LAST] for told in everybody))
            self.check()
        await self.redis.aclose()

    def check(self) -> None:
        check_witness(self.witness.events, self.log, self.uncertain)
        for client in self.clients:
            client.check(self.witness.events, complete=True)
        for client, events in self.gone:
            assert len(client.told.events) == events
            client.check(self.witness.events, complete=False)
        books = self.store.statistics()
        assert balanced(books)
        assert books.dropped == books.pending == 0
        assert books.submitted == books.published == len(self.witness.got)
        subscribers = (
            self.witness,
            *(c.told for c in self.clients),
            *(c.told for c, _ in self.gone),
        )
        assert books.delivered == sum(len(told.got) for told in subscribers)

    async def published(self, *data: str) -> None:
        """Let another program publish, all at a time."""
        self.log += data
        await self.redis.execute_command("EVAL", PUBLISH, 1, self.channel, *data)

    async def calls(self) -> int:
        """Return how often something was published on the server."""
        stats: Any = await self.redis.execute_command("INFO", "commandstats")
        return int(stats["cmdstat_publish"]["calls"])

    # ---- what may happen

    async def submit(self, number: int) -> None:
        for _ in range(number):
            self.log.append(data := f"own {len(self.log)}")
            try:
                await self.store.submit(data)
            except OutcomeUnknownError:
                self.uncertain.add(data)

    async def publish(self, number: int) -> None:
        await self.published(*(f"foreign {len(self.log) + n}" for n in range(number)))

    async def register(self, number: int) -> None:
        heard, got = len(self.witness.events), len(self.witness.got)
        ahead = self.store.statistics().submitted - got
        self.clients.append(Client(Told(), heard, ahead, not self.mended))
        self.store.register(self.clients[-1].told)

    async def deregister(self, number: int) -> None:
        if self.clients:
            client = self.clients.pop(number % len(self.clients))
            self.store.deregister(client.told)
            self.gone.append((client, len(client.told.events)))
            client.told.running.set()

    async def stop(self, number: int) -> None:
        if self.clients:
            self.clients[number % len(self.clients)].told.running.clear()

    async def start(self, number: int) -> None:
        for client in self.clients[number % 2 :]:
            client.told.running.set()

    async def turn(self, number: int) -> None:
        """Let the store do what it has to, for so many turns of the loop."""
        for _ in range(5 * number):
            await asyncio.sleep(0)

    async def read(self, number: int) -> None:
        """Let it have the time to read."""
        await asyncio.sleep(0.002 * number)

    async def cut(self, number: int) -> None:
        """Break the connections, once they stand again after the time before."""
        if self.breaks < BREAKS:
            await self.mend(number)
            self.broken()

    def broken(self) -> None:
        self.log.append(CUT)
        self.mended = False
        self.breaks += 1
        self.proxy.cut()

    async def cut_before_the_reply(self, number: int) -> None:
        """Break them when a message was published, and the store does not know yet."""
        if self.breaks < BREAKS:
            await self.mend(number)
            await self.submit(1)  # so that the connection to write stands
            before = await self.calls()
            self.proxy.swallow_replies()
            submitting = asyncio.create_task(self.submit(1))
            while await self.calls() == before and not submitting.done():  # noqa: ASYNC110
                await asyncio.sleep(0)
            self.broken()
            self.proxy.heal()
            await submitting
            assert await self.calls() == before + 1, "sent twice"

    async def cut_for_longer(self, number: int) -> None:
        """Break them, and those that are opened next before anything has passed."""
        await self.cut(number)
        if self.breaks < BREAKS:
            self.breaks += 1
            await self.start(0)
            self.proxy.blackhole()
            before = self.proxy.connections
            await eventually(lambda: self.proxy.connections > before)
            self.proxy.cut()
            self.proxy.heal()

    async def mend(self, number: int) -> None:
        """Wait until what is published comes in, with nobody in the way."""
        if not self.mended:
            await self.start(0)
        for _ in range(500):
            if self.mended:
                return
            await self.published(mark := f"mark {len(self.log)}")
            with suppress(AssertionError):
                await eventually(lambda: self.witness.got[-1:] == [mark], PATIENCE)
                self.mended = True
        raise AssertionError("it is never mended")


SMALL, ANY = st.integers(1, 3), st.integers(0, 20)
STEPS = st.one_of(
    *(
        st.tuples(st.just(name), numbers)
        for name, numbers in (
            ("submit", SMALL),
            ("submit", ANY),
            ("publish", SMALL),
            ("publish", ANY),
            ("register", SMALL),
            ("register", SMALL),
            ("deregister", ANY),
            ("stop", ANY),
            ("stop", ANY),
            ("start", SMALL),
            ("turn", SMALL),
            ("read", SMALL),
            ("read", SMALL),
            ("mend", SMALL),
            ("cut", SMALL),
            ("cut_before_the_reply", SMALL),
            ("cut_for_longer", SMALL),
        )
    )
)


@pytest.mark.timeout(600)
@settings(phases=[Phase.reuse, Phase.generate])  # outages take their time: shrinking, minutes
@given(st.lists(STEPS, min_size=5, max_size=30), st.sampled_from(["block", "disconnect"]))
def test_p1_p2_p6_p10_all_arrives_in_order_or_an_outage_is_told_once_where_the_hole_is(
    port: int, steps: list[tuple[str, int]], policy: Literal["block", "disconnect"]
) -> None:
    records: list[logging.LogRecord] = []

    async def run() -> int:
        async with proxied(port) as proxy:
            world = World(port, proxy, policy)
            await world.run(steps)
            return world.log.count(CUT)

    with recorded(records.append):
        cuts = asyncio.run(run())

    noted = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    for text in "cannot read from Redis", "reads from Redis again":
        assert sum(text in line for line in noted) == cuts
    assert len(noted) == 2 * cuts
