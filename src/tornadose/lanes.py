"""One subscriber's way: direct while it keeps up, a backlog while it does not.

A lane hands over directly while its subscriber keeps up: a queue and a task for each
delivery would cost more than the delivery. While the subscriber is behind, the lane has
a backlog, an `asyncio.Queue`, and a task that empties it, the pump.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from .capabilities import begins_late, hears_gaps, hears_release, leaves_slowly, takes_batches
from .checks import checked_awaitable
from .exceptions import PoisonedError
from .history import Page, Replay
from .messages import BATCH, Batch, Gap, GapReason, Message
from .protocols import Released, Subscriber
from .tasks import is_cancelled

if TYPE_CHECKING:
    from .fanout import FanOut

__all__ = ("BEYOND", "Lane", "tell_release")

log = logging.getLogger("tornadose")

T = TypeVar("T")

PIECE = 2 * BATCH  # messages until a pump lets all others go first
BEYOND = 1 << 256  # the fence of a lane that takes no live messages, or none yet


class Lane(Generic[T]):
    """The ordered way of messages to one subscriber.

    Attributes:
        subscriber: Whose lane it is.
        fence: Position of the last message that this lane does not deliver.
        behind: Whether it has a pump, which alone delivers then.
        closed: Whether no further delivery may begin.
    """

    __slots__ = (
        "_acceptance",
        "_backlog",
        "_ending",
        "_fanout",
        "_hole_ahead",
        "_hole_behind",
        "_last_id",
        "_logged",
        "_marks",
        "_nowait",
        "_one_by_one",
        "_overrun",
        "_piece",
        "_pump",
        "_read_to",
        "_replay",
        "_resting",
        "_waiting",
        "behind",
        "closed",
        "fence",
        "subscriber",
    )

    def __init__(self, fanout: FanOut[T], subscriber: Subscriber[T], fence: int) -> None:
        self.subscriber = subscriber
        self.fence = fence
        self.behind = False
        self.closed = False
        self._fanout = fanout
        self._nowait: Callable[[Batch[T]], object] | None = (
            subscriber.publish_nowait if takes_batches(subscriber) else None
        )
        self._pump: asyncio.Task[None] | None = None
        self._one_by_one: asyncio.Lock | None = None
        self._backlog: asyncio.Queue[tuple[GapReason | None, Message[T]]] | None = None
        self._marks: deque[int] | None = None  # where in history the first of them stand
        self._waiting = 0  # messages in the backlog, or about to enter or leave it
        self._hole_ahead: GapReason | None = None  # before the backlog
        self._hole_behind: GapReason | None = None  # after it
        self._replay: Replay[T] | None = None
        self._read_to = 0  # position up to which history was read
        self._piece = PIECE  # messages since it last let all others go first
        self._resting = False
        self._last_id: str | None = None
        self._ending = False
        self._overrun = False  # it has dropped some while it rested, since it last had no backlog
        self._logged = False  # that messages were missed, since then
        self._acceptance = subscriber.acceptance() if begins_late(subscriber) else None
        if self._acceptance is not None:
            self._ensure_pump()

    def take(self, batch: Batch[T]) -> bool:
        """Let the subscriber take the whole batch at once; false if it did not."""
        if self._nowait is None:
            return False
        try:
            taken = self._nowait(batch)
        except PoisonedError:
            return False
        except (Exception, asyncio.CancelledError) as error:
            self._fail(error)
            return False
        if taken is True:
            if batch.last_id is not None:
                self._last_id = batch.last_id
        elif taken is not False:
            self._fail(TypeError(f"publish_nowait returned {taken!r}, which is no bool"))
        return taken is True

    def keep(self, batch: Batch[T]) -> Batch[T] | None:
        """Keep a batch that was not taken; return what ``block`` has no room for."""
        books, count = self._fanout.books, len(batch)
        books.offered += count
        if self.closed:
            books.abandoned += count
            return None
        self._waiting += count
        books.pending += count
        limits, queue = self._fanout.limits, self._queue()
        rest = None
        for index, message in enumerate(batch):
            if queue.full():
                if limits.policy == "block":
                    rest = batch[index:]
                    break
                if limits.policy == "disconnect":
                    self.release("overflow")
                    return None
                self._drop(queue)
                if limits.policy == "drop_newest":
                    continue
            queue.put_nowait((self._hole_behind, message))
            self._hole_behind = None
            self._mark()
        books.max_backlog = max(books.max_backlog, queue.qsize())
        self._report_crowding()
        self._ensure_pump()
        return rest

    async def put(self, message: Message[T], deadline: float) -> None:
        """Wait for room for a message that was offered; without it in time, release."""
        hole, self._hole_behind = self._hole_behind, None
        try:
            async with asyncio.timeout_at(deadline):
                await self._queue().put((hole, message))
        except TimeoutError:
            self.release("timeout")
        else:
            if not self.closed:
                self._mark()
                self._ensure_pump()

    def announce(self, reason: GapReason) -> None:
        """Tell the subscriber that messages are missing behind what it has got so far."""
        self._hole_behind = self._hole_behind or reason
        self._ensure_pump()

    def give_up(self, count: int) -> None:
        """Announce that so many messages that were offered will never be put."""
        if count and not self.closed:
            self._waiting -= count
            self._fanout.books.pending -= count
            self._fanout.books.dropped += count
            self.announce("overflow")

    def replay(self, replay: Replay[T], after: str | None = None) -> None:
        """Deliver this history first; where it meets the live messages is the fence."""
        if self.closed:
            return
        self.fence, self._replay = BEYOND, replay
        self._last_id = after or self._last_id
        self._ensure_pump()

    def one_by_one(self) -> asyncio.Lock:
        """Return what those who deliver to this one alone take turns with."""
        self._one_by_one = self._one_by_one or asyncio.Lock()
        return self._one_by_one

    def is_delivering(self) -> bool:
        """Tell whether it is this lane that has called whoever asks."""
        return self._pump is not None and self._pump is asyncio.current_task()

    def is_closing(self) -> bool:
        """Tell whether its subscriber waits for the store to be closed, and takes no more."""
        return self._pump in self._fanout.closers

    def is_full(self) -> bool:
        return self._backlog is not None and self._backlog.full()

    def is_filling(self) -> bool:
        """Tell whether its backlog is more than half full."""
        backlog = self._backlog
        return backlog is not None and backlog.qsize() > self._fanout.limits.backlog // 2

    def is_crowded(self) -> bool:
        """Tell whether its backlog grows for want of the loop's time.

        That is where it is more than half full, or has no room for the next batch. Where
        messages were dropped all the same, nobody waits until it is empty.
        """
        limit = self._fanout.limits.backlog
        full = self.is_filling() or self._queue().qsize() > max(0, limit - BATCH)
        return self._resting and not self._overrun and full

    def finish(self) -> None:
        """Release the subscriber once everything is delivered."""
        self._ending = True
        if self._pump is None:
            self.release("closed")
        elif self.is_closing():
            unread = self._replay is not None and self._read_to < self._fanout.accepted
            missing = self._waiting or unread or self._hole_behind
            self.release("failed" if missing else "closed")

    def release(self, reason: Released) -> None:
        """Let go of the subscriber, and tell it why."""
        if self.closed:
            return
        if reason == "closed" and self._pump is not None and not self._ending:
            reason = "failed"  # it has not got everything
        self.close()
        self._fanout.forget(self)
        tell_release(self.subscriber, reason)
        if reason == "closed" and is_leaving(self.subscriber):
            self._fanout.await_leaving(self)

    def close(self) -> None:
        """Begin no further delivery, and interrupt the one under way."""
        self.closed = True
        self.fence = BEYOND
        self._fanout.books.pending -= self._waiting
        self._fanout.books.abandoned += self._waiting
        self._waiting = 0
        self._replay = None
        while self._backlog and not self._backlog.empty():
            self._backlog.get_nowait()  # also lets go of a publisher that waits for room
        if self._pump is not None and not (self.is_delivering() or self.is_closing()):
            self._pump.cancel()

    def _mark(self) -> None:
        """Note where in history it stands what the backlog has just got."""
        if self._replay is not None or self._fanout.conflates:
            self._marks = self._marks or deque()
            self._marks.append(self._fanout.accepted)

    def _take_out(self) -> tuple[GapReason | None, Message[T]]:
        """Take the next message out of the backlog."""
        if self._marks:
            self._marks.popleft()
        return self._queue().get_nowait()

    def _drop(self, queue: asyncio.Queue[tuple[GapReason | None, Message[T]]]) -> None:
        self._waiting -= 1
        self._fanout.books.pending -= 1
        self._fanout.books.dropped += 1
        self._overrun = self._overrun or self._resting
        if self._fanout.limits.policy == "drop_oldest":
            hole, _ = self._take_out()
            self._hole_ahead = self._hole_ahead or hole or "overflow"
        else:
            self._hole_behind = self._hole_behind or "overflow"

    def _queue(self) -> asyncio.Queue[tuple[GapReason | None, Message[T]]]:
        if self._backlog is None:
            self._backlog = asyncio.Queue(self._fanout.limits.backlog)
        return self._backlog

    def _ensure_pump(self) -> None:
        if self._pump is None:
            self._pump = self._fanout.start(self._run())
            self._pump.add_done_callback(self._make_sure)
            self._piece = PIECE
            self.behind = True

    def _make_sure(self, pump: asyncio.Task[None]) -> None:
        """Let nobody wait for a pump that was cancelled before its first step."""
        if self._pump is pump:
            self._pump = None
            self.behind = False
            self.release("failed")

    async def _run(self) -> None:
        """Be the pump: deliver history, then the backlog until it is empty."""
        try:
            if self._acceptance is not None:
                await self._acceptance.wait()
                self._acceptance = None
            await self._read_history()
            await self._empty_backlog()
            while self._replay is not None:  # a value has changed meanwhile
                await self._read_history()
                await self._empty_backlog()
        except asyncio.CancelledError as error:
            if is_cancelled():
                self.release("failed")
            else:
                self._fail(error)
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._pump = None
            self.behind = False
            self._overrun = self._logged = False
        if self._ending:
            self.release("closed")

    async def _read_history(self) -> None:
        books, work = self._fanout.books, self._fanout.pumping
        while self._replay is not None:
            if work.is_over():  # as a page may be there already, and have no messages
                await self._rest()
            page = await self._replay.read()
            if self.closed:
                return
            self._read_to = page.position
            if page.met:
                self.fence, self._replay = page.position, None
            books.offered += len(page.messages)
            books.pending += len(page.messages)
            self._waiting += len(page.messages)
            if page.hole is not None:
                if page.hole == "poisoned":
                    books.offered += 1
                    books.poisoned += 1
                if page.hole == "unknown":
                    self._last_id = None
                await self._tell(page.hole)
            if self._marks:
                await self._deliver_page(page)
            else:
                await self._deliver(deque(page.messages))
            if self._fanout.conflates:
                return  # or the backlog would wait for as long as values change

    async def _deliver_page(self, page: Page[T]) -> None:
        """Deliver a page of history, and where it was queued, what is for this one alone."""
        messages = deque(page.messages)
        while self._marks and self._marks[0] <= page.position and not self.closed:
            mark, delivered = self._marks[0], len(page.messages) - len(messages)
            due = bisect_right(page.positions, mark) - delivered
            await self._deliver(deque(messages.popleft() for _ in range(due)))
            await self._empty_backlog(mark)
        await self._deliver(messages)

    async def _empty_backlog(self, until: int | None = None) -> None:
        """Deliver the backlog; of what stands in history, up to here, or to where it is read."""
        queue = self._queue()
        while not self.closed:
            reached = BEYOND if self._replay is None else self._read_to
            if self._marks and self._marks[0] > (reached if until is None else until):
                return
            hole, self._hole_ahead = self._hole_ahead, None
            if hole is None and queue.empty():
                hole, self._hole_behind = self._hole_behind, None
                if hole is None:
                    return
            at_once = 1 if self._nowait is None or self._marks else BATCH
            count = min(at_once, queue.qsize())
            # Taken out before the gap is told: what is dropped meanwhile is a gap behind these.
            items = deque(self._take_out() for _ in range(count))
            if hole is not None:
                await self._tell(hole)
            await self._deliver_run(items)

    async def _deliver_run(self, items: deque[tuple[GapReason | None, Message[T]]]) -> None:
        """Deliver what was taken out of the backlog, each hole where it stands."""
        run: deque[Message[T]] = deque()
        while items:
            hole, message = items.popleft()
            if hole is not None:
                await self._deliver(run)
                await self._tell(hole)
            run.append(message)
            del message  # or it would outlive its delivery here
        await self._deliver(run)

    async def _deliver(self, messages: deque[Message[T]]) -> None:
        """Deliver messages that count as waiting, together if the subscriber can."""
        books, work = self._fanout.books, self._fanout.pumping
        while messages and not self.closed:
            if work.is_over() or (self._piece >= PIECE and work.enough()):
                await self._rest()
            self._piece += 1 if self._nowait is None else PIECE
            if self._nowait is not None:
                self._waiting -= len(messages)
                if self.take(Batch(messages)):
                    books.pending -= len(messages)
                    books.delivered += len(messages)
                    return messages.clear()
                if self.closed:
                    books.pending -= len(messages)
                    books.abandoned += len(messages)
                    return
                self._waiting += len(messages)
            await self._publish(messages.popleft())

    async def _rest(self) -> None:
        """Let others go first, all of them or, in the middle of a piece, those of this turn.

        Each time counts as much as a batch, or who computes long would hold up the others.
        Closed meanwhile, the pump is cancelled.
        """
        self._piece += BATCH
        ahead = self._piece < PIECE
        if not ahead:
            self._piece = 0
        self._resting = True
        self._report_crowding()
        try:
            await self._fanout.pumping.rest(ahead)
        finally:
            self._resting = False

    def _report_crowding(self) -> None:
        """Let who publishes wait once."""
        if self.is_crowded():
            self._fanout.crowded = True

    async def _publish(self, message: Message[T]) -> None:
        books = self._fanout.books
        self._waiting -= 1
        try:
            await checked_awaitable("publish", self.subscriber.publish(message))
        except PoisonedError:
            books.pending -= 1
            books.poisoned += 1
            await self._tell("poisoned")
        except BaseException:
            books.pending -= 1
            books.abandoned += 1
            raise
        else:
            books.pending -= 1
            books.delivered += 1
            self._last_id = message.id or self._last_id

    async def _tell(self, reason: GapReason) -> None:
        if self.closed:
            return
        self._fanout.books.gaps += 1
        gap = Gap(reason, self._last_id)
        if hears_gaps(self.subscriber):
            await checked_awaitable("publish_gap", self.subscriber.publish_gap(gap))
        else:
            level = logging.DEBUG if self._logged else logging.WARNING
            log.log(
                level, "%r has missed messages after %r: %s", self.subscriber, gap.after, reason
            )
            self._logged = True

    def _fail(self, error: BaseException) -> None:
        if self.closed:
            gone = isinstance(error, (OSError, asyncio.CancelledError))  # as a closed connection
            log.log(
                logging.DEBUG if gone else logging.ERROR,
                "publishing to %r failed after it had left",
                self.subscriber,
                exc_info=error,
            )
        else:
            log.error("publishing to %r failed", self.subscriber, exc_info=error)
            self.release("failed")


def is_leaving(subscriber: Subscriber[T]) -> bool:
    """Ask a subscriber that takes leave slowly whether it is still at it."""
    if leaves_slowly(subscriber):
        try:
            return subscriber.leaving()
        except Exception:
            log.exception("leaving() of %r failed", subscriber)
    return False


def tell_release(subscriber: Subscriber[T], reason: Released) -> None:
    """Tell a subscriber that hears it why it is released; log it for the others."""
    if hears_release(subscriber):
        try:
            subscriber.released(reason)
        except Exception:
            log.exception("released(%r) of %r failed", reason, subscriber)
    elif reason != "closed":
        log.warning("released %r: %s", subscriber, reason)
