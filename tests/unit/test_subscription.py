"""subscribe(): the same guarantees for plain Python code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from support import balanced, eventually
from tornadose import (
    DataStore,
    Gap,
    GapError,
    Message,
    QueueStore,
    ReleasedError,
    StoreClosedError,
    Subscriber,
    subscribe,
)


async def take(messages: AsyncIterator[Message[int]], count: int) -> list[int]:
    return [(await anext(messages)).data for _ in range(count)]


async def test_p1_p2_everything_from_entering_on_arrives_in_order() -> None:
    async with QueueStore[int](backlog=3000) as store:
        await store.submit(-1)
        async with subscribe(store) as messages:
            for number in range(3000):
                await store.submit(number)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            assert await take(messages, 3000) == list(range(3000))
        assert store.subscribers == ()
        assert balanced(store.statistics())


async def test_closing_the_store_ends_the_iteration_after_the_last_message() -> None:
    store = QueueStore[int]()
    got: list[int] = []

    async def read() -> None:
        async with subscribe(store) as messages:
            async for message in messages:
                got.append(message.data)

    reader = asyncio.create_task(read())
    await eventually(lambda: store.subscribers)
    for number in range(100):
        await store.submit(number)
    await store.aclose()
    await asyncio.wait_for(reader, 1)
    assert got == list(range(100))


async def test_closing_the_store_does_not_wait_for_a_subscription_that_has_everything() -> None:
    store = QueueStore[int]()
    async with subscribe(store) as messages:
        await store.submit(1)
        assert await take(messages, 1) == [1]
        await asyncio.wait_for(store.aclose(timeout=60), 1)
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_closing_the_store_waits_until_the_last_message_is_taken_and_no_longer() -> None:
    store = QueueStore[int]()
    async with subscribe(store) as messages:
        await store.submit(1)
        closing = asyncio.create_task(store.aclose(timeout=60))
        await eventually(lambda: not store.subscribers)
        assert not closing.done()
        assert await take(messages, 1) == [1]
        await asyncio.wait_for(closing, 1)


async def test_a_cancelled_wait_loses_nothing() -> None:
    async with QueueStore[int]() as store, subscribe(store) as messages:
        for number in range(50):
            waiting = asyncio.create_task(take(messages, 1))
            await asyncio.sleep(0)
            if number % 2:
                waiting.cancel()
                await asyncio.wait({waiting})
                await store.submit(number)
                assert await take(messages, 1) == [number]
            else:
                await store.submit(number)
                assert await waiting == [number]


async def test_p8_it_resumes_after_an_id() -> None:
    async with QueueStore[int](history=500) as store:
        ids = [(await store.submit(number)).id or "" for number in range(300)]
        async with subscribe(store, after=ids[99]) as messages:
            await store.submit(300)
            assert await take(messages, 201) == list(range(100, 301))
        assert store.statistics().resumed == 1


async def test_a_gap_is_raised_where_it_is_and_iterating_goes_on() -> None:
    async with QueueStore[int](history=2) as store:
        ids = [(await store.submit(number)).id for number in range(5)]
        async with subscribe(store, after=ids[0]) as messages:
            with pytest.raises(GapError) as raised:
                await anext(messages)
            assert raised.value.gap == Gap("expired", ids[0])
            assert await take(messages, 2) == [3, 4]


async def test_a_gap_is_given_to_the_callback_instead() -> None:
    gaps: list[Gap] = []
    async with QueueStore[int](history=2) as store:
        await store.submit(1)
        async with subscribe(store, after="rubbish", on_gap=gaps.append) as messages:
            await store.submit(2)
            assert await take(messages, 1) == [2]
    assert gaps == [Gap("unknown")]


async def test_a_source_that_cannot_resume_begins_with_a_gap() -> None:
    async with DataStore(1) as store, subscribe(store, after="x-1") as messages:
        with pytest.raises(GapError, match="unknown"):
            await anext(messages)
        assert await take(messages, 1) == [1]


async def test_a_reader_that_is_too_slow_gets_what_it_has_and_then_the_reason() -> None:
    async with QueueStore[int](backlog=3) as store, subscribe(store) as messages:
        for number in range(10):
            await store.submit(number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not store.subscribers:
                break
        assert await take(messages, 2) == [0, 1]
        with pytest.raises(ReleasedError, match="overflow"):
            await anext(messages)
        with pytest.raises(ReleasedError):
            await anext(messages)
        assert balanced(store.statistics())


async def test_a_slow_reader_of_a_data_store_skips_to_the_newest() -> None:
    async with DataStore[int]() as store, subscribe(store) as messages:
        for number in range(100):
            await store.submit(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        got = [await anext(messages)]
        while got[-1].data != 99:
            got.append(await anext(messages))
        assert len(got) <= 4
        assert balanced(store.statistics())


async def test_iterating_after_leaving_ends() -> None:
    async with QueueStore[int]() as store:
        async with subscribe(store) as messages:
            pass
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(messages), 1)


async def test_leaving_ends_the_iteration_that_another_task_is_in() -> None:
    async with QueueStore[int]() as store:
        async with subscribe(store) as messages:
            reading = asyncio.create_task(take(messages, 2))
            await store.submit(1)
            await eventually(lambda: store.statistics().delivered == 1)
            await asyncio.sleep(0)
            assert not reading.done()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(reading, 1)


async def test_entering_again_is_an_error_and_registers_nobody() -> None:
    async with QueueStore[int]() as store:
        subscription = subscribe(store)
        async with subscription:
            with pytest.raises(RuntimeError, match="entered before"):
                await subscription.__aenter__()
            assert len(store.subscribers) == 1
        with pytest.raises(RuntimeError, match="entered before"):
            async with subscription:
                pass
        assert store.subscribers == ()


async def test_bad_input_is_refused_where_it_enters() -> None:
    store = QueueStore[int]()
    with pytest.raises(TypeError, match="after: expected a string, not 7"):
        subscribe(store, after=7)  # type: ignore[arg-type]
    await store.aclose()
    with pytest.raises(StoreClosedError):
        async with subscribe(store):
            pass


async def test_a_store_of_three_methods_is_enough() -> None:
    class Minimal:
        def __init__(self) -> None:
            self.subscribers: list[Subscriber[int]] = []

        def register(self, subscriber: Subscriber[int], /) -> None:
            self.subscribers.append(subscriber)

        def deregister(self, subscriber: Subscriber[int], /) -> None:
            self.subscribers.remove(subscriber)

        async def submit(self, data: int, /, *, event: str | None = None) -> Message[int]:
            message = Message(data, event=event)
            for subscriber in self.subscribers:
                await subscriber.publish(message)
            return message

    store = Minimal()
    async with subscribe(store) as messages:
        submitting = asyncio.create_task(store.submit(1))
        assert await take(messages, 1) == [1]
        await submitting
    assert store.subscribers == []


async def test_iterating_without_entering_is_an_error() -> None:
    async with QueueStore[int]() as store:
        subscription = subscribe(store)
        assert isinstance(subscription, AsyncIterator)
        with pytest.raises(RuntimeError, match="async with subscribe"):
            await anext(subscription)


async def test_a_gap_hook_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="on_gap: 5 is not callable"):
        subscribe(QueueStore[int](), on_gap=5)  # type: ignore[arg-type]
