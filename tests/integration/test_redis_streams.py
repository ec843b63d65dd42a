"""`RedisStreamStore` on real servers, which fail in every way that the tests can think of."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeAlias

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import TimeoutError as RedisTimeoutError

from conftest import Logged
from integration.clients import event_stream
from servers import KINDS, Proxy, Server, proxied, running
from streams import (
    BLOCKING,
    FILL,
    HELD,
    KEY,
    SHORT,
    T,
    accepted,
    add,
    calls,
    dump,
    entries,
    fall_back,
    fallen,
    fill,
    fill_from,
    gaps,
    hold,
    mended,
    more,
    once_asked,
    outages,
    script,
    seen,
    store_on,
    story,
)
from support import Plain, Told, balanced, eventually, serving
from tornadose import (
    Batch,
    EventSource,
    Gap,
    GapReason,
    Message,
    OutcomeUnknownError,
    RedisStreamStore,
)
from tornadose.stores.redis import broker

SEED = 20261123
STALL = 0.1  # seconds of work without a turn of the event loop that are too long
REFUSED = (Unreachable, RedisTimeoutError, TimeoutError)  # and not accepted


class Eager(Told[T]):
    """One that takes whole batches, and hears of gaps."""

    def publish_nowait(self, batch: Batch[T], /) -> bool:
        if not self.running.is_set():
            return False
        for message in batch:
            self.messages.append(message)
            self.got.append(message.data)
            self.events.append(message.data)
        return True


@asynccontextmanager
async def no_stall(limit: float = STALL, pause: float = 0.005) -> AsyncGenerator[None]:
    """See that nobody works for long while others wait for a turn of the event loop.

    It is the time of the processor that counts: the machine may be busy. A pause takes
    three turns, or one if it is 0.
    """
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(pause)
            longest = max(longest, time.thread_time() - before)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert longest < limit


# ---- what other programs add


async def test_what_a_foreign_program_adds_arrives_with_the_id_of_the_stream(
    server: Server,
) -> None:
    async with store_on(server.port) as store:
        told = Told[str]()
        store.register(told)
        ids = [
            await add(server, "data", "hello"),
            await add(server, "other", b"\xff", "event", "e", "data", "übel\r\n"),
            await add(server, "data", "", "event", ""),
            await add(server, "data", "first", "data", "last"),
        ]
        message = await store.submit("own", event="mine")
        await eventually(lambda: len(told.got) == 5)
        assert told.messages == [
            Message("hello", ids[0]),
            Message("übel\r\n", ids[1], "e"),
            Message("", ids[2]),
            Message("last", ids[3]),
            message,
        ]
        assert (message.data, message.event) == ("own", "mine")
        assert (await entries(server))[-1] == (message.id, "own")


POISON: list[tuple[str | bytes, ...]] = [
    ("other", "x"),
    ("data", b"\xff"),
    ("data", "no number"),
    ("data", "1", "event", "gap"),
    ("data", "1", "event", "a\nb"),
    ("data", "1", "event", b"\xff"),
]


async def test_p9_a_poisoned_entry_is_a_gap_where_it_stands_live_and_in_a_replay(
    server: Server, logged: Logged
) -> None:
    numbers = RedisStreamStore[int](port=server.port, encode=str, decode=int)
    async with numbers as store:
        told, eager = Told[int](), Eager[int]()
        store.register(told)
        store.register(eager)
        ids = [await add(server, "data", "0")]
        for number, fields in enumerate(POISON, 1):
            await add(server, *fields)
            ids.append(await add(server, "data", str(number)))
        expected: list[int | Gap] = [0]
        for number in range(1, len(ids)):
            expected += [Gap("poisoned", ids[number - 1]), number]
        await eventually(lambda: len(eager.got) == len(told.got) == len(ids))
        newcomer, again = Told[int](), Told[int]()
        store.resume(again, ids[0])
        await eventually(lambda: len(again.got) == len(ids) - 1)
        store.register(newcomer)
        await add(server, "data", "99")
        await eventually(lambda: all(s.got[-1:] == [99] for s in (told, eager, again, newcomer)))
        assert told.events == eager.events == [*expected, 99]
        assert again.events == [*expected[1:], 99]
        assert newcomer.events == [99]
        books = store.statistics()
        assert (books.poisoned, books.gaps) == (3 * len(POISON), 3 * len(POISON))
        assert balanced(books)
        assert books.pending == 0
    logged.take("cannot be decoded", times=len(POISON))


async def test_p9_a_poisoned_entry_from_before_a_newcomer_is_not_its_business(
    server: Server, logged: Logged
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        slow = await hold(store)
        await add(server, "other", "x")
        own = await store.submit("own")
        newcomer = Told[str]()
        store.register(newcomer)
        slow.running.set()
        await add(server, "other", "x")
        await store.submit("last")
        await eventually(lambda: newcomer.got == slow.got[-1:] == ["last"])
        assert newcomer.events == [Gap("poisoned"), "last"]
        gaps = [event for event in slow.events if isinstance(event, Gap)]
        assert [gap.reason for gap in gaps] == ["poisoned", "poisoned"]
        assert gaps[1].after == own.id
    logged.take("cannot be decoded", times=2)


# ---- acceptance


async def test_p4_submit_trims_the_stream_to_about_its_length(server: Server) -> None:
    async with store_on(server.port, maxlen=200) as store:
        await fill(server, 500)
        ids = [(await store.submit(str(number))).id for number in range(200)]
        kept = await entries(server)
        assert 200 <= len(kept) <= 300
        assert kept[-200:] == [(cursor, str(number)) for number, cursor in enumerate(ids)]


async def test_p2_what_was_submitted_before_a_newcomer_is_not_delivered_to_it(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        await store.submit("history")
        slow = Told[str]()
        slow.running.clear()
        store.register(slow)
        for number in range(5):
            await store.submit(str(number))
        assert store.statistics().published < 6  # it has not been read yet
        newcomer = Told[str]()
        store.register(newcomer)
        await store.submit("5")
        slow.running.set()
        await eventually(lambda: newcomer.got == slow.got[5:] == ["5"])
        assert slow.events == ["0", "1", "2", "3", "4", "5"]
        assert newcomer.events == ["5"]


async def test_p2_who_waits_for_an_unreachable_server_gets_what_is_submitted_first(
    server: Server, logged: Logged
) -> None:
    await add(server, "data", "history")
    server.kill()
    async with AsyncExitStack() as stack:
        store = store_on(server.port)
        stack.push_async_callback(store.aclose)
        told = Told[str]()
        store.register(told)
        with pytest.raises(Unreachable):
            await store.submit("refused")
        await server.start()
        await store.submit("a")
        newcomer = Told[str]()
        store.register(newcomer)
        await store.submit("b")
        await eventually(lambda: told.got[-1:] == newcomer.got[-1:] == ["b"])
        assert (told.events, newcomer.events) == ([Gap("outage"), "a", "b"], ["b"])
        assert [data for _, data in await entries(server)] == ["history", "a", "b"]
    outages(logged)


async def test_p8_after_a_reset_nobody_gets_pages_of_the_stream_that_was(server: Server) -> None:
    await fill_from(server, 1000, 300)
    async with store_on(server.port) as store:
        live, old, late = Told[str](), Told[str](), Told[str]()
        store.register(live)
        store.resume(old, "1000-0")
        await eventually(lambda: len(old.got) == 299)
        lines = """
            redis.call('DEL', KEYS[1])
            for n = 1000, 1250 do redis.call('XADD', KEYS[1], n .. '-0', 'data', 'new ' .. n) end
        """
        await server.command("EVAL", lines, 1, KEY)
        await add(server, "data", "end", cursor="2000-0")
        assert (await story(live, 1))[:1] == [Gap("restarted")]
        store.resume(late, "1000-0")
        await eventually(lambda: late.got[-1:] == ["end"])
        assert late.got == [*(f"new {n}" for n in range(1001, 1251)), "end"]


async def test_statistics_count_what_came_from_the_stream(server: Server) -> None:
    async with store_on(server.port) as store:
        first = await store.submit("own")
        await add(server, "data", "foreign")
        told = Told[str]()
        store.resume(told, str(first.id))
        await store.submit("live")
        await eventually(lambda: told.got == ["foreign", "live"])
        await eventually(lambda: store.statistics().published == 3)
        books = store.statistics()
        assert (books.submitted, books.subscribers, books.resumed, books.gaps) == (3, 1, 1, 0)
        assert books.offered == books.delivered == 2


# ---- resuming


async def test_p8_at_another_process_exactly_what_was_missed_then_live_while_others_submit(
    server: Server,
) -> None:
    dice = random.Random(SEED)
    old = await fill(server, 330, "old ")
    enough = asyncio.Event()
    async with store_on(server.port) as here, store_on(server.port) as there:

        async def submit(store: RedisStreamStore[str]) -> None:
            while not enough.is_set():
                await asyncio.gather(*(store.submit("new") for _ in range(dice.randrange(1, 9))))
                await asyncio.sleep(0)

        async def submit_elsewhere() -> None:
            while not enough.is_set():
                await add(server, "data", "foreign")

        readers: list[tuple[str, Plain[str]]] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(submit(here))
            group.create_task(submit(there))
            group.create_task(submit_elsewhere())
            for number in range(60):
                reader: Plain[str] = Told() if number % 2 else Eager()
                cursor = dice.choice([*old, (await here.submit("own")).id])
                readers.append((str(cursor), reader))
                there.resume(reader, str(cursor))
                if number % 3 == 0:
                    await asyncio.sleep(0.01)
            enough.set()
        await there.submit("last")
        await eventually(lambda: all(r.got[-1:] == ["last"] for _, r in readers))
        stream = await entries(server)
        at = {cursor: index for index, (cursor, _) in enumerate(stream)}
        assert len(stream) > 450
        for cursor, reader in readers:
            assert seen(reader) == stream[at[cursor] + 1 :]
            assert not isinstance(reader, Told) or reader.events == reader.got
        books = there.statistics()
        assert (books.resumed, books.gaps) == (len(readers), 0)
        assert balanced(books)


async def test_p4_p8_large_payloads_are_read_a_few_at_a_time(server: Server) -> None:
    payload = "x" * 1_000_000
    async with store_on(server.port) as store:
        ids = [str((await store.submit(f"{number} {payload}")).id) for number in range(30)]
        before = await calls(server, "xrange")
        async with no_stall():
            resumed = [Told[str](), Eager[str]()]
            for reader in resumed:
                store.resume(reader, ids[0])
            await eventually(lambda: all(len(reader.got) == 29 for reader in resumed))
        for reader in resumed:
            assert [message.id for message in reader.messages] == ids[1:]
            assert all(len(text) > 1_000_000 for text in reader.got)
        assert await calls(server, "xrange") - before > 20
        books = store.statistics()
        assert (books.gaps, books.delivered) == (0, 58)


class Forgetful(Generic[T]):
    """One that keeps nothing."""

    def __init__(self) -> None:
        self.count = 0

    async def publish(self, message: Message[T], /) -> None:
        self.count += 1

    def publish_nowait(self, batch: Batch[T], /) -> bool:
        self.count += len(batch)
        return True


async def test_p4_pages_of_many_small_messages_are_not_kept_for_ever(server: Server) -> None:
    await server.command("EVAL", FILL.replace("ARGV[2] .. number", "''"), 1, KEY, 20_000)
    async with store_on(server.port) as store:
        forgetful = Forgetful[str]()
        store.resume(forgetful, "0-0")
        await eventually(lambda: forgetful.count == 20_000)
        assert sum(isinstance(kept, Message) for kept in gc.get_objects()) < 10_000


async def test_p8_a_herd_that_resumes_after_the_same_id_shares_the_reads(server: Server) -> None:
    ids = await fill(server, 1000)
    async with store_on(server.port) as store:
        await store.submit("before")
        before = await calls(server, "xrange")
        herd: list[Plain[str]] = [Told[str]() if n % 2 else Eager[str]() for n in range(200)]
        for reader in herd:
            store.resume(reader, ids[0])
        await eventually(lambda: all(len(reader.got) == 1000 for reader in herd))
        after = await calls(server, "xrange")
        await store.submit("after")
        await eventually(lambda: all(reader.got[-1] == "after" for reader in herd))
        stream = await entries(server)
        assert all(seen(reader) == stream[1:] for reader in herd)
        pages = 1000 / 100
        assert after - before < 6 * pages


WHAT_IS_LEFT = [f"{number}" for number in range(1010, 1021)]
CURSORS: list[tuple[str, GapReason | None, Sequence[str]]] = [
    ("1001-0", "expired", WHAT_IS_LEFT),  # trimmed
    ("1009-5", "expired", WHAT_IS_LEFT),
    ("0-0", "expired", WHAT_IS_LEFT),
    ("0-1", "expired", WHAT_IS_LEFT),
    ("1010-0", "expired", WHAT_IS_LEFT[1:]),  # the oldest there is, but one was deleted
    ("0001010-00", "expired", WHAT_IS_LEFT[1:]),
    ("1018-0", None, WHAT_IS_LEFT[9:]),  # the one that was deleted
    ("1019-0", None, WHAT_IS_LEFT[10:]),
    ("1019-1", "unknown", WHAT_IS_LEFT[10:]),  # has never been there
    ("1020-0", None, []),  # the last one
    ("1020-1", "restarted", []),
    ("1021-0", "restarted", []),
    ("18446744073709551615-18446744073709551615", "restarted", []),
]
MALFORMED = [
    *("abc", "1-2-3", "$", "-", "+", "0", "1020", " 1020-0", "1020-0 ", "1020-0\n", "(1020-0"),
    *("18446744073709551616-0", "1-18446744073709551616", "1020--1", "1020-*", "\x00"),
    "\u0661-\u0662",  # digits as well
]


async def test_p8_an_id_that_cannot_be_used_is_a_gap_and_never_a_hang(server: Server) -> None:
    for number in range(1001, 1021):
        await add(server, "data", str(number), cursor=f"{number}-0")
    await server.command("XTRIM", KEY, "MAXLEN", 11)
    await server.command("XDEL", KEY, "1018-0")
    async with store_on(server.port) as store:
        resumed: list[tuple[Told[str], list[str | Gap]]] = []
        for cursor, reason, data in CURSORS:
            left: list[str | Gap] = [text for text in data if text != "1018"]
            resumed.append((Told(), [Gap(reason, cursor), *left] if reason else left))
            if reason == "unknown":
                resumed[-1][1][0] = Gap("unknown")
            store.resume(resumed[-1][0], cursor)
        for cursor in MALFORMED:
            resumed.append((Told(), [Gap("unknown")]))
            store.resume(resumed[-1][0], cursor)
        await eventually(lambda: all(len(told.events) == len(all_) for told, all_ in resumed))
        await store.submit("live")
        await eventually(lambda: all(told.got[-1:] == ["live"] for told, _ in resumed))
        for told, expected in resumed:
            assert told.events == [*expected, "live"]
        assert balanced(store.statistics())


async def test_p8_an_id_that_was_none_is_one_once_there_is_such_an_entry(server: Server) -> None:
    async with store_on(server.port) as store:
        early, late = Told[str](), Told[str]()
        await fill_from(server, 1000, 10)
        store.resume(early, "1020-0")
        assert await story(early, 1) == [Gap("restarted", "1020-0")]
        await fill_from(server, 1010, 20)
        store.resume(late, "1020-0")
        expected = [str(number) for number in range(1010, 1030)]
        assert await story(early, 21) == [Gap("restarted", "1020-0"), *expected]
        assert await story(late, 9) == expected[11:]


async def test_p8_the_very_beginning_is_no_gap_while_nothing_was_trimmed(server: Server) -> None:
    async with store_on(server.port) as store:
        nothing, whole = Told[str](), Told[str]()
        store.resume(nothing, "0-0")  # there is no stream yet
        await eventually(lambda: store.statistics().resumed == 1)
        for number in range(120):
            await store.submit(str(number))
        store.resume(whole, "0-0")
        await store.submit("last")
        everything = [*map(str, range(120)), "last"]
        await eventually(lambda: nothing.got == whole.got == everything)
        assert nothing.events == whole.events == everything


async def test_p8_an_id_at_the_end_of_all_ids_is_no_trap(server: Server) -> None:
    end = "18446744073709551615-18446744073709551615"
    async with store_on(server.port, SHORT) as store:
        told, late = Told[str](), Told[str]()
        store.register(told)
        await add(server, "data", "the end", cursor=end)
        assert await story(told, 1) == ["the end"]
        async with store_on(server.port, SHORT) as fresh:
            fresh.resume(late, end)
            await server.command("DEL", KEY)
            assert await story(told, 2) == ["the end", Gap("restarted", end)]
            assert await story(late, 1) == [Gap("restarted", end)]
            await store.submit("anew")
            await eventually(lambda: told.got[1:] == late.got == ["anew"])
            assert len(told.events) == len(late.events) + 1 == 3


# ---- what becomes of a stream that others reset and trim


RESTARTED, EXPIRED = Gap("restarted", "6-0"), Gap("expired", "6-0")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("DEL", KEY), [RESTARTED]),
        (("FLUSHALL",), [RESTARTED]),
        (script("DEL", "XADD 7-0 data new"), [RESTARTED, "new"]),
        (script("DEL", "XADD 6-1 data new"), [RESTARTED, "new"]),
        (script("DEL", "XADD 1-0 data lower"), [RESTARTED]),
        (
            script("DEL", "XADD 1-0 data new", "XADD 7-0 data newer"),
            [RESTARTED, "newer"],
        ),
        (script("DEL", "XADD 6-0 data again"), [RESTARTED]),
        (script("DEL", *(f"XADD {n}-0 data again" for n in range(1, 7))), [EXPIRED]),
        (script("XADD 7-0 data missed", "XDEL 7-0"), [EXPIRED]),
        (script("XADD 7-0 data missed", "XTRIM MAXLEN 0"), [EXPIRED]),
        (script("XADD 7-0 data missed", "XTRIM MAXLEN 0", "XADD 8-0 data new"), [EXPIRED, "new"]),
        (script("XTRIM MAXLEN 0", "XADD 7-0 data new"), ["new"]),  # nothing is missing
        (script("XDEL 6-0", "XADD 7-0 data new"), ["new"]),
        (script("XADD 7-0 data new", "XDEL 6-0", "XDEL 5-0"), ["new"]),
    ],
    ids=lambda value: "",
)
async def test_p2_a_stream_that_is_reset_under_a_live_subscriber_is_one_gap_if_anything_is_missing(
    server: Server, command: tuple[str, ...], expected: list[str | Gap]
) -> None:
    async with store_on(server.port, 2 * SHORT) as store:
        told = Told[str]()
        store.register(told)
        for number in 4, 5, 6:
            await add(server, "data", str(number), cursor=f"{number}-0")
        await eventually(lambda: len(told.got) == 3)
        await server.command(*command)
        assert await story(told, 3 + len(expected)) == ["4", "5", "6", *expected]
        await store.submit("live")
        await eventually(lambda: told.got[-1] == "live")
        assert told.events == ["4", "5", "6", *expected, "live"]
        assert await store.deliver(told, Message("alone"))
        await eventually(lambda: told.got[-1] == "alone")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("XTRIM", KEY, "MAXLEN", "5"), ["expired", *(str(n) for n in range(47, 51))]),
        (("XTRIM", KEY, "MAXLEN", "51"), [str(n) for n in range(1, 51)]),  # nothing is missing
        (("XTRIM", KEY, "MAXLEN", "0"), ["expired"]),
        (("DEL", KEY), ["restarted"]),
        (script("DEL", "XADD 1-0 data lower"), ["restarted"]),
    ],
    ids=lambda value: "",
)
async def test_p2_what_is_trimmed_before_it_is_read_is_a_gap(
    server: Server, command: tuple[str, ...], expected: list[str]
) -> None:
    async with store_on(server.port, 2 * SHORT, **BLOCKING) as store:
        slow = await hold(store)
        await fill(server, 50)
        await store.submit("51")
        await server.command(*command)
        left = [*expected, "51"] if "50" in expected else expected
        slow.running.set()

        await story(slow, len(HELD) + len(left))
    events = [event.reason if isinstance(event, Gap) else event for event in slow.events]
    assert events == [*HELD, *left, "closed"]  # and closing has not waited for what is gone


async def test_p2_a_gap_does_not_hide_the_next_one(server: Server) -> None:
    async with store_on(server.port) as store:
        store.register(told := Told[str]())
        for number in range(5):
            await store.submit(str(number))
        await eventually(lambda: len(told.got) == 5)
        await server.command(*script("DEL", "XADD * data b"))
        await eventually(lambda: told.got[-1] == "b")
        await server.command(*script(*["XADD * data lost"] * 5, "XADD MAXLEN = 1 * data c"))
        await eventually(lambda: told.got[-1] == "c")
    assert [type(event) for event in told.events[5:]] == [Gap, str, Gap, str, str]
    assert told.got[5:] == ["b", "c"]


FIRST, RESET = [str(number) for number in range(1001, 1011)], Gap("restarted", "1010-0")
GONE = Gap("expired", "1010-0")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("DEL", KEY), [RESET]),
        (("FLUSHALL",), [RESET]),
        (script("DEL", "XADD 500-0 data lower"), [RESET]),
        (script("DEL", "XADD 1009-0 data lower"), [RESET]),
        (script("DEL", "XADD 1100-0 data new"), [GONE, "new"]),
        (script("DEL", "XADD 2000-0 data new"), [GONE, "new"]),
        (script("XTRIM MAXLEN 0"), [GONE]),
        (script("XTRIM MAXLEN 3"), [GONE, "1248", "1249", "1250"]),
        (
            script("XDEL 1010-0"),  # nothing behind it is missing
            [*map(str, range(1011, 1251))],
        ),
        (
            script("XDEL 1240-0"),
            [GONE, *(str(n) for n in range(1011, 1251) if n != 1240)],
        ),
    ],
    ids=lambda value: "",
)
async def test_p8_a_stream_that_is_reset_under_a_replay_is_one_gap(
    server: Server, command: tuple[str, ...], expected: list[str | Gap]
) -> None:
    await fill_from(server, 1000, 251)
    async with store_on(server.port, 2 * SHORT) as store:
        slow = Told[str]()
        slow.running.clear()
        store.resume(slow, "1000-0")
        await eventually(lambda: store.statistics().pending == len(FIRST))
        await server.command(*command)
        slow.running.set()
        start = [*FIRST, *expected]
        assert (await story(slow, len(start)))[: len(start)] == start
        await store.submit("live")
        await eventually(lambda: slow.got[-1] == "live")
        again = Gap("restarted", "1100-0")  # as ids lower than those before are another hole
        events = [event for event in slow.events if event != again]
        assert events == [*start, "live"]
        assert balanced(store.statistics())


# ---- outages


class Publishers:
    """A program that submits, and a foreign one that adds, whatever happens."""

    def __init__(self, server: Server, store: RedisStreamStore[str]) -> None:
        self._server = server
        self._store = store
        self.confirmed: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self._done = False

    async def submit(self) -> None:
        number = 0
        while not self._done:
            number += 1
            await asyncio.gather(*(self.submit_one(f"own {number} {part}") for part in "abc"))
            await asyncio.sleep(0.002)

    async def submit_one(self, data: str) -> None:
        try:
            message = await self._store.submit(data)
        except REFUSED:
            self.refused.append(data)
        except OutcomeUnknownError:
            self.unknown.append(data)
        else:
            self.confirmed.append((str(message.id), data))

    async def add(self) -> None:
        while not self._done:
            with suppress(RedisError, OSError):
                await add(self._server, "data", "foreign")

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.submit())
            tasks.create_task(self.add())
            try:
                yield
            finally:
                self._done = True

    def agree_with(self, stream: Sequence[tuple[str, str]]) -> None:
        """See that each message is in the stream as often as its `submit` has said."""
        times = Counter(data for _, data in stream)
        assert set(self.confirmed) <= set(stream)
        assert all(times[data] == 1 for _, data in self.confirmed)
        assert all(times[data] == 0 for data in self.refused)
        assert all(times[data] <= 1 for data in self.unknown)


Fault = Callable[[Server, Proxy, Logged], Awaitable[None]]


async def kill_clients(server: Server, proxy: Proxy, logged: Logged) -> None:
    await server.command("CLIENT", "KILL", "TYPE", "normal")


async def cut(server: Server, proxy: Proxy, logged: Logged) -> None:
    proxy.cut()


async def blackhole(server: Server, proxy: Proxy, logged: Logged) -> None:
    proxy.blackhole()
    await fallen(logged)
    proxy.heal()


async def swallow_replies(server: Server, proxy: Proxy, logged: Logged) -> None:
    proxy.swallow_replies()
    await fallen(logged)
    proxy.heal()


async def pause(server: Server, proxy: Proxy, logged: Logged) -> None:
    server.pause()
    await fallen(logged)
    server.resume()


async def restart(server: Server, proxy: Proxy, logged: Logged) -> None:
    await asyncio.to_thread(server.kill)
    await fallen(logged)
    await server.start()


async def time_out(server: Server, proxy: Proxy, logged: Logged) -> None:
    """Let the system give up all connections of the store, as when a network is gone."""
    for connection in gc.get_objects():
        if isinstance(connection, AbstractConnection) and connection.is_connected:
            reader = attrgetter("_reader")(connection)
            if attrgetter("port")(connection) == proxy.port:
                reader.set_exception(TimeoutError(errno.ETIMEDOUT, "timed out"))


@pytest.mark.parametrize(
    "fault", [kill_clients, cut, blackhole, swallow_replies, pause, restart, time_out]
)
async def test_p6_p10_an_outage_loses_nothing_repeats_nothing_and_stalls_nothing(
    server: Server, fault: Fault, logged: Logged
) -> None:
    async with proxied(server.port) as proxy, store_on(proxy.port, SHORT) as store, no_stall():
        live: list[Told[str]] = [Told(), Eager()]
        for told in live:
            store.register(told)
        publishers = Publishers(server, store)
        async with publishers.at_work():
            for times in 1, 2:
                await more(live, 30)
                confirmed = publishers.confirmed[-5]
                await fault(server, proxy, logged)
                late = Eager[str]()
                store.resume(late, confirmed[0])
                await mended(logged)
                await more(live, 30)
                assert times * 30 <= len(publishers.confirmed)
        await publishers.submit_one("last")
        stream = await entries(server)
        assert stream[-1][1] == "last"
        await eventually(lambda: all(t.got[-1:] == ["last"] for t in (*live, late)))
        for told in live:
            assert seen(told) == stream
            assert told.events == told.got
        assert seen(late) == stream[stream.index(confirmed) + 1 :]
        assert late.events == late.got
        publishers.agree_with(stream)
        books = store.statistics()
        assert books.gaps == 0
        assert balanced(books)
    outages(logged)


@pytest.mark.parametrize("kind", KINDS)
async def test_p10_a_server_that_comes_back_with_nothing_is_one_gap_and_then_live(
    kind: str, tmp_path: Path, logged: Logged
) -> None:
    async with running(kind, tmp_path) as server, store_on(server.port) as store, no_stall():
        told, newcomer, again = Told[str](), Told[str](), Told[str]()
        store.register(told)
        expected: list[str | Gap] = []
        for data in "a", "b":
            last = await accepted(store, data)
            expected += [data, Gap("restarted", last.id)]
            assert await story(told, len(expected) - 1) == expected[:-1]
            await asyncio.to_thread(server.kill)
            await fallen(logged)
            if data == "b":
                store.register(newcomer)
                store.resume(again, str(last.id))
            await server.start()
            await mended(logged)
            assert await story(told, len(expected)) == expected
        assert await story(again, 1) == expected[-1:]
        await accepted(store, "live")
        await eventually(lambda: told.got[-1:] == again.got == newcomer.got == ["live"])
        assert told.events == [*expected, "live"]
        store.resume(beginner := Told[str](), "0-0")
        assert await story(beginner, 1) == ["live"]


USER = "ACL", "SETUSER", "app"
RIGHT = *USER, "on", ">right", "~*", "&*", "+@all"
NO_SERVER = "1"  # a port that nobody listens on
Commands: TypeAlias = list[tuple[str, ...]]


@pytest.mark.parametrize(
    ("refuse", "mend", "error"),
    [
        pytest.param(
            [("CONFIG", "SET", "maxmemory", "1")],
            [("CONFIG", "SET", "maxmemory", "0")],
            OutOfMemoryError,
            id="OOM",
        ),
        pytest.param(
            [("REPLICAOF", "127.0.0.1", NO_SERVER)],
            [("REPLICAOF", "NO", "ONE")],
            ReadOnlyError,
            id="READONLY",
        ),
        pytest.param([(*USER, "-xadd")], [RIGHT], NoPermissionError, id="NOPERM"),
        pytest.param([(*USER, "-@all")], [RIGHT], NoPermissionError, id="nothing permitted"),
        pytest.param(
            [(*USER, "resetpass", ">left"), ("CLIENT", "KILL", "USER", "app")],
            [RIGHT],
            AuthenticationError,
            id="WRONGPASS",
        ),
    ],
)
async def test_p6_a_refusal_is_the_error_of_redis_and_the_store_goes_on_once_it_is_mended(
    server: Server,
    refuse: Commands,
    mend: Commands,
    error: type[Exception],
    logged: Logged,
) -> None:
    await server.command(*RIGHT)
    user = {"username": "app", "password": "right"}
    async with store_on(server.port, 2 * SHORT, **user) as store, no_stall():
        told = Told[str]()
        store.register(told)
        await store.submit("a")
        await eventually(lambda: told.got == ["a"])
        for command in refuse:
            await server.command(*command)
        for _ in range(3):
            with pytest.raises(error):
                await accepted(store, "refused")
        for command in mend:
            await server.command(*command)
        await store.submit("b")
        await eventually(lambda: told.got == ["a", "b"])
        assert told.events == ["a", "b"]
        assert [data for _, data in await entries(server)] == ["a", "b"]
    outages(logged)


async def test_p6_a_key_that_is_no_stream_is_an_error_until_it_is_gone(
    server: Server, logged: Logged
) -> None:
    await server.command("SET", KEY, "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        async with store_on(server.port):
            pass
    outages(logged)
    await server.command("DEL", KEY)
    async with store_on(server.port, 2 * SHORT) as store:
        told, resumed = Told[str](), Told[str]()
        store.register(told)
        first = await store.submit("a")
        await eventually(lambda: told.got == ["a"])
        await server.command("SET", KEY, "x")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await store.submit("refused")
        await fallen(logged)
        store.resume(resumed, str(first.id))
        await server.command("DEL", KEY)
        await mended(logged)
        assert await story(resumed, 1) == [Gap("restarted", first.id)]
        await store.submit("b")
        await eventually(lambda: told.got == ["a", "b"] and resumed.got == ["b"])
        assert told.events == ["a", Gap("restarted", first.id), "b"]
        assert resumed.events == [Gap("restarted", first.id), "b"]
    outages(logged)


async def test_p6_a_lost_reply_is_an_unknown_outcome_and_never_a_second_entry(
    server: Server, logged: Logged
) -> None:
    async with (
        proxied(server.port) as proxy,
        store_on(proxy.port, SHORT) as store,
        store_on(server.port) as elsewhere,
        no_stall(),
    ):
        told, there = Told[str](), Told[str]()
        store.register(told)
        elsewhere.register(there)
        await store.submit("before")
        proxy.swallow_replies()
        began = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            await store.submit("unknown")
        assert time.monotonic() - began < 2 * SHORT + 1
        await eventually(lambda: there.got == ["before", "unknown"])
        await fallen(logged)
        proxy.heal()
        await mended(logged)
        await store.submit("after")
        await eventually(lambda: told.got == there.got == ["before", "unknown", "after"])
        assert [data for _, data in await entries(server)] == told.events == there.events
    outages(logged)


@pytest.mark.parametrize("fate", ["kept", "lost", "unknown"])
async def test_p6_p10_a_reply_that_comes_when_the_reader_is_past_it_is_made_sure_of(
    server: Server, fate: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied(server.port) as proxy, store_on(proxy.port) as store:
        store.register(told := Told[str]())
        await store.submit("kept")
        await eventually(lambda: told.got == ["kept"])
        backup = await dump(server)
        monkeypatch.setattr(broker, "delay_after", once_asked)
        await server.command("CLIENT", "KILL", "ID", (await server.clients())[0])
        await fallen(logged)
        replies = proxy.hold_replies()
        submitting = asyncio.create_task(store.submit("late"))
        while len(await entries(server)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if fate == "lost":
            await fall_back(server, backup)
        await add(server, "data", "new")
        await store.__aenter__()
        await eventually(lambda: told.got[-1] == "new")
        if fate == "unknown":
            await server.command("SET", KEY, "no stream any more")
        replies.set()
        if fate == "kept":
            assert (await submitting).id == told.messages[1].id
        else:
            with pytest.raises(OutcomeUnknownError, match="lost"):
                await submitting
        assert told.got == ["kept", *([] if fate == "lost" else ["late"]), "new"]
    outages(logged)


async def test_p6_what_is_trimmed_at_once_was_accepted_all_the_same(server: Server) -> None:
    store = store_on(server.port, maxlen=1)
    store.register(told := Told[str]())
    messages = await asyncio.gather(*(store.submit(str(number)) for number in range(1000)))
    await eventually(lambda: told.got[-1:] == ["999"])
    await store.aclose()
    assert len({message.id for message in messages}) == 1000


@pytest.mark.filterwarnings("ignore:.*lib_name:DeprecationWarning")
async def test_p6_when_the_first_look_at_the_stream_gets_no_reply_nothing_was_accepted(
    server: Server, logged: Logged
) -> None:
    server.kill()
    async with proxied(server.port) as proxy:
        silent = {"lib_name": None, "lib_version": None}  # so that connecting needs no reply
        store = store_on(proxy.port, SHORT, **silent)
        store.register(told := Told[str]())
        await fallen(logged)
        proxy.swallow_replies()
        await server.start()
        with pytest.raises(Unreachable):
            await store.submit("not sent")
        proxy.heal()
        await mended(logged)
        await accepted(store, "sent")
        await eventually(lambda: told.got == ["sent"])
        await store.aclose()
    assert [data for _, data in await entries(server)] == ["sent"]


async def test_p6_of_many_that_are_cut_off_or_cancelled_none_is_in_the_stream_twice(
    server: Server, logged: Logged
) -> None:
    dice = random.Random(SEED)
    async with proxied(server.port) as proxy, store_on(proxy.port) as store:
        publishers = Publishers(server, store)
        for times in range(10):
            sending = [
                asyncio.create_task(publishers.submit_one(f"{times} {number}"))
                for number in range(100)
            ]
            for _ in range(dice.randrange(30)):
                await asyncio.sleep(0)
            for task in dice.sample(sending, 10):
                task.cancel()
            proxy.cut()
            await asyncio.wait(sending)
            await accepted(store, f"{times} end")
        stream = await entries(server)
        publishers.agree_with(stream)
        assert max(Counter(data for _, data in stream).values()) == 1
        assert publishers.unknown or publishers.refused
    outages(logged)


async def test_p8_a_resume_waits_for_a_server_that_is_out_of_reach(
    server: Server, logged: Logged
) -> None:
    ids = await fill(server, 30)
    expected = [str(number) for number in range(6, 31)]
    async with store_on(server.port) as store:
        await store.submit("31")  # so that all connections stand
        (warm := Told[str]()).running.clear()
        store.resume(warm, ids[0])
        await eventually(lambda: store.statistics().pending)
        store.deregister(warm)
        await asyncio.to_thread(server.kill)
        gone, waiting, later = Told[str](), Told[str](), Told[str]()
        fresh = store_on(server.port)
        async with AsyncExitStack() as stack, no_stall():
            stack.push_async_callback(fresh.aclose)
            store.resume(gone, ids[4])
            store.resume(waiting, ids[4])
            fresh.resume(later, ids[4])
            (left := Told[str]()).running.clear()
            fresh.resume(left, ids[4])
            await eventually(lambda: sum("cannot read" in line for line in logged.lines()) == 2)
            store.deregister(gone)
            fresh.deregister(left)
            assert waiting.events == later.events == []
            await server.start()
            await eventually(lambda: waiting.got[-1:] == later.got[-1:] == ["31"])
            await accepted(store, "live")
            await eventually(lambda: waiting.got[-1:] == later.got[-1:] == ["live"])
            assert waiting.events == later.events == [*expected, "31", "live"]
            assert gone.events == left.events == []
    outages(logged)


async def test_p7_a_store_whose_server_stays_away_closes_in_time_and_tells_who_has_not_everything(
    server: Server, logged: Logged
) -> None:
    store = store_on(server.port)
    live, resumed = Told[str](), Told[str]()
    first = await store.submit("a")
    store.register(live)
    await eventually(lambda: store.statistics().published == 1)
    server.kill()
    await fallen(logged)
    store.resume(resumed, str(first.id))
    await store.aclose(timeout=0.2)
    assert resumed.events == ["timeout"]
    assert live.events == ["closed"]
    logged.take("closed before everybody")
    outages(logged)


# ---- in the life of a program


async def test_p8_a_client_of_one_server_goes_on_at_another_without_a_hole(
    server: Server,
) -> None:
    enough = asyncio.Event()
    async with store_on(server.port) as here, store_on(server.port) as there:

        async def submit() -> None:
            for number in range(100_000):
                await (here, there)[number % 2].submit(str(number), event="e")
                if enough.is_set():
                    return

        got: list[tuple[str, str]] = []
        async with (
            serving(EventSource.route("/", here)) as first,
            serving(EventSource.route("/", there)) as second,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(submit())
            cursor = str((await here.submit("start")).id)
            for url in (first, second) * 3:
                async with event_stream(url, {"Last-Event-ID": cursor}) as events:
                    taken = await events.take(25)
                assert {event.event for event in taken} <= {"e", "message"}
                got += [(event.id, event.data) for event in taken]
                cursor = got[-1][0]
            async with event_stream(first, {"Last-Event-ID": "abc"}) as events:
                gap = await events.next()
                assert (gap.event, json.loads(gap.data)["reason"]) == ("gap", "unknown")
                assert (await events.next()).event == "e"
            enough.set()
        stream = await entries(server)
        start = next(index for index, (_, data) in enumerate(stream) if data == "start") + 1
        assert got == stream[start : start + 150]


async def test_p2_aclose_delivers_first_what_this_process_has_submitted(server: Server) -> None:
    store = store_on(server.port)
    live, resumed = Told[str](), Eager[str]()
    async with store:
        start = await store.submit("start")
        store.register(live)
        await asyncio.gather(*(store.submit(str(number)) for number in range(300)))
        store.resume(resumed, str(start.id))
        await store.aclose()
        everything = [str(number) for number in range(300)]
        assert live.events == resumed.events == [*everything, "closed"]
        books = store.statistics()
        assert (books.submitted, books.published, books.pending) == (301, 301, 0)
        assert balanced(books)


async def test_p7_a_store_needs_three_connections_at_most_and_leaves_none(server: Server) -> None:
    await fill(server, 50)
    async with store_on(server.port) as store:
        subscribers = [Told[str]() for _ in range(50)]
        for told in subscribers[:25]:
            store.register(told)
        assert len(await server.clients()) == 1
        last = await store.submit("a")
        assert len(await server.clients()) == 2
        for number, told in enumerate(subscribers[25:], 1):
            store.resume(told, f"{number}-0")
        store.resume(Told(), str(last.id))
        await eventually(lambda: all(told.got[-1:] == ["a"] for told in subscribers))
        assert len(await server.clients()) == 3
    assert await server.clients() == []


async def test_p8_over_a_slow_link_silence_counts_and_not_the_time_that_a_page_takes(
    server: Server,
) -> None:
    await fill(server, 150)  # so that the pages become as long as they may
    await fill(server, 110, 4000 * "x")
    stream = await entries(server)
    async with proxied(server.port) as proxy, store_on(proxy.port, SHORT) as store:
        proxy.rate = 600_000  # so that such a page takes longer than silence may
        live, reader = Told[str](), Told[str]()
        store.register(live)
        store.resume(reader, "0-0")
        await server.command("XADD", KEY, "*", "data", 400_000 * "y")
        await server.command("XADD", KEY, "*", "data", "short")  # the last is read more than once
        await eventually(lambda: len(reader.got) == 262 and len(live.got) == 2)
        await store.submit("last")
        await eventually(lambda: live.got[-1] == reader.got[-1] == "last")
        assert proxy.connections == 3
        assert seen(reader)[:260] == stream
        assert reader.events == reader.got
        assert live.events == live.got == reader.got[-3:]


@pytest.mark.parametrize(
    ("limit", "size", "count"), [("4mb", 200_000, 100), ("600kb", 5000, 1000)]
)
async def test_p8_p10_a_server_that_cuts_large_replies_is_asked_for_less(
    limit: str, size: int, count: int, server: Server, logged: Logged
) -> None:
    async with store_on(server.port) as store:
        live, reader = Told[str](), Told[str]()
        store.register(live)
        await fill(server, 500)  # so that the pages become as long as they may
        await eventually(lambda: len(live.got) == 500)
        await server.command("CONFIG", "SET", "client-output-buffer-limit", f"normal {limit} 0 0")
        lines = f"for _ = 1, {count} do redis.call('XADD', KEYS[1], '*', 'data', ARGV[1]) end"
        await server.command("EVAL", lines, 1, KEY, size * "x")
        store.resume(reader, "0-0")
        await eventually(lambda: len(live.got) == len(reader.got) == 500 + count)
        assert live.events == live.got == reader.events
    outages(logged)


async def test_p3_entries_that_cannot_be_decoded_leave_the_loop_its_turns(
    server: Server, logged: Logged
) -> None:
    await fill(server, 500, "{")  # which is no JSON
    async with store_on(server.port, encode=json.dumps, decode=json.loads) as store, no_stall():
        readers = [Told[str]() for _ in range(100)]
        for reader in readers:
            store.resume(reader, "0-0")
        await eventually(lambda: all(len(reader.events) == 500 for reader in readers))
        assert gaps(readers[-1]) == 500 * ["poisoned"]
    logged.take("cannot be decoded", 500)


async def test_p3_decoding_a_page_leaves_the_loop_its_turns(server: Server) -> None:
    def slowly(text: str) -> str:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            continue
        return text

    await fill(server, 350, 1000 * "x")  # until the pages have 200, which is 200 ms of work
    async with (
        store_on(server.port, encode=str, decode=slowly) as store,
        no_stall(0.02, pause=0),
    ):
        reader = Told[str]()
        store.resume(reader, "0-0")
        await eventually(lambda: len(reader.got) == 350)
