"""Litestar on uvicorn: its channels, as server-sent events. Channels have no ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from litestar import Litestar, get
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.response import ServerSentEvent

from .uvicorn_server import serve

CHANNEL = "news"

plugin = ChannelsPlugin(backend=MemoryChannelsBackend(), channels=[CHANNEL])
subscribed: set[object] = set()


async def events() -> AsyncGenerator[str, None]:
    async with plugin.start_subscription([CHANNEL]) as subscriber:
        subscribed.add(subscriber)
        try:
            async for data in subscriber.iter_events():
                yield data.decode()
        finally:
            subscribed.discard(subscriber)


@get("/", sync_to_thread=False)
def stream() -> ServerSentEvent:
    return ServerSentEvent(events())


async def publish(text: str) -> None:
    plugin.publish(text, CHANNEL)


if __name__ == "__main__":
    serve(Litestar([stream], plugins=[plugin]), publish, lambda: len(subscribed))
