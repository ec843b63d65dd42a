"""Fibonacci numbers on a page, live."""

import argparse
import asyncio
from contextlib import suppress

from running import Page, serving

from tornadose import EventSource, QueueStore


async def fibonacci(store: QueueStore[int]) -> None:
    """Submit a number each second; what a 64-bit integer cannot hold starts anew."""
    a, b = 0, 1
    while True:
        await store.submit(a)
        a, b = (b, a + b) if b < 1 << 63 else (0, 1)
        await asyncio.sleep(1)


async def main(port: int) -> None:
    store = QueueStore[int]()
    page = (r"/", Page, {"title": "Fibonacci, live"})
    async with serving(store, port, page, EventSource.route(r"/stream", store)) as url:
        print(url, flush=True)
        await fibonacci(store)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().port))
