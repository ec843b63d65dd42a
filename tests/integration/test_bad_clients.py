"""Clients that stall, vanish, and talk nonsense: they harm nobody, and leave nothing."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import random
import signal
import socket
import time
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tornado.routing import URLSpec

from conftest import Logged
from integration.raw import UPGRADE, Raw, dialled, one_by_one, opened, request
from support import DEADLINE, Plain, balanced, eventually, program, serving
from tornadose import (
    BaseHandler,
    DataStore,
    EventSource,
    Message,
    Policy,
    QueueStore,
    Store,
    WebSocketSubscriber,
)
from tornadose.handlers.heartbeat import heartbeat_of

SMALL = 4096  # bytes, for the buffers of sockets
LARGE = 50_000  # bytes, more than fits into such buffers

both = pytest.mark.parametrize("websocket", [False, True], ids=["sse", "websocket"])


class Compressed(WebSocketSubscriber[Any]):
    def get_compression_options(self) -> dict[str, Any]:
        return {}


def rule(
    store: Store[str],
    websocket: bool,
    *,
    heartbeat: float = 15.0,
    write_timeout: float = 30.0,
    send_buffer: int | None = SMALL,
) -> URLSpec:
    kind: type[BaseHandler[str]] = WebSocketSubscriber if websocket else EventSource
    return kind.route(
        "/", store, heartbeat=heartbeat, write_timeout=write_timeout, send_buffer=send_buffer
    )


@asynccontextmanager
async def stalled(url: str, websocket: bool) -> AsyncGenerator[Raw, None]:
    """Subscribe with a small buffer, and read nothing but the head."""
    async with opened(url, websocket=websocket, receive_buffer=SMALL) as raw:
        yield raw


async def take(raw: Raw, text: str) -> None:
    """Read until the payload with this in it has come, to its end."""
    await raw.until(text.encode())
    while not any(text in payload for payload in raw.seen()):
        assert await raw.fill()


def large(number: int) -> str:
    return f"<{number}>" + "." * LARGE


def numbers(seen: list[str]) -> list[int]:
    return [int(text[1 : text.index(">")]) for text in seen if text.startswith("<")]


def gone(store: QueueStore[str] | DataStore[str]) -> bool:
    return not store.subscribers


def crowd(store: QueueStore[str], count: int) -> bool:
    return len(store.subscribers) == count


# ---- who never reads


@both
async def test_p3_p4_who_never_reads_is_let_go_and_others_get_everything_without_delay(
    websocket: bool,
) -> None:
    limit = 1.5
    async with (
        QueueStore[str](backlog=16, policy="drop_oldest") as store,
        serving(rule(store, websocket, write_timeout=limit)) as url,
        stalled(url, websocket) as stuck,
        opened(url, websocket=websocket) as one,
        opened(url, websocket=websocket) as other,
    ):
        delays: list[float] = []
        for n in range(60):
            started = time.monotonic()
            await store.submit(large(n))
            await take(one, f"<{n}>")
            await take(other, f"<{n}>")
            delays.append(time.monotonic() - started)
        assert max(delays) < limit / 2
        assert store.statistics().max_backlog <= 16
        await eventually(lambda: len(store.subscribers) == 2, deadline=limit + 1)
        await store.submit("end")
        for raw in (one, other):
            await take(raw, "end")
            assert numbers(raw.seen()) == list(range(60))
            assert "gap:overflow" not in raw.seen()
        await stuck.to_the_end()
        assert balanced(store.statistics())


@both
@pytest.mark.parametrize("kernel_helps", [True, False])
async def test_p4_who_never_reads_the_last_message_is_let_go_though_nothing_follows(
    kernel_helps: bool, websocket: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_helps:  # as on macOS and Windows
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket, write_timeout=0.3)) as url,
        stalled(url, websocket),
    ):
        started = time.monotonic()
        await store.submit("x" * 1_000_000)
        await eventually(lambda: gone(store), deadline=2)
        assert time.monotonic() - started > 0.25


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("kind", [EventSource, WebSocketSubscriber, Compressed])
async def test_p4_who_never_reads_costs_no_more_than_the_backlog_and_a_write_buffer(
    kind: type[BaseHandler[Any]],
) -> None:
    """150 messages pass by, of which a handful may be kept."""
    size, backlog = 40_000, 8
    async with (
        QueueStore[bytes](history=0, backlog=backlog, policy="drop_oldest") as store,
        serving(kind.route("/", store, send_buffer=SMALL)) as url,
        opened(url, websocket=kind is not EventSource, receive_buffer=SMALL),
    ):
        tracemalloc.start()
        try:
            before = traced()
            incompressible = random.Random(1)
            await one_by_one(
                store,
                (base64.b64encode(incompressible.randbytes(size * 3 // 4)) for _ in range(150)),
            )
            kept = traced() - before
        finally:
            tracemalloc.stop()
        assert len(store.subscribers) == 1
        assert store.statistics().max_backlog <= backlog
        assert kept < 5 * backlog * size


@both
async def test_p4_stalled_clients_share_what_is_queued_for_them(websocket: bool) -> None:
    """The second client and those after it cost references and a write buffer each."""
    size, backlog, clients = 20_000, 64, 5
    costs: list[int] = []
    for count in (1, clients):
        async with (
            QueueStore[str](history=0, backlog=backlog, policy="drop_oldest") as store,
            serving(rule(store, websocket)) as url,
        ):
            raws = [await dialled(url, SMALL) for _ in range(count)]  # none of which ever reads
            for raw in raws:
                await raw.send(request(url, UPGRADE if websocket else {}))
            await eventually(partial(crowd, store, count))
            tracemalloc.start()
            try:
                before = traced()
                await one_by_one(store, (f"{n:05}" * (size // 5) for n in range(2 * backlog)))
                costs.append(traced() - before)
            finally:
                tracemalloc.stop()
            assert len(store.subscribers) == count
            for raw in raws:
                raw.reset()
            await eventually(partial(gone, store), deadline=1)
    each = (costs[1] - costs[0]) / (clients - 1)
    assert each < 128 * 1024  # far from the 1.3 MB of a backlog


def handed_on(store: QueueStore[str], count: int) -> bool:
    return store.statistics().published == count


@both
@pytest.mark.parametrize("behind", [True, False], ids=["behind", "idle"])
async def test_p4_a_burst_does_not_bypass_the_backlog_of_who_never_reads(
    behind: bool, websocket: bool
) -> None:
    """However many messages are one batch, the write buffer has a limit."""
    size, backlog, burst = 20_000, 8, 500
    async with (
        QueueStore[str](history=0, backlog=backlog, policy="drop_oldest") as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as raw,
    ):
        if behind:
            await one_by_one(store, ["x" * LARGE])  # fills the buffers of the sockets
        first = store.statistics().published
        tracemalloc.start()
        try:
            before = traced()
            for done in range(burst, 5 * burst, burst):
                for n in range(burst):
                    store.submit_nowait(f"{n:05}" * (size // 5))
                await eventually(partial(handed_on, store, first + done))
            kept = traced() - before
        finally:
            tracemalloc.stop()
        assert kept < 5 * backlog * size
        raw.reset()
        await eventually(lambda: gone(store), deadline=1)


@both
async def test_p3_a_slow_reader_costs_each_message_once_and_not_its_backlog_again(
    websocket: bool,
) -> None:
    """What waits is not joined anew for each message that goes out."""
    size, count = 100_000, 60
    async with (
        QueueStore[str](history=0) as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as raw,
    ):
        await one_by_one(store, (f"<{n}>" + "." * size for n in range(count)))
        assert store.statistics().pending > count // 2
        await raw.until(b"<2>")
        tracemalloc.start()
        try:
            await raw.until(b"<3>")
            raw.buffer.clear()
            before = traced()
            tracemalloc.reset_peak()
            for n in range(4, 20):
                await raw.until(b"<%d>" % n)
                raw.buffer.clear()
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert peak < 30 * size  # the 16 that were rendered, and not all that wait
        raw.reset()
        await eventually(lambda: gone(store), deadline=1)


# ---- the policies


def check_holes(seen: list[str], last: int) -> int:
    """Demand a gap wherever numbers are missing, and nowhere else; count the missing."""
    expected, missing, told = 0, 0, False
    for text in seen:
        if text.startswith("gap:"):
            assert text == "gap:overflow"
            assert not told, "two gaps for one hole"
            told = True
            continue
        (number,) = numbers([text])
        assert (number > expected) == told, (number, expected)
        missing += number - expected
        expected, told = number + 1, False
    assert expected == last + 1
    return missing


@both
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_p2_p3_a_gap_stands_where_messages_were_dropped(
    policy: Policy, websocket: bool
) -> None:
    async with (
        QueueStore[str](backlog=5, policy=policy) as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as slow,
        opened(url, websocket=websocket) as prompt,
    ):
        for n in range(30):
            await store.submit(large(n))
            await take(prompt, f"<{n}>")
        assert store.statistics().dropped > 0
        resumed = asyncio.create_task(take(slow, "<30>"))
        await eventually(lambda: store.statistics().pending == 0)
        await store.submit(large(30))
        await resumed
        await take(prompt, "<30>")
        assert check_holes(slow.seen(), last=30) == store.statistics().dropped
        assert check_holes(prompt.seen(), last=30) == 0
        assert store.statistics().gaps == 1
        assert balanced(store.statistics())


@both
async def test_p3_p8_who_is_disconnected_comes_back_with_its_last_id_and_gets_all(
    websocket: bool,
) -> None:
    async with (
        QueueStore[str](backlog=5) as store,
        serving(rule(store, websocket)) as url,
        opened(url, websocket=websocket) as prompt,
    ):
        async with stalled(url, websocket) as slow:
            await store.submit("<0>")
            await take(slow, "<0>")
            await take(prompt, "<0>")
            for n in range(1, 30):
                await store.submit(large(n))
                await take(prompt, f"<{n}>")
            assert len(store.subscribers) == 1
            async with asyncio.timeout(1):  # no closing handshake
                await slow.to_the_end()
        seen = slow.seen()
        assert 0 < len(seen) < 30
        headers = {"Last-Event-ID": slow.last_id()}
        async with opened(url, websocket=websocket, headers=headers) as again:
            await take(again, "<29>")
            await store.submit(large(30))
            await take(again, "<30>")
            assert check_holes(seen + again.seen(), last=30) == 0
        await take(prompt, "<30>")
        assert check_holes(prompt.seen(), last=30) == 0


@both
async def test_p3_block_waits_for_all_laggards_together_and_then_lets_go_of_them(
    websocket: bool,
) -> None:
    limit = 0.6
    async with (
        QueueStore[str](backlog=5, policy="block", block_timeout=limit) as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as one,
        stalled(url, websocket) as two,
        opened(url, websocket=websocket) as prompt,
    ):
        delays: list[float] = []
        for n in range(30):
            started = time.monotonic()
            await store.submit(large(n))
            await take(prompt, f"<{n}>")
            delays.append(time.monotonic() - started)
        *_, second, longest = sorted(delays)
        assert second < limit * 0.9 < longest < limit * 1.9
        assert len(store.subscribers) == 1
        assert check_holes(prompt.seen(), last=29) == 0
        await one.to_the_end()
        await two.to_the_end()
        assert balanced(store.statistics())


@both
async def test_p2_block_loses_nothing_for_who_reads_in_time(websocket: bool) -> None:
    async with (
        QueueStore[str](backlog=3, inbox=3, policy="block") as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as slow,
    ):
        submitting = asyncio.create_task(one_by_one(store, (large(n) for n in range(30))))
        for n in range(30):
            await take(slow, f"<{n}>")
            assert store.statistics().max_backlog <= 3
        await submitting
        await eventually(lambda: store.statistics().delivered == 30)
        assert store.statistics().gaps == 0


@both
async def test_p2_a_newcomer_gets_nothing_that_was_accepted_before_it_and_waits_for_others(
    websocket: bool,
) -> None:
    async with (
        QueueStore[str](backlog=1, policy="block") as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as slow,
    ):
        for n in range(9):
            store.submit_nowait(large(n))
        await eventually(lambda: store.statistics().published > 1)
        async with opened(url, websocket=websocket) as newcomer:
            assert store.statistics().published < 9
            await store.submit(large(9))
            await take(slow, "<9>")
            await take(newcomer, "<9>")
            assert numbers(slow.seen()) == list(range(10))
            assert numbers(newcomer.seen()) == [9]


# ---- who reads slowly


@pytest.mark.parametrize("kind", [EventSource, WebSocketSubscriber, Compressed])
async def test_p3_a_slow_reader_that_makes_progress_is_not_let_go(
    kind: type[BaseHandler[Any]],
) -> None:
    """The limit is for the next 64 KiB, not for the whole message."""
    limit = 0.4
    message = base64.b64encode(random.Random(1).randbytes(1_500_000))
    async with (
        QueueStore[bytes]() as store,
        serving(kind.route("/", store, write_timeout=limit, send_buffer=SMALL)) as url,
        opened(url, websocket=kind is not EventSource, receive_buffer=SMALL) as slow,
    ):
        await store.submit(message)
        started, length = time.monotonic(), len(message) // 2
        while len(slow.buffer) < length:
            target = len(slow.buffer) + 100_000
            while len(slow.buffer) < target:
                assert await slow.fill(), f"let go after {len(slow.buffer)} bytes"
            await asyncio.sleep(limit / 4)  # this is its pace, not a wait
        assert time.monotonic() - started > 1.5 * limit
        await store.submit(b"<end>")
        while b"<end>" not in slow.buffer and kind is not Compressed:
            assert await slow.fill()
        assert len(store.subscribers) == 1


# ---- who goes away


@both
@pytest.mark.parametrize("way", ["fin", "rst", "half-close"])
async def test_p7_an_idle_client_that_leaves_is_deregistered_within_a_second(
    way: str, websocket: bool
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket, send_buffer=None)) as url,
        opened(url, websocket=websocket) as raw,
        opened(url, websocket=websocket) as other,
    ):
        await store.submit("before")
        await take(raw, "before")
        if way == "fin":
            raw.leave()
        elif way == "rst":
            raw.reset()
        else:
            raw.sock.shutdown(socket.SHUT_WR)
            await raw.to_the_end()
        await eventually(lambda: len(store.subscribers) == 1, deadline=1)
        await store.submit("after")
        await take(other, "after")
        assert other.seen() == ["before", "after"]


@both
@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_p7_who_leaves_in_mid_message_is_deregistered_within_a_second(
    way: str, websocket: bool
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket)) as url,
        stalled(url, websocket) as raw,
        opened(url, websocket=websocket) as other,
    ):
        await one_by_one(store, ["x" * 2_000_000, "behind it"])
        while len(raw.buffer) < 1_000_000:
            assert await raw.fill()
        if way == "fin":
            raw.leave()
        else:
            raw.reset()
        await eventually(lambda: len(store.subscribers) == 1, deadline=1)
        await take(other, "behind it")
        assert balanced(store.statistics())


@both
async def test_p7_a_half_close_in_mid_message_is_let_go_after_the_write_timeout_at_last(
    websocket: bool,
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket, write_timeout=0.5)) as url,
        stalled(url, websocket) as raw,
    ):
        await store.submit("x" * 2_000_000)
        raw.sock.shutdown(socket.SHUT_WR)
        await eventually(lambda: gone(store), deadline=1.5)


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_p7_who_sent_stray_bytes_and_leaves_is_deregistered_within_two_heartbeats(
    way: str,
) -> None:
    beat = 0.3
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket=False, heartbeat=beat)) as url,
        opened(url) as raw,
    ):
        await raw.send(b"stray")
        await raw.until(b":\n\n")  # a heartbeat, so the server has had time to see it
        assert len(store.subscribers) == 1
        if way == "fin":
            raw.leave()
        else:
            raw.reset()
        await eventually(lambda: gone(store), deadline=2 * beat + 0.1)


FRAMES = {
    "an unknown opcode": b"\x83\x80\0\0\0\0",
    "reserved bits": b"\xf1\x80\0\0\0\0",
    "a huge length": b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
    "a long ping": b"\x89\xfe\x01\x00\0\0\0\0" + bytes(256),
    "a continuation of nothing": b"\x80\x80\0\0\0\0",
    "text that is no UTF-8": b"\x81\x81\0\0\0\0\xff",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
async def test_p7_a_client_that_sends_bad_frames_is_let_go_alone(frame: bytes) -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket=True)) as url,
        opened(url, websocket=True) as bad,
        opened(url, websocket=True) as good,
    ):
        await bad.send(frame)
        await eventually(lambda: len(store.subscribers) == 1, deadline=1)
        await bad.to_the_end()
        await store.submit("still here")
        await take(good, "still here")


async def test_p7_a_frame_that_never_ends_hinders_no_message_and_no_leaving() -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket=True)) as url,
        opened(url, websocket=True) as raw,
    ):
        await raw.send(b"\x81\xfe\x10\x00\0\0\0\0half of it")
        await store.submit("message")
        await take(raw, "message")
        raw.leave()
        await eventually(lambda: gone(store), deadline=1)


@both
@pytest.mark.parametrize("kind", [QueueStore, DataStore])
@pytest.mark.parametrize("cursor", [None, "abc"])
async def test_p7_who_is_gone_before_the_answer_leaves_nothing(
    kind: type[QueueStore[str] | DataStore[str]], cursor: str | None, websocket: bool
) -> None:
    """The answer is written to a closed socket; the system's RST comes at once."""
    async with kind() as store, serving(rule(store, websocket)) as url:
        await store.submit("value")
        headers = {} if cursor is None else {"Last-Event-ID": cursor}
        for way in (Raw.leave, Raw.reset, Raw.leave):
            raw = await dialled(url)
            await raw.send(request(url, (UPGRADE if websocket else {}) | headers))
            way(raw)
        async with opened(url, websocket=websocket) as last:
            await store.submit("sentinel")
            await take(last, "sentinel")
        await eventually(lambda: gone(store), deadline=1)
        assert balanced(store.statistics())


GARBAGE = {
    "binary": bytes(range(256)) * 4 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "no HTTP": b"HELO example.org\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no end": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
    "half a request": b"GET / HT",
    "a bad header": b"GET / HTTP/1.1\r\nHost: x\r\n: : :\0\r\n\r\n",
    "nothing": b"",
}


@both
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_p7_garbage_requests_register_nobody_and_hinder_nobody(
    garbage: bytes, websocket: bool, logged: Logged
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket)) as url,
        opened(url, websocket=websocket) as good,
    ):
        bad = await dialled(url)
        await bad.send(garbage)
        bad.sock.shutdown(socket.SHUT_WR)
        await bad.to_the_end()
        assert b" 200 " not in bad.buffer
        assert b" 101 " not in bad.buffer
        assert len(store.subscribers) == 1
        assert store.statistics().offered == 0
        bad.leave()
        await store.submit("still here")
        await take(good, "still here")
    logged.unexpected = [r for r in logged.unexpected if not r.name.startswith("tornado.")]


# ---- churn


async def visit(url: str, number: int) -> None:
    """Come, stay for one message or not, and leave in one of many ways."""
    websocket = number % 2 == 0
    address = url + ("/ws" if websocket else "/sse")
    raw = await dialled(address)
    await raw.send(request(address, UPGRADE if websocket else {}))
    if number % 3:
        await raw.head()
    if number % 3 == 2:
        await raw.until(b"tick")
    if number % 5 == 0:
        raw.sock.shutdown(socket.SHUT_WR)
    if number % 7 < 3:
        raw.reset()
    else:
        raw.leave()


async def test_p7_five_hundred_visits_leave_nothing() -> None:
    async with QueueStore[str]() as store:
        rules = EventSource[str].route("/sse", store), WebSocketSubscriber[str].route("/ws", store)
        async with serving(*rules) as url:
            tasks = len(asyncio.all_tasks())
            for start in range(0, 500, 50):
                visits = asyncio.gather(*(visit(url, n) for n in range(start, start + 50)))
                while not visits.done():
                    await store.submit("tick")
                    await asyncio.sleep(0.001)
                await visits
            await eventually(lambda: gone(store), deadline=1)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks + 1, deadline=1)
            heartbeat = vars(heartbeat_of(15.0))
            assert not heartbeat["_due"]
            assert heartbeat["_timer"] is None
            books = store.statistics()
            assert books.offered > 0
            assert books.pending == 0
            assert balanced(books)


# ---- a client that is stopped


@asynccontextmanager
async def curl(url: str) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        program("curl"),
        "--silent",
        "--no-buffer",
        "--noproxy",
        "*",
        url,
        stdout=pipe,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def stop(process: asyncio.subprocess.Process) -> None:
    os.kill(process.pid, signal.SIGSTOP)


async def lines_until(process: asyncio.subprocess.Process, start: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE):
        while not lines or not lines[-1].startswith(start):
            line = (await process.stdout.readline()).decode()
            if not line:
                raise EOFError(lines[-3:])
            lines.append(line)
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


async def test_p3_a_stopped_process_delays_nobody_and_gets_the_rest_when_it_goes_on() -> None:
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket=False, send_buffer=65536)) as url,
        opened(url) as prompt,
        curl(url) as process,
    ):
        await eventually(lambda: len(store.subscribers) == 2)
        await store.submit(large(0))
        await lines_until(process, "data: <0>")
        stop(process)
        slowest = 0.0
        for n in range(1, 300):
            started = time.monotonic()
            await store.submit(large(n))
            await prompt.until(b"<%d>" % n)
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1.0  # its write timeout is 30 s
        assert store.statistics().pending > 0
        os.kill(process.pid, signal.SIGCONT)
        assert numbers(await lines_until(process, "data: <299>")) == list(range(1, 300))
        assert store.statistics().gaps == 0


async def test_p3_a_stopped_process_is_let_go_after_the_write_timeout() -> None:
    limit = 0.5
    async with (
        QueueStore[str]() as store,
        serving(rule(store, websocket=False, write_timeout=limit, send_buffer=65536)) as url,
        curl(url) as process,
    ):
        await eventually(lambda: len(store.subscribers) == 1)
        stop(process)
        for n in range(300):
            await store.submit(large(n))
        await eventually(lambda: gone(store), deadline=limit + 1.5)
        os.kill(process.pid, signal.SIGCONT)
        async with asyncio.timeout(DEADLINE):
            await process.communicate()
        assert process.returncode != 0  # curl has seen that this is no proper end


class Slow(EventSource[str]):
    """Overrides `publish` with something that never returns."""

    async def publish(self, message: Message[str], /) -> None:
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_p7_who_leaves_while_publish_hangs_is_deregistered_within_a_second(way: str) -> None:
    async with (
        QueueStore[str]() as store,
        serving(Slow.route("/", store)) as url,
        opened(url) as raw,
    ):
        await store.submit("hangs")
        await eventually(lambda: store.statistics().offered == 1)
        if way == "fin":
            raw.leave()
        else:
            raw.reset()
        await eventually(lambda: gone(store), deadline=1)
        assert balanced(store.statistics())


async def test_who_leaves_before_it_got_what_was_meant_for_it_alone_is_no_error() -> None:
    class Greeting(EventSource[int]):
        async def prepare(self) -> None:
            await self.submit(1)

    store = QueueStore[int](policy="block", backlog=1, block_timeout=DEADLINE)
    stalled = Plain[int]()
    stalled.running.clear()
    store.register(stalled)
    for number in range(3):  # of which the last waits for room, and who comes waits behind it
        await store.submit(number)
    async with serving(Greeting.route("/", store)) as url, opened(url) as client:
        await eventually(lambda: len(store.subscribers) == 2)
        client.leave()
        await eventually(lambda: len(store.subscribers) == 1)
        stalled.running.set()
        await eventually(lambda: stalled.got == [0, 1, 2])
    await store.aclose()
