"""Every test runs without warnings, unexpected log output, and leaks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from servers import KINDS, Server, running
from support import DEADLINE, eventually, program


def pytest_configure() -> None:
    """Let programs be stopped by SIGINT, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def collect() -> None:
    """Find the garbage, and spare the collector what is left the next time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    collect()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Make a certificate for the loopback and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-nodes", "-days", "2"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", key, "-out", cert, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    return cert, key


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": "TORNADOSE_UVLOOP" in os.environ}


class Logged(logging.Handler):
    """Collects what is logged as a warning or worse, for a test to take note of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.unexpected: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.unexpected.append(record)

    def take(self, text: str, times: int = 1) -> list[logging.LogRecord]:
        """Expect so many records with this text in them."""
        found = [record for record in self.unexpected if text in record.getMessage()]
        assert len(found) == times, f"{text!r} logged {len(found)} times: {self.lines()}"
        self.unexpected = [record for record in self.unexpected if record not in found]
        return found

    def lines(self) -> list[str]:
        return [f"{record.name}: {record.getMessage()}" for record in self.unexpected]


@pytest.fixture(autouse=True)
def logged() -> Iterator[Logged]:
    """Fail the test for log output that it does not take note of."""
    handler = Logged()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    assert handler.lines() == []


def _tasks() -> set[asyncio.Task[object]]:
    """Return the tasks there are, but for those of the test runner."""
    return {
        t
        for t in asyncio.all_tasks()
        if "TestRunner" not in getattr(t.get_coro(), "__qualname__", "")
    }


def _open_files() -> set[str]:
    """Name what is open, by number and kind, without the listing itself."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            kind, _, _ = os.readlink(f"/proc/self/fd/{number}").partition("[")
            found.add(f"{number} {kind}")  # uvloop has new sockets of its own for each run
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
async def _nothing_left(anyio_backend: object, logged: Logged) -> AsyncIterator[None]:
    """Fail the test for tasks, sockets and files that outlive it."""
    # Let uvloop open now what it opens with its first server, and keeps.
    (server := await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)).close()
    await server.wait_closed()
    tasks, files = _tasks(), _open_files()
    yield

    collect()  # so that what asyncio says of forgotten tasks is said now

    def clean() -> bool:
        return _tasks() <= tasks and _open_files() <= files

    if not clean():
        try:
            await eventually(clean, deadline=3)
        except AssertionError:
            left = _tasks() - tasks, _open_files() - files
            raise AssertionError(f"left behind: {left}") from None


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    """Run a server that keeps everything through a kill, once of each kind that there is."""
    async with running(
        request.param, tmp_path, "--appendonly", "yes", "--appendfsync", "always"
    ) as server:
        yield server
