"""The yardstick for what comes from Redis: redis-py in a loop, and nothing else."""

from __future__ import annotations

from redis.asyncio import Redis

from ..protocol import Done, Order, Setup
from .driver import answer_reads, run, say

PAGE = 100  # entries of a stream that are read together, at most
BLOCK = 2000  # milliseconds that Redis waits for the next


async def read_channel(redis: Redis, order: Order) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(order.channel)
        await anext(pubsub.listen())
        say(Done(0))
        count = 0
        async for _ in pubsub.listen():
            count += 1
            if count == order.messages:
                break


async def read_stream(redis: Redis, order: Order) -> None:
    say(Done(0))
    count, position = 0, "0"
    while count < order.messages:
        for _, entries in await redis.xread({order.channel: position}, PAGE, BLOCK):
            count += len(entries)
            position = entries[-1][0]


async def main(setup: Setup) -> None:
    async with Redis.from_url(setup.redis, protocol=2) as redis:

        async def read(order: Order) -> None:
            await (read_stream if order.stream else read_channel)(redis, order)

        await answer_reads(read)


if __name__ == "__main__":
    run(main)
