"""Handlers that register before their request is accepted, or in a method of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tornado.web import stream_request_body
from tornado.websocket import WebSocketClientConnection, websocket_connect

from conftest import Logged
from integration.raw import UPGRADE, dialled, request
from support import DEADLINE, balanced, eventually, serving
from tornadose import (
    BaseHandler,
    BaseStore,
    DataStore,
    EventSource,
    Message,
    QueueStore,
    Store,
    WebSocketSubscriber,
)


class LongPolling(BaseHandler[Any]):
    async def publish(self, message: Message[Any], /) -> None:
        self.finish({"data": message.data})


class Early(BaseHandler[Any]):
    """Registers as handlers of 0.5 did, and may be checked for a while then."""

    checked: asyncio.Event

    def initialize(self, store: Store[Any], **_: Any) -> None:
        self.store = store
        store.register(self)

    async def prepare(self) -> None:
        await self.checked.wait()


class EarlyPoll(Early, LongPolling):
    async def post(self) -> None:
        await self.store.submit("posted")


class EarlyStream(Early, EventSource[Any]):
    async def post(self) -> None:
        await self.store.submit("posted")


class EarlySocket(Early, WebSocketSubscriber[Any]):
    def open(self, *args: Any, **kwargs: Any) -> None:
        """Subscribe no more, as it is registered."""


EARLY = (EarlyPoll, EarlyStream, EarlySocket)


@pytest.fixture
def checked() -> asyncio.Event:
    Early.checked = asyncio.Event()
    return Early.checked


async def answer(kind: type[Early], url: str) -> tuple[int, str]:
    """Return the status and the text, or the close code and the first message."""
    if kind is EarlySocket:
        socket = await websocket_connect(url.replace("http", "ws", 1))
        texts = [text async for text in messages(socket)]
        socket.close()
        return socket.close_code or 0, "".join(texts)
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        got = await http.get(url)
        return got.status_code, got.text


async def messages(socket: WebSocketClientConnection) -> AsyncIterator[str]:
    while (text := await socket.read_message()) is not None:
        yield str(text)


# ---- before the request is accepted


async def test_a_poll_that_registers_in_initialize_is_answered_once_it_is_accepted(
    checked: asyncio.Event,
) -> None:
    checked.set()
    async with (
        DataStore[object]("value") as store,
        serving(EarlyPoll.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        for _ in range(3):  # over one connection
            answer = await http.get(url)
            assert (answer.status_code, answer.json()["data"]) == (200, "value")
            assert store.subscribers == ()


@pytest.mark.parametrize("kind", EARLY)
async def test_who_is_still_checked_at_the_deadline_is_cut_off(
    kind: type[Early], checked: asyncio.Event, logged: Logged
) -> None:
    store = QueueStore[object]()
    async with serving(kind.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(request(url, UPGRADE if kind is EarlySocket else {}))
        await eventually(lambda: store.subscribers)
        await store.aclose(timeout=0.05)
        await raw.to_the_end()
        raw.leave()
        checked.set()
        await asyncio.sleep(0.01)
    logged.unexpected = [r for r in logged.unexpected if r.name != "tornado.access"]  # its 503
    logged.take("is closed before everybody had everything")


class Subscribing(LongPolling):
    """Registers early, and is asked by a method of its own."""

    SUPPORTED_METHODS = (*LongPolling.SUPPORTED_METHODS, "SUBSCRIBE")

    def initialize(self, store: Store[Any], **_: Any) -> None:
        self.store = store
        store.register(self)

    async def subscribe(self) -> None:
        await super().get()


async def test_a_poll_by_a_method_of_its_own_is_answered_once_it_is_accepted() -> None:
    async with (
        DataStore[object]("value") as store,
        serving(Subscribing.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        answer = await http.request("SUBSCRIBE", url)
        assert (answer.status_code, answer.json()["data"]) == (200, "value")
        assert store.subscribers == ()


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        (EarlyPoll, 200, '{"data": "accepted"}'),
        (EarlyStream, 200, "data: accepted\n\nretry: "),
        (EarlySocket, 1001, '{"data":"accepted",'),
    ],
)
async def test_what_was_accepted_before_the_store_is_closed_arrives(
    kind: type[Early], status: int, text: str, checked: asyncio.Event
) -> None:
    store = QueueStore[object]()
    async with serving(kind.route("/", store)) as url:
        asking = asyncio.create_task(answer(kind, url))
        await eventually(lambda: len(store.subscribers) == 1)
        await store.submit("accepted")
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        checked.set()
        assert (await asking)[0] == status
        assert text in (await asking)[1]
        await closing
        assert (store.statistics().delivered, store.statistics().abandoned) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [(EarlyPoll, 503, ""), (EarlyStream, 200, "retry: "), (EarlySocket, 1013, "")],
)
async def test_who_is_one_too_many_is_told_once_it_is_accepted(
    kind: type[Early], status: int, text: str, checked: asyncio.Event, logged: Logged
) -> None:
    checked.set()
    async with (
        QueueStore[object](max_subscribers=0) as store,
        serving(kind.route("/", store)) as url,
    ):
        got = await asyncio.wait_for(answer(kind, url), DEADLINE)
        assert (got[0], got[1][: len(text)]) == (status, text)
    if status == 503:
        logged.take("503")


class AnswersItself:
    """A mix-in with a method of its own, which does not go on with the handler's."""

    async def get(self) -> None:
        self.answered = asyncio.Event()
        await self.answered.wait()

    def on_finish(self) -> None:
        self.answered.set()


class MixedPoll(AnswersItself, EarlyPoll):
    """Is answered once the method of the mix-in is called."""


async def test_the_method_of_a_mix_in_accepts_the_request(checked: asyncio.Event) -> None:
    checked.set()
    async with DataStore[object]("value") as store, serving(MixedPoll.route("/", store)) as url:
        assert await answer(MixedPoll, url) == (200, '{"data": "value"}')


class SpeaksEarly(LongPolling):
    async def prepare(self) -> None:
        await self.submit("for this one alone")


async def test_who_is_one_too_many_gets_nothing_that_was_meant_for_it_alone(
    logged: Logged,
) -> None:
    async with (
        QueueStore[object](max_subscribers=0) as store,
        serving(SpeaksEarly.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.get(url)).text == ""
    logged.take("503")


class FailsAtTheEnd(EarlyPoll):
    async def prepare(self) -> None:
        asyncio.get_running_loop().call_later(0.05, self.end)

    def end(self) -> None:
        with pytest.raises(ZeroDivisionError):
            self.finish()

    def on_finish(self) -> None:
        raise ZeroDivisionError


async def test_p7_who_fails_when_it_has_finished_is_deregistered() -> None:
    async with (
        QueueStore[object]() as store,
        serving(FailsAtTheEnd.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.get(url)).status_code == 200
        await eventually(lambda: not store.subscribers, deadline=1)


@pytest.mark.parametrize("kind", [EarlyPoll, EarlyStream])
async def test_a_request_that_asks_for_nothing_works_also_where_there_is_no_room(
    kind: type[Early], checked: asyncio.Event
) -> None:
    checked.set()
    async with (
        QueueStore[object](max_subscribers=0) as store,
        serving(kind.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.post(url)).status_code == 200
        assert store.statistics().submitted == 1


class WorksWhileItIsClosed(EarlyStream):
    working: asyncio.Event
    closed: asyncio.Event

    async def post(self) -> None:
        self.working.set()
        await self.closed.wait()
        self.set_status(202)


async def test_a_request_that_asks_for_nothing_goes_on_when_the_store_is_closed(
    checked: asyncio.Event,
) -> None:
    checked.set()
    WorksWhileItIsClosed.working = asyncio.Event()
    WorksWhileItIsClosed.closed = asyncio.Event()
    async with (
        QueueStore[object]() as store,
        serving(WorksWhileItIsClosed.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        asking = asyncio.create_task(http.post(url))
        await WorksWhileItIsClosed.working.wait()
        await store.aclose()
        WorksWhileItIsClosed.closed.set()
        assert (await asking).status_code == 202


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [(EarlyPoll, 503, ""), (EarlyStream, 200, "retry: "), (EarlySocket, 1001, "")],
)
async def test_who_would_resume_while_the_store_is_closed_is_told_so(
    kind: type[Early], status: int, text: str, checked: asyncio.Event, logged: Logged
) -> None:
    store = QueueStore[object]()
    async with serving(kind.route("/", store)) as url:
        cursor = (await store.submit("seen")).id
        asking = asyncio.create_task(answer(kind, f"{url}?last_event_id={cursor}"))
        await eventually(lambda: len(store.subscribers) == 1)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        checked.set()
        got = await asyncio.wait_for(asking, DEADLINE)
        assert (got[0], got[1][: len(text)]) == (status, text)
        await closing
    if status == 503:
        logged.take("503")


async def test_p8_who_resumes_gets_everything_once_and_in_order(checked: asyncio.Event) -> None:
    class Slow(EarlyPoll):
        got: list[object] = []  # noqa: RUF012 (of the one request)
        go_on = asyncio.Event()

        async def get(self) -> None:
            await self.go_on.wait()
            await super().get()

        async def publish(self, message: Message[Any], /) -> None:
            self.got.append(message.data)
            if len(self.got) == 3:
                self.finish()

    async with (
        QueueStore[object]() as store,
        serving(Slow.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        first = await store.submit(1)
        await store.submit(2)
        asking = asyncio.create_task(http.get(url, headers={"Last-Event-ID": str(first.id)}))
        await eventually(lambda: len(store.subscribers) == 1)
        checked.set()
        await store.submit(3)
        await eventually(lambda: Slow.got == [2, 3])
        Slow.go_on.set()
        await store.submit(4)
        await asking
        assert Slow.got == [2, 3, 4]
        assert balanced(store.statistics())


@pytest.mark.parametrize("body", [b"", b"half of it"])
async def test_p7_who_leaves_in_mid_body_is_deregistered(
    body: bytes, checked: asyncio.Event
) -> None:
    @stream_request_body
    class Upload(EarlyPoll):
        def data_received(self, chunk: bytes) -> None:
            """Take no note of it."""

    checked.set()
    async with QueueStore[object]() as store, serving(Upload.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + body)
        await eventually(lambda: len(store.subscribers) == 1)
        raw.leave()
        await eventually(lambda: not store.subscribers, deadline=1)


# ---- in a method of its own


class OwnGet(BaseHandler[Any]):
    """Subscribes by itself, without the `get` of this package."""

    async def get(self) -> None:
        self.answered = asyncio.Event()
        self.store.register(self)
        await self.answered.wait()

    post = get

    async def publish(self, message: Message[Any], /) -> None:
        self.finish({"data": message.data})

    def on_finish(self) -> None:
        self.answered.set()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_handler_that_registers_in_a_method_of_its_own_gets_the_message(
    method: str,
) -> None:
    async with (
        DataStore[object]("value") as store,
        serving(OwnGet.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.request(method, url)).json() == {"data": "value"}
        assert store.subscribers == ()


class TalksToItself(OwnGet):
    async def get(self) -> None:
        self.answered = asyncio.Event()
        self.store.register(self)
        await self.submit("for this one alone")
        await self.answered.wait()


@pytest.mark.parametrize("cursor", ["", "of-another-store"])
async def test_what_a_method_of_its_own_submits_arrives(cursor: str) -> None:
    async with (
        QueueStore[object]() as store,
        serving(TalksToItself.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        answered = await http.get(url, headers={"Last-Event-ID": cursor})
        assert answered.json() == {"data": "for this one alone"}


async def test_p7_who_leaves_before_a_method_of_its_own_registers_is_deregistered() -> None:
    arrived, lost, authorized, registered, over = (asyncio.Event() for _ in range(5))

    class Authorizing(OwnGet):
        async def get(self) -> None:
            arrived.set()
            await authorized.wait()
            self.store.register(self)
            registered.set()
            await over.wait()

        def on_connection_close(self) -> None:
            lost.set()

        def on_finish(self) -> None:
            """Nobody waits for an answer."""

    async with QueueStore[object]() as store, serving(Authorizing.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(request(url, {}))
        await arrived.wait()
        raw.leave()
        await lost.wait()
        authorized.set()
        try:
            await registered.wait()
            await eventually(lambda: not store.subscribers, deadline=1)
        finally:
            over.set()


async def test_released_in_a_method_of_its_own_is_503(logged: Logged) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        store = QueueStore[object](max_subscribers=1)
        async with serving(OwnGet.route("/", store)) as url:
            waiting = asyncio.create_task(http.get(url))
            await eventually(lambda: len(store.subscribers) == 1)
            assert (await http.get(url)).status_code == 503  # limit
            await asyncio.wait_for(store.aclose(), DEADLINE)
            assert (await waiting).status_code == 503  # closed
    logged.take("503 GET", times=2)


class Hesitant(BaseHandler[Any]):
    """Registers early, and goes on when it is told to, by when its store has failed."""

    registered: asyncio.Event
    go_on: asyncio.Event

    async def register(self) -> None:
        self.store.register(self)
        self.registered.set()
        await self.go_on.wait()


class SlowPrepare(Hesitant, OwnGet):
    async def prepare(self) -> None:
        await self.register()

    async def get(self) -> None:
        """Leave the answer to `publish`."""
        self.answered = asyncio.Event()
        if not self._finished:
            await self.answered.wait()

    def on_finish(self) -> None:
        """Nobody waits yet."""


class SlowPoll(Hesitant, LongPolling):
    async def get(self) -> None:
        await self.register()
        await super().get()


class SlowStream(Hesitant, EventSource[Any]):
    async def get(self) -> None:
        await self.register()
        await super().get()


class SlowSocket(Hesitant, WebSocketSubscriber[Any]):
    async def get(self, *args: Any, **kwargs: Any) -> None:
        await self.register()
        await super().get(*args, **kwargs)


class Failing(BaseStore[Any]):
    """Fails once somebody has come, who hears of it before going on."""

    def __init__(self, kind: type[Hesitant]) -> None:
        kind.registered, kind.go_on = asyncio.Event(), asyncio.Event()
        super().__init__()
        self.kind = kind

    async def submit(self, data: Any, /, *, event: str | None = None) -> Message[Any]:
        raise NotImplementedError

    async def publish(self) -> None:
        await self.kind.registered.wait()
        asyncio.get_running_loop().call_later(0.1, self.kind.go_on.set)
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", [SlowPrepare, SlowPoll])
async def test_released_before_it_subscribes_is_503(kind: type[Hesitant], logged: Logged) -> None:
    async with (
        serving(kind.route("/", Failing(kind))) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.get(url)).status_code == 503
        await kind.go_on.wait()
    logged.take("publish")
    logged.take("503 GET")


async def test_a_stream_released_before_it_subscribes_ends(logged: Logged) -> None:
    async with (
        serving(SlowStream.route("/", Failing(SlowStream))) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        answer = await http.get(url)
        assert (answer.status_code, answer.text) == (200, "")
        assert answer.headers["Content-Type"] == "text/event-stream"
        await SlowStream.go_on.wait()
    logged.take("publish")


async def test_a_socket_released_before_it_subscribes_is_closed_behind_the_handshake(
    logged: Logged,
) -> None:
    async with serving(SlowSocket.route("/", Failing(SlowSocket))) as url:
        socket = await websocket_connect(url.replace("http", "ws", 1))
        assert await socket.read_message() is None
        assert socket.close_code == 1011
        socket.close()
    logged.take("publish")
