"""The EventSource that browsers have, as npm's `eventsource` in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tornado.http1connection import HTTP1Connection
from tornado.web import Application, HTTPError

from integration.clients import free_port, line_of, listening, running
from support import eventually, program, serving
from tornadose import EventSource, QueueStore

if TYPE_CHECKING:
    from conftest import Logged

NODE = Path(__file__).parent / "node"
PACKAGE = "eventsource"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the client outside the checkout's own files, and return its script."""
    npm, _ = program("npm"), program("node")
    wanted = json.loads((NODE / "package.json").read_text())["dependencies"][PACKAGE]
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    folder = cache.mkdir("eventsource") if cache is not None else tmp_path_factory.mktemp("node")
    for file in NODE.iterdir():
        shutil.copy(file, folder)
    manifest = folder / "node_modules" / PACKAGE / "package.json"
    if not manifest.exists() or json.loads(manifest.read_text())["version"] != wanted:
        options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(
            [npm, "install", *options], cwd=folder, check=True, capture_output=True, timeout=100
        )
    return folder / "listen.mjs"


@dataclass(frozen=True)
class Event:
    """A line that the script prints."""

    type: str
    id: str = ""
    data: str = ""


@asynccontextmanager
async def browser(script: Path, url: str) -> AsyncGenerator[Process]:
    async with running(program("node"), str(script), url) as process:
        assert await event_of(process) == Event("open")
        yield process


async def event_of(process: Process) -> Event:
    line = await line_of(process)
    assert line, "the client has ended"
    return Event(**json.loads(line))


async def messages_of(process: Process, last: str) -> tuple[list[Event], list[str]]:
    """Return the messages up to one with this payload, and what happened in between."""
    messages: list[Event] = []
    between: list[str] = []
    while not messages or messages[-1].data != last:
        event = await event_of(process)
        if event.type in ("message", "news"):
            messages.append(event)
        else:
            between.append(event.type)
    return messages, between


async def test_a_browser_receives_messages_with_their_ids_and_types(script: Path) -> None:
    async with (
        QueueStore[object]() as store,
        serving(EventSource.route("/", store)) as url,
        browser(script, url) as process,
    ):
        await eventually(lambda: store.subscribers)
        payloads = [
            "plain",
            "",
            " a\r\nb\rc\n",
            "a\u2028b\x85",
            "\ufeffé\U0001f600",
            "x" * 300_000,
        ]
        for payload in payloads:
            message = await store.submit(payload, event="news")
            text = payload.replace("\r\n", "\n").replace("\r", "\n")
            assert await event_of(process) == Event("news", str(message.id), text)
        message = await store.submit({"a": [1, None]})
        assert await event_of(process) == Event("message", str(message.id), '{"a":[1,null]}')


def finish(handler: EventSource[int]) -> None:
    handler.finish()


def cut(handler: EventSource[int]) -> None:
    connection = handler.request.connection
    assert isinstance(connection, HTTP1Connection)
    assert connection.stream is not None
    connection.stream.close()


@pytest.mark.parametrize("end", [finish, cut])
async def test_p8_a_browser_comes_back_by_itself_and_misses_and_repeats_nothing(
    script: Path, end: Callable[[EventSource[int]], None]
) -> None:
    async with (
        QueueStore[int]() as store,
        serving(EventSource.route("/", store, retry=0.05)) as url,
        browser(script, url) as process,
    ):
        sent: list[Event] = []

        async def submit(number: int) -> None:
            message = await store.submit(number)
            sent.append(Event("message", str(message.id), str(number)))

        await eventually(lambda: store.subscribers)
        await submit(0)
        assert await event_of(process) == sent.pop()  # from here on it has a cursor
        for connection in range(5):
            await eventually(lambda: store.subscribers)
            for number in range(10):
                await submit(10 * connection + number)
            (handler,) = store.subscribers
            assert isinstance(handler, EventSource)
            end(handler)
            await eventually(lambda: not store.subscribers)
            for number in range(10):  # while nobody is there
                await submit(100 + 10 * connection + number)
        await submit(1000)
        messages, between = await messages_of(process, "1000")
        assert messages == sent
        assert between == ["reconnecting", "open"] * 5


async def test_p8_a_browser_misses_nothing_while_its_server_is_replaced(script: Path) -> None:
    port = free_port()
    async with QueueStore[int]() as store, AsyncExitStack() as stack:
        application = Application([EventSource.route("/", store, retry=0.05)])
        async with listening(application, port=port) as url:
            process = await stack.enter_async_context(browser(script, url))
            await eventually(lambda: store.subscribers)
            await store.submit(0)
            assert (await event_of(process)).data == "0"  # from here on it has a cursor
            sent = [await store.submit(number) for number in range(1, 10)]
        sent += [await store.submit(number) for number in range(10, 20)]
        assert not store.subscribers
        async with listening(application, port=port):
            sent += [await store.submit(number) for number in range(20, 30)]
            messages, between = await messages_of(process, "29")
            assert messages == [Event("message", str(m.id), str(m.data)) for m in sent]
            assert between[0] == "reconnecting"
            assert between.count("open") == 1


async def test_p8_a_browser_is_told_of_the_gap_when_the_store_was_replaced(script: Path) -> None:
    port = free_port()

    @asynccontextmanager
    async def generation(store: QueueStore[str]) -> AsyncGenerator[str]:
        application = Application([EventSource.route("/", store, retry=0.05)])
        async with listening(application, port=port) as url, store:  # the store leaves first
            yield url

    async with AsyncExitStack() as stack:
        old = QueueStore[str]()
        async with generation(old) as url:
            process = await stack.enter_async_context(browser(script, url))
            await eventually(lambda: old.subscribers)
            sent = [await old.submit(f"{number}") for number in range(10)]
        last = str(sent[-1].id)
        messages, _ = await messages_of(process, "9")
        assert [event.id for event in messages] == [message.id for message in sent]
        new = QueueStore[str]()
        async with generation(new):
            await eventually(lambda: new.subscribers)
            told = await event_of(process)
            while told.type in ("reconnecting", "open"):
                told = await event_of(process)
            assert told.type == "gap"
            assert json.loads(told.data) == {"reason": "restarted", "after": last}
            message = await new.submit("again")
            assert await event_of(process) == Event("message", str(message.id), "again")


async def test_a_browser_gives_up_on_a_refusal_alone(script: Path, logged: Logged) -> None:
    """A cursor that cannot be used is no refusal: it would be the end of the stream."""

    class Guarded(EventSource[str]):
        def prepare(self) -> None:
            if self.get_argument("key", "") != "open":
                raise HTTPError(403)

    async with QueueStore[str]() as store, serving(Guarded.route("/", store)) as url:
        async with running(program("node"), str(script), url) as process:
            assert await event_of(process) == Event("gave up")
        async with browser(script, f"{url}/?key=open&last_event_id=%ff") as process:
            assert (await event_of(process)).type == "gap"
            message = await store.submit("hello")
            assert await event_of(process) == Event("message", str(message.id), "hello")
    logged.take("403")
