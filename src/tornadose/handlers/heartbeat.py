"""One timer per event loop and interval that gives every connection its beat."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

__all__ = ("Heartbeat", "heartbeat_of")

log = logging.getLogger("tornadose")

Beat: TypeAlias = Callable[[], object]

TICKS = 32  # at most so many wake-ups in an interval, over which the beats are spread


class Heartbeat:
    """Calls each beat once per interval, and sleeps while there is none.

    Args:
        interval: Seconds between two calls of the same beat.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due: OrderedDict[Beat, float] = OrderedDict()  # the next one first
        self._timer: asyncio.TimerHandle | None = None

    def add(self, beat: Beat) -> None:
        """Call the beat from now on, first after one interval."""
        self._due[beat] = asyncio.get_running_loop().time() + self._interval
        if self._timer is None:
            self._wake_at(self._due[beat])

    def remove(self, beat: Beat) -> None:
        """Call it no longer. Removing twice does nothing."""
        self._due.pop(beat, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_at(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        """Call those that are due, but no more than an even share of all."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        for _ in range(-(-len(self._due) // TICKS)):
            beat, due = next(iter(self._due.items()))
            if due > now:
                break
            self._due[beat] = now + self._interval
            self._due.move_to_end(beat)
            try:
                beat()
            except Exception:
                log.exception("%r failed", beat)
            if not self._due:
                return
        soonest = next(iter(self._due.values()))
        self._wake_at(max(soonest, now + self._interval / TICKS))


_heartbeats: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, Heartbeat]] = (
    WeakKeyDictionary()
)


def heartbeat_of(interval: float) -> Heartbeat:
    """Return the one heartbeat of the running loop that has this interval in seconds."""
    loop = asyncio.get_running_loop()
    return _heartbeats.setdefault(loop, {}).setdefault(interval, Heartbeat(interval))
