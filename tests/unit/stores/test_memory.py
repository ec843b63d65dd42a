"""DataStore and QueueStore."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from conftest import Logged
from support import Direct, Plain, Told, balanced, eventually
from tornadose import (
    DataStore,
    Gap,
    Message,
    Policy,
    QueueStore,
    StoreClosedError,
    StoreFullError,
)


async def test_p1_every_subscriber_sees_the_messages_in_the_order_of_acceptance() -> None:
    async with QueueStore[int]() as store:
        plain, direct = Plain[int](), Direct[int]()
        store.register(plain)
        store.register(direct)
        for number in range(500):
            await store.submit(number)
        await eventually(lambda: len(plain.got) == len(direct.got) == 500)
        assert plain.got == direct.got == list(range(500))
        assert plain.messages == direct.messages
        assert balanced(store.statistics())


async def test_p2_registering_is_the_fence() -> None:
    async with QueueStore[int]() as store:
        early, late = Plain[int](), Plain[int]()
        store.register(early)
        await store.submit(1)
        store.register(late)
        await store.submit(2)
        store.deregister(early)
        await store.submit(3)
        await eventually(lambda: late.got == [2, 3])
        assert early.got == []


async def test_what_is_ready_together_is_one_batch() -> None:
    async with QueueStore[int]() as store:
        direct = Direct[int]()
        store.register(direct)
        for number in range(10):
            await store.submit(number)
        await eventually(lambda: direct.got == list(range(10)))
        assert len(direct.batches) == 1


async def test_p4_a_full_inbox_makes_submit_wait_and_submit_nowait_raise() -> None:
    async with QueueStore[int](inbox=2) as store:
        store.submit_nowait(1)
        store.submit_nowait(2)
        with pytest.raises(StoreFullError, match="2 unpublished messages"):
            store.submit_nowait(3)
        assert store.statistics().submitted == 2
        assert (await asyncio.wait_for(store.submit(3), 5)).data == 3


async def test_p1_those_who_wait_for_the_inbox_are_accepted_in_turn() -> None:
    async with QueueStore[int](inbox=1) as store:
        plain = Plain[int]()
        store.register(plain)
        await asyncio.gather(*(store.submit(number) for number in range(50)))
        await eventually(lambda: plain.got == list(range(50)))


async def test_p6_a_cancelled_submit_was_not_accepted() -> None:
    async with QueueStore[int](inbox=1) as store:
        plain = Plain[int]()
        store.register(plain)
        store.submit_nowait(1)
        waiting = [asyncio.create_task(store.submit(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait(waiting)
        await eventually(lambda: plain.got == [1, 2, 4])
        assert store.statistics().submitted == 3


class Unpublished(QueueStore[int]):
    """Whose loop is closed before anything is published."""

    async def publish(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(("kind", "lost"), [(QueueStore[int], 0), (Unpublished, 3)])
def test_a_loop_that_is_closed_under_a_store_is_no_failure(
    kind: type[QueueStore[int]], lost: int, logged: Logged
) -> None:
    """As some test runners do, which leave the tasks to the garbage collector."""

    async def use() -> None:
        await store.submit(1)
        await asyncio.sleep(0.01)

    store = kind()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loop.close()
    asyncio.run(store.aclose())
    gc.collect()
    logged.unexpected = [r for r in logged.unexpected if "Task was destroyed" not in r.msg]
    logged.take("has lost 1 unpublished messages", times=lost)


async def test_closing_tells_those_who_wait_for_the_inbox(logged: Logged) -> None:
    store = QueueStore[int](inbox=1, backlog=1, policy="block", block_timeout=60)
    stalled = Told[int]()
    stalled.running.clear()
    store.register(stalled)
    waiting = [asyncio.create_task(store.submit(number)) for number in range(9)]
    await eventually(lambda: store.statistics().pending == 3)
    await store.aclose(timeout=0.05)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Message] * 4 + [StoreClosedError] * 5
    assert stalled.events == ["timeout"]
    logged.take("closed before everybody had everything")
    logged.take("has lost 1 unpublished messages")


@pytest.mark.parametrize("event", ["", "gap", "a\nb"])
async def test_a_bad_event_is_refused_and_nothing_is_accepted(event: str) -> None:
    async with QueueStore[int](history=1, inbox=1) as queue, DataStore(0) as data:
        queue.submit_nowait(1)
        for refused in (queue.submit, data.submit):
            with pytest.raises(ValueError, match="event: "):
                await asyncio.wait_for(refused(2, event=event), 1)
        with pytest.raises(ValueError, match="event: "):
            data.submit_nowait(2, event=event)
        with pytest.raises(TypeError, match="event: expected a string, not 7"):
            await queue.submit(2, event=7)  # type: ignore[arg-type]
        assert (queue.statistics().submitted, data.data) == (1, 0)
        last = (await queue.submit(2)).id or ""
        assert last.endswith("-2")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"history": -1}, ValueError),
        ({"inbox": 0}, ValueError),
        ({"backlog": 0}, ValueError),
        ({"policy": "none"}, ValueError),
        ({"block_timeout": float("nan")}, ValueError),
        ({"history": "9"}, TypeError),
        ({"max_subscribers": 1.5}, TypeError),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], error: type[Exception]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        QueueStore[int](**options)  # type: ignore[arg-type]


async def test_p8_resuming_is_what_came_after_and_then_the_live_messages() -> None:
    async with QueueStore[int](history=1000) as store:
        ids = [(await store.submit(number)).id or "" for number in range(300)]
        back = Told[int]()
        store.resume(back, ids[9])
        for number in range(300, 310):
            await store.submit(number)
        await eventually(lambda: back.events == list(range(10, 310)))
        books = store.statistics()
        assert (books.resumed, books.offered, books.delivered) == (1, 300, 300)


async def test_p8_a_slow_replay_does_not_count_against_the_backlog() -> None:
    async with QueueStore[int](history=1000, backlog=1, policy="disconnect") as store:
        ids = [(await store.submit(number)).id or "" for number in range(200)]
        back = Told[int]()
        back.running.clear()
        store.resume(back, ids[0])
        for number in range(200, 400):
            await store.submit(number)
        back.running.set()
        await eventually(lambda: back.events == list(range(1, 400)))


@pytest.mark.parametrize(
    ("cursor", "gap"),
    [("rubbish", Gap("unknown")), ("0123456789ab-7", Gap("restarted", "0123456789ab-7"))],
)
async def test_p8_an_id_that_cannot_be_used_is_a_gap(cursor: str, gap: Gap) -> None:
    async with QueueStore[int]() as store:
        await store.submit(1)
        back = Told[int]()
        store.resume(back, cursor)
        await store.submit(2)
        await eventually(lambda: back.events == [gap, 2])


async def test_an_empty_id_is_none_and_another_type_is_refused() -> None:
    async with QueueStore[int]() as store:
        await store.submit(1)
        back = Told[int]()
        store.resume(back, "")
        await store.submit(2)
        await eventually(lambda: back.events == [2])
        with pytest.raises(TypeError, match="after: expected a string, not None"):
            store.resume(Told[int](), None)  # type: ignore[arg-type]


async def test_data_store_a_new_subscriber_gets_the_current_value_at_once_and_once() -> None:
    async with DataStore(1) as store:
        direct, plain = Direct[int](), Plain[int]()
        store.register(direct)
        assert direct.got == [1]
        await store.submit(2)
        store.register(plain)
        await store.submit(3)
        await eventually(lambda: direct.got == [1, 2, 3] and plain.got == [2, 3])
        assert [message.id for message in direct.messages] == [None, None, None]


async def test_data_store_without_a_value_begins_with_nothing() -> None:
    async with DataStore[int]() as store:
        direct = Direct[int]()
        store.register(direct)
        assert (store.data, direct.got) == (None, [])
        store.data = 7
        await eventually(lambda: direct.got == [7])
        assert store.data == 7


async def test_data_store_a_slow_subscriber_skips_to_the_newest_without_a_gap() -> None:
    async with DataStore[int]() as store:
        slow, fast = Told[int](), Direct[int]()
        slow.running.clear()
        store.register(slow)
        store.register(fast)
        for number in range(100):
            await store.submit(number)
        await eventually(lambda: fast.got[-1:] == [99])
        assert fast.got == sorted(set(fast.got))
        slow.running.set()
        await eventually(lambda: slow.events[-1:] == [99])
        assert len(slow.events) == 2
        assert balanced(store.statistics())


async def test_data_store_who_does_nothing_but_submit_lets_the_others_have_their_turn() -> None:
    async with DataStore[int]() as store:
        plain = Plain[int]()
        store.register(plain)
        for number in range(100):
            await store.submit(number)
        await eventually(lambda: plain.got[-1] == 99)
        assert plain.got == sorted(set(plain.got))
        assert len(plain.got) > 30


async def test_data_store_the_event_belongs_to_the_value() -> None:
    async with DataStore[int]() as store:
        await store.submit(1, event="tick")
        plain = Plain[int]()
        store.register(plain)
        await eventually(lambda: plain.messages == [Message(1, event="tick")])


async def test_data_store_the_value_can_be_falsy() -> None:
    async with DataStore(0) as store, DataStore[int | None]() as nothing:
        direct = Direct[int]()
        store.register(direct)
        assert direct.got == [0]
        nothing.submit_nowait(None)
        maybe = Direct[int | None]()
        nothing.register(maybe)
        assert maybe.got == [None]


async def test_data_store_the_last_value_is_delivered_before_closing() -> None:
    store = DataStore[int]()
    plain = Told[int]()
    store.register(plain)
    store.data = 7
    await store.aclose()
    assert plain.events == [7, "closed"]
    with pytest.raises(StoreClosedError):
        store.data = 8


def test_data_store_a_value_can_be_set_before_and_between_loops() -> None:
    store = DataStore(1)
    store.data = 2

    async def first() -> list[int]:
        direct = Direct[int]()
        store.register(direct)
        await store.submit(3)
        await eventually(lambda: len(direct.got) == 2)
        return direct.got

    assert asyncio.run(first()) == [2, 3]
    assert store.data == 3
    assert asyncio.run(first()) == [1, 3]
    store.data = 4
    assert asyncio.run(first()) == [4, 3]


def test_queue_store_ids_differ_after_a_restart() -> None:
    store = QueueStore[int]()

    async def use(after: str | None) -> tuple[str, list[object]]:
        told = Told[int]()
        if after is not None:
            store.resume(told, after)
        message = await store.submit(1)
        await eventually(lambda: after is None or len(told.events) == 2)
        await store.aclose()
        return message.id or "", list(told.events)

    first, _ = asyncio.run(use(None))
    second, events = asyncio.run(use(first))
    assert first.split("-")[0] != second.split("-")[0]
    assert events == [Gap("restarted", first), 1, "closed"]


async def leave_something(store: QueueStore[int]) -> None:
    stalled = Plain[int]()
    stalled.running.clear()
    store.register(stalled)
    for number in range(6):
        store.submit_nowait(number)
    await eventually(lambda: store.statistics().pending == 3)


async def use_again(store: QueueStore[int]) -> None:
    assert store.statistics().submitted == 6
    store.submit_nowait(3)
    assert store.statistics().submitted == 1
    await store.aclose()


def test_a_loop_that_ends_before_everything_was_published_says_so(logged: Logged) -> None:
    store = QueueStore[int](backlog=1, policy="block", block_timeout=60)
    asyncio.run(leave_something(store))
    logged.take("failed")
    logged.take("has lost 3 unpublished messages")
    asyncio.run(use_again(store))


async def test_data_store_what_is_for_one_alone_and_the_newest_value_both_arrive() -> None:
    async with DataStore[str]() as store:
        slow = Told[str]()
        slow.running.clear()
        store.register(slow)
        await store.submit("v1")
        await eventually(lambda: store.statistics().pending == 1)
        await store.submit("v2")
        await store.deliver(slow, Message("private 1"))
        await store.deliver(slow, Message("private 2"))
        await store.submit("final")
        slow.running.set()
        await eventually(lambda: len(slow.events) == 4)
        assert [event for event in slow.events if "private" in str(event)] == [
            "private 1",
            "private 2",
        ]
        assert [event for event in slow.events if "private" not in str(event)] == ["v1", "final"]
        assert balanced(store.statistics())


@pytest.mark.parametrize("resumes", [False, True])
async def test_data_store_what_is_for_one_alone_comes_behind_the_value_before_it(
    resumes: bool,
) -> None:
    async with DataStore[str]("v1") as store:
        slow = Told[str]()
        slow.running.clear()
        if resumes:
            store.resume(slow, "?")
        else:
            store.register(slow)
        await eventually(lambda: store.statistics().pending == 1)
        for value in ("v2", "v3"):
            await store.submit(value)
            await store.deliver(slow, Message(f"alone behind {value}"))
        slow.running.set()
        expected = ["v1", "v3", "alone behind v2", "alone behind v3"]
        begin = [Gap("unknown")] if resumes else []
        await eventually(lambda: len(slow.got) == 4)
        assert [event for event in slow.events if isinstance(event, Gap)] == begin
        assert slow.got.index("alone behind v2") < slow.got.index("alone behind v3")
        assert slow.got.index("v3") < slow.got.index("alone behind v3")
        assert sorted(slow.got) == sorted(expected)


async def test_p1_under_block_what_waits_for_room_keeps_its_place_in_history() -> None:
    class Slow(Told[str]):
        async def publish(self, message: Message[str], /) -> None:
            await super().publish(message)
            await asyncio.sleep(0)

    async with QueueStore[str](policy="block", backlog=1, block_timeout=60) as store:
        first, *_ = [await store.submit(str(number)) for number in range(10)]
        slow, delivering = Slow(), list[asyncio.Task[bool]]()
        slow.running.clear()
        store.resume(slow, str(first.id))
        for text in ("10", "11"):
            delivering.append(
                asyncio.create_task(store.deliver(slow, Message(f"alone before {text}")))
            )
            await asyncio.sleep(0.01)
            await store.submit(text)
        slow.running.set()
        await asyncio.gather(*delivering)
        await eventually(lambda: len(slow.got) == 13)
        assert slow.got[9] == "alone before 10"
        assert slow.got.index("alone before 11") > slow.got.index("10")


async def test_data_store_a_value_does_not_overtake_what_is_for_one_alone() -> None:
    async with DataStore[str]() as store:
        slow = Told[str]()
        slow.running.clear()
        store.register(slow)
        for text in ("alone 1", "alone 2"):
            await store.deliver(slow, Message(text))
        await store.submit("value")
        await store.deliver(slow, Message("alone 3"))
        slow.running.set()
        await eventually(lambda: slow.got == ["alone 1", "alone 2", "value", "alone 3"])


async def test_data_store_what_is_for_one_alone_arrives_while_values_keep_changing() -> None:
    class Slow(Plain[str]):
        async def publish(self, message: Message[str], /) -> None:
            await asyncio.sleep(0.004)
            await super().publish(message)

    async with DataStore[str]() as store:
        slow = Slow()
        store.register(slow)

        async def change() -> None:
            while "private" not in slow.got:
                await store.submit("value")
                await asyncio.sleep(0.001)

        changing = asyncio.create_task(change())
        await eventually(lambda: len(slow.got) > 3)
        await store.deliver(slow, Message("private"))
        await asyncio.wait_for(changing, 5)


@pytest.mark.parametrize(
    ("subscribers", "backlog", "messages", "policy"),
    [
        (100, 256, 1500, "disconnect"),
        (100, 256, 1500, "drop_oldest"),
        (1000, 8, 50, "disconnect"),
    ],
)
async def test_p3_who_lacks_nothing_but_the_loops_time_is_not_overrun(
    subscribers: int,
    backlog: int,
    messages: int,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "tornadose.tasks.monotonic", time.process_time
    )  # or they lack the machine's
    async with QueueStore[int](backlog=backlog, policy=policy) as store:
        many = [Told[int]() for _ in range(subscribers)]
        for subscriber in many:
            store.register(subscriber)
        for number in range(messages):
            await store.submit(number)
        await eventually(lambda: all(len(subscriber.got) == messages for subscriber in many))
        assert all(subscriber.events == [*range(messages)] for subscriber in many)


async def test_p8_who_resumes_where_nothing_is_kept_goes_on_with_what_comes() -> None:
    class Slow(Told[int]):
        async def publish_gap(self, gap: Gap, /) -> None:
            await super().publish_gap(gap)
            await store.submit(2)  # accepted while it is told

    async with QueueStore[int](history=0) as store:
        first = await store.submit(0)
        await store.submit(1)
        subscriber = Slow()
        store.resume(subscriber, first.id or "")
        await eventually(lambda: subscriber.got == [2])
        assert subscriber.events == [Gap("expired", first.id), 2]


async def test_p7_who_leaves_in_the_middle_of_a_page_has_no_pump_any_more() -> None:
    class Leaving(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            await asyncio.sleep(0)
            if message.data == 40:
                store.deregister(self)

    async with QueueStore[int]() as store:
        first, *_ = [store.submit_nowait(number) for number in range(61)]
        store.resume(leaving := Leaving(), first.id or "")
        assert await store.deliver(leaving, Message(-1))  # behind what it reads of history
        await eventually(lambda: not store.statistics().pending)
        assert leaving.events == [*range(1, 41)]


async def test_p3_who_delivers_to_one_alone_takes_no_turns_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, running = 1.0, True

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    class Computing(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            nonlocal now
            now += 5e-5
            await super().publish(message)

    async def whisper(direct: Direct[int]) -> None:
        nonlocal now
        while running:
            await store.deliver(direct, Message(0))
            now += 1e-5
            await asyncio.sleep(0)

    monkeypatch.setattr("tornadose.tasks.monotonic", clock)
    monkeypatch.setattr("tornadose.fanout.monotonic", clock)
    async with QueueStore[int](backlog=64) as store:
        many, direct = [Computing() for _ in range(20)], [Direct[int]() for _ in range(5)]
        for subscriber in (*many, *direct):
            store.register(subscriber)
        whispering = [asyncio.create_task(whisper(subscriber)) for subscriber in direct]
        for number in range(640):
            await store.submit(number)
        await eventually(lambda: all(told.events[639:] for told in many))
        running = False
        await asyncio.gather(*whispering)
    assert all(told.events == [*range(640), "closed"] for told in many)
