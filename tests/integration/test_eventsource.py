"""The event stream as clients see it that are not ours."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import pytest
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from integration.clients import (
    SMALL,
    Events,
    Raw,
    curl,
    event_stream,
    free_port,
    http_client,
    line_of,
    listening,
    output_of,
    running,
)
from support import DEADLINE, balanced, eventually, server_side, serving
from tornadose import (
    BaseHandler,
    DataStore,
    EventSource,
    Message,
    QueueStore,
    Store,
    Subscriber,
)

if TYPE_CHECKING:
    from conftest import Logged

MEGABYTE = 1 << 20

CLASSIC = """\
import random
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import Application
from tornadose.handlers import EventSource
from tornadose.stores import DataStore

store = DataStore()

app = Application(
    [(r'/', EventSource, {'store': store})],
    debug=True)
app.listen(9000)

loop = IOLoop.instance()
PeriodicCallback(lambda: store.submit(random.random()), 1000).start()
loop.start()
"""


class Watched(QueueStore[str]):
    """A store that remembers who has ever registered."""

    def __init__(self) -> None:
        super().__init__()
        self.registered: list[Subscriber[str]] = []

    def register(self, subscriber: Subscriber[str], /) -> None:
        self.registered.append(subscriber)
        super().register(subscriber)

    def resume(self, subscriber: Subscriber[str], after: str, /) -> None:
        self.registered.append(subscriber)
        super().resume(subscriber, after)


class Minimal:
    """A store with the three methods that make one, and nothing else."""

    def __init__(self) -> None:
        self.known: list[Subscriber[str]] = []

    def register(self, subscriber: Subscriber[str], /) -> None:
        self.known.append(subscriber)

    def deregister(self, subscriber: Subscriber[str], /) -> None:
        self.known = [other for other in self.known if other is not subscriber]

    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        message = Message(data, event=event)
        for subscriber in tuple(self.known):
            await subscriber.publish(message)
        return message


class RegistersFirst(EventSource[str]):
    """A handler in the way of 0.5, which registers before the request is accepted."""

    def initialize(self, store: Store[str], **_: Any) -> None:
        self.store = store
        store.register(self)


class Asking(RegistersFirst):
    """One that asks elsewhere who may listen."""

    answered: asyncio.Event

    async def prepare(self) -> None:
        await self.answered.wait()
        if self.get_query_argument("who", "") == "stranger":
            raise HTTPError(403)


async def write_own(handler: RequestHandler, message: Message[str]) -> None:
    # Tornado's annotation says dict, and not of what.
    handler.write(f"data: own {message.data}\n\n")  # pyright: ignore[reportUnknownMemberType]
    await handler.flush()


class WritesItself(Asking):
    async def publish(self, message: Message[str], /) -> None:
        await write_own(self, message)


class MixIn(RequestHandler):
    async def publish(self, message: Message[str], /) -> None:
        await write_own(self, message)


class WritesByMixIn(MixIn, Asking):
    """One whose own way comes from a class that knows nothing of this package."""


class Upper(EventSource[str]):
    """A handler that overrides `publish`, and can be held there."""

    gate: asyncio.Event
    through: list[str]

    async def publish(self, message: Message[str], /) -> None:
        await self.gate.wait()
        self.through.append(message.data)
        await super().publish(Message(message.data.upper(), message.id, message.event))


def handlers(store: QueueStore[Any] | DataStore[Any]) -> list[EventSource[Any]]:
    """Return the handlers that are registered with a store."""
    return [s for s in store.subscribers if isinstance(s, EventSource)]


@asynccontextmanager
async def streams(
    store: QueueStore[Any] | DataStore[Any], url: str, count: int
) -> AsyncGenerator[list[Events]]:
    """Open so many streams, and wait until they are registered."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(http_client())
        opened = [
            await stack.enter_async_context(event_stream(url, client=client)) for _ in range(count)
        ]
        await eventually(lambda: len(store.subscribers) == count)
        yield opened


@asynccontextmanager
async def clients_of(
    store: QueueStore[Any] | DataStore[Any], count: int = 1, **options: Any
) -> AsyncGenerator[list[Events]]:
    """Serve a store to so many clients."""
    async with (
        serving(EventSource.route("/", store, **options)) as url,
        streams(store, url, count) as clients,
    ):
        yield clients


# ---- the program of the old documentation


async def test_the_classic_program_of_0_5_streams_to_several_curls_at_once(tmp_path: Path) -> None:
    port = free_port()
    script = tmp_path / "classic.py"
    script.write_text(CLASSIC.replace("9000", str(port)))
    async with running(sys.executable, str(script)) as server:
        await eventually(lambda: accepts(port))
        async with AsyncExitStack() as stack:
            curls = [
                await stack.enter_async_context(running(*curl(f"http://127.0.0.1:{port}/")))
                for _ in range(4)
            ]
            outputs = await asyncio.gather(*(values_of(process, 2) for process in curls))
        server.terminate()
        _, errors = await output_of(server)
    for values in outputs:
        assert len(set(values)) == 2
        assert all(0 <= value < 1 for value in values)
    one, *others = map(frozenset, outputs)
    assert one.intersection(*others)  # they share the stream
    assert "Error" not in errors, errors
    assert "Warning" not in errors, errors


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def values_of(process: asyncio.subprocess.Process, count: int) -> list[float]:
    """Read so many events of the form ``data: <float>``, and a blank line after each."""
    values: list[float] = []
    for _ in range(count):
        field, _, value = (await line_of(process)).partition(": ")
        assert field == "data"
        values.append(float(value))
        assert await line_of(process) == "\n"
    return values


# ---- headers, and the requests that do not subscribe


async def test_headers_are_sent_before_any_message() -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get()
        first, headers = await client.head()
        assert first == "HTTP/1.1 200 OK"
        assert set(headers) == {
            "Server",
            "Date",
            "Content-Type",
            "Cache-Control",
            "X-Accel-Buffering",
            "Transfer-Encoding",
        }
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Transfer-Encoding"] == "chunked"
        await eventually(lambda: len(store.subscribers) == 1)
        assert client.seen == b""
        message = await store.submit("first")
        body = f"id: {message.id}\ndata: first\n\n"
        await client.until(f"{len(body):x}\r\n{body}\r\n".encode())


async def test_a_head_request_gets_the_headers_alone_and_registers_nobody() -> None:
    store = Watched()
    async with store, serving(EventSource.route("/", store)) as url, Raw.to(url) as client:
        await client.send("HEAD / HTTP/1.1", "Host: 127.0.0.1")
        first, headers = await client.head()
        assert first == "HTTP/1.1 200 OK"
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store"
        assert "Transfer-Encoding" not in headers
        assert store.registered == []
        await client.send("HEAD / HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
        await client.head()  # nothing stood between the two responses
        assert await client.rest() == b""
        assert store.registered == []


async def test_other_methods_get_405_and_register_nobody(logged: Logged) -> None:
    store = Watched()
    async with store, serving(EventSource.route("/", store)) as url, http_client() as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            response = await client.request(method, url, content=b"x")
            assert response.status_code == 405
        assert store.registered == []
    logged.take("405", times=5)


class RefusesAtOnce(EventSource[str]):
    def prepare(self) -> None:
        raise HTTPError(401)


class RefusesLater(EventSource[str]):
    async def prepare(self) -> None:
        await asyncio.sleep(0)
        raise HTTPError(403)


class FinishesItself(EventSource[str]):
    async def prepare(self) -> None:
        await asyncio.sleep(0)
        self.set_status(403)
        await self.finish("no")


@pytest.mark.parametrize(
    ("kind", "status"), [(RefusesAtOnce, 401), (RefusesLater, 403), (FinishesItself, 403)]
)
async def test_a_refusal_in_prepare_registers_nobody(
    kind: type[EventSource[str]], status: int, logged: Logged
) -> None:
    store = Watched()
    async with store, serving(kind.route("/", store)) as url, http_client() as client:
        for headers in ({}, {"Last-Event-ID": "1"}):
            response = await client.get(url, headers=headers)
            assert response.status_code == status
            assert response.headers["Content-Type"] == "text/html; charset=UTF-8"
        assert store.registered == []
    logged.take(str(status), times=2)


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive", "Connection: close"])
async def test_an_http_1_0_client_gets_a_plain_stream_that_ends_with_the_connection(
    connection: str,
) -> None:
    async with (
        DataStore[str]("one") as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get("/", "HTTP/1.0", *filter(None, [connection]))
        _, headers = await client.head()
        assert "Transfer-Encoding" not in headers
        assert headers["Connection"].lower() == "close"
        await client.until(b"data: one\n\n")
        await store.submit("two")
        await client.until(b"data: two\n\n")
        await store.aclose()
        assert (await client.rest()).startswith(b"retry: ")
        assert client.seen.endswith(b"\n\n")


async def test_compress_response_leaves_the_stream_alone() -> None:
    async with DataStore[str]("one" * 1000) as store:
        application = Application([EventSource.route("/", store)], compress_response=True)
        async with listening(application) as url:
            async with event_stream(url, {"Accept-Encoding": "gzip"}) as events:
                assert "Content-Encoding" not in events.response.headers
                assert (await events.next()).data == "one" * 1000
            async with http_client() as client:
                head = await client.head(url, headers={"Accept-Encoding": "gzip"})
                assert "Content-Encoding" not in head.headers


async def test_both_forms_of_the_url_table_stream() -> None:
    async with DataStore[str]("hello") as store:
        application = Application(
            [
                (r"/plain", EventSource, {"store": store}),
                (r"/options", EventSource, {"store": store, "encode": str.upper, "retry": 2}),
                EventSource.route(r"/route", store, encode=str.upper, retry=2, name="r"),
            ]
        )
        assert application.reverse_url("r") == "/route"
        async with listening(application) as url:
            async with event_stream(f"{url}/plain") as events:
                assert (await events.next()).data == "hello"
            for path in ("options", "route"):
                async with event_stream(f"{url}/{path}") as events:
                    assert (await events.next()).retry == 2000
                    assert (await events.next()).data == "HELLO"


# ---- payloads


PAYLOADS = {
    "": "",
    "plain": "plain",
    "one\rtwo": "one\ntwo",
    "one\ntwo": "one\ntwo",
    "one\r\ntwo": "one\ntwo",
    "\r\r\n\n\r": "\n\n\n\n",
    "ends\n": "ends\n",
    " leading": " leading",
    "  two": "  two",
    ": colon": ": colon",
    "id: 7\nevent: x\ndata: y\nretry: 1": "id: 7\nevent: x\ndata: y\nretry: 1",
    "a\u2028b\u2029c\x85d\x0be\x0cf": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "\ufeffBOM": "\ufeffBOM",
    "a\ufeffb": "a\ufeffb",
    "nul\0": "nul\0",
    "\U0001f600 \U0001f468\u200d\U0001f469": "\U0001f600 \U0001f468\u200d\U0001f469",
    "é" * 70_000: "é" * 70_000,
}


async def test_text_arrives_as_it_was_but_for_line_ends() -> None:
    async with QueueStore[str]() as store, clients_of(store, 2) as clients:
        for payload in PAYLOADS:
            await store.submit(payload)
        for client in clients:
            assert await client.data(len(PAYLOADS)) == list(PAYLOADS.values())
        assert balanced(store.statistics())


async def test_a_stream_has_no_byte_before_its_first_field_that_a_parser_could_trip_over() -> None:
    async with (
        DataStore[str]("\ufeffx") as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get("/", "HTTP/1.0")
        await client.head()
        assert await client.until(b"\n\n") == b"data: \xef\xbb\xbfx"


async def test_what_is_no_text_travels_as_json_and_bytes_as_utf_8() -> None:
    payloads = {
        "{}": {},
        '{"a":[1,2.5,null,true],"b":"é\u2028"}': {"a": [1, 2.5, None, True], "b": "é\u2028"},
        "1": 1,
        "null": None,
        "false": False,
        "[1]": (1,),
        "0.1": 0.1,
        "é": "é".encode(),
        "mutable": bytearray(b"mutable"),
        "two\nlines": b"two\r\nlines",
    }
    async with QueueStore[object]() as store, clients_of(store, 1) as (client,):
        for payload in payloads.values():
            await store.submit(payload)
        assert await client.data(len(payloads)) == list(payloads)


async def test_encode_replaces_the_rules_for_payloads() -> None:
    def hexadecimal(number: int) -> str:
        return f"{number:x}"

    async with (
        QueueStore[int]() as store,
        clients_of(store, encode=hexadecimal) as (client,),
    ):
        await store.submit(255)
        assert (await client.next()).data == "ff"


async def test_an_event_name_travels_and_the_default_is_message() -> None:
    async with QueueStore[str]() as store, clients_of(store, 1) as (client,):
        await store.submit("a", event="näme: x")
        await store.submit("b")
        first, second = await client.take(2)
        assert (first.event, first.data) == ("näme: x", "a")
        assert (second.event, second.data) == ("message", "b")


async def test_messages_of_a_queue_store_have_their_ids() -> None:
    async with QueueStore[str]() as store, clients_of(store, 1) as (client,):
        messages = [await store.submit(f"{number}") for number in range(3)]
        assert [event.id for event in await client.take(3)] == [m.id for m in messages]


async def test_messages_of_a_data_store_have_no_id_line() -> None:
    async with (
        DataStore[str]("one") as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get("/", "HTTP/1.0")
        await client.head()
        await client.until(b"data: one\n\n")
        await store.submit("two", event="news")
        assert await client.until(b"\n\n") == b"event: news\ndata: two"


async def test_p2_a_newcomer_gets_nothing_that_was_accepted_before_it_registered() -> None:
    class SubmitsFirst(EventSource[str]):
        def prepare(self) -> None:
            store.submit_nowait("before")  # and published after

    async with (
        QueueStore[str]() as store,
        serving(SubmitsFirst.route("/", store)) as url,
        streams(store, url, 1) as (client,),
    ):
        await store.submit("after")
        assert (await client.next()).data == "after"


async def test_a_message_of_a_megabyte_arrives_whole_at_several_clients() -> None:
    payload = "".join(f"{number:07x}\n" for number in range(MEGABYTE // 8))
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store)) as url,
        streams(store, url, 4) as clients,
        running(*curl(url)) as process,
    ):
        await eventually(lambda: len(store.subscribers) == 5)
        await store.submit(payload)
        await store.submit("after")
        for client in clients:
            assert await client.data(2) == [payload, "after"]
        closing = asyncio.create_task(store.aclose())
        output, errors = await output_of(process)
        await closing
        assert process.returncode == 0, errors
        lines = [line[6:] for line in output.split("\n") if line.startswith("data: ")]
        assert "\n".join(lines) == f"{payload}\nafter"


# ---- heartbeats, retry, options


COMMENT = b"3\r\n:\n\n\r\n"


async def test_heartbeats_are_comments_at_the_interval_spread_over_it() -> None:
    interval, count = 0.4, 16
    clock = asyncio.get_running_loop().time
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            serving(EventSource.route("/", store, heartbeat=interval))
        )
        clients = [await stack.enter_async_context(Raw.to(url)) for _ in range(count)]

        async def beats(client: Raw) -> list[float]:
            await client.get()
            await client.head()
            times = [clock()]
            for _ in range(3):
                assert await client.until(COMMENT) == b""
                times.append(clock())
            return times

        times = await asyncio.gather(*(beats(client) for client in clients))
        first = sorted(time for _, time, *_ in times)
        assert first[-1] - first[0] >= interval / 4  # all began together
        for start, *_, third in times:
            assert third - start >= 2.5 * interval


async def test_heartbeat_none_sends_none() -> None:
    async with (
        QueueStore[str]() as store,
        serving(
            EventSource.route("/quiet", store, heartbeat=None),
            EventSource.route("/beating", store, heartbeat=0.02),
        ) as url,
        Raw.to(url) as quiet,
        Raw.to(url) as beating,
    ):
        for client, path in ((quiet, "/quiet"), (beating, "/beating")):
            await client.get(path)
            await client.head()
        for _ in range(5):
            await beating.until(COMMENT)
        message = await store.submit("sentinel")
        body = f"id: {message.id}\ndata: sentinel\n\n"
        assert await quiet.until(f"{body}\r\n".encode()) == f"{len(body):x}\r\n".encode()


@dataclass
class Unhashable:
    """An encoder that could not share its results."""

    def __call__(self, text: str) -> str:
        return text


BAD_OPTIONS: list[tuple[str, object, type[Exception]]] = [
    ("heartbeat", 0, ValueError),
    ("heartbeat", -1, ValueError),
    ("heartbeat", math.nan, ValueError),
    ("heartbeat", math.inf, ValueError),
    ("heartbeat", "x", TypeError),
    ("heartbeat", True, TypeError),
    ("retry", -1, ValueError),
    ("retry", math.nan, ValueError),
    ("retry", "x", TypeError),
    ("write_timeout", -1, ValueError),
    ("write_timeout", 0, ValueError),
    ("write_timeout", math.inf, ValueError),
    ("write_timeout", None, TypeError),
    ("send_buffer", 0, ValueError),
    ("send_buffer", 1.5, TypeError),
    ("encode", "x", TypeError),
    ("encode", Unhashable(), TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_OPTIONS)
async def test_route_refuses_a_bad_option_by_name_and_value(
    name: str, value: object, error: type[Exception]
) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(error) as caught:
        EventSource.route("/", DataStore[str](), **options)
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "option", [{"write_timeout": 1e7}, {"heartbeat": 1e7}, {"send_buffer": 1 << 40}]
)
async def test_a_large_option_that_route_accepts_streams(option: dict[str, Any]) -> None:
    async with (
        DataStore[str]("hello") as store,
        serving(EventSource.route("/", store, **option)) as url,
        event_stream(url) as events,
    ):
        assert events.response.status_code == 200
        assert (await events.next()).data == "hello"


@pytest.mark.parametrize(("retry", "milliseconds"), [(2.5, 2500), (0, 0), (0.0004, 0), (1, 1000)])
async def test_retry_is_sent_first_in_milliseconds(retry: float, milliseconds: int) -> None:
    async with (
        DataStore[str]("hello") as store,
        serving(EventSource.route("/", store, retry=retry)) as url,
        event_stream(url) as events,
    ):
        first, second = await events.take(2)
        assert (first.retry, first.data) == (milliseconds, "")
        assert (second.retry, second.data) == (None, "hello")


# ---- poisoned messages and gaps


async def test_p9_a_poisoned_message_is_a_gap_and_disconnects_nobody(logged: Logged) -> None:
    async with QueueStore[float]() as store, clients_of(store, 3) as clients:
        before = await store.submit(1.5)
        for client in clients:
            assert (await client.next()).data == "1.5"
        await store.submit(math.nan)
        await store.submit(2.5)
        for client in clients:
            gap, after = await client.take(2)
            assert gap.event == "gap"
            assert gap.json() == {"reason": "poisoned", "after": before.id}
            assert gap.id == before.id  # httpx-sse keeps the last one it has read
            assert after.data == "2.5"
        assert len(store.subscribers) == 3
        books = store.statistics()
        assert (books.poisoned, books.delivered, books.gaps) == (3, 6, 3)
        assert balanced(books)
    logged.take("cannot be encoded", times=1)


async def test_p9_a_poisoned_message_in_a_batch_leaves_its_neighbours_alone(
    logged: Logged,
) -> None:
    async with QueueStore[float]() as store, clients_of(store, 2) as clients:
        payloads = [0.0, math.nan, 1.0, math.inf, -math.inf, 2.0]
        for payload in payloads:
            store.submit_nowait(payload)
        for client in clients:
            events = await client.take(6)
            assert [e.event for e in events] == [
                "message", "gap", "message", "gap", "gap", "message",
            ]  # fmt: skip
            assert [e.data for e in events if e.event != "gap"] == ["0.0", "1.0", "2.0"]
    logged.take("cannot be encoded", times=3)


async def test_p3_encoding_a_burst_leaves_the_loop_its_turns() -> None:
    turns, encoded = itertools.count(), Counter[int]()
    turn = 0

    def slow(number: int) -> str:
        encoded[turn] += 1
        time.sleep(0.004)
        return str(number)

    async def count() -> None:
        nonlocal turn
        for turn in turns:  # noqa: B007 (which `slow` reads)
            await asyncio.sleep(0)

    async with QueueStore[int]() as store, clients_of(store, 2, encode=slow) as clients:
        counting = asyncio.create_task(count())
        for number in range(32):
            store.submit_nowait(number)
        for client in clients:
            assert [event.data for event in await client.take(32)] == [*map(str, range(32))]
        counting.cancel()
    assert max(encoded.values()) <= 6  # in 10 ms, and what is begun then
    assert sum(encoded.values()) == 32


def no_string(number: float) -> str:
    return number  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


POISON: list[tuple[object, dict[str, Any]]] = [
    (math.nan, {}),
    ({"a": [math.inf]}, {}),
    (object(), {}),
    ("\ud800", {}),
    (b"\xff", {}),
    (1, {"encode": no_string}),
    ("x", {"encode": int}),
]


@pytest.mark.parametrize(("payload", "options"), POISON)
async def test_p9_every_client_of_a_poisoned_value_gets_a_gap_and_the_next_value(
    payload: object, options: dict[str, Any], logged: Logged
) -> None:
    async with (
        DataStore[object](payload) as store,
        clients_of(store, 3, **options) as clients,
    ):
        for client in clients:
            assert (await client.next()).json() == {"reason": "poisoned", "after": None}
        if not options:
            await store.submit("good")
            for client in clients:
                assert (await client.next()).data == "good"
        assert len(store.subscribers) == 3
    logged.take("cannot be encoded", times=1)


async def test_a_gap_event_has_two_lines_and_no_id() -> None:
    async with (
        DataStore[str]("now") as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get("/", "HTTP/1.0", "Last-Event-ID: 17")
        await client.head()
        gap = b'event: gap\ndata: {"reason":"unknown","after":null}'
        assert await client.until(b"\n\n") == gap
        assert await client.until(b"\n\n") == b"data: now"


# ---- stores and handlers of the user's own


async def test_a_store_with_three_methods_works() -> None:
    store = Minimal()
    async with serving(EventSource.route("/", store)) as url:
        async with (
            event_stream(url) as one,
            event_stream(url, {"Last-Event-ID": "x"}) as two,
        ):
            await eventually(lambda: len(store.known) == 2)
            await store.submit("hello", event="greeting")
            assert [(e.event, e.data) for e in await one.take(1)] == [("greeting", "hello")]
            gap, hello = await two.take(2)
            assert gap.json() == {"reason": "unknown", "after": None}
            assert hello.data == "hello"
        await eventually(lambda: store.known == [])


async def test_p7_a_handler_that_registers_in_initialize_works_and_leaks_nothing(
    logged: Logged,
) -> None:
    store = Watched()
    async with store, serving(RegistersFirst.route("/", store)) as url, http_client() as client:
        async with event_stream(url, client=client) as events:
            assert len(store.subscribers) == 1
            await store.submit("hello")
            assert (await events.next()).data == "hello"
        assert (await client.head(url)).status_code == 200
        assert (await client.post(url)).status_code == 405
        assert len({id(handler) for handler in store.registered}) == 3
        await eventually(lambda: not store.subscribers)
    logged.take("405")


async def test_p7_a_handler_that_registers_in_initialize_leaks_nothing_when_refused(
    logged: Logged,
) -> None:
    class Refuses(RegistersFirst):
        def prepare(self) -> None:
            raise HTTPError(403)

    store = Watched()
    async with store, serving(Refuses.route("/", store)) as url, http_client() as client:
        assert (await client.get(url)).status_code == 403
        assert len(store.registered) == 1
        await eventually(lambda: not store.subscribers)
    logged.take("403")


class RegistersInPrepare(Asking):
    """One that registers in `prepare`, and asks then."""

    def initialize(self, store: Store[str], **_: Any) -> None:
        self.store = store

    async def prepare(self) -> None:
        self.store.register(self)
        await super().prepare()

    async def publish(self, message: Message[str], /) -> None:
        await write_own(self, message)


@pytest.mark.parametrize("kind", [WritesItself, WritesByMixIn, RegistersInPrepare])
async def test_nothing_is_published_before_the_request_is_accepted(
    kind: type[Asking],
) -> None:
    kind.answered = asyncio.Event()
    async with (
        DataStore[str]("value") as store,
        serving(kind.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get()
        await eventually(lambda: store.subscribers)
        await store.submit("next")
        await eventually(lambda: store.statistics().published == 1)
        kind.answered.set()
        first, headers = await client.head()
        assert (first, headers["Content-Type"]) == ("HTTP/1.1 200 OK", "text/event-stream")
        await client.until(b"data: own next\n\n\r\n")


@pytest.mark.parametrize("kind", [WritesItself, WritesByMixIn, RegistersInPrepare])
async def test_p7_who_is_refused_late_gets_the_refusal_and_no_message(
    kind: type[Asking], logged: Logged
) -> None:
    kind.answered = asyncio.Event()
    async with (
        DataStore[str]("secret") as store,
        serving(kind.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get("/?who=stranger", "HTTP/1.1", "Connection: close")
        await eventually(lambda: store.subscribers)
        await store.submit("next secret")
        await eventually(lambda: store.statistics().published == 1)
        kind.answered.set()
        first, headers = await client.head()
        assert (first, headers["Content-Type"][:9]) == ("HTTP/1.1 403 Forbidden", "text/html")
        assert b"data:" not in await client.rest()
        await eventually(lambda: not store.subscribers)
        assert balanced(store.statistics())
    logged.take("403")


class GetsLate(RegistersFirst):
    """One that waits in a `get` of its own."""

    answered: asyncio.Event

    async def get(self, *args: Any, **kwargs: Any) -> None:
        await self.answered.wait()


@pytest.mark.parametrize("kind", [Asking, GetsLate])
async def test_p7_who_registers_early_and_leaves_early_is_deregistered_within_a_second(
    kind: type[Asking | GetsLate],
) -> None:
    kind.answered = asyncio.Event()
    async with QueueStore[str]() as store, serving(kind.route("/", store)) as url:
        async with Raw.to(url) as client:
            await client.get()
            await eventually(lambda: store.subscribers)
        await eventually(lambda: not store.subscribers, deadline=1)
        kind.answered.set()


async def test_p7_an_initialize_that_registers_and_fails_leaks_nothing(logged: Logged) -> None:
    class Fails(RegistersFirst):
        def initialize(self, store: Store[str], **_: Any) -> None:
            super().initialize(store)
            raise LookupError("no such user")

    async with (
        DataStore[str]("value") as store,
        serving(Fails.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get()
        assert await client.rest() == b""
        assert store.subscribers == ()
    logged.take("Uncaught exception")


class WritesAndFlushes(BaseHandler[str]):
    async def publish(self, message: Message[str], /) -> None:
        # Tornado's annotation says dict, and not of what.
        self.write(message.data)  # pyright: ignore[reportUnknownMemberType]
        await self.flush()


async def test_p3_p4_a_handler_of_ones_own_whose_client_never_reads_is_let_go() -> None:
    async with (
        QueueStore[str](backlog=2) as store,
        serving(WritesAndFlushes.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await client.get()
        await eventually(lambda: store.subscribers)
        while store.subscribers:
            await store.submit("x" * MEGABYTE)
            await asyncio.sleep(0)
        await client.rest()  # what the kernel has, and then the end


class BoundEncoder(EventSource[int]):
    alive: ClassVar[WeakSet[EventSource[int]]] = WeakSet()

    def initialize(self, store: Store[int], **_: Any) -> None:
        self.alive.add(self)
        super().initialize(store, encode=self.render_number)

    def render_number(self, number: int) -> str:
        return f"{number}"


class EncoderPerRequest(BoundEncoder):
    def initialize(self, store: Store[int], **_: Any) -> None:
        def encode(number: int) -> str:
            return self.render_number(number)

        self.alive.add(self)
        EventSource[int].initialize(self, store, encode=encode)


@pytest.mark.parametrize("kind", [BoundEncoder, EncoderPerRequest])
async def test_p7_an_encoder_that_holds_its_handler_keeps_none_that_has_left(
    kind: type[BoundEncoder],
) -> None:
    def freed() -> bool:
        gc.collect()
        return not kind.alive

    async with QueueStore[int]() as store, serving(kind.route("/", store)) as url:
        async with streams(store, url, 3) as clients:
            await store.submit(7)
            assert [await client.data(1) for client in clients] == [["7"]] * 3
            assert len(kind.alive) == 3
        await eventually(freed)


async def test_p8_a_handler_that_registers_in_initialize_resumes_or_tells_of_a_gap() -> None:
    async with QueueStore[str]() as store, serving(RegistersFirst.route("/", store)) as url:
        messages = [await store.submit(f"{number}") for number in range(3)]
        async with event_stream(url, {"Last-Event-ID": str(messages[0].id)}) as events:
            await store.submit("3")
            first = await events.next()
            assert first.event == "gap" or first.data == "1"
            rest = ["3"] if first.event == "gap" else ["2", "3"]
            assert await events.data(len(rest)) == rest


async def test_who_overrides_publish_gets_every_message_through_it() -> None:
    class Mine(Upper):
        gate = asyncio.Event()

    Mine.through = []
    Mine.gate.set()
    async with (
        QueueStore[str]() as store,
        serving(Mine.route("/", store, send_buffer=SMALL)) as url,
        Raw.to(url, receive_buffer=SMALL) as client,
    ):
        await client.get("/", "HTTP/1.0")
        await client.head()
        await eventually(lambda: store.subscribers)
        expected = [f"a{number}" for number in range(50)]  # a batch
        for payload in expected:
            store.submit_nowait(payload)
        await client.until(b"data: A49\n\n")
        Mine.gate.clear()  # a stall in the override
        for number in range(50):
            store.submit_nowait(f"b{number}")
        await eventually(lambda: store.statistics().pending == 50)
        Mine.gate.set()
        await client.until(b"data: B49\n\n")
        for number in range(6):  # a stall in the client
            store.submit_nowait(f"c{number}" * MEGABYTE)
        store.submit_nowait("end")
        await eventually(lambda: store.statistics().pending)
        await client.until(b"data: END\n\n")
        expected += [f"b{number}" for number in range(50)]
        expected += [f"c{number}" * MEGABYTE for number in range(6)] + ["end"]
        assert Mine.through == expected
        assert balanced(store.statistics())


class Silent(EventSource[str]):
    """A handler that overrides Tornado's hooks, and does not pass them on."""

    def on_finish(self) -> None:
        pass

    def on_connection_close(self) -> None:
        pass

    def on_close(self) -> None:
        pass


async def test_p7_overridden_hooks_leak_nothing() -> None:
    async with QueueStore[str]() as store, serving(Silent.route("/", store)) as url:
        async with streams(store, url, 3) as clients:
            handlers(store)[0].finish()
            assert await clients[0].rest() == []
            await eventually(lambda: len(store.subscribers) == 2)
        await eventually(lambda: not store.subscribers)


async def test_p7_the_hooks_of_a_subclass_are_still_called() -> None:
    called: list[str] = []

    class Hooked(EventSource[str]):
        def on_finish(self) -> None:
            called.append("finish")

        def on_connection_close(self) -> None:
            called.append("close")

    async with QueueStore[str]() as store, serving(Hooked.route("/", store)) as url:
        async with streams(store, url, 1):
            pass
        await eventually(lambda: "close" in called)
        async with streams(store, url, 1):
            handlers(store)[0].finish()
        await eventually(lambda: "finish" in called)


async def test_p7_a_client_that_has_sent_more_bytes_and_left_is_found_by_the_heartbeat() -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store, heartbeat=0.05)) as url,
    ):
        async with Raw.to(url) as client:
            await client.get()
            await client.head()
            await client.send_bytes(b"GET ")
            await eventually(lambda: store.subscribers)
        await eventually(lambda: not store.subscribers)


async def test_submit_of_a_handler_reaches_its_client_alone_in_order() -> None:
    async with QueueStore[str]() as store, clients_of(store, 2) as (one, two):
        first, _ = handlers(store)
        await store.submit("all")
        assert await one.data(1) == await two.data(1) == ["all"]
        with pytest.raises(ValueError, match="gap"):
            await first.submit("no", event="gap")
        message = await first.submit("you", event="private")
        assert (message.data, message.id, message.event) == ("you", None, "private")
        await store.submit("all again")
        private, _ = events = await one.take(2)
        assert [event.data for event in events] == ["you", "all again"]
        assert private.event == "private"
        assert await two.data(1) == ["all again"]


async def test_concurrent_publishing_writes_each_message_whole_in_call_order() -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store, send_buffer=SMALL)) as url,
        Raw.to(url, receive_buffer=SMALL) as client,
    ):
        await client.get()
        await client.head()
        await eventually(lambda: store.subscribers)
        (handler,) = handlers(store)
        payloads = [f"{number}" * 50_000 for number in range(10, 30)]
        async with asyncio.TaskGroup() as group:
            for payload in payloads:
                group.create_task(handler.publish(Message(payload)))
            for payload in payloads:
                body = f"data: {payload}\n\n"
                assert await client.until(f"{body}\r\n".encode()) == f"{len(body):x}\r\n".encode()


@pytest.mark.parametrize("kind", [Minimal, QueueStore[str]])
async def test_a_publish_that_waits_writes_nothing_behind_the_end_of_the_response(
    kind: Callable[[], Minimal | QueueStore[str]],
) -> None:
    store = kind()
    opened: list[EventSource[str]] = []

    class Remembered(EventSource[str]):
        def prepare(self) -> None:
            opened.append(self)

    async with AsyncExitStack() as stack:
        if isinstance(store, QueueStore):
            await stack.enter_async_context(store)
        url = await stack.enter_async_context(
            serving(Remembered.route("/", store, send_buffer=SMALL))
        )
        client = await stack.enter_async_context(Raw.to(url, receive_buffer=SMALL))
        await client.get()
        await client.head()
        handler = opened[0]
        await handler.publish(Message("x" * MEGABYTE))
        late = [asyncio.create_task(handler.publish(Message("late"))) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)  # they wait for the first message
        handler.finish()
        await client.until(b"\n\n\r\n0\r\n\r\n")
        done, _ = await asyncio.wait(late, timeout=DEADLINE)
        assert len(done) == 2
        for task in late:
            assert task.cancelled() or task.exception() is not None
        await client.send("HEAD / HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
        first, _ = await client.head()  # nothing stands between the two responses
        assert first == "HTTP/1.1 200 OK"


async def test_p7_publishing_to_a_client_that_has_left_is_an_error_at_once() -> None:
    async with QueueStore[str]() as store:
        async with clients_of(store):
            (handler,) = handlers(store)
        await eventually(lambda: not store.subscribers)
        with pytest.raises(StreamClosedError):
            await asyncio.wait_for(handler.publish(Message("late")), 1)


async def test_p7_a_connection_can_be_used_for_one_stream_after_the_other() -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store)) as url,
    ):
        async with Raw.to(url) as client:
            for number in range(3):
                await client.get()
                first, _ = await client.head()
                assert first == "HTTP/1.1 200 OK"
                await eventually(lambda: store.subscribers)
                await store.submit(f"{number}")
                await client.until(f"data: {number}\n\n\r\n".encode())
                (handler,) = handlers(store)
                handler.finish()
                assert await client.until(b"0\r\n\r\n") == b""
                assert not store.subscribers
            await client.get()
            await eventually(lambda: store.subscribers)
        await eventually(lambda: not store.subscribers)


async def test_a_data_store_gives_each_client_the_current_value_once_and_then_every_newer() -> (
    None
):
    async with (
        DataStore[int](0) as store,
        serving(EventSource.route("/", store)) as url,
        http_client() as client,
    ):

        async def read() -> list[int]:
            async with event_stream(url, client=client) as events:
                values = [int((await events.next()).data)]
                while values[-1] < 200:
                    values.append(int((await events.next()).data))
                return values

        readers: list[asyncio.Task[list[int]]] = []
        for number in range(1, 201):
            if number % 5 == 0:
                readers.append(asyncio.create_task(read()))
            await store.submit(number)
            await asyncio.sleep(0.001)
        for reader in readers:
            values = await reader
            assert values == list(range(values[0], 201))


# ---- TLS


async def test_tls_carries_large_messages_to_several_clients(certificate: tuple[str, str]) -> None:
    trusted = ssl.create_default_context(cafile=certificate[0])
    payload = "0123456789abcdef" * (MEGABYTE // 16)
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            listening(Application([EventSource.route("/", store)]), tls=server_side(certificate))
        )
        clients = [
            await stack.enter_async_context(event_stream(url, trusted=trusted)) for _ in range(2)
        ]
        process = await stack.enter_async_context(
            running(*curl("--cacert", certificate[0], "--limit-rate", "8M", url))
        )
        await eventually(lambda: len(store.subscribers) == 3)
        sizes = [0, 1, 16_383, 16_384, 65_536, 70_000, MEGABYTE]
        for size in sizes:
            await store.submit(payload[:size])
        for client in clients:
            assert await client.data(len(sizes)) == [payload[:size] for size in sizes]
        closing = asyncio.create_task(store.aclose())
        output, errors = await output_of(process)
        await closing
        assert process.returncode == 0, errors
        lines = [line[6:] for line in output.split("\n") if line.startswith("data: ")]
        assert lines == [payload[:size] for size in sizes]
        assert await clients[0].rest() != []


async def test_tls_carries_large_messages_to_a_client_that_reads_slowly(
    certificate: tuple[str, str],
) -> None:
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        rule = EventSource.route("/", store, send_buffer=SMALL, heartbeat=0.01)
        url = await stack.enter_async_context(
            listening(Application([rule]), tls=server_side(certificate))
        )
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        reader, writer = await asyncio.open_connection(
            sock=sock,
            ssl=ssl.create_default_context(cafile=certificate[0]),
            server_hostname="127.0.0.1",
            limit=SMALL,
        )
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await eventually(lambda: store.subscribers)
        payloads = [character * MEGABYTE for character in "abc"] + ["end"]
        for payload in payloads:
            await store.submit(payload)
            await eventually(lambda: store.statistics().offered == store.statistics().submitted)
        assert store.statistics().pending  # the client is behind
        seen = b""
        async with asyncio.timeout(DEADLINE):
            while b"data: end\n\n" not in seen:
                seen += await reader.read(SMALL)
        writer.transport.abort()
        _, _, body = seen.partition(b"\r\n\r\n")
        lines = body.decode().split("\n")
        assert [line[6:] for line in lines if line.startswith("data: ")] == payloads
        assert {line.partition(":")[0] for line in lines} == {"", "id", "data"}


def read_late(port: int, context: ssl.SSLContext, reads: threading.Event) -> bytes:
    """Ask for the stream, wait, and only then read it to its end."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        reads.wait(DEADLINE)
        body = bytearray()
        while data := client.recv(1 << 20):
            body += data
        return bytes(body)


@pytest.mark.parametrize("size", [5_000, 100_000])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_p2_over_tls_who_pauses_gets_everything(
    certificate: tuple[str, str], version: ssl.TLSVersion, size: int
) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    context.minimum_version = context.maximum_version = version
    async with QueueStore[str](policy="block") as store, AsyncExitStack() as stack:
        rule = EventSource.route("/", store)
        url = await stack.enter_async_context(
            listening(Application([rule]), tls=server_side(certificate))
        )
        reads = threading.Event()
        port = int(url.rsplit(":", 1)[1])
        reading = asyncio.create_task(asyncio.to_thread(read_late, port, context, reads))
        await eventually(lambda: store.subscribers)
        sent = 0
        while store.statistics().pending < 100:
            for _ in range(32):
                sent += 1
                await store.submit(f"{sent:09}" + "x" * size)
            await eventually(lambda: store.statistics().published == store.statistics().submitted)
        reads.set()
        await store.aclose(DEADLINE)
        body = await reading
        numbers = [int(found) for found in re.findall(rb"data: (\d{9})x+\n\n", body)]
        assert numbers == list(range(1, sent + 1))
        assert store.statistics().delivered == sent


# ---- the end


async def test_aclose_delivers_what_was_accepted_says_when_to_return_and_ends_properly() -> None:
    async with (
        QueueStore[int]() as store,
        serving(EventSource.route("/", store, retry=2)) as url,
        streams(store, url, 8) as clients,
        running(*curl(url)) as process,
    ):
        await eventually(lambda: len(store.subscribers) == 9)
        closing = asyncio.create_task(store.aclose())  # begins before any of these is published
        accepted = [store.submit_nowait(number) for number in range(100)]
        retries: set[int | None] = set()
        for client in clients:
            first, *events, goodbye = await client.rest()  # httpx saw no error
            assert first.retry == 2000
            assert [event.id for event in events] == [message.id for message in accepted]
            assert (goodbye.data, goodbye.event) == ("", "message")
            assert goodbye.retry is not None
            assert 1000 <= goodbye.retry <= 3000
            retries.add(goodbye.retry)
        assert len(retries) > 1
        output, errors = await output_of(process)
        assert (process.returncode, errors) == (0, "")
        *_, last, goodbye_field, end = output.split("\n\n")
        assert last == f"id: {accepted[-1].id}\ndata: 99"
        assert goodbye_field.startswith("retry: ")
        assert end == ""
        await closing
        assert not store.subscribers
        books = store.statistics()
        assert (books.delivered, books.pending) == (900, 0)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_aclose_waits_for_a_client_that_is_behind_but_reads(version: str) -> None:
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            serving(EventSource.route("/", store, send_buffer=SMALL))
        )
        client = await stack.enter_async_context(Raw.to(url, receive_buffer=SMALL))
        await client.get("/", version)
        await client.head()
        await eventually(lambda: store.subscribers)
        await store.submit("0" * MEGABYTE)
        await eventually(lambda: store.statistics().delivered == 1)
        for number in range(1, 4):
            store.submit_nowait(f"{number}" * MEGABYTE)
        last = store.submit_nowait("last")
        closing = asyncio.create_task(store.aclose(timeout=DEADLINE))
        await eventually(lambda: store.statistics().pending)
        await client.until(f"id: {last.id}\ndata: last\n\n".encode())
        if version == "HTTP/1.0":
            assert (await client.rest()).startswith(b"retry: ")
        else:
            assert b"retry: " in await client.until(b"\r\n0\r\n\r\n")
            await client.send("HEAD / HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
            await client.head()  # the connection can be used again
        await closing
        assert store.statistics().abandoned == 0


async def test_aclose_returns_when_the_goodbye_is_with_the_client() -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store, send_buffer=SMALL)) as url,
        Raw.to(url, receive_buffer=SMALL) as client,
        http_client() as other,
    ):
        await client.get()
        await client.head()
        await eventually(lambda: store.subscribers)
        await store.submit("x" * 4 * MEGABYTE)
        await eventually(lambda: store.statistics().delivered)  # but not yet read
        closing = asyncio.create_task(store.aclose(timeout=DEADLINE))
        for _ in range(5):
            assert (await other.head(url)).status_code == 200  # time passes
        assert not closing.done()
        await client.until(b"\r\n0\r\n\r\n")
        await closing


async def test_new_requests_get_a_goodbye_while_the_store_closes_and_after(logged: Logged) -> None:
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            serving(EventSource.route("/", store, retry=1, send_buffer=SMALL))
        )
        straggler = await stack.enter_async_context(Raw.to(url, receive_buffer=SMALL))
        await straggler.get()
        await straggler.head()
        await eventually(lambda: store.subscribers)
        store.submit_nowait("x" * 16 * MEGABYTE)
        await eventually(lambda: store.statistics().delivered)
        closing = asyncio.create_task(store.aclose(timeout=0.5))
        await asyncio.sleep(0)  # its first line has run
        for headers in ({}, {"Last-Event-ID": "1"}):
            async with event_stream(url, headers) as events:
                assert events.response.status_code == 200
                first, goodbye = await events.rest()
                assert (first.retry, goodbye.data) == (1000, "")
                assert goodbye.retry is not None
                assert 500 <= goodbye.retry <= 1500
        assert not closing.done()
        await closing
        async with event_stream(url) as events:
            assert len(await events.rest()) == 2
    logged.take("closed before everybody had everything")


async def test_a_straggler_that_does_not_read_is_aborted_at_the_deadline(logged: Logged) -> None:
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            serving(EventSource.route("/", store, send_buffer=SMALL))
        )
        stragglers = [
            await stack.enter_async_context(Raw.to(url, receive_buffer=SMALL)) for _ in range(3)
        ]
        for straggler in stragglers:
            await straggler.get()
            await straggler.head()
        reading = await stack.enter_async_context(event_stream(url))
        await eventually(lambda: len(store.subscribers) == 4)
        store.submit_nowait("x" * 8 * MEGABYTE)
        await eventually(lambda: store.statistics().published)
        store.submit_nowait("behind")
        clock = asyncio.get_running_loop().time
        start = clock()
        closing = asyncio.create_task(store.aclose(timeout=0.4))
        assert [event.data for event in await reading.rest()] == [
            "x" * 8 * MEGABYTE,
            "behind",
            "",
        ]
        await closing
        assert clock() - start >= 0.4
        assert not store.subscribers
        for straggler in stragglers:
            assert not (await straggler.rest()).endswith(b"0\r\n\r\n")
        books = store.statistics()
        assert (books.delivered, books.abandoned, books.pending) == (5, 3, 0)
    logged.take("closed before everybody had everything")


async def test_a_store_without_room_says_when_to_come_back() -> None:
    async with (
        QueueStore[str](max_subscribers=1) as store,
        serving(EventSource.route("/", store, retry=1)) as url,
        streams(store, url, 1),
        event_stream(url) as late,
    ):
        first, goodbye = await late.rest()
        assert first.retry == 1000
        assert goodbye.retry is not None
        assert 500 <= goodbye.retry <= 1500
        assert len(store.subscribers) == 1


async def test_p3_a_client_that_does_not_read_is_released_in_time_and_delays_nobody() -> None:
    async with QueueStore[str]() as store, AsyncExitStack() as stack:
        url = await stack.enter_async_context(
            serving(EventSource.route("/", store, send_buffer=SMALL, write_timeout=0.3))
        )
        stalled = await stack.enter_async_context(Raw.to(url, receive_buffer=SMALL))
        await stalled.get()
        await stalled.head()
        reading = await stack.enter_async_context(event_stream(url))
        await eventually(lambda: len(store.subscribers) == 2)
        store.submit_nowait("x" * MEGABYTE)
        await store.submit("next")
        assert await reading.data(2) == ["x" * MEGABYTE, "next"]
        await eventually(lambda: len(store.subscribers) == 1)
        await store.submit("still here")
        assert (await reading.next()).data == "still here"


async def test_what_is_submitted_before_the_stream_is_open_arrives_first() -> None:
    class Greeting(EventSource[str]):
        async def prepare(self) -> None:
            await self.submit("hello", event="greeting")

        async def get(self, *args: str, **kwargs: str) -> None:
            await self.submit("again")
            await super().get(*args, **kwargs)

    async with (
        QueueStore[str]() as store,
        serving(Greeting.route("/", store)) as url,
        event_stream(url) as events,
    ):
        await eventually(lambda: store.subscribers)
        await store.submit("news")
        got = await events.take(3)
        assert [(event.event, event.data) for event in got] == [
            ("greeting", "hello"),
            ("message", "again"),
            ("message", "news"),
        ]


@pytest.mark.parametrize("kind", [Minimal, QueueStore[str]])
async def test_p9_what_is_submitted_early_and_cannot_be_encoded_is_a_gap_and_the_stream_goes_on(
    kind: Callable[[], Minimal | QueueStore[str]], logged: Logged
) -> None:
    class Greeting(EventSource[Any]):
        async def prepare(self) -> None:
            await self.submit(math.nan)
            await self.submit("hello")

    store = kind()
    async with serving(Greeting.route("/", store)) as url, event_stream(url) as events:
        gap, hello = await events.take(2)
        assert gap.json() == {"reason": "poisoned", "after": None}
        assert (gap.event, hello.data) == ("gap", "hello")
        await store.submit("news")
        assert await events.data(1) == ["news"]
        if isinstance(store, QueueStore):
            await store.aclose()
    logged.take("cannot be encoded")


async def test_what_is_submitted_early_and_fails_ends_the_stream_and_holds_nothing_up(
    logged: Logged,
) -> None:
    class Greeting(EventSource[str]):
        outcomes: ClassVar[list[str]] = []

        async def prepare(self) -> None:
            await self.submit("bad")
            await self.submit("never sent")

        async def publish(self, message: Message[str], /) -> None:
            if message.data == "bad":
                raise LookupError(message.data)
            await super().publish(message)

        async def get(self, *args: str, **kwargs: str) -> None:
            try:
                await super().get(*args, **kwargs)
            finally:
                try:
                    await self.submit("last words")
                except StreamClosedError:
                    self.outcomes.append("ConnectionClosed")

    store = Minimal()
    async with serving(Greeting.route("/", store)) as url, Raw.to(url) as client:
        await client.get()
        await client.head()
        assert b"data:" not in await client.until(b"0\r\n\r\n")
        await eventually(lambda: store.known == [])
        assert Greeting.outcomes == ["ConnectionClosed"]
    logged.take("Uncaught exception")
    logged.take("Cannot send error response")
