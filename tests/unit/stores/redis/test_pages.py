"""How much of a stream is read together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tornadose.stores.redis.entries import position_of
from tornadose.stores.redis.pages import ENTRY_BYTES, PAGE, PageReader
from tornadose.stores.redis.pipeline import Command


class Stream:
    """Entries of one size without an end, and how many of them were sent."""

    def __init__(self, size: int) -> None:
        self._payload = (size - ENTRY_BYTES - len(b"data")) * b"x"
        self.sent = 0
        self.asked: list[int] = []

    async def call(self, commands: Sequence[Command]) -> list[object]:
        _, _, count, *_, after = commands[0]
        first = position_of(str(after).encode()) + 1
        self.asked.append(int(count))
        self.sent += int(count)
        entries = [
            [f"0-{number}".encode(), [b"data", self._payload]]
            for number in range(first, first + int(count))
        ]
        return [[[b"stream", entries]], entries]


async def read(stream: Stream, pages: int, size: int) -> int:
    """Read so many pages of this size, and return how many entries were in them."""
    reader: PageReader[str] = PageReader("stream", str, size, deque())
    position = 0
    for _ in range(pages):
        page = await reader.next(stream.call, position, None, 1.0)
        assert page is not None
        assert 0 < page.size <= size
        assert page.position == position + len(page.incoming)
        position = page.position
    return position


async def test_small_entries_are_soon_read_by_the_full_page() -> None:
    stream = Stream(600)
    assert await read(stream, 20, 1 << 20) == stream.sent
    assert stream.asked[-10:] == [PAGE] * 10


async def test_where_a_page_is_full_little_is_read_in_vain() -> None:
    stream = Stream(1 << 13)
    got = await read(stream, 50, 1 << 18)
    assert stream.sent < 1.2 * got
