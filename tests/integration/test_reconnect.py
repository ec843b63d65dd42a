"""Clients that come back with the id of the last event they have seen."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sseclient
from httpx_sse import ServerSentEvent
from tornado.web import Application

from integration.clients import Raw, event_stream, free_port, http_client, listening
from support import DEADLINE, balanced, eventually, serving
from tornadose import DataStore, EventSource, Message, QueueStore, Subscriber

if TYPE_CHECKING:
    from conftest import Logged

SEED = 20261122
MESSAGES = 150
STALE = "000000000000-1"


class Reader:
    """A client that reads a while, leaves, and comes back after what it has seen.

    Args:
        url: Of the stream.
        seed: What decides how long it reads.
        cursor: The id after which it begins; empty is none.
    """

    def __init__(self, url: str, seed: int, cursor: str = "") -> None:
        self.url = url
        self.random = random.Random(seed)
        self.cursor = cursor
        self.got: list[tuple[str, str]] = []
        self.resumed = 0

    def finished(self) -> bool:
        return self.got[-1:] != [] and self.got[-1][1] == str(MESSAGES)

    def headers(self) -> dict[str, str]:
        self.resumed += bool(self.cursor)
        return {"Last-Event-ID": self.cursor} if self.cursor else {}

    def take(self, kind: str, cursor: str, data: str) -> None:
        assert kind == "message", data
        self.got.append((cursor, data))
        self.cursor = cursor

    async def read_with_httpx(self, client: httpx.AsyncClient) -> None:
        """Leave after any number of events, or when the server ends the stream."""
        while not self.finished():
            some = self.random.randrange(40) if self.cursor else 1
            async with event_stream(self.url, self.headers(), client=client) as events:
                try:
                    for _ in range(some):
                        event = await events.next()
                        self.take(event.event, event.id, event.data)
                        if self.finished():
                            break
                except StopAsyncIteration:
                    continue

    async def read_raw(self) -> None:
        """Leave after any number of bytes, and take what is whole of them."""
        while not self.finished():
            some = self.random.randrange(1500)
            async with Raw.to(self.url) as client:
                lines = [f"{name}: {value}" for name, value in self.headers().items()]
                await client.get("/", "HTTP/1.0", *lines)
                await client.head()
                last = f"data: {MESSAGES}\n\n".encode()
                async with asyncio.timeout(3 * DEADLINE):
                    while len(client.seen) < some and not client.seen.endswith(last):
                        if not await client.more():
                            break
                whole, end, _ = bytes(client.seen[:some]).rpartition(b"\n\n")
            for event in sseclient.SSEClient(iter([whole + end])).events():
                assert event.id is not None
                self.take(event.event, event.id, event.data)


async def submit_all(store: QueueStore[int], dice: random.Random) -> list[tuple[str, str]]:
    """Submit the messages, some in bursts, and end the streams of some clients meanwhile."""
    sent: list[Message[int]] = []
    for number in range(1, MESSAGES + 1):
        sent.append(await store.submit(number))
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.02)
        if number % 10 == 0:
            for handler in dice.sample(store.subscribers, min(5, len(store.subscribers))):
                assert isinstance(handler, EventSource)
                if handler.request.version == "HTTP/1.1":
                    handler.finish()
    return [(str(message.id), str(message.data)) for message in sent]


async def test_p1_p2_p8_200_clients_that_come_and_go_lose_nothing_and_repeat_nothing() -> None:
    dice = random.Random(SEED)
    async with (
        QueueStore[int]() as store,
        serving(EventSource.route("/", store)) as url,
        http_client() as client,
    ):
        cursor = str((await store.submit(0)).id)
        fresh = [Reader(url, dice.getrandbits(32)) for _ in range(50)]
        resuming = [Reader(url, dice.getrandbits(32), cursor) for _ in range(50)]
        raw = [Reader(url, dice.getrandbits(32), cursor) for _ in range(100)]
        async with asyncio.TaskGroup() as group:
            for reader in fresh:
                group.create_task(reader.read_with_httpx(client))
            await eventually(lambda: len(store.subscribers) == len(fresh))
            for reader in resuming:
                group.create_task(reader.read_with_httpx(client))
            for reader in raw:
                group.create_task(reader.read_raw())
            sent = await submit_all(store, dice)
        for reader in (*fresh, *resuming, *raw):
            assert reader.got == sent
        await eventually(lambda: not store.subscribers)
        books = store.statistics()
        assert balanced(books)
        assert books.gaps == 0
        resumed = sum(reader.resumed for reader in (*fresh, *resuming, *raw))
        assert books.resumed == resumed >= 800


async def events_after(
    url: str, count: int, headers: Mapping[str, str] | None = None
) -> list[ServerSentEvent]:
    async with event_stream(url, headers) as events:
        assert events.response.status_code == 200
        return await events.take(count)


async def test_p8_the_header_wins_over_the_query_argument() -> None:
    async with QueueStore[int]() as store, serving(EventSource.route("/", store)) as url:
        ids = [(await store.submit(number)).id for number in range(5)]
        stale = f"{url}/?last_event_id={ids[0]}"
        (by_query,) = await events_after(stale, 1)
        assert by_query.data == "1"
        (by_header,) = await events_after(stale, 1, {"Last-Event-ID": str(ids[3])})
        assert by_header.data == "4"
        (last_of_two,) = await events_after(f"{stale}&last_event_id={ids[2]}", 1)
        assert last_of_two.data == "3"


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/", {}), ("/", {"Last-Event-ID": ""}), ("/?last_event_id=", {}), ("/?last_event_id", {})],
)
async def test_an_empty_id_is_none(path: str, headers: dict[str, str]) -> None:
    async with QueueStore[str]() as store, serving(EventSource.route("/", store)) as url:
        await store.submit("before")
        async with event_stream(url + path, headers) as events:
            await eventually(lambda: store.subscribers)
            await store.submit("now")
            assert (await events.next()).data == "now"
        assert store.statistics().gaps == store.statistics().resumed == 0


def gap(reason: str, after: str | None) -> dict[str, Any]:
    return {"reason": reason, "after": after}


GARBAGE = [
    ("/", "abc"),
    ("/", "1"),
    ("/", "-1"),
    ("/", "$"),
    ("/", "0-0"),
    ("/", " x y "),
    ("/", "é€"),
    ("/", "x" * 30_000),
    ("/", '{"a": "b"}'),
    ("/?last_event_id=abc", ""),
    ("/?last_event_id=%ff%fe", ""),
    ("/?last_event_id=%00", ""),
    ("/?last_event_id=%0Adata:%20forged%0A%0A", ""),
    ("/?last_event_id=%zz", ""),
    ("/?last_event_id=%ED%A0%80", ""),
]


@pytest.mark.parametrize(("path", "header"), GARBAGE)
async def test_p8_garbage_is_a_gap_of_reason_unknown_and_status_200(
    path: str, header: str
) -> None:
    async with (
        QueueStore[str]() as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        await store.submit("before")
        request = f"GET {path} HTTP/1.0\r\nLast-Event-ID: {header}\r\n\r\n"
        await client.send_bytes(request.encode())
        first, _ = await client.head()
        assert first == "HTTP/1.1 200 OK"
        text = (await client.until(b"\n\n")).decode()
        assert text == 'event: gap\ndata: {"reason":"unknown","after":null}'
        message = await store.submit("now")
        assert await client.until(b"\n\n") == f"id: {message.id}\ndata: now".encode()


@pytest.mark.parametrize(
    "suffix", ["-0", "-01", "-6", "-7", "-99999999999999999999", "-1-1", "-٣"]
)
async def test_p8_an_id_that_the_store_has_never_given_is_a_gap(suffix: str) -> None:
    async with QueueStore[int]() as store, serving(EventSource.route("/", store)) as url:
        ids = [str((await store.submit(number)).id) for number in range(5)]
        forged = ids[0].rpartition("-")[0] + suffix
        async with Raw.to(url) as client:
            await client.send_bytes(f"GET / HTTP/1.0\r\nLast-Event-ID: {forged}\r\n\r\n".encode())
            await client.head()
            text = (await client.until(b"\n\n")).decode()
            assert text == 'event: gap\ndata: {"reason":"unknown","after":null}'


async def test_p8_an_id_that_is_too_old_is_a_gap_where_the_hole_is() -> None:
    async with QueueStore[int](history=5) as store, serving(EventSource.route("/", store)) as url:
        ids = [str((await store.submit(number)).id) for number in range(20)]
        hole, *kept = await events_after(url, 6, {"Last-Event-ID": ids[3]})
        assert (hole.event, hole.id) == ("gap", "")
        assert hole.json() == gap("expired", ids[3])
        assert [(event.id, event.data) for event in kept] == [
            (ids[number], str(number)) for number in range(15, 20)
        ]
        edge = await events_after(url, 5, {"Last-Event-ID": ids[14]})
        assert [event.data for event in edge] == ["15", "16", "17", "18", "19"]


async def test_p8_an_id_from_before_a_restart_is_a_gap_and_the_stream_goes_on() -> None:
    port = free_port()

    async def serve_once(headers: Mapping[str, str]) -> tuple[list[ServerSentEvent], str]:
        async with (
            QueueStore[str]() as store,
            listening(Application([EventSource.route("/", store)]), port=port) as url,
            event_stream(url, headers) as events,
        ):
            await eventually(lambda: store.subscribers)
            message = await store.submit("hello")
            count = 2 if headers else 1
            return await events.take(count), str(message.id)

    (hello,), cursor = await serve_once({})
    assert hello.id == cursor
    (told, hello), later = await serve_once({"Last-Event-ID": cursor})
    assert told.event == "gap"
    assert told.json() == gap("restarted", cursor)
    assert (hello.id, hello.data) == (later, "hello")


async def test_p8_a_store_that_cannot_resume_tells_of_a_gap() -> None:
    async with DataStore[str]("now") as store, serving(EventSource.route("/", store)) as url:
        told, now = await events_after(url, 2, {"Last-Event-ID": STALE})
        assert told.json() == gap("unknown", None)
        assert (now.data, now.id) == ("now", "")


async def test_a_gap_event_does_not_move_the_cursor(logged: Logged) -> None:
    async with (
        QueueStore[float]() as store,
        serving(EventSource.route("/", store)) as url,
        Raw.to(url) as client,
    ):
        start, before, poison, after = [
            await store.submit(number) for number in (0, 1, math.nan, 2)
        ]
        await client.get("/", "HTTP/1.0", f"Last-Event-ID: {start.id}")
        await client.head()
        assert await client.until(b"\n\n") == f"id: {before.id}\ndata: 1".encode()
        event, data = (await client.until(b"\n\n")).decode().split("\n")
        assert event == "event: gap"
        assert json.loads(data.removeprefix("data: ")) == gap("poisoned", before.id)
        assert await client.until(b"\n\n") == f"id: {after.id}\ndata: 2".encode()
        # who left in between comes back with the cursor of before, and is told again
        told, again = await events_after(url, 2, {"Last-Event-ID": str(before.id)})
        assert (told.event, again.data) == ("gap", "2")
        (only,) = await events_after(url, 1, {"Last-Event-ID": str(poison.id)})
        assert only.data == "2"
    logged.take("cannot be encoded", times=2)  # chunked, and not


async def test_p8_a_replay_longer_than_the_backlog_arrives_whole_at_a_slow_reader() -> None:
    async with (
        QueueStore[str](backlog=4) as store,
        serving(EventSource.route("/", store, send_buffer=16384)) as url,
        Raw.to(url, receive_buffer=16384) as client,
    ):
        text = "x" * 10_000
        sent = [await store.submit(f"{number} {text}") for number in range(300)]
        await client.get("/", "HTTP/1.0", f"Last-Event-ID: {sent[0].id}")
        await client.head()
        for message in sent[1:150]:
            body = f"id: {message.id}\ndata: {message.data}".encode()
            assert await client.until(b"\n\n") == body
        sent += [await store.submit(f"{number} {text}") for number in range(300, 400)]
        for message in sent[150:]:
            body = f"id: {message.id}\ndata: {message.data}".encode()
            assert await client.until(b"\n\n") == body
        assert store.statistics().gaps == 0


async def test_an_id_is_utf_8_in_the_header_and_in_the_query() -> None:
    class Asked(QueueStore[str]):
        def resume(self, subscriber: Subscriber[str], after: str, /) -> None:
            asked.append(after)
            super().resume(subscriber, after)

    asked: list[str] = []
    async with Asked() as store, serving(EventSource.route("/", store)) as url, Raw.to(url) as raw:
        await raw.get("/", "HTTP/1.1", "Last-Event-ID: é€".encode().decode("latin-1"))
        await eventually(lambda: asked == ["é€"])
        async with Raw.to(url) as other:
            await other.get("/?last_event_id=%C3%A9%E2%82%AC")
            await eventually(lambda: asked == ["é€", "é€"])
