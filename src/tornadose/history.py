"""A bounded history that numbers its messages, and replays of it."""

from __future__ import annotations

import os
import re
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from .messages import BATCH, GapReason, Message, numbered

__all__ = ("History", "HistoryReplay", "Page", "Positions", "Replay")

T = TypeVar("T")


class Positions(Protocol):
    """The positions of messages, each higher than the one before."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...


class Page(Generic[T]):
    """A piece of history.

    Args:
        messages: In order.
        positions: Of these.
        hole: Why messages are missing before them, if any are.
        position: Position of the last message up to here.
        met: Whether the live messages behind this position come next.
    """

    __slots__ = ("hole", "messages", "met", "position", "positions")

    def __init__(
        self,
        messages: list[Message[T]],
        positions: Positions,
        hole: GapReason | None,
        position: int,
        *,
        met: bool,
    ) -> None:
        self.messages = messages
        self.positions = positions
        self.hole: GapReason | None = hole
        self.position = position
        self.met = met


class Replay(Protocol[T]):
    """History on its way to one subscriber, pulled at its pace."""

    async def read(self) -> Page[T]:
        """Return the next page. Once there is nothing up to this moment, it has met."""
        ...


class History(Generic[T]):
    """The last messages, each with its position, counted from 1, in its id.

    Ids look like ``5f0c…-17``: the first part is drawn anew for each history, so that
    an id of another process is never mistaken for one of this history.

    Args:
        size: How many messages are kept.
    """

    def __init__(self, size: int) -> None:
        self.last = 0
        self._size = size
        self._ring: list[Message[T]] = []  # position p stands at (p - 1) % size

    @cached_property
    def epoch(self) -> str:
        """What ids begin with: drawn at the first use, so that no two processes share it."""
        return os.urandom(6).hex()

    @property
    def first(self) -> int:
        """Position of the oldest message kept; one after the last if there is none."""
        return self.last - len(self._ring) + 1

    def append(self, data: T, event: str | None) -> Message[T]:
        """Number the payload, and keep it in place of the oldest if the history is full."""
        message = numbered(data, f"{self.epoch}-{self.last + 1}", event)
        if len(self._ring) < self._size:
            self._ring.append(message)
        elif self._size:
            self._ring[self.last % self._size] = message
        self.last += 1
        return message

    def page(self, after: int) -> list[Message[T]]:
        """Return the messages that follow a position that is still in reach."""
        end = min(self.last, after + BATCH)
        return [self._ring[p % self._size] for p in range(after, end)]

    def replay(self, cursor: str) -> HistoryReplay[T]:
        """Return what came after the message with this id, as far as it is known."""
        match = re.fullmatch("([0-9a-f]{12})-([1-9][0-9]{0,18})", cursor)
        if match is None:
            return HistoryReplay(self, self.last, "unknown")
        if match[1] != self.epoch:
            return HistoryReplay(self, self.last, "restarted")
        if int(match[2]) > self.last:
            return HistoryReplay(self, self.last, "unknown")
        return HistoryReplay(self, int(match[2]), None)


class HistoryReplay(Generic[T]):
    """Reads a `History` from a position on; what was evicted meanwhile is a hole."""

    def __init__(self, history: History[T], position: int, hole: GapReason | None) -> None:
        self._history = history
        self._position = position
        self._hole: GapReason | None = hole

    async def read(self) -> Page[T]:
        history = self._history
        hole: GapReason | None = self._hole
        if self._position < history.first - 1:
            hole = hole or "expired"
            self._position = history.first - 1
        messages = history.page(self._position)
        positions = range(self._position + 1, self._position + 1 + len(messages))
        self._position += len(messages)
        self._hole = None
        return Page(messages, positions, hole, self._position, met=not messages)
