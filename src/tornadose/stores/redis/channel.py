"""A store on a Redis channel."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Generic, overload

from typing_extensions import TypeVar

from ...limits import Policy
from ...messages import Message, check_event
from ...tasks import cancel
from ...wire import check_text
from .broker import BrokerStore, Decoder, Encoder, Incoming
from .connection import (
    UNREACHABLE,
    Connection,
    Unreachable,
    array_of,
    bytes_of,
    check_name,
    granted,
    now,
)

__all__ = ("RedisStore",)

log = logging.getLogger("tornadose")

T = TypeVar("T", default=str)

EVENT_MARK = "\x1e"  # begins a payload that names its event


class RedisStore(BrokerStore[T], Generic[T]):
    """Publish what any program puts into a Redis channel, at most once.

    A message counts as accepted when it comes in from the channel. After an outage every
    subscriber is told of a gap ("outage"), as Redis keeps nothing for those who are away.

    A payload travels as it is, and with an event as ``\\x1e<event>\\n<payload>``.

    Args:
        channel: Of Redis; by default the one that ``redis-cli PUBLISH tornadose hello``
            publishes to.
        inbox: Messages that are submitted and not yet confirmed, beyond which `submit`
            waits; also messages that have come in and are not yet handed on, beyond
            which nothing is read.
        backlog: Messages kept for one subscriber that is behind.
        policy: What happens when that is full: ``"block"``, ``"drop_oldest"``,
            ``"drop_newest"`` or ``"disconnect"``.
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
        self: RedisStore[str],
        channel: str = "tornadose",
        *,
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
        channel: str = "tornadose",
        *,
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
        channel: str = "tornadose",
        *,
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
        self._channel = check_name("channel", channel)
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
        self._inbox: asyncio.Queue[Incoming[T]] = asyncio.Queue(self._inbox_size)
        self._reading: Connection | None = None  # while the subscription stands
        self._declaring = asyncio.Lock()
        self._declared = False  # that it does not
        self._caught_up = asyncio.Event()

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Publish a payload to the channel, and return its message.

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
        payload = framed(check_text(self._encode(data)), event)
        deadline = now() + self._timeout
        await self._ready(deadline)
        await self._out.call([("PUBLISH", self._channel, payload)], deadline)
        return Message(data, event=event)

    async def publish(self) -> None:
        """Read the channel, and hand on what comes: all that is ready at a time."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            while True:
                ready: list[Incoming[T]] = [await self._inbox.get()]
                while len(ready) < self._most_at_once and not self._inbox.empty():
                    ready.append(self._inbox.get_nowait())
                await self._hand_on(ready)
                for _ in ready:
                    self._inbox.task_done()

    async def drain(self) -> None:
        """Wait until what this process has submitted has come in, and is handed on."""
        await super().drain()
        if self._reading is not None:
            self._caught_up.clear()
            with suppress(*UNREACHABLE):  # then the reader is about to see it as well
                await self._reading.send("PING", "drained")
            await self._caught_up.wait()
        await self._declare()
        await self._inbox.join()

    async def _declare(self) -> None:
        """Announce a gap, once, if the subscription does not stand, although it should."""
        async with self._declaring:
            if self._reading is None and self._tried.is_set() and not self._declared:
                await self._inbox.put("outage")
                self._declared = True

    async def _read(self, connection: Connection) -> None:
        # PING is refused while Redis loads its file, and SUBSCRIBE is not.
        granted(await connection.call([("PING",), ("SUBSCRIBE", self._channel)]))
        await self._declare()
        self._stand()
        self._reading, self._declared = connection, False
        try:
            async with asyncio.timeout(self._reply_timeout) as limit:
                await self._listen(connection, limit)
        except TimeoutError as error:
            raise Unreachable(f"no answer in {self._reply_timeout} s") from error
        finally:
            self._reading = None
            self._caught_up.set()

    async def _listen(self, connection: Connection, limit: asyncio.Timeout) -> None:
        beating = asyncio.create_task(self._beat(connection, limit))
        work = self._fanout.work
        try:
            while True:
                frame = array_of(await connection.receive())
                if frame[0] == b"message":
                    await self._take_in(bytes_of(frame[2]))
                elif frame == [b"pong", b"drained"]:
                    self._caught_up.set()
                if work.is_over():
                    await work.rest()
        finally:
            await cancel(beating)

    async def _take_in(self, payload: bytes) -> None:
        """Accept a message: who registers from now on will not get it."""
        incoming = self._incoming(payload)
        await self._inbox.put(incoming)
        if not isinstance(incoming, str):
            self._fanout.accepted += 1

    async def _beat(self, connection: Connection, limit: asyncio.Timeout) -> None:
        """Make Redis answer while the channel is silent, and put the limit off when it does.

        That is for who listens; while the inbox is full, nobody may.
        """
        with suppress(*UNREACHABLE):  # which `receive` will see as well
            while not limit.expired():
                since = now() if self._inbox.full() else connection.heard
                limit.reschedule(max(limit.when() or 0.0, since + self._reply_timeout))
                await connection.send("PING")
                await asyncio.sleep(self._reply_timeout / 3)

    def _incoming(self, payload: bytes) -> Incoming[T]:
        try:
            text, event = unframed(payload.decode())
            return Message(self._decode(text), event=event)
        except Exception:
            log.exception("a message of channel %r cannot be decoded", self._channel)
            return "poisoned"


def framed(text: str, event: str | None) -> bytes:
    """Return the payload for a text and its event; a bare one where nothing is lost by it."""
    if event is None and not text.startswith(EVENT_MARK):
        return text.encode()
    return (EVENT_MARK + (event or "") + "\n" + text).encode()


def unframed(payload: str) -> tuple[str, str | None]:
    """Return the text of a payload, and its event."""
    if not payload.startswith(EVENT_MARK) or "\n" not in payload:
        return payload, None
    event, _, text = payload[1:].partition("\n")
    return text, event or None
