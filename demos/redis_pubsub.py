"""What any program publishes to a Redis channel, live on a page."""

import argparse
import asyncio
import sys
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError
from running import Page, redis, serving

from tornadose import EventSource, RedisStore


async def publish(url: str) -> None:
    """Be a program that knows Redis, and nothing of Tornadose."""
    client = Redis.from_url(url)
    for number in range(1 << 62):
        with suppress(RedisError):  # while Redis is out of reach
            await client.execute_command("PUBLISH", "tornadose", f"{number} from another program")
        await asyncio.sleep(1)


async def main(port: int, redis_url: str) -> None:
    store = RedisStore(url=redis_url)
    page = (r"/", Page, {"title": "A Redis channel, live"})
    async with (
        store,
        serving(store, port, page, EventSource.route(r"/stream", store)) as url,
    ):
        command = (sys.executable, __file__, "--publish", "--redis-url", redis_url)
        publisher = await asyncio.create_subprocess_exec(*command)
        print(f"{url}  and redis-cli -u {redis_url} PUBLISH tornadose hello", flush=True)
        try:
            await publisher.wait()
        finally:
            with suppress(ProcessLookupError):
                publisher.terminate()
            await publisher.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--redis-url", help="without it, a Valkey server is started")
    parser.add_argument("--publish", action="store_true", help="be the other program")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt), redis(options.redis_url) as redis_url:
        asyncio.run(publish(redis_url) if options.publish else main(options.port, redis_url))
