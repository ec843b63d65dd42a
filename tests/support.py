"""What the tests have in common: real servers, conditions with deadlines, recorders."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.routing import URLSpec
from tornado.web import Application

from tornadose import Batch, Gap, Message, Released, Statistics

T = TypeVar("T")

DEADLINE = 10.0  # seconds; generous, as it is only waited for by a test that fails


def program(name: str) -> str:
    """Return the path of a program; without it the test is skipped, but fails in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not on the PATH")
        pytest.skip(f"{name} is not on the PATH")
    return path


def server_side(certificate: tuple[str, str]) -> ssl.SSLContext:
    """Return what a server needs for TLS with this certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def eventually(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {condition}")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(*rules: URLSpec, **settings: object) -> AsyncGenerator[str]:
    """Serve these rules on a free port of the loopback, and give the base URL."""
    server = HTTPServer(Application(list(rules), **settings))  # type: ignore[arg-type]  # Any
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


def first_step_at_once(
    loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **_: object
) -> asyncio.Task[None]:
    """Start a task as the eager factory of Python 3.12 does one that ends in its first step."""
    try:
        coroutine.send(None)
    except StopIteration:
        return asyncio.Task(asyncio.sleep(0), loop=loop)
    raise AssertionError(f"{coroutine!r} did not end in its first step")


EAGER: list[Any] = [first_step_at_once]
if sys.version_info >= (3, 12):
    EAGER.append(asyncio.eager_task_factory)


@contextmanager
def starting_tasks_by(factory: Any) -> Generator[None]:
    """Let the running loop make its tasks with this factory."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(None)


class Plain(Generic[T]):
    """A subscriber that has `publish` alone; it can be stopped, and told to fail."""

    def __init__(self) -> None:
        self.got: list[T] = []
        self.messages: list[Message[T]] = []
        self.running = asyncio.Event()
        self.running.set()
        self.error: BaseException | None = None

    async def publish(self, message: Message[T], /) -> None:
        await self.running.wait()
        if self.error is not None:
            raise self.error
        self.messages.append(message)
        self.got.append(message.data)


class Told(Plain[T]):
    """One that also hears of gaps and of its release, in one list with the payloads."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[T | Gap | Released] = []

    async def publish(self, message: Message[T], /) -> None:
        await super().publish(message)
        self.events.append(message.data)

    async def publish_gap(self, gap: Gap, /) -> None:
        self.events.append(gap)

    def released(self, reason: Released, /) -> None:
        self.events.append(reason)


class Direct(Plain[T]):
    """One that takes whole batches while it is running."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch[T]] = []

    async def publish(self, message: Message[T], /) -> None:
        await super().publish(message)

    def publish_nowait(self, batch: Batch[T], /) -> bool:
        if not self.running.is_set():
            return False
        self.batches.append(batch)
        self.messages.extend(batch)
        self.got.extend(message.data for message in batch)
        return True


def balanced(books: Statistics) -> bool:
    return books.offered == (
        books.delivered + books.dropped + books.poisoned + books.abandoned + books.pending
    )
