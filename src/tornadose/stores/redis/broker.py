"""What the stores in Redis share: one connection that reads, one that writes, outages."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeAlias, cast

from typing_extensions import TypeVar

from ...checks import check_size
from ...history import Positions
from ...limits import Policy
from ...messages import BATCH, Batch, GapReason, Message
from ...tasks import cancel
from ..base import BaseStore
from .connection import UNREACHABLE, Connection, Unreachable, client_of, now, seconds_of
from .pipeline import Pipeline

__all__ = ("BrokerStore", "Decoder", "Encoder", "Incoming", "Part", "back_off")

log = logging.getLogger("tornadose")

T = TypeVar("T", default=str)
Decoder: TypeAlias = Callable[[str], T]
Encoder: TypeAlias = Callable[[T], str]
Incoming: TypeAlias = Message[T] | GapReason

FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0  # seconds between two attempts to connect
STEADY = 1.0  # seconds that a connection has to stand before the next one is tried at once


class Part(Protocol):
    """What belongs to an open store."""

    async def close(self) -> None:
        """Give up what is under way, and disconnect."""
        ...


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
        self._timeout = seconds_of(self._client, "socket_connect_timeout") + self._reply_timeout
        super().__init__(
            backlog=backlog,
            policy=policy,
            block_timeout=block_timeout,
            max_subscribers=max_subscribers,
        )

    def _prepare(self) -> None:
        self._out = self._new_pipeline(self._inbox_size, self._timeout)
        self._most_at_once = min(self._limits.backlog, BATCH)
        self._tried = asyncio.Event()
        self._wanted = asyncio.Event()  # an attempt to connect, by who opens the store
        self._down: Exception | None = None  # while Redis is out of reach
        self._stands_since: float | None = None  # on the clock of the loop
        self._stood = 0  # connections that have read, up to now

    def _new_pipeline(self, size: int, timeout: float | None) -> Pipeline:
        return Pipeline(Connection(self._client), size, timeout, late=Unreachable)

    async def __aenter__(self) -> Self:
        """Connect to Redis.

        Raises:
            redis.exceptions.ConnectionError: If it cannot be reached.
            redis.exceptions.RedisError: If it refuses, for want of a right for example.
            StoreClosedError: If the store is closed.
        """
        self._open()
        publishing = self._publishing
        if self._down is not None:  # or was, some time ago
            self._tried.clear()
            self._wanted.set()
        try:
            await self._opened()
        except BaseException:
            if publishing is not None and publishing is self._publishing:
                await self._start_afresh(publishing)
            raise
        return self

    async def _start_afresh(self, publishing: asyncio.Task[None]) -> None:
        """Be as before it was opened, unless the store is closed, or in use by somebody else."""
        if self._is_closed or self.subscribers or self._submitters:
            return
        parts = self._parts()
        self._begin()
        try:
            await cancel(publishing)
        finally:
            for part in parts:
                await part.close()

    async def _opened(self) -> None:
        """Wait for the first attempt to read, or a new one, and raise what it has met."""
        if not self._tried.is_set():
            with self._submitters.joined():
                await self._tried.wait()
            if self._down is not None:
                raise self._down.with_traceback(None)  # which those before have left on it

    async def _ready(self, deadline: float) -> None:
        """Return when a message can be put into Redis, and no subscriber can miss it."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._opened()
                await self._before_first_put()
        except TimeoutError as error:
            raise Unreachable(f"not sent in {self._timeout} s") from error

    async def _before_first_put(self) -> None:
        """Return when no subscriber can miss what is put now."""

    async def drain(self) -> None:
        """Wait until what this process has submitted has come in, and is handed on."""
        await self._out.drain()

    def _refuse_waiting(self) -> None:
        self._out.refuse()

    def _answered(self) -> Collection[asyncio.Task[object] | None]:
        """Return those who wait for a reply: `_let_go` tells them what they may believe."""
        return self._out.callers

    def _parts(self) -> Sequence[Part]:
        """Return what is to be closed with the store."""
        return (self._out,)

    async def _let_go(self) -> None:
        for part in self._parts():
            await part.close()

    # ---- reading

    @abstractmethod
    async def _read(self, connection: Connection) -> None:
        """Read for ever, having called `_stand` once nothing new can be missed."""

    async def _follow(self) -> None:
        """Read whatever happens, with a pause before each new attempt."""
        failures = 0
        while True:
            connection = Connection(self._client)
            self._wanted.clear()
            self._stands_since = None
            try:
                await connection.connect()
                await self._read(connection)
            except UNREACHABLE as error:
                self._fall(error)
            finally:
                await connection.close()
            stood = 0 if self._stands_since is None else now() - self._stands_since
            failures = 0 if stood > STEADY else failures + 1
            await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        """Pause before the next attempt, as briefly as at first if somebody opens the store."""
        await back_off(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_after(failures) - FIRST_DELAY):
                await self._wanted.wait()

    def _stand(self) -> None:
        """Note that the connection stands."""
        if self._stands_since is None:
            self._stands_since = now()
            self._stood += 1
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
                position = None if positions is None else positions(start, start + 1)[0]
                await self._fanout.announce(gap, position)
                if position is not None:
                    self._fanout.skip(position)
                start += 1
                continue
            run = incoming[start : start + self._most_at_once]
            batch = Batch(messages_of(run))
            end = start + len(batch)
            await self._fanout.broadcast(batch, positions and positions(start, end))
            start = end


def as_text(data: object) -> str:
    """Refuse what is no string, where no encoder makes it one."""
    if not isinstance(data, str):
        raise TypeError(
            f"data: expected a string, not {data!r}; other payloads need encode= and decode="
        )
    return data


async def back_off(failures: int) -> None:
    """Pause before the next attempt: longer and longer, and not all at the same time."""
    await asyncio.sleep(delay_after(failures))


def delay_after(failures: int) -> float:
    """Return the seconds until the next attempt."""
    return random.uniform(0.5, 1) * min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures, 16))


def messages_of(incoming: Iterable[Incoming[T]]) -> Iterator[Message[T]]:
    """Give the messages up to the first gap."""
    for item in incoming:
        if isinstance(item, str):
            return
        yield item
