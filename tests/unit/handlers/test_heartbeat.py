"""One timer per loop and interval, on a loop whose clock the test turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from harness import HandLoop, hand_loop
from support import eventually
from tornadose.handlers.heartbeat import TICKS, Heartbeat, heartbeat_of


def turn_for(loop: HandLoop, seconds: float) -> None:
    """Let this time pass, in steps of a quarter of what lies between two ticks."""
    until = loop.now + seconds
    while loop.now < until:
        loop.now += 1 / (4 * TICKS)
        loop.turn(2)


def test_each_beats_once_per_interval_and_first_after_one() -> None:
    with hand_loop() as loop:
        heart, one, two = Heartbeat(1.0), list[float](), list[float]()

        def beat_one() -> None:
            one.append(loop.time())

        def beat_two() -> None:
            two.append(loop.time())

        with loop.inside():
            heart.add(beat_one)
            heart.add(beat_two)
        turn_for(loop, 4.5)
        heart.remove(beat_one)
        heart.remove(beat_two)
        turn_for(loop, 2.0)
    assert one == [1.0, 2.0, 3.0, 4.0]
    assert two == [time + 1 / TICKS for time in one]  # the next that the timer wakes


def test_many_that_began_together_are_spread_over_the_interval() -> None:
    def beat_of(own: list[float]) -> Callable[[], None]:
        return lambda: own.append(loop.time())

    with hand_loop() as loop:
        heart, beaten = Heartbeat(1.0), [list[float]() for _ in range(10 * TICKS)]
        beats = [beat_of(own) for own in beaten]
        with loop.inside():
            for beat in beats:
                heart.add(beat)
        turn_for(loop, 3.0)
        for beat in beats:
            heart.remove(beat)
    assert set(Counter(own[1] for own in beaten).values()) == {10}
    assert all(1.0 <= own[0] == own[1] - 1.0 for own in beaten)


def test_one_that_began_later_is_not_taken_along_by_many_before_it() -> None:
    with hand_loop() as loop:
        heart, late = Heartbeat(1.0), list[float]()
        many = [list[None]().clear for _ in range(TICKS)]
        with loop.inside():
            for beat in many:
                heart.add(beat)
        turn_for(loop, 0.75)

        def beat_late() -> None:
            late.append(loop.time())

        with loop.inside():
            heart.add(beat_late)
        turn_for(loop, 2.0)
        for beat in (*many, beat_late):
            heart.remove(beat)
    assert late == [1.75, 2.75]


async def test_without_members_there_is_no_timer() -> None:
    heart, beats = Heartbeat(60), list[None]()
    heart.add(beats.clear)
    assert vars(heart)["_timer"] is not None
    heart.remove(beats.clear)
    heart.remove(beats.clear)
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
