"""What the servers have in common: where they listen, and how they follow orders."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeAlias

from ..protocol import Done, Order, Ready, Setup, pack, payload, unpack

__all__ = ("Publish", "answer_reads", "follow", "listen", "run", "say")

Publish: TypeAlias = Callable[[str], Awaitable[object]]
Program: TypeAlias = Callable[[Setup], Coroutine[None, None, None]]

BACKLOG = 1024


def run(
    program: Program, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run the program with the setup that the harness has given."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(program(unpack(Setup, sys.argv[1])))


def listen(setup: Setup) -> socket.socket:
    """Return a socket that listens on a free port of the loopback."""
    sock = socket.socket()
    if setup.send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, setup.send_buffer)  # inherited
    sock.bind(("127.0.0.1", 0))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


async def follow(
    setup: Setup,
    port: int,
    publish: Publish,
    clients: Callable[[], int],
    *,
    path: str = "/",
    pid: int | None = None,
) -> None:
    """Follow the orders of the harness, and end with it.

    Args:
        setup: As given to the program.
        port: Where the clients connect to.
        publish: Submits a text to all clients.
        clients: Counts them.
        path: Of the URL.
        pid: Of the process that serves; ``None`` is this one.
    """
    orders, acks = Lines(sys.stdin.fileno()), Lines(setup.acks)
    say(Ready(port, path, os.getpid() if pid is None else pid))
    while line := await orders.get():
        order = unpack(Order, line)
        if order.do == "paced":
            await _pace(order, publish)
        elif order.do == "lockstep":
            await _step(order, publish, acks)
        else:
            while clients() != order.clients:  # noqa: ASYNC110 (not all servers tell)
                await asyncio.sleep(0.005)
        say(Done(order.messages))


async def answer_reads(read: Callable[[Order], Awaitable[None]]) -> None:
    """Read from Redis what the harness orders; `read` says itself when it has begun."""
    orders = Lines(sys.stdin.fileno())
    say(Ready(0, "", os.getpid()))
    while line := await orders.get():
        order = unpack(Order, line)
        await read(order)
        say(Done(order.messages))


def say(answer: Ready | Done) -> None:
    """Answer the harness."""
    print(pack(answer), flush=True)


async def _pace(order: Order, publish: Publish) -> None:
    """Publish at the rate of the order, a burst at a time."""
    loop = asyncio.get_running_loop()
    start, sent = loop.time(), 0
    while sent < order.messages:
        for _ in range(order.burst):
            await publish(payload(order.size))
        sent += order.burst
        await asyncio.sleep(max(0.0, start + sent / order.rate - loop.time()))


async def _step(order: Order, publish: Publish, acks: Lines) -> None:
    """Publish each message when all clients have the one before."""
    for _ in range(order.messages):
        await publish(payload(order.size))
        await acks.get()


class Lines:
    """Gives the lines that come from a pipe, the last one empty.

    Args:
        fd: File descriptor of the pipe; -1 is none.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.get = self._lines.get
        if fd >= 0:
            asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        if data := os.read(self._fd, 65536):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._lines.put_nowait(line + b"\n")
        else:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._lines.put_nowait(b"")
