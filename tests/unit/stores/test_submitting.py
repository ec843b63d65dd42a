"""Those who wait in `submit` are let go of, and told apart from those who are cancelled."""

from __future__ import annotations

import asyncio

import pytest

from tornadose import StoreClosedError
from tornadose.stores.submitting import Submitters


async def waiting(submitters: Submitters, depth: int = 1) -> None:
    """Wait for ever, entered so many times."""
    with submitters.joined():
        if depth > 1:
            await waiting(submitters, depth - 1)
        await asyncio.Event().wait()


@pytest.mark.parametrize("depth", [1, 3])
async def test_who_is_let_go_of_is_told_and_is_not_cancelled(depth: int) -> None:
    submitters = Submitters()
    tasks = [asyncio.create_task(waiting(submitters, depth)) for _ in range(3)]
    await asyncio.sleep(0)
    assert submitters
    submitters.let_go(but=tasks[:1])
    submitters.let_go(but=tasks[:1])  # again, which changes nothing
    await asyncio.wait(tasks[1:])
    assert [type(task.exception()) for task in tasks[1:]] == [StoreClosedError] * 2
    assert [task.cancelling() for task in tasks] == [0, 0, 0]
    assert not tasks[0].done()
    submitters.let_go()
    await asyncio.wait(tasks)
    assert isinstance(tasks[0].exception(), StoreClosedError)
    assert not submitters


async def test_who_is_cancelled_by_somebody_else_is_cancelled() -> None:
    submitters = Submitters()
    alone, both = (asyncio.create_task(waiting(submitters)) for _ in range(2))
    await asyncio.sleep(0)
    alone.cancel()
    both.cancel()
    submitters.let_go(but=[alone])
    await asyncio.wait({alone, both})
    assert alone.cancelled()
    assert both.cancelled()
    assert not submitters


async def test_who_lets_go_of_the_others_goes_on() -> None:
    submitters = Submitters()
    with submitters.joined():
        submitters.let_go()
        await asyncio.sleep(0)
    assert not submitters
