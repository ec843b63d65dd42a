"""What every store of this package's base does, shown with stores as a user writes them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from conftest import Logged
from support import Direct, Plain, Told, eventually
from tornadose import BaseStore, Message, QueueStore, Released, StoreClosedError


class Mailbox(BaseStore[str]):
    """A custom store as the documentation shows it."""

    def initialize(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.queue: asyncio.Queue[Message[str]] = asyncio.Queue()
        self.fail: Exception | None = None

    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        message = Message(self.prefix + data, event=event)
        await self.queue.put(message)
        return message

    async def publish(self) -> None:
        while self.fail is None:
            await self.broadcast(await self.queue.get())
            self.queue.task_done()
        if str(self.fail) != "end":
            raise self.fail

    async def drain(self) -> None:
        await self.queue.join()


async def test_a_custom_store_publishes_from_its_first_use_on() -> None:
    store = Mailbox("> ")
    await store.submit("nobody hears")
    subscriber = Told[str]()
    await eventually(store.queue.empty)
    store.register(subscriber)
    assert (await store.submit("a", event="tick")) == Message("> a", event="tick")
    await eventually(lambda: subscriber.got == ["> a"])
    await store.aclose()
    assert subscriber.events == ["> a", "closed"]


async def test_the_arguments_of_the_base_are_not_those_of_the_hook() -> None:
    store = Mailbox("x", backlog=1, policy="drop_oldest", max_subscribers=1)
    one, two = Told[str](), Told[str]()
    store.register(one)
    store.register(two)
    assert (store.subscribers, two.events) == ((one,), ["limit"])
    await store.aclose()


async def test_beyond_the_limit_who_has_no_hook_is_logged(logged: Logged) -> None:
    async with QueueStore[int](max_subscribers=0) as store:
        store.register(Plain[int]())
        logged.take("limit")


@pytest.mark.parametrize("how", ["raise", "end"])
async def test_when_publish_stops_nobody_is_left_hanging(how: str, logged: Logged) -> None:
    store, subscriber = Mailbox(), Told[str]()
    store.register(subscriber)
    store.fail = OSError(how)
    await store.submit("a")
    await eventually(lambda: subscriber.events[-1:] == ["failed"])
    (record,) = logged.take("the store is closed")
    assert (record.exc_info is not None) == (how == "raise")
    with pytest.raises(StoreClosedError):
        await store.submit("b")
    with pytest.raises(StoreClosedError):
        store.register(subscriber)
    await asyncio.wait_for(store.aclose(timeout=60), 1)


async def test_a_publish_that_is_cancelled_from_within_is_a_failure(logged: Logged) -> None:
    class Cancelled(Mailbox):
        async def publish(self) -> None:
            raise asyncio.CancelledError

    store, subscriber = Cancelled(), Told[str]()
    store.register(subscriber)
    await eventually(lambda: subscriber.events == ["failed"])
    logged.take("was cancelled from within")


async def test_what_was_accepted_is_delivered_before_closing() -> None:
    store, plain, direct = Mailbox(), Told[str](), Direct[str]()
    store.register(plain)
    store.register(direct)
    for letter in "abc":
        await store.submit(letter)
    await store.aclose()
    assert plain.events == ["a", "b", "c", "closed"]
    assert direct.got == ["a", "b", "c"]


async def test_closing_gives_up_at_its_deadline(logged: Logged) -> None:
    store, stalled = Mailbox(), Told[str]()
    stalled.running.clear()
    store.register(stalled)
    await store.submit("a")
    await store.aclose(timeout=0.05)
    assert stalled.events == ["timeout"]
    assert (store.statistics().abandoned, store.statistics().pending) == (1, 0)
    logged.take("closed before everybody had everything")


class Leaving(Told[str]):
    """One whose goodbye takes time."""

    def __init__(self, store: BaseStore[str], seconds: float) -> None:
        super().__init__()
        self.store, self.seconds = store, seconds

    def released(self, reason: Released, /) -> None:
        super().released(reason)
        if reason == "closed":
            loop = asyncio.get_running_loop()
            loop.call_later(self.seconds, self.store.deregister, self)

    def leaving(self) -> bool:
        return self.seconds > 0


async def test_closing_waits_for_those_whose_goodbye_takes_time() -> None:
    store = Mailbox()
    leaving = Leaving(store, 0.05)
    store.register(leaving)
    closing = asyncio.create_task(store.aclose())
    await eventually(lambda: leaving.events == ["closed"])
    assert not closing.done()
    await asyncio.gather(closing, store.aclose())
    assert leaving.events == ["closed"]


async def test_closing_aborts_those_whose_goodbye_takes_too_long(logged: Logged) -> None:
    store = Mailbox()
    leaving = Leaving(store, 0.3)
    store.register(leaving)
    await store.aclose(timeout=0.05)
    assert leaving.events == ["closed", "timeout"]
    logged.take("closed before everybody had everything")


async def test_cancelling_the_closing_aborts_who_is_still_there() -> None:
    store, stalled = Mailbox(), Told[str]()
    stalled.running.clear()
    store.register(stalled)
    await store.submit("a")
    closing = asyncio.create_task(store.aclose(timeout=None))
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert stalled.events == ["timeout"]
    with pytest.raises(StoreClosedError):
        await store.submit("b")
    await store.aclose()


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
async def test_a_timeout_that_is_none_is_refused(timeout: float, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"timeout: .*{timeout!r}"):
        await Mailbox().aclose(timeout)


async def test_closing_a_store_that_was_never_used_is_harmless() -> None:
    store = Mailbox()
    await store.aclose()
    await store.aclose(timeout=0)
    with pytest.raises(StoreClosedError):
        await store.submit("a")


async def test_what_is_no_subscriber_and_no_message_is_refused() -> None:
    async with Mailbox() as store:
        with pytest.raises(TypeError, match="7 has no method publish"):
            store.register(7)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a Message, not 'a'"):
            await store.broadcast("a")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a Message, not 'a'"):
            await store.deliver(Plain[str](), "a")  # type: ignore[arg-type]


async def test_a_message_for_one_subscriber_waits_behind_its_backlog() -> None:
    async with Mailbox() as store:
        one, other = Plain[str](), Plain[str]()
        store.register(one)
        store.register(other)
        one.running.clear()
        await store.submit("a")
        await eventually(lambda: other.got == ["a"])
        assert await store.deliver(one, Message("private"))
        await store.submit("b")
        one.running.set()
        await eventually(lambda: one.got == ["a", "private", "b"])
        assert other.got == ["a", "b"]
        assert not await store.deliver(Plain[str](), Message("nobody"))


def test_a_store_starts_afresh_on_a_new_loop(logged: Logged) -> None:
    store = Mailbox("> ")
    stalled = Plain[str]()

    async def use(close: bool) -> None:
        subscriber = Plain[str]()
        store.register(subscriber)
        assert store.subscribers == (subscriber,)
        await store.submit("a")
        await eventually(lambda: subscriber.got == ["> a"])
        if close:
            await store.aclose()
        else:
            store.deregister(subscriber)

    async def leave_something() -> None:
        stalled.running.clear()
        store.register(stalled)
        await store.submit("b")
        await eventually(lambda: store.statistics().pending == 1)

    asyncio.run(use(close=True))
    asyncio.run(use(close=False))
    asyncio.run(leave_something())
    store.deregister(stalled)
    asyncio.run(use(close=True))
    logged.take("failed")


def test_an_open_store_belongs_to_its_loop_alone() -> None:
    store = QueueStore[int]()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(store.submit(1))

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await store.submit(2)
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                store.submit_nowait(2)
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                store.register(Plain[int]())
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                store.deregister(Plain[int]())
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await store.aclose()

        asyncio.run(elsewhere())
        with pytest.raises(RuntimeError):
            store.submit_nowait(3)
        loop.run_until_complete(store.aclose())
    finally:
        loop.close()


async def test_submit_from_a_second_thread_goes_through_the_loop() -> None:
    async with QueueStore[int]() as store:
        subscriber, errors = Plain[int](), list[BaseException]()
        store.register(subscriber)
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                store.submit_nowait(0)
            except RuntimeError as error:
                errors.append(error)
            for number in range(100):
                asyncio.run_coroutine_threadsafe(store.submit(number), loop).result(10)

        thread = threading.Thread(target=work)
        thread.start()
        await eventually(lambda: len(subscriber.got) == 100)
        thread.join()
        assert subscriber.got == list(range(100))
        assert len(errors) == 1
        assert "run_coroutine_threadsafe" in str(errors[0])


@pytest.mark.parametrize("backlog", [1, 7, 1024])
async def test_a_healthy_subscriber_survives_any_burst(backlog: int) -> None:
    async with QueueStore[int](backlog=backlog) as store, Mailbox(backlog=backlog) as mailbox:
        plain, letters = Plain[int](), Plain[str]()
        store.register(plain)
        mailbox.register(letters)
        for number in range(5000):
            await store.submit(number)
        await mailbox.broadcast(*[Message(str(number)) for number in range(3000)])
        await eventually(lambda: len(plain.got) == 5000 and len(letters.got) == 3000)
        assert plain.got == list(range(5000))
        assert letters.got == [str(number) for number in range(3000)]
