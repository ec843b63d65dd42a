"""A store on a Redis channel, and what it shares with the one on a stream."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Self, TypeAlias, TypeGuard, cast, overload

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import TimeoutError as SilentTooLong
from typing_extensions import TypeVar

from ..checks import check_seconds, check_size
from ..fanout import Positions
from ..lanes import Policy
from ..messages import BATCH, Batch, GapReason, Message, check_event
from ..tasks import cancel
from ..wire import check_text
from .base import BaseStore
from .pipeline import Command, Pipeline

__all__ = ("BrokerStore", "Connection", "RedisStore")

log = logging.getLogger("tornadose")

T = TypeVar("T", default=str)
Decoder: TypeAlias = Callable[[str], T]
Encoder: TypeAlias = Callable[[T], str]
Incoming: TypeAlias = Message[T] | GapReason

UNREACHABLE = (RedisError, OSError)
TIMEOUT = 5.0  # seconds, of redis-py's `socket_timeout` and `socket_connect_timeout`
FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0  # seconds between two attempts to connect
IDLE = 1.0  # seconds after which a connection may have died unnoticed
EVENT_MARK = "\x1e"  # begins a payload that names its event


class Connection:
    """One connection of redis-py, without its retries, that speaks RESP2 in bytes.

    Whatever breaks it is a ``redis.exceptions.ConnectionError``, silence included.
    """

    def __init__(self, client: Redis) -> None:
        self._connection = client.connection_pool.make_connection()
        self._connection.socket_timeout = None  # or it would use `wait_for`, see `in_time`
        self._reply_timeout = seconds_of(client, "socket_timeout")
        self._connect_timeout = seconds_of(client, "socket_connect_timeout") + self._reply_timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def connect(self) -> None:
        """Connect, unless connected; after a pause, make sure that it still is.

        Raises:
            RedisError: If Redis cannot be reached, or refuses the user.
        """
        if self._is_open() and _now() - self._used > IDLE:
            with suppress(*UNREACHABLE):
                await self.call([("PING",)])
        if self._is_open():
            return
        await self.close()
        await in_time(self._connect_timeout, self._connection.connect())
        reader: object = getattr(self._connection, "_reader", None)
        writer: object = getattr(self._connection, "_writer", None)
        if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
            self._streams = reader, writer

    async def call(self, commands: Sequence[Command], /) -> list[object]:
        """Send commands, and return their replies; a refusal is a reply.

        Raises:
            RedisError: If the connection breaks, or replies take too long.
        """
        try:
            await self._send(commands)
            replies: list[object] = []
            for _ in commands:
                try:
                    replies.append(await in_time(self._reply_timeout, self.receive()))
                except BusyLoadingError as error:  # redis-py has disconnected
                    return [*replies, *[error] * (len(commands) - len(replies))]
                except ResponseError as error:
                    replies.append(error)
        except BaseException:
            await self.close()
            raise
        self._used = _now()
        return replies

    async def send(self, *command: str | bytes) -> None:
        """Send a command whose reply comes with the rest of `receive`."""
        await self._send([command])

    async def receive(self) -> object:
        """Return what Redis sends next, however long that takes."""
        try:
            return await self._connection.read_response(disable_decoding=True)
        except SilentTooLong as error:  # which the kernel says
            raise Unreachable("the connection is broken") from error

    async def close(self) -> None:
        """Close the connection at once; it can be opened again."""
        if self._streams is not None:
            self._streams[1].transport.abort()  # redis-py would first write what is left
            self._streams = None
        await self._connection.disconnect(nowait=True)

    async def _send(self, commands: Sequence[Command]) -> None:
        if not self._is_open():  # redis-py would connect again, unnoticed
            raise Unreachable("the connection is closed")
        packed = self._connection.pack_commands(commands)
        sending = self._connection.send_packed_command(packed, check_health=False)
        await in_time(self._reply_timeout, sending)

    def _is_open(self) -> bool:
        """Tell whether it is connected, and not known to be broken."""
        if self._streams is None:
            return self._connection.is_connected
        reader, writer = self._streams
        broken = reader.at_eof() or writer.transport.is_closing()
        return self._connection.is_connected and not broken


class BrokerStore(BaseStore[T], Generic[T]):
    """A store whose messages come from Redis, whoever put them there.

    One connection reads, for however many subscribers, and is opened again whenever it
    breaks; another one, opened with the first `submit`, writes.
    """

    def __init__(
        self,
        *,
        inbox: int,
        backlog: int,
        policy: Policy,
        block_timeout: float,
        max_subscribers: int | None,
        encode: Encoder[T] | None,
        decode: Decoder[T] | None,
        url: str | None,
        redis_kwargs: dict[str, object],
    ) -> None:
        check_size("inbox", inbox, at_least=1)
        for name, function in ("encode", encode), ("decode", decode):
            if function is not None and not callable(function):
                raise TypeError(f"{name}: {function!r} is not callable")
        if (encode is None) != (decode is None):
            raise TypeError("encode and decode: one without the other cannot be undone")
        self._inbox_size = inbox
        self._encode = encode or as_text
        # Without a decoder T is str, which only the overloads of the subclasses can say.
        self._decode = decode or cast("Decoder[T]", str)
        self._client = client_of(url, redis_kwargs)
        self._reply_timeout = seconds_of(self._client, "socket_timeout")
        self._connect_timeout = seconds_of(self._client, "socket_connect_timeout")
        super().__init__(
            backlog=backlog,
            policy=policy,
            block_timeout=block_timeout,
            max_subscribers=max_subscribers,
        )

    def _prepare(self) -> None:
        self._out = self._new_pipeline(self._inbox_size)
        self._most_at_once = min(self._limits.backlog, BATCH)
        self._tried = asyncio.Event()
        self._down: Exception | None = None  # while Redis is out of reach

    def _new_pipeline(self, size: int) -> Pipeline:
        limit = self._connect_timeout + self._reply_timeout
        return Pipeline(Connection(self._client), size, limit, late=Unreachable)

    async def __aenter__(self) -> Self:
        """Connect to Redis.

        Raises:
            redis.exceptions.ConnectionError: If it cannot be reached.
            StoreClosedError: If the store is closed.
        """
        self._open()
        try:
            await self._opened()
            if self._down is not None:
                raise self._down
        except BaseException:
            if not self.subscribers:
                await self._stop_publishing()
                await self._let_go()
                self._begin()
            raise
        return self

    async def _opened(self) -> None:
        """Wait for the first attempt to read, and raise what it has met."""
        if not self._tried.is_set():
            with self._submitting():
                await self._tried.wait()
            if self._down is not None:
                raise self._down

    async def drain(self) -> None:
        """Wait until what this process has submitted has come in, and is handed on."""
        await self._out.drain()

    def _refuse_waiting(self) -> None:
        self._out.refuse()

    def _abandon(self) -> bool:
        """Leave those who wait for a reply to `_let_go`, which tells what they may believe."""
        waiting = {task for task in self._submitters if task in self._out.callers}
        self._submitters -= waiting
        lost = super()._abandon()
        self._submitters |= waiting
        return lost

    async def _let_go(self) -> None:
        await self._out.close()

    # ---- reading

    @abstractmethod
    async def _read(self, connection: Connection) -> None:
        """Read for ever, having called `_stand` once nothing new can be missed."""

    async def _follow(self) -> None:
        """Read whatever happens, with a pause before each new attempt."""
        failures = 0
        while True:
            connection = Connection(self._client)
            began = _now()
            try:
                await connection.connect()
                await self._read(connection)
            except UNREACHABLE as error:
                self._fall(error)
            finally:
                await connection.close()
            failures = 0 if _now() - began > LONGEST_DELAY else failures + 1
            await back_off(failures)

    def _stand(self) -> None:
        """Note that the connection stands."""
        if self._down is not None:
            log.warning("%r reads from Redis again", self)
        self._down = None
        self._tried.set()

    def _fall(self, error: Exception) -> None:
        """Note that the connection is broken, or could not be opened."""
        if self._down is None:
            log.warning(
                "%r cannot read from Redis, and will try again: %s: %s",
                self,
                type(error).__name__,
                error,
            )
        self._down = error
        self._tried.set()

    async def _hand_on(
        self,
        incoming: Sequence[Incoming[T]],
        positions: Callable[[int, int], Positions] | None = None,
    ) -> None:
        """Broadcast what has come in, and announce each gap where it stands."""
        start = 0
        while start < len(incoming):
            if isinstance(gap := incoming[start], str):
                await self._fanout.announce(
                    gap, None if positions is None else positions(start, start + 1)[0]
                )
                start += 1
                continue
            run = incoming[start : start + self._most_at_once]
            batch = Batch(messages_of(run))
            end = start + len(batch)
            await self._fanout.broadcast(batch, positions and positions(start, end))
            start = end


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
        self._heard = False  # anything, since the last heartbeat
        self._caught_up = asyncio.Event()

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Publish a payload to the channel, and return its message.

        The first time it waits for the reader, so that a program hears itself. It is
        never sent twice. Cancelled, it may have been accepted.

        Raises:
            TypeError: If the event or the encoded payload is no string.
            ValueError: If the event is no usable name.
            redis.exceptions.RedisError: If Redis cannot be reached, or refuses the
                message: it was not accepted.
            OutcomeUnknownError: If the reply was lost: it may have been accepted.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        if event is not None:
            check_event(event)
        payload = framed(check_text(self._encode(data)), event)
        await self._opened()
        await self._out.call([("PUBLISH", self._channel, payload)])
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
        """Announce a gap if the subscription does not stand, although it should."""
        if self._reading is None and self._tried.is_set():
            await self._inbox.put("outage")

    async def _read(self, connection: Connection) -> None:
        # PING is refused while Redis loads its file, and SUBSCRIBE is not.
        _, reply = await connection.call([("PING",), ("SUBSCRIBE", self._channel)])
        array_of(reply)
        await self._declare()
        self._stand()
        self._reading = connection
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
                self._heard = True
                if frame[0] == b"message":
                    await self._take_in(bytes_of(frame[2]))
                elif frame == [b"pong", b"drained"]:
                    self._caught_up.set()
                if work.enough():
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
                if self._heard or self._inbox.full():
                    self._heard = False
                    limit.reschedule(_now() + self._reply_timeout)
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
    return f"{EVENT_MARK}{event or ''}\n{text}".encode()


def unframed(payload: str) -> tuple[str, str | None]:
    """Return the text of a payload, and its event."""
    if not payload.startswith(EVENT_MARK) or "\n" not in payload:
        return payload, None
    event, _, text = payload[1:].partition("\n")
    return text, event or None


def as_text(data: object) -> str:
    """Refuse what is no string, where no encoder makes it one."""
    if not isinstance(data, str):
        raise TypeError(
            f"data: expected a string, not {data!r}; other payloads need encode= and decode="
        )
    return data


def check_name(what: str, name: object) -> str:
    """Refuse what names no channel, stream or server."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected a string, not {name!r}")
    if not name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{what}: {name!r} is empty or has a surrogate in it")
    return name


def client_of(url: str | None, options: dict[str, object]) -> Redis:
    """Return a client with these options of redis-py, which connects to nothing yet."""
    if url is not None:
        check_name("url", url)
    for name in "retry", "retry_on_error", "retry_on_timeout":
        if options.get(name):
            raise ValueError(f"{name}: {options[name]!r}: the store never sends a message twice")
    options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, **options}
    options = {"protocol": 2, **options, "retry": Retry(NoBackoff(), 0)}
    client = Redis(**options) if url is None else Redis.from_url(url, **options)
    used = client.connection_pool.connection_kwargs
    if isinstance(used.get("retry"), str):  # from the url
        raise ValueError(f"retry: {used['retry']!r}: the store never sends a message twice")
    if used.get("decode_responses"):
        raise ValueError("decode_responses: the store reads bytes, and decodes them itself")
    if used.get("protocol") not in (2, "2"):
        raise ValueError(f"protocol: {used.get('protocol')!r}: the store speaks protocol 2 only")
    return client


def seconds_of(client: Redis, name: str) -> float:
    """Return a time limit of the client, which has to have one."""
    seconds = client.connection_pool.connection_kwargs.get(name)
    check_seconds(name, seconds)
    return seconds if isinstance(seconds, int | float) else TIMEOUT


def array_of(reply: object) -> list[object]:
    """Return what is an array, or raise what is a refusal."""
    if isinstance(reply, Exception):
        raise reply
    if not is_array(reply):
        raise ResponseError(f"expected an array, not {reply!r}")
    return reply


def is_array(reply: object) -> TypeGuard[list[object]]:
    return isinstance(reply, list)


def bytes_of(reply: object) -> bytes:
    if not isinstance(reply, bytes):
        raise ResponseError(f"expected bytes, not {reply!r}")
    return reply


async def in_time(seconds: float, reply: Awaitable[T]) -> T:
    """Await what Redis does, and take its silence for a broken connection.

    The `wait_for` of Python 3.11, which redis-py uses, may lose a cancellation.
    """
    try:
        async with asyncio.timeout(seconds):
            return await reply
    except (TimeoutError, SilentTooLong) as error:
        raise Unreachable(f"no answer in {seconds} s") from error


async def back_off(failures: int) -> None:
    """Pause before the next attempt: longer and longer, and not all at the same time."""
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures, 16))
    await asyncio.sleep(random.uniform(0.5, 1) * delay)


def messages_of(incoming: Iterable[Incoming[T]]) -> Iterator[Message[T]]:
    """Give the messages up to the first gap."""
    for item in incoming:
        if isinstance(item, str):
            return
        yield item


def _now() -> float:
    return asyncio.get_running_loop().time()
