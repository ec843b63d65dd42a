"""WebSockets, with the `websockets` package as the client."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tornado.routing import URLSpec
from tornado.web import HTTPError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from conftest import Logged
from integration.raw import (
    CLOSE,
    PING,
    TEXT,
    UPGRADE,
    Frame,
    dialled,
    masked,
    one_by_one,
    opened,
    request,
)
from support import DEADLINE, Plain, balanced, eventually, serving
from tornadose import (
    BaseStore,
    DataStore,
    Message,
    QueueStore,
    Store,
    StoreClosedError,
    WebSocketSubscriber,
)


@asynccontextmanager
async def client(url: str, *, cursor: str | None = None) -> AsyncGenerator[ClientConnection, None]:
    """Connect to a WebSocket, and always read what comes."""
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    address = url.replace("http", "ws", 1)
    async with connect(address, max_size=None, max_queue=None, additional_headers=headers) as ws:
        yield ws


async def take(ws: ClientConnection, count: int) -> list[Frame]:
    async with asyncio.timeout(DEADLINE):
        return [json.loads(await ws.recv()) for _ in range(count)]


async def take_until(ws: ClientConnection, last: object) -> list[Frame]:
    """Take messages up to the one with this payload."""
    taken: list[Frame] = []
    while not taken or taken[-1].get("data") != last:
        taken += await take(ws, 1)
    return taken


def payloads(frames: list[Frame]) -> list[object]:
    """Return the data of messages; for a gap the whole frame, so that it stands out."""
    return [frame.get("data", frame) for frame in frames]


async def close_code(ws: ClientConnection) -> int | None:
    """Read to the end, and return the code with which the server closed."""
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                await ws.recv()
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code


async def refused(url: str, **headers: str) -> int:
    """Return the status with which the server refuses the handshake."""
    with pytest.raises(InvalidStatus) as info:
        async with connect(url.replace("http", "ws", 1), additional_headers=headers):
            pass
    return info.value.response.status_code


# ---- what a message looks like


async def test_a_message_is_a_json_object_with_its_id_and_event_where_they_are_set() -> None:
    async with (
        QueueStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        first = await store.submit("a")
        second = await store.submit("b", event="news")
        assert await take(ws, 2) == [
            {"data": "a", "id": first.id},
            {"data": "b", "id": second.id, "event": "news"},
        ]


async def test_a_store_without_ids_sends_none() -> None:
    async with (
        DataStore(1) as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        assert await take(ws, 1) == [{"data": 1}]
        await store.submit(2, event="tick")
        assert await take(ws, 1) == [{"data": 2, "event": "tick"}]


PAYLOADS: list[tuple[object, object]] = [
    ("text", "text"),
    ("", ""),
    ('"quotes" \\ and\r\nlines\0\u2028', '"quotes" \\ and\r\nlines\0\u2028'),
    ("🌪 ü", "🌪 ü"),
    (b"bytes \xc3\xbc", "bytes ü"),
    (bytearray(b"more bytes"), "more bytes"),
    ({"nested": [1, 2.5, None, True, {"x": "ü"}]}, {"nested": [1, 2.5, None, True, {"x": "ü"}]}),
    ([], []),
    (0, 0),
    (None, None),
    (False, False),
]


async def test_str_bytes_and_json_payloads_arrive_as_the_json_value_they_stand_for() -> None:
    async with (
        QueueStore[object]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        for sent, _ in PAYLOADS:
            await store.submit(sent)
        got = await take(ws, len(PAYLOADS))
        assert [frame["data"] for frame in got] == [expected for _, expected in PAYLOADS]


async def test_the_text_of_an_encoder_is_the_json_string_under_data() -> None:
    async with QueueStore[int]() as store:
        rule = WebSocketSubscriber[int].route("/", store, encode=lambda n: f'"{n}" is\n{n}')
        async with serving(rule) as url, client(url) as ws:
            message = await store.submit(7, event="number")
            expected = {"data": '"7" is\n7', "id": message.id, "event": "number"}
            assert await take(ws, 1) == [expected]


async def test_p9_what_cannot_be_encoded_is_a_gap_and_disconnects_nobody(logged: Logged) -> None:
    poison: list[object] = [float("nan"), object(), b"\xff", "\ud800", {1: {2, 3}}]
    async with (
        QueueStore[object]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
    ):
        async with client(url) as one, client(url) as other:
            before = await store.submit("before")
            for bad in poison:
                await store.submit(bad)
            await store.submit("after")
            for ws in (one, other):
                first, *rest = await take_until(ws, "after")
                assert first["data"] == "before"
                gaps = [{"reason": "poisoned", "after": before.id}] * len(poison)
                assert [frame.get("gap") for frame in rest[:-1]] == gaps
        books = store.statistics()
        assert books.poisoned == 2 * len(poison)
        assert balanced(books)
    logged.take("cannot be encoded", times=len(poison))  # once each, not once per client


async def test_p9_an_encoder_that_returns_no_string_poisons_that_message_alone(
    logged: Logged,
) -> None:
    def encode(n: int) -> str:
        return "null" if n else None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    async with (
        QueueStore[int]() as store,
        serving(WebSocketSubscriber[int].route("/", store, encode=encode)) as url,
        client(url) as ws,
    ):
        await store.submit(0)
        good = await store.submit(1)
        gap = {"reason": "poisoned", "after": None}
        assert await take(ws, 2) == [{"gap": gap}, {"data": "null", "id": good.id}]
    logged.take("cannot be encoded")


# ---- order, resume


async def test_p1_bursts_and_single_messages_arrive_in_order() -> None:
    async with (
        QueueStore[int]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        for n in range(2000):
            await store.submit(n)
            if n % 300 == 0:
                await asyncio.sleep(0)
        assert payloads(await take(ws, 2000)) == list(range(2000))


async def submitting(store: QueueStore[int], first: int, count: int) -> None:
    """Submit numbers, with a pause of uneven length after each few."""
    for n in range(first, first + count):
        await store.submit(n)
        if n % 7 == 0:
            await asyncio.sleep(0.001 * (n % 3))


@pytest.mark.parametrize("by", ["header", "query", "both"])
async def test_p8_resumed_while_others_submit_a_client_gets_each_message_once(by: str) -> None:
    async with QueueStore[int]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        ids = [(await store.submit(n)).id or "" for n in range(500)]
        work = asyncio.create_task(submitting(store, 500, 500))
        for seen in (0, 123, 499):
            cursor = ids[seen]
            stale = ids[7] if by == "both" else cursor  # on a reconnect the URL is stale
            query = "" if by == "header" else f"?last_event_id={quote(stale)}"
            header = None if by == "query" else cursor
            async with client(f"{url}/{query}", cursor=header) as ws:
                got = await take(ws, 999 - seen)
                assert payloads(got) == list(range(seen + 1, 1000))
        await work
        assert store.statistics().resumed == 3
        assert store.statistics().gaps == 0


async def test_p8_a_client_that_comes_back_again_and_again_loses_and_repeats_nothing() -> None:
    async with QueueStore[int]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        got: list[object] = []
        cursor = (await store.submit(-1)).id
        work = asyncio.create_task(submitting(store, 0, 600))
        while len(got) < 600:
            async with client(url, cursor=cursor) as ws:
                for frame in await take(ws, min(1 + len(got) % 50, 600 - len(got))):
                    got.append(frame["data"])
                    cursor = str(frame["id"])
        await work
        assert got == list(range(600))


async def test_p2_an_empty_id_is_none_and_history_is_not_sent() -> None:
    async with QueueStore[str]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        await store.submit("history")
        async with client(f"{url}/?last_event_id=", cursor="") as ws:
            await store.submit("live")
            assert payloads(await take(ws, 1)) == ["live"]


GARBAGE = [
    "%00",
    "%ff%fe",
    "abc",
    "0",
    "-1",
    "%0a%0d",
    "000000000000-1",
    "1" * 30000,
    "%F0%9F%8C%AA",
    "'%20OR%201%3D1",
    "$",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: text[:12])
async def test_p8_a_garbage_id_in_the_query_is_a_gap_and_never_an_error(garbage: str) -> None:
    async with QueueStore[str]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        await store.submit("history")
        async with client(f"{url}/?last_event_id={garbage}") as ws:
            await store.submit("live")
            gap, live = await take(ws, 2)
            reason = "restarted" if garbage == "000000000000-1" else "unknown"
            told = gap["gap"]
            assert isinstance(told, dict)
            assert told["reason"] == reason
            assert live["data"] == "live"


@pytest.mark.parametrize("garbage", ["abc", "x" * 30000, "\x80\xff", "a,b; c=d", "1 2\t3"])
async def test_p8_a_garbage_id_in_the_header_is_a_gap_and_never_an_error(garbage: str) -> None:
    async with QueueStore[str]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        headers = {"Last-Event-ID": garbage}
        async with opened(url, websocket=True, headers=headers) as raw:
            await store.submit("live")
            await raw.until(b"live")
            gap, live = raw.messages()
            assert gap == {"gap": {"reason": "unknown", "after": None}}
            assert live["data"] == "live"


async def test_p8_an_id_older_than_the_history_is_a_gap_where_the_hole_is() -> None:
    async with (
        QueueStore[int](history=10) as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
    ):
        ids = [(await store.submit(n)).id for n in range(30)]
        async with client(url, cursor=ids[5]) as ws:
            gap = {"gap": {"reason": "expired", "after": ids[5]}}
            assert payloads(await take(ws, 11)) == [gap, *range(20, 30)]


async def test_p8_an_id_for_a_store_that_cannot_resume_is_a_gap() -> None:
    async with (
        DataStore("now") as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url, cursor="of-another-store") as ws,
    ):
        gap = {"gap": {"reason": "unknown", "after": None}}
        assert payloads(await take(ws, 2)) == [gap, "now"]


# ---- compression, sizes


class Compressed(WebSocketSubscriber[Any]):
    def get_compression_options(self) -> dict[str, Any]:
        return {}


SIZES = [*range(200), *range(65400, 65600, 7), 70000, 1 << 20, 3]


@pytest.mark.parametrize("kind", [WebSocketSubscriber, Compressed])
async def test_p1_messages_of_all_sizes_arrive_whole_and_in_order(
    kind: type[WebSocketSubscriber[Any]],
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(kind.route("/", store)) as url,
        client(url) as ws,
    ):
        for size in SIZES:
            await store.submit("x" * size)
        got = await take(ws, len(SIZES))
        assert [len(str(frame["data"])) for frame in got] == SIZES


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (125, "817d"),
        (126, "817e007e"),
        (40_000, "817e9c40"),
        (0xFFFF, "817effff"),
        (0x10000, "817f0000000000010000"),
    ],
)
async def test_the_length_of_a_frame_takes_the_fewest_bytes(length: int, header: str) -> None:
    """RFC 6455, 5.2 demands it."""
    async with (
        DataStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        opened(url, websocket=True) as raw,
    ):
        await store.submit("x" * (length - len('{"data":""}')))
        await raw.until(b'"}')
        assert bytes(raw.buffer).startswith(bytes.fromhex(header) + b'{"data":"x')
        assert len(raw.buffer) == len(header) // 2 + length


async def test_compression_is_negotiated_and_every_client_gets_every_burst() -> None:
    async with QueueStore[int]() as store, serving(Compressed.route("/", store)) as url:
        address = url.replace("http", "ws", 1)
        async with client(url) as one, connect(address, compression=None) as plain:
            assert "permessage-deflate" in str(one.response and one.response.headers)
            assert "permessage-deflate" not in str(plain.response and plain.response.headers)
            for n in range(1000):
                await store.submit(n)
                if n % 100 == 0:
                    await asyncio.sleep(0)
            for ws in (one, plain):
                assert payloads(await take(ws, 1000)) == list(range(1000))


async def test_p8_a_compressed_client_resumes() -> None:
    async with QueueStore[int]() as store, serving(Compressed.route("/", store)) as url:
        first = await store.submit(0)
        for n in range(1, 300):
            await store.submit(n)
        async with client(url, cursor=first.id) as ws:
            await store.submit(300)
            assert payloads(await take(ws, 300)) == list(range(1, 301))


async def test_p9_poison_leaves_the_compressor_in_step(logged: Logged) -> None:
    async with (
        QueueStore[object]() as store,
        serving(Compressed.route("/", store)) as url,
        client(url) as ws,
    ):
        for payload in ("a" * 1000, float("nan"), "a" * 1000, "end"):
            await store.submit(payload)
        got = await take_until(ws, "end")
        assert ["gap" in frame for frame in got] == [False, True, False, False]
    logged.take("cannot be encoded")


@pytest.mark.parametrize("kind", [WebSocketSubscriber, Compressed])
async def test_p3_a_client_that_has_caught_up_is_not_let_go_later(
    kind: type[WebSocketSubscriber[Any]],
) -> None:
    """A write that the socket refused at first starts a time limit, which must end."""
    limit = 0.3
    async with QueueStore[str]() as store:
        rule = kind.route("/", store, write_timeout=limit, send_buffer=8192)
        async with serving(rule) as url, opened(url, websocket=True, receive_buffer=8192) as raw:
            await store.submit("x" * 500_000)
            await raw.until(b'"id"')
            caught_up = time.monotonic()
            ticks = 0
            while time.monotonic() < caught_up + 2 * limit:
                await store.submit(f"tick-{ticks};")
                await raw.until(b"tick-%d;" % ticks)
                ticks += 1
                await asyncio.sleep(0.01)
            assert store.statistics().subscribers == 1


class Answering(WebSocketSubscriber[str]):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message * 500_000)


async def test_p3_a_client_that_has_read_what_tornado_wrote_is_not_let_go_later() -> None:
    """Who does not read is let go by a time limit that began after it had caught up."""
    async with QueueStore[str]() as store:
        rule = Answering.route("/", store, write_timeout=0.4, send_buffer=8192)
        async with (
            serving(rule) as url,
            opened(url, websocket=True, receive_buffer=8192) as raw,
            opened(url, websocket=True, receive_buffer=8192),
        ):
            reading, stalled = store.subscribers
            assert isinstance(reading, Answering)
            assert isinstance(stalled, Answering)
            await reading.submit("x" * 500_000)
            await raw.send(masked(TEXT, b"y"))  # what it answers stands behind
            await raw.until(b"y" * 500_000)
            await stalled.submit("x" * 500_000)
            await eventually(lambda: store.subscribers == (reading,))
            await store.submit("still here")
            await raw.until(b"still here")


async def test_p3_one_that_sends_pings_and_never_reads_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")  # as where the kernel does not notice it
    async with QueueStore[str]() as store:
        rule = WebSocketSubscriber[str].route(
            "/", store, heartbeat=0.05, write_timeout=0.4, send_buffer=8192
        )
        async with serving(rule) as url, opened(url, websocket=True, receive_buffer=8192) as raw:

            async def flood() -> None:
                with suppress(ConnectionError):
                    while True:
                        await raw.send(masked(PING, b"x" * 125) * 100)

            flooding = asyncio.create_task(flood())
            await eventually(lambda: store.subscribers == ())
            await flooding


# ---- Tornado's side of a WebSocket: open, close, ping, what the client sends


def opening(store: Store[str], log: list[str], *, heartbeat: float = 15.0) -> URLSpec:
    """Note when `open` returned, what came, and when it was over."""

    class Opening(WebSocketSubscriber[str]):
        def open(self, *args: str, **kwargs: str) -> None:
            super().open(*args, **kwargs)
            log.append("open returned")

        def on_message(self, message: str | bytes) -> None:
            log.append(f"message {message!r}")

        def on_pong(self, data: bytes) -> None:
            log.append("pong")

        def on_close(self) -> None:
            log.append(f"close {self.close_code} {self.close_reason}")

    return Opening.route("/", store, heartbeat=heartbeat)


async def test_open_returns_and_what_the_client_sends_is_seen_in_order() -> None:
    log: list[str] = []
    async with QueueStore[str]() as store, serving(opening(store, log)) as url:
        async with client(url) as ws:
            assert log == ["open returned"]
            await ws.send("text")
            await ws.send(b"bytes")
            await ws.close(4321, "enough")
        await eventually(lambda: len(log) == 4, deadline=1)
        assert log[1:] == ["message 'text'", "message b'bytes'", "close 4321 enough"]
        assert store.subscribers == ()


@pytest.mark.parametrize("kind", [WebSocketSubscriber, Compressed])
async def test_p7_a_close_frame_is_seen_within_a_second(
    kind: type[WebSocketSubscriber[Any]],
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(kind.route("/", store)) as url,
        client(url) as ws,
        client(url) as other,
    ):
        await store.submit("both")
        await take(ws, 1)
        await ws.close()
        await eventually(lambda: len(store.subscribers) == 1, deadline=1)
        await store.submit("one")
        assert payloads(await take(other, 2)) == ["both", "one"]


async def test_pings_of_the_client_are_answered_while_messages_flow() -> None:
    async with (
        QueueStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        count = 0
        for _ in range(20):
            pong = await ws.ping()
            for _ in range(20):
                await store.submit(f"{count}:" + "x" * 5000)
                count += 1
            async with asyncio.timeout(DEADLINE):
                got = await take(ws, 20)
                await pong
            assert len(got) == 20
        assert store.statistics().delivered == count


async def test_heartbeats_reach_the_client_as_pings_and_it_answers() -> None:
    log: list[str] = []
    async with (
        QueueStore[str]() as store,
        serving(opening(store, log, heartbeat=0.05)) as url,
        client(url) as ws,
    ):
        await eventually(lambda: log.count("pong") >= 3, deadline=2)
        await store.submit("still here")
        assert payloads(await take(ws, 1)) == ["still here"]


async def test_heartbeats_can_be_off() -> None:
    async with QueueStore[str]() as store:
        quiet = WebSocketSubscriber[str].route("/quiet", store, heartbeat=None)
        beating = WebSocketSubscriber[str].route("/", store, heartbeat=0.05)
        async with (
            serving(quiet, beating) as url,
            opened(f"{url}/quiet", websocket=True) as raw,
            opened(url, websocket=True) as other,
        ):
            while len(other.frames()) < 3:
                await other.fill()
            await store.submit("sentinel")
            await raw.until(b"sentinel")
            assert [opcode for opcode, _ in raw.frames()] == [1]


async def test_tornados_own_ping_interval_works_and_replaces_the_heartbeat() -> None:
    log: list[str] = []
    async with QueueStore[str]() as store:
        rule = opening(store, log, heartbeat=0.01)
        settings = {"websocket_ping_interval": 0.1, "websocket_ping_timeout": 0.1}
        async with (
            serving(rule, **settings) as url,
            client(url) as ws,
            opened(url, websocket=True) as deaf,
        ):
            started = time.monotonic()
            await eventually(lambda: log.count("pong") >= 3, deadline=2)
            assert time.monotonic() - started > 0.2  # not the heartbeat's
            while CLOSE not in [opcode for opcode, _ in deaf.frames()]:
                assert await deaf.fill()  # it answers no ping
            deaf.leave()
            await store.submit("still here")
            assert payloads(await take(ws, 1)) == ["still here"]
            await eventually(lambda: len(store.subscribers) == 1, deadline=1)


async def test_what_the_client_sends_is_ignored_by_default() -> None:
    async with (
        QueueStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        await ws.send("hello")
        await ws.send(b"\x00" * 100_000)
        async with asyncio.timeout(DEADLINE):
            await (await ws.ping())  # so it has read both
        await store.submit("answer")
        assert payloads(await take(ws, 1)) == ["answer"]


class Chat(WebSocketSubscriber[str]):
    async def on_message(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self.store.submit(message)


async def test_a_chat_handler_submits_what_it_hears() -> None:
    async with (
        QueueStore[str]() as store,
        serving(Chat.route("/", store)) as url,
        client(url) as one,
        client(url) as other,
    ):
        for n in range(50):
            await (one, other)[n % 2].send(f"line {n}")
        talk = await take(one, 50)
        assert await take(other, 50) == talk
        assert sorted(map(str, payloads(talk))) == sorted(f"line {n}" for n in range(50))


# ---- who is refused


class Guarded(WebSocketSubscriber[str]):
    def prepare(self) -> Awaitable[None] | None:
        status = self.get_query_argument("status", "")
        if status == "finish":
            self.set_status(401)
            self.finish("who are you?")
        elif status:
            raise HTTPError(int(status))
        return None


class GuardedEarly(Guarded):
    """Registers in `initialize`, as 0.5 asked."""

    def initialize(self, store: Store[str], **options: Any) -> None:
        super().initialize(store, **options)
        store.register(self)


@pytest.mark.parametrize("kind", [Guarded, GuardedEarly])
@pytest.mark.parametrize(("status", "expected"), [("401", 401), ("403", 403), ("finish", 401)])
async def test_who_is_refused_in_prepare_is_never_registered(
    kind: type[Guarded], status: str, expected: int, logged: Logged
) -> None:
    async with QueueStore[str]() as store, serving(kind.route("/", store)) as url:
        assert await refused(f"{url}/?status={status}") == expected
        assert store.subscribers == ()
        assert store.statistics().offered == 0
    logged.take(f"{expected} GET")


@pytest.mark.parametrize("kind", [Guarded, GuardedEarly])
async def test_an_origin_elsewhere_is_refused(kind: type[Guarded], logged: Logged) -> None:
    async with QueueStore[str]() as store, serving(kind.route("/", store)) as url:
        assert await refused(url, Origin="http://evil.example") == 403
        assert store.subscribers == ()
    logged.take("403 GET")


BAD_HANDSHAKES: list[dict[str, str]] = [
    {},
    {"Upgrade": "websocket"},
    {"Connection": "Upgrade"},
    {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
    {"Upgrade": "h2c", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
]


@pytest.mark.parametrize("kind", [Guarded, GuardedEarly])
@pytest.mark.parametrize("headers", BAD_HANDSHAKES, ids=lambda headers: "+".join(headers))
async def test_a_bad_handshake_is_answered_400_and_registers_nobody(
    kind: type[Guarded], headers: dict[str, str], logged: Logged
) -> None:
    async with QueueStore[str]() as store, serving(kind.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(request(url, headers))
        assert (await raw.head()).startswith(b"HTTP/1.1 400")
        raw.leave()
        assert store.subscribers == ()
    logged.take("400 GET")


@pytest.mark.parametrize("kind", [Guarded, GuardedEarly])
async def test_an_unknown_version_is_answered_426_and_registers_nobody(
    kind: type[Guarded], logged: Logged
) -> None:
    async with QueueStore[str]() as store, serving(kind.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(request(url, UPGRADE | {"Sec-WebSocket-Version": "6"}))
        assert (await raw.head()).startswith(b"HTTP/1.1 426")
        raw.leave()
        assert store.subscribers == ()
    logged.take("426 GET")


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE"])
async def test_other_methods_register_nobody(method: str, logged: Logged) -> None:
    async with QueueStore[str]() as store, serving(GuardedEarly.route("/", store)) as url:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.request(method, url)).status_code == 405
        assert store.subscribers == ()
    logged.take(f"405 {method}")


# ---- what subclasses may do


class Overriding(WebSocketSubscriber[Any]):
    """Overrides `publish`, and writes in its own format."""

    async def publish(self, message: Message[Any], /) -> None:
        await super().publish(Message({"mine": message.data}))


class Writing(WebSocketSubscriber[Any]):
    """Overrides `publish` with nothing of this package, as in 0.5."""

    async def publish(self, message: Message[Any], /) -> None:
        await self.write_message(json.dumps({"data": {"mine": message.data}}))


@pytest.mark.parametrize("kind", [Overriding, Writing])
async def test_who_overrides_publish_gets_every_message_through_it(
    kind: type[WebSocketSubscriber[Any]],
) -> None:
    async with (
        QueueStore[object](backlog=5000) as store,
        serving(kind.route("/", store, send_buffer=8192)) as url,
        opened(url, websocket=True, receive_buffer=8192) as raw,
    ):
        for n in range(500):  # a burst
            await store.submit(n)
        await raw.until(b'"mine": 499}' if kind is Writing else b'"mine":499}')
        await one_by_one(store, ["x" * 100_000] * 10)  # a stall
        assert store.statistics().pending > 0
        for n in range(500, 700):
            await store.submit(n)
            await asyncio.sleep(0)
        await raw.until(b'"mine": 699}' if kind is Writing else b'"mine":699}')
        mine = [frame["data"] for frame in raw.messages()]
        numbers = [*range(500), *["x" * 100_000] * 10, *range(500, 700)]
        assert mine == [{"mine": n} for n in numbers]


class Careless(WebSocketSubscriber[str]):
    """Overrides every hook without calling super()."""

    def on_close(self) -> None:
        pass

    def on_connection_close(self) -> None:
        pass

    def on_finish(self) -> None:
        pass

    def on_ws_connection_close(
        self, close_code: int | None = None, close_reason: str | None = None
    ) -> None:
        pass


@pytest.mark.parametrize("way", ["close", "fin", "reset"])
async def test_p7_who_overrides_the_hooks_without_super_leaks_nothing(way: str) -> None:
    async with (
        QueueStore[str]() as store,
        serving(Careless.route("/", store)) as url,
        opened(url, websocket=True) as raw,
    ):
        assert len(store.subscribers) == 1
        if way == "close":
            await raw.send(masked(CLOSE, b"\x03\xe8"))
        elif way == "fin":
            raw.leave()
        else:
            raw.reset()
        await eventually(lambda: not store.subscribers, deadline=1)


class Early(WebSocketSubscriber[str]):
    def initialize(self, store: Store[str], **options: Any) -> None:
        self.store = store
        self.store.register(self)


class EarlyWriting(Early):
    async def publish(self, message: Message[str], /) -> None:
        await self.write_message(json.dumps({"data": message.data}))


class InOpen(WebSocketSubscriber[str]):
    """Registers in `open` by itself, as 0.5 did."""

    def open(self) -> None:
        self.store.register(self)


@pytest.mark.parametrize("kind", [Early, EarlyWriting, InOpen])
async def test_a_handler_that_registers_by_itself_works_and_leaves(
    kind: type[WebSocketSubscriber[str]],
) -> None:
    async with DataStore("first") as store, serving(kind.route("/", store)) as url:
        async with client(url) as ws:
            assert payloads(await take(ws, 1)) == ["first"]
            await store.submit("second")
            assert payloads(await take(ws, 1)) == ["second"]
            assert len(store.subscribers) == 1
        await eventually(lambda: not store.subscribers, deadline=1)


class Greeting(WebSocketSubscriber[str]):
    async def prepare(self) -> None:
        await self.submit("hello", event="greeting")
        await self.submit("again")


class GreetingInOpen(Greeting, InOpen):
    """Greets, and registers by itself."""


@pytest.mark.parametrize("kind", [Greeting, GreetingInOpen])
async def test_what_is_submitted_before_the_handshake_arrives_first(
    kind: type[Greeting],
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(kind.route("/", store)) as url,
        client(url) as ws,
    ):
        await store.submit("news")
        first, *rest = await take(ws, 3)
        assert first == {"data": "hello", "event": "greeting"}
        assert payloads(rest) == ["again", "news"]


@pytest.mark.parametrize("subscribed", [False, True])
async def test_what_is_submitted_before_the_handshake_precedes_what_open_submits(
    subscribed: bool,
) -> None:
    class GreetingTwice(Greeting):
        async def open(self) -> None:
            if subscribed:
                super().open()
            await self.submit("welcome")
            if not subscribed:
                super().open()

    async with (
        QueueStore[str]() as store,
        serving(GreetingTwice.route("/", store)) as url,
        client(url) as ws,
    ):
        assert payloads(await take(ws, 3)) == ["hello", "again", "welcome"]


async def test_submit_of_a_handler_reaches_its_client_alone_in_order_with_the_stream() -> None:
    async with (
        QueueStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as one,
        client(url) as other,
    ):
        first, second = store.subscribers
        assert isinstance(first, WebSocketSubscriber)
        assert isinstance(second, WebSocketSubscriber)
        await store.submit("all 1")
        await take(other, 1)
        await first.submit("one", event="private")
        await store.submit("all 2")
        got = await take(one, 3)
        assert payloads(got) == ["all 1", "one", "all 2"]
        assert got[1] == {"data": "one", "event": "private"}
        assert payloads(await take(other, 1)) == ["all 2"]


async def test_submit_of_a_handler_comes_behind_what_waits_in_the_backlog() -> None:
    async with QueueStore[str]() as store:
        rule = WebSocketSubscriber[str].route("/", store, send_buffer=8192)
        async with (
            serving(rule) as url,
            opened(url, websocket=True, receive_buffer=8192) as raw,
        ):
            (handler,) = store.subscribers
            assert isinstance(handler, WebSocketSubscriber)
            await one_by_one(store, [f"{n}" * 200_000 for n in range(10)])
            assert store.statistics().pending > 0
            alone = asyncio.ensure_future(handler.submit("alone"))
            await asyncio.sleep(0)
            await store.submit("end")
            await raw.until(b'"end"')
            await alone
            got = [str(frame["data"])[:5] for frame in raw.messages()]
            assert got == [*(f"{n}" * 5 for n in range(10)), "alone", "end"]


async def test_concurrent_publishing_writes_each_message_whole() -> None:
    async with (
        QueueStore[str]() as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
        client(url) as ws,
    ):
        (handler,) = store.subscribers
        texts = [str(n) * 40_000 for n in range(30)]
        calls = [handler.publish(Message(text)) for text in texts]
        work = asyncio.gather(*calls)
        assert payloads(await take(ws, 30)) == texts
        await work


# ---- the end


@pytest.mark.parametrize("kind", [WebSocketSubscriber, Compressed])
async def test_aclose_delivers_every_accepted_message_and_then_closes_with_1001(
    kind: type[WebSocketSubscriber[Any]],
) -> None:
    async with QueueStore[int]() as store, serving(kind.route("/", store)) as url:
        async with client(url) as one, client(url) as other:
            for n in range(1000):
                await store.submit(n)
            closing = asyncio.create_task(store.aclose())
            for ws in (one, other):
                assert payloads(await take(ws, 1000)) == list(range(1000))
                assert await close_code(ws) == 1001
            await closing
        with pytest.raises(StoreClosedError):
            await store.submit(0)


@pytest.mark.parametrize("kind", [WebSocketSubscriber, Compressed])
async def test_no_message_follows_the_close_frame(kind: type[WebSocketSubscriber[Any]]) -> None:
    """RFC 6455, 5.5.1 demands it."""
    async with (
        QueueStore[str]() as store,
        serving(kind.route("/", store)) as url,
        opened(url, websocket=True) as raw,
    ):
        (handler,) = store.subscribers
        assert isinstance(handler, kind)
        handler.close()
        await one_by_one(store, ["late"])
        await raw.send(masked(CLOSE, b"\x03\xe8"))
        await raw.to_the_end()
        assert [opcode for opcode, _ in raw.frames()] == [CLOSE]


async def test_a_client_that_comes_after_aclose_is_closed_with_1001() -> None:
    async with QueueStore[int]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        await store.aclose()
        async with client(url) as ws:
            assert await close_code(ws) == 1001


async def test_p3_a_straggler_that_never_reads_is_aborted_at_the_deadline(
    logged: Logged,
) -> None:
    store = QueueStore[str]()
    rule = WebSocketSubscriber[str].route("/", store, send_buffer=8192)
    async with serving(rule) as url, opened(url, websocket=True, receive_buffer=8192) as raw:
        async with client(url) as prompt:
            for _ in range(10):
                await store.submit("x" * 100_000)
            started = time.monotonic()
            closing = asyncio.create_task(store.aclose(timeout=1.0))
            assert len(await take(prompt, 10)) == 10
            assert await close_code(prompt) == 1001
            assert time.monotonic() - started < 0.8
            await closing
            assert 0.9 < time.monotonic() - started < 3
        await raw.to_the_end()
        assert store.statistics().subscribers == 0
        assert balanced(store.statistics())
    logged.take("is closed before everybody had everything")


async def test_p3_one_that_reads_all_but_never_answers_the_close_frame_is_aborted(
    logged: Logged,
) -> None:
    store = QueueStore[str]()
    async with (
        serving(WebSocketSubscriber.route("/", store)) as url,
        opened(url, websocket=True) as raw,
    ):
        await store.submit("last")
        started = time.monotonic()
        await store.aclose(timeout=0.3)
        await raw.to_the_end()
        assert time.monotonic() - started < 3  # Tornado alone would give it five seconds
        assert raw.frames()[0][1].startswith(b'{"data":"last"')
        opcode, payload = raw.frames()[1]
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, 1001)
    logged.take("is closed before everybody had everything")


async def test_one_subscriber_too_many_is_closed_with_1013() -> None:
    async with (
        QueueStore[str](max_subscribers=1) as store,
        serving(WebSocketSubscriber.route("/", store)) as url,
    ):
        async with client(url) as first:
            async with client(url) as second:
                assert await close_code(second) == 1013
            await store.submit("for the first")
            assert payloads(await take(first, 1)) == ["for the first"]
        await eventually(lambda: not store.subscribers, deadline=1)
        async with client(url) as third:
            await store.submit("for the third")
            assert payloads(await take(third, 1)) == ["for the third"]


class Failing(BaseStore[str]):
    def initialize(self) -> None:
        self.waiting = asyncio.Event()

    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        self.waiting.set()
        return Message(data, event=event)

    async def publish(self) -> None:
        await self.waiting.wait()
        raise ZeroDivisionError("the backend is gone")


async def test_a_store_whose_publish_raises_closes_its_clients_with_1011(logged: Logged) -> None:
    store = Failing()
    async with serving(WebSocketSubscriber.route("/", store)) as url:
        async with client(url) as one, client(url) as other:
            await store.submit("boom")
            assert await close_code(one) == 1011
            assert await close_code(other) == 1011
        (record,) = logged.take("publish() of")
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ZeroDivisionError)
    await store.aclose()


class Raising(WebSocketSubscriber[str]):
    async def publish(self, message: Message[str], /) -> None:
        if message.data == "bad":
            raise ZeroDivisionError(message.data)
        await super().publish(message)


async def test_p3_a_publish_that_raises_closes_that_client_with_1011(logged: Logged) -> None:
    async with QueueStore[str]() as store:
        rules = Raising.route("/raising", store), WebSocketSubscriber.route("/", store)
        async with serving(*rules) as url, client(f"{url}/raising") as bad, client(url) as good:
            await store.submit("bad")
            await store.submit("good")
            assert await close_code(bad) == 1011
            assert payloads(await take(good, 2)) == ["bad", "good"]
            assert len(store.subscribers) == 1
    (record,) = logged.take("publishing to")
    assert record.exc_info is not None


async def test_p3_others_of_the_store_are_no_business_of_a_websocket() -> None:
    async with QueueStore[str]() as store, serving(WebSocketSubscriber.route("/", store)) as url:
        plain = Plain[str]()
        plain.running.clear()
        store.register(plain)
        async with client(url) as ws:
            for n in range(100):
                await store.submit(str(n))
            assert len(await take(ws, 100)) == 100
        store.deregister(plain)
