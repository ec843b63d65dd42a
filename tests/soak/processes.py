"""The server processes of the soak, as the test sees them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from soak.clients import PATIENCE
from soak.server import Figures, Report
from soak.verdict import Book

LONGEST_LINE = 1 << 26  # bytes, of a report
PROGRAM = Path(__file__).with_name("server.py")


class Publishing:
    """A server process that publishes.

    Attributes:
        name: In front of the numbers that it publishes.
        port: That it serves.
        books: What its publishers were told, by the kind of the store.
        figures: Of its event loop.
    """

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.port = 0
        self.books = {"stream": Book(), "channel": Book()}
        self.figures: Figures | None = None
        self._process = process

    def say(self, command: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{command}\n".encode())

    async def started(self) -> None:
        self.port = int(await self._line())

    async def listen(self) -> None:
        """Take down what it tells in the end, unless it has died."""
        if line := await self._line():
            report: Report = json.loads(line)
            self.figures = report["figures"]
            for kind, told in report["told"].items():
                book = self.books[kind]
                book.accepted = {int(n): cursor for n, cursor in told["accepted"].items()}
                book.unknown = {*told["unknown"]}
                book.refused = Counter(told["refused"])

    async def _line(self) -> bytes:
        return b"" if self._process.stdout is None else await self._process.stdout.readline()

    async def end(self) -> None:
        """Let it end by itself, and not live on if it does not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._process.wait()
        finally:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.returncode


@asynccontextmanager
async def publishing(name: str, redis_port: int, log: Path) -> AsyncGenerator[Publishing]:
    """Run a server process, which writes its log to this file."""
    command = (sys.executable, str(PROGRAM), name, str(redis_port))
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=stderr, limit=LONGEST_LINE
        )
    publisher = Publishing(name, process)
    try:
        async with asyncio.timeout(PATIENCE):
            await publisher.started()
        yield publisher
    finally:
        await publisher.end()
