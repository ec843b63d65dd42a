"""The fan-out: every message to every subscriber, each in a lane of its own.

The *position* of a message is a number that rises with every message: the count of those
accepted up to it, unless the store has numbers of its own. A lane delivers what stands
behind its *fence*: the position at which it was registered, or to which it has read
history.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from functools import cached_property
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

from .history import Positions, Replay
from .lanes import BEYOND, Lane, tell_release
from .limits import Limits
from .messages import Batch, GapReason, Message
from .protocols import Released, Subscriber
from .statistics import Books, Statistics
from .tasks import CANCELLATION, Work, cancel, new_task, works

__all__ = ("FanOut",)

T = TypeVar("T")

Full: TypeAlias = list[tuple[Lane[T], deque[Message[T]]]]  # and what they have no room for

NO_TURN = nullcontext()
FIRST_STEP = 20e-6  # seconds that a new pump takes of the next turn


class FanOut(Generic[T]):
    """All lanes of a store.

    Attributes:
        limits: What holds for every lane.
        books: What the lanes count.
        crowded: Whether a pump has reported since that its backlog grows while it rests.
        accepted: Position of the last message that the store has accepted.
        position: Of the last message that was handed to the lanes.
        closers: Tasks that wait for the store to be closed; nobody waits for these.

    Args:
        newest: Gives the value that who is behind skips to, in a store that keeps one.
    """

    def __init__(self, limits: Limits, newest: Callable[[], Replay[T]] | None = None) -> None:
        self.limits = limits
        self._newest = newest
        self.books = Books()
        self.closers: set[asyncio.Task[Any] | None] = set()
        self.accepted: int = 0
        self.position: int = 0
        self._lanes: dict[int, Lane[T]] = {}
        self._leaving: dict[int, Lane[T]] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._spared: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._handed_on = asyncio.Event()
        self._left = asyncio.Event()
        self._finishing = False
        self.crowded = False

    @cached_property
    def work(self) -> Work:
        """What who publishes and reads has of a turn, together with those of other stores."""
        return works().publishing

    @cached_property
    def pumping(self) -> Work:
        """What the pumps have of it."""
        return works().pumping

    @property
    def conflates(self) -> bool:
        """Whether who is behind skips to the newest value."""
        return self._newest is not None

    @property
    def subscribers(self) -> tuple[Subscriber[T], ...]:
        return tuple(lane.subscriber for lane in self._lanes.values())

    def statistics(self) -> Statistics:
        return Statistics(
            subscribers=len(self._lanes),
            submitted=self.accepted,
            **vars(self.books),
        )

    def has(self, subscriber: Subscriber[T]) -> bool:
        return id(subscriber) in self._lanes

    def admit(self, subscriber: Subscriber[T]) -> Lane[T] | None:
        """Open a lane that begins behind what is accepted; ``None`` if that cannot be."""
        if self.has(subscriber):
            return None
        limit = self.limits.max_subscribers
        if limit is not None and len(self._lanes) >= limit:
            tell_release(subscriber, "limit")
            return None
        lane = self._lanes[id(subscriber)] = Lane(self, subscriber, self.accepted)
        return lane

    def dismiss(self, subscriber: Subscriber[T]) -> None:
        """Close the lane of this subscriber, if there is one."""
        lane = self._lanes.pop(id(subscriber), None)
        if lane is not None:
            lane.close()
        self._leaving.pop(id(subscriber), None)
        self._left.set()

    async def deliver(self, subscriber: Subscriber[T], message: Message[T]) -> bool:
        """Offer a message to one lane, behind what is accepted; false if there is none.

        The event loop has its turns before, and so has the pump of a lane whose backlog
        fills; cancelled then, nothing was offered.
        """
        lane = self._lanes.get(id(subscriber))
        if lane is None:
            return False
        blocks = self.limits.policy == "block"
        if blocks and lane.is_delivering():  # it would wait for itself
            rest = lane.keep(Batch([message]))
            lane.give_up(0 if rest is None else len(rest))
            return True
        async with lane.one_by_one():
            if self.work.is_over():
                await self.work.rest()
            if lane.is_filling() and not blocks:
                await asyncio.sleep(0)
                if lane.is_crowded():
                    await self.pumping.rest()
            await self.handed_on()
            if not blocks:
                return self._offer_one(subscriber, message) is not None
        async with self._turn:  # behind those who wait for room
            full = self._offer_one(subscriber, message)
            await self._wait_for_room(full or [])
            return full is not None

    def _offer_one(self, subscriber: Subscriber[T], message: Message[T]) -> Full[T] | None:
        lane = self._lanes.get(id(subscriber))
        if lane is None:
            return None
        batch = Batch([message])
        if not lane.behind and lane.take(batch):
            self.books.took(1)
            return []
        rest = lane.keep(batch)
        return [] if rest is None else [(lane, deque(rest))]

    async def broadcast(self, batch: Batch[T], positions: Positions | None = None) -> None:
        """Offer a batch to every lane, giving the event loop its turns.

        Where it went into backlogs, these have a turn before the next batch, and where one
        grows for want of the loop's time, all the pumps that rest have theirs. Cancelled
        once its own turn has come, it has offered the batch all the same, but waits for
        nobody's room: whom ``block`` would have made it wait for is told of a gap.

        Args:
            batch: What comes next, no more than the limit of the backlogs.
            positions: Of its messages, where these do not follow from the count.
        """
        async with self._turn:
            if positions is None:
                positions = range(self.position + 1, self.position + len(batch) + 1)
            self.accepted = max(self.accepted, positions[-1])
            self.books.published += len(batch)
            try:
                await self._offer_all(batch, positions)
            finally:
                self.position = positions[-1]
                self._handed_on.set()
            if self.work.is_over():
                await self.work.rest()
            elif self._pumps:
                await asyncio.sleep(0)
            if self.crowded:
                self.crowded = False
                await self.pumping.rest()

    async def handed_on(self) -> None:
        """Wait until everything accepted before this call was offered to the lanes."""
        position = self.accepted
        while self.position < min(position, self.accepted):  # which may be rewound
            self._handed_on.clear()
            await self._handed_on.wait()

    def unpublished(self) -> int:
        """Return how many messages are accepted and not yet offered to the lanes."""
        return self.accepted - self.position

    def abandon_unpublished(self) -> int:
        """Let nobody wait any more for what will never be published, and count it."""
        lost, self.position = self.unpublished(), self.accepted
        self._handed_on.set()
        return lost

    async def _offer_all(self, batch: Batch[T], positions: Positions) -> None:
        """Offer the batch to every lane, also when cancelled, but then without a pause."""
        full: Full[T] = []
        work, size, first = self.work, len(batch), positions[0]
        taken = 0  # of messages, not yet in the books
        cancelled: asyncio.CancelledError | None = None
        for lane in tuple(self._lanes.values()):
            if monotonic() > work.until and work.is_over() and cancelled is None:
                self.books.took(taken)
                taken = 0
                try:
                    await work.rest()
                except asyncio.CancelledError as error:
                    cancelled = error
            part = batch
            if lane.fence >= first:
                part = batch[bisect_right(positions, lane.fence) :]
                if not part:
                    continue
            if not lane.behind and lane.take(part):
                taken += size if part is batch else len(part)
            elif self._newest is not None:
                lane.replay(self._newest())
            elif (rest := lane.keep(part)) is not None:
                full.append((lane, deque(rest)))
        self.books.took(taken)
        await self._wait_for_room(full, cancelled)

    async def _wait_for_room(
        self,
        full: Full[T],
        cancelled: asyncio.CancelledError | None = None,
    ) -> None:
        """Wait for all full lanes together, `block_timeout` seconds a message at most."""
        try:
            if cancelled is not None:
                raise cancelled
            while any(rest for _, rest in full):
                deadline = asyncio.get_running_loop().time() + self.limits.block_timeout
                for lane, rest in full:
                    if rest and lane.is_closing():
                        lane.release("failed")
                    if lane.closed:
                        rest.clear()
                    elif rest:
                        await lane.put(rest[0], deadline)
                        rest.popleft()
                        if self.work.is_over():
                            await self.work.rest()
        finally:
            for lane, rest in full:
                lane.give_up(len(rest))

    async def announce(
        self, reason: GapReason, position: int | None = None, *, end: int = BEYOND
    ) -> None:
        """Tell subscribers of a gap behind what was offered so far.

        Cancelled, it has told them all the same, perhaps before its turn.

        Args:
            reason: Why; a poisoned message counts as offered.
            position: Up to where messages may be missing; those who begin behind it
                are not told.
            end: Without a position, only those who begin in front of this one are told.
        """
        self.accepted = max(self.accepted, position or 0)
        end = end if position is None else position
        lanes = self._lanes.values()
        await self._each(lanes, lambda lane: self._tell(lane, reason, end), self._turn)

    def _tell(self, lane: Lane[T], reason: GapReason, end: int) -> None:
        """Announce a gap to who begins before its end."""
        if lane.fence < end:
            if reason == "poisoned":
                self.books.offered += 1
                self.books.poisoned += 1
            lane.announce(reason)

    def skip(self, position: int) -> None:
        """Note that up to this position there is nothing left to hand on."""
        self.position = max(self.position, position)
        self.accepted = max(self.accepted, position)
        self._handed_on.set()

    def rewind(self, position: int, end: int = BEYOND - 1) -> None:
        """Go on from this position, as what was behind it, up to the end, is no more."""
        self.position = position
        if self.accepted <= end:
            self.accepted = position
        self._handed_on.set()
        for lane in self._lanes.values():
            if lane.fence <= end:
                lane.fence = position

    async def release_all(self, reason: Released) -> None:
        await self._each(self._lanes.values(), lambda lane: lane.release(reason))

    async def finish(self) -> None:
        """Deliver what is pending, release everybody, and wait until they have left."""
        self._finishing = True
        await self._each(self._lanes.values(), lambda lane: lane.finish())
        while self._lanes or self._leaving:
            self._left.clear()
            await self._left.wait()

    @contextmanager
    def closing(self) -> Generator[None]:
        """Wait for nobody who is in this block, be it within its own `publish`."""
        task = asyncio.current_task()
        self.closers.add(task)
        for lane in tuple(self._lanes.values()):
            if lane.is_delivering() and (self._finishing or lane.is_full()):
                lane.finish()
        try:
            yield
        finally:
            self.closers.discard(task)

    async def see_off(self) -> None:
        """Wait until the pumps that `abort` has spared have ended, but not for ever."""
        if self._spared and asyncio.current_task() not in self._pumps:
            await asyncio.wait(self._spared, timeout=CANCELLATION)
            await cancel(*self._spared)

    async def abort(self) -> None:
        """Release those who are still there, and wait until no pump is left."""
        try:
            await self._each(self._leaving.values(), self._stop_waiting)
        finally:
            try:
                await self.release_all("timeout")
            finally:
                self._spared = self._pumps & self.closers
                await cancel(*self._pumps - self._spared)

    def _stop_waiting(self, lane: Lane[T]) -> None:
        """Tell a subscriber whose goodbye takes too long, unless it has left by now."""
        if self._leaving.pop(id(lane.subscriber), None) is not None:
            tell_release(lane.subscriber, "timeout")

    async def _each(
        self,
        lanes: Iterable[Lane[T]],
        act: Callable[[Lane[T]], None],
        turn: AbstractAsyncContextManager[object] = NO_TURN,
    ) -> None:
        """Do this to all of them, also when cancelled, but then without a pause."""
        left = deque(lanes)
        try:
            async with turn:
                while left:
                    act(left.popleft())
                    if self.work.is_over():
                        await self.work.rest()
        finally:
            while left:
                act(left.popleft())

    def start(self, pump: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self.work.spend(FIRST_STEP)
        task = new_task(pump)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        return task

    def forget(self, lane: Lane[T]) -> None:
        """Count a released lane no longer."""
        self._lanes.pop(id(lane.subscriber), None)
        self._left.set()

    def await_leaving(self, lane: Lane[T]) -> None:
        """Let `finish` wait until the subscriber of this released lane deregisters."""
        self._leaving[id(lane.subscriber)] = lane
