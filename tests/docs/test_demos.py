"""The demos of this guide run as programs, serve real clients, and stop on Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from servers import KINDS, Server

DEMOS = Path(__file__).parents[2] / "demos"
DEADLINE = 20.0  # seconds; generous, as it is only waited for by a test that fails


@dataclass
class Demo:
    """A demo that runs.

    Args:
        process: Its process.
        url: What it has printed.
        printed: All that it has printed so far.
    """

    process: asyncio.subprocess.Process
    url: str
    printed: str

    async def interrupt(self, number: int = signal.SIGINT) -> tuple[int | None, str]:
        """Press Ctrl-C, and return the exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def running(name: str, *options: str) -> AsyncGenerator[Demo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(DEMOS / name),
        "--port=0",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "1"},
    )
    try:
        async with asyncio.timeout(DEADLINE):
            assert process.stdout is not None
            printed = ""
            while (url := re.search(r"http://127\.0\.0\.1:\d+/", printed)) is None:
                line = await process.stdout.readline()
                assert line, printed
                printed += line.decode()
            yield Demo(process, url[0], printed)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_long_polls_miss_nothing_between_two_requests() -> None:
    async with (
        running("long_polling.py") as demo,
        httpx.AsyncClient(timeout=DEADLINE) as client,
    ):
        message = (await client.get(demo.url)).json()
        for _ in range(2):
            answer = await client.get(demo.url, params={"last_event_id": message["id"]})
            assert answer.json()["data"] == message["data"] + 1
            message = answer.json()
        unknown = await client.get(demo.url, params={"last_event_id": "no such id"})
        assert unknown.json() == {"gap": {"reason": "unknown", "after": None}}
        assert (await demo.interrupt())[0] == 0


async def test_a_long_poll_that_waits_is_answered_when_the_demo_stops() -> None:
    async with running("long_polling.py") as demo:
        host, port = demo.url.removeprefix("http://").rstrip("/").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        code, errors = await demo.interrupt()
        writer.close()
        assert code == 0
        assert "Traceback" not in errors


async def test_the_fibonacci_page_names_a_stream_that_ends_well_on_ctrl_c() -> None:
    async with (
        running("fibonacci.py") as demo,
        httpx.AsyncClient(timeout=DEADLINE) as client,
    ):
        page = (await client.get(demo.url)).text
        name = re.search(r'new EventSource\("(\w+)"\)', page)
        assert name is not None
        assert 'addEventListener("gap"' in page
        async with client.stream("GET", demo.url + name[1]) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            lines = stream.aiter_lines()
            data = [line async for line in _until(lines, 3)]
            assert await demo.interrupt() == (0, "")
            rest = [line async for line in lines]
        numbers = [int(line.removeprefix("data: ")) for line in data]
        assert numbers[0] + numbers[1] == numbers[2]
        assert rest[-2].startswith("retry: ")


async def test_what_another_program_publishes_to_redis_is_on_the_page_of_the_demo() -> None:
    async with (
        running("redis_pubsub.py") as demo,
        httpx.AsyncClient(timeout=DEADLINE) as client,
    ):
        assert "started a Valkey server" in demo.printed
        assert 'new EventSource("stream")' in (await client.get(demo.url)).text
        async with client.stream("GET", demo.url + "stream") as stream:
            first, second = [line async for line in _until(stream.aiter_lines(), 2)]
        assert re.fullmatch(r"data: \d+ from another program", first)
        assert _number(second) == _number(first) + 1
        assert await demo.interrupt(signal.SIGTERM) == (0, "")
        host, port = demo.printed.partition("redis://")[2].split()[0].split("/")[0].split(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))


async def test_who_loses_one_of_two_processes_goes_on_at_the_other_without_a_hole() -> None:
    async with (
        running("two_processes.py") as demo,
        httpx.AsyncClient(timeout=DEADLINE) as client,
    ):
        assert demo.process.stdout is not None
        stops = (await demo.process.stdout.readline()).decode()
        first = int(stops.partition("kill ")[2].split()[0])
        numbers: dict[str, list[int]] = {}
        cursor, connections = "", 0
        while (count := sum(map(len, numbers.values()))) < 10:
            connections += 1
            headers = {"Connection": "close", "Last-Event-ID": cursor}
            async with client.stream("GET", demo.url + "stream", headers=headers) as stream:
                async for line in stream.aiter_lines():
                    assert line != "event: gap"
                    if line.startswith("id: "):
                        cursor = line.removeprefix("id: ")
                    elif line.startswith("data: "):
                        numbers.setdefault(line.rpartition(" ")[2], []).append(_number(line))
                        count += 1
                    if count == 5 and line.startswith("data: "):
                        os.kill(first, signal.SIGTERM)  # which ends this response
                    elif count == 10:
                        break
        assert connections == 2
        for counted in numbers.values():
            assert counted == list(range(counted[0], counted[0] + len(counted)))
        assert await demo.interrupt() == (0, "")


@pytest.mark.parametrize("server", KINDS[:1], indirect=True)
@pytest.mark.parametrize("name", ["redis_pubsub.py", "two_processes.py"])
async def test_a_demo_goes_on_when_redis_is_back(name: str, server: Server) -> None:
    async with (
        running(name, f"--redis-url=redis://127.0.0.1:{server.port}") as demo,
        httpx.AsyncClient(timeout=DEADLINE) as client,
        client.stream("GET", demo.url + "stream") as stream,
    ):
        assert "started a Valkey server" not in demo.printed
        lines = stream.aiter_lines()
        assert len([line async for line in _until(lines, 2)]) == 2
        server.kill()
        await server.start()
        assert len([line async for line in _until(lines, 4)]) == 4
        assert (await demo.interrupt())[0] == 0


def _number(line: str) -> int:
    return int(line.split()[1])


async def _until(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    """Yield so many data lines."""
    while count:
        line = await anext(lines)
        if line.startswith("data: "):
            count -= 1
            yield line


@pytest.mark.parametrize(
    "name", ["fibonacci.py", "long_polling.py", "redis_pubsub.py", "two_processes.py"]
)
async def test_a_demo_without_clients_stops_silently_on_ctrl_c(name: str) -> None:
    async with running(name) as demo:
        assert await demo.interrupt() == (0, "")


def test_the_old_program_of_the_migration_guide_is_the_basic_demo() -> None:
    guide = (DEMOS.parent / "docs" / "how-to" / "migrate-from-0.5.md").read_text("utf-8")
    old = guide.partition("<!-- not executed")[2].partition("```python\n")[2].partition("```")[0]
    demo = (DEMOS / "basic.py").read_text("utf-8")
    ticks = "PeriodicCallback(lambda: store.submit(random.random()), 1000)"
    assert ticks in old
    assert ticks in demo
    others = [line for line in old.splitlines() if "PeriodicCallback(" not in line]
    assert [line for line in others if line.strip() not in demo] == []
