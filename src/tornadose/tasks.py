"""What asyncio leaves to say about tasks and the time they take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from time import monotonic
from typing import Any, TypeVar

__all__ = ("CANCELLATION", "Work", "cancel", "is_cancelled", "new_task")

log = logging.getLogger("tornadose")

T = TypeVar("T")

WORK_SLICE = 0.01  # seconds of work between two turns of the event loop
CANCELLATION = 1.0  # seconds that a cancelled task may take to end


class Work:
    """Counts the time since the event loop last had its turn, for all who share it.

    Attributes:
        until: When it is time to rest; 0 while the loop has its turn.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0

    def enough(self) -> bool:
        """Tell whether it is time to `rest`. The first to ask begins the count."""
        now = monotonic()
        if not self.until:
            self.until = now + WORK_SLICE
            asyncio.get_running_loop().call_soon(self._turned)
        return now > self.until

    async def rest(self) -> None:
        """Give the event loop its turn."""
        await asyncio.sleep(0)

    def _turned(self) -> None:
        self.until = 0.0


def new_task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run it as a task whose first step comes later, also where tasks start eagerly."""
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop())


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel those that are not done, and wait until they are, but not for ever.

    The task that calls this is left alone.
    """
    others = [t for t in tasks if not t.done() and t is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        _, stubborn = await asyncio.wait(others, timeout=CANCELLATION)
        for task in stubborn:
            log.error("%r goes on although it was cancelled", task)


def is_cancelled() -> bool:
    """Tell whether somebody cancels this task, rather than its code raising as if."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
