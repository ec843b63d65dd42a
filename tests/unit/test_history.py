from __future__ import annotations

from copy import deepcopy

import pytest

from tornadose import GapReason
from tornadose.history import History
from tornadose.messages import BATCH


def filled(size: int, count: int) -> History[int]:
    history = History[int](size)
    for number in range(1, count + 1):
        history.append(number, None)
    return history


async def read_all(history: History[int], cursor: str) -> tuple[list[int], list[GapReason]]:
    replay = history.replay(cursor)
    data: list[int] = []
    holes: list[GapReason] = []
    while True:
        page = await replay.read()
        data.extend(message.data for message in page.messages)
        if page.hole is not None:
            holes.append(page.hole)
        elif not page.messages:
            assert page.position == history.last
            return data, holes


def test_messages_are_numbered_from_one_and_keep_their_event() -> None:
    history = History[str](3)
    first, second = history.append("a", None), history.append("b", "tick")
    assert (first.id, second.id) == (f"{history.epoch}-1", f"{history.epoch}-2")
    assert (first.event, second.event) == (None, "tick")


def test_two_histories_have_no_id_in_common() -> None:
    assert len({History[int](1).append(1, None).id for _ in range(1000)}) == 1000


async def test_p8_processes_that_inherit_a_history_by_a_fork_take_ids_of_their_own() -> None:
    built = History[int](10)
    here, there = deepcopy(built), deepcopy(built)
    cursor = here.append(1, None).id
    there.append(2, None)
    assert await read_all(there, cursor or "") == ([], ["restarted"])


@pytest.mark.parametrize(("size", "count"), [(5, 3), (5, 5), (5, 12), (1, 4), (300, 1000)])
async def test_p8_a_replay_is_what_came_after_an_id_or_a_gap(size: int, count: int) -> None:
    history = filled(size, count)
    for position in range(1, count + 1):
        data, holes = await read_all(history, f"{history.epoch}-{position}")
        if position >= count - size:
            assert (data, holes) == (list(range(position + 1, count + 1)), [])
        else:
            assert (data, holes) == (list(range(count - size + 1, count + 1)), ["expired"])


async def test_a_history_of_none_keeps_none() -> None:
    history = filled(0, 3)
    assert await read_all(history, f"{history.epoch}-3") == ([], [])
    assert await read_all(history, f"{history.epoch}-2") == ([], ["expired"])


@pytest.mark.parametrize(
    "cursor",
    ["x", "-", "1", "{epoch}", "{epoch}-", "{epoch}-0", "{epoch}-01", "{epoch}-4", "{epoch}-+1",
     "{epoch}--1", "{epoch}-1 ", " {epoch}-1", "{epoch}-1\n", "{epoch}-\u0661",
     "{epoch}-" + "9" * 5000],
)  # fmt: skip
async def test_an_id_that_was_never_given_out_is_unknown(cursor: str) -> None:
    history = filled(5, 3)
    assert await read_all(history, cursor.format(epoch=history.epoch)) == ([], ["unknown"])


async def test_an_id_of_another_history_is_from_before_a_restart() -> None:
    history, earlier = filled(5, 3), filled(5, 3)
    assert await read_all(history, f"{earlier.epoch}-2") == ([], ["restarted"])


async def test_p8_what_is_evicted_during_a_replay_is_a_gap_where_it_was() -> None:
    history = filled(2 * BATCH, 2 * BATCH)
    replay = history.replay(f"{history.epoch}-1")
    first = await replay.read()
    assert [message.data for message in first.messages] == list(range(2, BATCH + 2))
    for number in range(BATCH + 10):
        history.append(2 * BATCH + 1 + number, None)
    second = await replay.read()
    assert second.hole == "expired"
    assert second.messages[0].data == history.first == BATCH + 11
    assert (await replay.read()).hole is None
