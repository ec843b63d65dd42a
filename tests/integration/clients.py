"""Clients that are not ours: httpx-sse, raw sockets, and programs in a process of their own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Self
from urllib.parse import urlsplit

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from support import DEADLINE, program

LONGEST_LINE = 1 << 24  # bytes that a program writes
SMALL = 16384  # bytes; a socket buffer that is soon full


@asynccontextmanager
async def listening(
    application: Application, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[str]:
    """Serve an application on the loopback, and give the base URL."""
    server = HTTPServer(application, ssl_options=tls)
    sockets = bind_sockets(port, "127.0.0.1")
    server.add_sockets(sockets)
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def http_client(trusted: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """Return a client for any number of streams, whose reads have a deadline."""
    return httpx.AsyncClient(
        trust_env=False,
        timeout=DEADLINE,
        verify=trusted or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


class Events:
    """A stream of events as httpx-sse reads it."""

    def __init__(self, response: httpx.Response, events: AsyncIterator[ServerSentEvent]) -> None:
        self.response = response
        self._events = events

    async def next(self) -> ServerSentEvent:
        return await anext(self._events)

    async def take(self, count: int) -> list[ServerSentEvent]:
        return [await self.next() for _ in range(count)]

    async def data(self, count: int) -> list[str]:
        return [event.data for event in await self.take(count)]

    async def rest(self) -> list[ServerSentEvent]:
        """Return what comes until the response has properly ended."""
        return [event async for event in self._events]


@asynccontextmanager
async def event_stream(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    client: httpx.AsyncClient | None = None,
    trusted: ssl.SSLContext | None = None,
) -> AsyncGenerator[Events]:
    """Connect with httpx-sse; the client is closed unless it is given."""
    if client is None:
        async with (
            http_client(trusted) as own,
            event_stream(url, headers, client=own) as events,
        ):
            yield events
        return
    async with (
        aconnect_sse(client, "GET", url, headers=dict(headers or {})) as source,
        aclosing(source.aiter_sse()) as events,
    ):
        yield Events(source.response, events)


class Raw:
    """A client that sends and reads exactly the bytes it is told to, when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.seen = bytearray()

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str, *, receive_buffer: int | None = None) -> AsyncGenerator[Self]:
        """Connect, with a receive buffer of this size."""
        address = urlsplit(url)
        with socket.socket() as sock:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (address.hostname, address.port))
            yield cls(sock)

    async def send(self, *lines: str) -> None:
        """Send a request with these lines."""
        await self.send_bytes("\r\n".join((*lines, "", "")).encode("latin-1"))

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def get(self, path: str = "/", version: str = "HTTP/1.1", *headers: str) -> None:
        await self.send(f"GET {path} {version}", "Host: 127.0.0.1", *headers)

    async def more(self, limit: int = 1 << 20) -> bool:
        """Read what there is, at least a byte; false is the end."""
        data = await asyncio.get_running_loop().sock_recv(self._sock, limit)
        self.seen += data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        """Read up to and including the mark, and give what came before it."""
        searched = 0
        try:
            async with asyncio.timeout(DEADLINE):
                while (found := self.seen.find(mark, searched)) < 0:
                    searched = max(0, len(self.seen) - len(mark))
                    assert await self.more(), f"ended before {mark!r}"
        except (TimeoutError, AssertionError, OSError) as error:
            raise AssertionError(f"no {mark!r} in {bytes(self.seen[-200:])!r}") from error
        before = bytes(self.seen[:found])
        del self.seen[: found + len(mark)]
        return before

    async def head(self) -> tuple[str, dict[str, str]]:
        """Read the head of a response, and give its first line and its headers."""
        first, *lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return first, dict(line.split(": ", 1) for line in lines)

    async def rest(self) -> bytes:
        """Read until the end of the connection; a reset is one."""
        with suppress(ConnectionResetError):
            async with asyncio.timeout(DEADLINE):
                while await self.more():
                    pass
        return bytes(self.seen)


@asynccontextmanager
async def running(*command: str) -> AsyncGenerator[Process]:
    """Run a program with its output piped, and end it."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, limit=LONGEST_LINE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            if process.returncode is None:
                process.kill()
        await process.communicate()


def curl(*arguments: str) -> list[str]:
    """Return the command line of a curl that shows at once what it reads."""
    return [
        program("curl"),
        "--no-buffer",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        *arguments,
    ]


async def line_of(process: Process) -> str:
    """Return the next line that a program writes."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        return (await process.stdout.readline()).decode()


async def output_of(process: Process) -> tuple[str, str]:
    """Wait until a program has ended, and return its output and its errors."""
    async with asyncio.timeout(DEADLINE):
        output, errors = await process.communicate()
    return output.decode(), errors.decode()
