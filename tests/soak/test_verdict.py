"""The verdict of the soak sees what it is there for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from soak.clients import Client, Log, played
from soak.verdict import Book, channel_faults, publisher_faults, stream_faults


def book(*accepted: int, unknown: Iterable[int] = ()) -> Book:
    book = Book()
    book.accepted = {number: f"{number}-0" for number in accepted}
    book.unknown = set(unknown)
    return book


def events(*payloads: str | None) -> list[bytes | None]:
    return [None if p is None else f"data: {p}\n\n".encode() for p in payloads]


STREAM = [b"data: a 1\n\n", b"data: b 1\n\n", b"data: a 2\n\n"]


@pytest.mark.parametrize(
    ("got", "faults"),
    [
        (("a 1", "b 1", "a 2"), {}),
        (("a 1", "a 2"), {"lost": 1}),
        (("b 1", "a 2"), {"lost": 1}),
        (("a 1", "b 1"), {"lost at the end": 1}),
        ((), {"lost at the end": 3}),
        (("a 1", "b 1", "b 1", "a 2"), {"repeated": 1}),
        (("a 1", "a 2", "b 1"), {"out of order": 1}),
        (("a 1", "b 1", None, "a 2"), {"gap": 1}),
        (("a 1", "b 1", "c 1", "a 2"), {"not in the stream": 1}),
    ],
)
def test_a_client_of_the_stream_has_to_have_all_of_it(
    got: tuple[str | None, ...], faults: dict[str, int]
) -> None:
    assert stream_faults(events(*got), STREAM) == Counter(faults)


@pytest.mark.parametrize(
    ("got", "faults", "covered"),
    [
        (("a 1", "b 1", "a 2", "a 4"), {}, 0),
        (("b 1", "a 1", "a 2", "a 3", "a 4"), {}, 0),
        (("a 1", "b 1", None, "a 4"), {}, 1),
        (("a 1", "b 1", "a 4"), {"lost in silence": 1}, 0),
        (("a 2", "b 1", "a 4"), {"lost in silence": 1}, 0),
        (("a 1", None, "b 1", "a 2", "a 4"), {}, 0),
        (("a 1", None, "a 2", None, "a 4"), {"lost at the end": 1}, 0),
        (("b 1", None, "a 2", "a 4"), {}, 1),
        (("a 1", "b 1", "a 2", "a 2", "a 4"), {"repeated or out of order": 1}, 0),
        (("a 1", "b 1", "a 2", "a 4", "a 3"), {"repeated or out of order": 1}, 0),
        (("a 1", "b 1", "a 2", "a 4", "a 5"), {"not accepted": 1}, 0),
        (("a 1", "b 1", "a 2"), {"lost at the end": 1}, 0),
    ],
)
def test_a_client_of_the_channel_has_to_be_told_of_what_it_misses(
    got: tuple[str | None, ...], faults: dict[str, int], covered: int
) -> None:
    books = {"a": book(1, 2, 4, unknown=[3]), "b": book(1)}
    assert channel_faults(events(*got), books) == (Counter(faults), covered)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([(1, "a 1"), (2, "a 2")], None),
        ([(1, "a 1"), (2, "a 2"), (3, "a 3")], None),
        ([(1, "a 1")], "accepted, but not in the stream"),
        ([(1, "a 1"), (7, "a 2")], "accepted, but not in the stream"),
        ([(1, "a 1"), (2, "a 2"), (3, "a 3"), (4, "a 3")], "in the stream twice"),
        ([(1, "a 1"), (2, "a 2"), (4, "a 4")], "in the stream, but refused"),
        ([(2, "a 2"), (1, "a 1")], "in the stream out of order"),
    ],
)
def test_a_publisher_has_to_be_told_the_truth(
    entries: list[tuple[int, str]], fault: str | None
) -> None:
    stream = [(f"{cursor}-0", payload) for cursor, payload in entries]
    found = publisher_faults({"a": book(1, 2, unknown=[3])}, stream)
    assert found == ({} if fault is None else {fault: 1})


def test_the_log_keeps_what_every_client_has_got_in_its_order() -> None:
    log = Log()
    lost: list[Client] = []
    first, second = Client("/", log, lost.append), Client("/", log, lost.append)
    gap = b'event: gap\ndata: {"reason":"outage","after":null}\n\n'
    x, y, z = STREAM
    first.take(chunks(x, y))
    second.take(chunks(x))
    second.take(chunks(gap, z))
    assert first.take(chunks(z, y) + b"1") == len(chunks(z, y))
    assert second.take(chunks(x, y) + b"10") == len(chunks(x, y))
    assert list(played(first.spans, log)) == [x, y, z, y]
    assert list(played(second.spans, log)) == [x, None, z, x, y]
    assert (first.gaps, second.gaps, second.received) == ({}, {"outage": 1}, 4)
    assert not first.strange
    assert not second.strange


def test_what_is_known_and_what_is_new_may_come_in_any_pieces() -> None:
    log = Log()
    data = chunks(*STREAM) * 2
    for size in range(1, len(data)):
        client = Client("/", log, list[Client]().append)
        rest = b""
        for start in range(0, len(data), size):
            rest += data[start : start + size]
            rest = rest[client.take(rest) :]
        assert list(played(client.spans, log)) == STREAM * 2
        assert (rest, client.strange) == (b"", [])


def test_what_is_no_event_is_noticed() -> None:
    client = Client("/", Log(), list[Client]().append)
    client.take(chunks(STREAM[0], b":\n\n"))
    assert not client.strange
    client.take(chunks(STREAM[1], b"retry: 5\n\n"))
    assert len(client.strange) == 1


def chunks(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
