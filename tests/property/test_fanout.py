"""The fan-out against a model of it, with the schedule as part of the input."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Literal, TypeAlias, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from property.harness import HandLoop, hand_loop, recorded
from support import balanced
from tornadose import Batch, Gap, Message, PoisonedError, Released, history, tasks
from tornadose.fanout import FanOut
from tornadose.history import History, Page, Replay
from tornadose.lanes import Limits, Policy
from tornadose.messages import GapReason

BLOCK_TIMEOUT = 5.0  # on the clock of the machine
PROGRESS = 8  # turns in which somebody gets ahead who can

Fault: TypeAlias = Literal["raise", "cancel", "refuse", "leave", "raise later", "decline"]
FAULTS: tuple[Fault, ...] = ("raise", "cancel", "refuse", "leave", "raise later", "decline")
ERRORS: dict[Fault, type[BaseException]] = {
    "raise": ZeroDivisionError,
    "raise later": ZeroDivisionError,
    "cancel": asyncio.CancelledError,
    "refuse": PoisonedError,
}
REASONS: dict[str, GapReason] = {reason: reason for reason in get_args(GapReason)}
RELEASES: dict[str, Released] = {reason: reason for reason in get_args(Released)}


@dataclass(frozen=True)
class Load:
    """A payload: the position of its message, and whether it can be encoded."""

    n: int
    poisoned: bool = False


@dataclass
class Refused:
    """In a story: this subscriber could not encode the message, or did not want it."""

    n: int


@dataclass(eq=False)
class Part:
    """What one registration of a subscriber should see, and has seen.

    Attributes:
        start: Position after which it begins.
        fence: Position after which it gets what is handed on live; ``None`` while it
            reads history.
        last: Id of the last message it took.
        expected: Positions it will see, and gaps, in order.
        taken_out: How many of these left the backlog already, to be seen at once.
        arriving: Positions on offer right now.
        held: The page that follows the gap being told.
        under_way: The position in `publish` now.
        logged: Whether a loss was logged as a warning; the next may be for debugging.
        story: What it was given and told.
        first: The first position that history still had when it told the gap at this
            place of the story.
    """

    sub: Sub
    start: int
    fence: int | None
    last: str | None = None
    expected: deque[int | str] = field(default_factory=deque[int | str])
    taken_out: int = 0
    arriving: list[int] = field(default_factory=list[int])
    held: list[int] = field(default_factory=list[int])
    under_way: int | None = None
    story: list[int | Gap | Refused] = field(default_factory=list[int | Gap | Refused])
    first: dict[int, int] = field(default_factory=dict[int, int])
    live: bool = True
    ended: Released | Literal["left"] | None = None
    doomed: bool = False
    failing: bool = False
    cancelled: bool = False
    left_by_itself: bool = False
    logged: bool = False

    @property
    def waiting(self) -> list[int]:
        return [n for n in self.expected if isinstance(n, int)]

    @property
    def outstanding(self) -> int:
        return len(self.waiting) + len(self.arriving) + (self.under_way is not None)

    def end(self, reason: Released | Literal["left"]) -> None:
        self.live, self.ended = False, reason
        self.expected.clear()
        self.arriving.clear()
        self.held.clear()


class Clock:
    """What the fan-out takes for the time it has worked: it pauses where it is told to.

    Attributes:
        hold: Whether there is no pause the next time that somebody asks.
        frozen: Tells when there is no pause at all.
        pauses: Whether there is one, time by time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.hold = False
        self.frozen: Callable[[], bool] = lambda: False
        self.pauses: Iterator[bool] = cycle([False])

    def __call__(self) -> float:
        if self.hold or self.frozen():
            self.hold = False
            return float("-inf")
        if next(self.pauses):
            self.now += 1.0
        return self.now


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
        self.probes: dict[Probe, Part] = {}
        self.complaints: list[str] = []
        self.encoded: Counter[int] = Counter()
        self.unfit: set[int] = set()
        self.lines: list[str] = []
        self.published = self.delivered = self.poisoned = self.dropped = self.gaps = 0
        self.idle = True
        self.publisher = self.loop.create_task(self.publish())
        if exact:
            self.clock.frozen = lambda: asyncio.current_task(self.loop) is not self.publisher

    async def publish(self) -> None:
        while True:
            batch = await self.inbox.get()
            while self.merges and not self.inbox.empty():
                batch = Batch([*batch, *self.inbox.get_nowait()])
            self.idle = False
            await self.fanout.broadcast(batch)
            self.published += len(batch)
            self.idle = self.inbox.empty()

    def encode(self, message: Message[Load]) -> bytes:
        self.encoded[message.data.n] += 1
        if message.data.poisoned:
            self.unfit.add(message.data.n)
            raise ValueError("poisoned")
        return b"%d" % message.data.n

    def check(self, condition: object, complaint: str) -> None:
        """Remember a complaint, as the fan-out would take an exception for the subscriber's."""
        if not condition:
            self.complaints.append(complaint)

    # ---- what the model makes of what happens

    def settle(self) -> None:
        """Put what was on offer, and not taken at once, where the policy puts it."""
        for part in self.parts:
            arriving, part.arriving = part.arriving, []
            for n in arriving if self.exact else ():
                if part.live and not part.doomed:
                    self.keep(part, n)

    def keep(self, part: Part, n: int) -> None:
        policy = self.limits.policy
        if policy == "block" or len(part.waiting) - part.taken_out < self.limits.backlog:
            part.expected.append(n)
        elif policy == "disconnect":
            part.doomed = True
            part.expected.clear()
        elif policy == "drop_newest":
            self.dropped += 1
            if part.expected[-1] != "overflow":
                part.expected.append("overflow")
        else:
            self.dropped += 1
            part.expected.append(n)
            at = part.taken_out
            if part.expected[at] == "overflow":
                del part.expected[at + 1]
            else:
                part.expected[at] = "overflow"

    def take_out(self, part: Part) -> None:
        """Let the pump take from the backlog what it delivers next."""
        if part.taken_out == 0:
            at_once = self.limits.backlog if part.sub.batches else 1
            part.taken_out = min(at_once, len(part.waiting))

    def begins(self, part: Part, positions: list[int]) -> None:
        """A delivery begins, from the pump."""
        self.settle()
        name = f"{part.sub!r} {part.story}"
        self.check(part.live, f"P2: {name} is offered {positions} after the end")
        if not self.exact:
            return
        self.take_out(part)
        part.taken_out = max(part.taken_out, len(positions))  # so many, from history
        due = list(part.expected)[: len(positions)]
        self.check(due == positions, f"P1, P2: {name} is offered {positions}, not {due}")

    def pop(self, part: Part, count: int) -> None:
        for _ in range(count):
            if part.expected:
                part.expected.popleft()
                part.taken_out -= 1

    def takes(self, part: Part, positions: list[int]) -> None:
        interrupted = not part.live and not part.left_by_itself
        self.check(not interrupted, f"P2: {part} takes {positions} after the end")
        self.delivered += len(positions)
        part.story.extend(positions)
        part.last = f"{self.history.epoch}-{positions[-1]}"

    def refuses(self, part: Part, n: int) -> None:
        self.poisoned += 1
        part.story.append(Refused(n))

    def told(self, part: Part, gap: Gap) -> None:
        """A gap is told, or logged."""
        self.settle()
        self.gaps += 1
        name = f"{part.sub!r} {part.story}"
        self.check(part.live, f"P2: {name} is told of {gap} after the end")
        if gap.reason == "unknown":
            part.last = None
        self.check(gap.after == part.last, f"{name}: {gap}, not after {part.last}")
        if gap.reason == "poisoned":
            previous = part.story[-1] if part.story else None
            self.check(isinstance(previous, Refused), f"P9: {name} is told of {gap} for nothing")
            part.story.append(gap)
        else:
            if self.exact:
                if self.limits.policy != "drop_oldest":
                    self.take_out(part)
                due = part.expected.popleft() if part.expected else None
                self.check(due == gap.reason, f"P2: {name} is told of {gap}, not {due}")
            if gap.reason in ("expired", "unknown", "restarted"):
                part.first[len(part.story)] = self.history.first
            part.story.append(gap)

    def behind_the_gap(self, part: Part) -> None:
        held, part.held = part.held, []
        if part.live:
            part.expected.extend(held)

    def releases(self, part: Part, reason: Released) -> None:
        self.settle()
        sub = part.sub
        legitimate = {
            "overflow": part.doomed,
            "failed": part.failing,
            "timeout": self.limits.policy == "block"
            and self.loop.now - sub.since >= BLOCK_TIMEOUT
            and (
                sub.until == self.loop.now  # in the very turn, one or the other may be first
                or (sub.stalled and len(part.waiting) > self.limits.backlog)
            ),
            "closed": part.outstanding == 0 and not part.expected,
        }.get(reason)
        self.check(part.live, f"{sub!r} is released ({reason}) after the end")
        known = self.exact or reason not in ("overflow", "timeout", "closed")
        self.check(legitimate or not known, f"P2: {part} is released: {reason}")
        part.end(reason)

    def heard(self, record: logging.LogRecord) -> None:
        """Take what is logged about a subscriber for what it is told."""
        line = record.getMessage()
        part = next((p for p in reversed(self.parts) if repr(p.sub) in line), None)
        if part is not None and "has missed messages" in line:
            after = line.rpartition(": ")[0].rpartition(" ")[2].strip("'")
            warned = record.levelno == logging.WARNING
            self.check(warned or part.logged, f"P2: {line}, for the first time")
            part.logged = True
            self.told(part, Gap(REASONS[line.split()[-1]], None if after == "None" else after))
            self.behind_the_gap(part)
        elif part is not None and line.startswith("released"):
            self.check(not part.sub.hears_release, f"{line}, though it was told")
            self.releases(part, RELEASES[line.split()[-1]])
        elif record.levelno >= logging.WARNING:
            self.lines.append(line)

    # ---- what the machine does to it

    def accept(self, poisoned: list[bool]) -> None:
        batch = Batch(
            [self.history.append(Load(self.history.last + 1, bad), None) for bad in poisoned]
        )
        self.fanout.accepted = self.history.last
        self.inbox.put_nowait(batch)
        self.idle = False

    def admit(self, sub: Sub, cursor: str | None) -> None:
        """Register a subscriber, and right before it a probe that sees what it is offered."""
        part = Part(sub, self.fanout.accepted, self.fanout.accepted, cursor)
        self.parts.append(part)
        sub.part = part
        probe = Probe(self, part)
        self.probes[probe] = part
        with self.loop.inside():
            self._admit(part, probe, cursor)

    def _admit(self, part: Part, probe: Probe, cursor: str | None) -> None:
        assert self.fanout.admit(probe) is not None
        lane = self.fanout.admit(part.sub)
        assert lane is not None
        assert self.fanout.admit(part.sub) is None
        if cursor is None:
            return
        part.fence = None
        position = cursor.removeprefix(self.history.epoch + "-")
        if position.isdecimal() and int(position) <= self.history.last:
            part.start = int(position)
        lane.replay(Watched(self, part, self.history.replay(cursor)), cursor)

    def leave(self, sub: Sub) -> None:
        self.settle()
        part = sub.part
        if part.live:
            part.end("left")
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


class Watched:
    """A replay that tells the world what it reads."""

    def __init__(self, world: World, part: Part, replay: Replay[Load]) -> None:
        self.world = world
        self.part = part
        self.replay = replay

    async def read(self) -> Page[Load]:
        page = await self.replay.read()
        part = self.part
        self.world.check(part.live, f"P2: {part} reads history after the end")
        positions = [message.data.n for message in page.messages]
        if page.hole is not None:
            part.expected.append(page.hole)
            part.held = positions
        elif positions:
            part.expected.extend(positions)
        else:
            part.fence = page.position
        return page


class Probe:
    """Takes everything at once, and so sees when the lane behind it has its turn."""

    def __init__(self, world: World, part: Part) -> None:
        self.world = world
        self.part = part
        self.seen = part.start

    async def publish(self, message: Message[Load], /) -> None:
        self.world.check(False, "P3: a probe is not offered everything at once")

    def publish_nowait(self, batch: Batch[Load], /) -> bool:
        world, part = self.world, self.part
        world.settle()
        positions = [message.data.n for message in batch]
        world.delivered += len(positions)
        world.check(
            positions == list(range(self.seen + 1, self.seen + 1 + len(positions))),
            f"P1, P2, P3: the probe saw {self.seen}, then {positions}",
        )
        self.seen = positions[-1]
        if part.live and part.fence is not None:
            world.check(
                not world.exact
                or world.limits.policy != "block"
                or len(part.waiting) - part.taken_out <= world.limits.backlog,
                f"P4: {part} has no room, and there is more",
            )
            fence = part.fence
            part.arriving = [n for n in positions if n > fence]
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

    async def hold(self) -> None:
        for _ in range(self.slow):
            await asyncio.sleep(0)
        while self.stalled:
            self.moved.clear()
            await self.moved.wait()

    def fail(self, *faults: Fault) -> None:
        """Do what the machine asked for, if it is one of these."""
        fault = self.fault
        if fault not in faults:
            return
        self.fault = None
        if fault == "leave":
            self.part.left_by_itself = True
            self.world.leave(self)
            return
        if fault != "refuse":
            if asyncio.current_task() is self.world.publisher:
                self.part.arriving.clear()  # abandoned, whatever room there is
            self.world.settle()
            self.part.failing = True
        raise ERRORS[fault]

    async def publish(self, message: Message[Load], /) -> None:
        world, part, n = self.world, self.part, message.data.n
        world.begins(part, [n])
        world.pop(part, 1)
        part.under_way = n
        self.task = asyncio.current_task()
        try:
            self.fail("raise", "cancel", "refuse", "leave")
            await self.hold()
            self.fail("raise later", "leave")
            message.render(world.encode)
        except PoisonedError:
            world.refuses(part, n)
            raise
        else:
            world.takes(part, [n])
        finally:
            part.under_way = self.task = None


class _Batches(Sub):
    batches = True

    async def publish(self, message: Message[Load], /) -> None:
        await super().publish(message)

    def publish_nowait(self, batch: Batch[Load], /) -> bool:
        world, part = self.world, self.part
        positions = [message.data.n for message in batch]
        direct = asyncio.current_task() is world.publisher
        if direct and world.exact:
            due = part.arriving
            world.check(part.live, f"P2: {part} is offered {positions} after the end")
            world.check(due == positions, f"P1, P2: {part} is offered {positions}, not {due}")
            world.check(not part.expected, f"P1: {positions} overtakes what waits in {part}")
        else:
            world.begins(part, positions)
        self.fail("raise", "raise later", "cancel", "refuse")
        if self.stalled or self.fault == "decline":
            self.fault = None
            return False
        batch.render(world.encode)
        if direct:
            part.arriving = []
        else:
            world.pop(part, len(positions))
        self.fail("leave")
        world.takes(part, positions)
        return True


class _Gaps(Sub):
    hears_gaps = True

    async def publish_gap(self, gap: Gap, /) -> None:
        world, part = self.world, self.part
        world.told(part, gap)
        self.task = asyncio.current_task()
        try:
            self.fail("raise", "cancel", "leave")
            await self.hold()
            self.fail("raise later", "leave")
        finally:
            self.task = None
        world.behind_the_gap(part)


class _Released(Sub):
    hears_release = True

    def released(self, reason: Released, /) -> None:
        self.world.releases(self.part, reason)


class SubG(_Gaps): ...


class SubR(_Released): ...


class SubGR(_Gaps, _Released): ...


class SubB(_Batches): ...


class SubBG(_Gaps, _Batches): ...


class SubBR(_Released, _Batches): ...


class SubBGR(_Gaps, _Released, _Batches): ...


KINDS: list[type[Sub]] = [Sub, SubG, SubR, SubGR, SubB, SubBG, SubBR, SubBGR]


def check_story(world: World, part: Part, complete: bool) -> None:
    """What was seen, with its gaps, accounts for every message: without the model."""
    at, holes, due, refused = part.start, 0, 0, False
    complaint = f"P2: {part.sub!r} from {part.start}: {part.story}"
    drops = world.limits.policy.startswith("drop")
    for place, item in enumerate([*part.story, *([Refused(world.history.last + 1)] * complete)]):
        if isinstance(item, Gap):
            assert (item.reason == "poisoned") == refused, complaint
            refused = False
            holes += item.reason in ("overflow", "expired")
            due = max(due, part.first.get(place, 0))
            continue
        n = item.n if isinstance(item, Refused) else item
        assert not refused, complaint
        assert n > at, f"P1: {complaint}"
        lost = n - at - 1
        assert lost >= holes, f"there is no hole: {complaint}"
        assert lost == 0 or holes or due, f"there is no gap: {complaint}"
        if due and not drops:
            assert n == max(due, at + 1), f"P8: {complaint}"
        at, holes, due, refused = n, 0, 0, isinstance(item, Refused)


class FanOutMachine(RuleBasedStateMachine):
    """Registers, stalls, breaks and cancels subscribers, while messages are accepted."""

    policy: Policy
    exact: bool

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world: World
        self.subs: list[Sub] = []

    @initialize(
        backlog=st.integers(1, 4),
        kept=st.integers(0, 8),
        merges=st.booleans(),
        pauses=st.lists(st.booleans(), min_size=1, max_size=4),
    )
    def begin(self, backlog: int, kept: int, merges: bool, pauses: list[bool]) -> None:
        limits = Limits(backlog, self.policy, BLOCK_TIMEOUT)
        self.world = World(limits, kept, self.exact, merges)
        self.world.clock.pauses = cycle(pauses)
        self.log = recorded(self.world.heard)
        self.log.__enter__()
        self.patch.setattr(tasks, "monotonic", self.world.clock)
        self.patch.setattr(history, "BATCH", 2)

    @property
    def live(self) -> list[Sub]:
        return [sub for sub in self.subs if sub.part.live]

    def pick(self, index: int) -> Sub:
        return self.subs[index % len(self.subs)]

    def some(self) -> bool:
        return bool(self.subs)

    # ---- rules

    @rule(poisoned=st.lists(st.sampled_from([False] * 7 + [True]), min_size=1, max_size=5))
    def accept(self, poisoned: list[bool]) -> None:
        self.world.accept(poisoned)

    @rule(poisoned=st.lists(st.sampled_from([False] * 7 + [True]), min_size=1, max_size=5))
    def accept_and_hand_on(self, poisoned: list[bool]) -> None:
        self.world.accept(poisoned)
        self.world.loop.turn(2)

    @precondition(lambda self: len(self.subs) < 6)
    @rule(kind=st.sampled_from(KINDS), slow=st.sampled_from([0, 0, 1, 3]), stalled=st.booleans())
    def join(self, kind: type[Sub], slow: int, stalled: bool) -> None:
        self.new(kind, slow, stalled, None)

    @precondition(lambda self: len(self.subs) < 6)
    @rule(
        kind=st.sampled_from(KINDS),
        slow=st.sampled_from([0, 0, 1, 3]),
        stalled=st.booleans(),
        back=st.integers(0, 12),
        fault=st.sampled_from([None, None, *FAULTS]),
    )
    def resume(
        self, kind: type[Sub], slow: int, stalled: bool, back: int, fault: Fault | None
    ) -> None:
        self.new(kind, slow, stalled, self.cursor(back))
        self.subs[-1].fault = fault

    @precondition(some)
    @rule(index=st.integers(0, 5), back=st.integers(0, 12), resumed=st.booleans())
    def come_back(self, index: int, back: int, resumed: bool) -> None:
        sub = self.pick(index)
        if not sub.part.live:
            cursor = sub.part.last if back < 6 else self.cursor(back)
            self.world.admit(sub, cursor if resumed else None)

    def new(self, kind: type[Sub], slow: int, stalled: bool, cursor: str | None) -> None:
        sub = kind(self.world, f"{kind.__name__} {len(self.subs)}")
        sub.slow, sub.stalled, sub.since = slow, stalled, self.world.loop.now
        self.subs.append(sub)
        self.world.admit(sub, cursor)

    def cursor(self, back: int) -> str:
        """Make an id that is so far back, or no id of this history."""
        at = self.world.history.last + 1 - back  # +1 is not there yet
        return f"{self.world.history.epoch if back else '0' * 12}-{max(at, 1)}"

    @precondition(some)
    @rule(index=st.integers(0, 5))
    def leave(self, index: int) -> None:
        with self.world.loop.inside():
            self.world.leave(self.pick(index))
            self.world.leave(self.pick(index))  # a stranger: nothing happens

    @precondition(some)
    @rule(index=st.integers(0, 5))
    def stall(self, index: int) -> None:
        sub = self.pick(index)
        if not sub.stalled:
            sub.stalled, sub.since = True, self.world.loop.now

    @precondition(some)
    @rule(index=st.integers(0, 5))
    def go_on(self, index: int) -> None:
        sub = self.pick(index)
        if sub.stalled:
            sub.stalled, sub.until = False, self.world.loop.now
            sub.moved.set()

    @precondition(some)
    @rule(index=st.integers(0, 5), fault=st.sampled_from(FAULTS))
    def break_down(self, index: int, fault: Fault) -> None:
        self.pick(index).fault = fault

    @precondition(some)
    @rule(index=st.integers(0, 5))
    def cancel(self, index: int) -> None:
        sub = self.pick(index)
        if sub.task is not None and sub.part.live:
            sub.part.failing = sub.part.cancelled = True
            sub.task.cancel()

    @rule(turns=st.integers(1, 6))
    def turn(self, turns: int) -> None:
        self.world.loop.turn(turns)

    @rule(pauses=st.lists(st.booleans(), min_size=1, max_size=4))
    def work_takes(self, pauses: list[bool]) -> None:
        self.world.clock.pauses = cycle(pauses)

    @rule(seconds=st.sampled_from([1.0, BLOCK_TIMEOUT - 1, BLOCK_TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.world.let_all_get_ahead()
        self.world.loop.now += seconds
        self.world.loop.turn(2)

    # ---- what always holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.settle()
        for probe, part in list(world.probes.items()):
            if not part.live:
                world.dismiss(probe)
                del world.probes[probe]
        assert not world.complaints, world.complaints
        assert [part for part in world.parts if part.live and part.doomed] == []
        assert set(world.encoded.values()) <= {1}, "P5"
        for part in world.parts:
            check_story(world, part, complete=False)

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "world"):
            return
        world, books = self.world, self.world.fanout.statistics()
        assert balanced(books)
        assert (books.delivered, books.poisoned, books.gaps) == (
            world.delivered,
            world.poisoned,
            world.gaps,
        )
        if world.exact:
            assert books.pending == sum(part.outstanding for part in world.parts), books
            assert books.dropped == world.dropped
        assert books.submitted == world.history.last
        assert world.published <= books.published <= books.submitted
        assert books.subscribers == len(self.live) + len(world.probes)
        assert books.max_backlog <= world.limits.backlog, "P4"

    # ---- and in the end

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.end()
        finally:
            self.patch.undo()
            if hasattr(self, "world"):
                self.world.close()
                self.log.__exit__(None, None, None)

    def end(self) -> None:
        world = self.world
        for sub in self.subs:
            sub.fault = None
        self.everything_is_handed_on()
        for sub in self.live:
            if not sub.stalled:  # P3, however many others are
                check_story(world, sub.part, complete=True)
        for sub in self.subs:
            sub.stalled = False
            sub.moved.set()
        finishing = world.loop.create_task(world.fanout.finish())
        world.loop.turn(1)
        parts = [sub.part for sub in self.live]
        world.let_all_get_ahead()
        for part in parts:
            check_story(world, part, complete=True)
            if part.sub.hears_release:
                assert part.ended == "closed"
            part.end("closed")
        everybody: list[Sub | Probe] = [*self.subs, *world.probes]
        for subscriber in everybody:
            world.dismiss(subscriber)
        world.loop.turn(2)
        assert finishing.done()
        assert not world.complaints, world.complaints
        books = world.fanout.statistics()
        assert (books.pending, books.subscribers) == (0, 0)
        self.the_log_is_right()
        assert world.close() == set()

    def everything_is_handed_on(self) -> None:
        world = self.world
        for _ in range(PROGRESS):
            world.let_all_get_ahead()
            self.nothing_is_wrong()
            self.the_books_are_right()
            if world.idle:
                return
            assert world.limits.policy == "block", "P3"
            world.loop.now += BLOCK_TIMEOUT
        raise AssertionError("P3: the publisher is not done")

    def the_log_is_right(self) -> None:
        """Each failure, and each poisoned message, is logged, and once."""
        world = self.world
        lines = [line for line in world.lines if "cannot be encoded" in line]
        poisoned = [n for n in world.encoded if n in world.unfit]
        assert len(set(lines)) == len(lines) == len(poisoned), (world.lines, poisoned)
        failed = Counter(line for line in world.lines if line not in lines)
        expected = Counter(
            f"publishing to {part.sub!r} failed"
            for part in world.parts
            if part.ended == "failed" and not part.cancelled
        )
        cancelled = [part for part in world.parts if part.cancelled]
        assert expected <= failed, world.lines
        assert (failed - expected).total() <= len(cancelled), world.lines


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("policy", get_args(Policy))
def test_p1_p2_p3_p4_p5_p8_every_subscriber_sees_what_the_model_says(
    policy: Policy, exact: bool
) -> None:
    run_state_machine_as_test(
        type("Machine", (FanOutMachine,), {"policy": policy, "exact": exact}),
        settings=settings(stateful_step_count=40),
    )


# ---- what the machine does not do


class Taker:
    """Takes one at a time, when it is let."""

    def __init__(self) -> None:
        self.story: list[int | Gap | Released] = []
        self.let = asyncio.Event()

    async def publish(self, message: Message[int], /) -> None:
        await self.let.wait()
        self.story.append(message.data)

    async def publish_gap(self, gap: Gap, /) -> None:
        self.story.append(gap)

    def released(self, reason: Released, /) -> None:
        self.story.append(reason)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    turns=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    stalled=st.lists(st.booleans(), min_size=1, max_size=4),
    backlog=st.integers(1, 3),
    pauses=st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_p2_a_broadcast_that_is_cancelled_leaves_no_loss_unsaid_and_nothing_pending(
    sizes: list[int], turns: list[int], stalled: list[bool], backlog: int, pauses: list[bool]
) -> None:
    fanout: FanOut[int] = FanOut(Limits(backlog, "block", BLOCK_TIMEOUT))
    clock, last = Clock(), 0
    clock.pauses = cycle(pauses)
    with hand_loop() as loop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "monotonic", clock)
        takers = [admitted(loop, fanout, stops) for stops in stalled]
        for size, before in zip(sizes, turns, strict=False):
            batch = Batch([Message(last + 1 + n) for n in range(size)])
            last += size
            task = loop.create_task(fanout.broadcast(batch))
            loop.turn(1 + before)
            task.cancel()
            loop.turn_until(task.done)
        for taker in takers:
            taker.let.set()
        loop.turn_until(lambda: fanout.statistics().pending == 0)
        loop.turn(PROGRESS)
        end = loop.create_task(fanout.broadcast(Batch([Message(last + 1)])))
        loop.turn_until(lambda: end.done() and fanout.statistics().pending == 0)
        loop.turn(PROGRESS)
        assert balanced(fanout.statistics())
        for taker in takers:
            accounts_for(taker.story, last + 1)


def admitted(loop: HandLoop, fanout: FanOut[int], stalled: bool) -> Taker:
    taker = Taker()
    with loop.inside():
        assert fanout.admit(taker) is not None
        if not stalled:
            taker.let.set()
    return taker


def accounts_for(story: list[int | Gap | Released], last: int) -> None:
    at, hole = 0, False
    for item in story:
        if isinstance(item, int):
            assert item > at + 1 if hole else item == at + 1, story
            at = item
        hole = isinstance(item, Gap)
    assert at == last, story


@given(before=st.integers(0, 2), after=st.integers(0, 2), size=st.integers(2, 4))
def test_p3_under_block_the_stalled_delay_others_by_no_more_than_the_time_limit(
    before: int, after: int, size: int
) -> None:
    fanout: FanOut[int] = FanOut(Limits(size, "block", BLOCK_TIMEOUT))
    with hand_loop() as loop:
        ready = [admitted(loop, fanout, False) for _ in range(before)]
        stalled = [admitted(loop, fanout, True), admitted(loop, fanout, True)]
        ready += [admitted(loop, fanout, False) for _ in range(after)]
        batches = [Batch([Message(size * n + i + 1) for i in range(size)]) for n in range(3)]

        async def broadcast() -> None:
            for batch in batches:
                await fanout.broadcast(batch)

        task = loop.create_task(broadcast())
        loop.turn(PROGRESS * 4)
        for taker in ready:  # the batch that waits has reached all the others
            accounts_for(taker.story, 2 * size)
        loop.now = BLOCK_TIMEOUT - 0.001
        loop.turn(PROGRESS * 4)
        assert [taker.story for taker in stalled] == [[], []]
        assert not task.done()
        loop.now = BLOCK_TIMEOUT
        loop.turn_until(task.done)
        loop.turn(PROGRESS * 4)
        assert [taker.story for taker in stalled] == [["timeout"], ["timeout"]]
        for taker in ready:
            accounts_for(taker.story, 3 * size)
        assert fanout.statistics().pending == 0


def test_p3_others_have_their_turn_while_a_batch_is_offered_to_many() -> None:
    clock = Clock()
    clock.pauses = cycle([True])
    fanout: FanOut[int] = FanOut(Limits())
    seen: list[str] = []

    class Lazy:
        async def publish(self, message: Message[int], /) -> None:
            raise AssertionError("it takes batches")

        def publish_nowait(self, batch: Batch[int], /) -> bool:
            seen.append("taken")
            return True

    async def other() -> None:
        while len(seen) < 16:
            seen.append("other")
            await asyncio.sleep(0)

    with hand_loop() as loop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "monotonic", clock)
        with loop.inside():
            for _ in range(8):
                assert fanout.admit(Lazy()) is not None
        both = [loop.create_task(fanout.broadcast(Batch([Message(1)]))), loop.create_task(other())]
        loop.turn_until(lambda: all(task.done() for task in both))
    assert seen.count("taken") == 8
    assert "taken " * 3 not in " ".join(seen) + " "
