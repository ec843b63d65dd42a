"""What every store of this package's base does, shown with stores as a user writes them."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from conftest import Logged
from support import DEADLINE, Direct, Plain, Told, balanced, eventually
from tornadose import (
    BaseStore,
    DataStore,
    Gap,
    GapReason,
    Message,
    QueueStore,
    Released,
    StoreClosedError,
)
from tornadose.messages import BATCH


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


@pytest.mark.parametrize(("submitted", "reason"), [(0, "closed"), (1, "failed")])
def test_p2_who_has_not_got_everything_when_the_program_ends_is_told_so(
    submitted: int, reason: Released, logged: Logged
) -> None:
    class Stuck(QueueStore[str]):
        async def publish(self) -> None:
            await asyncio.Event().wait()

    told = Told[str]()

    async def main() -> None:
        store = Stuck()
        store.register(told)
        await asyncio.sleep(0)
        for _ in range(submitted):
            await store.submit("never published")

    asyncio.run(main())
    assert told.events == [reason]
    logged.take("unpublished", submitted)


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
    again = asyncio.create_task(store.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    assert not again.done()
    await asyncio.gather(closing, again)
    assert leaving.events == ["closed"]


class Closing(Told[int]):
    """One that closes its store at this message or gap."""

    def __init__(self, store: QueueStore[int], last: int | Gap) -> None:
        super().__init__()
        self.store, self.last = store, last

    async def publish(self, message: Message[int], /) -> None:
        await super().publish(message)
        if message.data == self.last:
            await self.store.aclose()

    async def publish_gap(self, gap: Gap, /) -> None:
        await super().publish_gap(gap)
        if gap == self.last:
            await self.store.aclose()


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize(
    ("last", "of", "reason"),
    [
        (1, 299, "failed"),
        (10, 299, "failed"),
        (BATCH, 299, "failed"),
        (BATCH, BATCH, "closed"),
        (299, 299, "closed"),
    ],
)
async def test_who_closes_the_store_is_told_whether_it_has_everything(
    last: int, of: int, reason: Released, resumes: bool
) -> None:
    store = QueueStore[int]()
    told = Closing(store, last)
    first = store.submit_nowait(0)
    if not resumes:
        store.register(told)
    for number in range(1, of + 1):
        store.submit_nowait(number)
    if resumes:
        store.resume(told, first.id or "")
    await eventually(lambda: len(told.events) == last + 1)
    assert told.events == [*range(1, last + 1), reason]
    assert balanced(store.statistics())


async def test_who_closes_the_store_in_front_of_what_it_has_submitted_is_told_so() -> None:
    class Hasty(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            store.submit_nowait(2)
            await store.aclose()

    store = QueueStore[int]()
    store.register(hasty := Hasty())
    store.submit_nowait(1)
    await eventually(lambda: hasty.events == [1, "failed"])
    assert balanced(store.statistics())


async def test_who_closes_the_store_in_front_of_a_gap_is_told_that_it_has_not_everything() -> None:
    store = QueueStore[int](policy="drop_newest", backlog=1)
    store.register(told := Closing(store, 2))
    told.running.clear()
    for number in (1, 2, 3):
        store.submit_nowait(number)
    await eventually(lambda: store.statistics().dropped == 1)
    told.running.set()
    await eventually(lambda: told.events == [1, 2, "failed"])


@pytest.mark.parametrize("outside", ["nobody", "later", "before"])
async def test_those_who_close_the_store_from_within_do_not_wait_for_each_other(
    outside: str,
) -> None:
    class Patient(Closing):
        async def publish(self, message: Message[int], /) -> None:
            self.events.append(message.data)
            await self.running.wait()
            await store.aclose(timeout=None)
            self.events.append("closed before")  # type: ignore[arg-type]  # to keep its place

    store = QueueStore[int]()
    closing = [Patient(store, 1) for _ in range(3)]
    for told in closing:
        told.running.clear()
        store.register(told)
    store.submit_nowait(1)
    await eventually(lambda: all(told.events for told in closing))
    outsiders: list[asyncio.Task[None]] = []
    if outside == "before":
        outsiders.append(asyncio.create_task(store.aclose(timeout=None)))
        await asyncio.sleep(0.01)
    for told in closing:
        told.running.set()
    if outside == "later":
        outsiders.append(asyncio.create_task(store.aclose(timeout=None)))
    await asyncio.wait_for(asyncio.gather(*outsiders), 1)
    await eventually(lambda: all(len(told.events) == 3 for told in closing), deadline=1)
    assert [told.events for told in closing] == 3 * [[1, "closed", "closed before"]]


@pytest.mark.parametrize("waits", [False, True])
async def test_p3_under_block_who_closes_the_store_from_within_holds_nobody_up(
    waits: bool,
) -> None:
    class Full(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            if waits:  # until the publisher waits for room
                await eventually(lambda: store.statistics().published == 8)
            await store.aclose(timeout=None)

    store = QueueStore[int](policy="block", backlog=4, block_timeout=60)
    full, other = Full(), Told[int]()
    for told in (full, other):
        store.register(told)
    for number in range(40):
        store.submit_nowait(number)
    await eventually(lambda: other.events[-1:] == ["closed"], deadline=2)
    assert other.events == [*range(40), "closed"]
    assert full.events == [0, "failed"]
    assert balanced(store.statistics())


async def test_nothing_is_left_of_who_closes_the_store_from_within() -> None:
    class Lingering(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            await self.running.wait()
            await store.aclose(timeout=None)
            await asyncio.sleep(0.05)
            self.got.append(0)

    store, told = QueueStore[int](), Lingering()
    told.running.clear()
    store.register(told)
    store.submit_nowait(1)
    await eventually(lambda: store.statistics().pending)
    closing = asyncio.create_task(store.aclose(timeout=None))
    await asyncio.sleep(0.01)
    told.running.set()
    await closing
    assert told.got == [1, 0]
    assert store.statistics().pending == 0


async def test_who_gives_up_closing_is_stopped_by_the_next_who_closes() -> None:
    class Impatient(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await store.aclose(timeout=None)
            await super().publish(message)  # which takes for ever

    store, told, other = QueueStore[int](), Impatient(), Told[int]()
    for subscriber in (other, told):
        subscriber.running.clear()
        store.register(subscriber)
    store.submit_nowait(1)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await store.aclose(timeout=0.05)
    assert time.monotonic() - started < 0.9


async def test_who_leaves_in_its_own_publish_goes_on_there() -> None:
    class Leaver(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            store.deregister(self)
            await asyncio.sleep(0)
            await super().publish(message)

    async with QueueStore[int]() as store:
        store.register(leaver := Leaver())
        store.submit_nowait(1)
        await eventually(lambda: leaver.events == [1])


async def test_p6_who_leaves_while_something_is_on_its_way_to_it_alone_does_not_get_it() -> None:
    async with Mailbox(backlog=1, policy="block", block_timeout=60) as store:
        stalled, leaving = Told[str](), Told[str]()
        for told in (stalled, leaving):
            told.running.clear()
            store.register(told)
        broadcasting = asyncio.create_task(store.broadcast(*[Message(c) for c in "abc"]))
        await asyncio.sleep(0.01)
        delivering = asyncio.create_task(store.deliver(leaving, Message("alone")))
        await asyncio.sleep(0.01)
        store.deregister(leaving)
        stalled.running.set()
        assert not await delivering
        await broadcasting


async def test_p2_what_a_submit_that_broadcasts_has_returned_arrives_before_closing() -> None:
    class Immediate(Mailbox):
        async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
            await self.broadcast(message := Message(data))
            return message

    class Slow(Told[str]):
        async def publish(self, message: Message[str], /) -> None:
            await asyncio.sleep(0.005)
            await super().publish(message)

    store, slow = Immediate(policy="block", backlog=2, block_timeout=60), Slow()
    store.register(slow)
    submitting = [asyncio.create_task(store.submit(letter)) for letter in "abcdefgh"]
    await eventually(lambda: slow.got)
    await store.aclose()
    outcomes = await asyncio.gather(*submitting, return_exceptions=True)
    returned = [outcome.data for outcome in outcomes if isinstance(outcome, Message)]
    assert slow.events[: len(returned)] == returned
    assert slow.events[-1] == "closed"


async def test_p2_who_has_everything_is_told_so_while_another_has_no_room() -> None:
    class Last(Told[int]):
        async def publish(self, message: Message[int], /) -> None:
            await super().publish(message)
            if message.data == 5:
                await store.aclose(timeout=None)

    store, last, stalled = (
        Mailbox(backlog=1, policy="block", block_timeout=60),
        Last(),
        Told[int](),
    )
    for told in (last, stalled):
        store.register(told)  # type: ignore[arg-type]
    stalled.running.clear()
    numbers: Any = map(Message, range(6))  # which a Mailbox of strings hands on as well
    broadcasting = asyncio.create_task(store.broadcast(*numbers))
    await asyncio.sleep(0.05)
    stalled.running.set()
    await broadcasting
    await eventually(lambda: last.events[-1:] == ["closed"] and stalled.events[-1:] == ["closed"])
    assert last.events == stalled.events == [*range(6), "closed"]


async def test_a_drain_that_is_cancelled_from_within_is_no_success() -> None:
    class Rude(Mailbox):
        async def drain(self) -> None:
            raise asyncio.CancelledError

    store, told = Rude(), Told[str]()
    store.register(told)
    with pytest.raises(asyncio.CancelledError):
        await store.aclose()
    assert told.events == ["timeout"]


async def test_a_store_that_ends_by_itself_while_it_is_closed_is_not_waited_for() -> None:
    class Ending(Mailbox):
        async def publish(self) -> None:
            await self.broadcast(Message("last"))
            await over.wait()
            await self.aclose(timeout=None)

        async def drain(self) -> None:
            await asyncio.Event().wait()

    over = asyncio.Event()
    store, told = Ending(), Told[str]()
    store.register(told)
    await eventually(lambda: told.events == ["last"])
    closing = asyncio.create_task(store.aclose(timeout=None))
    await asyncio.sleep(0.01)
    over.set()
    await asyncio.wait_for(closing, 2)
    assert told.events == ["last", "closed"]


@pytest.mark.parametrize("kept", [[], [7]])
async def test_who_closes_a_data_store_at_a_gap_is_told_whether_there_is_a_value(
    kept: list[int],
) -> None:
    class AtGap(Told[int]):
        async def publish_gap(self, gap: Gap, /) -> None:
            await super().publish_gap(gap)
            await store.aclose()

    store, told = DataStore[int](*kept), AtGap()
    store.resume(told, "?")
    await eventually(lambda: told.events == [Gap("unknown"), "failed" if kept else "closed"])


@pytest.mark.parametrize(
    ("lost", "reason"), [("expired", "failed"), ("unknown", "closed"), ("restarted", "closed")]
)
async def test_who_closes_the_store_at_a_gap_is_told_whether_it_has_everything(
    lost: GapReason, reason: Released
) -> None:
    store = QueueStore[int](history=2)
    ids = [store.submit_nowait(number).id for number in range(5)]
    after = {"expired": ids[0], "unknown": "?", "restarted": "0123456789ab-1"}[lost]
    told = Closing(store, gap := Gap(lost, None if lost == "unknown" else after))
    store.resume(told, after or "")
    await eventually(lambda: len(told.events) == 2)
    assert told.events == [gap, reason]
    assert balanced(store.statistics())


async def test_closing_aborts_those_whose_goodbye_takes_too_long(logged: Logged) -> None:
    store = Mailbox()
    leaving = Leaving(store, 0.3)
    store.register(leaving)
    await store.aclose(timeout=0.05)
    assert leaving.events == ["closed", "timeout"]
    logged.take("closed before everybody had everything")


async def test_who_has_left_while_others_are_aborted_is_told_nothing_more(logged: Logged) -> None:
    class Ushering(Leaving):
        def released(self, reason: Released, /) -> None:
            super().released(reason)
            if reason == "timeout":
                self.store.deregister(other)

    store = Mailbox()
    first, other = Ushering(store, DEADLINE), Leaving(store, DEADLINE)
    store.register(first)
    store.register(other)
    await store.aclose(timeout=0.05)
    assert (first.events, other.events) == (["closed", "timeout"], ["closed"])
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


class Reluctant(Mailbox):
    """A store whose publish ends when it likes to, as one that says goodbye to a broker."""

    def initialize(self, prefix: str = "") -> None:
        super().initialize(prefix)
        self.may_end = asyncio.Event()
        self.cancelled = 0

    async def publish(self) -> None:
        with suppress(asyncio.CancelledError):
            await super().publish()
        self.cancelled += 1
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


@pytest.mark.parametrize("late", [False, True])
async def test_p7_closing_that_is_cancelled_while_it_cleans_up_lets_go_of_everybody(
    late: bool, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornadose.tasks.CANCELLATION", DEADLINE)
    store, stalled = Reluctant(), Told[str]()
    stalled.running.clear()
    store.register(stalled)
    await store.submit("a")
    closing = asyncio.create_task(store.aclose(timeout=0.05 if late else None))
    await eventually(lambda: store.cancelled == 1)
    if not late:
        closing.cancel()
    await eventually(lambda: store.cancelled == 2)
    closing.cancel()
    await asyncio.wait({closing})
    store.may_end.set()
    assert closing.cancelled()
    assert stalled.events == ["timeout"]
    assert (store.subscribers, store.statistics().pending) == ((), 0)
    logged.take("closed before everybody had everything", times=late)


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
    used = QueueStore[int]()
    await used.submit(1)
    await used.aclose()
    await used.aclose(timeout=0)
    with pytest.raises(StoreClosedError):
        await store.submit("a")


async def test_what_is_no_subscriber_and_no_message_is_refused() -> None:
    async with Mailbox() as store:
        with pytest.raises(TypeError, match="subscriber: 7 has no method publish"):
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
                await store.broadcast(Message(2))
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await store.deliver(Plain[int](), Message(2))
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


def logging_calls(submit: Any) -> Any:
    @functools.wraps(submit)
    def called(*args: Any, **kwargs: Any) -> Any:
        return submit(*args, **kwargs)

    return called


class Failing(Mailbox):
    """A store with room for one message, and a `publish` that fails."""

    def initialize(self, prefix: str = "") -> None:
        super().initialize(prefix)
        self.queue = asyncio.Queue(1)

    async def publish(self) -> None:
        await asyncio.sleep(0.01)
        raise OSError("gone")


class Decorated(Mailbox):
    submit = logging_calls(Mailbox.submit)


class FailingDecorated(Failing):
    submit = logging_calls(Failing.submit)


async def test_a_decorated_submit_can_be_called_in_another_thread() -> None:
    async with Decorated() as store:
        loop = asyncio.get_running_loop()

        def work() -> object:
            return asyncio.run_coroutine_threadsafe(store.submit("a"), loop).result(DEADLINE)

        assert await asyncio.to_thread(work) == Message("a")


@pytest.mark.parametrize("kind", [Failing, FailingDecorated])
async def test_when_publish_fails_who_waits_in_submit_is_told(
    kind: type[Failing], logged: Logged
) -> None:
    store = kind()
    waiting = [asyncio.create_task(store.submit("a")) for _ in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(outcome) for outcome in outcomes] == [Message, StoreClosedError, StoreClosedError]
    assert [task.cancelling() for task in waiting] == [0, 0, 0]
    logged.take("publish() of")


async def test_a_submit_that_is_no_coroutine_function_is_guarded_too() -> None:
    class Mixin:
        async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
            return Message(data)

    class Mixed(Mixin, Mailbox):
        pass

    class OldStyle(Mailbox):
        def submit(self, data: str, /, *, event: str | None = None) -> Any:
            return super().submit(data, event=event)

    for store in (Mixed(), OldStyle()):
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await store.submit("a")


async def test_a_class_that_is_patched_changes_the_stores_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fake(self: Mailbox, data: str) -> Message[str]:
        return Message(f"fake {data}")

    async with Mailbox() as store:
        with monkeypatch.context() as patch:
            patch.setattr(Mailbox, "submit", fake)
            assert await store.submit("a") == Message("fake a")
        assert await store.submit("a") == Message("a")


class Full(Mailbox):
    """A store whose submit waits."""

    def initialize(self, prefix: str = "") -> None:
        super().initialize(prefix)
        self.queue = asyncio.Queue(1)
        self.queue.put_nowait(Message("in the way"))


@pytest.mark.parametrize("kind", [Full, DataStore[str]])
def test_p6_a_cancelled_submit_is_cancelled_in_a_later_loop_too(
    kind: type[Full | DataStore[str]],
) -> None:
    store = kind()

    async def cancel() -> None:
        submitting = asyncio.create_task(store.submit("a"))
        await asyncio.sleep(0)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await store.submit("b")

    asyncio.run(cancel())
    asyncio.run(cancel())


async def test_a_submit_may_close_its_store() -> None:
    class Closing(Mailbox):
        async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
            message = await super().submit(data)
            if data == "end":
                await self.aclose()
            return message

    store, told = Closing(), Told[str]()
    store.register(told)
    await store.submit("a")
    await store.submit("end")
    await asyncio.sleep(0)
    assert told.events == ["a", "end", "closed"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_p2_closing_again_cuts_nothing_short() -> None:
    store, stalled = Mailbox(), Told[str]()
    stalled.running.clear()
    store.register(stalled)
    await store.submit("a")
    closing = [asyncio.create_task(store.aclose(timeout)) for timeout in (None, 0, None)]
    await asyncio.sleep(0.01)
    closing[2].cancel()
    await asyncio.wait({closing[2]})
    stalled.running.set()
    await asyncio.gather(*closing[:2])
    assert stalled.events == ["a", "closed"]


async def test_closed_is_also_who_comes_by_another_method_of_the_class() -> None:
    class Loud(Mailbox):
        async def shout(self, data: str) -> Message[str]:
            return await super().submit(data.upper())

    store, told = Loud(), Told[str]()
    store.register(told)
    await store.shout("a")
    await eventually(lambda: told.got == ["A"])
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await store.shout("b")


async def test_a_store_may_close_itself_in_its_publish() -> None:
    class Finite(Mailbox):
        async def publish(self) -> None:
            for letter in "ab":
                await self.broadcast(Message(letter))
            await self.aclose()

    store, told = Finite(), Told[str]()
    store.register(told)
    await eventually(lambda: told.events == ["a", "b", "closed"])


async def test_a_subscriber_may_close_the_store_in_its_publish() -> None:
    class Closing(Told[str]):
        async def publish(self, message: Message[str], /) -> None:
            await super().publish(message)
            await store.aclose(timeout=None)

    store = Mailbox()
    closing, other = Closing(), Told[str]()
    store.register(closing)
    store.register(other)
    await store.submit("a")
    await eventually(lambda: closing.events == ["a", "closed"] and other.events == ["a", "closed"])


async def test_p2_a_publish_that_fails_during_closing_is_no_complete_end(logged: Logged) -> None:
    class Failing(QueueStore[int]):
        async def publish(self) -> None:
            await self.broadcast(Message(0))
            raise OSError("gone")

    store, told = Failing(), Told[int]()
    store.register(told)
    store.submit_nowait(0)
    store.submit_nowait(1)
    await store.aclose()
    assert told.events[-1] == "failed"
    logged.take("publish() of")
    logged.take("could not publish everything")
    logged.take("has lost 1 unpublished messages")


async def test_p1_under_block_what_is_for_one_alone_keeps_its_turn() -> None:
    async with Mailbox(backlog=1, policy="block", block_timeout=60) as store:
        stalled = Plain[str]()
        stalled.running.clear()
        store.register(stalled)
        order = [asyncio.create_task(store.deliver(stalled, Message(str(n)))) for n in range(6)]
        order.append(asyncio.create_task(store.broadcast(*[Message(c) for c in "abc"])))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        stalled.running.set()
        await asyncio.gather(*order)
        await eventually(lambda: stalled.got == [*"012345abc"])


async def test_p3_no_burst_keeps_the_loop_for_itself() -> None:
    longest, running = 0.0, True

    async def watch() -> None:
        nonlocal longest
        last = time.monotonic()
        while running:
            await asyncio.sleep(0)
            longest = max(longest, (now := time.monotonic()) - last)
            last = now

    class Slow(Plain[int]):
        async def publish(self, message: Message[int], /) -> None:
            time.sleep(0.001)  # noqa: ASYNC251 (that is the work)
            await super().publish(message)

    async with QueueStore[int](inbox=100_000, backlog=10, history=100_000) as store:
        ids = [store.submit_nowait(number).id or "" for number in range(20_000)]
        watcher = asyncio.create_task(watch())
        direct, slow = Direct[int](), Slow()
        store.register(direct)
        store.resume(slow, ids[-200])
        await eventually(lambda: len(slow.got) == 199)
        running = False
        await watcher
        assert longest < 0.06


async def test_what_is_for_one_alone_comes_behind_what_was_accepted_before() -> None:
    async with QueueStore[str]() as store:
        plain, direct = Plain[str](), Direct[str]()
        store.register(plain)
        store.register(direct)
        await store.submit("a")
        assert await store.deliver(direct, Message("b"))
        await store.submit("c")
        await eventually(lambda: direct.got == ["a", "b", "c"] and plain.got == ["a", "c"])


async def test_closing_lets_go_of_those_who_wait_in_a_custom_submit(logged: Logged) -> None:
    class Stuck(Mailbox):
        def initialize(self, prefix: str = "") -> None:
            super().initialize(prefix)
            self.queue = asyncio.Queue(1)

        async def publish(self) -> None:
            await asyncio.Event().wait()

    store = Stuck()
    waiting = [asyncio.create_task(store.submit("a")) for _ in range(3)]
    await asyncio.sleep(0)
    await store.aclose(timeout=0.05)
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(outcome) for outcome in outcomes] == [Message, StoreClosedError, StoreClosedError]
    logged.take("closed before everybody had everything")


async def test_a_subscriber_may_queue_for_itself_in_its_publish() -> None:
    class Echo(Told[str]):
        async def publish(self, message: Message[str], /) -> None:
            await super().publish(message)
            if not message.data.startswith("re: "):
                await store.deliver(self, Message(f"re: {message.data}"))

    async with Mailbox(backlog=10, policy="block", block_timeout=60) as store:
        echo = Echo()
        store.register(echo)
        for letter in "abc":
            await store.submit(letter)
        await eventually(lambda: len(echo.got) == 6)
        assert sorted(echo.got) == ["a", "b", "c", "re: a", "re: b", "re: c"]


async def test_a_time_out_of_a_users_drain_is_not_taken_for_that_of_closing() -> None:
    class Impatient(Mailbox):
        async def drain(self) -> None:
            raise TimeoutError("of somebody else")

    store, subscriber = Impatient(), Told[str]()
    store.register(subscriber)
    await store.submit("a")
    with pytest.raises(TimeoutError, match="of somebody else"):
        await store.aclose()
    assert store.subscribers == ()


class Posting:
    """Knows how to submit, and nothing of stores."""

    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        self.posted = data
        return Message(data, event=event)


class Checking(Posting):
    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        if data == "forbidden":
            raise PermissionError(data)
        return await super().submit(data, event=event)


class Posted(Posting, BaseStore[str]):
    async def publish(self) -> None:
        await asyncio.Event().wait()


class PostedAndChecked(Posted, Checking):
    """One whose check comes after a class that has none."""


async def test_a_check_in_the_submit_of_another_base_class_is_made() -> None:
    store = PostedAndChecked()
    with pytest.raises(PermissionError):
        await store.submit("forbidden")
    await store.submit("allowed")
    assert store.posted == "allowed"
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await store.submit("late")
