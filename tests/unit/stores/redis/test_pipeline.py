"""Many tasks, one connection: what was sent, what was not, and what nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from support import eventually
from tornadose import OutcomeUnknownError, StoreClosedError
from tornadose.messages import BATCH, BATCH_BYTES
from tornadose.stores.redis.pipeline import Command, Pipeline

LONG = 30.0  # seconds, that no test takes


class RefusedError(Exception):
    """What the broker answers to a command that it does not like."""


class Wire:
    """A link whose ends the test holds. The reply to a command is its name."""

    def __init__(self) -> None:
        self.sent: list[list[str | bytes | int]] = []  # the names of what was sent together
        self.connectable = asyncio.Event()
        self.connectable.set()
        self.replying = asyncio.Event()
        self.replying.set()
        self.unreachable: Exception | None = None
        self.broken: Exception | None = None
        self.break_at: str | None = None  # the name of the first command without a reply
        self.closed = False
        self.opened = 0

    @property
    def names(self) -> list[str | bytes | int]:
        return [name for names in self.sent for name in names]

    async def connect(self) -> None:
        await self.connectable.wait()
        if self.unreachable is not None:
            raise self.unreachable
        self.opened += 1

    async def replies(self, commands: Sequence[Command], /) -> AsyncGenerator[object]:
        self.sent.append([command[0] for command in commands])
        await self.replying.wait()
        for name, *_ in commands:
            if self.broken is not None and self.break_at in (None, name):
                raise self.broken
            yield RefusedError(name) if str(name).startswith("bad") else name

    async def close(self) -> None:
        self.closed = True


def calls(pipeline: Pipeline, *names: str) -> list[asyncio.Task[Sequence[object]]]:
    return [asyncio.create_task(pipeline.call([(name,)])) for name in names]


async def outcomes(tasks: Sequence[asyncio.Task[Sequence[object]]]) -> list[object]:
    """Return what each call has come to: its reply, or the type of its error."""
    done = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(item) if isinstance(item, BaseException) else item[0] for item in done]


async def test_what_comes_together_is_sent_together_and_in_order() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 1000, LONG)
    names = [str(number) for number in range(BATCH + 2)]
    assert await outcomes(calls(pipeline, *names)) == names
    assert wire.sent == [names[:BATCH], names[BATCH:]]
    assert await pipeline.call([("a",), ("b",)]) == ["a", "b"]
    assert await outcomes(calls(pipeline, "after")) == ["after"]


async def test_what_is_large_is_not_sent_all_together() -> None:
    wire = Wire()
    names = [letter * (BATCH_BYTES // 2) for letter in "abc"]
    assert await outcomes(calls(Pipeline(wire, 10, LONG), *names)) == names
    assert wire.sent == [names[:2], names[2:]]


async def test_a_refusal_is_for_who_has_asked_for_it() -> None:
    pipeline = Pipeline(Wire(), 10, LONG)
    assert await outcomes(calls(pipeline, "a", "bad", "b")) == ["a", RefusedError, "b"]
    with pytest.raises(RefusedError, match="bad"):
        await pipeline.call([("a",), ("bad",)])


async def test_beyond_its_size_callers_wait() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 2, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "a", "b", "c", "d")
    await eventually(lambda: wire.names == ["a", "b"])
    wire.replying.set()
    assert await outcomes(tasks) == ["a", "b", "c", "d"]
    assert wire.names == ["a", "b", "c", "d"]


async def test_p6_cancelled_before_it_is_sent_it_never_is() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 3, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "under way")
    await eventually(lambda: wire.names)
    tasks += calls(pipeline, "cancelled", "a", "waits for room, and is cancelled")
    await eventually(lambda: len(pipeline.callers) == 4)
    for task in tasks[1], tasks[3]:
        task.cancel()
    wire.replying.set()
    gone = asyncio.CancelledError
    assert await outcomes(tasks) == ["under way", gone, "a", gone]
    assert await outcomes(calls(pipeline, "b")) == ["b"]
    assert wire.names == ["under way", "a", "b"]


async def test_p6_cancelled_while_connecting_it_is_not_sent() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 3, LONG)
    wire.connectable.clear()
    tasks = calls(pipeline, "cancelled", "a")
    await eventually(lambda: len(pipeline.callers) == 2)
    tasks[0].cancel()
    wire.connectable.set()
    assert await outcomes(tasks) == [asyncio.CancelledError, "a"]
    assert wire.names == ["a"]


async def test_p6_a_reply_to_one_who_has_gone_disturbs_nobody() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 3, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "a", "gone", "b")
    await eventually(lambda: wire.names)
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    wire.replying.set()
    assert await outcomes(tasks) == ["a", asyncio.CancelledError, "b"]
    await pipeline.drain()


async def test_p6_without_a_connection_nobody_was_sent_and_all_hear_why() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 10, LONG)
    wire.unreachable = ConnectionRefusedError()
    assert await outcomes(calls(pipeline, "a", "b")) == [ConnectionRefusedError] * 2
    wire.unreachable = None
    assert await outcomes(calls(pipeline, "c")) == ["c"]
    assert wire.names == ["c"]


async def test_p6_when_the_reply_is_lost_the_outcome_is_unknown() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 10, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "sent")
    await eventually(lambda: wire.names)
    tasks += calls(pipeline, "waits")
    await eventually(lambda: len(pipeline.callers) == 2)
    wire.broken = BrokenPipeError()
    wire.replying.set()
    assert await outcomes(tasks) == [OutcomeUnknownError, BrokenPipeError]
    assert isinstance(error := tasks[0].exception(), OutcomeUnknownError)
    assert error.__cause__ is wire.broken
    wire.broken = None
    assert await outcomes(calls(pipeline, "after")) == ["after"]
    assert wire.names == ["sent", "after"]


async def test_p6_a_reply_that_has_come_is_not_lost_with_the_connection() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 10, LONG)
    wire.broken, wire.break_at = BrokenPipeError(), "c"
    tasks = calls(pipeline, "a", "bad")
    tasks.append(asyncio.create_task(pipeline.call([("b",), ("c",)])))
    tasks += calls(pipeline, "d")
    unknown = OutcomeUnknownError
    assert await outcomes(tasks) == ["a", RefusedError, unknown, unknown]
    assert wire.sent == [["a", "bad", "b", "c", "d"]]


async def test_p6_in_time_every_caller_hears_whether_it_was_sent() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 2, 0.05, late=RefusedError)
    wire.replying.clear()
    tasks = calls(pipeline, "sent")
    await eventually(lambda: wire.names)
    tasks += calls(pipeline, "waits to be sent", "waits for room")
    assert await outcomes(tasks) == [OutcomeUnknownError, RefusedError, RefusedError]
    wire.replying.set()
    await pipeline.drain()
    assert await outcomes(calls(pipeline, "after")) == ["after"]
    assert wire.names == ["sent", "after"]


async def test_drained_everything_under_way_has_its_reply() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 10, LONG)
    await pipeline.drain()
    wire.replying.clear()
    tasks = calls(pipeline, "a", "b")
    await eventually(lambda: wire.names)
    draining = asyncio.create_task(pipeline.drain())
    tasks += calls(pipeline, "c")
    await eventually(lambda: len(pipeline.callers) == 3)
    assert not draining.done()
    wire.replying.set()
    await draining
    assert wire.names == ["a", "b", "c"]
    assert await outcomes(tasks) == ["a", "b", "c"]


async def test_refusing_it_goes_on_with_what_has_its_turn() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 2, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "a")
    await eventually(lambda: wire.names)
    tasks += calls(pipeline, "b", "waits for room")
    await eventually(lambda: len(pipeline.callers) == 3)
    pipeline.refuse()
    wire.replying.set()
    assert await outcomes(tasks) == ["a", "b", StoreClosedError]
    assert wire.names == ["a", "b"]


async def test_closed_it_says_of_each_request_whether_it_was_sent() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 2, LONG)
    wire.replying.clear()
    tasks = calls(pipeline, "sent")
    await eventually(lambda: wire.names)
    tasks += calls(pipeline, "waits to be sent", "waits for room")
    await eventually(lambda: len(pipeline.callers) == 3)
    await pipeline.close()
    assert await outcomes(tasks) == [OutcomeUnknownError, StoreClosedError, StoreClosedError]
    assert wire.closed
    with pytest.raises(StoreClosedError):
        await pipeline.call([("late",)])
    assert wire.names == ["sent"]


async def test_closed_before_it_had_a_turn_to_send_nobody_is_left_waiting() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, 2, LONG)
    tasks = calls(pipeline, "a")
    await asyncio.sleep(0)  # the call has its turn, what sends has not
    assert len(pipeline.callers) == 1
    await pipeline.close()
    assert await outcomes(tasks) == [StoreClosedError]
    assert wire.names == []
