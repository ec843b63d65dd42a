"""The life of a store: bound to one event loop, publishing in one supervised task."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from inspect import iscoroutinefunction, unwrap
from types import TracebackType
from typing import Any, Generic, Self

from ..checks import check_methods, check_seconds
from ..exceptions import StoreClosedError
from ..fanout import FanOut
from ..lanes import Lane
from ..limits import Limits, Policy
from ..messages import BATCH, Batch, Message, check_cursor, check_message
from ..protocols import Released, Subscriber
from ..statistics import Statistics
from ..tasks import cancel, is_cancelled, new_task
from ..typevars import T_object as T
from .submitting import Submitters

__all__ = ("BaseStore",)

log = logging.getLogger("tornadose")


class BaseStore(ABC, Generic[T]):
    """Base class for stores: override `initialize`, `submit` and `publish`.

    A store can be built before any event loop runs. It belongs to the first running
    loop that uses it, and once that loop is closed it starts afresh: everything is
    forgotten and `initialize` is called again. From another loop or thread, use
    ``asyncio.run_coroutine_threadsafe(store.submit(data), loop)``.

    Args:
        args: Passed on to `initialize`.
        backlog: Messages kept for one subscriber that is behind.
        policy: What happens when that is full: ``"block"``, ``"drop_oldest"``,
            ``"drop_newest"`` or ``"disconnect"``.
        block_timeout: Seconds that one message waits under ``"block"`` until the
            subscribers that have no room are released.
        max_subscribers: Subscribers at a time; more are released with ``"limit"``.
        kwargs: Passed on to `initialize`.

    Raises:
        TypeError: If one of them is of the wrong type.
        ValueError: If one is out of range, or the policy is unknown.
    """

    _draining: asyncio.Task[None] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let every `submit` begin with starting the store, or refusing a closed one."""
        super().__init_subclass__(**kwargs)
        definer = next(c for c in cls.__mro__ if "submit" in vars(c))
        if definer is cls and not getattr(cls.submit, "__isabstractmethod__", False):
            setattr(cls, "submit", _guard(cls.submit))  # noqa: B010 (the signature stays)
        elif not issubclass(definer, BaseStore):

            async def submit(self: BaseStore[Any], *args: Any, **kwargs: Any) -> Any:
                """Go on with the submit of a mix-in, or of a class before it."""
                further: Callable[..., Any] = getattr(super(cls, self), "submit")  # noqa: B009
                return await further(*args, **kwargs)

            setattr(cls, "submit", _guard(submit))  # noqa: B010 (the signature stays)

    def __init__(
        self,
        *args: object,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
        **kwargs: object,
    ) -> None:
        self._limits = Limits(backlog, policy, block_timeout, max_subscribers)
        self._arguments = args, kwargs
        self._begin()

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Hook for the set-up of a custom store, called with what the store was built with.

        It runs before there is an event loop, and again for each new loop.
        """

    @abstractmethod
    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Accept a payload, and return the message it has become.

        The payload is not copied, and is encoded later: do not change it any more.

        Before the body of an override runs, the store is started, or refuses:

        Raises:
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """

    @abstractmethod
    async def publish(self) -> None:
        """Loop for ever: wait for new messages, and hand them on with `broadcast`.

        The store runs it as a task, from the first `register` or `submit` on, and
        cancels it in `aclose`. If it ends or raises before, that is logged, every
        subscriber is released with ``"failed"``, and the store is closed.
        """

    async def drain(self) -> None:
        """Hook for `aclose`: return when `publish` has handed on all that was accepted.

        Override it in a store that has a queue of its own, which `BaseStore` cannot see:
        there, a message counts as accepted when it is handed to `broadcast`.
        """
        await self._fanout.handed_on()

    def register(self, subscriber: Subscriber[T], /) -> None:
        """Deliver to this subscriber every message accepted from now on.

        Registering twice does nothing; identity counts. Beyond `max_subscribers` it
        is released with ``"limit"``.

        Raises:
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        self._admit(subscriber)

    def resume(self, subscriber: Subscriber[T], after: str, /) -> None:
        """Register, and begin with a gap: this store keeps no messages to resume from.

        An empty id is none: it only registers. A store that can resume overrides this.

        Raises:
            TypeError: If the id is no string.
            StoreClosedError: If the store is closed.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        check_cursor(after)
        lane = self._admit(subscriber)
        if lane is not None and after:
            self._fanout.books.resumed += 1
            lane.announce("unknown")

    def deregister(self, subscriber: Subscriber[T], /) -> None:
        """Begin no further delivery to this subscriber, and cancel the one under way.

        A stranger does nothing.

        Raises:
            RuntimeError: In a thread or event loop that is not the store's.
        """
        if self._home_loop is not None and not self._home_loop.is_closed():
            self._check_loop()
            self._fanout.dismiss(subscriber)

    async def broadcast(self, *messages: Message[T]) -> None:
        """Hand messages to every subscriber; `publish` calls it.

        Returns when each has taken them or has them in its backlog. Two at a time take
        turns. Cancelled, what it has begun to hand on reaches everybody all the same, but
        for those that ``"block"`` made it wait for: they are told of a gap.

        Raises:
            TypeError: If one of them is no message.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        for message in messages:
            check_message(message)
        self._bind()
        size = min(self._limits.backlog, BATCH)
        for start in range(0, len(messages), size):
            await self._fanout.broadcast(Batch(messages[start : start + size]))

    async def deliver(self, subscriber: Subscriber[T], message: Message[T], /) -> bool:
        """Queue a message for one subscriber alone, behind what is accepted by now.

        Under ``"block"`` it waits for room; cancelled then, the subscriber is told of a gap.
        Within the ``publish`` of the subscriber itself it does not wait, and goes ahead of
        what has no room yet. Returns false if the subscriber is not registered.

        Raises:
            TypeError: If it is no message.
            RuntimeError: In a thread or event loop that is not the store's.
        """
        check_message(message)
        self._bind()
        return await self._fanout.deliver(subscriber, message)

    @property
    def subscribers(self) -> Sequence[Subscriber[T]]:
        """Whoever is registered now, in the order of registration."""
        if self._home_loop is not None and self._home_loop.is_closed():
            return ()
        return self._fanout.subscribers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self.subscribers)} subscribers>"

    def statistics(self) -> Statistics:
        """Count what has become of the messages until now."""
        return self._fanout.statistics()

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, timeout: float | None = 5.0) -> None:
        """Tell every subscriber goodbye, wait until they have left, and let go of everything.

        Messages accepted before this call are delivered first. New messages and
        registrations are refused from the first line on. Cancelling it aborts the
        subscribers that are still there; the store is closed either way. Closing twice
        is harmless: the second call waits for the first, whose timeout counts. Who calls it
        in the middle of a loop over `subscribe`, or in ``on_message``, makes it wait for
        themselves, until it times out: do so behind it, or in a task. In a ``publish`` it is fine.

        Args:
            timeout: Seconds on the monotonic clock until those still there are
                aborted; ``None`` waits for ever.

        Raises:
            RuntimeError: In a thread or event loop that is not the store's.
        """
        check_seconds("timeout", timeout, or_none=True, or_zero=True)
        self._bind()
        self._is_closed = True
        self._refuse_waiting()
        closed_before = self._close_once.locked()
        draining, publishing = self._draining, self._publishing
        if draining is not None and publishing is asyncio.current_task():
            self._draining = None
            draining.cancel()  # as nobody publishes any more
        with self._fanout.closing():
            async with self._close_once:
                if not closed_before:
                    await self._close(timeout)
        await self._fanout.see_off()

    async def _close(self, timeout: float | None) -> None:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await self._drain_or_fail()
                await self._stop_publishing()
                await self._fanout.finish()
        except TimeoutError:
            if not limit.expired():
                raise
            log.warning("%r is closed before everybody had everything, after %s s", self, timeout)
        finally:
            await self._clean_up()

    async def _clean_up(self) -> None:
        """Leave nothing behind, also when cancelled meanwhile."""
        try:
            await self._stop_publishing()
        finally:
            self._abandon()
            try:
                await self._fanout.abort()
            finally:
                await self._let_go()

    async def _drain_or_fail(self) -> None:
        """Wait for `drain`, but not longer than there is a `publish` to wait for."""
        publishing = self._publishing
        if publishing is None or publishing.done() or publishing is asyncio.current_task():
            return
        drained = asyncio.ensure_future(self.drain())
        self._draining = drained
        try:
            await asyncio.wait({drained, publishing}, return_when=asyncio.FIRST_COMPLETED)
            if drained.done():
                if self._draining is drained:
                    drained.result()
            else:
                log.error("%r could not publish everything before it was closed", self)
                await self._fanout.release_all("failed")
        finally:
            self._draining = None
            await cancel(drained)

    async def _stop_publishing(self) -> None:
        if self._publishing is not None:
            await cancel(self._publishing)

    # ---- the loop this store belongs to

    def _begin(self) -> None:
        """Start with nothing, and belong to no loop yet."""
        self._home_loop: asyncio.AbstractEventLoop | None = None
        self._fanout: FanOut[T] = self._new_fanout()
        self._publishing: asyncio.Task[None] | None = None
        self._close_once = asyncio.Lock()
        self._is_closed = False
        self._submitters = Submitters()
        self._prepare()
        args, kwargs = self._arguments
        self.initialize(*args, **kwargs)

    def _new_fanout(self) -> FanOut[T]:
        return FanOut(self._limits)

    def _prepare(self) -> None:
        """Set up what a store of this package needs before `initialize`."""

    def _refuse_waiting(self) -> None:
        """Let those who wait in `submit` see that the store is closed."""

    async def _let_go(self) -> None:
        """Close what a store of this package has opened."""

    def _check_loop(self) -> None:
        loop = running_loop()
        if loop is not self._home_loop or loop is None:
            raise RuntimeError(
                f"{self!r} belongs to another event loop or thread; "
                "use asyncio.run_coroutine_threadsafe(store.submit(data), loop) there"
            )

    def _bind(self) -> None:
        """Belong to the running loop, or refuse it."""
        if self._home_loop is not None and self._home_loop.is_closed():
            self._restart()
        if self._home_loop is None:
            self._home_loop = running_loop()
            if self._home_loop is None:
                raise RuntimeError(f"{self!r} needs a running event loop")
        self._check_loop()

    def _restart(self) -> None:
        lost = self._fanout.unpublished()
        if lost and not self._is_closed:
            log.warning("%r has lost %d unpublished messages", self, lost)
        self._begin()

    def _open(self) -> None:
        """Belong to the running loop, and publish there."""
        self._bind()
        if self._is_closed:
            raise StoreClosedError(f"{self!r} is closed")
        if self._publishing is None:
            self._publishing = new_task(self._supervise())

    async def _supervise(self) -> None:
        """Run `publish`, which should never end, and leave nobody hanging when it does."""
        loop = asyncio.get_running_loop()
        try:
            await self.publish()
        except asyncio.CancelledError:
            if is_cancelled():
                await self._fail("closed")
                raise
            log.exception("publish() of %r was cancelled from within; the store is closed", self)
        except Exception:
            if loop.is_closed():  # and its tasks are dropped
                return
            log.exception("publish() of %r failed; the store is closed", self)
        else:
            if not self._is_closed:
                log.error("publish() of %r ended; the store is closed", self)
        await self._fail("failed")

    async def _fail(self, reason: Released) -> None:
        """Close, as nobody publishes any more, unless that is how it is meant to be."""
        if self._is_closed or self._publishing is not asyncio.current_task():
            return
        self._is_closed = True
        self._refuse_waiting()
        if self._abandon():
            reason = "failed"
        await self._fanout.release_all(reason)
        await self._let_go()

    def _abandon(self) -> bool:
        """Let go of those who wait in `submit`, and tell whether messages are lost."""
        self._submitters.let_go(but=self._answered())
        lost = self._fanout.abandon_unpublished()
        if lost:
            log.warning("%r has lost %d unpublished messages", self, lost)
        return lost > 0

    def _answered(self) -> Collection[asyncio.Task[object] | None]:
        """Return those in `submit` that will be told what has become of their message."""
        return ()

    def _admit(self, subscriber: Subscriber[T]) -> Lane[T] | None:
        check_methods("subscriber", subscriber, "publish")
        self._bind()
        if self._fanout.has(subscriber):  # also while the store closes
            return None
        self._open()
        return self._fanout.admit(subscriber)


def _guard(submit: Callable[..., Any]) -> Callable[..., Any]:
    """Return this `submit` with the opening of its store in front."""

    @wraps(submit)
    def opened_now(store: BaseStore[Any], *args: Any, **kwargs: Any) -> Any:
        store._open()  # pyright: ignore[reportPrivateUsage]  # its own base class
        return submit(store, *args, **kwargs)

    @wraps(submit)
    async def opened(store: BaseStore[Any], *args: Any, **kwargs: Any) -> Any:
        store._open()  # pyright: ignore[reportPrivateUsage]  # its own base class
        with store._submitters.joined():  # pyright: ignore[reportPrivateUsage]  # as above
            return await submit(store, *args, **kwargs)

    return opened if iscoroutinefunction(unwrap(submit)) else opened_now


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
