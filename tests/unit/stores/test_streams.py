"""What `RedisStreamStore` makes of ids, entries and what Redis says of a stream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tornadose import GapReason, Message, RedisStreamStore
from tornadose.stores import streams

BIGGEST = (1 << 64) - 1
PARTS = st.tuples(st.integers(0, BIGGEST), st.integers(0, BIGGEST))


@given(PARTS, PARTS)
def test_a_position_rises_with_its_id_and_gives_it_back(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    first, second = (streams.position_of(f"{a}-{b}".encode()) for a, b in (one, two))
    assert (first < second) == (one < two)
    assert streams.cursor_of(first) == f"{one[0]}-{one[1]}"
    assert streams.checked_position_of(f"{one[0]}-{one[1]}") == first


@given(st.text() | st.from_regex(r"\A\d{0,22}-?\d{0,22}.?\Z"))
def test_what_a_client_takes_for_an_id_is_one_that_redis_takes_or_none(cursor: str) -> None:
    position = streams.checked_position_of(cursor)
    first, dash, second = cursor.partition("-")
    plain = all(part.isascii() and part.isdigit() and len(part) <= 20 for part in (first, second))
    usable = bool(dash) and plain and int(first) <= BIGGEST and int(second) <= BIGGEST
    assert (position is not None) == usable
    if position is not None:
        assert streams.cursor_of(position) == f"{int(first)}-{int(second)}"


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
    assert streams.payload_of(fields) == (payload, event)


@pytest.mark.parametrize(
    "fields", [[b"other", b"x"], [b"DATA", b"x"], [], [b"data", b"x", b"event", b"\xff"]]
)
def test_p9_an_entry_without_a_payload_or_with_a_strange_event_is_none(
    fields: list[bytes],
) -> None:
    with pytest.raises(ValueError, match=r"data|utf-8"):
        streams.payload_of(fields)


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
        (info("9-0", 9, 9, "1-0"), "9-0", None, 0, None),  # the last one
        (info("9-0", 9, 0), "9-0", None, 0, None),  # and it is gone
        (info("9-0", 9, 9, "1-0"), "0-0", None, 9, None),  # the whole stream
        (info("9-0", 9, 8, "2-0"), "0-0", None, 8, "expired"),
        (info("9-0", 9, 0), "0-0", None, 0, "expired"),
        (info("9-0", 9, 0), "5-0", None, 0, "expired"),
        (info("9-0", 9, 3, "7-0"), "5-0", None, 3, "expired"),
        (info("9-0", 9, 3, "7-0"), "6-0", 6, 3, None),  # all that was added after it is there
        (info("9-0", 9, 3, "7-0"), "6-0", 5, 3, "expired"),
        (info("9-0", 9, 3, "7-0"), "6-0", 6, 1, None),  # though it was not read at once
        (info("9-0", 9, 6, "1-0"), "6-0", 6, 3, None),  # it was deleted, nothing behind it was
        (info("9-0", 9, 6, "1-0"), "6-0", 6, 2, "unknown"),
        (info("9-0", 9, 6, "1-0"), "6-5", None, 3, "unknown"),
        (info("9-0", None, 9, "1-0"), "0-0", None, 9, "expired"),  # before Redis 7
        (info("9-0", None, 3, "7-0"), "6-0", None, 3, "expired"),
        (info("9-0", None, 3, "7-0"), "9-0", None, 0, None),
    ],
)
def test_p8_only_what_is_proven_to_be_complete_is_no_gap(
    reply: object, cursor: str, added: int | None, read: int, reason: GapReason | None
) -> None:
    stream = streams._Stream(reply)  # pyright: ignore[reportPrivateUsage]
    assert stream.hole(streams.position_of(cursor.encode()), added, read) == reason


def test_what_redis_refuses_to_say_of_a_stream_is_an_error() -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        streams._Stream(ResponseError("WRONGTYPE"))  # pyright: ignore[reportPrivateUsage]


def test_p9_a_page_is_cut_where_a_message_is_poisoned() -> None:
    messages = [Message(str(number), f"{number}-0") for number in range(3)]
    incoming: list[Message[str] | GapReason] = [
        messages[0],
        "poisoned",
        "poisoned",
        messages[1],
        messages[2],
    ]
    cursors = [b"0-%d" % number for number in range(1, 6)]
    page = streams._Page(incoming, cursors, 5, hole="expired")  # pyright: ignore
    parts = [(part.messages, part.hole) for part in streams.parts_of(page)]
    assert parts == [
        ([messages[0]], "expired"),
        ([], "poisoned"),
        (messages[1:], "poisoned"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stream": ""}, ValueError, "stream"),
        ({"stream": b"x"}, TypeError, "stream"),
        ({"maxlen": 0}, ValueError, "maxlen"),
        ({"maxlen": "1"}, TypeError, "maxlen"),
        ({"maxlen": True}, TypeError, "maxlen"),
        ({"policy": "x"}, ValueError, "policy"),
        ({"encode": 1}, TypeError, "encode"),
        ({"decode_responses": True}, ValueError, "decode_responses"),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_given(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        RedisStreamStore(**options)


@pytest.mark.parametrize(
    ("data", "event", "error"),
    [
        (1, None, TypeError),
        ("x", "gap", ValueError),
        ("x", "a\n", ValueError),
        ("\ud800", None, ValueError),
    ],
)
async def test_a_payload_that_cannot_travel_is_refused_before_redis_is_asked(
    data: str, event: str | None, error: type[Exception]
) -> None:
    store = RedisStreamStore(port=1)
    with pytest.raises(error):
        await store.submit(data, event=event)
    with pytest.raises(TypeError):
        store.resume(object(), "1-1")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.resume(object(), 1)  # type: ignore[arg-type]
    await store.aclose()
