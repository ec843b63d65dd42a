"""Writes on a real pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing

import pytest
from tornado.httputil import HTTPServerRequest, RequestStartLine
from tornado.iostream import IOStream

from support import eventually
from tornadose.handlers.connection import Connection, ConnectionClosed, open_stream

MEGABYTE = bytes(range(256)) * 4096


@asynccontextmanager
async def pair(write_timeout: float = 30.0) -> AsyncGenerator[tuple[Connection, socket.socket]]:
    server, client = socket.socketpair()
    client.setblocking(False)
    stream = IOStream(server)
    try:
        yield Connection(stream, write_timeout, send_buffer=16384), client
    finally:
        client.close()
        stream.close()


async def receive(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await asyncio.get_running_loop().sock_recv(client, 65536)
    return bytes(data)


async def test_the_socket_waits_for_no_more_bytes_and_has_its_limits() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        closing(IOStream(server := listener.accept()[0])) as stream,
    ):
        Connection(stream, write_timeout=1.5, send_buffer=20000)
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (20000, 40000)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500


async def test_what_the_socket_takes_is_written_at_once() -> None:
    async with pair() as (connection, client):
        assert connection.write_nowait(b"abc")
        assert client.recv(10) == b"abc"
        assert not connection.writing


async def test_what_the_socket_refuses_is_written_later_and_nothing_comes_between() -> None:
    async with pair() as (connection, client):
        assert connection.write_nowait(MEGABYTE)
        assert connection.writing
        assert not connection.write_nowait(b"between")
        waiting = [asyncio.create_task(connection.write(b"%d" % n)) for n in range(10)]
        await asyncio.sleep(0)
        data = bytearray()
        while len(data) < len(MEGABYTE) + 10:
            assert all(w.done() for w in waiting) or not connection.write_nowait(b"between")
            data += await receive(client, 1)
        assert bytes(data) == MEGABYTE + b"0123456789"
        await asyncio.gather(*waiting)
        assert connection.write_nowait(b"after")
        assert client.recv(10) == b"after"


async def test_a_cancelled_write_has_written_nothing() -> None:
    async with pair() as (connection, client):
        assert connection.write_nowait(MEGABYTE)
        waiting = [asyncio.create_task(connection.write(b"%d" % n)) for n in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        assert await receive(client, len(MEGABYTE) + 1) == MEGABYTE + b"2"
        await asyncio.wait(waiting)


async def test_last_bytes_stand_behind_what_waits() -> None:
    async with pair() as (connection, client):
        assert connection.write_nowait(MEGABYTE)
        connection.append(b"end")
        assert await receive(client, len(MEGABYTE) + 3) == MEGABYTE + b"end"
        connection.abort()
        connection.append(b"nobody")


async def test_nothing_is_written_behind_the_end() -> None:
    async with pair() as (connection, client):
        connection.append(b"last")
        connection.end()
        assert not connection.write_nowait(b"more")
        with pytest.raises(ConnectionClosed):
            await connection.write(b"more")
        assert client.recv(10) == b"last"


async def test_p4_who_does_not_read_is_let_go_after_the_time_limit() -> None:
    async with pair(write_timeout=0.1) as (connection, _):
        assert connection.write_nowait(MEGABYTE)
        with pytest.raises(ConnectionClosed):
            await connection.write(b"never")
        with pytest.raises(ConnectionClosed):
            connection.write_nowait(b"never")
        with pytest.raises(ConnectionClosed):
            await connection.write(b"never")


async def test_p4_the_time_limit_holds_for_what_others_have_written() -> None:
    server, client = socket.socketpair()
    stream = IOStream(server)
    connection = Connection(stream, write_timeout=0.1, send_buffer=16384)
    stream.write(MEGABYTE)
    connection.watch()
    await eventually(stream.closed)
    client.close()


async def test_p3_the_time_limit_ends_with_what_others_have_written_behind() -> None:
    async with pair(write_timeout=0.3) as (connection, client):
        assert connection.write_nowait(MEGABYTE)
        connection._stream.write(MEGABYTE)  # pyright: ignore[reportPrivateUsage]
        await receive(client, 2 * len(MEGABYTE))
        async with pair(write_timeout=0.3) as (later, _):
            assert later.write_nowait(MEGABYTE)
            with pytest.raises(ConnectionClosed):
                await later.write(b"never")
        assert connection.write_nowait(b"more")


async def test_who_reads_slowly_is_not_let_go() -> None:
    async with pair(write_timeout=0.2) as (connection, client):
        assert connection.write_nowait(MEGABYTE)
        data = bytearray()
        began = asyncio.get_running_loop().time()
        while len(data) < len(MEGABYTE):
            data += await receive(client, min(60000, len(MEGABYTE) - len(data)))
            await asyncio.sleep(0.04)
        assert asyncio.get_running_loop().time() - began > 0.4
        assert bytes(data) == MEGABYTE
        await eventually(lambda: not connection.writing)
        assert connection.write_nowait(b"more")


async def test_who_has_left_is_noticed_by_writing() -> None:
    async with pair() as (connection, client):
        client.close()
        with pytest.raises(ConnectionClosed):
            connection.write_nowait(b"abc")
        with pytest.raises(ConnectionClosed):
            connection.write_nowait(b"def")


async def test_another_server_than_tornados_is_refused() -> None:
    request = HTTPServerRequest(start_line=RequestStartLine("GET", "/", "HTTP/1.0"))
    with pytest.raises(TypeError, match="expected Tornado's HTTP1Connection, not None"):
        open_stream(request)
