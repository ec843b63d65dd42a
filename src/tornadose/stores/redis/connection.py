"""Connections to Redis, and what is made of its replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from typing import TypeGuard, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import TimeoutError as SilentTooLong

from ...checks import check_seconds
from .pipeline import Command

__all__ = (
    "UNREACHABLE",
    "Connection",
    "Unreachable",
    "array_of",
    "bytes_of",
    "check_name",
    "client_of",
    "granted",
    "now",
    "seconds_of",
)

T = TypeVar("T")

UNREACHABLE = (RedisError, OSError)
REFUSALS = (ResponseError, BusyLoadingError, AuthenticationError)
TIMEOUT = 5.0  # seconds, of redis-py's `socket_timeout` and `socket_connect_timeout`
IDLE = 1.0  # seconds after which a connection may have died unnoticed


class Connection:
    """One connection of redis-py, without its retries, that speaks RESP2 in bytes.

    Whatever breaks it is a ``redis.exceptions.ConnectionError``, silence included.

    Attributes:
        heard: When the last bytes came, on the clock of the loop.
        opened: How often it was opened.
    """

    def __init__(self, client: Redis) -> None:
        self._connection = client.connection_pool.make_connection()
        self._connection.socket_timeout = None  # or it would use `wait_for`, see `in_time`
        self._reply_timeout = seconds_of(client, "socket_timeout")
        self._connect_timeout = seconds_of(client, "socket_connect_timeout") + self._reply_timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0
        self.heard = 0.0
        self.opened = 0
        self._limit: asyncio.Timeout | None = None  # of the reply that is awaited

    async def connect(self) -> None:
        """Connect, unless connected; after a pause, make sure that it still is.

        Raises:
            RedisError: If Redis cannot be reached, or refuses the user.
        """
        if self._is_open() and now() - self._used > IDLE:
            with suppress(*UNREACHABLE):
                await self.call([("PING",)])
        if self._is_open():
            return
        await self.close()
        try:
            await in_time(self._connect_timeout, self._connection.connect())
        except InvalidResponse as error:
            raise Unreachable(f"what answers is no Redis: {error}") from error
        except UNREACHABLE:
            raise
        except Exception as error:  # of who gives the credentials, for example
            raise Unreachable(f"connecting has failed: {error!r}") from error
        self.opened += 1
        reader: object = getattr(self._connection, "_reader", None)
        writer: object = getattr(self._connection, "_writer", None)
        if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
            self._streams = reader, writer
            self._listen_to(reader)

    async def call(self, commands: Sequence[Command], /) -> list[object]:
        """Send commands, and return their replies; a refusal is a reply.

        Raises:
            RedisError: If the connection breaks, or replies take too long.
        """
        return [reply async for reply in self.replies(commands)]

    async def replies(self, commands: Sequence[Command], /) -> AsyncGenerator[object]:
        """Send commands, and give each reply as it comes; a refusal is a reply.

        Raises:
            RedisError: If the connection breaks, or replies take too long.
        """
        try:
            await self._send(commands)
            for _ in commands:
                yield await self._reply()
        except BaseException:
            await self.close()
            raise
        self._used = now()

    async def send(self, *command: str | bytes) -> None:
        """Send a command whose reply comes with the rest of `receive`."""
        await self._send([command])

    async def receive(self) -> object:
        """Return what Redis sends next, however long that takes."""
        try:
            return await self._connection.read_response(
                disable_decoding=True, disconnect_on_error=False
            )
        except (SilentTooLong, InvalidResponse) as error:  # the first is what the kernel says
            raise Unreachable(f"the connection is broken: {error}") from error

    async def close(self) -> None:
        """Close the connection at once; it can be opened again."""
        if self._streams is not None:
            self._streams[1].transport.abort()  # redis-py would first write what is left
            self._streams = None
        await self._connection.disconnect(nowait=True)

    async def _send(self, commands: Sequence[Command]) -> None:
        if not self._is_open():  # redis-py would connect again, unnoticed
            raise Unreachable("the connection is closed")
        encoded = [[w.encode() if isinstance(w, str) else w for w in words] for words in commands]
        packed = self._connection.pack_commands(encoded)
        sending = self._connection.send_packed_command(packed, check_health=False)
        await in_time(self._reply_timeout, sending)

    async def _reply(self) -> object:
        """Return the next reply, or the refusal, as long as bytes of it keep coming."""
        try:
            async with asyncio.timeout(self._reply_timeout) as self._limit:
                return await self.receive()
        except REFUSALS as refusal:
            return refusal
        except TimeoutError as error:
            raise Unreachable(f"no answer in {self._reply_timeout} s") from error
        finally:
            self._limit = None

    def _listen_to(self, reader: asyncio.StreamReader) -> None:
        """Note when bytes come: a large reply may take longer than silence may last."""
        feed = reader.feed_data

        def heard(data: bytes) -> None:
            self.heard = now()
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(self.heard + self._reply_timeout)
            feed(data)

        setattr(reader, "feed_data", heard)  # noqa: B010 (it is a method)

    def _is_open(self) -> bool:
        """Tell whether it is connected, and not known to be broken."""
        if self._streams is None:
            return self._connection.is_connected
        reader, writer = self._streams
        broken = reader.at_eof() or writer.transport.is_closing()
        return self._connection.is_connected and not broken


async def in_time(seconds: float, reply: Awaitable[T]) -> T:
    """Await what Redis does, and take its silence for a broken connection.

    The `wait_for` of Python 3.11, which redis-py uses, may lose a cancellation.
    """
    try:
        async with asyncio.timeout(seconds):
            return await reply
    except SilentTooLong as error:  # which has a time limit of its own
        raise Unreachable(str(error)) from error
    except TimeoutError as error:
        raise Unreachable(f"no answer in {seconds} s") from error


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
    used.setdefault("socket_connect_timeout", options["socket_connect_timeout"])  # Unix sockets
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


def check_name(what: str, name: object) -> str:
    """Refuse what names no channel, stream or server."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected a string, not {name!r}")
    if not name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{what}: {name!r} is empty or has a surrogate in it")
    return name


def array_of(reply: object) -> list[object]:
    """Return what is an array, or raise what is a refusal."""
    if isinstance(reply, Exception):
        raise reply
    if not is_array(reply):
        raise ResponseError(f"expected an array, not {reply!r}")
    return reply


def is_array(reply: object) -> TypeGuard[list[object]]:
    return isinstance(reply, list)


def granted(replies: Sequence[object]) -> Sequence[object]:
    """Return these replies, or raise the first refusal among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def bytes_of(reply: object) -> bytes:
    if not isinstance(reply, bytes):
        raise ResponseError(f"expected bytes, not {reply!r}")
    return reply


def now() -> float:
    """Return the seconds on the clock of the event loop."""
    return asyncio.get_running_loop().time()
