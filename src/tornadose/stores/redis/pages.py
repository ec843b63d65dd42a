"""Reads a stream in pages, each with what may be missing before it."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from time import monotonic
from typing import Generic

from redis.exceptions import ResponseError
from typing_extensions import TypeVar

from ...history import Positions
from ...messages import numbered
from ...tasks import works
from .broker import Decoder, Incoming
from .connection import array_of
from .entries import (
    Call,
    Entry,
    Hole,
    StreamInfo,
    are_entries,
    cursor_of,
    payload_of,
    position_of,
    together,
)
from .losses import Loss

__all__ = ("PageReader", "StreamPage")

log = logging.getLogger("tornadose")

T = TypeVar("T", default=str)
T_co = TypeVar("T_co", covariant=True)

FIRST_PAGE, PAGE = 10, 200  # entries that are read together, at first and at most
SHARE = 0.002  # seconds for decoding in each turn of a busy event loop, or it would fall behind
ENTRY_BYTES = 512  # that an entry costs besides what is in it


@dataclass(frozen=True, slots=True)
class StreamPage(Generic[T_co]):
    """What stands in the stream behind a position.

    Args:
        incoming: In order.
        cursors: The ids of what has come in.
        position: From where to read on.
        added: Entries ever added up to there, as far as it is known.
        hole: In front of it, if there is one.
        deleted: Position of the last entry that was deleted from the stream; unknown
            before Redis 7.
        gone: How many entries of the stream are not there any more; unknown before Redis 7.
        last_entry: The id of the last entry in the stream.
        there: Whether an entry is where it begins.
        begin_known: Whether an entry may have been where it begins; if not, it was another
            stream in which one was.
        lost: Whether the entry that was last read for the live messages is gone, though it
            was neither trimmed nor deleted.
        full: Whether there may be more behind it.
        size: In bytes.
    """

    incoming: Sequence[Incoming[T_co]]
    cursors: Sequence[bytes]
    position: int
    added: int | None = None
    hole: Hole | None = None
    deleted: int | None = None
    gone: int | None = None
    last_entry: bytes | None = None
    there: bool = True
    begin_known: bool = True
    lost: bool = False
    full: bool = False
    size: int = 0

    def positions(self, start: int, end: int) -> Positions:
        return _Positions(self.cursors[start:end])

    def before_first(self) -> int:
        """Return up to where nothing stands on it."""
        return position_of(self.cursors[0]) - 1 if self.cursors else self.position

    def covered(self) -> int:
        """Return up to where the hole in front of it, if any, speaks for what is missing."""
        if self.hole is None:
            return 0
        deleted = (self.deleted or 0) if self.hole.reason == "expired" else 0
        return max(self.before_first(), deleted)

    def ends_with_entry(self) -> bool:
        return bool(self.cursors) and position_of(self.cursors[-1]) == self.position

    def cut(self, losses: Iterable[Loss]) -> Iterator[StreamPage[T_co]]:
        """Cut it where Redis has lost something, with that hole in front of the next part."""
        rest = self
        for after, until, reason in losses:
            at = bisect_right(rest.positions(0, len(rest.cursors)), after)
            incoming, cursors = rest.incoming, rest.cursors
            yield replace(rest, incoming=incoming[:at], cursors=cursors[:at], position=after)
            hole = Hole(reason, until)
            rest = replace(rest, incoming=incoming[at:], cursors=cursors[at:], hole=hole)
        yield rest


class PageReader(Generic[T]):
    """Makes messages of what stands in a stream, as much at a time as is good.

    Args:
        stream: Its key.
        decode: Makes the payload of a text.
        size: Bytes at which a page ends.
        poisoned: Remembers the entries of which it is logged that they cannot be decoded.
    """

    def __init__(self, stream: str, decode: Decoder[T], size: int, poisoned: deque[bytes]) -> None:
        self._stream = stream
        self._decode = decode
        self._size = size
        self._count = FIRST_PAGE
        self._cut = False  # whether a page was, so that it is known how many entries fit
        self._poisoned = poisoned

    def read_less(self) -> None:
        """Ask for less the next time, as it may have been more than Redis likes to send."""
        self._count, self._cut = max(1, self._count // 2), True

    async def info(self, call: Call) -> StreamInfo:
        """Return what Redis tells of the stream."""
        (reply,) = await together(call, ("XINFO", "STREAM", self._stream))
        return StreamInfo(reply)

    async def whole(
        self,
        call: Call,
        position: int,
        added: int | None = None,
        *,
        anew: bool = False,
        last: bytes | None = None,
    ) -> StreamPage[T]:
        """Read what stands behind a position, and see what may be missing there.

        Args:
            call: Carries out commands.
            position: Behind which to read.
            added: Entries ever added up to there, if it is known.
            anew: Whether the connection is a new one, and the stream may be as well.
            last: The id of the entry that was last read for the live messages.
        """
        at, count = cursor_of(position), self._count
        other = () if last is None or last == at.encode() else (last,)
        reply, begin, behind, *still = await together(
            call,
            ("XINFO", "STREAM", self._stream),
            ("XRANGE", self._stream, at, at),
            ("XRANGE", self._stream, cursor_of(position + 1), "+", "COUNT", count),
            *(("XRANGE", self._stream, entry, entry) for entry in other),
        )
        info, there = StreamInfo(reply), bool(array_of(begin))
        entries = array_of(behind) if position < info.last else []
        page = await self._page(entries, position, count)
        sure = not anew or there or position == info.deleted
        counted = added is not None and not page.full
        known = info.knows(position, there, sure=sure or counted)
        hole = info.hole(position, added, None if page.full else len(entries), sure=sure)
        is_there = bool(array_of(still[0])) if still else there
        lost = last is not None and info.is_lost(position_of(last), is_there)
        if lost or (hole is None and anew and not known):  # what was read there
            hole = Hole("restarted", None)
        page = replace(
            page,
            hole=hole,
            deleted=info.deleted,
            gone=info.gone,
            last_entry=info.last_entry,
            there=there,
            begin_known=known,
            lost=lost,
        )
        if not page.full:
            return replace(page, position=info.last, added=info.added)
        added = None if added is None or hole is not None else added + len(page.incoming)
        return replace(page, added=added)

    async def next(
        self, call: Call, position: int, added: int | None, seconds: float
    ) -> StreamPage[T] | None:
        """Wait for entries, but no longer than this; ``None`` if some may be missing.

        Before they are read, others behind this position may have come and gone. The
        entry at this position would have gone first.
        """
        at, count, block = cursor_of(position), self._count, max(1, round(1000 * seconds))
        reply, there = await call(
            [
                ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", self._stream, at),
                ("XRANGE", self._stream, at, at),
            ]
        )
        streams = [] if reply is None else array_of(reply)
        if not array_of(there):
            return None
        entries = array_of(array_of(streams[0])[1]) if streams else []
        page = await self._page(entries, position, count)
        return replace(page, added=None if added is None else added + len(page.incoming))

    async def _page(self, entries: Sequence[object], position: int, count: int) -> StreamPage[T]:
        """Make messages of entries, up to the size of a page, and adapt how many are read."""
        if not are_entries(entries):
            raise ResponseError(f"expected entries, not {entries!r}")
        full = len(entries) >= count
        size = size_of(entries)
        if size > self._size and len(entries) > 1:
            entries, full = entries[: fitting(entries, self._size)], True
            self._count, size, self._cut = len(entries), size_of(entries), True
        elif full:
            self._count = min(PAGE, count + (count // 8 if self._cut else count) + 1)
        incoming: list[Incoming[T]] = []
        begun, work = monotonic(), works().publishing
        for cursor, fields in entries:
            if monotonic() > begun + SHARE and work.is_over():
                await work.rest()
                begun = monotonic()
            incoming.append(self._incoming(cursor, fields))
        cursors = [cursor for cursor, _ in entries]
        if cursors:
            position = position_of(cursors[-1])
        return StreamPage(incoming, cursors, position, full=full, size=size)

    def _incoming(self, cursor: bytes, fields: Sequence[bytes]) -> Incoming[T]:
        try:
            payload, event = payload_of(fields)
            return numbered(self._decode(payload.decode()), cursor.decode(), event)
        except Exception:
            level = logging.DEBUG if cursor in self._poisoned else logging.ERROR
            log.log(
                level,
                "entry %r of stream %r cannot be decoded",
                cursor,
                self._stream,
                exc_info=True,
            )
            self._poisoned.append(cursor)
            return "poisoned"


def size_of(entries: Sequence[Entry]) -> int:
    """Return about how many bytes entries take."""
    content = sum(map(len, chain.from_iterable(fields for _, fields in entries)))
    return content + ENTRY_BYTES * len(entries)


def fitting(entries: Sequence[Entry], most: int) -> int:
    """Return how many entries fit into so many bytes; one does, however large it is."""
    sizes = accumulate(size_of([entry]) for entry in entries)
    return max(1, sum(size <= most for size in sizes))


class _Positions:
    """The positions of entries, found when they are asked for."""

    def __init__(self, cursors: Sequence[bytes]) -> None:
        self._cursors = cursors

    def __len__(self) -> int:
        return len(self._cursors)

    def __getitem__(self, index: int, /) -> int:
        return position_of(self._cursors[index])
