"""What stands in a stream: ids, entries, and what Redis tells of the whole."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard

from redis.exceptions import ResponseError

from ...messages import GapReason
from .connection import array_of, bytes_of, granted
from .pipeline import Command

__all__ = (
    "Call",
    "Entry",
    "Hole",
    "StreamInfo",
    "are_entries",
    "checked_position_of",
    "cursor_of",
    "payload_of",
    "position_of",
    "together",
)

Entry: TypeAlias = tuple[bytes, Sequence[bytes]]  # its id and its fields
Call: TypeAlias = Callable[[Sequence[Command]], Awaitable[Sequence[object]]]

PART = 1 << 64  # the two parts of an id are below it


class Hole(NamedTuple):
    """A statement that entries are missing.

    Args:
        reason: Why.
        end: Behind which nothing is missing, so that nobody who begins there is told; ``None``
            if that cannot be said.
    """

    reason: GapReason
    end: int | None


class StreamInfo:
    """What Redis tells of a stream, of which there may be none yet.

    Attributes:
        last: Position of the last entry that was ever added.
        last_entry: The id of the last that is there.
        added: How many ever were; unknown before Redis 7.
        deleted: Position of the last entry that was deleted, if any was, but not trimmed;
            unknown before Redis 7.
        gone: How many entries are not there any more; unknown before Redis 7.

    Args:
        reply: To XINFO STREAM.
    """

    def __init__(self, reply: object) -> None:
        fields: dict[object, object] = {b"entries-added": 0, b"length": 0}
        if not (isinstance(reply, ResponseError) and "no such key" in str(reply)):
            flat = array_of(reply)
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.last = position_of(fields.get(b"last-generated-id", b"0-0"))
        first, deleted = fields.get(b"first-entry"), fields.get(b"max-deleted-entry-id")
        newest = fields.get(b"last-entry")
        self.last_entry = None if newest is None else bytes_of(array_of(newest)[0])
        self._first = None if first is None else position_of(array_of(first)[0])
        self.deleted = None if deleted is None else position_of(deleted)
        added, length = fields.get(b"entries-added"), fields.get(b"length")
        self.added = added if isinstance(added, int) else None
        self._length = length if isinstance(length, int) else 0
        self.gone = None if self.added is None else self.added - self._length

    def hole(
        self, position: int, added: int | None, read: int | None, *, sure: bool = True
    ) -> Hole | None:
        """Tell whether entries behind a position have been trimmed, or lost, before now.

        Those that were deleted one by one are noticed only where the counts are known.

        Args:
            position: Of an entry that was there.
            added: Entries ever added up to there, if that is known.
            read: Entries that stand behind it, if that is known.
            sure: Whether it is the stream in which these were counted.
        """
        if position > self.last:
            return Hole("restarted", None)
        trimmed = self._is_trimmed(position)
        if trimmed and not sure:
            added = None
        if position == 0:
            added = 0
        behind = self._length if trimmed else read
        if added is None or self.added is None or behind is None:
            missing = trimmed and position != self.last
        elif (lost := self.added - added - behind) < 0:
            return Hole("restarted", None)  # the same ids were given again
        else:
            missing = lost > 0
        if not missing:
            return None
        if self._first is None or self.deleted is None:
            return Hole("expired", self.last)
        return Hole("expired", max(self._first - 1, self.deleted))

    def knows(self, position: int, there: bool, *, sure: bool = True) -> bool:
        """Tell whether there may have been an entry at a position where there is one, or none.

        That something behind it was deleted says it only if it is sure to be the same stream.
        """
        deleted = sure and self.deleted is not None and position <= self.deleted
        return position <= self.last and (there or deleted or self._is_trimmed(position))

    def is_lost(self, position: int, still: bool) -> bool:
        """Tell whether an entry that was at a position is gone for no reason; as far as known."""
        return self.deleted is not None and not self.knows(position, still)

    def _is_trimmed(self, position: int) -> bool:
        """Tell whether entries behind a position may have been trimmed."""
        return self._first is None or self._first > position


async def together(call: Call, *commands: Command) -> list[object]:
    """Carry out commands at one moment, and return their replies; a refusal is a reply."""
    replies = granted(await call([("MULTI",), *commands, ("EXEC",)]))
    return array_of(replies[-1])


def position_of(cursor: object) -> int:
    """Return an id as a number that rises with it."""
    milliseconds, sequence = bytes_of(cursor).split(b"-")
    return int(milliseconds) * PART + int(sequence)


def checked_position_of(cursor: str) -> int | None:
    """Return the position for what a client takes for an id; ``None`` if it is none."""
    match = re.fullmatch("([0-9]{1,20})-([0-9]{1,20})", cursor)
    if match is None or not all(int(part) < PART for part in match.groups()):
        return None
    return position_of(cursor.encode())


def cursor_of(position: int) -> str:
    return f"{position // PART}-{position % PART}"


def payload_of(fields: Sequence[bytes]) -> tuple[bytes, str | None]:
    """Return the payload and the event among the fields of an entry."""
    if len(fields) == 2 and fields[0] == b"data":  # as nearly all have
        return fields[1], None
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    if b"data" not in named:
        raise ValueError("it has no field 'data'")
    return named[b"data"], named.get(b"event", b"").decode() or None


def are_entries(reply: Sequence[object]) -> TypeGuard[Sequence[Entry]]:
    """Tell whether these are entries, by looking at the first."""
    if not reply:
        return True
    cursor, fields = array_of(reply[0])
    return isinstance(cursor, bytes) and all(isinstance(f, bytes) for f in array_of(fields))
