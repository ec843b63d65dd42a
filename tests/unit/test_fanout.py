"""Lanes and policies, one situation each; tests/property/ mixes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import suppress
from itertools import count, groupby, pairwise
from typing import Any, get_args
from weakref import WeakSet

import pytest

from conftest import Logged
from support import EAGER, Direct, Plain, Told, balanced, eventually, starting_tasks_by
from tornadose import Batch, Gap, Message, PoisonedError, Policy, Released, Subscriber
from tornadose.fanout import FanOut
from tornadose.history import Page
from tornadose.lanes import Lane
from tornadose.limits import Limits
from tornadose.tasks import Work


def fan_out(
    backlog: int = 3, policy: Policy = "disconnect", block_timeout: float = 5.0
) -> FanOut[int]:
    return FanOut(Limits(backlog, policy, block_timeout))


def admit(fanout: FanOut[int], subscriber: Subscriber[int]) -> Lane[int]:
    lane = fanout.admit(subscriber)
    assert lane is not None
    return lane


def batch(*data: int) -> Batch[int]:
    return Batch([Message(number, f"i-{number}") for number in data])


def resting_pumps(fanout: FanOut[int]) -> int:
    return len(fanout.pumping._resting)  # pyright: ignore[reportPrivateUsage]


async def settled(fanout: FanOut[int]) -> None:
    await eventually(lambda: fanout.statistics().pending == 0)
    await asyncio.sleep(0)
    assert balanced(fanout.statistics())


async def test_a_batch_is_handed_over_at_once_while_the_subscriber_keeps_up() -> None:
    fanout, subscriber = fan_out(), Direct[int]()
    lane = admit(fanout, subscriber)
    sent = batch(1, 2)
    await fanout.broadcast(sent)
    assert [given is sent for given in subscriber.batches] == [True]
    assert fanout.statistics().max_backlog == 0
    await fanout.deliver(subscriber, *batch(3))
    assert subscriber.got == [1, 2, 3]
    assert lane._backlog is None  # pyright: ignore[reportPrivateUsage]  # which costs 3 KiB


async def test_p1_what_waits_comes_before_what_is_new() -> None:
    fanout, subscriber = fan_out(backlog=10), Direct[int]()
    admit(fanout, subscriber)
    subscriber.running.clear()
    await fanout.broadcast(batch(1, 2, 3))
    await fanout.broadcast(batch(4))
    subscriber.running.set()
    await fanout.broadcast(batch(5))
    await settled(fanout)
    assert subscriber.got == [1, 2, 3, 4, 5]


async def test_p2_what_was_accepted_before_registering_is_not_delivered() -> None:
    fanout, early, late = fan_out(), Direct[int](), Direct[int]()
    admit(fanout, early)
    fanout.accepted = 2  # as a store does that has an inbox
    admit(fanout, late)
    await fanout.broadcast(batch(1, 2))
    assert late.batches == []
    await fanout.broadcast(batch(3, 4))
    fanout.accepted = 5
    later = Direct[int]()
    admit(fanout, later)
    await fanout.broadcast(batch(5, 6))
    assert (early.got, late.got, later.got) == ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6], [6])


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._watching.cancel()


def always(work: Work) -> bool:
    return True


async def test_p10_a_gap_reaches_everybody_also_when_announcing_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fanout, told = fan_out(), [Told[int]() for _ in range(5)]
    for subscriber in told:
        admit(fanout, subscriber)
    monkeypatch.setattr(Work, "is_over", always)
    announcing = asyncio.create_task(fanout.announce("outage"))
    await asyncio.sleep(0)
    announcing.cancel()
    await asyncio.wait({announcing})
    monkeypatch.undo()
    await settled(fanout)
    assert announcing.cancelled()
    assert [subscriber.events for subscriber in told] == [[Gap("outage")]] * 5


async def test_p10_a_gap_reaches_everybody_also_when_cancelled_before_its_turn() -> None:
    fanout, told, slow = fan_out(policy="block", backlog=1), Told[int](), Told[int]()
    slow.running.clear()
    admit(fanout, told)
    admit(fanout, slow)
    for message in batch(1, 2):
        await fanout.deliver(slow, message)
    holding = asyncio.create_task(fanout.deliver(slow, *batch(3)))
    await asyncio.sleep(0)
    announcing = asyncio.create_task(fanout.announce("outage"))
    await asyncio.sleep(0)
    announcing.cancel()
    await asyncio.wait({announcing})
    slow.running.set()
    await holding
    await settled(fanout)
    assert told.events == [Gap("outage")]
    assert slow.events == [1, 2, Gap("outage", "i-2"), 3]


class Echo(Told[int]):
    """One that queues two more for itself with the first that it gets."""

    fanout: FanOut[int]

    async def publish(self, message: Message[int], /) -> None:
        await super().publish(message)
        if message.data == 1:
            for echo in batch(10, 11):
                assert await self.fanout.deliver(self, echo)


async def test_p2_what_a_subscriber_queues_for_itself_beyond_its_backlog_is_a_gap() -> None:
    fanout, echo = fan_out(policy="block", backlog=1), Echo()
    echo.fanout = fanout
    admit(fanout, echo)
    await fanout.broadcast(batch(1))
    await settled(fanout)
    assert echo.events == [1, 10, Gap("overflow", "i-10")]
    assert fanout.statistics().dropped == 1


class Late(Direct[int]):
    """A subscriber that is registered before it can take anything."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted = asyncio.Event()

    def acceptance(self) -> asyncio.Event | None:
        return None if self.accepted.is_set() else self.accepted


async def test_p1_p2_who_is_registered_early_gets_everything_once_it_accepts() -> None:
    fanout, late, gone, punctual = fan_out(), Late(), Late(), Late()
    punctual.accepted.set()
    for subscriber in late, gone, punctual:
        admit(fanout, subscriber)
    await fanout.broadcast(batch(1, 2))
    await eventually(lambda: punctual.got == [1, 2])
    assert late.got == []
    late.accepted.set()
    fanout.dismiss(gone)
    await settled(fanout)
    await fanout.broadcast(batch(3))
    assert (late.got, gone.got) == ([1, 2, 3], [])


@pytest.mark.parametrize("factory", EAGER)
async def test_p2_nothing_is_lost_where_tasks_start_eagerly(factory: Any) -> None:
    fanout, plain, told = fan_out(), Plain[int](), Told[int]()
    admit(fanout, plain)
    admit(fanout, told)
    with starting_tasks_by(factory):
        for number in range(10):
            await fanout.broadcast(batch(number))
            await settled(fanout)
        await fanout.finish()
    assert plain.got == list(range(10))
    assert told.events == [*range(10), "closed"]


class Stubborn:
    """A replay that swallows its cancellation, as `asyncio.wait_for` may in Python 3.11."""

    async def read(self) -> Page[int]:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Page([], (), None, 0, met=True)


async def test_p3_what_is_for_one_alone_does_not_wait_for_what_is_for_another() -> None:
    fanout, told = fan_out(), [Told[int]() for _ in range(20)]
    for subscriber in told:
        admit(fanout, subscriber)
    fanout.accepted = 1
    delivering = [asyncio.create_task(fanout.deliver(one, Message(7))) for one in told]
    await asyncio.sleep(0)
    await fanout.broadcast(batch(1))
    fanout.accepted = 2  # which they are in front of
    await asyncio.wait_for(asyncio.gather(*delivering), 1)
    await eventually(lambda: all(one.got == [1, 7] for one in told))


async def test_p1_who_delivers_to_itself_does_so_behind_what_it_has_submitted() -> None:
    class Echoing(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            if message.data == 1:
                fanout.accepted = 2
                handing_on.append(asyncio.create_task(fanout.broadcast(batch(2))))
                await fanout.deliver(self, Message(7))

    handing_on: list[asyncio.Task[None]] = []
    fanout, echoing = fan_out(), Echoing()
    admit(fanout, echoing)
    await fanout.broadcast(batch(1))
    await eventually(lambda: echoing.got == [1, 2, 7])


class Fruitless:
    """A replay that takes long to find nothing."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self) -> Page[int]:
        self.reads += 1
        time.sleep(0.002)  # noqa: ASYNC251 (it computes, as it were)
        return Page([], (), None, 0, met=self.reads == 50)


async def test_p3_reading_history_leaves_the_loop_its_turns() -> None:
    fanout, replay = fan_out(), Fruitless()
    admit(fanout, Direct[int]()).replay(replay)
    while replay.reads < 50:
        before = replay.reads
        await asyncio.sleep(0)
        assert replay.reads - before <= 7  # in 10 ms, and the one begun then


@pytest.mark.parametrize("reading", [False, True])
async def test_p2_no_delivery_begins_after_deregistering_in_a_pause(reading: bool) -> None:
    fanout = fan_out()
    leaver = Direct[int]()

    class Slow(Direct[int]):
        def publish_nowait(self, batch: Batch[int], /) -> bool:
            time.sleep(0.02)
            asyncio.get_running_loop().call_soon(fanout.dismiss, leaver)
            return super().publish_nowait(batch)

    for _ in range(3):
        admit(fanout, Slow())
    lane = admit(fanout, leaver)
    if reading:
        lane.replay(Stubborn())
        await asyncio.sleep(0)
    await fanout.broadcast(batch(1))
    assert leaver.got == []
    assert fanout.statistics().offered == 3


async def test_p3_fan_out_yields_every_10_ms_and_keeps_the_order() -> None:
    fanout = fan_out(backlog=100)
    turns: list[float] = []

    class Slow(Direct[int]):
        def publish_nowait(self, batch: Batch[int], /) -> bool:
            time.sleep(0.002)
            return super().publish_nowait(batch)

    async def watch() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0)

    slow = [Slow() for _ in range(40)]
    for subscriber in slow:
        admit(fanout, subscriber)
    watcher = asyncio.create_task(watch())
    await asyncio.gather(fanout.broadcast(batch(1)), fanout.broadcast(batch(2)))
    watcher.cancel()
    assert all(subscriber.got == [1, 2] for subscriber in slow)
    assert len(turns) >= 2 * 40 * 2 / (10 + 2 + 5)
    assert max(b - a for a, b in pairwise(turns)) < 0.08


async def test_p3_all_stores_of_a_loop_share_the_10_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turn, taken = count(1, 0.002), 0, Counter[int]()

    class Counted(Direct[int]):
        def publish_nowait(self, batch: Batch[int], /) -> bool:
            taken[turn] += 1
            return super().publish_nowait(batch)

    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanouts = [fan_out() for _ in range(20)]
    for fanout in fanouts:
        for _ in range(5):
            admit(fanout, Counted())
    publishing = asyncio.gather(*(fanout.broadcast(batch(1)) for fanout in fanouts))
    while not publishing.done():
        turn += 1
        await asyncio.sleep(0)
    assert taken.total() == 100
    assert max(taken.values()) < 10  # 7 ms have room for 4


async def test_p3_the_pumps_of_all_stores_of_a_loop_share_their_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, turn, taken = count(1, 0.002), 0, Counter[int]()

    class Counted(Plain[int]):
        async def publish(self, message: Message[int], /) -> None:
            taken[turn] += 1

    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanouts = [fan_out() for _ in range(20)]
    for fanout in fanouts:
        admit(fanout, Counted())
    publishing = asyncio.gather(*(fanout.broadcast(batch(1, 2, 3)) for fanout in fanouts))
    while taken.total() < 60:
        turn += 1
        await asyncio.sleep(0)
    await publishing
    assert max(taken.values()) < 5  # 3 ms have room for 2


async def test_p3_publishing_to_nobody_leaves_the_loop_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout, turns = count(1, 0.002), fan_out(), 0
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))

    async def publish() -> None:
        for number in range(100):
            await fanout.broadcast(batch(number))

    publishing = asyncio.create_task(publish())
    while not publishing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20  # 7 ms have room for 4


async def test_p3_starting_many_pumps_leaves_the_loop_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout, pumps = count(1, 0.0), fan_out(), [0]
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    many = [Plain[int]() for _ in range(2000)]
    for subscriber in many:
        admit(fanout, subscriber)
    publishing = asyncio.create_task(fanout.broadcast(batch(1)))
    while not publishing.done():
        await asyncio.sleep(0)
        pumps.append(fanout.statistics().offered)
    assert max(b - a for a, b in pairwise(pumps)) < 500
    await settled(fanout)
    assert all(subscriber.got == [1] for subscriber in many)


@pytest.mark.parametrize("subscribers", [1, 20])
async def test_p3_who_computes_in_its_publish_delays_nobody(
    subscribers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, turns = count(1, 0.0001), 0
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))

    class Computing(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            for _ in range(100):  # 10 ms
                next(clock)

    async def publish() -> None:
        for first in range(0, 400, 8):
            await fanout.broadcast(batch(*range(first, first + 8)))

    fanout, direct = fan_out(16, "drop_oldest"), Direct[int]()
    computing = [Computing() for _ in range(subscribers)]
    for subscriber in (*computing, direct):
        admit(fanout, subscriber)
    publishing = asyncio.create_task(publish())
    while not publishing.done():
        turns += 1
        await asyncio.sleep(0)
    assert direct.got == [*range(400)]
    assert turns < 200
    await settled(fanout)
    assert all(any(isinstance(e, Gap) for e in subscriber.events) for subscriber in computing)


async def test_p3_whose_pump_rests_for_long_is_not_overrun_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout, subscriber = count(1, 1.0), fan_out(backlog=80), Plain[int]()
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    admit(fanout, subscriber)
    await fanout.broadcast(batch(0))
    await settled(fanout)
    resting = [asyncio.create_task(fanout.pumping.rest()) for _ in range(50)]
    await asyncio.sleep(0)
    await fanout.broadcast(batch(*range(1, 41)))  # one of which the pump has in hand
    await fanout.broadcast(batch(41))
    assert subscriber.got == [0]  # it began behind them
    assert not resting[10].done()  # and the backlog is but half full
    await fanout.broadcast(batch(42))
    assert resting[-1].done()
    for number in range(43, 201, 2):
        await fanout.broadcast(batch(number, number + 1))
    await settled(fanout)
    assert subscriber.got == [*range(201)]


async def test_p3_who_waits_for_its_own_client_lets_nobody_wait_for_the_pumps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, turns = count(1, 0.002), 0
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanout, stalled, direct = fan_out(policy="drop_oldest"), Told[int](), Direct[int]()
    stalled.running.clear()
    admit(fanout, stalled)
    admit(fanout, direct)
    before = asyncio.create_task(fanout.pumping.rest())
    await asyncio.sleep(0)
    await fanout.broadcast(batch(1, 2, 3))  # whose pump rests once, and then waits
    await before
    await eventually(lambda: fanout.statistics().pending == 3 and not resting_pumps(fanout))
    resting = [asyncio.create_task(fanout.pumping.rest()) for _ in range(200)]
    await asyncio.sleep(0)
    publishing = asyncio.create_task(fanout.broadcast(batch(4, 5, 6)))
    while not publishing.done():
        turns += 1
        await asyncio.sleep(0)
    assert direct.got == [1, 2, 3, 4, 5, 6]
    assert turns < 20
    assert not all(task.done() for task in resting)
    await asyncio.gather(*resting)
    stalled.running.set()
    await settled(fanout)


async def test_p3_pumps_let_each_other_go_first_however_much_they_have_to_deliver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: 1.0)  # there is always time
    fanout, story = fan_out(backlog=1000), list[int]()

    class Teller(Plain[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            story.append(who[self])

    who = {Teller(): number for number in range(3)}
    for subscriber in who:
        subscriber.running.clear()
        admit(fanout, subscriber)
    await fanout.broadcast(batch(*range(500)))
    resting = asyncio.create_task(fanout.pumping.rest())
    await asyncio.sleep(0)
    for subscriber in who:
        subscriber.running.set()
    await settled(fanout)
    await resting
    longest = max(len([*run]) for _, run in groupby(story))
    assert longest < 200
    assert Counter(story) == {0: 500, 1: 500, 2: 500}


async def test_p3_busy_stores_do_not_make_each_other_rest_for_every_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, turns, fanouts = count(1, 0.0001), 0, [fan_out() for _ in range(3)]
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))

    async def publish(fanout: FanOut[int]) -> None:
        admit(fanout, Direct[int]())
        for number in range(1000):
            await fanout.broadcast(batch(number))

    publishing = asyncio.gather(*map(publish, fanouts))
    while not publishing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns < 1000


async def test_p3_letting_go_of_many_yields_every_10_ms() -> None:
    hooks = Counter[int]()

    class Slow(Direct[int]):
        def released(self, reason: Released, /) -> None:
            time.sleep(0.002)
            hooks[turns.count] += 1

        def leaving(self) -> bool:
            return True

    fanout, turns = fan_out(), Turns()
    for _ in range(30):
        admit(fanout, Slow())
    finishing = asyncio.create_task(fanout.finish())
    await eventually(lambda: hooks.total() == 30)
    finishing.cancel()
    await fanout.abort()
    for _ in range(30):
        admit(fanout, Slow())
    await fanout.release_all("failed")
    turns.stop()
    assert hooks.total() == 90
    assert max(hooks.values()) < 15  # 10 ms have room for 5


async def test_p7_letting_go_of_many_lets_go_of_all_also_when_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = count(0, 0.002)
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanout, many = fan_out(), [Told[int]() for _ in range(30)]
    for subscriber in many:
        admit(fanout, subscriber)
    aborting = asyncio.create_task(fanout.abort())
    await asyncio.sleep(0)
    assert 0 < len(fanout.subscribers) < 30
    aborting.cancel()
    await asyncio.wait({aborting})
    assert aborting.cancelled()
    assert [subscriber.events for subscriber in many] == [["timeout"]] * 30


async def test_p2_a_broadcast_that_is_cancelled_in_a_pause_goes_on_without_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = count(1, 0.002)
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanout, many = fan_out(), [Direct[int]() for _ in range(100)]
    for subscriber in many:
        admit(fanout, subscriber)
    publishing = asyncio.create_task(fanout.broadcast(batch(1)))
    await asyncio.sleep(0)
    assert 0 < sum(len(subscriber.got) for subscriber in many) < 20
    publishing.cancel()
    await asyncio.sleep(0)
    assert publishing.done()
    assert all(subscriber.got == [1] for subscriber in many)


async def test_p3_filling_many_backlogs_yields_every_10_ms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, puts = count(0, 0.002), Counter[int]()
    fill = Lane[int].put

    async def put(lane: Lane[int], message: Message[int], deadline: float) -> None:
        await fill(lane, message, deadline)
        puts[turns.count] += 1

    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    monkeypatch.setattr(Lane, "put", put)
    fanout, many = fan_out(policy="block"), [Plain[int]() for _ in range(40)]
    for subscriber in many:
        subscriber.running.clear()
        admit(fanout, subscriber)
    await fanout.broadcast(batch(1))
    await fanout.broadcast(batch(2, 3, 4))
    publishing = asyncio.create_task(fanout.broadcast(batch(5, 6, 7)))
    turns = Turns()
    await asyncio.sleep(0)
    for subscriber in many:
        subscriber.running.set()
    await publishing
    turns.stop()
    assert puts.total() > 60
    assert max(puts.values()) < 15  # 10 ms have room for 5
    await settled(fanout)
    assert all(subscriber.got == [1, 2, 3, 4, 5, 6, 7] for subscriber in many)


@pytest.mark.parametrize("policy", get_args(Policy))
async def test_p3_a_stalled_subscriber_delays_nobody(policy: Policy, logged: Logged) -> None:
    fanout = fan_out(policy=policy, block_timeout=0.05)
    stalled, other = Told[int](), Direct[int]()
    stalled.running.clear()
    admit(fanout, stalled)
    admit(fanout, other)
    for number in range(10):
        await fanout.broadcast(batch(number))
        await asyncio.sleep(0)
    assert other.got == list(range(10))
    stalled.running.set()
    await settled(fanout)
    expected: dict[Policy, list[object]] = {
        "block": ["timeout"],
        "disconnect": ["overflow"],
        "drop_oldest": [0, Gap("overflow", "i-0"), 7, 8, 9],
        "drop_newest": [0, 1, 2, 3, Gap("overflow", "i-3")],
    }
    assert stalled.events == expected[policy]


async def test_block_waits_for_room_and_loses_nothing() -> None:
    fanout, subscriber = fan_out(policy="block"), Plain[int]()
    admit(fanout, subscriber)
    subscriber.running.clear()
    publishing = asyncio.create_task(fanout.broadcast(batch(*range(20))))
    await eventually(lambda: fanout.statistics().max_backlog == 3)
    assert not publishing.done()
    subscriber.running.set()
    await publishing
    await settled(fanout)
    assert subscriber.got == list(range(20))


async def test_p2_under_block_a_cancelled_broadcast_is_a_gap_where_it_stood() -> None:
    fanout, subscriber = fan_out(backlog=1, policy="block"), Told[int]()
    admit(fanout, subscriber)
    subscriber.running.clear()
    await fanout.broadcast(batch(1))
    await fanout.broadcast(batch(2))
    cancelled = asyncio.create_task(fanout.broadcast(batch(3)))
    await eventually(lambda: fanout.statistics().pending == 3)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    publishing = asyncio.create_task(fanout.broadcast(batch(4)))
    await eventually(lambda: fanout.statistics().pending == 3)
    subscriber.running.set()
    await publishing
    await settled(fanout)
    assert subscriber.events == [1, 2, Gap("overflow", "i-2"), 4]
    assert fanout.statistics().dropped == 1


async def test_p3_who_is_slow_to_hear_of_a_gap_gets_messages_all_the_same() -> None:
    class Slow(Told[int]):
        async def publish_gap(self, gap: Gap, /) -> None:
            await super().publish_gap(gap)
            await fanout.broadcast(batch(5, 6))  # for which there is no room

    fanout, slow = fan_out(backlog=2, policy="drop_oldest"), Slow()
    slow.running.clear()
    admit(fanout, slow)
    await fanout.broadcast(batch(1, 2))
    await asyncio.sleep(0)
    await fanout.broadcast(batch(3, 4))
    slow.running.set()
    await eventually(lambda: len(slow.events) > 20)
    assert len(slow.got) > 5
    fanout.dismiss(slow)


async def test_p3_who_was_held_up_once_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout = count(1, 1.0), fan_out(8, "drop_oldest")
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    held_up = Told[int]()
    held_up.running.clear()
    admit(fanout, held_up)
    for number in range(20):
        await fanout.broadcast(batch(number))
    resting = [asyncio.create_task(fanout.pumping.rest()) for _ in range(50)]
    await asyncio.sleep(0)
    held_up.running.set()
    dropped = fanout.statistics().dropped
    for number in range(20, 60):
        await fanout.broadcast(batch(number))
    await settled(fanout)
    assert 0 < dropped <= fanout.statistics().dropped < dropped + 10
    await asyncio.gather(*resting)


async def test_p3_who_has_caught_up_after_an_overflow_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout = count(1, 1.0), fan_out(8, "drop_oldest")
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    admit(fanout, told := Told[int]())
    dropped: list[int] = []
    for overflows in (True, False):
        resting = [asyncio.create_task(fanout.pumping.rest()) for _ in range(50)]
        await asyncio.sleep(0)
        for number in range(0, 40, 2):
            await fanout.broadcast(batch(number, number + 1))
            if overflows:
                await fanout.broadcast(batch(*range(8)))  # more than there is room for
        await settled(fanout)
        await asyncio.gather(*resting)
        dropped.append(fanout.statistics().dropped)
    assert 0 < dropped[0] == dropped[1]
    assert told.events[-40:] == [*range(40)]


@pytest.mark.parametrize("backlog", [2, 7, 33, 64])
async def test_p3_who_is_held_up_for_a_moment_has_room_for_the_next_batch(
    backlog: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, size = 1.0, min(backlog, 32)

    class HeldUp(Told[int]):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        async def publish(self, message: Message[int], /) -> None:
            nonlocal now
            now += 0.004 if message.data == self.at else 0.0  # more than the pumps have of a turn
            await super().publish(message)

    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: now)
    for at in range(2 * size, 4 * size):
        fanout, subscriber = fan_out(backlog), HeldUp(at)
        admit(fanout, subscriber)
        for start in range(0, 8 * size, size):
            await fanout.broadcast(batch(*range(start, start + size)))
        await settled(fanout)
        assert subscriber.events == [*range(8 * size)]


@pytest.mark.parametrize("policy", get_args(Policy))
async def test_p3_delivering_many_to_one_gives_all_their_turns(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, taken = count(1, 0.002), Counter[int]()

    class Counted(Direct[int]):
        def publish_nowait(self, batch: Batch[int], /) -> bool:
            taken[turns.count] += 1
            return super().publish_nowait(batch)

    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    fanout, direct, plain = fan_out(4, policy), Counted(), Told[int]()
    admit(fanout, direct)
    admit(fanout, plain)
    turns = Turns()
    for message in batch(*range(100)):
        assert await fanout.deliver(direct, message)
    monkeypatch.undo()
    for message in batch(*range(100)):
        assert await fanout.deliver(plain, message)
    turns.stop()
    await settled(fanout)
    assert direct.got == plain.events == [*range(100)]
    assert max(taken.values()) < 6  # 7 ms have room for 4


@pytest.mark.parametrize("policy", get_args(Policy))
async def test_p3_what_waits_for_a_stalled_one_takes_no_turns_from_others(policy: Policy) -> None:
    fanout = fan_out(20, policy)

    admit(fanout, stalled := Plain[int]())
    admit(fanout, direct := Direct[int]())
    stalled.running.clear()
    delivering = [asyncio.create_task(fanout.deliver(stalled, m)) for m in batch(*range(18))]
    turns = Turns()
    await asyncio.sleep(0)
    for message in batch(*range(30)):
        assert await fanout.deliver(direct, message)
    await fanout.broadcast(batch(30))
    assert turns.count < 5
    assert direct.got == [*range(31)]
    turns.stop()
    stalled.running.set()
    await asyncio.gather(*delivering)
    await settled(fanout)
    assert sorted(stalled.got) == [*range(18), 30]


async def test_p2_what_is_on_its_way_to_one_alone_comes_before_the_goodbye() -> None:
    fanout, many = fan_out(), [Told[int]() for _ in range(50)]
    for subscriber in many:
        admit(fanout, subscriber)
    await fanout.broadcast(batch(1))
    (message,) = batch(2)
    alone = [asyncio.create_task(fanout.deliver(subscriber, message)) for subscriber in many]
    await asyncio.sleep(0)
    await fanout.finish()
    assert all([await delivered for delivered in alone])
    assert all(subscriber.events == [1, 2, "closed"] for subscriber in many)


async def test_p3_whose_pump_rests_for_long_is_not_overrun_by_who_delivers_to_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, fanout, subscriber = count(1, 1.0), fan_out(backlog=8), Plain[int]()
    monkeypatch.setattr("tornadose.tasks.monotonic", lambda: next(clock))
    admit(fanout, subscriber)
    resting = [asyncio.create_task(fanout.pumping.rest()) for _ in range(50)]
    await asyncio.sleep(0)
    for message in batch(*range(60)):
        assert await fanout.deliver(subscriber, message)
    await settled(fanout)
    assert subscriber.got == [*range(60)]
    await asyncio.gather(*resting)


async def test_p2_a_gap_before_a_dropped_message_keeps_its_reason() -> None:
    fanout, subscriber = fan_out(policy="drop_oldest"), Told[int]()
    lane = admit(fanout, subscriber)
    lane.announce("unknown")
    lane.announce("outage")  # in the same place
    lane.keep(batch(0, 1, 2, 3, 4))
    await settled(fanout)
    assert subscriber.events == [Gap("unknown"), 2, 3, 4]


async def test_p3_under_block_all_full_lanes_are_waited_for_together() -> None:
    fanout = fan_out(backlog=1, policy="block", block_timeout=0.2)
    stalled = [Told[int]() for _ in range(10)]
    for subscriber in stalled:
        subscriber.running.clear()
        admit(fanout, subscriber)
    await fanout.broadcast(batch(1))
    await asyncio.sleep(0)
    await fanout.broadcast(batch(2))
    began = time.monotonic()
    await fanout.broadcast(batch(3))
    assert 0.15 < time.monotonic() - began < 1
    assert all(subscriber.events == ["timeout"] for subscriber in stalled)


async def test_a_publisher_that_waits_for_room_goes_on_when_the_subscriber_leaves() -> None:
    fanout, subscriber = fan_out(backlog=1, policy="block", block_timeout=60), Plain[int]()
    admit(fanout, subscriber)
    subscriber.running.clear()
    publishing = asyncio.create_task(fanout.broadcast(batch(*range(9))))
    await eventually(lambda: fanout.statistics().max_backlog == 1)
    fanout.dismiss(subscriber)
    await asyncio.wait_for(publishing, 1)
    books = fanout.statistics()
    assert (books.offered, books.delivered, books.abandoned) == (9, 0, 9)


async def test_p2_losses_without_a_gap_hook_are_logged_once_per_episode(logged: Logged) -> None:
    fanout, subscriber = fan_out(policy="drop_newest"), Plain[int]()
    admit(fanout, subscriber)
    for _ in range(2):
        subscriber.running.clear()
        for number in range(10):
            await fanout.broadcast(batch(number))
            await asyncio.sleep(0)
        subscriber.running.set()
        await settled(fanout)
    logged.take("has missed messages after 'i-3': overflow", times=2)
    books = fanout.statistics()
    assert (books.gaps, books.dropped, books.delivered) == (2, 12, 8)


async def test_p3_a_subscriber_that_raises_is_released_and_logged_once(logged: Logged) -> None:
    fanout, failing, other = fan_out(), Told[int](), Direct[int]()
    failing.error = OSError("gone")
    failing.running.clear()
    admit(fanout, failing)
    admit(fanout, other)
    await fanout.broadcast(batch(1))
    await fanout.broadcast(batch(2))
    failing.running.set()
    await eventually(lambda: failing.events == ["failed"])
    assert other.got == [1, 2]
    assert fanout.subscribers == (other,)
    (record,) = logged.take("failed")
    assert record.exc_info is not None


async def test_p3_a_subscriber_that_raises_in_nowait_is_released(logged: Logged) -> None:
    class Failing(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            raise AssertionError

        def publish_nowait(self, batch: Batch[int], /) -> bool:
            raise OSError("gone")

    fanout, failing, other = fan_out(), Failing(), Direct[int]()
    admit(fanout, failing)
    admit(fanout, other)
    await fanout.broadcast(batch(1))
    assert (failing.events, other.got) == (["failed"], [1])
    logged.take("failed")


async def test_p3_a_publish_that_is_cancelled_from_within_is_a_failure(logged: Logged) -> None:
    fanout, failing = fan_out(), Told[int]()
    failing.error = asyncio.CancelledError()
    admit(fanout, failing)
    await fanout.broadcast(batch(1))
    await eventually(lambda: failing.events == ["failed"])
    logged.take("failed")
    assert balanced(fanout.statistics())


async def test_a_publish_that_returns_no_awaitable_is_a_failure(logged: Logged) -> None:
    class OldStyle(Told[int]):
        def publish(self, message: Message[int], /) -> None:  # type: ignore[override]
            self.got.append(message.data)

    fanout, failing = fan_out(), OldStyle()
    admit(fanout, failing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fanout.broadcast(batch(1))
    await eventually(lambda: failing.events == ["failed"])
    (record,) = logged.take("failed")
    assert record.exc_info is not None
    assert "publish returned None: it has to be `async def`" in str(record.exc_info[1])
    assert balanced(fanout.statistics())


async def test_p3_a_pump_cancelled_before_its_first_step_releases_its_subscriber() -> None:
    fanout, subscriber = fan_out(), Told[int]()
    admit(fanout, subscriber)
    others = asyncio.all_tasks()
    await fanout.deliver(subscriber, Message(1))
    (pump,) = asyncio.all_tasks() - others
    pump.cancel()
    await eventually(lambda: subscriber.events == ["failed"])
    assert fanout.subscribers == ()
    await settled(fanout)
    await asyncio.wait_for(fanout.finish(), 1)


@pytest.mark.parametrize(
    ("error", "level"), [(ZeroDivisionError(), logging.ERROR), (OSError("gone"), logging.DEBUG)]
)
async def test_what_publish_raises_after_leaving_is_an_error_but_a_closed_connection_is_none(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture, logged: Logged
) -> None:
    class Leaving(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            fanout.dismiss(self)
            raise error

    caplog.set_level(logging.DEBUG, "tornadose")
    fanout, leaving = fan_out(), Leaving()
    admit(fanout, leaving)
    await fanout.broadcast(batch(1))
    await settled(fanout)
    assert leaving.events == []
    records = [(r.levelno, r.exc_info and r.exc_info[1]) for r in caplog.records]
    assert records == [(level, error)]
    logged.take("failed after it had left", times=level == logging.ERROR)


async def test_a_release_hook_that_raises_is_logged(logged: Logged) -> None:
    class Rude(Told[int]):
        def released(self, reason: object, /) -> None:
            raise OSError("no goodbye")

    fanout, rude = fan_out(backlog=1), Rude()
    rude.running.clear()
    admit(fanout, rude)
    await fanout.broadcast(batch(1, 2))
    logged.take("released('overflow')")
    assert fanout.subscribers == ()


async def test_p3_a_leaving_hook_that_raises_is_logged_and_delays_nobody(logged: Logged) -> None:
    class Rude(Told[int]):
        def leaving(self) -> bool:
            raise OSError("not now")

    fanout, rude, other = fan_out(), Rude(), Told[int]()
    admit(fanout, rude)
    admit(fanout, other)
    await fanout.broadcast(batch(1))
    await asyncio.wait_for(fanout.finish(), 1)
    assert rude.events == other.events == [1, "closed"]
    logged.take("leaving() of")


async def test_a_release_without_a_hook_is_logged(logged: Logged) -> None:
    fanout, plain = fan_out(backlog=1), Plain[int]()
    admit(fanout, plain)
    await fanout.broadcast(batch(1, 2))
    logged.take("overflow")


async def test_p9_a_poisoned_message_is_a_gap_where_it_stood() -> None:
    class Picky(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            if message.data % 3 == 0:
                raise PoisonedError
            await super().publish(message)

    class PickyDirect(Picky):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)

        def publish_nowait(self, batch: Batch[int], /) -> bool:
            if any(message.data % 3 == 0 for message in batch):
                raise PoisonedError
            self.events.extend(message.data for message in batch)
            return True

    for subscriber in (Picky(), PickyDirect()):
        fanout = fan_out(backlog=10)
        admit(fanout, subscriber)
        await fanout.broadcast(batch(1, 2, 3, 4))
        await fanout.broadcast(batch(5, 6))
        await settled(fanout)
        assert subscriber.events == [1, 2, Gap("poisoned", "i-2"), 4, 5, Gap("poisoned", "i-5")]
        assert fanout.statistics().poisoned == 2


async def test_identity_counts_and_not_equality() -> None:
    class Equal(Direct[int]):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]  # unhashable, too

    fanout, one, two = fan_out(), Equal(), Equal()
    admit(fanout, one)
    admit(fanout, two)
    assert fanout.admit(one) is None
    await fanout.broadcast(batch(1))
    fanout.dismiss(one)
    fanout.dismiss(one)
    await fanout.broadcast(batch(2))
    assert (one.got, two.got) == ([1], [1, 2])


async def test_p7_leaving_in_the_middle_of_a_delivery_cancels_it() -> None:
    fanout, plain = fan_out(), Plain[int]()
    plain.running.clear()
    admit(fanout, plain)
    await fanout.broadcast(batch(1, 2))
    await asyncio.sleep(0)
    fanout.dismiss(plain)
    plain.running.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    books = fanout.statistics()
    assert (plain.got, books.abandoned, books.pending) == ([], 2, 0)
    assert len(asyncio.all_tasks()) <= 2  # this one and the test runner's


async def test_p4_what_waits_for_who_leaves_is_let_go_though_a_delivery_lingers() -> None:
    class Payload:
        pass

    class Lingering(Plain[Payload]):
        async def publish(self, message: Message[Payload], /) -> None:
            with suppress(asyncio.CancelledError):
                await super().publish(message)
            await self.running.wait()

    fanout, lingering = FanOut[Payload](Limits(backlog=3)), Lingering()
    lingering.running.clear()
    fanout.admit(lingering)
    alive = WeakSet[Payload]()
    for _ in range(4):
        message = Message(Payload())
        alive.add(message.data)
        await fanout.broadcast(Batch([message]))
        del message
    assert len(alive) == 4
    fanout.dismiss(lingering)
    await asyncio.sleep(0)
    kept = len(alive)
    lingering.running.set()
    assert kept == 1


async def test_a_subscriber_may_leave_from_within_its_publish() -> None:
    fanout = fan_out()

    class Once(Plain[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            fanout.dismiss(self)

    class OnceDirect(Direct[int]):
        def publish_nowait(self, batch: Batch[int], /) -> bool:
            fanout.dismiss(self)
            return super().publish_nowait(batch)

    once, direct = Once(), OnceDirect()
    admit(fanout, once)
    admit(fanout, direct)
    await fanout.broadcast(batch(1))
    await eventually(lambda: once.got == [1])
    await fanout.broadcast(batch(2))
    assert (once.got, direct.got) == ([1], [1])
    books = fanout.statistics()
    assert (books.offered, books.delivered, books.subscribers) == (2, 2, 0)


async def test_p2_under_steady_overload_the_loss_is_logged_once(logged: Logged) -> None:
    class Slow(Plain[int]):
        async def publish(self, message: Message[int], /) -> None:
            await asyncio.sleep(0.001)
            await super().publish(message)

    fanout, slow = fan_out(policy="drop_oldest"), Slow()
    admit(fanout, slow)
    for number in range(200):
        await fanout.broadcast(batch(number))
        await asyncio.sleep(0)
    await settled(fanout)
    assert fanout.statistics().dropped > 100
    logged.take("has missed messages")


async def test_rewinding_leaves_alone_what_was_accepted_since() -> None:
    fanout = fan_out()
    fanout.skip(5)
    before = admit(fanout, Direct[int]())
    fanout.accepted = 9
    since = admit(fanout, Direct[int]())
    fanout.rewind(3, end=5)
    assert (fanout.position, fanout.accepted, before.fence, since.fence) == (3, 9, 3, 9)
    fanout.rewind(2)
    assert (fanout.position, fanout.accepted, before.fence, since.fence) == (2, 2, 2, 2)
