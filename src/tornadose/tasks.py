"""What asyncio leaves to say about tasks and the time they take."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Coroutine
from itertools import islice
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

__all__ = ("CANCELLATION", "Work", "Works", "cancel", "is_cancelled", "new_task", "works")

log = logging.getLogger("tornadose")

T = TypeVar("T")

AT_ONCE = 64  # of those who rest, woken in a turn

# Seconds of work between two turns of the event loop, 10 ms together. The pumps are apart,
# as those who are slow are not to delay the others.
PUBLISHING = 0.007
PUMPING = 0.003

CANCELLATION = 1.0  # seconds that a cancelled task may take to end


class Work:
    """Counts the time since the event loop last had its turn, for all who share it.

    Who has worked enough rests behind those who do already. In each turn the next few are
    woken: woken all at once, thousands would take the loop's time only to see that none is
    left for them.

    Args:
        share: Seconds of work between two turns of the event loop.

    Attributes:
        until: When it is time to rest; 0 while the loop has its turn.
    """

    __slots__ = ("_one_may_go_on", "_resting", "_share", "_waking", "until")

    def __init__(self, share: float) -> None:
        self.until = 0.0
        self._share = share
        self._resting: OrderedDict[object, asyncio.Future[None]] = OrderedDict()
        self._one_may_go_on = False  # of those who were woken, though the time is over
        self._waking = False

    def enough(self) -> bool:
        """Tell whether to `rest`: the time is over, or others wait for theirs."""
        return bool(self._resting) or self.is_over()

    def is_over(self) -> bool:
        """Tell whether the time is over. The first to ask begins the count."""
        now = monotonic()
        if not self.until:
            self.until = now + self._share
            asyncio.get_running_loop().call_soon(self._turned)
        return now > self.until

    def spend(self, seconds: float) -> None:
        """Count what will be taken of the next turn as well."""
        self.is_over()
        self.until -= seconds

    async def rest(self, ahead: bool = False) -> None:
        """Give the event loop its turn, and go on when there is time again.

        Args:
            ahead: Whether to rest before the others, and not behind them.
        """
        loop, place = asyncio.get_running_loop(), object()
        try:
            while True:
                self._resting[place] = turn = loop.create_future()
                if ahead:
                    self._resting.move_to_end(place, last=False)
                    ahead = False  # it keeps this place
                self._wake_later()
                await turn
                if not self.is_over() or self._one_may_go_on:
                    self._one_may_go_on = False
                    return
        finally:
            del self._resting[place]

    def _turned(self) -> None:
        self.until = 0.0

    def _wake_later(self) -> None:
        if self._resting and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        """Wake the next ones; who finds no time left keeps its place."""
        self._one_may_go_on = True  # or others might always come before it
        for turn in islice(self._resting.values(), AT_ONCE):
            if not turn.done():
                turn.set_result(None)
        self._waking = False
        self._wake_later()


class Works(NamedTuple):
    """What the stores of an event loop share."""

    publishing: Work
    pumping: Work


_works: WeakKeyDictionary[asyncio.AbstractEventLoop, Works] = WeakKeyDictionary()


def works() -> Works:
    """Return those of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _works:
        for reference in _works.keyrefs():  # of which other threads may add some meanwhile
            other = reference()
            if other is not None and other.is_closed():
                _works.pop(other, None)  # or what rests there would keep it for ever
        _works[loop] = Works(Work(PUBLISHING), Work(PUMPING))
    return _works[loop]


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
