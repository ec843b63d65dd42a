"""What a broadcast does to others: cancelled, waiting for room, and taking its time."""

from __future__ import annotations

import asyncio
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import PROGRESS, Clock, HandLoop, hand_loop
from support import balanced
from tornadose import Batch, Gap, Message, Released, tasks
from tornadose.fanout import FanOut
from tornadose.limits import Limits

BLOCK_TIMEOUT = 5.0  # on the clock of the loop


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
    waits=st.booleans(),
)
def test_p2_a_broadcast_that_is_cancelled_leaves_no_loss_unsaid_and_nothing_pending(
    sizes: list[int],
    turns: list[int],
    stalled: list[bool],
    backlog: int,
    pauses: list[bool],
    waits: bool,
) -> None:
    fanout: FanOut[int] = FanOut(Limits(backlog, "block", BLOCK_TIMEOUT))
    numbers = count(1)
    with hand_loop() as loop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "monotonic", Clock(*pauses))

        def broadcast(size: int) -> asyncio.Task[None]:
            batch = Batch([Message(n) for n in islice(numbers, size)])
            return loop.create_task(fanout.broadcast(batch))

        takers = [admitted(loop, fanout, stops) for stops in stalled]
        for size, before in zip(sizes, turns, strict=False):
            task = broadcast(size)
            loop.turn(1 + before)
            task.cancel()
            loop.turn_until(task.done)
        if waits:  # for room, where there is none
            broadcast(1)
            loop.turn(PROGRESS)
        for taker in takers:
            taker.let.set()
        loop.turn_until(lambda: fanout.statistics().pending == 0)
        loop.turn(PROGRESS)
        end = broadcast(1)
        loop.turn_until(lambda: end.done() and fanout.statistics().pending == 0)
        loop.turn(PROGRESS)
        assert balanced(fanout.statistics())
        for taker in takers:
            accounts_for(taker.story, last=sum(sizes[: len(turns)]) + waits + 1)


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
    with hand_loop() as loop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "monotonic", Clock())
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
        patch.setattr(tasks, "monotonic", Clock(True))
        with loop.inside():
            for _ in range(8):
                assert fanout.admit(Lazy()) is not None
        both = [loop.create_task(fanout.broadcast(Batch([Message(1)]))), loop.create_task(other())]
        loop.turn_until(lambda: all(task.done() for task in both))
    assert seen.count("taken") == 8
    assert "taken " * 3 not in " ".join(seen) + " "
