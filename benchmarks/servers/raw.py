"""The yardstick: asyncio's ``transport.write`` in a loop, and nothing else."""

from __future__ import annotations

import asyncio
from itertools import count

from ..protocol import Setup
from .driver import follow, listen, run

HEADERS = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n"
    b"\r\n"
)


async def main(setup: Setup) -> None:
    transports: set[asyncio.Transport] = set()
    numbers = count()

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(HEADERS)
            transports.add(self.transport)

        def connection_lost(self, exc: Exception | None) -> None:
            transports.discard(self.transport)

    def write(event: bytes) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        for transport in transports:
            transport.write(chunk)

    async def publish(text: str) -> None:
        write(f"id: {next(numbers):016d}\ndata: {text}\n\n".encode())

    async def beat() -> None:
        while True:
            await asyncio.sleep(setup.heartbeat)
            write(b":\n\n")

    sock = listen(setup)
    await asyncio.get_running_loop().create_server(Client, sock=sock)
    beating = asyncio.create_task(beat())
    await follow(setup, sock.getsockname()[1], publish, lambda: len(transports))
    beating.cancel()


if __name__ == "__main__":
    run(main)
