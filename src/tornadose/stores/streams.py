"""A store on a Redis stream."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Generic, TypeAlias, TypeGuard, overload

from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import ResponseError
from typing_extensions import TypeVar

from ..checks import check_size
from ..exceptions import OutcomeUnknownError
from ..fanout import FanOut, Positions
from ..history import Page
from ..lanes import Policy
from ..messages import GapReason, Message, check_cursor, check_event, numbered
from ..protocols import Subscriber
from ..statistics import Statistics
from ..tasks import cancel
from ..wire import check_text
from .pipeline import Command
from .redis import (
    UNREACHABLE,
    BrokerStore,
    Connection,
    Decoder,
    Encoder,
    Incoming,
    array_of,
    back_off,
    bytes_of,
    check_name,
)

__all__ = ("RedisStreamStore",)

log = logging.getLogger("tornadose")

T = TypeVar("T", default=str)
Call: TypeAlias = Callable[[Sequence[Command]], Awaitable[Sequence[object]]]

FIRST_PAGE, PAGE = 10, 100  # entries that are read together, at first and at most
PAGE_BYTES = 1 << 20  # beyond which fewer entries are read the next time
CACHE_BYTES = 4 << 20  # of pages of history that others may ask for as well
LARGE = 1 << 16  # bytes, from which on a page is decoded with pauses
ENTRY_BYTES = 512  # that an entry costs besides what is in it
LONGEST_BLOCK = 2.0  # seconds that Redis waits for the next entry
PART = 1 << 64  # the two parts of an id are below it


@dataclass(frozen=True, slots=True)
class _Page(Generic[T]):
    """What stands in the stream behind a position.

    Args:
        incoming: In order.
        cursors: The ids of what has come in.
        position: From where to read on.
        added: Entries ever added up to there, as far as it is known.
        hole: Why something may be missing before all this, if it may.
        full: Whether there may be more.
        size: In bytes.
    """

    incoming: Sequence[Incoming[T]]
    cursors: Sequence[bytes]
    position: int
    added: int | None = None
    hole: GapReason | None = None
    full: bool = False
    size: int = 0

    def positions(self, start: int, end: int) -> Positions:
        return _Positions(self.cursors[start:end])


class RedisStreamStore(BrokerStore[T], Generic[T]):
    """Publish what any program adds to a Redis stream, without loss.

    Ids are those of the stream, so that a client may resume with any process that reads
    it, and after an outage the store goes on where it was. What can no longer be read,
    because it was trimmed or deleted meanwhile, is a gap.

    An entry has its payload in the field ``data``, and its event, if any, in ``event``.
    What another program has added counts as accepted when it is read here.

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
        self._history = self._new_pipeline(1)
        self._placed = asyncio.Event()  # once it is known where the live messages begin
        self._added: int | None = None  # entries, ever, up to the position of the fan-out
        self._count = FIRST_PAGE
        self._reads: dict[int, asyncio.Task[_Page[T]]] = {}
        self._cache: OrderedDict[int, _Page[T]] = OrderedDict()

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
            OutcomeUnknownError: If the reply was lost: it may have been accepted.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        if event is not None:
            check_event(event)
        fields: list[str | bytes] = ["data", check_text(self._encode(data)).encode()]
        if event is not None:
            fields += ["event", event]
        await self._opened()
        if not self._placed.is_set():  # or those who are registered would miss it
            await self._place_before_sending()
        (reply,) = await self._out.call(
            [("XADD", self._stream, "MAXLEN", "~", self._maxlen, "*", *fields)]
        )
        self._fanout.accepted = max(self._fanout.accepted, position_of(reply))
        return Message(data, bytes_of(reply).decode(), event)

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
            lane.replay(_Replay(self._fanout, self._placed, self._behind, after), after)

    async def publish(self) -> None:
        """Read the stream, and hand on what comes."""
        await self._follow()

    async def drain(self) -> None:
        """Wait until what this process has submitted is read, and handed on."""
        await super().drain()
        await self._fanout.handed_on()

    async def _let_go(self) -> None:
        await cancel(*self._reads.values())
        await self._history.close()
        await super()._let_go()

    # ---- the live messages

    async def _place(self, call: Call) -> None:
        """Let the live messages begin behind what stands in the stream now."""
        (reply,) = await together(call, ("XINFO", "STREAM", self._stream))
        if not self._placed.is_set():
            stream = _Stream(reply)
            self._added = stream.added
            self._fanout.rewind(stream.last)
            self._placed.set()

    async def _place_before_sending(self) -> None:
        try:
            await self._place(self._out.call)
        except OutcomeUnknownError as error:
            raise Unreachable("not sent: Redis has not answered before") from error

    async def _read(self, connection: Connection) -> None:
        if not self._placed.is_set():
            await self._place(connection.call)
        look = True  # whether something is missing
        while True:
            position, added, accepted = self._fanout.position, self._added, self._fanout.accepted
            if look:
                page = await self._certain_page(connection.call, position, added)
                self._stand()
            else:
                page = await self._next_page(connection, position, added)
            if page.hole is not None:
                self._cache.clear()
                await self._fanout.announce(page.hole)
            await self._hand_on(page.incoming, page.positions)
            if look and not page.full and page.position < accepted:  # Redis has lost the rest
                if page.hole != "restarted":
                    await self._fanout.announce("restarted")
                self._fanout.rewind(page.position)
            self._fanout.skip(page.position)
            self._added = page.added
            look = page.full or not (look or page.incoming)

    async def _next_page(
        self, connection: Connection, position: int, added: int | None
    ) -> _Page[T]:
        """Wait for entries, but no longer than Redis may be silent.

        Before they are read, others behind this position may have come and gone. The
        entry at this position would have gone first.
        """
        at, count = cursor_of(position), self._count
        block = max(1, round(1000 * min(LONGEST_BLOCK, self._reply_timeout / 2)))
        reply, there = await connection.call(
            [
                ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", self._stream, at),
                ("XRANGE", self._stream, at, at),
            ]
        )
        if reply is None:
            return _Page((), (), position, added)
        (stream,) = array_of(reply)
        _, entries = array_of(stream)
        page = await self._page(array_of(entries), position, count)
        page = replace(page, added=None if added is None else added + len(page.incoming))
        if array_of(there) or not page.incoming:  # which Redis 7.0 may send, too
            return page
        (info,) = await connection.call([("XINFO", "STREAM", self._stream)])
        hole = _Stream(info).hole(position, added, len(page.incoming))
        return replace(page, hole=hole, added=page.added if hole is None else None)

    # ---- history

    async def _behind(self, position: int) -> _Page[T]:
        """Return a page of history; those who ask for the same one share it."""
        page = self._cache.get(position)
        if page is not None:
            self._cache.move_to_end(position)
            return page
        if position not in self._reads:
            read = asyncio.create_task(self._certain_page(self._history.call, position))
            read.add_done_callback(lambda read: self._keep(position, read))
            self._reads[position] = read
        return await asyncio.shield(self._reads[position])

    def _keep(self, position: int, read: asyncio.Task[_Page[T]]) -> None:
        """Keep a full page for a while: nothing can be added to it."""
        del self._reads[position]
        if read.cancelled():
            return
        if read.exception() is not None:
            return self._read_less()
        if not read.result().full:
            return  # there will be more behind it
        self._cache[position] = read.result()
        while sum(page.size for page in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)

    # ---- reading

    def _fall(self, error: Exception) -> None:
        self._read_less()
        super()._fall(error)

    def _read_less(self) -> None:
        """Ask for less the next time, as it may have been too much for the time limit."""
        self._count = max(1, self._count // 2)

    async def _certain_page(self, call: Call, position: int, added: int | None = None) -> _Page[T]:
        """Read what stands behind a position, and whether it is all that has ever stood there.

        Args:
            call: Carries out commands.
            position: Behind which to read.
            added: Entries ever added up to there, if it is known.
        """
        at, behind, count = cursor_of(position), cursor_of(position + 1), self._count
        info, there, entries = await together(
            call,
            ("XINFO", "STREAM", self._stream),
            ("XRANGE", self._stream, at, at),
            ("XRANGE", self._stream, behind, "+", "COUNT", count),
        )
        stream = _Stream(info)
        hole: GapReason | None = "restarted" if position > stream.last else None
        if position >= stream.last:
            return _Page((), (), stream.last, stream.added, hole)
        page = await self._page(array_of(entries), position, count)
        read = len(page.incoming)
        if not array_of(there):
            hole = stream.hole(position, added, read)
        if not page.full:
            return replace(page, position=stream.last, added=stream.added, hole=hole)
        up_to = None if added is None or hole is not None else added + read
        return replace(page, added=up_to, hole=hole)

    async def _page(self, entries: Sequence[object], position: int, count: int) -> _Page[T]:
        """Make messages of entries, and have fewer read next time if they are large."""
        if not are_entries(entries):
            raise ResponseError(f"expected entries, not {entries!r}")
        size = sum(map(len, chain.from_iterable(fields for _, fields in entries)))
        incoming: list[Incoming[T]] = []
        for entry in entries:
            incoming.append(self._incoming(*entry))
            if size > LARGE and self._fanout.work.enough():  # where decoding takes its time
                await self._fanout.work.rest()
        cursors = [cursor for cursor, _ in entries]
        if cursors:
            position = position_of(cursors[-1])
        full = len(incoming) >= count
        size += ENTRY_BYTES * len(incoming)
        if size > PAGE_BYTES:
            self._count = max(1, count * PAGE_BYTES // size)
        elif full:
            self._count = min(PAGE, 2 * count)
        return _Page(incoming, cursors, position, full=full, size=size)

    def _incoming(self, cursor: bytes, fields: Sequence[bytes]) -> Incoming[T]:
        try:
            payload, event = payload_of(fields)
            return numbered(self._decode(payload.decode()), cursor.decode(), event)
        except Exception:
            log.exception("entry %r of stream %r cannot be decoded", cursor, self._stream)
            return "poisoned"


class _StreamFanOut(FanOut[T]):
    """A fan-out whose positions are ids, of which it has not accepted all between."""

    def statistics(self) -> Statistics:
        statistics = super().statistics()
        return replace(statistics, submitted=statistics.published)

    def abandon_unpublished(self) -> int:
        super().abandon_unpublished()
        return 0  # what is in the stream is not lost


class _Replay(Generic[T]):
    """Reads the stream for one subscriber, up to where the live messages are.

    Args:
        fanout: Of the live messages.
        placed: Set once it is known where they begin.
        behind: Reads what stands behind a position.
        cursor: Where to begin; it may be anything.
    """

    def __init__(
        self,
        fanout: FanOut[T],
        placed: asyncio.Event,
        behind: Callable[[int], Awaitable[_Page[T]]],
        cursor: str,
    ) -> None:
        self._fanout = fanout
        self._placed = placed
        self._behind = behind
        self._cursor = cursor
        self._position: int | None = None
        self._parts: deque[Page[T]] = deque()  # of the page that was read last
        self._full = False

    async def read(self) -> Page[T]:
        """Return the next page, waiting for Redis as long as it takes."""
        await self._placed.wait()
        if self._position is None:
            self._position = checked_position_of(self._cursor)
            if self._position is None:
                return self._live("unknown")
        if not self._parts:
            page = await self._patiently_read(self._position)
            if page.hole == "restarted":
                if self._position > self._fanout.accepted:
                    return self._live("restarted")
                await back_off(0)  # until it is noticed there as well, or there were two gaps
                return Page([], None, self._position, met=False)
            self._parts.extend(parts_of(page))
            self._position, self._full = page.position, page.full
            if not page.incoming and self._position < self._fanout.accepted:
                await back_off(0)  # the stream was reset, which is about to be noticed
        part = self._parts.popleft()
        met = not self._parts and not self._full and part.position >= self._fanout.accepted
        return replace(part, met=met)

    async def _patiently_read(self, position: int) -> _Page[T]:
        failures = 0
        while True:
            try:
                return await self._behind(position)
            except (*UNREACHABLE, OutcomeUnknownError) as error:
                log.debug("reading history failed", exc_info=error)
            failures += 1
            await back_off(failures)

    def _live(self, hole: GapReason) -> Page[T]:
        return Page([], hole, self._fanout.accepted, met=True)


def parts_of(page: _Page[T]) -> Iterator[Page[T]]:
    """Cut a page at the holes in it."""
    hole, messages = page.hole, list[Message[T]]()
    for item, cursor in zip(page.incoming, page.cursors, strict=True):
        if isinstance(item, str):
            yield Page(messages, hole, position_of(cursor), met=False)
            hole, messages = item, []
        else:
            messages.append(item)
    yield Page(messages, hole, page.position, met=False)


class _Stream:
    """What Redis knows of a stream, of which there may be none yet.

    Attributes:
        last: Position of the last entry that was ever added.
        added: How many were; unknown before Redis 7.
    """

    def __init__(self, reply: object) -> None:
        fields: dict[object, object] = {b"entries-added": 0, b"length": 0}
        if not (isinstance(reply, ResponseError) and "no such key" in str(reply)):
            flat = array_of(reply)
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.last = position_of(fields.get(b"last-generated-id", b"0-0"))
        first = fields.get(b"first-entry")
        self._first = self.last if first is None else position_of(array_of(first)[0])
        added, length = fields.get(b"entries-added"), fields.get(b"length")
        self.added = added if isinstance(added, int) else None
        self._length = length if isinstance(length, int) else 0

    def hole(self, position: int, added: int | None, read: int) -> GapReason | None:
        """Tell whether something behind this position, where no entry is, may be missing.

        Args:
            position: At which there is no entry.
            added: Entries ever added up to there, if it is known.
            read: Entries that are certainly behind it.
        """
        if position == 0:
            added = 0
        behind = self._length if position < self._first else read
        if position == self.last or (added is not None and self.added == added + behind):
            return None
        return "expired" if position <= self._first else "unknown"


async def together(call: Call, *commands: Command) -> list[object]:
    """Carry out commands at one moment, and return their replies; a refusal is a reply."""
    replies = await call([("MULTI",), *commands, ("EXEC",)])
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
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


def are_entries(reply: Sequence[object]) -> TypeGuard[Sequence[tuple[bytes, Sequence[bytes]]]]:
    """Tell whether these are entries, each an id and its fields, by looking at the first."""
    if not reply:
        return True
    cursor, fields = array_of(reply[0])
    return isinstance(cursor, bytes) and all(isinstance(f, bytes) for f in array_of(fields))


class _Positions:
    """The positions of entries, found when they are asked for."""

    def __init__(self, cursors: Sequence[bytes]) -> None:
        self._cursors = cursors

    def __len__(self) -> int:
        return len(self._cursors)

    def __getitem__(self, index: int, /) -> int:
        return position_of(self._cursors[index])
