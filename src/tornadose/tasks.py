"""What asyncio leaves to say about tasks and the time they take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from itertools import islice
from time import monotonic
from typing import Any, TypeVar

__all__ = ("CANCELLATION", "Work", "cancel", "is_cancelled", "new_task")

log = logging.getLogger("tornadose")

T = TypeVar("T")

AT_ONCE = 64  # of those who rest, woken in a turn
CANCELLATION = 1.0  # seconds that a cancelled task may take to end


class Work:
    """Counts the time since the event loop last had its turn, for all who share it.

    Who has worked enough rests behind those who do already. A few of them are woken in
    each turn, in their order: woken all at once, thousands would take the loop's time
    only to see that none is left for them.

    Args:
        share: Seconds of work between two turns of the event loop.

    Attributes:
        until: When it is time to rest; 0 while the loop has its turn.
    """

    __slots__ = ("_resting", "_share", "_waking", "until")

    def __init__(self, share: float) -> None:
        self.until = 0.0
        self._share = share
        self._resting: dict[object, asyncio.Future[None]] = {}
        self._waking = False

    def enough(self) -> bool:
        """Tell whether it is time to `rest`, as it is while others do."""
        return bool(self._resting) or self._is_over()

    async def rest(self) -> None:
        """Give the event loop its turn, and go on when there is time again."""
        loop, place = asyncio.get_running_loop(), object()
        try:
            while True:
                self._resting[place] = turn = loop.create_future()
                self._wake_later()
                await turn
                if not self._is_over():
                    return
        finally:
            del self._resting[place]

    def _is_over(self) -> bool:
        """Tell whether the time is over. The first to ask begins the count."""
        now = monotonic()
        if not self.until:
            self.until = now + self._share
            asyncio.get_running_loop().call_soon(self._turned)
        return now > self.until

    def _turned(self) -> None:
        self.until = 0.0

    def _wake_later(self) -> None:
        if self._resting and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        """Wake the next few; who finds no time left keeps its place."""
        self._waking = False
        for turn in islice(self._resting.values(), AT_ONCE):
            if not turn.done():
                turn.set_result(None)
        self._wake_later()


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
