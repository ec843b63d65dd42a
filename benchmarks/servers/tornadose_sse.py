"""Tornadose: a `QueueStore`, and an `EventSource` for each client."""

from __future__ import annotations

from tornadose import EventSource, QueueStore

from ..protocol import Setup
from .driver import follow, run
from .tornado_server import serve


async def main(setup: Setup) -> None:
    store = QueueStore[str]()
    # clients that stall are to stay for as long as the others are measured
    route = EventSource.route(r"/", store, heartbeat=setup.heartbeat, write_timeout=600.0)
    port = serve(setup, [route])
    await follow(setup, port, store.submit, lambda: len(store.subscribers))


if __name__ == "__main__":
    run(main)
