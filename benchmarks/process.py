"""The processes of a benchmark: started on their cores, asked, measured, and ended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .protocol import Ready, Setup, pack, unpack

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = (
    "CLIENT_CORE",
    "SERVER_CORE",
    "BenchmarkError",
    "NotInstalledError",
    "Process",
    "Server",
    "pin",
)

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds for one answer
GRACE = 5.0  # seconds to end

_cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
SERVER_CORE, CLIENT_CORE = (_cores[0], _cores[1]) if len(_cores) > 1 else (-1, -1)


class BenchmarkError(Exception):
    """A server, or the load client, has failed."""


class NotInstalledError(BenchmarkError):
    """What a server is made with is not installed."""


def pin(pid: int, core: int) -> None:
    """Let a process run on this core alone; -1 is any."""
    if sys.platform == "linux" and core >= 0:
        os.sched_setaffinity(pid, {core})


class Process:
    """A program of this package that is asked and answers in lines of JSON.

    Args:
        module: Name within the package.
        argument: On its command line.
        core: On which it runs.
        fds: File descriptors that it inherits.
    """

    def __init__(self, module: str, argument: str, core: int, fds: tuple[int, ...] = ()) -> None:
        self.module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` does)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            pass_fds=fds,
        )
        self.pid = self._process.pid
        pin(self.pid, core)
        self._rest = b""

    def tell(self, order: DataclassInstance, kind: str = "") -> None:
        """Send an order, without waiting for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{kind} {pack(order)}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed(str(error)) from error

    def answer(self, kind: type[T], timeout: float = PATIENCE) -> T:
        """Return the next answer.

        Raises:
            BenchmarkError: If there is none within this time, or the process has ended.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise self._failed(f"no answer within {timeout} s")
            if not (data := os.read(self._process.stdout.fileno(), 65536)):
                raise self._failed("ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return unpack(kind, line)
        except (TypeError, ValueError) as error:
            raise self._failed(f"said {line!r}") from error

    def ask(self, kind: type[T], order: DataclassInstance, name: str = "") -> T:
        """Send an order, and return the answer."""
        self.tell(order, name)
        return self.answer(kind)

    def close(self) -> None:
        """Let the process end, or end it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(GRACE)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def cpu(self) -> float:
        """Return the CPU time of the process in seconds, user and system.

        Source: clock_getcpuclockid(3), which makes the clock's number of the process id.
        """
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident(self) -> int:
        """Return the bytes of memory that are resident."""
        return _field(Path(f"/proc/{self.pid}/smaps_rollup"), "Rss")

    def peak(self) -> int:
        """Return the most bytes that have been resident since `forget_peak`."""
        return _field(Path(f"/proc/{self.pid}/status"), "VmHWM")

    def forget_peak(self) -> None:
        """Let `peak` begin anew, with what is resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def last_words(self) -> str:
        """Return the last line that the process has written to standard error, if any."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def _failed(self, what: str) -> BenchmarkError:
        words = self.last_words()
        module = words.startswith("ModuleNotFoundError") and "tornadose" not in words
        if module or words.endswith("not installed"):
            return NotInstalledError(words)
        return BenchmarkError(words or f"{self.module}: {what}")


class Server(Process):
    """A server, on the server's core, that has said where it listens."""

    def __init__(self, name: str, setup: Setup) -> None:
        fds = (setup.acks,) if setup.acks >= 0 else ()
        super().__init__(f"servers.{name}", pack(setup), SERVER_CORE, fds)
        try:
            ready = self.answer(Ready)
        except BenchmarkError:
            self.close()
            raise
        self.port, self.path, self.pid = ready.port, ready.path, ready.pid


def _field(path: Path, name: str) -> int:
    """Return a field of a file in ``/proc``, which has it in kibibytes."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"{path} has no {name}")
