"""The fan-out in a world of its own, with subscribers that tell the model all they see."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias, get_args

from harness import PROGRESS, Clock, HandLoop
from property.model import Load, Part, positions_of
from tornadose import Batch, Gap, Message, PoisonedError, Released
from tornadose.fanout import FanOut
from tornadose.history import History, Page, Replay
from tornadose.limits import Limits
from tornadose.messages import GapReason

REASONS: dict[str, GapReason] = {reason: reason for reason in get_args(GapReason)}
RELEASES: dict[str, Released] = {reason: reason for reason in get_args(Released)}

Fault: TypeAlias = Literal["raise", "cancel", "refuse", "leave", "raise later", "decline"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


class World:
    """The fan-out, what came of it, and what should have come of it.

    In an exact world nobody pauses but the publisher. So the model sees when the pump
    takes messages out of the backlog, and knows what else there is room for. In the others
    only the stories tell whether all is well.
    """

    def __init__(self, limits: Limits, kept: int, exact: bool, merges: bool) -> None:
        self.limits = limits
        self.exact = exact
        self.merges = merges
        self.loop = HandLoop()
        self.clock = Clock()
        self.fanout: FanOut[Load] = FanOut(limits)
        self.history: History[Load] = History(kept)
        self.inbox: asyncio.Queue[Batch[Load]] = asyncio.Queue()
        self.parts: list[Part] = []
        self.probes: list[Probe] = []
        self.complaints: list[str] = []
        self.encoded: Counter[int] = Counter()
        self.unfit: set[int] = set()
        self.lines: list[str] = []
        self.published = self.delivered = self.poisoned = self.dropped = self.gaps = 0
        self.idle = True
        self.publisher = self.loop.create_task(self.publish())
        if exact:
            self.clock.frozen = lambda: not self.is_publishing()

    async def publish(self) -> None:
        while True:
            batch = await self.inbox.get()
            while self.merges and not self.inbox.empty():
                batch = Batch([*batch, *self.inbox.get_nowait()])
            self.idle = False
            await self.fanout.broadcast(batch)
            self.published += len(batch)
            self.idle = self.inbox.empty()

    def is_publishing(self) -> bool:
        return asyncio.current_task(self.loop) is self.publisher

    def encode(self, message: Message[Load]) -> bytes:
        self.encoded[message.data.n] += 1
        if message.data.poisoned:
            self.unfit.add(message.data.n)
            raise ValueError("poisoned")
        return b"%d" % message.data.n

    def settle(self) -> None:
        """Let go of what is on offer: the publisher is no longer with that lane."""
        for part in self.parts:
            part.settle()

    def heard(self, record: logging.LogRecord) -> None:
        """Take what is logged about a subscriber for what it is told."""
        line = record.getMessage()
        match record.args:
            case (Sub(part=part), None | str() as after, str(reason)) if "has missed" in line:
                part.check(not part.sub.hears_gaps, f"{line}, though it is told")
                warned = record.levelno == logging.WARNING
                part.check(warned or part.logged, f"P2: {line}, for the first time")
                part.logged = True
                part.is_told(Gap(REASONS[reason], after))
                part.goes_on()
            case (Sub(part=part), str(reason)) if line.startswith("released"):
                part.check(not part.sub.hears_release, f"{line}, though it is told")
                part.is_released(RELEASES[reason])
            case _ if record.levelno >= logging.WARNING:
                self.lines.append(line)
            case _:
                pass

    # ---- what the machine does to it

    def accept(self, flaws: list[bool]) -> None:
        """Accept so many messages, some of which cannot be encoded."""
        loads = [Load(n, bad) for n, bad in enumerate(flaws, self.history.last + 1)]
        self.inbox.put_nowait(Batch([self.history.append(load, None) for load in loads]))
        self.fanout.accepted = self.history.last
        self.idle = False

    def admit(self, sub: Sub, cursor: str | None) -> None:
        """Register a subscriber, and right before it a probe that sees what it is offered."""
        accepted = self.fanout.accepted
        sub.part = part = Part(self, sub, accepted, accepted, cursor)
        probe = Probe(part)
        self.parts.append(part)
        self.probes.append(probe)
        with self.loop.inside():
            assert self.fanout.admit(probe) is not None
            lane = self.fanout.admit(sub)
            assert lane is not None
            assert self.fanout.admit(sub) is None
            if cursor is not None:
                part.resumes(cursor)
                lane.replay(Watched(part, self.history.replay(cursor)), cursor)

    def leave(self, sub: Sub) -> None:
        self.settle()
        if sub.part.live:
            sub.part.end("left")
        self.fanout.dismiss(sub)

    def dismiss(self, subscriber: Sub | Probe) -> None:
        with self.loop.inside():
            self.fanout.dismiss(subscriber)

    def let_all_get_ahead(self) -> None:
        """Turn the loop until nothing changes any more without time or a helping hand."""
        books = None
        while books != self.fanout.statistics():
            books = self.fanout.statistics()
            self.loop.turn(PROGRESS)

    def close(self) -> set[asyncio.Task[object]]:
        """Close the loop, and return the tasks that were left but for our own."""
        if self.loop.is_closed():
            return set()
        self.publisher.cancel()
        self.loop.turn(3)
        return self.loop.finish()


@dataclass
class Watched:
    """A replay that tells the model what is read."""

    part: Part
    replay: Replay[Load]

    async def read(self) -> Page[Load]:
        page = await self.replay.read()
        self.part.reads(page)
        return page


class Probe:
    """Takes everything at once, and so sees when the lane behind it has its turn."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.seen = part.start

    async def publish(self, message: Message[Load], /) -> None:
        self.part.check(False, "P3: the probe is not offered everything at once")

    def publish_nowait(self, batch: Batch[Load], /) -> bool:
        part, world = self.part, self.part.world
        world.settle()
        positions = positions_of(batch)
        due = list(range(self.seen + 1, self.seen + 1 + len(batch)))
        part.check(positions == due, f"P1, P2, P3: the probe sees {positions}, not {due}")
        self.seen = positions[-1]
        world.delivered += len(batch)
        part.is_next(positions)
        world.clock.hold = True
        return True


class Sub:
    """A subscriber with `publish` alone, which does as the machine tells it to."""

    batches = hears_gaps = hears_release = False

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.part: Part
        self.stalled = False
        self.since = self.until = 0.0  # on the clock of the loop
        self.moved = asyncio.Event()
        self.slow = 0
        self.fault: Fault | None = None
        self.task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def stall(self) -> None:
        now = self.world.loop.now
        if not self.stalled and self.until < now:  # else it may not have moved at all
            self.since = now
        self.stalled = True

    def go_on(self) -> None:
        if self.stalled:
            self.stalled, self.until = False, self.world.loop.now
            self.moved.set()

    def fail(self, part: Part, *faults: Fault) -> None:
        """Do what the machine asked for, if it is one of these."""
        fault = self.fault
        if fault not in faults:
            return
        self.fault = None
        if fault == "leave":
            part.left_by_itself = True
            self.world.leave(self)
        elif fault == "refuse":
            raise PoisonedError
        else:
            part.fails()
            raise asyncio.CancelledError if fault == "cancel" else ZeroDivisionError

    async def take_time(self, part: Part, *faults: Fault) -> None:
        """Fail at once, or after as long as the machine wants it to take."""
        self.task = asyncio.current_task()
        try:
            self.fail(part, *faults)
            for _ in range(self.slow):
                await asyncio.sleep(0)
            while self.stalled:
                self.moved.clear()
                await self.moved.wait()
            self.fail(part, "raise later", "leave")
        finally:
            self.task = None

    async def publish(self, message: Message[Load], /) -> None:
        part, n = self.part, message.data.n
        part.is_offered([n])
        part.leave_backlog(1)
        part.under_way = n
        try:
            await self.take_time(part, "raise", "cancel", "refuse", "leave")
            message.render(self.world.encode)
        except PoisonedError:
            part.refuses(n)
            raise
        else:
            part.takes([n])
        finally:
            part.under_way = None


class Batching(Sub):
    batches = True

    async def publish(self, message: Message[Load], /) -> None:
        await super().publish(message)  # defined here, as `publish_nowait` stands in for it

    def publish_nowait(self, batch: Batch[Load], /) -> bool:
        part, positions = self.part, positions_of(batch)
        directly = self.world.is_publishing()
        part.is_offered(positions, directly)
        self.fail(part, "raise", "raise later", "cancel", "refuse")
        if self.stalled or self.fault == "decline":
            self.fault = None
            return False
        batch.render(self.world.encode)
        if directly:
            part.arriving = []
        else:
            part.leave_backlog(len(batch))
        self.fail(part, "leave")
        part.takes(positions)
        return True


class GapHearing(Sub):
    hears_gaps = True

    async def publish_gap(self, gap: Gap, /) -> None:
        part = self.part
        part.is_told(gap)
        await self.take_time(part, "raise", "cancel", "leave")
        part.goes_on()


class ReleaseHearing(Sub):
    hears_release = True

    def released(self, reason: Released, /) -> None:
        self.part.is_released(reason)


KINDS: list[type[Sub]] = [
    type("Sub" + "".join(hook.__name__[0] for hook in hooks), hooks or (Sub,), {})
    for count in range(4)
    for hooks in combinations((Batching, GapHearing, ReleaseHearing), count)
]
