"""One timer per loop and interval, on a loop whose clock the test turns."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from support import eventually
from tornadose.handlers.heartbeat import TICKS, Heartbeat, heartbeat_of


class Beating:
    def __init__(self) -> None:
        self.beats: list[float] = []

    def beat(self) -> None:
        self.beats.append(time.monotonic())


async def test_each_beats_once_per_interval_and_first_after_one() -> None:
    heart, one, two = Heartbeat(0.05), Beating(), Beating()
    began = time.monotonic()
    heart.add(one.beat)
    heart.add(two.beat)
    await eventually(lambda: len(one.beats) == len(two.beats) == 4)
    heart.remove(one.beat)
    heart.remove(two.beat)
    for beats in (one.beats, two.beats):
        assert beats[0] - began >= 0.049
        assert all(b - a >= 0.049 for a, b in pairwise(beats))


async def test_many_that_began_together_are_spread_over_the_interval() -> None:
    class Counting(Heartbeat):
        ticks = 0

        def _tick(self) -> None:
            self.ticks += 1
            super()._tick()

    def beat_of(own: list[int]) -> Callable[[], None]:
        return lambda: own.append(heart.ticks)

    heart, many = Counting(0.32), 10 * TICKS
    beaten = [list[int]() for _ in range(many)]
    beats = [beat_of(own) for own in beaten]
    for beat in beats:
        heart.add(beat)
    await eventually(lambda: all(len(own) >= 2 for own in beaten))
    for beat in beats:
        heart.remove(beat)
    assert max(Counter(own[1] for own in beaten).values()) <= many / 16
    assert len({own[1] for own in beaten}) >= TICKS / 2


async def test_without_members_there_is_no_timer() -> None:
    heart, one = Heartbeat(60), Beating()
    heart.add(one.beat)
    assert vars(heart)["_timer"] is not None
    heart.remove(one.beat)
    heart.remove(one.beat)
    assert vars(heart)["_timer"] is None


async def test_a_beat_may_remove_itself_and_others() -> None:
    heart, calls = Heartbeat(0.01), list[str]()

    def first() -> None:
        calls.append("first")
        heart.remove(first)
        heart.remove(second)

    def second() -> None:
        calls.append("second")

    def third() -> None:
        calls.append("third")
        heart.remove(third)

    heart.add(first)
    heart.add(second)
    heart.add(third)
    await eventually(lambda: "third" in calls)
    assert calls == ["first", "third"]


def test_a_loop_has_one_heartbeat_per_interval_and_takes_it_along() -> None:
    async def ask() -> tuple[int, int, int]:
        return id(heartbeat_of(1.0)), id(heartbeat_of(1.0)), id(heartbeat_of(2.0))

    one, again, other = asyncio.run(ask())
    assert one == again != other
