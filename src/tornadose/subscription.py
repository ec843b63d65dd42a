"""`subscribe`: the messages of a store for plain Python code."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from .capabilities import resumes
from .checks import check_methods
from .exceptions import GapError, ReleasedError
from .messages import Batch, Gap, Message, check_cursor
from .protocols import Released, Source

__all__ = ("subscribe",)

T = TypeVar("T")


def subscribe(
    source: Source[T],
    /,
    *,
    after: str | None = None,
    on_gap: Callable[[Gap], None] | None = None,
) -> AbstractAsyncContextManager[AsyncIterator[Message[T]]]:
    """Iterate over the messages of a store, from now on or after an id.

    ``async with subscribe(store) as messages: async for message in messages: ...``

    Where messages were missed, `GapError` is raised, and iterating again goes on behind the
    gap, with what the store still has::

        async with subscribe(store, after=cursor) as messages:
            while True:
                try:
                    async for message in messages:
                        ...
                    break  # the store was closed
                except GapError as error:
                    ...  # load anew what is known

    To subscribe anew after the same id would only find the same gap.

    The backlog of the store holds what the loop has not taken yet; a store that has none
    waits in its `submit` for the message before to be taken. Cancelling an
    iteration that waits loses nothing. When the store is closed, the iteration ends
    after the last message.

    Args:
        source: The store.
        after: The id after which to continue; ``None`` or empty is from now on.
        on_gap: Called where messages were missed; without it, `GapError` is raised
            there, and iterating again goes on behind the gap.

    Raises:
        TypeError: If ``after`` is no string, or ``on_gap`` cannot be called.
        RuntimeError: In the iteration, if it was not entered with ``async with``; on
            entering it again.
        GapError: In the iteration, at a gap.
        ReleasedError: In the iteration, when the store has let go of it before its end.
        StoreClosedError: On entering, if the store is closed.
    """
    check_methods("source", source, "register", "deregister")
    if after is not None:
        check_cursor(after)
    if on_gap is not None and not callable(on_gap):
        raise TypeError(f"on_gap: {on_gap!r} is not callable")
    return _Subscription(source, after, on_gap)


class _Subscription(Generic[T]):
    def __init__(
        self, source: Source[T], after: str | None, on_gap: Callable[[Gap], None] | None
    ) -> None:
        self._source = source
        self._after = after
        self._on_gap = on_gap
        self._ready: deque[Message[T] | Gap] = deque()
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self._released: Released | None = None
        self._entered = False

    async def __aenter__(self) -> AsyncIterator[Message[T]]:
        if self._entered:
            raise RuntimeError("it was entered before: subscribe(store) anew")
        self._entered = True
        if not self._after:
            self._source.register(self)
        elif resumes(self._source):
            self._source.resume(self, self._after)
        else:
            self._source.register(self)
            self._put(Gap("unknown"), first=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._source.deregister(self)
        self._released = self._released or "closed"
        self._filled.set()

    def __aiter__(self) -> AsyncIterator[Message[T]]:
        return self

    async def __anext__(self) -> Message[T]:
        while True:
            while not self._ready:
                await self._wait()
            item = self._ready.popleft()
            if not self._ready:
                self._emptied()
            if isinstance(item, Message):
                return item
            if self._on_gap is None:
                raise GapError(item)
            self._on_gap(item)

    async def _wait(self) -> None:
        if not self._entered:
            raise RuntimeError("enter it first: async with subscribe(store) as messages")
        if self._released == "closed":
            raise StopAsyncIteration
        if self._released is not None:
            raise ReleasedError(self._released)
        self._filled.clear()
        await self._filled.wait()

    def _emptied(self) -> None:
        self._taken.set()
        if self._released == "closed":
            self._source.deregister(self)

    def _put(self, item: Message[T] | Gap, first: bool = False) -> None:
        self._ready.appendleft(item) if first else self._ready.append(item)
        self._filled.set()

    async def _hand_over(self, item: Message[T] | Gap) -> None:
        """Wait until everything was taken, and put the next."""
        while self._ready:
            self._taken.clear()
            await self._taken.wait()
        self._put(item)

    async def publish(self, message: Message[T], /) -> None:
        await self._hand_over(message)

    async def publish_gap(self, gap: Gap, /) -> None:
        await self._hand_over(gap)

    def publish_nowait(self, batch: Batch[T], /) -> bool:
        if len(self._ready) > 1:
            return False
        self._ready.extend(batch)
        self._filled.set()
        return True

    def released(self, reason: Released, /) -> None:
        self._released = reason
        self._filled.set()

    def leaving(self) -> bool:
        """Be gone when everything was taken."""
        return bool(self._ready)
