"""Requests of many tasks over one connection, sent together and each at most once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import chain
from typing import Protocol, TypeAlias

from ...exceptions import OutcomeUnknownError, StoreClosedError
from ...messages import BATCH, BATCH_BYTES
from ...tasks import cancel, new_task

__all__ = ("Command", "Link", "Pipeline")

Command: TypeAlias = Sequence[str | bytes | int]


class Link(Protocol):
    """A connection to a broker.

    Attributes:
        opened: How often it was opened.
    """

    opened: int

    async def connect(self) -> None:
        """Connect, unless connected. If it raises, nothing was sent."""
        ...

    def replies(self, commands: Sequence[Command], /) -> AsyncGenerator[object]:
        """Send all, and give the reply to each as it comes, where a refusal is an exception."""
        ...

    async def close(self) -> None:
        """Close the connection, or what is left of it."""
        ...


class _Request:
    """Commands on their way, and their replies."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.replies: asyncio.Future[Sequence[object]] = asyncio.Future()
        self.sent = False

    def size(self) -> int:
        """Return about how many bytes it takes."""
        words = chain.from_iterable(self.commands)
        return sum(len(word) for word in words if not isinstance(word, int))

    def answer(self, replies: Sequence[object]) -> None:
        if not self.replies.done():
            self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        """Let the caller know, in words that tell whether anything was sent."""
        if not self.replies.done():
            unknown = OutcomeUnknownError("the reply was lost: sent, and perhaps carried out")
            unknown.__cause__ = error
            self.replies.set_exception(unknown if self.sent else error)


class Pipeline:
    """Sends what has come together, in order, and awaits the replies of all.

    Nothing is ever sent twice: whether to try again is for the caller to say.

    Attributes:
        callers: The tasks that wait in `call`.

    Args:
        link: The connection, opened when there is something to send.
        size: Requests under way at a time, beyond which `call` waits.
        timeout: Seconds that one request may take, waiting for its turn included; ``None``
            leaves it to the link.
        late: Makes the error for what could not be sent in that time.
    """

    def __init__(
        self,
        link: Link,
        size: int,
        timeout: float | None,
        late: Callable[[str], Exception] = TimeoutError,
    ) -> None:
        self.callers: set[asyncio.Task[object] | None] = set()
        self._link = link
        self._timeout = timeout
        self._late = late
        self._room = asyncio.Semaphore(size)
        self._waiting: deque[_Request] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    async def call(
        self, commands: Sequence[Command], /, deadline: float | None = None
    ) -> Sequence[object]:
        """Send commands, nothing between them, and return the replies.

        Cancelled before they are sent, they never will be.

        Args:
            commands: In order.
            deadline: On the clock of the loop; by default `timeout` seconds from now.

        Raises:
            OutcomeUnknownError: If they were sent, and no reply has come.
            StoreClosedError: If the pipeline was closed before they were sent.
            Exception: What the link raises when it cannot connect, what `late` makes, or
                the first refusal.
        """
        if deadline is None and self._timeout is not None:
            deadline = asyncio.get_running_loop().time() + self._timeout
        request = _Request(commands)
        caller = asyncio.current_task()
        self.callers.add(caller)
        try:
            async with asyncio.timeout_at(deadline), self._room:
                replies = await self._replies(request)
        except TimeoutError as error:
            if request.sent:
                raise OutcomeUnknownError(f"no reply in {self._timeout} s") from error
            raise self._late(f"not sent in {self._timeout} s") from error
        finally:
            self.callers.discard(caller)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _replies(self, request: _Request) -> Sequence[object]:
        if self._closed:
            raise closed()
        self._waiting.append(request)
        if self._sending is None:
            self._sending = new_task(self._send_all())
        return await request.replies

    @property
    def opened(self) -> int:
        """How often the connection was opened."""
        return self._link.opened

    def refuse(self) -> None:
        """Take no more requests; also those that wait for their turn get none."""
        self._closed = True

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._sending is not None:
            await asyncio.wait({self._sending})

    async def close(self) -> None:
        """Give up what is under way, and close the connection."""
        self.refuse()
        if self._sending is not None:
            await cancel(self._sending)
            self._sending = None
        self._fail([], closed())  # had it never begun, nobody would know
        await self._link.close()

    async def _send_all(self) -> None:
        requests: list[_Request] = []
        try:
            while self._waiting:
                await self._link.connect()
                requests = self._next()
                await self._send(requests)
        except Exception as error:
            self._fail(requests, error)
        except asyncio.CancelledError:
            self._fail(requests, closed())
            raise
        finally:
            self._sending = None

    def _next(self) -> list[_Request]:
        """Take the requests that somebody still waits for, no more than a batch."""
        requests: list[_Request] = []
        size = 0
        while self._waiting and len(requests) < BATCH and size < BATCH_BYTES:
            request = self._waiting.popleft()
            if not request.replies.done():
                requests.append(request)
                size += request.size()
        return requests

    async def _send(self, requests: list[_Request]) -> None:
        for request in requests:
            request.sent = True
        commands = [command for request in requests for command in request.commands]
        unanswered, replies = deque(requests), list[object]()
        async for reply in self._link.replies(commands):
            replies.append(reply)
            if len(replies) == len(unanswered[0].commands):
                unanswered.popleft().answer(replies)
                replies = []

    def _fail(self, sent: list[_Request], error: Exception) -> None:
        """Fail those that were sent, and those that wait for the same connection."""
        for request in (*sent, *self._waiting):
            request.fail(error)
        self._waiting.clear()


def closed() -> StoreClosedError:
    return StoreClosedError("the store is closed")
