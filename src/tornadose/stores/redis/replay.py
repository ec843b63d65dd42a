"""History of a stream on its way to those who resume."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from ...exceptions import OutcomeUnknownError
from ...fanout import FanOut
from ...history import Page
from ...lanes import BEYOND
from ...messages import GapReason, Message
from ...tasks import cancel
from .broker import back_off
from .connection import UNREACHABLE
from .entries import checked_position_of, cursor_of, position_of
from .losses import Loss, Losses
from .pages import PageReader, StreamPage
from .pipeline import Pipeline

__all__ = ("StreamHistory", "StreamReplay")

log = logging.getLogger("tornadose")

T = TypeVar("T")

PATIENCE = 10  # attempts, which take about half a minute, before it is logged
CACHE_BYTES = 4 << 20  # of pages that others may ask for as well


class StreamHistory(Generic[T]):
    """Pages of history; those who ask for the same one share it.

    Attributes:
        fanout: Of the live messages.
        losses: Of the stream.
        last: The id of the entry in the stream that was last read for the live messages, or
            stood there when they began; ``None`` if there is none.

    Args:
        pages: Makes them.
        pipeline: To Redis, for history alone.
        losses: Of the stream.
        fanout: Of the live messages.
    """

    def __init__(
        self, pages: PageReader[T], pipeline: Pipeline, losses: Losses, fanout: FanOut[T]
    ) -> None:
        self.fanout = fanout
        self.losses = losses
        self.last: bytes | None = None
        self._pages = pages
        self._pipeline = pipeline
        self._tasks: set[asyncio.Task[StreamPage[T]]] = set()
        self._reads: dict[int, asyncio.Task[StreamPage[T]]] = {}
        self._cache: OrderedDict[int, StreamPage[T]] = OrderedDict()

    async def behind(self, position: int) -> StreamPage[T]:
        """Return what stands behind a position, waiting for Redis as long as it takes.

        What is missing there is noted among the losses.
        """
        failures = 0
        while True:
            reads = self._reads
            try:
                page = await self._shared(position)
            except (*UNREACHABLE, OutcomeUnknownError) as error:
                log.debug("reading history failed", exc_info=error)
            else:
                if reads is self._reads:
                    return page
                continue  # as the stream is not what it was
            failures += 1
            if failures == PATIENCE:
                log.warning("history behind %s cannot be read for long", cursor_of(position))
            await back_off(failures)

    def forget(self) -> None:
        """Keep no page of a stream that is not what it was, also none that is being read."""
        self._cache.clear()
        self._reads = {}

    async def close(self) -> None:
        await cancel(*self._tasks)
        await self._pipeline.close()

    async def _shared(self, position: int) -> StreamPage[T]:
        page = self._cache.get(position)
        if page is not None:
            self._cache.move_to_end(position)
            return page
        if position not in self._reads:
            read = asyncio.create_task(self._read(position))
            self._tasks.add(read)
            read.add_done_callback(lambda read: self._keep(position, read))
            self._reads[position] = read
        return await asyncio.shield(self._reads[position])

    async def _read(self, position: int) -> StreamPage[T]:
        while True:
            last, opened = self.last, self._pipeline.opened
            page = await self._pages.whole(self._pipeline.call, position, last=last)
            if last == self.last or opened == self._pipeline.opened:
                return page  # else it is of a server that may have lost what was read meanwhile

    def _accept(self, position: int, page: StreamPage[T]) -> None:
        """Note what is missing on a page, and count as accepted what is there.

        What was read ahead of the live messages is expected there.
        """
        if page.hole is not None and page.hole.reason == "restarted":
            return  # nobody will get it before the reader has noticed
        if self.losses.find(page, position):
            self._cache.clear()
        self.fanout.accepted = max(self.fanout.accepted, page.position)
        positions = page.positions(0, len(page.cursors))
        for index in range(bisect_right(positions, self.fanout.position), len(positions)):
            self.losses.expect(positions[index], page.cursors[index])

    def _keep(self, position: int, read: asyncio.Task[StreamPage[T]]) -> None:
        """Take note of a page; keep a full one for a while: nothing can be added to it."""
        self._tasks.discard(read)
        if read.cancelled():
            return
        if read.exception() is not None:
            self._pages.read_less()
        if self._reads.get(position) is not read:
            return  # the stream is not what it was
        del self._reads[position]
        if read.exception() is not None:
            return
        self._accept(position, read.result())
        if not read.result().full or read.result().lost:
            return  # there will be more behind it, or before
        self._cache[position] = read.result()
        while sum(page.size for page in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)


class StreamReplay(Generic[T]):
    """Reads the stream for one subscriber, up to where the live messages are.

    Args:
        stands: Set while the live messages are read, so that losses are known.
        history: From which it reads.
        cursor: Where to begin; it may be anything.
    """

    def __init__(self, stands: asyncio.Event, history: StreamHistory[T], cursor: str) -> None:
        self._fanout = history.fanout
        self._stands = stands
        self._history = history
        self._cursor = cursor
        self._position: int | None = None
        self._spoken = 0  # position up to which it need not be told of losses
        self._deleted = 0  # position of the last deleted entry that was spoken of
        self._gone = 0  # entries that were not there any more then
        self._parts: Iterator[Page[T]] = iter(())  # of the page that was read last
        self._part: Page[T] | None = None  # the next of them
        self._full = False
        self._begun = False
        self._known = False  # whether an entry may have been at the position, now and for ever
        self._waits = 0  # how often it had to wait for the live messages

    async def read(self) -> Page[T]:
        """Return the next page, waiting for Redis as long as it takes."""
        await self._stands.wait()
        if self._position is None:
            self._position = checked_position_of(self._cursor)
            if self._position is None:
                return self._live("unknown")
            self._spoken = self._position or self._history.losses.beginning()
        if self._part is None:
            page = await self._history.behind(self._position)
            if page.hole is not None and page.hole.reason == "restarted":
                if self._position > self._fanout.accepted and not page.lost:
                    return self._live("restarted", page.position)  # it has had what is there
                await self._wait()  # until it is noticed there as well, or there were two gaps
                return Page([], (), None, self._position, met=False)
            self._parts = self._parts_of(page)
            self._part = next(self._parts)
            stays = page.position == self._position and page.begin_known
            self._known = page.ends_with_entry() or stays
            self._position, self._full, self._begun = page.position, page.full, True
            if page.incoming:
                self._waits = 0
        part, self._part = self._part, next(self._parts, None)
        ends = self._part is None and not self._full and not self._unspoken()
        part.met = ends and part.position >= self._fanout.accepted
        if ends and not (part.met or part.messages or part.hole):
            await self._wait()  # the stream was reset, which is about to be noticed
        return part

    async def _wait(self) -> None:
        """Wait for the live messages, longer and longer."""
        self._waits += 1
        await back_off(min(self._waits, 4))

    def _unspoken(self, until: int = BEYOND) -> Sequence[Loss]:
        return self._history.losses.unspoken(self._spoken, until)

    def _parts_of(self, page: StreamPage[T]) -> Iterator[Page[T]]:
        """Cut a page at the holes in it, and where Redis has lost what it had."""
        if page.cursors:  # whose ids may be lower than those that were lost
            self._spoken = min(self._spoken, page.before_first() + 1)
        hole, losses = self._hole(page), self._unspoken(page.position if page.full else BEYOND)
        self._spoken = max([self._spoken, *(loss.until for loss in losses)])
        if hole is not None:  # it speaks for whatever is missing up to the next entry
            self._spoken = max(self._spoken, page.before_first())
        deleted = Loss(self._deleted - 1, self._deleted, "expired")  # which a hole has spoken for
        losses = [loss for loss in losses if loss != deleted]
        *before, rest = page.cut(losses)
        for part, loss in zip(before, losses, strict=True):
            if part.incoming:
                yield from parts_of(part, hole)
                hole = None
            hole = hole or loss.reason
        yield from parts_of(rest, hole)

    def _hole(self, page: StreamPage[T]) -> GapReason | None:
        """Tell why messages are missing in front of a page that is behind those before."""
        position, deleted, gone = self._position or 0, page.deleted or 0, page.gone or 0
        told = max(position, self._deleted)
        expired = deleted > told or (deleted > position and gone > self._gone)
        # As a page that is kept may know of less.
        self._deleted, self._gone = max(told, deleted), max(self._gone, gone)
        if page.hole is not None:
            return page.hole.reason
        if not page.begin_known and not self._begun:
            return "unknown"
        if not page.begin_known and self._known and page.deleted is not None:  # or it was deleted
            return "restarted"
        return "expired" if expired else None

    def _live(self, hole: GapReason, position: int = 0) -> Page[T]:
        self._fanout.accepted = max(self._fanout.accepted, position)
        return Page([], (), hole, self._fanout.accepted, met=True)


def parts_of(page: StreamPage[T], hole: GapReason | None) -> Iterator[Page[T]]:
    """Cut a page at the holes in it, with this one in front."""
    messages, start = list[Message[T]](), 0
    for index, item in enumerate(page.incoming):
        if isinstance(item, str):
            positions, position = page.positions(start, index), position_of(page.cursors[index])
            yield Page(messages, positions, hole, position, met=False)
            hole, messages, start = item, [], index + 1
        else:
            messages.append(item)
    positions = page.positions(start, len(page.cursors))
    yield Page(messages, positions, hole, page.position, met=False)
