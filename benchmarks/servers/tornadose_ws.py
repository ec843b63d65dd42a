"""Tornadose: a `QueueStore`, and a `WebSocketSubscriber` for each client."""

from __future__ import annotations

from tornadose import QueueStore, WebSocketSubscriber

from ..protocol import Setup
from .driver import follow, run
from .tornado_server import serve


async def main(setup: Setup) -> None:
    store = QueueStore[str]()
    port = serve(setup, [WebSocketSubscriber.route(r"/", store, heartbeat=setup.heartbeat)])
    await follow(setup, port, store.submit, lambda: len(store.subscribers))


if __name__ == "__main__":
    run(main)
