"""What is made of ids, entries and what Redis tells of a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tornadose import GapReason
from tornadose.stores.redis.entries import (
    StreamInfo,
    checked_position_of,
    cursor_of,
    payload_of,
    position_of,
)

BIGGEST = (1 << 64) - 1
PARTS = st.tuples(st.integers(0, BIGGEST), st.integers(0, BIGGEST))


@given(PARTS, PARTS)
def test_a_position_rises_with_its_id_and_gives_it_back(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    first, second = (position_of(f"{a}-{b}".encode()) for a, b in (one, two))
    assert (first < second) == (one < two)
    assert cursor_of(first) == f"{one[0]}-{one[1]}"
    assert checked_position_of(f"{one[0]}-{one[1]}") == first


@given(st.text() | st.from_regex(r"\A\d{0,22}-?\d{0,22}.?\Z"))
def test_what_a_client_takes_for_an_id_is_one_that_redis_takes_or_none(cursor: str) -> None:
    position = checked_position_of(cursor)
    first, dash, second = cursor.partition("-")
    plain = all(part.isascii() and part.isdigit() and len(part) <= 20 for part in (first, second))
    usable = bool(dash) and plain and int(first) <= BIGGEST and int(second) <= BIGGEST
    assert (position is not None) == usable
    if position is not None:
        assert cursor_of(position) == f"{int(first)}-{int(second)}"


@pytest.mark.parametrize(
    ("fields", "payload", "event"),
    [
        ([b"data", b"x"], b"x", None),
        ([b"data", b""], b"", None),
        ([b"data", b"x", b"event", b""], b"x", None),
        ([b"event", b"e", b"data", b"x", b"other", b"y"], b"x", "e"),
        ([b"data", b"first", b"data", b"last"], b"last", None),
    ],
)
def test_an_entry_has_its_payload_in_one_field_and_its_event_in_another(
    fields: list[bytes], payload: bytes, event: str | None
) -> None:
    assert payload_of(fields) == (payload, event)


@pytest.mark.parametrize(
    "fields", [[b"other", b"x"], [b"DATA", b"x"], [], [b"data", b"x", b"event", b"\xff"]]
)
def test_p9_an_entry_without_a_payload_or_with_a_strange_event_is_none(
    fields: list[bytes],
) -> None:
    with pytest.raises(ValueError, match=r"data|utf-8"):
        payload_of(fields)


def info(last: str, added: int | None, length: int, first: str | None = None) -> list[object]:
    """Return what Redis says of a stream."""
    fields: list[object] = [b"length", length, b"last-generated-id", last.encode()]
    fields += [b"first-entry", None if first is None else [first.encode(), [b"data", b"x"]]]
    return [*fields, b"entries-added", added] if added is not None else fields


NONE_YET = ResponseError("no such key")


@pytest.mark.parametrize(
    ("reply", "cursor", "added", "read", "reason"),
    [
        (NONE_YET, "0-0", None, 0, None),
        (NONE_YET, "5-0", None, 0, "restarted"),
        (info("9-0", 9, 9, "1-0"), "9-0", None, 0, None),  # the last one
        (info("9-0", 9, 0), "9-0", None, 0, None),  # and it is gone
        (info("9-0", 9, 9, "1-0"), "0-0", None, 9, None),  # the whole stream
        (info("9-0", 9, 8, "2-0"), "0-0", None, 8, "expired"),
        (info("9-0", 9, 0), "0-0", None, 0, "expired"),
        (info("9-0", 9, 0), "5-0", None, 0, "expired"),
        (info("9-0", 9, 3, "7-0"), "5-0", None, 3, "expired"),
        (info("9-0", 9, 3, "7-0"), "6-0", 6, 3, None),  # all that was added after it is there
        (info("9-0", 9, 3, "7-0"), "6-0", 5, 3, "expired"),
        (info("9-0", 9, 6, "1-0"), "6-0", 6, 3, None),  # it was deleted, nothing behind it was
        (info("9-0", 9, 6, "1-0"), "6-0", 6, 2, "unknown"),
        (info("9-0", 9, 6, "1-0"), "6-5", None, 3, "unknown"),
        (info("9-0", None, 9, "1-0"), "0-0", None, 9, "expired"),  # before Redis 7
        (info("9-0", None, 3, "7-0"), "6-0", None, 3, "expired"),
        (info("9-0", None, 3, "7-0"), "9-0", None, 0, None),
        (info("9-0", 5, 5, "1-0"), "6-0", 6, 1, "restarted"),  # fewer than there were before
    ],
)
def test_p8_only_what_is_proven_to_be_complete_is_no_gap(
    reply: object, cursor: str, added: int | None, read: int, reason: GapReason | None
) -> None:
    position = position_of(cursor.encode())
    hole = StreamInfo(reply).hole(position, added, there=False, read=read, full=False)
    assert hole == reason


@pytest.mark.parametrize(
    ("added", "read", "full", "reason"),
    [
        (None, 3, False, None),
        (6, 3, False, None),
        (6, 2, False, "expired"),  # one was deleted before it was read
        (6, 2, True, None),  # or it comes with the next page
        (7, 3, False, "restarted"),  # the entry that is there is another one
        (7, 3, True, "restarted"),
    ],
)
def test_p2_an_entry_that_is_still_there_does_not_prove_everything(
    added: int | None, read: int, full: bool, reason: GapReason | None
) -> None:
    stream = StreamInfo(info("9-0", 9, 9, "1-0"))
    position = position_of(b"6-0")
    assert stream.hole(position, added, there=True, read=read, full=full) == reason


@pytest.mark.parametrize(("added", "reason"), [(9, None), (8, "restarted"), (10, "restarted")])
def test_p2_the_same_last_id_does_not_prove_everything(
    added: int, reason: GapReason | None
) -> None:
    stream = StreamInfo(info("9-0", 9, 9, "1-0"))
    position = position_of(b"9-0")
    assert stream.hole(position, added, there=True, read=0, full=False) == reason


def test_p8_what_was_trimmed_before_it_is_read_in_several_pages_is_known() -> None:
    stream, position = StreamInfo(info("9-0", 9, 3, "7-0")), position_of(b"6-0")
    assert stream.hole(position, 6, there=False, read=1, full=True) is None
    assert stream.hole(position, 5, there=False, read=1, full=True) == "expired"


def test_what_redis_refuses_to_say_of_a_stream_is_an_error() -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        StreamInfo(ResponseError("WRONGTYPE"))
