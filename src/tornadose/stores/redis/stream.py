"""A store on a Redis stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, overload

from typing_extensions import TypeVar

from ...checks import check_size
from ...exceptions import OutcomeUnknownError, StoreClosedError
from ...fanout import FanOut
from ...limits import Policy
from ...messages import Message, check_cursor, check_event
from ...protocols import Subscriber
from ...statistics import Statistics
from ...wire import check_text
from .broker import BrokerStore, Decoder, Encoder, Part
from .connection import (
    UNREACHABLE,
    Connection,
    Unreachable,
    array_of,
    bytes_of,
    check_name,
    now,
)
from .entries import Call, Hole, StreamInfo, position_of, together
from .losses import Loss, Losses
from .pages import PageReader, StreamPage
from .replay import StreamHistory, StreamReplay

__all__ = ("RedisStreamStore",)

T = TypeVar("T", default=str)

LIVE_PAGE, HISTORY_PAGE = 1 << 20, 1 << 18  # bytes; of history each who resumes may have one
POISONED = 1024  # entries of which it is remembered that they were logged
LONGEST_BLOCK = 2.0  # seconds that Redis waits for the next entry


class RedisStreamStore(BrokerStore[T], Generic[T]):
    """Publish what any program adds to a Redis stream, without loss.

    Ids are those of the stream, so that a client may resume with any process that reads
    it, and after an outage the store goes on where it was. What can no longer be read,
    because it was trimmed or deleted meanwhile, is a gap.

    An entry has its payload in the field ``data``, and its event, if any, in ``event``.
    What another program has added counts as accepted when it is read here, also as history.

    Args:
        stream: The key; by default the one that ``redis-cli XADD tornadose '*' data
            hello`` adds to.
        maxlen: Entries that the stream keeps, about; more are trimmed by `submit`.
        inbox: Messages that are submitted and not yet confirmed, beyond which `submit`
            waits.
        backlog: Messages kept for one subscriber that is behind.
        policy: What happens when that is full: ``"block"``, ``"drop_oldest"``,
            ``"drop_newest"`` or ``"disconnect"``, to come back and resume.
        block_timeout: Seconds that one message waits under ``"block"`` until the
            subscribers that have no room are released.
        max_subscribers: Subscribers at a time; ``None`` is no limit.
        encode: Makes the text that travels of a payload. Without it payloads are strings.
        decode: Makes the payload of the text.
        url: Of Redis, as in ``redis.asyncio.Redis.from_url``.
        redis_kwargs: What ``redis.asyncio.Redis`` takes. Both ``socket_timeout`` and
            ``socket_connect_timeout`` are 5 seconds by default.

    Raises:
        TypeError: If one of them is of the wrong type.
        ValueError: If one is out of range, or cannot be had with this store.
    """

    @overload
    def __init__(
        self: RedisStreamStore[str],
        stream: str = "tornadose",
        *,
        maxlen: int = 10_000,
        inbox: int = 1024,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
        encode: None = None,
        decode: None = None,
        url: str | None = None,
        **redis_kwargs: object,
    ) -> None: ...
    @overload
    def __init__(
        self,
        stream: str = "tornadose",
        *,
        maxlen: int = 10_000,
        inbox: int = 1024,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
        encode: Encoder[T],
        decode: Decoder[T],
        url: str | None = None,
        **redis_kwargs: object,
    ) -> None: ...
    def __init__(
        self,
        stream: str = "tornadose",
        *,
        maxlen: int = 10_000,
        inbox: int = 1024,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
        encode: Encoder[T] | None = None,
        decode: Decoder[T] | None = None,
        url: str | None = None,
        **redis_kwargs: object,
    ) -> None:
        check_size("maxlen", maxlen, at_least=1)
        self._stream = check_name("stream", stream)
        self._maxlen = maxlen
        super().__init__(
            inbox=inbox,
            backlog=backlog,
            policy=policy,
            block_timeout=block_timeout,
            max_subscribers=max_subscribers,
            encode=encode,
            decode=decode,
            url=url,
            redis_kwargs=redis_kwargs,
        )

    def _prepare(self) -> None:
        super()._prepare()
        poisoned: deque[bytes] = deque(maxlen=POISONED)
        self._pages, history = (
            PageReader(self._stream, self._decode, size, poisoned)
            for size in (LIVE_PAGE, HISTORY_PAGE)
        )
        self._losses = Losses()
        self._history = StreamHistory(
            history, self._new_pipeline(1, None), self._losses, self._fanout
        )
        self._stands = asyncio.Event()  # while the live messages are read
        self._placed = asyncio.Event()  # once it is known where the live messages begin
        self._added: int | None = None  # entries, ever, up to the position of the fan-out

    def _new_fanout(self) -> FanOut[T]:
        return _StreamFanOut(self._limits)

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Add a payload to the stream, and return its message.

        The first time it waits for the reader, so that a program hears itself. It is
        never sent twice. Cancelled, it may have been accepted.

        Raises:
            TypeError: If the event or the encoded payload is no string.
            ValueError: If the event is no usable name, or the payload has a surrogate in it.
            redis.exceptions.RedisError: If Redis cannot be reached, or refuses the
                message: it was not accepted.
            OutcomeUnknownError: If the reply was lost, or came so late that Redis has lost
                the message again: it may have been accepted.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        if event is not None:
            check_event(event)
        fields: list[str | bytes] = ["data", check_text(self._encode(data)).encode()]
        if event is not None:
            fields += ["event", event]
        deadline = now() + self._timeout
        await self._ready(deadline)
        stood = self._stood
        command = ("XADD", self._stream, "MAXLEN", "~", self._maxlen, "*", *fields)
        (reply,) = await self._out.call([command], deadline)
        cursor, position = bytes_of(reply), position_of(reply)
        self._fanout.accepted = max(self._fanout.accepted, position)
        if position > self._fanout.position:
            self._losses.expect(position, cursor)
        elif stood != self._stood and await self._is_lost(cursor, deadline):
            raise OutcomeUnknownError("the reply was late, and the entry may be lost again")
        return Message(data, cursor.decode(), event)

    async def _is_lost(self, cursor: bytes, deadline: float) -> bool:
        """Tell whether an entry is gone for no reason, as far as Redis says."""
        try:
            info, found = await together(
                partial(self._out.call, deadline=deadline),
                ("XINFO", "STREAM", self._stream),
                ("XRANGE", self._stream, cursor, cursor),
            )
            return not StreamInfo(info).knows(position_of(cursor), bool(array_of(found)))
        except (*UNREACHABLE, OutcomeUnknownError, StoreClosedError):
            return True

    def resume(self, subscriber: Subscriber[T], after: str, /) -> None:
        """Register, and deliver first what stands in the stream behind this id.

        History is read in pages at the subscriber's pace, and does not count against
        its backlog. Unless it is certain that nothing is missing, there is a gap:
        ``expired``, ``unknown`` or ``restarted``. An empty id is none.

        Raises:
            TypeError: If the id is no string.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        check_cursor(after)
        lane = self._admit(subscriber)
        if lane is not None and after:
            self._fanout.books.resumed += 1
            lane.replay(StreamReplay(self._stands, self._history, after), after)

    async def publish(self) -> None:
        """Read the stream, and hand on what comes."""
        await self._follow()

    async def drain(self) -> None:
        """Wait until what this process has submitted is read, and handed on."""
        await super().drain()
        await self._fanout.handed_on()

    def _parts(self) -> Sequence[Part]:
        return (self._history, *super()._parts())

    # ---- the live messages

    async def _place(self, call: Call) -> None:
        """Let the live messages begin behind what stands in the stream now."""
        info = await self._pages.info(call)
        if not self._placed.is_set():
            self._added, self._history.last = info.added, info.last_entry
            self._fanout.rewind(info.last)
            self._placed.set()
            if self._down is not None:  # those who are here may have missed something
                await self._fanout.announce("outage")

    async def _before_first_put(self) -> None:
        if not self._placed.is_set():
            try:
                await self._place(self._out.call)
            except OutcomeUnknownError as error:
                raise Unreachable("not sent: Redis has not answered before") from error

    async def _read(self, connection: Connection) -> None:
        if not self._placed.is_set():
            await self._place(connection.call)
        whole_until, anew = now(), True
        while True:
            left = whole_until - now()
            page = await self._next_page(connection, left) if left > 0 else None
            if page is None:
                page, anew = await self._whole_page(connection, anew=anew), False
                whole_until = now() + min(LONGEST_BLOCK, self._reply_timeout / 2)
            self._fanout.skip(page.position)
            self._added = page.added
            self._losses.settle(page)

    async def _next_page(self, connection: Connection, seconds: float) -> StreamPage[T] | None:
        """Hand on what comes next, unless something may be missing before it."""
        position = self._fanout.position
        page = await self._pages.next(connection.call, position, self._added, seconds)
        if page is None or self._losses.missing(page):
            return None
        self._note_last(page)
        await self._hand_on(page.incoming, page.positions)
        return page

    async def _whole_page(self, connection: Connection, *, anew: bool) -> StreamPage[T]:
        """Hand on what is there, and announce what is missing."""
        position, accepted = self._fanout.position, self._fanout.accepted
        page = await self._pages.whole(
            connection.call, position, self._added, anew=anew, last=self._history.last
        )
        self._note_last(page)
        lost_the_rest = not page.full and page.position < accepted
        if lost_the_rest and not page.cursors:
            page = replace(page, hole=None)  # as one gap says it all
        found, covered = self._losses.find(page), page.covered()
        losses = [loss for loss in found if loss.until > covered]
        spoken = [loss.until for loss in found if loss.until <= covered]  # by the hole in front
        told_until = max([position + 1, *spoken])
        if page.hole is not None and page.hole.end is not None:
            page = replace(page, hole=Hole(page.hole.reason, max([page.hole.end, *spoken])))
        elif page.hole is not None:
            # It is lost what was there as well.
            self._losses.note(Loss(position - 1, max([position, *spoken])))
        if lost_the_rest:  # where all of it is lost, who begins at 0 begins behind that
            self._losses.note(Loss(page.position or -1, accepted))
            self._losses.expect_no_more(accepted)
        if page.hole is not None or losses or lost_the_rest:
            self._history.forget()
        self._stand()
        self._stands.set()  # from now on those who read history know as much
        for part in page.cut(losses):
            if part.hole is not None:
                await self._fanout.announce(*part.hole, end=told_until)
            await self._hand_on(part.incoming, part.positions)
        if lost_the_rest:
            await self._fanout.announce("restarted", end=accepted + 1)
            self._fanout.rewind(page.position, accepted)
        return replace(page, added=None) if losses and page.full else page

    def _note_last(self, page: StreamPage[T]) -> None:
        """Note what was read last: what is in hand may be lost in Redis before it is handed on."""
        if page.cursors:
            self._history.last = page.cursors[-1]
        elif page.hole is not None:
            self._history.last = page.last_entry

    def _fall(self, error: Exception) -> None:
        self._pages.read_less()
        self._stands.clear()
        super()._fall(error)


class _StreamFanOut(FanOut[T]):
    """A fan-out whose positions are ids, of which it has not accepted all between."""

    def statistics(self) -> Statistics:
        statistics = super().statistics()
        return statistics._replace(submitted=statistics.published)

    def unpublished(self) -> int:
        return 0  # as what is in the stream is not lost
