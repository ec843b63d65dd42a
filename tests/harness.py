"""What tests turn by hand: an event loop, the clock of the work in it, and the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import cycle

PROGRESS = 20  # turns in which somebody gets ahead who can: one for each lane, and some more


class HandLoop(asyncio.SelectorEventLoop):
    """A loop that runs so many turns as it is told to, on a clock that is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    @contextmanager
    def inside(self) -> Generator[None, None, None]:
        """Do something as one step of this loop, without a turn of it."""
        asyncio.events._set_running_loop(self)
        try:
            yield
        finally:
            asyncio.events._set_running_loop(None)

    def turn(self, times: int = 1) -> None:
        """Run what is ready, so many times; never wait."""
        for _ in range(times):
            self.call_soon(self.stop)
            self.run_forever()

    def turn_until(self, condition: Callable[[], object], at_most: int = 500) -> None:
        for _ in range(at_most):
            if condition():
                return
            self.turn()
        raise AssertionError(f"not within {at_most} turns: {condition}")

    def finish(self) -> set[asyncio.Task[object]]:
        """End what is left, close the loop, and return what did not end by itself."""
        left = asyncio.all_tasks(self)
        for task in left:
            task.cancel()
        self.turn(5)
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()
        return left


@contextmanager
def hand_loop() -> Generator[HandLoop, None, None]:
    """Give a loop to turn by hand, and see that nothing is left in it."""
    loop = HandLoop()
    try:
        yield loop
        left = loop.finish()
        assert left == set(), left
    finally:
        if not loop.is_closed():
            loop.finish()


class Clock:
    """What the fan-out takes for the time it has worked: it pauses where it is told to.

    Attributes:
        hold: Whether there is no pause the next time that somebody asks.
        frozen: Tells when there is no pause at all.
    """

    def __init__(self, *pauses: bool) -> None:
        self.now = 0.0
        self.hold = False
        self.frozen: Callable[[], bool] = lambda: False
        self.pause(pauses or [False])

    def pause(self, pauses: Iterable[bool]) -> None:
        """Pause, or not, time by time, over and over again."""
        self._pauses = cycle(pauses)

    def __call__(self) -> float:
        if self.hold or self.frozen():
            self.hold = False
            return float("-inf")
        if next(self._pauses):
            self.now += 1.0
        return self.now


@contextmanager
def recorded(heard: Callable[[logging.LogRecord], None]) -> Generator[None, None, None]:
    """Give all that tornadose logs to this function, and to nobody else."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard(record)

    logger, handler = logging.getLogger("tornadose"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
