"""What this process can tell of what a stream has lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tornadose import GapReason
from tornadose.stores.redis.broker import Incoming
from tornadose.stores.redis.entries import Hole
from tornadose.stores.redis.losses import UNREAD, Loss, Losses
from tornadose.stores.redis.pages import StreamPage


def expecting(*positions: int) -> Losses:
    losses = Losses()
    for position in positions:
        losses.expect(position, b"0-%d" % position)
    return losses


def page(*positions: int, **more: Any) -> StreamPage[str]:
    cursors = [b"0-%d" % position for position in positions]
    incoming: list[Incoming[str]] = ["poisoned" for _ in positions]
    return StreamPage(incoming, cursors, positions[-1], **more)


def test_what_is_on_the_page_or_not_yet_due_is_not_missing() -> None:
    losses = expecting(2, 4, 9)
    assert not losses.find(page(1, 2, 3, 4, 5))
    assert losses.missing(page(3, 5), begin=2) == [4]
    assert losses.missing(page(5, 6), begin=4) == []


def test_what_is_expected_stands_in_order_and_once() -> None:
    assert expecting(4, 2, 4, 2).missing(page(5)) == [2, 4]


def test_what_is_missing_between_two_entries_is_one_loss() -> None:
    losses = expecting(2, 3, 5, 7, 8)
    found = [Loss(1, 3), Loss(6, 8)]
    assert losses.find(page(1, 5, 9)) == found
    assert losses.find(page(5, 9), begin=4) == found[1:]
    assert losses.unspoken(0, 100) == found  # each once
    assert losses.unspoken(3, 100) == found[1:]
    assert losses.unspoken(0, 6) == found[:1]


def test_what_was_deleted_has_expired() -> None:
    assert expecting(2, 6).find(page(1, 4, 9, deleted=3)) == [Loss(1, 2, "expired"), Loss(5, 6)]


@pytest.mark.parametrize(
    ("hole", "behind"),
    [
        (Hole("expired", 3), [Loss(5, 7), Loss(9, 10)]),
        (Hole("expired", 9), [Loss(5, 7), Loss(9, 10)]),
        (Hole("restarted", None), [Loss(5, 7), Loss(9, 10)]),
        (None, [Loss(1, 2), Loss(5, 7), Loss(9, 10)]),
    ],
)
def test_a_hole_speaks_for_what_is_missing_in_front_of_the_first_entry(
    hole: Hole | None, behind: list[Loss]
) -> None:
    losses, there = expecting(2, 6, 7, 10), page(4, 9, 12, hole=hole)
    assert [loss for loss in losses.find(there) if loss.until > there.covered()] == behind
    assert losses.unspoken(0, 100) == [Loss(1, 2), Loss(5, 7), Loss(9, 10)]


@pytest.mark.parametrize(
    ("reason", "covered"), [("expired", 2), ("restarted", 1)], ids=["expired", "restarted"]
)
def test_a_hole_of_what_was_deleted_speaks_for_all_that_was(
    reason: GapReason, covered: int
) -> None:
    there = page(4, 9, 12, deleted=7, hole=Hole(reason, 12))
    losses = expecting(2, 6, 7, 10)
    missing = [Loss(1, 2, "expired"), Loss(5, 7, "expired"), Loss(9, 10)]
    assert losses.find(there) == losses.unspoken(0, 100) == missing
    assert [loss for loss in missing if loss.until > there.covered()] == missing[covered:]


def test_a_loss_behind_what_was_deleted_is_no_deletion() -> None:
    there = page(4, 9, deleted=6, hole=Hole("expired", 9))
    assert expecting(6, 7).find(there) == [Loss(5, 7)]


def test_what_was_read_is_expected_no_more() -> None:
    losses = expecting(2, 4)
    losses.expect_no_more(3)
    assert losses.missing(page(5)) == [4]


def test_who_begins_with_what_is_there_need_not_hear_of_what_was_lost_in_front_of_it() -> None:
    losses = Losses()
    assert losses.beginning() == 0
    losses.note(Loss(3, 6))
    losses.note(Loss(4, 5))  # which is known by that
    assert losses.unspoken(0, 100) == [Loss(3, 6)]
    assert losses.beginning() == 0
    losses.note(Loss(-1, 2))
    assert losses.beginning() == 2


def test_what_has_come_since_is_no_part_of_a_loss_although_it_has_lost_ids() -> None:
    losses = expecting(4)
    losses.note(Loss(3, 9))
    losses.note(Loss(11, 13))
    losses.settle(page(2, 3))
    losses.settle(page(10))
    assert losses.unspoken(0, 100) == [Loss(3, 9), Loss(11, 13)]
    losses.settle(page(2, 6, 8))
    assert losses.unspoken(0, 100) == [Loss(3, 5), Loss(11, 13)]
    losses.note(Loss(6, 7))
    assert losses.unspoken(6, 100) == [Loss(6, 7), Loss(11, 13)]
    losses.settle(page(4, 13))
    assert losses.unspoken(0, 100) == [Loss(3, 4), Loss(6, 7), Loss(11, 12)]
    assert not losses.missing(page(5))  # as it was read


def test_p3_a_great_loss_is_found_without_a_stall() -> None:
    losses = expecting(*range(1, 60_000))
    there = page(*range(60_000, 60_200))
    began = time.thread_time()
    assert losses.find(there) == [Loss(59_999 - UNREAD, 59_999)]  # the oldest are forgotten
    losses.settle(there)
    assert time.thread_time() - began < 0.1


def test_a_loss_takes_the_place_of_those_that_are_part_of_it() -> None:
    losses = Losses()
    for loss in Loss(3, 6), Loss(8, 9), Loss(9, 12), Loss(2, 10):
        losses.note(loss)
    assert losses.unspoken(0, 100) == [Loss(2, 10), Loss(9, 12)]


def test_an_older_loss_does_not_hide_what_is_missing_behind_an_entry_that_came_since() -> None:
    losses = expecting(6)
    losses.note(Loss(-1, 99))
    assert losses.find(page(5, 7)) == [Loss(5, 6)]
    assert losses.unspoken(5, 100) == [Loss(5, 6)]


def test_an_entry_where_a_page_begins_ends_an_older_loss_in_front_of_it() -> None:
    losses = Losses()
    losses.note(Loss(-1, 9))
    losses.find(page(7, there=False), begin=5)
    assert losses.unspoken(0, 100) == [Loss(-1, 6)]
    losses.find(page(7), begin=5)
    assert losses.unspoken(0, 100) == [Loss(-1, 4)]
