from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from conftest import Logged
from support import EAGER, starting_tasks_by
from tornadose import tasks
from tornadose.tasks import Work, cancel, new_task, works


@pytest.mark.parametrize("factory", EAGER)
async def test_a_new_task_takes_its_first_step_later_whatever_the_task_factory_is(
    factory: Any,
) -> None:
    steps: list[str] = []

    async def work() -> str:
        steps.append("begun")
        return "done"

    with starting_tasks_by(factory):
        task = new_task(work())
    assert steps == []
    assert await task == "done"


async def test_a_task_that_goes_on_although_it_was_cancelled_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    monkeypatch.setattr(tasks, "CANCELLATION", 0.05)
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel(task)
    assert not task.done()
    logged.take("goes on although it was cancelled")
    over.set()
    await task


class Workers:
    """Many who do pieces of work that take as long as a look at the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.work = Work(share=0.005)
        self.done: list[int] = []  # by whom each piece was
        self.looks = Counter[int]()  # at the clock, in each turn of the loop
        self.wakes = Counter[int]()  # of those who rest
        self._clock = count(1, seconds)
        self._turn = 0
        monkeypatch.setattr(tasks, "monotonic", self._monotonic)
        wake = vars(Work)["_wake"]

        def counted(work: Work) -> None:
            self.wakes[self._turn] += 1
            wake(work)

        monkeypatch.setattr(Work, "_wake", counted)

    def _monotonic(self) -> float:
        self.looks[self._turn] += 1
        return next(self._clock)

    async def do(self, who: int, pieces: int) -> None:
        for _ in range(pieces):
            if self.work.enough():
                await self.work.rest()
            self.done.append(who)
            await asyncio.sleep(0)

    async def until(self, *workers: asyncio.Future[None]) -> None:
        while not all(worker.done() for worker in workers):
            self._turn += 1
            await asyncio.sleep(0)


async def test_p3_many_who_rest_take_turns_and_few_of_them_wake_in_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = Workers(monkeypatch, seconds=0.001)
    workers = [asyncio.create_task(many.do(who, pieces=3)) for who in range(300)]
    await many.until(*workers)
    assert max(many.looks.values()) < 100
    assert max(many.wakes.values()) <= 2
    assert len(many.looks) < 300  # several are done in each turn
    for part in (many.done[n : n + 300] for n in (0, 300, 600)):
        assert max(Counter(part).values()) <= 2  # nobody is far ahead, or far behind


async def test_p3_who_rests_goes_on_in_each_turn_however_long_its_pieces_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Workers(monkeypatch, seconds=1.0)
    workers = [asyncio.create_task(few.do(who, pieces=5)) for who in range(4)]
    await few.until(*workers)
    assert Counter(few.done) == dict.fromkeys(range(4), 5)
    assert len(few.looks) <= 2 * len(few.done)


async def test_p3_who_rests_goes_on_although_others_take_the_time_of_every_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Workers(monkeypatch, seconds=1.0).work

    async def greedy() -> None:
        while True:
            work.is_over()
            await asyncio.sleep(0)

    others = [asyncio.create_task(greedy()) for _ in range(3)]
    await asyncio.sleep(0)
    resting = asyncio.create_task(work.rest())
    for _ in range(20):
        await asyncio.sleep(0)
    assert resting.done()
    await cancel(*others)


async def test_p3_who_rests_ahead_goes_on_before_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, story = Workers(monkeypatch, seconds=1.0).work, list[str]()

    async def rest(who: str, ahead: bool) -> None:
        await work.rest(ahead)
        story.append(who)

    some = [("a", False), ("b", False), ("c", True), ("d", True), ("e", True)]
    await asyncio.gather(*(rest(*one) for one in some))
    assert story == ["e", "d", "c", "a", "b"]


async def test_p3_who_is_cancelled_while_it_rests_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = Workers(monkeypatch, seconds=1.0)
    workers = [asyncio.create_task(some.do(who, pieces=5)) for who in range(200)]
    await asyncio.sleep(0)
    for worker in workers[1:-1]:
        worker.cancel()
    await some.until(*workers)
    finished = [who for who, pieces in Counter(some.done).items() if pieces == 5]
    assert finished == [0, 199]
    assert len(some.looks) < 30


def test_a_loop_that_is_closed_while_many_rest_in_it_is_not_kept() -> None:
    async def rest() -> None:
        for _ in range(200):
            task = asyncio.create_task(works().pumping.rest())
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(rest())
    loop.close()
    kept = weakref.ref(loop)
    del loop
    asyncio.run(rest())
    gc.collect()
    assert kept() is None


async def test_a_loop_that_runs_keeps_its_share_when_others_come() -> None:
    async def other() -> object:
        return works()

    mine = works()
    assert await asyncio.to_thread(asyncio.run, other()) is not mine
    await asyncio.to_thread(asyncio.run, other())
    assert works() is mine
