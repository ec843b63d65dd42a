"""Plain Tornado, as most write it: a queue for each handler, `write` and `flush`."""

from __future__ import annotations

import asyncio
from itertools import count

from tornado.ioloop import PeriodicCallback
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from ..protocol import Setup
from .driver import follow, run
from .tornado_server import serve

queues: set[asyncio.Queue[bytes]] = set()


class Stream(RequestHandler):
    async def get(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone = False
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        await self.flush()
        queues.add(self.queue)
        try:
            while not self.gone:
                self.write(await self.queue.get())  # pyright: ignore[reportUnknownMemberType]
                await self.flush()
        except StreamClosedError:
            pass
        finally:
            queues.discard(self.queue)

    def on_connection_close(self) -> None:
        self.gone = True
        self.queue.put_nowait(b"")


async def main(setup: Setup) -> None:
    numbers = count()

    def put(event: bytes) -> None:
        for queue in queues:
            queue.put_nowait(event)

    async def publish(text: str) -> None:
        put(f"id: {next(numbers):016d}\ndata: {text}\n\n".encode())

    PeriodicCallback(lambda: put(b":\n\n"), setup.heartbeat * 1000).start()
    port = serve(setup, [(r"/", Stream)])
    await follow(setup, port, publish, lambda: len(queues))


if __name__ == "__main__":
    run(main)
