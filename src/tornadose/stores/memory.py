"""Stores that live in this process."""

from __future__ import annotations

import asyncio
from typing import Generic

from ..checks import check_size
from ..exceptions import StoreFullError
from ..fanout import FanOut
from ..history import History, Page, Replay
from ..limits import Policy
from ..messages import BATCH, Batch, GapReason, Message, check_cursor, check_event
from ..protocols import Subscriber
from ..typevars import T
from .base import BaseStore, running_loop

__all__ = ("DataStore", "QueueStore")


class DataStore(BaseStore[T], Generic[T]):
    """Keep one value, and publish it whenever it changes.

    A new subscriber gets the current value at once, if there is one; a slow one skips
    to the newest. Its messages have no id: there is nothing to resume.

    Args:
        initial_data: The value to begin with; ``None`` is none yet.
        max_subscribers: Subscribers at a time; ``None`` is no limit.
    """

    def __init__(
        self, initial_data: T | None = None, *, max_subscribers: int | None = None
    ) -> None:
        self._initial_data = initial_data
        super().__init__(max_subscribers=max_subscribers)

    def _new_fanout(self) -> FanOut[T]:
        return FanOut(self._limits, self._newest)

    def _newest(self) -> Replay[T]:
        """Give the value that who is behind skips to."""
        return _Newest(self)

    def _prepare(self) -> None:
        data = self._initial_data
        self._latest: Message[T] | None = None if data is None else Message(data)
        self._fresh = asyncio.Event()

    @property
    def data(self) -> T | None:
        """The current value; assigning one publishes it."""
        return None if self._latest is None else self._latest.data

    @data.setter
    def data(self, data: T) -> None:
        if self._home_loop is not None and self._home_loop.is_closed():
            self._restart()
        if self._home_loop is None and running_loop() is None:
            self._latest = Message(data)
        else:
            self.submit_nowait(data)

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Make this the current value, and publish it.

        It is not copied: a change inside it is not noticed, and not published.

        The event loop gets a turn first, so that a program that does nothing else does
        not keep it for itself. Values that follow each other within a few turns may be
        skipped, also for a subscriber that is not slow. Cancelled, it has changed nothing.

        Raises:
            TypeError: If the event is no string.
            ValueError: If it is no usable name.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        message = Message(data, event=event)
        await asyncio.sleep(0)
        return self._accept(message)

    def submit_nowait(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Do as `submit` does, without giving the event loop a turn."""
        return self._accept(Message(data, event=event))

    def _accept(self, message: Message[T]) -> Message[T]:
        self._open()
        self._latest = message
        self._fanout.accepted += 1
        self._fresh.set()
        return message

    def register(self, subscriber: Subscriber[T], /) -> None:
        """Deliver the current value, if there is one, and then every change."""
        lane = self._admit(subscriber)
        if lane is not None and self._latest is not None:
            if not lane.behind and lane.take(Batch([self._latest])):
                self._fanout.books.took(1)
            else:
                lane.replay(self._newest())

    def resume(self, subscriber: Subscriber[T], after: str, /) -> None:
        """Begin with a gap, as values have no ids, and go on as `register` does."""
        check_cursor(after)
        if not after:
            return self.register(subscriber)
        lane = self._admit(subscriber)
        if lane is not None:
            self._fanout.books.resumed += 1
            lane.replay(_Newest(self, "unknown"))

    def _page(self, position: int) -> Page[T]:
        """Return the current value, if it is newer than this position."""
        accepted, latest = self._fanout.accepted, self._latest
        fresh = latest is not None and position < accepted
        messages = [latest] if latest is not None and fresh else []
        positions = (accepted,) if messages else ()
        return Page(messages, positions, None, accepted, met=not messages)

    async def publish(self) -> None:
        """Hand on the current value, each time it has changed."""
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            if self._latest is not None:
                await self._fanout.broadcast(Batch([self._latest]), (self._fanout.accepted,))


class _Newest(Generic[T]):
    """The value of a `DataStore` for one who is behind: the newest, until there is none newer."""

    def __init__(self, store: DataStore[T], hole: GapReason | None = None) -> None:
        self._store = store
        self._hole: GapReason | None = hole
        self._position = -1

    async def read(self) -> Page[T]:
        page = self._store._page(self._position)  # pyright: ignore[reportPrivateUsage]
        page.hole, self._hole = self._hole, None
        page.met = page.met and page.hole is None
        self._position = page.position
        return page


class QueueStore(BaseStore[T], Generic[T]):
    """Publish every message, in order, and keep the last ones to resume from.

    Ids are unique across restarts of the process: one of an earlier process is answered
    with a gap ("restarted").

    Args:
        history: Messages kept for those who resume.
        inbox: Messages accepted and not yet published, beyond which `submit` waits.
        backlog: Messages kept for one subscriber that is behind.
        policy: What happens when that is full: ``"block"``, ``"drop_oldest"``,
            ``"drop_newest"`` or ``"disconnect"``, to come back and resume.
        block_timeout: Seconds that one message waits under ``"block"`` until the
            subscribers that have no room are released.
        max_subscribers: Subscribers at a time; ``None`` is no limit.

    Raises:
        TypeError: If one of them is of the wrong type.
        ValueError: If one is out of range, or the policy is unknown.
    """

    def __init__(
        self,
        *,
        history: int = 4096,
        inbox: int = 1024,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
    ) -> None:
        check_size("history", history, at_least=0)
        check_size("inbox", inbox, at_least=1)
        self._sizes = history, inbox
        super().__init__(
            backlog=backlog,
            policy=policy,
            block_timeout=block_timeout,
            max_subscribers=max_subscribers,
        )

    def _prepare(self) -> None:
        history, inbox = self._sizes
        self._history: History[T] = History(history)
        self._inbox: asyncio.Queue[Message[T]] = asyncio.Queue(inbox)
        self._most_at_once = min(self._limits.backlog, BATCH)
        self._turn = asyncio.Lock()  # first come, first accepted
        self._room = asyncio.Event()

    def _refuse_waiting(self) -> None:
        self._room.set()

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Accept a payload, waiting while the inbox is full, and return its message.

        It is not copied, and is encoded later: do not change it any more.

        Cancelled or failed, it has accepted nothing.

        Raises:
            TypeError: If the event is no string.
            ValueError: If it is no usable name.
            StoreClosedError: If the store is closed, also while this waits.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        if event is not None:
            check_event(event)
        async with self._turn:
            while self._inbox.full() and not self._is_closed:
                self._room.clear()
                await self._room.wait()
            return self.submit_nowait(data, event=event)

    def submit_nowait(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Accept a payload at once, and return its message.

        Raises:
            StoreFullError: If the inbox is full; nothing was accepted.
            TypeError: If the event is no string.
            ValueError: If it is no usable name.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        self._open()
        if self._inbox.full():
            raise StoreFullError(f"{self!r} has {self._inbox.maxsize} unpublished messages")
        message = self._history.append(data, event)
        self._fanout.accepted = self._history.last
        self._inbox.put_nowait(message)
        return message

    def resume(self, subscriber: Subscriber[T], after: str, /) -> None:
        """Register, and deliver first what came after the message with this id.

        History is read in pages at the subscriber's pace, and does not count against
        its backlog. An id that cannot be used is a gap: ``expired``, ``unknown`` or
        ``restarted``. An empty id is none.

        Raises:
            TypeError: If the id is no string.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        check_cursor(after)
        lane = self._admit(subscriber)
        if lane is not None and after:
            self._fanout.books.resumed += 1
            lane.replay(self._history.replay(after), after)

    async def publish(self) -> None:
        """Hand on what is in the inbox: all that is ready, if a backlog can hold it."""
        while True:
            ready = [await self._inbox.get()]
            while len(ready) < self._most_at_once and not self._inbox.empty():
                ready.append(self._inbox.get_nowait())
            self._room.set()
            await self._fanout.broadcast(Batch(ready))
