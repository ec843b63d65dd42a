"""Tornadose's stores on Redis, with one subscriber that counts."""

from __future__ import annotations

import asyncio

from tornadose import Batch, Message, RedisStore, RedisStreamStore

from ..protocol import Done, Order, Setup
from .driver import answer_reads, run, say


class Counter:
    """A subscriber that takes all, and says when it has so many."""

    def __init__(self) -> None:
        self._missing = 0
        self._done = asyncio.Event()

    async def wait_for(self, messages: int) -> None:
        self._missing = messages
        self._done.clear()
        if messages:
            await self._done.wait()

    async def publish(self, message: Message[str], /) -> None:
        self._take(1)

    def publish_nowait(self, batch: Batch[str], /) -> bool:
        self._take(len(batch))
        return True

    def _take(self, messages: int) -> None:
        self._missing -= messages
        if self._missing == 0:
            self._done.set()


async def main(setup: Setup) -> None:
    async def read(order: Order) -> None:
        kind = RedisStreamStore if order.stream else RedisStore
        counter = Counter()
        async with kind(order.channel, url=setup.redis) as store:
            store.register(counter)
            heard = asyncio.create_task(counter.wait_for(1))
            await store.submit("so that it is known to read")
            await heard
            say(Done(0))
            await counter.wait_for(order.messages)

    await answer_reads(read)


if __name__ == "__main__":
    run(main)
