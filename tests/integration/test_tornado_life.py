"""A store in the life of a Tornado program: loops, threads, test cases, the end."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
import textwrap
import threading
import unittest
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado import testing
from tornado.web import Application, HTTPError
from tornado.websocket import websocket_connect

from conftest import Logged
from integration.raw import Raw, dialled, opened, request
from support import DEADLINE, Plain, eventually, serving
from tornadose import (
    BaseHandler,
    DataStore,
    EventSource,
    Message,
    QueueStore,
    WebSocketSubscriber,
)

# ---- Tornado's test cases: a module-level store, and a new event loop for each test method

queue: QueueStore[str] = QueueStore()
value: DataStore[str] = DataStore("initial")


class Case(testing.AsyncHTTPTestCase):
    """Runs its methods one after the other, on a loop each; nobody closes the stores."""

    __test__ = False  # pytest leaves it to the test below

    def get_app(self) -> Application:
        return Application(
            [
                EventSource.route("/queue", queue),
                EventSource.route("/value", value),
                WebSocketSubscriber.route("/socket", queue),
            ]
        )

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_1_nothing_is_there_yet(self) -> None:
        assert queue.statistics().submitted == 0
        await self.talk("first")

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_2_the_store_has_started_afresh(self) -> None:
        message = await self.talk("second")
        assert str(message.id).endswith("-1")
        assert queue.statistics().submitted == 1

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_3_a_value_begins_with_its_initial_data_again(self) -> None:
        await self.see("initial")
        await value.submit("changed")
        await self.see("changed")

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_4_also_after_it_was_changed_in_another_loop(self) -> None:
        await self.see("initial")
        await value.submit("changed again")

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_5_closed_in_one_loop_it_is_open_in_the_next(self) -> None:
        await queue.submit("x")
        await queue.aclose()

    @testing.gen_test  # pyright: ignore[reportUnknownMemberType]  # Tornado's type arguments
    async def test_6_open_again(self) -> None:
        await self.talk("after closing")

    async def talk(self, text: str) -> Message[str]:
        """Have a WebSocket registered, and left behind, while a message comes."""
        socket = await websocket_connect(self.get_url("/socket").replace("http", "ws", 1))
        message = await queue.submit(text)
        got = await asyncio.wait_for(asyncio.ensure_future(socket.read_message()), DEADLINE)
        assert json.loads(got or "") == {"data": text, "id": message.id}
        assert len(queue.subscribers) == 1
        socket.close()
        await eventually(lambda: not queue.subscribers)
        return message

    async def see(self, text: str) -> None:
        """Read an event stream up to this value, and go away."""
        raw = await dialled(self.get_url("/value"))
        await raw.send(request(self.get_url("/value"), {}))
        await raw.until(text.encode())
        raw.leave()
        await eventually(lambda: not value.subscribers)


def run_cases(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


async def test_a_module_level_store_starts_afresh_on_the_loop_of_each_test_case() -> None:
    result = await asyncio.to_thread(run_cases, Case)  # a thread, as this one has a loop
    assert [trace for _, trace in (*result.errors, *result.failures)] == []
    assert result.testsRun == 6


# ---- loops: a program of its own for each


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this text with warnings as errors, but for one that is Tornado's own.

    `IOLoop.current` outside a loop asks asyncio for one in a way that Python 3.12 deprecates.
    """
    known = "ignore:There is no current event loop:DeprecationWarning"
    options = ["-W", "error", "-W", known, "-X", "dev"]
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


BODY = """
import asyncio, sys, tempfile
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornadose import DataStore, EventSource, QueueStore

store, value = QueueStore(), DataStore("old")  # no loop yet
value.data = "new"
app = Application([EventSource.route("/", store), EventSource.route("/value", value)])

async def main(expected="new"):
    server, sockets = HTTPServer(app), bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    got = []
    async def stream(path):
        chunks = []
        await AsyncHTTPClient().fetch(url + path, streaming_callback=chunks.append)
        got.append(b"".join(chunks).decode())
    readers = [asyncio.create_task(stream(path)) for path in ("/", "/value")]
    while not (store.subscribers and value.subscribers):
        await asyncio.sleep(0.001)
    await store.submit("hello")
    await store.aclose()
    await value.aclose()
    await asyncio.gather(*readers)
    server.stop()
    await server.close_all_connections()
    assert "data: hello" in got[0] + got[1]
    assert f"data: {expected}" in got[0] + got[1]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    print(type(asyncio.get_running_loop()).__module__, "ok")
"""

STARTS = {
    "asyncio.run": "asyncio.run(main())",
    "IOLoop.run_sync": "IOLoop.current().run_sync(main)",
    "IOLoop.start": """
async def then_stop():
    await main()
    IOLoop.current().stop()
IOLoop.current().add_callback(then_stop)
IOLoop.current().start()
IOLoop.current().close(all_fds=True)
""",
    "two loops in a row": "asyncio.run(main()); asyncio.run(main('old'))",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
async def test_a_store_built_before_any_loop_works_in_it(start: str) -> None:
    ended = await asyncio.to_thread(program, BODY + start)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("asyncio")


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="needs uvloop")
async def test_a_store_built_before_any_loop_works_in_uvloop() -> None:
    runner = "asyncio.Runner(loop_factory=uvloop.new_event_loop)"
    start = f"import uvloop\nwith {runner} as r: r.run(main())"
    ended = await asyncio.to_thread(program, BODY + start)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "uvloop ok\n")


# ---- threads, and other loops


async def test_use_from_another_thread_is_refused_with_the_way_to_do_it() -> None:
    async with QueueStore[str]() as store, DataStore("a") as latest:
        plain = Plain[str]()
        store.register(plain)

        def assign() -> None:
            latest.data = "b"

        calls: list[Callable[[], object]] = [
            lambda: asyncio.run(store.submit("x")),
            lambda: store.submit_nowait("x"),
            lambda: store.register(Plain[str]()),
            lambda: store.deregister(plain),
            lambda: store.resume(Plain[str](), "x"),
            lambda: asyncio.run(store.aclose()),
            lambda: asyncio.run(store.broadcast(Message("x"))),
            lambda: asyncio.run(latest.submit("x")),
            assign,
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await asyncio.to_thread(call)
        await store.submit("sentinel")
        await eventually(lambda: plain.got)
        assert plain.got == ["sentinel"]
        assert (store.statistics().submitted, latest.data) == (1, "a")


async def test_p1_run_coroutine_threadsafe_works_from_several_threads() -> None:
    async with QueueStore[str](inbox=4) as store:
        plain = Plain[str]()
        store.register(plain)
        loop = asyncio.get_running_loop()

        def work(name: str) -> None:
            for n in range(100):
                asyncio.run_coroutine_threadsafe(store.submit(f"{name}{n}"), loop).result(DEADLINE)

        threads = [threading.Thread(target=work, args=[name]) for name in "abc"]
        for thread in threads:
            thread.start()
        await eventually(lambda: len(plain.got) == 300)
        for name, thread in zip("abc", threads, strict=True):
            thread.join()
            assert [x for x in plain.got if x[0] == name] == [f"{name}{n}" for n in range(100)]


async def test_another_loop_is_refused_while_the_first_is_open_and_served_after_it() -> None:
    store = QueueStore[str]()

    def elsewhere() -> None:
        first = asyncio.new_event_loop()
        first.run_until_complete(store.submit("first"))
        with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="another event loop"):
            runner.run(store.submit("second"))
        first.run_until_complete(store.aclose())
        first.close()
        with asyncio.Runner() as runner:
            message = runner.run(store.submit("third"))
            assert str(message.id).endswith("-1")
            runner.run(store.aclose())

    await asyncio.to_thread(elsewhere)


async def test_a_loop_closed_with_messages_unsent_is_said(logged: Logged) -> None:
    store = QueueStore[str]()
    stuck = Plain[str]()
    stuck.running.clear()

    async def leave_behind() -> None:
        store.register(stuck)
        for n in range(5):
            await store.submit(str(n))
        await eventually(lambda: store.statistics().pending)

    def elsewhere() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_behind())
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left))
        loop.close()

    await asyncio.to_thread(elsewhere)
    await store.submit("afresh")
    assert store.subscribers == ()
    assert store.statistics().submitted == 1
    await store.aclose()
    logged.unexpected.clear()  # what a cancelled subscriber leaves behind is not the point here


# ---- long polling


class LongPolling(BaseHandler[Any]):
    """Answers with the next message as JSON."""

    async def publish(self, message: Message[Any], /) -> None:
        self.finish({"data": message.data, "id": message.id})


async def test_long_polling_in_a_few_lines_answers_round_after_round() -> None:
    async with (
        QueueStore[object]() as store,
        serving(LongPolling.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        for n in range(5):
            answers = [asyncio.create_task(http.get(url)) for _ in range(3)]
            await eventually(lambda: len(store.subscribers) == 3)
            message = await store.submit({"n": n})
            for answer in answers:
                assert (await answer).json() == {"data": {"n": n}, "id": message.id}
            assert store.subscribers == ()


async def test_p8_long_polling_with_the_last_id_misses_nothing_between_the_rounds() -> None:
    async with (
        QueueStore[object]() as store,
        serving(LongPolling.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        cursor = (await store.submit(-1)).id
        for n in range(20):
            await store.submit(n)
        for n in range(20):
            got = (await http.get(url, params={"last_event_id": cursor})).json()
            assert got["data"] == n
            cursor = got["id"]


class Impatient(LongPolling):
    async def get(self) -> None:
        try:
            async with asyncio.timeout(0.05):
                await super().get()
        except TimeoutError:
            await asyncio.wait_for(self.store.submit("too late"), DEADLINE)
            self.set_status(204)


async def test_p7_a_poll_that_gives_up_leaves_and_the_next_one_is_answered() -> None:
    async with (
        QueueStore[object]() as store,
        serving(Impatient.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        answer = await http.get(url)
        assert (answer.status_code, answer.content, store.subscribers) == (204, b"", ())
        first = await store.submit(1)
        await store.submit(2)
        assert (await http.get(url, params={"last_event_id": first.id})).json()["data"] == 2


class AnswersAtOnce(LongPolling):
    async def get(self) -> None:
        self.finish({"data": "known already"})
        await super().get()


class StreamsAtOnce(EventSource[Any]):
    async def get(self) -> None:
        self.finish({"data": "known already"})
        await super().get()


@pytest.mark.parametrize("kind", [AnswersAtOnce, StreamsAtOnce])
async def test_who_has_answered_does_not_subscribe(
    kind: type[AnswersAtOnce | StreamsAtOnce],
) -> None:
    async with (
        DataStore[object]("value") as store,
        serving(kind.route("/", store, heartbeat=0.01)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        for _ in range(2):  # over one connection
            assert (await http.get(url)).json() == {"data": "known already"}
            await asyncio.sleep(0.05)  # a few heartbeats that must not be
        assert (store.subscribers, store.statistics().offered) == ((), 0)


class Private(BaseHandler[Any]):
    async def get(self) -> None:
        if self.get_query_argument("token", "") != "right":
            raise HTTPError(403)
        await super().get()


class PollsOnce(BaseHandler[Any]):
    async def publish(self, message: Message[Any], /) -> None:
        self.finish({"data": message.data})


class PrivatePoll(PollsOnce, Private):
    """One whose access check comes after a class that has none."""


async def test_a_check_in_the_get_of_another_base_class_is_made(logged: Logged) -> None:
    async with (
        DataStore[object]("secret") as store,
        serving(PrivatePoll.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        assert (await http.get(url)).status_code == 403
        assert (await http.get(url, params={"token": "right"})).json() == {"data": "secret"}
    logged.take("403")


async def test_a_publish_that_is_not_async_ends_the_request_and_says_what_it_has_to_be(
    logged: Logged,
) -> None:
    class OldStyle(BaseHandler[Any]):
        def publish(self, message: Message[Any], /) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            self.set_status(202)

    async with (
        QueueStore[object]() as store,
        serving(OldStyle.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        waiting = asyncio.create_task(http.get(url))
        await eventually(lambda: len(store.subscribers) == 1)
        await store.submit("x")
        assert (await waiting).status_code == 503
        assert store.subscribers == ()
    (record,) = logged.take("publishing to")
    assert record.exc_info is not None
    assert "publish returned None: it has to be `async def`" in str(record.exc_info[1])
    logged.take("503")


@pytest.mark.parametrize("way", [Raw.leave, Raw.reset])
async def test_p7_who_goes_away_while_waiting_is_deregistered(way: Callable[[Raw], None]) -> None:
    async with QueueStore[object]() as store, serving(LongPolling.route("/", store)) as url:
        raw = await dialled(url)
        await raw.send(request(url, {}))
        await eventually(lambda: len(store.subscribers) == 1)
        way(raw)
        await eventually(lambda: not store.subscribers, deadline=1)
        await store.submit("nobody hears it")


async def test_released_while_waiting_is_503(logged: Logged) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        store = QueueStore[object](max_subscribers=1)
        async with serving(LongPolling.route("/", store)) as url:
            waiting = asyncio.create_task(http.get(url))
            await eventually(lambda: len(store.subscribers) == 1)
            assert (await http.get(url)).status_code == 503  # limit
            await store.aclose()
            assert (await waiting).status_code == 503  # closed
            assert (await http.get(url)).status_code == 503  # closed before it came
    logged.take("503 GET", times=3)


async def test_a_publish_that_raises_is_500_or_503_and_logged_once(logged: Logged) -> None:
    class Broken(BaseHandler[Any]):
        async def publish(self, message: Message[Any], /) -> None:
            raise ZeroDivisionError

    async with (
        QueueStore[object]() as store,
        serving(Broken.route("/", store)) as url,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        waiting = asyncio.create_task(http.get(url))
        await eventually(lambda: len(store.subscribers) == 1)
        await store.submit("x")
        assert (await waiting).status_code in (500, 503)
        assert store.subscribers == ()
    logged.take("publishing to")
    logged.take("50")


# ---- several handlers on one store


async def test_an_event_stream_a_websocket_and_a_poll_share_a_store() -> None:
    async with (
        QueueStore[str]() as store,
        serving(
            EventSource.route("/sse", store),
            WebSocketSubscriber.route("/ws", store),
            LongPolling.route("/poll", store),
        ) as url,
        opened(f"{url}/sse") as stream,
        opened(f"{url}/ws", websocket=True) as socket,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        poll = asyncio.create_task(http.get(f"{url}/poll"))
        await eventually(lambda: len(store.subscribers) == 3)
        message = await store.submit("for all")
        await stream.until(b"for all")
        await socket.until(b"for all")
        assert (await poll).json() == {"data": "for all", "id": message.id}
        assert stream.seen() == socket.seen() == ["for all"]
        assert stream.last_id() == socket.last_id() == message.id
        assert len(store.subscribers) == 2
        books = store.statistics()
        assert (books.offered, books.delivered) == (3, 3)


async def test_one_server_serves_two_stores_apart() -> None:
    async with (
        QueueStore[str]() as one,
        DataStore("v") as two,
        serving(EventSource.route("/one", one), EventSource.route("/two", two)) as url,
        opened(f"{url}/one") as first,
        opened(f"{url}/two") as second,
    ):
        await one.submit("a")
        await two.submit("b")
        await first.until(b"data: a")
        await second.until(b"data: b")
        assert (first.seen(), second.seen()) == (["a"], ["v", "b"])


# ---- Ctrl-C

SERVER = """
import random, signal
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.web import Application
from tornadose.handlers import EventSource, WebSocketSubscriber
from tornadose.stores import DataStore, QueueStore

store = DataStore()
app = Application([
    (r"/", EventSource, {"store": store}),
    (r"/ws", WebSocketSubscriber, {"store": store}),
])
sockets = bind_sockets(0, "127.0.0.1")
HTTPServer(app).add_sockets(sockets)
print(sockets[0].getsockname()[1], flush=True)
loop = IOLoop.current()
ticker = PeriodicCallback(lambda: store.submit(random.random()), 10)
ticker.start()
loop.asyncio_loop.add_signal_handler(signal.SIGINT, loop.stop)
loop.start()
ticker.stop()
loop.run_sync(store.aclose)
"""


LISTEN = """
from tornado.netutil import bind_sockets
from tornado.httpserver import HTTPServer
sockets = bind_sockets(0, "127.0.0.1")
HTTPServer(app).add_sockets(sockets)
print(sockets[0].getsockname()[1], flush=True)
"""


@asynccontextmanager
async def server(text: str) -> AsyncGenerator[tuple[Process, str], None]:
    """Run this program, and give the address behind the port it prints first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, stdout=PIPE, stderr=PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            port = (await process.stdout.readline()).decode().strip()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_ctrl_c_ends_a_server_cleanly_and_every_client_hears_of_it() -> None:
    async with server(SERVER) as (process, url):
        async with (
            opened(url) as stream,
            opened(url) as other,
            opened(f"{url}/ws", websocket=True) as socket,
        ):
            for raw in (stream, other, socket):
                await raw.until(b"0.")
            process.send_signal(signal.SIGINT)
            for raw in (stream, other):
                await raw.until(b"retry: ")
                await raw.until(b"\r\n0\r\n\r\n")  # the proper end of a chunked response
            while 0x8 not in [opcode for opcode, _ in socket.frames()]:
                assert await socket.fill()
            assert socket.frames()[-1][1][:2] == (1001).to_bytes(2)
            socket.leave()
            async with asyncio.timeout(DEADLINE):
                out, err = await process.communicate()
        assert (process.returncode, out, err.decode()) == (0, b"", "")


async def test_ctrl_c_ends_the_demo_cleanly() -> None:
    """Runs demos/basic.py as it is, on a port of its own."""
    demo = Path(__file__).parents[2] / "demos" / "basic.py"
    text = demo.read_text().replace("app.listen(9000)", LISTEN)
    assert "bind_sockets" in text
    async with server(text) as (process, url), opened(url) as stream:
        await stream.until(b"data: ")
        process.send_signal(signal.SIGINT)
        await stream.until(b"\r\n0\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            _, err = await process.communicate()
        assert (process.returncode, err.decode()) == (0, "")
