"""sse-starlette on uvicorn: a queue for each response, as in its example of a broadcaster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from .uvicorn_server import serve

queues: set[asyncio.Queue[ServerSentEvent]] = set()
numbers = count()


async def events() -> AsyncIterator[ServerSentEvent]:
    queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


async def stream(request: Request) -> EventSourceResponse:
    return EventSourceResponse(events())


async def publish(text: str) -> None:
    event = ServerSentEvent(text, id=f"{next(numbers):016d}")
    for queue in queues:
        queue.put_nowait(event)


if __name__ == "__main__":
    serve(Starlette(routes=[Route("/", stream)]), publish, lambda: len(queues))
