from __future__ import annotations

from typing import Any

import pytest

from support import EAGER, starting_tasks_by
from tornadose.tasks import new_task


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
