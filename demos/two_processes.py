"""Two server processes on one Redis stream: stop one, and its clients go on at the other."""

import argparse
import asyncio
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from redis.exceptions import RedisError
from running import Page, redis, serving

from tornadose import EventSource, OutcomeUnknownError, RedisStreamStore


async def serve(redis_url: str) -> None:
    """Be one of the two servers, until it is terminated."""
    store = RedisStreamStore(url=redis_url)
    page = (r"/", Page, {"title": "Two processes, one stream"})
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    asyncio.get_running_loop().add_reader(sys.stdin, stopped.set)  # the parent has died
    async with (
        store,
        serving(store, 0, page, EventSource.route(r"/stream", store, retry=0.5)) as url,
    ):
        print(url, flush=True)
        number = 0
        while not stopped.is_set():
            number += 1
            try:
                await store.submit(f"{number} from process {os.getpid()}")
            except (RedisError, OutcomeUnknownError) as error:  # while Redis is out of reach
                print(f"{number}: {error}", file=sys.stderr)
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), 1)


async def balance(ports: list[int], reader: StreamReader, writer: StreamWriter) -> None:
    """Connect a client to the first server that lives, as a load balancer does."""
    ports.append(ports.pop(0))  # so that the next client begins with the other one
    for port in reversed(tuple(ports)):
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, back), copy(there, writer))
            return
    writer.close()


async def copy(source: StreamReader, sink: StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


async def start(redis_url: str) -> tuple[Process, int]:
    """Start a server process, and return it with its port."""
    command = (sys.executable, __file__, "--serve", "--redis-url", redis_url)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    line = await process.stdout.readline() if process.stdout is not None else b""
    return process, int(line.decode().rstrip("/\n").rpartition(":")[2])


async def main(port: int, redis_url: str) -> None:
    servers = [await start(redis_url) for _ in range(2)]
    ports = [port for _, port in servers]
    front = await asyncio.start_server(lambda r, w: balance(ports, r, w), "127.0.0.1", port)
    print(f"http://127.0.0.1:{front.sockets[0].getsockname()[1]}/", flush=True)
    print(f"stop one of the two: kill {servers[0][0].pid} or kill {servers[1][0].pid}", flush=True)
    try:
        await asyncio.gather(*(process.wait() for process, _ in servers))
    finally:
        front.close()
        for process, _ in servers:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--redis-url", help="without it, a Valkey server is started")
    parser.add_argument("--serve", action="store_true", help="be one of the two servers")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt), redis(options.redis_url) as redis_url:
        asyncio.run(serve(redis_url) if options.serve else main(options.port, redis_url))
