"""How a page of a stream comes to one subscriber."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tornadose import GapReason, Message
from tornadose.fanout import FanOut
from tornadose.limits import Limits
from tornadose.stores.redis.connection import Connection, client_of
from tornadose.stores.redis.entries import Hole
from tornadose.stores.redis.losses import Loss, Losses
from tornadose.stores.redis.pages import PageReader, StreamPage
from tornadose.stores.redis.pipeline import Pipeline
from tornadose.stores.redis.replay import StreamHistory, StreamReplay, parts_of


class Stream(StreamHistory[str]):
    """Entries 0-1 to 0-9, without those that are lost, in pages.

    Args:
        size: Of a page.
        trimmed: The last entry that was trimmed.
        poisoned: One that cannot be decoded.
    """

    def __init__(self, size: int = 10, trimmed: int = 0, poisoned: int = 0) -> None:
        self.size, self.trimmed, self.poisoned = size, trimmed, poisoned
        self.losses = Losses()
        self.left = [*range(1, 10)]
        self.fanout = FanOut[str](Limits())
        self.fanout.accepted = 9

    async def behind(self, position: int) -> StreamPage[str]:
        if position > 9:
            hole = Hole("restarted", None)
            return StreamPage([], [], self.left[-1], hole=hole)
        left = [n for n in self.left if n > max(position, self.trimmed)]
        numbers = left[: self.size]
        page = StreamPage(
            ["poisoned" if n == self.poisoned else Message(str(n)) for n in numbers],
            [b"0-%d" % number for number in numbers],
            max([position, *numbers]),
            hole=Hole("expired", self.trimmed) if position < self.trimmed else None,
            there=position in self.left,
            full=len(left) > self.size,
        )
        self.losses.find(page, position)
        return page

    def replay(self, after: int) -> StreamReplay[str]:
        stands = asyncio.Event()
        stands.set()
        return StreamReplay(stands, self, f"0-{after}")

    def loses(self, kept: int, lost: int) -> None:
        self.left = [n for n in self.left if not kept < n <= lost]
        self.losses.note(Loss(kept, lost))
        if lost == 9:
            self.fanout.accepted = kept  # as the live messages are rewound


async def events_of(replay: StreamReplay[str], until: str = "") -> list[str]:
    """Return payloads and gaps, up to this payload or where it meets the live messages."""
    events = list[str]()
    async with asyncio.timeout(5):
        while True:
            page = await replay.read()
            events += ([] if page.hole is None else [page.hole]) + [m.data for m in page.messages]
            if page.met or (until and until in events):
                return events


@pytest.mark.parametrize("size", [1, 2, 10])
@pytest.mark.parametrize(
    ("after", "kept", "lost", "trimmed", "expected"),
    [
        (1, 4, 6, 0, "2 3 4 restarted 7 8 9"),
        (4, 4, 6, 0, "restarted 7 8 9"),
        (5, 4, 6, 0, "restarted 7 8 9"),
        (7, 4, 6, 0, "8 9"),
        (1, 7, 9, 0, "2 3 4 5 6 7 restarted"),
        (7, 7, 9, 0, "restarted"),
        (0, -1, 6, 0, "7 8 9"),  # nothing of the stream that was is left
        (1, 4, 6, 2, "expired 3 4 restarted 7 8 9"),
        (1, 4, 6, 6, "expired 7 8 9"),
        (1, 7, 9, 2, "expired 3 4 5 6 7 restarted"),
    ],
)
async def test_p8_who_resumes_is_told_of_what_was_lost_where_it_was(
    size: int, after: int, kept: int, lost: int, trimmed: int, expected: str
) -> None:
    stream = Stream(size, trimmed)
    stream.loses(kept, lost)
    assert await events_of(stream.replay(after)) == expected.split()


@pytest.mark.parametrize(
    ("after", "until", "kept", "lost", "trimmed", "expected"),
    [
        (1, "3", 4, 6, 0, "4 restarted 7 8 9"),
        (1, "6", 4, 6, 0, "restarted 7 8 9"),  # which it has read while they were there
        (7, "8", 4, 6, 0, "9"),
        (1, "7", 4, 6, 6, "8 9"),  # as it was told of a gap there
    ],
)
async def test_p8_who_is_reading_is_told_of_what_is_lost_meanwhile(
    after: int, until: str, kept: int, lost: int, trimmed: int, expected: str
) -> None:
    stream = Stream(1, trimmed)
    replay = stream.replay(after)
    before = await events_of(replay, until)
    assert before[-1] == until
    stream.loses(kept, lost)
    assert await events_of(replay) == expected.split()


async def test_p8_what_was_trimmed_does_not_hide_what_was_deleted_behind_it() -> None:
    stream = Stream(trimmed=2)
    stream.left = [1, 2, 3, 4, 7, 8, 9]
    stream.losses.note(Loss(4, 6, "expired"))
    assert await events_of(stream.replay(1)) == ["expired", "3", "4", "expired", "7", "8", "9"]


async def test_p8_who_reads_where_ids_have_begun_lower_again_is_told_of_a_new_loss() -> None:
    stream = Stream(2)
    stream.losses.note(Loss(-1, 99))
    replay = stream.replay(0)
    assert await events_of(replay, "2") == ["1", "2"]
    stream.loses(4, 6)
    assert await events_of(replay) == ["3", "4", "restarted", "7", "8", "9"]


async def test_p8_who_was_told_of_a_loss_is_not_told_again_when_its_first_id_comes_again() -> None:
    stream = Stream()
    stream.loses(4, 9)
    stream.fanout.accepted = 5
    replay = stream.replay(4)
    assert await events_of(replay, "restarted") == ["restarted"]
    stream.left = [1, 2, 3, 4, 5]
    assert await events_of(replay) == ["5"]


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
    page = StreamPage(incoming, cursors, 5)
    parts = [(part.messages, part.hole) for part in parts_of(page, "expired")]
    assert parts == [
        ([messages[0]], "expired"),
        ([], "poisoned"),
        (messages[1:], "poisoned"),
    ]


async def test_p8_who_is_about_to_meet_the_live_messages_is_told_of_what_is_lost() -> None:
    stream = Stream(poisoned=3)
    replay = stream.replay(1)
    assert await events_of(replay, "2") == ["2"]  # and the rest is read as well
    stream.loses(7, 9)
    assert await events_of(replay) == ["poisoned", "4", "5", "6", "7", "8", "9", "restarted"]


@pytest.mark.parametrize("size", [1, 2, 10])
@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (1, "2 restarted 5 restarted 7 8 restarted"),
        (2, "restarted 5 restarted 7 8 restarted"),
        (5, "restarted 7 8 restarted"),
        (7, "8 restarted"),
    ],
)
async def test_p8_who_resumes_is_told_of_each_loss(size: int, after: int, expected: str) -> None:
    stream = Stream(size)
    for kept, lost in ((5, 6), (8, 9), (2, 4)):
        stream.loses(kept, lost)
    assert await events_of(stream.replay(after)) == expected.split()


@pytest.mark.parametrize("size", [1, 2, 10])
async def test_p8_who_reads_sees_by_itself_what_this_process_has_added_and_is_missing(
    size: int,
) -> None:
    stream = Stream(size)
    for position in range(3, 10):
        stream.losses.expect(position, b"0-%d" % position)
    stream.left = [1, 2, 3, 6, 9]
    assert await events_of(stream.replay(1)) == ["2", "3", "restarted", "6", "restarted", "9"]
    stream.losses.expect_no_more(9)
    assert await events_of(stream.replay(3)) == ["restarted", "6", "restarted", "9"]


async def test_a_page_that_was_read_of_a_stream_that_was_is_not_kept() -> None:
    class Slow(PageReader[str]):
        def __init__(self) -> None:
            self.reads = 0
            self.goes_on = asyncio.Event()

        async def whole(self, *_: object, **__: object) -> StreamPage[str]:
            self.reads += 1
            await self.goes_on.wait()
            return StreamPage(["poisoned"], [b"0-1"], 1, full=True)

    pages = Slow()
    pipeline = Pipeline(Connection(client_of(None, {})), 1, None)
    history = StreamHistory(pages, pipeline, Losses(), FanOut[str](Limits()))
    reading = asyncio.create_task(history.behind(0))
    await asyncio.sleep(0)
    history.forget()
    again = asyncio.create_task(history.behind(0))
    await asyncio.sleep(0)
    pages.goes_on.set()
    await asyncio.gather(reading, again)
    await history.behind(0)
    assert pages.reads == 2
    await history.close()


async def test_p8_who_comes_from_behind_the_end_gets_nothing_again_that_is_unread() -> None:
    stream = Stream()
    stream.left, stream.fanout.accepted = [1, 2, 3, 4, 5], 3
    page = await stream.replay(12).read()
    assert (page.hole, page.messages, page.met, page.position) == ("restarted", [], True, 5)


@pytest.mark.parametrize(
    ("deleted", "events"), [(0, ["2", "3", "restarted", "5"]), (None, ["2", "3", "5"])]
)
async def test_p8_whose_last_entry_is_gone_is_told_so_unless_it_may_have_been_deleted(
    deleted: int | None, events: list[str]
) -> None:
    class Losing(Stream):
        async def behind(self, position: int) -> StreamPage[str]:
            page = await super().behind(position)
            return replace(page, deleted=deleted, begin_known=position != 3)

    stream = Losing(2)
    stream.left, stream.fanout.accepted = [1, 2, 3, 5], 5
    assert await events_of(stream.replay(1)) == events


async def test_p8_where_no_entry_was_none_is_lost() -> None:
    class Empty(Stream):
        async def behind(self, position: int) -> StreamPage[str]:
            page = await super().behind(position)
            return replace(
                page, position=max(6, page.position), deleted=0, begin_known=position != 6
            )

    stream = Empty()
    stream.left, stream.fanout.accepted = [1, 2, 3], 7
    replay = stream.replay(1)
    assert [message.data for message in (await replay.read()).messages] == ["2", "3"]
    assert (await replay.read()).hole is None


async def test_p8_whose_last_entry_is_gone_is_told_so_also_where_nothing_came_before() -> None:
    class Losing(Stream):
        async def behind(self, position: int) -> StreamPage[str]:
            page = await super().behind(position)
            return replace(page, deleted=0, begin_known=position in self.left)

    stream = Losing()
    stream.left, stream.fanout.accepted = [1, 2, 3], 4  # which is not read yet
    replay = stream.replay(3)
    page = await replay.read()
    assert (page.hole, page.messages, page.met) == (None, [], False)
    stream.left, stream.fanout.accepted = [1, 2, 5], 5
    assert await events_of(replay) == ["restarted", "5"]


async def test_p8_a_deletion_is_told_once_also_where_a_page_was_read_before_it() -> None:
    class Deleting(Stream):
        async def behind(self, position: int) -> StreamPage[str]:
            page = await super().behind(position)
            return replace(page, deleted=0 if position == 2 else 8)

    stream = Deleting(1)
    stream.left.remove(8)
    assert await events_of(stream.replay(1)) == ["expired", *"2345679"]
