"""Tornadose on a Redis stream, so that several processes serve the same messages."""

from __future__ import annotations

from tornadose import EventSource, RedisStreamStore

from ..protocol import Setup
from .driver import follow, run
from .tornado_server import serve


async def main(setup: Setup) -> None:
    async with RedisStreamStore("benchmark", url=setup.redis) as store:
        port = serve(setup, [EventSource.route(r"/", store, heartbeat=setup.heartbeat)])
        await follow(setup, port, store.submit, lambda: len(store.subscribers))


if __name__ == "__main__":
    run(main)
