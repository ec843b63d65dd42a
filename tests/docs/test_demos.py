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

DEMOS = Path(__file__).parents[2] / "demos"
DEADLINE = 20.0  # seconds; generous, as it is only waited for by a test that fails


@dataclass
class Demo:
    """A demo that runs.

    Args:
        process: Its process.
        url: What it has printed.
    """

    process: asyncio.subprocess.Process
    url: str

    async def interrupt(self) -> tuple[int | None, str]:
        """Press Ctrl-C, and return the exit code and what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def running(name: str) -> AsyncGenerator[Demo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(DEMOS / name),
        "--port=0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "1"},
    )
    try:
        async with asyncio.timeout(DEADLINE):
            assert process.stdout is not None
            printed = (await process.stdout.readline()).decode()
            url = re.search(r"http://127\.0\.0\.1:\d+/", printed)
            assert url is not None, printed
            yield Demo(process, url[0])
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


async def _until(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    """Yield so many data lines."""
    while count:
        line = await anext(lines)
        if line.startswith("data: "):
            count -= 1
            yield line


@pytest.mark.parametrize("name", ["fibonacci.py", "long_polling.py"])
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
