"""What every store of this package promises, shown with each of them.

A case says what a store is capable of; the tests are run over the cases that they hold for.
The Redis stores run on a server of each kind, every test on a channel or stream of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from conftest import Logged
from servers import BINARIES, KINDS, Server
from support import DEADLINE, Direct, Plain, Told, balanced, eventually, program
from tornadose import (
    BaseStore,
    Batch,
    DataStore,
    Gap,
    GapError,
    Message,
    QueueStore,
    RedisStore,
    RedisStreamStore,
    Released,
    StoreClosedError,
    subscribe,
)
from tornadose.limits import Policy

SEED = 20261123
Command = tuple[str | bytes, ...]


# ---- the cases


@dataclass(frozen=True)
class Case:
    """A store, and what it is capable of.

    Args:
        name: Of the store, and of the kind of server.
        make: Makes one that uses this channel or stream, and this port.
        kind: Of the server that it needs.
        latest_only: Whether it promises the latest value, and not every value.
        atomic: Whether a cancelled submit was not accepted.
        on_arrival: Whether what is submitted is accepted only when it comes in.
        future: The gap for an id that comes after the last one, if it can resume.
        tell: What another program sends to put a payload there.
    """

    name: str
    make: Callable[..., BaseStore[str]]
    kind: str | None = None
    latest_only: bool = False
    atomic: bool = False
    on_arrival: bool = False
    future: Callable[[str], Gap] | None = None
    tell: Callable[[str, str | bytes], Command] | None = None


def data_store(_place: str, _port: int, **options: Any) -> BaseStore[str]:
    return DataStore[str](**options)


def queue_store(_place: str, _port: int, **options: Any) -> BaseStore[str]:
    return QueueStore[str](**options)


def redis_store(place: str, port: int, **options: Any) -> BaseStore[str]:
    return RedisStore(place, port=port, **options)


def stream_store(place: str, port: int, **options: Any) -> BaseStore[str]:
    return RedisStreamStore(place, port=port, **options)


def unknown(_cursor: str) -> Gap:
    return Gap("unknown")


def restarted(cursor: str) -> Gap:
    return Gap("restarted", cursor)


def publish(place: str, payload: str | bytes) -> Command:
    return "PUBLISH", place, payload


def add(place: str, payload: str | bytes) -> Command:
    return "XADD", place, "*", "data", payload


CASES = [
    Case("DataStore", data_store, latest_only=True, atomic=True),
    Case("QueueStore", queue_store, atomic=True, future=unknown),
    *(
        Case(f"RedisStore-{kind}", redis_store, kind, on_arrival=True, tell=publish)
        for kind in KINDS
    ),
    *(
        Case(f"RedisStreamStore-{kind}", stream_store, kind, future=restarted, tell=add)
        for kind in KINDS
    ),
]


def over(holds: Callable[[Case], object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [c for c in CASES if holds(c)], ids=attrgetter("name"))


every_store = over(lambda case: True)
every_queue = over(lambda case: not case.latest_only)
every_atomic_store = over(lambda case: case.atomic)
every_resumable_store = over(lambda case: case.future)
every_broker_store = over(lambda case: case.tell)


@dataclass(frozen=True)
class Site:
    """Where the stores of one test meet."""

    case: Case
    place: str
    server: Server | None

    def store(self, **options: Any) -> BaseStore[str]:
        return self.case.make(self.place, self.server.port if self.server else 0, **options)

    async def tell(self, payload: str | bytes) -> None:
        """Let another program put a payload there."""
        assert self.server is not None
        assert self.case.tell is not None
        await self.server.command(*self.case.tell(self.place, payload))

    async def all_gone(self) -> None:
        """Wait until the server, if there is one, has no connection left."""
        if self.server is not None:
            async with asyncio.timeout(DEADLINE):
                while await self.server.clients("pubsub") or await self.server.clients():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def servers() -> Generator[dict[str, Server]]:
    """Keep the servers that the tests of this module have started."""
    started: dict[str, Server] = {}
    yield started
    for server in started.values():
        server.kill()


places = (f"place {number}" for number in count())


@pytest.fixture
async def site(case: Case, servers: dict[str, Server], tmp_path: Path) -> Site:
    kind = case.kind
    if kind is not None and kind not in servers:
        binary = BINARIES[kind] or program("redis-server")
        servers[kind] = await Server(binary, tmp_path).start()
    return Site(case, next(places), None if kind is None else servers[kind])


# ---- subscribers


class Eager(Told[str]):
    """One that takes whole batches while it is running, and hears of gaps."""

    def publish_nowait(self, batch: Batch[str], /) -> bool:
        if not self.running.is_set():
            return False
        for message in batch:
            self.messages.append(message)
            self.got.append(message.data)
            self.events.append(message.data)
        return True


class Slow(Told[str]):
    """One that is always a little behind."""

    async def publish(self, message: Message[str], /) -> None:
        await asyncio.sleep(0)
        await super().publish(message)


class Abrupt(Told[str]):
    """One that raises when it is asked whether it keeps up."""

    def publish_nowait(self, batch: Batch[str], /) -> bool:
        raise OSError("gone")


class Rendering(Told[str]):
    """One that encodes what it gets."""

    def __init__(self, encode: Callable[[Message[str]], bytes]) -> None:
        super().__init__()
        self.encode = encode

    async def publish(self, message: Message[str], /) -> None:
        message.render(self.encode)
        await super().publish(message)


class RenderingAtOnce(Rendering):
    """One that encodes whole batches."""

    def publish_nowait(self, batch: Batch[str], /) -> bool:
        batch.render(self.encode)
        self.events.extend(message.data for message in batch)
        return True


class Returning(Told[str]):
    """One that resumes where it was whenever it was too slow."""

    def __init__(self, store: BaseStore[str]) -> None:
        super().__init__()
        self.times = 0
        self._store = store
        store.register(self)

    def released(self, reason: Released, /) -> None:
        super().released(reason)
        if reason == "overflow":
            self.times += 1
            loop, last = asyncio.get_running_loop(), str(self.messages[-1].id)
            loop.call_soon(self._store.resume, self, last)

    async def returned(self, times: int) -> None:
        """Wait until it has done so."""
        await eventually(lambda: self.times >= times)


def stalled() -> Told[str]:
    told = Told[str]()
    told.running.clear()
    return told


def raising() -> Told[str]:
    told = Told[str]()
    told.error = OSError("gone")
    return told


def cancelled() -> Told[str]:
    told = Told[str]()
    told.error = asyncio.CancelledError()
    return told


async def all_have(last: str, *subscribers: Plain[str]) -> None:
    """Wait until this is the last that all of them have got."""
    await eventually(lambda: all(s.got[-1:] == [last] for s in subscribers))


async def more(witness: Plain[str], messages: int) -> None:
    """Wait until it has got so many more."""
    enough = len(witness.got) + messages
    await eventually(lambda: len(witness.got) >= enough)


async def told_one_by_one(
    store: BaseStore[str], *subscribers: Plain[str], texts: Sequence[str]
) -> list[Message[str]]:
    """Submit each text when all these have got the one before."""
    sent: list[Message[str]] = []
    for text in texts:
        sent.append(await store.submit(text))
        await all_have(text, *subscribers)
    return sent


def numbers(*limits: int) -> list[str]:
    return [str(number) for number in range(*limits)]


@asynccontextmanager
async def submitting(
    stores: Sequence[BaseStore[str]], tasks: int, dice: random.Random
) -> AsyncGenerator[list[str]]:
    """Let many submit at a time, unevenly; give what has been begun to be submitted."""
    begun: list[str] = []
    enough = asyncio.Event()

    async def submit(name: int) -> None:
        for number in count():
            if enough.is_set():
                return
            begun.append(f"{name} {number}")
            await dice.choice(stores).submit(begun[-1])
            await asyncio.sleep(dice.choice((0, 0, 0, 0.001)))

    async with asyncio.TaskGroup() as group:
        for name in range(tasks):
            group.create_task(submit(name))
        yield begun
        enough.set()


# ---- P1: order


@every_store
async def test_p1_nothing_is_seen_twice_or_out_of_order_and_the_last_is_seen(site: Site) -> None:
    async with site.store() as store:
        subscribers: list[Plain[str]] = [Plain(), Direct(), Slow(), Eager()]
        for subscriber in subscribers:
            store.register(subscriber)
        for text in numbers(200):
            await store.submit(text)
        await all_have("199", *subscribers)
        for subscriber in subscribers:
            assert [int(t) for t in subscriber.got] == sorted({int(t) for t in subscriber.got})


@every_queue
async def test_p1_many_submit_at_a_time_and_all_see_the_same_order(site: Site) -> None:
    async with site.store() as store:
        subscribers: list[Plain[str]] = [Plain(), Direct(), Slow(), Eager()]
        for subscriber in subscribers:
            store.register(subscriber)

        async def submit(name: int) -> list[Message[str]]:
            sent: list[Message[str]] = []
            for start in range(0, 50, 5):
                texts = [f"{name} {number}" for number in range(start, start + 5)]
                sent += await asyncio.gather(*(store.submit(text) for text in texts))
            return sent

        sent = await asyncio.gather(*(submit(name) for name in range(6)))
        await eventually(lambda: all(len(s.got) == 300 for s in subscribers))
        first = subscribers[0].messages
        assert all(subscriber.messages == first for subscriber in subscribers)
        for name, mine in enumerate(sent):
            assert [m for m in first if m.data.startswith(f"{name} ")] == mine


@every_broker_store
async def test_p1_two_stores_and_another_program_are_heard_in_one_order(site: Site) -> None:
    async with site.store() as here, site.store() as there:
        subscribers: list[Plain[str]] = [Plain(), Direct(), Slow(), Eager()]
        for number, subscriber in enumerate(subscribers):
            (here, there)[number % 2].register(subscriber)
        async with submitting([here, there], 4, random.Random(SEED)) as begun:
            for number in range(10):
                await site.tell(f"foreign {number}")
        await site.tell("last")
        await all_have("last", *subscribers)
        expected = sorted([*begun, *(f"foreign {number}" for number in range(10)), "last"])
        assert sorted(subscribers[0].got) == expected
        assert all(s.messages == subscribers[0].messages for s in subscribers)


# ---- P2: no silent loss


@dataclass
class Stay:
    """The time that a subscriber is registered, in a stream that a witness sees all of."""

    subscriber: Plain[str]
    seen: int  # by the witness before that
    begun: set[str]  # to be submitted before that
    had: int | None = None  # by the subscriber, when it left

    def check(self, order: Sequence[str]) -> None:
        got = self.subscriber.got
        assert self.had in (None, len(got))
        start = order.index(got[0]) if got else self.seen
        assert start >= self.seen, "from before its time"
        assert set(order[:start]) <= self.begun, "loss"
        assert got == order[start : None if self.had is None else start + self.had]


@every_queue
async def test_p2_who_comes_and_goes_in_a_burst_gets_each_message_of_its_time_once(
    site: Site,
) -> None:
    dice, witness = random.Random(SEED), Direct[str]()
    stays: list[Stay] = []
    async with site.store() as store:
        store.register(witness)
        async with submitting([store], 3, dice) as begun:
            for number in range(60):
                seen = len(witness.got)
                stays.append(Stay(Told() if number % 2 else Eager(), seen, set(begun)))
                store.register(stays[-1].subscriber)
                if number % 3 == 0:
                    stay = dice.choice([stay for stay in stays if stay.had is None])
                    store.deregister(stay.subscriber)
                    stay.had = len(stay.subscriber.got)
                await more(witness, 5)
        await store.submit("last")
        staying = [stay.subscriber for stay in stays if stay.had is None]
        await all_have("last", witness, *staying)
        assert sorted(witness.got) == sorted([*begun, "last"])
        for stay in stays:
            stay.check(witness.got)
        assert len(staying) == 40
        assert sum(stay.had or 0 for stay in stays) > 50
        assert balanced(store.statistics())


@every_queue
async def test_p2_what_was_accepted_before_is_not_for_a_newcomer_though_it_still_waits(
    site: Site,
) -> None:
    async with site.store(backlog=1, policy="block", block_timeout=DEADLINE) as store:
        holds = stalled()
        store.register(holds)
        for text in numbers(20):
            await store.submit(text)
        arrived = 20 * site.case.on_arrival
        await eventually(lambda: store.statistics().submitted >= arrived)
        assert store.statistics().published < 20
        newcomers = [Told[str](), Eager()]
        for newcomer in newcomers:
            store.register(newcomer)
        await store.submit("new")
        holds.running.set()
        await all_have("new", holds, *newcomers)
        assert [newcomer.events for newcomer in newcomers] == [["new"]] * 2
        assert holds.events == [*numbers(20), "new"]


@every_store
async def test_p2_who_has_left_gets_nothing_more_not_even_what_waited_for_it(site: Site) -> None:
    async with site.store() as store:
        stays, leaves, waits = Told[str](), Eager(), stalled()
        for subscriber in (stays, leaves, waits):
            store.register(subscriber)
        await told_one_by_one(store, stays, leaves, texts=["a"])
        await store.submit("b")
        await eventually(lambda: stays.got == leaves.got == ["a", "b"])
        store.deregister(leaves)
        store.deregister(waits)
        waits.running.set()
        await told_one_by_one(store, stays, texts=["c", "d"])
        assert (leaves.events, waits.events) == (["a", "b"], [])
        assert store.subscribers == (stays,)
        assert balanced(store.statistics())


@every_store
async def test_registering_twice_and_deregistering_a_stranger_does_nothing(site: Site) -> None:
    async with site.store() as store:
        one, other = Eager(), Told[str]()
        for subscriber in (one, other, one, one):
            store.register(subscriber)
        store.deregister(Told[str]())
        assert store.subscribers == (one, other)
        await told_one_by_one(store, one, other, texts="ab")
        store.resume(one, "")
        store.resume(one, "unknown")
        store.deregister(other)
        store.deregister(other)
        await told_one_by_one(store, one, texts="cd")
        assert (one.events, other.events) == ([*"abcd"], [*"ab"])
        store.register(other)
        assert store.subscribers == (one, other)


@every_store
async def test_beyond_the_limit_who_comes_is_released_until_somebody_leaves(site: Site) -> None:
    async with site.store(max_subscribers=2) as store:
        one, two, three, four = Told[str](), Told[str](), Told[str](), Told[str]()
        store.register(one)
        store.register(two)
        store.register(three)
        store.resume(four, "unknown")
        assert three.events == four.events == ["limit"]
        await told_one_by_one(store, one, two, texts="a")
        store.deregister(one)
        store.resume(three, "")
        await told_one_by_one(store, two, three, texts="b")
        assert four.events == ["limit"]
        assert store.subscribers == (two, three)


@every_store
async def test_the_name_of_an_event_travels(site: Site) -> None:
    async with site.store() as store:
        subscribers = [Told[str](), Eager()]
        for subscriber in subscribers:
            store.register(subscriber)
        sent: list[Message[str]] = []
        for data in ("a", "", "\n\x1e", "übel\r\n\0"):
            for event in (None, "tick", "two words", "Ü\t\x1e:"):
                sent.append(await store.submit(data, event=event))
                assert (sent[-1].data, sent[-1].event) == (data, event)
                await eventually(lambda: all(s.messages == sent for s in subscribers))


@every_store
async def test_a_message_for_one_alone_keeps_its_place(site: Site) -> None:
    async with site.store() as store:
        one, other = Told[str](), Eager()
        store.register(one)
        store.register(other)
        await told_one_by_one(store, one, other, texts="a")
        assert await store.deliver(one, Message("private"))
        assert not await store.deliver(Told[str](), Message("for nobody"))
        await eventually(lambda: one.got[-1] == "private")
        await told_one_by_one(store, one, other, texts="b")
        assert (one.got, other.got) == (["a", "private", "b"], ["a", "b"])


@every_resumable_store
async def test_a_message_for_one_alone_keeps_its_place_in_history(site: Site) -> None:
    async with site.store(backlog=4) as store:
        witness, readers = Direct[str](), [Told[str](), Eager()]
        store.register(witness)
        first = await store.submit("first")
        await asyncio.gather(*(store.submit(text) for text in numbers(50)))
        await eventually(lambda: len(witness.got) == 51)
        for reader in readers:
            reader.running.clear()
            store.resume(reader, str(first.id))
        await eventually(lambda: store.statistics().pending > 0)
        for text in ("private 1", "private 2"):
            for reader in readers:
                assert await store.deliver(reader, Message(text))
            await store.submit(f"after {text}")
        await asyncio.gather(*(store.submit(text) for text in numbers(50)))
        expected = [*witness.got[1:51], "private 1", "after private 1", "private 2"]
        for reader in readers:
            reader.running.set()
            await eventually(lambda told=reader: len(told.got) == 104)  # type: ignore[misc]  # mypy does not infer the default
            assert reader.got[: len(expected)] == expected
            assert reader.got[len(expected)] == "after private 2"
        await eventually(lambda: store.statistics().pending == 0)
        assert balanced(store.statistics())


# ---- P3: isolation


@every_store
@pytest.mark.parametrize(
    ("bad", "fate"),
    [(stalled, []), (raising, ["failed"]), (cancelled, ["failed"]), (Abrupt, ["failed"])],
)
async def test_p3_who_is_stalled_raises_or_is_cancelled_delays_nobody(
    site: Site, bad: Callable[[], Told[str]], fate: list[str], logged: Logged
) -> None:
    async with site.store() as store:
        before, troubled, after = Eager(), bad(), Told[str]()
        for subscriber in (before, troubled, after):
            store.register(subscriber)
        await told_one_by_one(store, before, after, texts=numbers(20))
        assert before.got == after.got == numbers(20)
        assert troubled.events == fate
        assert len(store.subscribers) == 3 - len(fate)
        store.deregister(troubled)
        await told_one_by_one(store, before, after, texts=["last"])
        assert troubled.events == fate
        assert balanced(store.statistics())
    logged.take("publishing to", times=len(fate))


# ---- P4: bounded memory

POLICIES: list[tuple[Policy, Callable[[Sequence[Message[str]]], list[object]], int]] = [
    ("block", lambda sent: ["timeout"], 0),
    ("disconnect", lambda sent: ["overflow"], 0),
    (
        "drop_oldest",
        lambda sent: ["0", Gap("overflow", sent[0].id), *numbers(16, 20), "last", "closed"],
        15,
    ),
    (
        "drop_newest",
        lambda sent: [*numbers(5), Gap("overflow", sent[4].id), "last", "closed"],
        15,
    ),
]


@every_queue
@pytest.mark.parametrize(("policy", "expected", "dropped"), POLICIES)
async def test_p4_what_is_kept_for_who_is_behind_has_its_limit(
    site: Site,
    policy: Policy,
    expected: Callable[[Sequence[Message[str]]], list[object]],
    dropped: int,
) -> None:
    async with site.store(backlog=4, policy=policy, block_timeout=0.1) as store:
        behind, healthy = stalled(), Direct[str]()
        store.register(behind)
        store.register(healthy)
        sent = await told_one_by_one(store, healthy, texts=numbers(20))
        assert store.statistics().max_backlog == 4
        assert store.statistics().pending <= 5  # one of them is being delivered
        behind.running.set()
        await eventually(lambda: store.statistics().pending == 0)
        await store.submit("last")
        await store.aclose()
        assert behind.events == expected(sent)
        assert healthy.got == [*numbers(20), "last"]
        books = store.statistics()
        assert (books.dropped, books.subscribers, books.pending) == (dropped, 0, 0)
        assert books.gaps == sum(isinstance(event, Gap) for event in behind.events)
        assert books.delivered == len(behind.got) + len(healthy.got)
        assert balanced(books)


@every_queue
async def test_p4_under_block_everybody_waits_for_who_is_behind_and_nothing_is_lost(
    site: Site,
) -> None:
    options = {"backlog": 1, "inbox": 2, "policy": "block", "block_timeout": DEADLINE}
    async with site.store(**options) as store:
        behind, healthy = stalled(), Direct[str]()
        store.register(behind)
        store.register(healthy)
        sending = [asyncio.create_task(store.submit(text)) for text in numbers(40)]
        await eventually(lambda: store.statistics().pending == 3)
        assert healthy.got == ["0", "1", "2"]
        behind.running.set()
        await asyncio.gather(*sending)
        await eventually(lambda: behind.got == healthy.got == numbers(40))
        books = store.statistics()
        assert (books.dropped, books.gaps, books.abandoned, books.max_backlog) == (0, 0, 0, 1)


@every_queue
async def test_the_books_balance_whatever_happens(site: Site, logged: Logged) -> None:
    def picky(message: Message[str]) -> bytes:
        if message.data == "13":
            raise ValueError("not that one")
        return b""

    async with site.store(backlog=3, policy="drop_oldest") as store:
        healthy, picks, leaves = Eager(), Rendering(picky), Told[str]()
        behind, breaks = stalled(), raising()
        for subscriber in (healthy, picks, leaves, behind, breaks):
            store.register(subscriber)
        await told_one_by_one(store, healthy, picks, texts=numbers(1, 10))
        store.deregister(leaves)
        store.resume(resumed := Told[str](), "unknown")
        await told_one_by_one(store, healthy, picks, resumed, texts=numbers(10, 13))
        await told_one_by_one(store, healthy, resumed, texts=["13", "14"])
        assert balanced(store.statistics())
        assert store.statistics().pending == 4
        store.deregister(behind)
        await store.aclose()
        books = store.statistics()
        assert (books.published, books.submitted) == (14, 14)
        gap = Gap("poisoned", picks.messages[-2].id)
        assert picks.events == [*numbers(1, 13), gap, "14", "closed"]
        subscribers = healthy, picks, leaves, behind, breaks, resumed
        assert books.delivered == sum(len(subscriber.got) for subscriber in subscribers)
        assert (books.poisoned, books.dropped, books.pending, books.resumed) == (1, 10, 0, 1)
        assert books.gaps == 2
        assert balanced(books)
    logged.take("publishing to")
    logged.take("cannot be encoded")


# ---- P6: atomic submit


async def submitted_and_cancelled(
    store: BaseStore[str], count: int, dice: random.Random
) -> tuple[dict[str, Message[str]], set[str]]:
    """Submit at once what is too much, and cancel half of it; return what became of each."""
    texts = [f"{number} " * 500 for number in range(count)]
    tasks = {text: asyncio.create_task(store.submit(text)) for text in texts}
    await asyncio.sleep(0)  # in which all have begun
    for number, text in enumerate(dice.sample(texts, count // 2)):
        tasks[text].cancel()
        if number > count // 4 and dice.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.wait(tasks.values())
    accepted = {text: task.result() for text, task in tasks.items() if not task.cancelled()}
    assert len(accepted) < 0.9 * count
    return accepted, set(texts) - set(accepted)


@every_queue
async def test_p6_what_is_cancelled_is_never_there_twice_and_never_half(site: Site) -> None:
    async with site.store(inbox=16) as store:
        told, eager = Told[str](), Eager()
        store.register(told)
        store.register(eager)
        await told_one_by_one(store, told, eager, texts=["first"])
        accepted, cancelled = await submitted_and_cancelled(store, 200, random.Random(SEED))
        await store.submit("last")
        await all_have("last", told, eager)
        assert told.messages == eager.messages
        first, *got, last = told.got
        assert (first, last) == ("first", "last")
        assert len(set(got)) == len(got)
        assert set(accepted) <= set(got) <= set(accepted) | cancelled
        known = {message.data: message for message in told.messages}
        assert all(known[text] == message for text, message in accepted.items())


@every_atomic_store
async def test_p6_what_is_cancelled_was_not_accepted(site: Site) -> None:
    async with site.store() as store:
        told = Told[str]()
        store.register(told)
        accepted, cancelled = await submitted_and_cancelled(store, 2000, random.Random(SEED))
        await store.submit("last")
        await all_have("last", told)
        assert not cancelled & set(told.got)
        assert store.statistics().submitted == len(accepted) + 1


@every_store
async def test_a_wrong_argument_is_refused_and_changes_nothing(site: Site) -> None:
    nobody: Any = 7
    async with site.store() as store:
        told = Told[str]()
        store.register(told)
        for event in ("", "gap", "a\nb", "a\rb", "\0", "\ud800"):
            with pytest.raises(ValueError, match="event: "):
                await store.submit("never", event=event)
        with pytest.raises(TypeError, match="event: expected a string, not 7"):
            await store.submit("never", event=nobody)
        with pytest.raises(TypeError, match="subscriber: 7 has no method publish"):
            store.register(nobody)
        with pytest.raises(TypeError, match="subscriber: 7 has no method publish"):
            store.resume(nobody, "1-0")
        with pytest.raises(TypeError, match="after: expected a string, not 7"):
            store.resume(Told[str](), nobody)
        with pytest.raises(TypeError, match="expected a Message, not 7"):
            await store.deliver(told, nobody)
        with pytest.raises(TypeError, match=r"timeout: .*'7'"):
            await store.aclose("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await store.submit("a")
        await eventually(lambda: told.got == ["a"])
        assert store.subscribers == (told,)
        assert store.statistics().submitted == 1


@every_store
def test_a_wrong_limit_is_refused(site: Site) -> None:
    with pytest.raises(ValueError, match="max_subscribers: -1"):
        site.store(max_subscribers=-1)
    with pytest.raises(TypeError, match=r"max_subscribers: .*1\.5"):
        site.store(max_subscribers=1.5)


# ---- P7: clean-up


async def check_closed(store: BaseStore[str]) -> None:
    """See that a store takes nothing and nobody any more."""
    late = Told[str]()
    with pytest.raises(StoreClosedError):
        await store.submit("late")
    with pytest.raises(StoreClosedError):
        store.register(late)
    with pytest.raises(StoreClosedError):
        store.resume(late, "1-0")
    with pytest.raises(StoreClosedError):
        async with subscribe(store):
            pass
    assert store.subscribers == ()
    await store.aclose()
    assert late.events == []


@every_store
async def test_p7_what_was_never_used_or_only_opened_is_closed_without_a_trace(site: Site) -> None:
    tasks = asyncio.all_tasks()
    store = site.store()
    await store.aclose()
    await check_closed(store)
    async with site.store() as store:
        pass
    await check_closed(store)
    assert asyncio.all_tasks() == tasks
    await site.all_gone()


@every_store
async def test_p7_closing_delivers_what_was_accepted_and_leaves_nothing(site: Site) -> None:
    tasks = asyncio.all_tasks()
    store = site.store()
    subscribers = [stalled(), Told[str](), Eager()]
    for subscriber in subscribers:
        store.register(subscriber)
    store.register(gone := stalled())
    await asyncio.gather(*(store.submit(text) for text in numbers(300)))
    await store.submit("last")
    store.deregister(gone)
    closing = asyncio.create_task(store.aclose(timeout=None))
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError):
        await store.submit("late")
    subscribers[0].running.set()
    await closing
    assert [s.events[-2:] for s in subscribers] == [["last", "closed"]] * 3
    assert gone.events == []
    await check_closed(store)
    assert asyncio.all_tasks() == tasks
    await site.all_gone()


@every_queue
async def test_p2_closing_delivers_every_message_that_was_accepted(site: Site) -> None:
    store = site.store(backlog=1, policy="block", block_timeout=DEADLINE)
    subscribers = [stalled(), Told[str](), Eager()]
    for subscriber in subscribers:
        store.register(subscriber)
    await asyncio.gather(*(store.submit(text) for text in numbers(500)))
    closing = asyncio.create_task(store.aclose(timeout=None))
    await asyncio.sleep(0)
    with pytest.raises(StoreClosedError):
        await store.submit("late")
    assert store.statistics().published < 10
    subscribers[0].running.set()
    await closing
    assert [s.events for s in subscribers] == [[*numbers(500), "closed"]] * 3
    books = store.statistics()
    assert (books.submitted, books.published, books.delivered) == (500, 500, 1500)
    assert balanced(books)


@every_store
@pytest.mark.parametrize("late", [True, False])
async def test_p7_closing_that_takes_too_long_or_is_cancelled_lets_go_of_everybody(
    site: Site, late: bool, logged: Logged
) -> None:
    tasks = asyncio.all_tasks()
    store = site.store()
    behind, healthy = stalled(), Told[str]()
    store.register(behind)
    store.register(healthy)
    await store.submit("a")
    closing = asyncio.create_task(store.aclose(timeout=0.1 if late else None))
    await eventually(lambda: healthy.events == ["a", "closed"])
    assert not closing.done()
    if not late:
        closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled() is not late
    assert behind.events == ["timeout"]
    await check_closed(store)
    assert balanced(store.statistics())
    assert (store.statistics().pending, store.statistics().abandoned) == (0, 1)
    assert asyncio.all_tasks() == tasks
    await site.all_gone()
    logged.take("before everybody had everything", times=late)


@every_store
def test_p7_a_store_serves_one_loop_after_another(site: Site) -> None:
    store = site.store()

    async def use() -> list[object]:
        told = Told[str]()
        store.register(told)
        await told_one_by_one(store, told, texts="ab")
        await store.aclose()
        return list(told.events)

    async def leave() -> None:
        told = Told[str]()
        store.register(told)
        await told_one_by_one(store, told, texts="c")
        store.deregister(told)

    assert asyncio.run(use()) == ["a", "b", "closed"]
    asyncio.run(leave())
    asyncio.run(use())


@every_store
async def test_in_another_thread_or_loop_a_store_is_refused(site: Site) -> None:
    async with site.store() as store:
        told = Told[str]()
        store.register(told)

        async def elsewhere() -> None:
            for act in (store.register, store.deregister):
                with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                    act(told)
            for coroutine in (store.submit("never"), store.aclose()):
                with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                    await coroutine

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        await told_one_by_one(store, told, texts="a")
        assert told.events == ["a"]


# ---- subscribe()


@every_store
async def test_subscribe_gives_each_message_and_ends_when_the_store_is_closed(site: Site) -> None:
    async with asyncio.timeout(DEADLINE), site.store() as store, subscribe(store) as messages:
        for text in "abc":
            sent = await store.submit(text, event="tick")
            assert await anext(messages) == sent
        await store.submit("last")
        closing = asyncio.create_task(store.aclose())
        assert [message.data async for message in messages] == ["last"]
        await closing


@every_store
async def test_subscribe_that_is_left_is_deregistered(site: Site) -> None:
    async with site.store() as store:
        async with subscribe(store):
            assert len(store.subscribers) == 1
        assert store.subscribers == ()


# ---- P8: resume


@every_store
async def test_p8_an_id_that_is_none_is_a_gap_and_an_empty_one_is_nothing(site: Site) -> None:
    async with site.store() as store:
        unknown, eager, empty = Told[str](), Eager(), Told[str]()
        store.resume(unknown, "no id")
        store.resume(eager, "no id")
        store.resume(empty, "")
        gaps: list[Gap] = []
        async with subscribe(store, after="no id", on_gap=gaps.append) as messages:
            await store.submit("a")
            assert (await anext(messages)).data == "a"
        async with subscribe(store, after="no id") as messages:
            with pytest.raises(GapError, match="unknown"):
                await anext(messages)
        await eventually(lambda: all(s.got == ["a"] for s in (unknown, eager, empty)))
        assert gaps == [Gap("unknown")]
        assert unknown.events == eager.events == [Gap("unknown"), "a"]
        assert empty.events == ["a"]
        assert store.statistics().resumed == 4


@every_resumable_store
async def test_p8_an_id_of_the_future_is_a_gap(site: Site) -> None:
    assert site.case.future is not None
    async with site.store() as store:
        last = [await store.submit(text) for text in "ab"][-1]
        before, _, number = str(last.id).rpartition("-")
        future = f"{before}-{int(number) + 1}"
        told, eager = Told[str](), Eager()
        store.resume(told, future)
        store.resume(eager, future)
        await eventually(lambda: told.events and eager.events)
        await told_one_by_one(store, told, eager, texts="cd")
        assert told.events == eager.events == [site.case.future(future), "c", "d"]


@every_resumable_store
async def test_p8_resumed_it_gets_exactly_what_follows_while_others_submit(site: Site) -> None:
    dice, witness = random.Random(SEED), Direct[str]()
    readers: list[tuple[str, Plain[str]]] = []
    async with site.store() as store:
        store.register(witness)
        await asyncio.gather(*(store.submit(text) for text in numbers(300)))
        await eventually(lambda: len(witness.got) == 300)
        async with submitting([store], 3, dice):
            for number in range(40):
                own = await store.submit("own")
                cursor = str(dice.choice([*witness.messages[-50:], *witness.messages, own]).id)
                readers.append((cursor, (Told[str], Eager, Slow)[number % 3]()))
                store.resume(readers[-1][1], cursor)
                await more(witness, 3)
        last = await store.submit("last")
        store.resume(at_the_end := Told[str](), str(last.id))
        await all_have("last", witness, *(reader for _, reader in readers))
        at = {str(message.id): index for index, message in enumerate(witness.messages)}
        assert len(at) == len(witness.messages) > 350
        for cursor, reader in readers:
            assert reader.messages == witness.messages[at[cursor] + 1 :]
        await told_one_by_one(store, at_the_end, texts=["after it"])
        assert at_the_end.events == ["after it"]
        books = store.statistics()
        assert (books.resumed, books.gaps) == (41, 0)
        assert balanced(books)


@every_resumable_store
async def test_p8_who_is_disconnected_and_resumes_makes_progress(site: Site) -> None:
    async with site.store(backlog=2, policy="disconnect") as store:
        reader, witness, dice = Returning(store), Direct[str](), random.Random(SEED)
        store.register(witness)
        await told_one_by_one(store, reader, witness, texts=["first"])
        for times in range(1, 6):
            async with submitting([store], 2, dice):
                reader.running.clear()
                await reader.returned(times)
                reader.running.set()
                await more(reader, 5)
            await store.submit(f"last {times}")
            await all_have(f"last {times}", reader, witness)
        assert reader.messages == witness.messages
        assert set(reader.events) - set(reader.got) == {"overflow"}


# ---- P9: what is poisoned is contained


@every_store
async def test_p9_what_cannot_be_encoded_is_a_gap_for_who_needs_it_and_p5_is_tried_once(
    site: Site, logged: Logged
) -> None:
    tried: list[str] = []

    def encode(message: Message[str]) -> bytes:
        tried.append(message.data)
        if message.data == "bad":
            raise ValueError("not that one")
        return message.data.encode()

    async with site.store() as store:
        needs = [Rendering(encode), RenderingAtOnce(encode), Rendering(encode)]
        others: list[Plain[str]] = [Told(), Direct()]
        for subscriber in (*needs, *others):
            store.register(subscriber)
        sent = [await store.submit("a")]
        await eventually(lambda: all(s.events == ["a"] for s in needs))
        await told_one_by_one(store, *others, texts=["bad"])
        gap = Gap("poisoned", sent[0].id)
        await eventually(lambda: all(s.events == ["a", gap] for s in needs))
        await told_one_by_one(store, *others, texts=["b"])
        await eventually(lambda: all(s.events == ["a", gap, "b"] for s in needs))
        assert [s.got for s in others] == [["a", "bad", "b"]] * 2
        assert tried == ["a", "bad", "b"]
        books = store.statistics()
        assert (books.poisoned, books.gaps, books.subscribers) == (3, 3, 5)
        assert balanced(books)
    logged.take("cannot be encoded")


def no_bad(text: str) -> str:
    if "bad" in text:
        raise ValueError("not that one")
    return text


@every_broker_store
@pytest.mark.parametrize("payload", [b"\xff", "bad"])
async def test_p9_what_cannot_be_decoded_is_a_gap_for_everybody_and_stops_nothing(
    site: Site, payload: str | bytes, logged: Logged
) -> None:
    async with site.store(encode=str, decode=no_bad) as store:
        subscribers = [Told[str](), Eager(), Slow()]
        for subscriber in subscribers:
            store.register(subscriber)
        (a,) = await told_one_by_one(store, *subscribers, texts="a")
        await site.tell(payload)
        await site.tell("b")
        await eventually(lambda: all(s.got == ["a", "b"] for s in subscribers))
        b = subscribers[0].messages[-1]
        await site.tell(payload)
        await told_one_by_one(store, *subscribers, texts="c")
        gaps = Gap("poisoned", a.id), Gap("poisoned", b.id)
        assert [s.events for s in subscribers] == [["a", gaps[0], "b", gaps[1], "c"]] * 3
        books = store.statistics()
        assert (books.poisoned, books.gaps, books.published) == (6, 6, 3)
        assert balanced(books)
    logged.take("cannot be decoded", times=2)


@every_broker_store
async def test_p9_what_cannot_be_encoded_to_travel_is_the_error_of_who_submits_it(
    site: Site,
) -> None:
    async with site.store(encode=no_bad, decode=str) as store:
        told = Told[str]()
        store.register(told)
        with pytest.raises(ValueError, match="not that one"):
            await store.submit("bad")
        with pytest.raises(ValueError, match="surrogates"):
            await store.submit("\ud800")
        await told_one_by_one(store, told, texts="a")
        assert told.events == ["a"]
