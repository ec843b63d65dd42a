"""FastAPI on uvicorn, with server-sent events of its own: a queue for each response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from itertools import count

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from .uvicorn_server import serve

queues: set[asyncio.Queue[ServerSentEvent]] = set()
numbers = count()
application = FastAPI()


@application.get("/", response_class=EventSourceResponse)
async def stream() -> AsyncIterable[ServerSentEvent]:
    queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


async def publish(text: str) -> None:
    event = ServerSentEvent(raw_data=text, id=f"{next(numbers):016d}")
    for queue in queues:
        queue.put_nowait(event)


if __name__ == "__main__":
    serve(application, publish, lambda: len(queues))
