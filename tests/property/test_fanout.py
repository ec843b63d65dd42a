"""The fan-out against a model of it, with the schedule as part of the input."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness import PROGRESS, recorded
from property.model import AT_ONCE, BLOCK_TIMEOUT, Missed, Part, Refused
from property.world import FAULTS, KINDS, Fault, Probe, Sub, World
from support import balanced
from tornadose import history, lanes, tasks
from tornadose.limits import Limits, Policy


def check_story(world: World, part: Part, complete: bool) -> None:
    """What was seen, with its gaps, accounts for every message: without the model."""
    at, holes, due, refused = part.start, 0, 0, False
    complaint = f"P2: {part.sub!r} from {part.start}: {part.story}"
    drops = world.limits.policy.startswith("drop")
    for item in [*part.story, *([world.history.last + 1] if complete else [])]:
        if isinstance(item, Missed):
            assert (item.reason == "poisoned") == refused, complaint
            refused = False
            holes += item.reason in ("overflow", "expired")
            if item.reason in ("expired", "unknown", "restarted"):
                due = max(due, item.first)
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


flaws = st.lists(st.sampled_from([False] * 7 + [True]), min_size=1, max_size=5)
pauses = st.lists(st.booleans(), min_size=1, max_size=4)
kinds = st.sampled_from(KINDS)
delays = st.sampled_from([0, 0, 1, 3])
indices = st.integers(0, 5)
distances = st.integers(0, 12)


class FanOutMachine(RuleBasedStateMachine):
    """Registers, stalls, breaks and cancels subscribers, while messages are accepted."""

    policy: Policy
    exact: bool

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.cleanup = ExitStack()
        self.subs: list[Sub] = []

    @initialize(
        backlog=st.integers(1, 4), kept=st.integers(0, 8), merges=st.booleans(), pauses=pauses
    )
    def begin(self, backlog: int, kept: int, merges: bool, pauses: list[bool]) -> None:
        limits = Limits(backlog, self.policy, BLOCK_TIMEOUT)
        self.world = World(limits, kept, self.exact, merges)
        self.world.clock.pause(pauses)
        self.cleanup.enter_context(recorded(self.world.heard))
        self.cleanup.callback(self.world.close)
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tasks, "monotonic", self.world.clock)
        patch.setattr(history, "BATCH", 2)
        patch.setattr(lanes, "BATCH", AT_ONCE)
        self.cleanup.callback(self.end)  # which is first

    def teardown(self) -> None:
        self.cleanup.close()

    @property
    def live(self) -> list[Sub]:
        return [sub for sub in self.subs if sub.part.live]

    def pick(self, index: int) -> Sub:
        return self.subs[index % len(self.subs)]

    def some(self) -> bool:
        return bool(self.subs)

    # ---- rules

    @rule(flaws=flaws)
    def accept(self, flaws: list[bool]) -> None:
        self.world.accept(flaws)

    @rule(flaws=flaws)
    def accept_and_hand_on(self, flaws: list[bool]) -> None:
        self.world.accept(flaws)
        self.world.loop.turn(2)

    @precondition(lambda self: len(self.subs) < 6)
    @rule(kind=kinds, slow=delays, stalled=st.booleans())
    def join(self, kind: type[Sub], slow: int, stalled: bool) -> None:
        self.new(kind, slow, stalled, None)

    @precondition(lambda self: len(self.subs) < 6)
    @rule(
        kind=kinds,
        slow=delays,
        stalled=st.booleans(),
        back=distances,
        fault=st.sampled_from([None, None, *FAULTS]),
    )
    def resume(
        self, kind: type[Sub], slow: int, stalled: bool, back: int, fault: Fault | None
    ) -> None:
        self.new(kind, slow, stalled, self.cursor(back))
        self.subs[-1].fault = fault

    @precondition(some)
    @rule(index=indices, back=distances, resumed=st.booleans())
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
    @rule(index=indices)
    def leave(self, index: int) -> None:
        with self.world.loop.inside():
            self.world.leave(self.pick(index))
            self.world.leave(self.pick(index))  # a stranger: nothing happens

    @precondition(some)
    @rule(index=indices)
    def stall(self, index: int) -> None:
        self.pick(index).stall()

    @precondition(some)
    @rule(index=indices)
    def go_on(self, index: int) -> None:
        self.pick(index).go_on()

    @precondition(some)
    @rule(index=indices, fault=st.sampled_from(FAULTS))
    def break_down(self, index: int, fault: Fault) -> None:
        self.pick(index).fault = fault

    @precondition(some)
    @rule(index=indices)
    def cancel(self, index: int) -> None:
        sub = self.pick(index)
        if sub.task is not None and sub.part.live:
            sub.part.failing = sub.part.cancelled = True
            sub.task.cancel()

    @rule(turns=st.integers(1, 6))
    def turn(self, turns: int) -> None:
        self.world.loop.turn(turns)

    @rule(pauses=pauses)
    def work_takes(self, pauses: list[bool]) -> None:
        self.world.clock.pause(pauses)

    @rule(seconds=st.sampled_from([1.0, BLOCK_TIMEOUT - 1, BLOCK_TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.world.let_all_get_ahead()
        self.world.loop.now += seconds
        self.world.loop.turn(2)

    # ---- what always holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        world = self.world
        world.settle()
        for probe in [probe for probe in world.probes if not probe.part.live]:
            world.dismiss(probe)
            world.probes.remove(probe)
        assert not world.complaints, world.complaints
        assert [part for part in world.parts if part.live and part.doomed] == []
        assert set(world.encoded.values()) <= {1}, "P5"
        for part in world.parts:
            check_story(world, part, complete=False)

    @invariant()
    def the_books_are_right(self) -> None:
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

    def end(self) -> None:
        world = self.world
        for sub in self.subs:
            sub.fault = None
        self.everything_is_handed_on()
        for sub in self.live:
            if not sub.stalled:  # P3, however many others are
                check_story(world, sub.part, complete=True)
        for sub in self.subs:
            sub.go_on()
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
        late = [line for line in world.lines if line.endswith("failed after it had left")]
        failed = Counter(line for line in world.lines if line not in (*lines, *late))
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
