from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from conftest import Logged
from support import EAGER, starting_tasks_by
from tornadose import tasks
from tornadose.tasks import cancel, new_task


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
