"""What is wrong with what a client has received, and with what a publisher was told."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

Events: TypeAlias = Iterable[bytes | None]  # ``None`` is a gap
Faults: TypeAlias = Counter[str]


class Book:
    """What one publisher was told of its messages to one store."""

    def __init__(self) -> None:
        self.accepted: dict[int, str | None] = {}
        self.unknown: set[int] = set()
        self.refused: Counter[str] = Counter()  # by the name of the error


def stream_faults(events: Events, stream: Sequence[bytes]) -> Faults:
    """Compare what came with the whole stream: it has to be the same, without a gap."""
    numbers = {event: number for number, event in enumerate(stream)}
    faults = Faults()
    seen: set[int] = set()
    before = -1
    for event in events:
        number = None if event is None else numbers.get(event)
        if number is None:
            faults["gap" if event is None else "not in the stream"] += 1
        elif number in seen:
            faults["repeated"] += 1
        else:
            faults["out of order"] += number < before
            seen.add(number)
            before = number
    last = max(seen, default=-1)
    faults["lost"] += last + 1 - len(seen)
    faults["lost at the end"] += len(stream) - 1 - last
    return +faults


def channel_faults(events: Events, books: Mapping[str, Book]) -> tuple[Faults, int]:
    """Look for holes that no gap covers; return also the number of messages that one does.

    What was accepted has to come: after the publisher's message before, and before its next
    one or, where that is not so, a gap.
    """
    accepted = {name: sorted(book.accepted) for name, book in books.items()}
    last = dict.fromkeys(books, 0)
    sure = set(books)  # publishers of which something has come since the last gap
    faults, covered = Faults(), 0
    for event in events:
        if event is None:
            sure.clear()
            continue
        name, number = payload_of(event)
        if name not in books or not known(books[name], number):
            faults["not accepted"] += 1
            continue
        if number <= last[name]:
            faults["repeated or out of order"] += 1
            continue
        missed = between(accepted[name], last[name], number)
        if name in sure:
            faults["lost in silence"] += missed
        else:
            covered += missed
        last[name] = number
        sure.add(name)
    for name, numbers in accepted.items():
        faults["lost at the end"] += between(numbers, last[name], 1 << 63)
    return +faults, covered


def publisher_faults(books: Mapping[str, Book], stream: Sequence[tuple[str, str]]) -> Faults:
    """Compare what the publishers were told with the ids and payloads in the stream."""
    faults = Faults()
    there: dict[str, dict[int, str]] = {name: {} for name in books}
    last = dict.fromkeys(books, 0)
    for cursor, payload in stream:
        name, number = payload_of(f"data: {payload}\n\n".encode())
        faults["in the stream twice"] += number in there[name]
        faults["in the stream, but refused"] += not known(books[name], number)
        faults["in the stream out of order"] += number < last[name]
        there[name][number], last[name] = cursor, number
    for name, book in books.items():
        for number, accepted in book.accepted.items():
            faults["accepted, but not in the stream"] += there[name].get(number) != accepted
    return +faults


def known(book: Book, number: int) -> bool:
    """Whether this number may have come."""
    return number in book.accepted or number in book.unknown


def between(numbers: Sequence[int], low: int, high: int) -> int:
    """Count the numbers between these two, which do not count."""
    return bisect_left(numbers, high) - bisect_right(numbers, low)


def payload_of(event: bytes) -> tuple[str, int]:
    """Return the publisher and the number."""
    name, _, number = event.decode().strip().rpartition("data: ")[2].partition(" ")
    return name, int(number)
