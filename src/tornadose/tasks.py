"""What asyncio leaves to say about tasks and the time they take."""

from __future__ import annotations

import asyncio
from time import monotonic

__all__ = ("Work", "cancel", "is_cancelled")

WORK_SLICE = 0.01  # seconds of work between two turns of the event loop
CANCELLATION = 1.0  # seconds that a cancelled task may take to end


class Work:
    """Counts the time since the event loop last had its turn."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = monotonic() + WORK_SLICE

    def enough(self) -> bool:
        return monotonic() > self._until

    async def rest(self) -> None:
        await asyncio.sleep(0)
        self._until = monotonic() + WORK_SLICE


async def cancel(*tasks: asyncio.Future[None]) -> None:
    """Cancel those that are not done, and wait until they are, but not for ever."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCELLATION)


def is_cancelled() -> bool:
    """Tell whether somebody cancels this task, rather than its code raising as if."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
