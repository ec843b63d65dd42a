"""RedisStore on real servers: other programs, outages, and shutting down.

A second connection that listens to the channel tells what was published, and how often.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Unreachable

from conftest import Logged
from servers import Proxy, Server, proxied
from support import DEADLINE, Told, eventually
from tornadose import (
    Gap,
    Message,
    OutcomeUnknownError,
    RedisStore,
    RedisStreamStore,
    StoreClosedError,
)
from tornadose.limits import Policy
from tornadose.stores.redis import connection as module

T = TypeVar("T")

QUICK = 0.5  # seconds, of `socket_timeout` and `socket_connect_timeout`
SLACK = 1.0  # seconds that a busy machine may take on top
OUTAGE = Gap("outage")


def store_at(
    port: int,
    *,
    inbox: int = 1024,
    backlog: int = 1024,
    policy: Policy = "disconnect",
    seconds: float = QUICK,
    password: str | None = None,
) -> RedisStore[str]:
    return RedisStore(
        port=port,
        inbox=inbox,
        backlog=backlog,
        policy=policy,
        block_timeout=DEADLINE,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        username=password and "app",
        password=password,
    )


def registered(store: RedisStore[T], count: int = 1) -> list[Told[T]]:
    subscribers = [Told[T]() for _ in range(count)]
    for subscriber in subscribers:
        store.register(subscriber)
    return subscribers


async def tell(server: Server, *payloads: str | bytes) -> None:
    """Publish as another program does."""
    for payload in payloads:
        await server.command("PUBLISH", "tornadose", payload)


@asynccontextmanager
async def listening(server: Server) -> AsyncGenerator[list[str]]:
    """Collect what is published, as another program does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    got: list[str] = []

    async def frame() -> list[str]:
        parts: list[str] = []
        for _ in range(int((await reader.readuntil())[1:])):
            head = (await reader.readuntil()).decode()
            is_number = head.startswith(":")
            parts.append(head if is_number else (await reader.readuntil()).decode().rstrip())
        return parts

    async def listen() -> None:
        while True:
            got.append((await frame())[-1])

    writer.write(b"SUBSCRIBE tornadose\r\n")
    await frame()
    task = asyncio.create_task(listen())
    try:
        yield got
    finally:
        task.cancel()
        await asyncio.wait({task})
        writer.transport.abort()


@contextmanager
def within(seconds: float) -> Generator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SLACK


class Pulse:
    """The longest time between two beats, of the event loop and of a thread beside it."""

    def __init__(self) -> None:
        self.loop = self.machine = 0.0
        self._over = threading.Event()

    async def beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            last, before = time.monotonic(), last
            self.loop = max(self.loop, last - before)

    def control(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.005):
            last, before = time.monotonic(), last
            self.machine = max(self.machine, last - before)

    def end(self) -> None:
        self._over.set()


@asynccontextmanager
async def no_stall() -> AsyncGenerator[None]:
    """Fail if the event loop stalls for 100 ms longer than the machine itself."""
    pulse = Pulse()
    control = threading.Thread(target=pulse.control)
    beating = asyncio.create_task(pulse.beat())
    control.start()
    try:
        yield
    finally:
        pulse.end()
        await asyncio.to_thread(control.join)
        beating.cancel()
        await asyncio.wait({beating})
    assert pulse.loop < 0.1 + pulse.machine


async def noticed(logged: Logged, times: int = 1) -> None:
    """Wait until the store knows that it has lost its connection."""
    await eventually(lambda: "".join(logged.lines()).count("cannot read from Redis") >= times)


async def repaired(logged: Logged, times: int = 1) -> None:
    """Wait until the store has a connection again, and expect no more log output than that."""
    await eventually(lambda: "".join(logged.lines()).count("reads from Redis again") >= times)
    logged.take("cannot read from Redis", times)
    logged.take("reads from Redis again", times)


async def all_gone(server: Server) -> None:
    """Wait until the server has no connection left."""
    async with asyncio.timeout(DEADLINE):
        while await server.clients("pubsub") or await server.clients():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ---- other programs, and payloads


async def test_a_program_hears_itself_from_its_first_message_on(server: Server) -> None:
    store = store_at(server.port)
    (told,) = registered(store)
    message = await store.submit("first", event="tick")
    await store.submit("second")
    await eventually(lambda: told.messages == [message, Message("second")])
    await store.aclose()
    assert message == Message("first", event="tick")
    assert told.events == ["first", "second", "closed"]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("hello", Message("hello")),
        ("", Message("")),
        ("a\nb\r\n", Message("a\nb\r\n")),
        ("\x1etick\nhello\nyou", Message("hello\nyou", event="tick")),
        ("\x1e\n\x1ehello", Message("\x1ehello")),
        ("\x1ehello", Message("\x1ehello")),
    ],
)
async def test_what_other_programs_publish_arrives(
    server: Server, payload: str, expected: Message[str]
) -> None:
    async with store_at(server.port) as store:
        told = registered(store, 2)
        await tell(server, payload)
        await eventually(lambda: [t.messages for t in told] == [[expected]] * 2)


async def test_what_one_store_submits_another_gets_as_it_was(server: Server) -> None:
    payloads = ["a", "\x1eb", "\x1etick\nc", "", "ü\n\0"]
    async with store_at(server.port) as one, store_at(server.port) as other:
        (told,) = registered(other)
        sent = [await one.submit(p, event=e) for p in payloads for e in (None, "tick")]
        await eventually(lambda: told.messages == sent)


async def test_p9_what_cannot_be_decoded_is_a_gap_for_each_and_stops_nothing(
    server: Server, logged: Logged
) -> None:
    poisoned = [b"\xff\xfe", b"\x1egap\nx", b"\x1ea\rb\nx", b"no json", b"\x1etick\n{"]
    store = RedisStore[object](port=server.port, encode=json.dumps, decode=json.loads)
    async with store:
        told = registered(store, 2)
        await tell(server, "1", *poisoned, "2")
        await eventually(lambda: all(t.got == [1, 2] for t in told))
        books = store.statistics()
    assert [t.events for t in told] == [[1, *[Gap("poisoned")] * 5, 2, "closed"]] * 2
    assert (books.poisoned, books.published, books.delivered, books.offered) == (10, 2, 4, 14)
    logged.take("a message of channel 'tornadose' cannot be decoded", times=5)


async def test_p3_decoding_leaves_the_loop_its_turns(server: Server) -> None:
    def slowly(text: str) -> str:
        end = time.thread_time() + 0.0005
        while time.thread_time() < end:
            continue
        return text

    store = RedisStore[str](port=server.port, encode=str, decode=slowly)
    async with store, no_stall():
        (told,) = registered(store)
        lines = "for _ = 1, 1000 do redis.call('PUBLISH', KEYS[1], 'x') end"  # half a second
        await server.command("EVAL", lines, 1, "tornadose")
        await eventually(lambda: len(told.got) == 1000)


@dataclass(frozen=True)
class Price:
    symbol: str
    cents: int


async def test_a_payload_of_any_type_is_encoded_and_decoded(server: Server) -> None:
    store = RedisStore(
        "prices",
        encode=lambda price: json.dumps(astuple(price)),
        decode=lambda text: Price(*json.loads(text)),
        url=f"redis://127.0.0.1:{server.port}/3?socket_timeout=4.5",
    )
    async with store:
        (told,) = registered(store)
        await server.command("PUBLISH", "prices", '["b", 2]')
        await store.submit(Price("a", 1))
        await eventually(lambda: told.got == [Price("b", 2), Price("a", 1)])


async def test_a_wrong_payload_or_event_is_refused_and_the_store_goes_on(server: Server) -> None:
    async with store_at(server.port) as store, listening(server) as published:
        with pytest.raises(TypeError, match="encode="):
            await store.submit(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="surrogates"):
            await store.submit("\ud800")
        for event in "gap", "", "a\nb", "\0":
            with pytest.raises(ValueError, match="event: "):
                await store.submit("x", event=event)
        await store.submit("sentinel")
        await eventually(lambda: published)
    assert published == ["sentinel"]
    faulty = RedisStore[str](port=server.port, encode=str.encode, decode=str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with faulty:
        with pytest.raises(TypeError, match="b'x'"):
            await faulty.submit("x")


async def test_one_connection_reads_and_one_writes_however_many_take_part(server: Server) -> None:
    async with store_at(server.port) as store:
        told = registered(store, 100)
        await asyncio.gather(*(store.submit(str(n)) for n in range(100)))
        await eventually(lambda: all(len(t.got) == 100 for t in told))
        assert len(await server.clients("pubsub")) == 1
        assert len(await server.clients()) == 1


async def test_p2_a_newcomer_gets_nothing_that_has_come_in_before(server: Server) -> None:
    async with store_at(server.port, policy="block", backlog=1) as store:
        (slow,) = registered(store)
        slow.running.clear()
        await tell(server, *"abcdef")
        await eventually(lambda: store.statistics().submitted == 6)
        (newcomer,) = registered(store)
        slow.running.set()
        await store.submit("new")
        await eventually(lambda: newcomer.got == ["new"])
        await eventually(lambda: slow.got == [*"abcdef", "new"])


# ---- opening


async def test_a_store_that_could_not_be_opened_can_be_once_redis_is_there(
    server: Server, logged: Logged
) -> None:
    server.kill()
    store = store_at(server.port)
    for _ in range(2):
        with pytest.raises(Unreachable):
            async with store:
                pass
    await server.start()
    async with store:
        (told,) = registered(store)
        await store.submit("a")
        await eventually(lambda: told.got)
    assert told.events == ["a", "closed"]
    logged.take("cannot read from Redis", times=2)


async def test_p10_a_first_submit_that_finds_nobody_fails_and_who_listens_is_told(
    server: Server, logged: Logged
) -> None:
    server.kill()
    store = store_at(server.port)
    (told,) = registered(store)
    with within(QUICK), pytest.raises(Unreachable):
        await store.submit("not accepted")
    with pytest.raises(Unreachable):
        await store.__aenter__()  # which leaves a store alone that others use
    await server.start()
    await eventually(lambda: told.events == [OUTAGE])
    await store.submit("a")
    await eventually(lambda: told.got)
    await store.aclose()
    assert told.events == [OUTAGE, "a", "closed"]
    await repaired(logged)


async def test_opening_does_not_wait_for_ever_for_a_redis_that_says_nothing(
    server: Server, logged: Logged
) -> None:
    async def enter(store: RedisStore[str]) -> None:
        async with store:
            pass

    server.pause()
    one, other = store_at(server.port), store_at(server.port)
    with within(2 * QUICK):
        results = await asyncio.gather(enter(one), other.submit("x"), return_exceptions=True)
    assert [type(result) for result in results] == [Unreachable] * 2
    await eventually(lambda: len(logged.unexpected) == 2)
    await other.aclose()
    server.resume()
    logged.take("cannot read from Redis", times=2)


async def test_a_wrong_password_is_redis_pys_own_error(server: Server, logged: Logged) -> None:
    await server.command("ACL", "SETUSER", "app", "on", ">right", "&*", "+@all")
    with pytest.raises(AuthenticationError):
        async with store_at(server.port, password="wrong"):  # noqa: S106
            pass
    logged.take("cannot read from Redis")
    async with RedisStore(url=f"redis://app:right@127.0.0.1:{server.port}") as store:
        await store.submit("a")


# ---- outages


Noticed = Callable[[], Awaitable[None]]


async def restarted(server: Server, _p: Proxy, _s: object, _n: Noticed) -> None:
    await asyncio.to_thread(server.kill)
    await server.start()


async def client_kill(server: Server, _p: Proxy, _s: object, _n: Noticed) -> None:
    await server.command("CLIENT", "KILL", "TYPE", "pubsub")


async def cut(_server: Server, proxy: Proxy, _s: object, _n: Noticed) -> None:
    proxy.cut()


async def timed_out(_server: Server, _p: Proxy, store: RedisStore[str], _n: Noticed) -> None:
    """Break the reader's connection as the kernel does when nothing is acknowledged."""
    reading: Any = store._reading  # pyright: ignore[reportPrivateUsage]
    reading._connection._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "x"))


async def blackholed(_server: Server, proxy: Proxy, _s: object, noticed: Noticed) -> None:
    proxy.blackhole()
    with within(QUICK):
        await noticed()
    proxy.heal()


async def paused(server: Server, _p: Proxy, _s: object, noticed: Noticed) -> None:
    server.pause()
    with within(QUICK):
        await noticed()
    server.resume()


@pytest.mark.parametrize("happens", [restarted, client_kill, cut, timed_out, blackholed, paused])
async def test_p10_each_subscriber_is_told_of_one_gap_and_nothing_is_lost_after_it(
    server: Server,
    happens: Callable[[Server, Proxy, RedisStore[str], Noticed], Awaitable[None]],
    logged: Logged,
) -> None:
    expected: list[object] = []
    async with proxied(server.port) as proxy, no_stall(), store_at(proxy.port) as store:
        told = registered(store, 3)

        async def everybody_has(*events: object) -> None:
            expected.extend(events)
            await eventually(lambda: all(t.events == expected for t in told))

        for outage in 1, 2:
            await tell(server, "a")
            await everybody_has("a")
            await happens(server, proxy, store, partial(noticed, logged, outage))
            await everybody_has(OUTAGE)
            await tell(server, "b", "c")
            await everybody_has("b", "c")
    assert [t.events for t in told] == [[*expected, "closed"]] * 3
    await repaired(logged, 2)


async def test_p10_who_comes_in_an_outage_is_told_of_it_and_who_comes_after_it_is_not(
    server: Server, logged: Logged
) -> None:
    async with store_at(server.port) as store:
        (before,) = registered(store)
        server.kill()
        await noticed(logged)
        (meanwhile,) = registered(store)
        await server.start()
        await eventually(lambda: before.events == meanwhile.events == [OUTAGE])
        (after,) = registered(store)
        await store.submit("a")
        await eventually(lambda: after.events == ["a"])
    assert before.events == meanwhile.events == [OUTAGE, "a", "closed"]
    await repaired(logged)


async def test_p6_p10_a_server_that_still_loads_its_file_refuses_and_does_not_end_the_outage(
    server: Server, logged: Logged
) -> None:
    much = "for n = 1, 100000 do redis.call('XADD', 'other', '*', 'data', n) end"
    for _ in range(3):
        await server.command("EVAL", much, 0)
    async with store_at(server.port) as store, RedisStreamStore(port=server.port) as stream:
        (told,) = registered(store)
        server.kill()
        await noticed(logged, times=2)
        starting, refusals = asyncio.create_task(server.start()), set[type[Exception]]()
        while not starting.done():
            try:
                await stream.submit("early")
            except Unreachable as error:  # and never is the outcome unknown
                refusals.add(type(error))
            await asyncio.sleep(0.01)
        assert BusyLoadingError in refusals
        await eventually(lambda: told.events == [OUTAGE])
        await store.submit("a")
        await eventually(lambda: told.got == ["a"])
        await repaired(logged, times=2)
    assert told.events == [OUTAGE, "a", "closed"]


async def test_p10_a_connection_that_is_only_quiet_or_held_up_is_kept(server: Server) -> None:
    large = [f"{number} {100_000 * 'x'}" for number in range(20)]  # more than is read ahead
    async with (
        store_at(server.port) as quiet,
        store_at(server.port, policy="block", backlog=1, inbox=1) as held_up,
    ):
        (one,), (other,) = registered(quiet), registered(held_up)
        other.running.clear()
        await tell(server, *large)
        await asyncio.sleep(3 * QUICK)
        other.running.set()
        await tell(server, "z")
        await eventually(lambda: one.got == other.got == [*large, "z"])
    assert one.events == other.events == [*large, "z", "closed"]


async def test_p10_a_reader_that_waits_for_room_to_tell_of_an_outage_brings_about_no_other(
    server: Server, logged: Logged
) -> None:
    async with (
        proxied(server.port) as proxy,
        store_at(proxy.port, policy="block", backlog=4, inbox=8) as store,
    ):
        (told,) = registered(store)
        told.running.clear()
        await tell(server, *map(str, range(20)))  # which hold the reader up
        proxy.cut()
        await noticed(logged)
        await eventually(lambda: proxy.connections == 2)
        await asyncio.sleep(2 * QUICK)  # longer than silence may last
        told.running.set()
        await eventually(lambda: told.events[-1:] == [OUTAGE])
        await tell(server, "after")
        await eventually(lambda: told.got[-1] == "after")
        await asyncio.sleep(2 * QUICK)
        await tell(server, "still")
        await eventually(lambda: told.got[-1] == "still")
        assert proxy.connections == 2
    assert told.events.count(OUTAGE) == 1
    await repaired(logged)


A_HUNDRED = """
    for n = ARGV[1], ARGV[1] + 99 do
        redis.call('PUBLISH', 'tornadose', string.format('%d ', n) .. string.rep('x', 10000))
    end
"""


async def test_p10_a_reader_that_redis_kills_for_its_slowness_leaves_one_gap(
    server: Server, logged: Logged
) -> None:
    await server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    async with no_stall(), store_at(server.port, policy="block", backlog=1, inbox=1) as store:
        (told,) = registered(store)
        told.running.clear()
        sent = 0
        while await server.clients("pubsub"):  # Valkey counts larger payloads only when it writes
            await server.command("EVAL", A_HUNDRED, 0, sent)
            sent += 100
        told.running.set()
        await eventually(lambda: told.events and told.events[-1] == OUTAGE)
        await tell(server, "after")
        await eventually(lambda: told.got[-1] == "after")
    *before, gap, after, closed = told.events
    assert [str(e).split()[0] for e in before] == [*map(str, range(len(before)))]
    assert len(before) < sent
    assert (gap, after, closed) == (OUTAGE, "after", "closed")
    await repaired(logged)


# ---- submitting


async def killed(server: Server, _proxy: Proxy) -> None:
    await asyncio.to_thread(server.kill)


async def silent(_server: Server, proxy: Proxy) -> None:
    proxy.blackhole()


async def stopped(server: Server, _proxy: Proxy) -> None:
    server.pause()


@pytest.mark.parametrize(
    ("happens", "connected"), [(killed, True), (silent, True), (silent, False), (stopped, True)]
)
async def test_p6_in_an_outage_submit_fails_in_time_and_was_not_accepted(
    server: Server,
    happens: Callable[[Server, Proxy], Awaitable[None]],
    connected: bool,
    monkeypatch: pytest.MonkeyPatch,
    logged: Logged,
) -> None:
    monkeypatch.setattr(module, "IDLE", -1.0)  # any connection may have died
    async with proxied(server.port) as proxy, no_stall(), store_at(proxy.port) as store:
        if connected:
            await store.submit("before")
        await happens(server, proxy)
        with within(2 * QUICK):
            results = await asyncio.gather(
                *(store.submit(str(n)) for n in range(3)), return_exceptions=True
            )
        assert [type(result) for result in results] == [Unreachable] * 3
        await noticed(logged)
        if happens is killed:
            await server.start()
        server.resume()
        async with listening(server) as published:
            proxy.heal()
            await asyncio.wait_for(_persistently(store, "sentinel"), DEADLINE)
            await eventually(lambda: published)
        assert published == ["sentinel"]
        await repaired(logged)


class Late(RedisStore[str]):
    """One for which it takes nearly all of its time until it may send."""

    async def _before_first_put(self) -> None:
        await asyncio.sleep(0.9 * self._timeout)


async def test_p6_one_time_limit_holds_for_all_that_submit_waits_for(
    server: Server, logged: Logged
) -> None:
    async with Late(port=server.port, socket_timeout=QUICK, socket_connect_timeout=QUICK) as store:
        server.pause()
        with within(1.6 * QUICK), pytest.raises((Unreachable, OutcomeUnknownError)):
            await store.submit("x")
        server.resume()
        await repaired(logged)


async def _persistently(store: RedisStore[str], payload: str) -> None:
    while True:
        with suppress(Unreachable):
            await store.submit(payload)
            return


@pytest.mark.parametrize("how", ["silence", "a cut"])
async def test_p6_when_the_reply_is_lost_the_outcome_is_unknown_and_it_is_not_sent_twice(
    server: Server, how: str, logged: Logged
) -> None:
    async with (
        listening(server) as published,
        proxied(server.port) as proxy,
        no_stall(),
        store_at(proxy.port) as store,
    ):
        await store.submit("before")
        proxy.swallow_replies()
        submitting = asyncio.create_task(store.submit("once"))
        await eventually(lambda: published == ["before", "once"])
        if how == "a cut":
            proxy.cut()
        with within(2 * QUICK), pytest.raises(OutcomeUnknownError) as caught:
            await submitting
        assert isinstance(caught.value.__cause__, Unreachable)
        await noticed(logged)
        proxy.heal()
        await _persistently(store, "sentinel")
        await eventually(lambda: published[-1] == "sentinel")
        assert published == ["before", "once", "sentinel"]
        await repaired(logged)


async def test_p6_a_connection_that_died_while_idle_is_replaced_unnoticed(server: Server) -> None:
    async with listening(server) as published, store_at(server.port) as store:
        await store.submit("a")
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(module.IDLE + 0.05)
        await store.submit("b")
        await eventually(lambda: published == ["a", "b"])


async def test_p6_a_connection_that_is_known_to_be_broken_is_replaced_unnoticed(
    server: Server, logged: Logged
) -> None:
    async with store_at(server.port) as store:
        await store.submit("a")
        server.kill()
        await noticed(logged)
        await server.start()
        async with listening(server) as published:
            await store.submit("b")
            await eventually(lambda: published == ["b"])
        await repaired(logged)


async def test_p6_cancelled_before_it_is_sent_a_message_never_is(server: Server) -> None:
    async with (
        listening(server) as published,
        proxied(server.port) as proxy,
        store_at(proxy.port, seconds=DEADLINE, inbox=2) as store,
    ):
        await store.submit("before")
        proxy.swallow_replies()
        first = asyncio.create_task(store.submit("first"))
        await eventually(lambda: published == ["before", "first"])
        waiting = [asyncio.create_task(store.submit(f"never {n}")) for n in range(3)]
        await asyncio.wait(waiting, timeout=0.05)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        proxy.heal()
        await first
        await store.submit("sentinel")
        await eventually(lambda: published[-1] == "sentinel")
    assert published == ["before", "first", "sentinel"]


@pytest.mark.parametrize("replies", ["come", "are lost"])
async def test_p4_beyond_the_inbox_submits_wait_and_closed_meanwhile_they_are_told(
    server: Server, replies: str, logged: Logged
) -> None:
    async with listening(server) as published, proxied(server.port) as proxy:
        store = await store_at(proxy.port, seconds=DEADLINE, inbox=2).__aenter__()
        await store.submit("before")
        proxy.swallow_replies()
        tasks = [asyncio.create_task(store.submit(f"sent {n}")) for n in range(2)]
        await eventually(lambda: published == ["before", "sent 0", "sent 1"])
        tasks += [asyncio.create_task(store.submit(f"waits {n}")) for n in range(2)]
        _, waiting = await asyncio.wait(tasks, timeout=0.05)
        assert len(waiting) == 4
        closing = asyncio.create_task(store.aclose(timeout=QUICK))
        await asyncio.sleep(0)
        if replies == "come":
            proxy.heal()
        with within(QUICK):
            await closing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        sent = Message if replies == "come" else OutcomeUnknownError
        assert [type(r) for r in results] == [sent] * 2 + [StoreClosedError] * 2
        with pytest.raises(StoreClosedError):
            await store.submit("late")
        proxy.heal()
        await tell(server, "sentinel")
        await eventually(lambda: published[-1] == "sentinel")
    assert published == ["before", "sent 0", "sent 1", "sentinel"]
    logged.take("before everybody had everything", times=replies == "are lost")


async def test_a_submit_that_waits_for_the_reader_is_let_go_when_the_store_is_closed(
    server: Server,
) -> None:
    async with proxied(server.port) as proxy:
        proxy.blackhole()
        store = store_at(proxy.port, seconds=DEADLINE)
        task = asyncio.create_task(store.submit("x"))
        await eventually(lambda: proxy.connections)
        with within(QUICK):
            await store.aclose(timeout=QUICK)
        with pytest.raises(StoreClosedError):
            await task


@pytest.mark.parametrize("trouble", ["a replica", "no memory"])
async def test_what_forbids_writing_does_not_forbid_publishing(
    server: Server, trouble: str
) -> None:
    async with store_at(server.port) as store:
        (told,) = registered(store)
        if trouble == "a replica":
            await server.command("REPLICAOF", "127.0.0.1", "1")
        else:
            await server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises((ReadOnlyError, ResponseError), match=r"read only|memory"):
            await server.command("SET", "key", "value")
        await store.submit("a")
        await eventually(lambda: told.events == ["a"])


async def test_p6_a_refusal_is_redis_pys_own_error_and_the_store_goes_on(server: Server) -> None:
    await server.command("ACL", "SETUSER", "app", "on", ">pw", "&*", "+@all", "-publish")
    async with store_at(server.port, password="pw") as store:  # noqa: S106
        (told,) = registered(store)
        with pytest.raises(ResponseError, match="permission"):
            await store.submit("refused")
        await server.command("ACL", "SETUSER", "app", "+publish")
        await store.submit("a")
        await eventually(lambda: told.events == ["a"])


# ---- shutting down


@pytest.mark.parametrize(
    ("happens", "known"), [(killed, True), (killed, False), (silent, True), (silent, False)]
)
async def test_p10_closing_in_an_outage_tells_of_the_gap_first(
    server: Server,
    happens: Callable[[Server, Proxy], Awaitable[None]],
    known: bool,
    logged: Logged,
) -> None:
    async with proxied(server.port) as proxy, no_stall():
        store = store_at(proxy.port)
        told = registered(store, 2)
        await store.submit("a")
        await eventually(lambda: all(t.got for t in told))
        await happens(server, proxy)
        if known:
            await noticed(logged)
        with within(2 * QUICK):
            await store.aclose()
        assert [t.events for t in told] == [["a", OUTAGE, "closed"]] * 2
        server.resume()
    logged.take("cannot read from Redis")


async def test_closing_after_an_outage_waits_for_what_was_just_submitted(
    server: Server, logged: Logged
) -> None:
    async with proxied(server.port) as proxy:
        store = store_at(proxy.port)
        store.register(told := Told[str]())
        await store.submit("before")
        await eventually(lambda: told.got == ["before"])
        proxy.cut()
        await repaired(logged)
        proxy.rate = 5000  # so that what follows waits on its way to the reader
        await server.command("PUBLISH", "tornadose", 1000 * "x")
        await eventually(lambda: told.got[-1] == 1000 * "x")
        await store.submit("after")
        await store.aclose()
        assert told.events == ["before", Gap("outage"), 1000 * "x", "after", "closed"]


async def test_p10_closing_tells_of_a_break_that_only_the_heartbeat_has_met(
    server: Server, logged: Logged
) -> None:
    async with proxied(server.port) as proxy:
        store = store_at(proxy.port, policy="block", backlog=1, inbox=1)
        (told,) = registered(store)
        await store.submit("a")
        await eventually(lambda: told.got)
        told.running.clear()
        await tell(server, *"bcdefgh")  # which hold the reader up
        reading: Any = store._reading  # pyright: ignore[reportPrivateUsage]
        proxy.cut()
        await eventually(lambda: not reading._connection.is_connected)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        told.running.set()
        await closing
    *_, gap, closed = told.events
    assert (gap, closed) == (OUTAGE, "closed")
    assert "abcdefgh".startswith("".join(told.got))
    assert proxy.connections == 2
    logged.take("cannot read from Redis")


async def test_p10_closing_and_the_reader_tell_of_an_outage_once(
    server: Server, logged: Logged
) -> None:
    async with proxied(server.port) as proxy:
        store = store_at(proxy.port, policy="block", backlog=1, inbox=1)
        slow, quick = registered(store, 2)
        await store.submit("a")
        await eventually(lambda: slow.got == quick.got == ["a"])
        slow.running.clear()
        await tell(server, *"bcde")  # which fill the inbox
        await eventually(lambda: store.statistics().submitted == 5)
        proxy.cut()
        await noticed(logged)
        closing = asyncio.create_task(store.aclose())
        await eventually(lambda: proxy.connections == 3)
        await asyncio.sleep(0.1)  # the reader would tell of it as well
        slow.running.set()
        await closing
        assert [t.events for t in (slow, quick)] == [[*"abcde", OUTAGE, "closed"]] * 2
    again = "reads from Redis again"  # unless it was closed before
    logged.unexpected = [r for r in logged.unexpected if again not in r.getMessage()]
    logged.take("cannot read from Redis")


async def test_closing_does_not_wait_longer_than_it_may(server: Server, logged: Logged) -> None:
    async with proxied(server.port) as proxy:
        store = store_at(proxy.port, seconds=DEADLINE)
        (told,) = registered(store)
        await store.submit("a")
        await eventually(lambda: told.got)
        proxy.blackhole()
        with within(0.1):
            await store.aclose(timeout=0.1)
    assert told.events == ["a", "timeout"]
    logged.take("before everybody had everything")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="it counts the open files")
async def test_p7_what_redis_does_not_read_keeps_no_socket_open(
    server: Server, logged: Logged
) -> None:
    def sockets() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = sockets()
    async with store_at(server.port) as store:
        await store.submit("a")
        server.pause()
        with within(2 * QUICK), pytest.raises(OutcomeUnknownError):
            await store.submit("x" * 30_000_000)
    await eventually(lambda: sockets() <= before)
    server.resume()
    logged.take("cannot read from Redis")
