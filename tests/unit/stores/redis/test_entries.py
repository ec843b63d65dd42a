"""What is made of ids, entries and what Redis tells of a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tornadose import GapReason
from tornadose.stores.redis.entries import (
    Hole,
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


def info(
    last: str, added: int | None, length: int, first: str | None = None, deleted: str = "0-0"
) -> StreamInfo:
    """Return what Redis tells of a stream."""
    fields: list[object] = [b"length", length, b"last-generated-id", last.encode()]
    fields += [b"first-entry", None if first is None else [first.encode(), [b"data", b"x"]]]
    if added is not None:
        fields += [b"entries-added", added, b"max-deleted-entry-id", deleted.encode()]
    return StreamInfo(fields)


NONE_YET = StreamInfo(ResponseError("no such key"))


def behind(end: str | None) -> int | None:
    """Return where a hole ends: in front of an entry, as in "<2-0", or at one."""
    if end is None:
        return None
    position = position_of(end.lstrip("<").encode())
    return position - 1 if end.startswith("<") else position


@pytest.mark.parametrize(
    ("stream", "cursor", "added", "read", "hole"),
    [
        (NONE_YET, "0-0", None, 0, None),
        (NONE_YET, "5-0", None, 0, ("restarted", None)),
        (info("9-0", 9, 9, "1-0"), "9-0", None, 0, None),  # the last one
        (info("9-0", 9, 9, "1-0"), "9-1", None, 0, ("restarted", None)),
        (info("9-0", 9, 0), "9-0", None, 0, None),  # and it is gone
        (info("9-0", 9, 9, "1-0"), "0-0", None, 9, None),  # the whole stream
        (info("9-0", 9, 8, "2-0"), "0-0", None, 8, ("expired", "<2-0")),
        (info("9-0", 9, 0), "0-0", None, 0, ("expired", "9-0")),
        (info("9-0", 9, 0), "5-0", None, 0, ("expired", "9-0")),
        (info("9-0", 9, 3, "7-0"), "5-0", None, 3, ("expired", "<7-0")),
        (info("9-0", 9, 3, "7-0"), "6-0", 6, 3, None),  # all that was added after it is there
        (info("9-0", 9, 3, "7-0"), "6-0", 6, None, None),  # though it was not read at once
        (info("9-0", 9, 3, "7-0"), "6-0", 5, 3, ("expired", "<7-0")),
        (info("9-0", 9, 3, "7-0"), "6-0", 5, None, ("expired", "<7-0")),
        (info("9-0", 9, 2, "7-0", "8-0"), "6-0", 5, None, ("expired", "8-0")),  # one of them, too
        (info("9-0", 9, 6, "1-0"), "6-0", 6, 3, None),
        (info("9-0", 9, 6, "1-0"), "6-0", None, None, None),  # nothing behind it was trimmed
        (info("9-0", 9, 5, "1-0", "8-0"), "6-0", 6, 2, ("expired", "8-0")),  # one was deleted
        (
            info("9-0", 9, 5, "1-0", "5-0"),
            "6-0",
            5,
            3,
            ("expired", "5-0"),
        ),  # in front of what was read
        (info("9-0", None, 9, "1-0"), "0-0", None, 9, ("expired", "9-0")),  # before Redis 7
        (info("9-0", None, 3, "7-0"), "6-0", None, 3, ("expired", "9-0")),
        (info("9-0", None, 3, "7-0"), "7-0", None, 2, None),
        (info("9-0", None, 3, "7-0"), "9-0", None, 0, None),
        (info("9-0", 5, 5, "1-0"), "6-0", 6, 1, ("restarted", None)),  # there were more before
        (info("9-0", 8, 8, "1-0"), "9-0", 9, 0, ("restarted", None)),  # the same ids again
    ],
)
def test_p8_what_is_proven_to_be_complete_is_no_hole(
    stream: StreamInfo,
    cursor: str,
    added: int | None,
    read: int | None,
    hole: tuple[GapReason, str | None] | None,
) -> None:
    found = stream.hole(position_of(cursor.encode()), added, read)
    assert found == (None if hole is None else Hole(hole[0], behind(hole[1])))


@pytest.mark.parametrize(
    ("stream", "hole"),
    [
        (info("9-0", 9, 7, "1-0", "8-0"), ("expired", "8-0")),
        (info("9-0", 9, 3, "7-0", "6-0"), ("expired", "<7-0")),  # whatever the counts
        (info("9-0", 9, 9, "1-0"), None),
    ],
)
def test_p8_counts_are_of_use_where_it_may_be_another_stream_unless_it_was_trimmed(
    stream: StreamInfo, hole: tuple[GapReason, str] | None
) -> None:
    found = stream.hole(position_of(b"6-0"), 6, 2 if hole == ("expired", "8-0") else 3, sure=False)
    assert found == (None if hole is None else Hole(hole[0], behind(hole[1])))


@pytest.mark.parametrize(
    ("stream", "cursor", "there", "known", "lost"),
    [
        (info("9-0", 9, 9, "1-0"), "6-0", True, True, False),
        (info("9-0", 9, 9, "1-0"), "6-5", False, False, True),
        (info("9-0", 9, 8, "1-0", deleted="6-5"), "6-5", False, True, False),
        (info("9-0", 9, 8, "1-0", deleted="6-5"), "6-6", False, False, True),
        (info("9-0", 9, 3, "7-0"), "6-5", False, True, False),  # it may have been trimmed
        (info("5-0", 5, 0), "6-0", False, False, True),  # nor can one have been trimmed there
        (info("9-0", None, 9, "1-0"), "6-5", False, False, False),  # before Redis 7
    ],
)
def test_p8_an_id_of_which_there_can_have_been_no_entry_is_known(
    stream: StreamInfo, cursor: str, there: bool, known: bool, lost: bool
) -> None:
    assert stream.knows(position_of(cursor.encode()), there) is known
    assert stream.is_lost(position_of(cursor.encode()), there) is lost


def test_what_redis_refuses_to_say_of_a_stream_is_an_error() -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        StreamInfo(ResponseError("WRONGTYPE"))
