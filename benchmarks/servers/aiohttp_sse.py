"""aiohttp-sse: a queue for each response, as in its chat example."""

from __future__ import annotations

import asyncio
from itertools import count

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from ..protocol import Setup
from .driver import follow, listen, run


async def main(setup: Setup) -> None:
    queues: set[asyncio.Queue[tuple[str, str]]] = set()
    numbers = count()

    async def stream(request: web.Request) -> EventSourceResponse:
        async with sse_response(request, ping_interval=setup.heartbeat) as response:
            queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
            queues.add(queue)
            try:
                while response.is_connected():
                    number, text = await queue.get()
                    await response.send(text, id=number)
            finally:
                queues.discard(queue)
        return response

    async def publish(text: str) -> None:
        message = f"{next(numbers):016d}", text
        for queue in queues:
            queue.put_nowait(message)

    application = web.Application()
    application.router.add_get("/", stream)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    sock = listen(setup)
    await web.SockSite(runner, sock).start()
    await follow(setup, sock.getsockname()[1], publish, lambda: len(queues))


if __name__ == "__main__":
    run(main)
