"""Whoever submits, joins, leaves and comes back to a `QueueStore`, nothing is lost unsaid."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import HandLoop, hand_loop
from property.strategies import fields, texts
from support import balanced
from tornadose import (
    Gap,
    GapError,
    Message,
    QueueStore,
    Released,
    ReleasedError,
    StoreClosedError,
    StoreFullError,
    subscribe,
)
from tornadose.limits import Policy

POLICIES: list[Policy] = ["block", "drop_oldest", "drop_newest", "disconnect"]


# ---- who submits


@dataclass(frozen=True)
class Submission:
    """Wait so many turns, then submit; be cancelled so many turns later, or not."""

    before: int
    nowait: bool
    bad_event: bool
    cancelled_after: int | None


submissions = st.builds(
    Submission,
    before=st.integers(0, 3),
    nowait=st.booleans(),
    bad_event=st.sampled_from([False] * 9 + [True]),
    cancelled_after=st.none() | st.integers(0, 4),
)


@dataclass
class Outcome:
    """What became of the payloads of the submitters."""

    messages: dict[str, Message[str]] = field(default_factory=dict[str, Message[str]])
    refused: set[str] = field(default_factory=set[str])

    async def submit(self, store: QueueStore[str], name: str, todo: list[Submission]) -> None:
        for number, submission in enumerate(todo):
            await turns(submission.before)
            payload = f"{name}.{number}"
            event = "gap" if submission.bad_event else None
            if submission.nowait:
                self.submit_nowait(store, payload, event)
                continue
            task = asyncio.create_task(store.submit(payload, event=event))
            if submission.cancelled_after is not None:
                await turns(submission.cancelled_after)
                task.cancel()
            try:
                self.messages[payload] = await task
            except (asyncio.CancelledError, ValueError, StoreClosedError):
                self.refused.add(payload)

    def submit_nowait(self, store: QueueStore[str], payload: str, event: str | None) -> None:
        try:
            self.messages[payload] = store.submit_nowait(payload, event=event)
        except (StoreFullError, ValueError, StoreClosedError):
            self.refused.add(payload)

    def in_order(self) -> list[Message[str]]:
        return sorted(self.messages.values(), key=position)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def position(message: Message[str]) -> int:
    assert message.id is not None
    return int(message.id.rpartition("-")[2])


# ---- who listens


@dataclass
class Visit:
    """One registration: where it began, and what was seen of it."""

    start: int
    resumed: bool = False
    story: list[Message[str] | Gap] = field(default_factory=list[Message[str] | Gap])
    gap_at: list[int] = field(default_factory=list[int])
    complete: bool = False
    released: Released | None = None


class Listener:
    """Registers itself; slow by so many turns a message; leaves after so many of them."""

    def __init__(self, store: QueueStore[str], visit: Visit, slow: int, stay: int | None) -> None:
        self.store = store
        self.visit = visit
        self.slow = slow
        self.stay = stay
        self.left = asyncio.Event()

    async def publish(self, message: Message[str], /) -> None:
        assert not self.left.is_set()
        await turns(self.slow)
        self.visit.story.append(message)
        self.count()

    async def publish_gap(self, gap: Gap, /) -> None:
        assert not self.left.is_set()
        self.visit.gap_at.append(self.store.statistics().submitted)
        await turns(self.slow)
        self.visit.story.append(gap)

    def released(self, reason: Released, /) -> None:
        self.visit.released = reason
        self.leave()

    def count(self) -> None:
        if self.stay is not None and len(self.visit.story) >= self.stay:
            self.leave()

    def leave(self) -> None:
        self.store.deregister(self)
        self.left.set()


@dataclass(frozen=True)
class Plan:
    """One who listens: joins after some turns, and comes back with its last id."""

    before: int
    iterates: bool
    slow: int
    stays: list[int]
    pause: int


plans = st.builds(
    Plan,
    before=st.integers(0, 6),
    iterates=st.booleans(),
    slow=st.sampled_from([0, 0, 1, 4]),
    stays=st.lists(st.integers(1, 6), max_size=3),
    pause=st.integers(0, 8),
)


class Audience:
    """Those who listen, until the store is closed."""

    def __init__(self, store: QueueStore[str]) -> None:
        self.store = store
        self.visits: list[Visit] = []

    async def listen(self, plan: Plan) -> None:
        """Come, stay for some messages, leave, come back; in the end stay."""
        await turns(plan.before)
        last: str | None = None
        visiting = self.iterate if plan.iterates else self.register
        for stay in [*plan.stays, *([None] * 50)]:
            visit = Visit(self.store.statistics().submitted)
            if last is not None:
                visit.start, visit.resumed = int(last.rpartition("-")[2]), True
            try:
                await visiting(visit, last, plan.slow, stay)
            except StoreClosedError:
                return
            self.visits.append(visit)
            if visit.released == "closed":
                visit.complete = True
                return
            ids = [item.id for item in visit.story if isinstance(item, Message)]
            last = ids[-1] if ids else last
            await turns(plan.pause)
        raise AssertionError("P8: disconnect and resume makes no progress")

    async def register(self, visit: Visit, last: str | None, slow: int, stay: int | None) -> None:
        listener = Listener(self.store, visit, slow, stay)
        if last is None:
            self.store.register(listener)
        else:
            self.store.resume(listener, last)
        await listener.left.wait()

    async def iterate(self, visit: Visit, last: str | None, slow: int, stay: int | None) -> None:
        async with subscribe(self.store, after=last) as messages:
            while stay is None or len(visit.story) < stay:
                try:
                    visit.story.append(await anext(messages))
                except GapError as error:
                    visit.gap_at.append(-1)
                    visit.story.append(error.gap)
                except ReleasedError as error:
                    visit.released = error.reason
                    return
                except StopAsyncIteration:
                    visit.released = "closed"
                    return
                await turns(slow)


def check(visit: Visit, accepted: list[Message[str]], size: int, policy: Policy) -> None:
    """What was seen, with its gaps, accounts for everything accepted from the start on."""
    at, hole, gaps = visit.start, False, iter(visit.gap_at)
    first = 0  # that can come behind a gap
    complaint = f"{visit}: {[message.data for message in accepted]}"
    for item in visit.story:
        if isinstance(item, Gap):
            possible = {"overflow": policy.startswith("drop"), "expired": visit.resumed}
            assert possible.get(item.reason), complaint
            assert item.after == (
                accepted[at - 1].id if at > visit.start or visit.resumed else None
            )
            hole, told_at = True, next(gaps)
            if item.reason == "expired" and told_at >= 0:
                first = told_at - size + 1
            continue
        n = position(item)
        if first:
            assert n >= first if policy.startswith("drop") else n == first, f"P8: {complaint}"
            first = 0
        assert item is accepted[n - 1], complaint
        assert n > at + 1 if hole else n == at + 1, f"P1, P2, P8: {complaint}"
        at, hole = n, False
    if visit.complete:
        assert at < len(accepted) if hole else at == len(accepted), f"P2: {complaint}"
    if policy == "block":
        assert visit.released in (None, "closed")


# ---- both together


def run(main: Callable[[HandLoop], Awaitable[None]]) -> None:
    """Turn a loop by hand until this is done; nothing waits for a clock."""
    with hand_loop() as loop:
        task = asyncio.ensure_future(main(loop), loop=loop)
        loop.turn_until(task.done, at_most=20_000)
        task.result()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=settings().max_examples * 2)
@given(
    size=st.integers(0, 8),
    inbox=st.integers(1, 4),
    backlog=st.integers(1, 4),
    submitters=st.lists(st.lists(submissions, max_size=10), min_size=1, max_size=4),
    audience=st.lists(plans, max_size=4),
)
def test_p1_p2_p6_p8_what_is_accepted_is_seen_once_in_order_or_announced_as_missed(
    policy: Policy,
    size: int,
    inbox: int,
    backlog: int,
    submitters: list[list[Submission]],
    audience: list[Plan],
) -> None:
    async def main(loop: HandLoop) -> None:
        store = QueueStore[str](history=size, inbox=inbox, backlog=backlog, policy=policy)
        outcome, people = Outcome(), Audience(store)
        async with store, asyncio.TaskGroup() as listeners:
            for plan in audience:
                listeners.create_task(people.listen(plan))
            async with asyncio.TaskGroup() as group:
                for number, todo in enumerate(submitters):
                    group.create_task(outcome.submit(store, str(number), todo))
            await turns(10)
            await store.aclose()
        accepted = outcome.in_order()
        assert [position(m) for m in accepted] == list(range(1, len(accepted) + 1)), "P6"
        assert not outcome.refused & outcome.messages.keys()
        books = store.statistics()
        assert balanced(books)
        assert (books.pending, books.submitted, books.published) == (0, *[len(accepted)] * 2), "P6"
        assert books.resumed == sum(visit.resumed for visit in people.visits)
        for visit in people.visits:
            check(visit, accepted, size, policy)

    run(main)


@settings(max_examples=settings().max_examples * 2)
@given(
    todo=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=12),
    between=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    inbox=st.integers(1, 3),
)
def test_p6_submissions_are_accepted_first_come_first_served_but_for_the_cancelled(
    todo: list[tuple[bool, int]], between: list[int], inbox: int
) -> None:
    async def main(loop: HandLoop) -> None:
        store = QueueStore[int](inbox=inbox)
        visit: list[int] = []

        class Plain:
            async def publish(self, message: Message[int], /) -> None:
                visit.append(message.data)

        store.register(Plain())
        tasks: list[asyncio.Task[Message[int]]] = []
        for number, _ in enumerate(todo):
            tasks.append(asyncio.create_task(store.submit(number)))
            await turns(between[number])
        for task, (cancelled, after) in zip(tasks, todo, strict=True):
            await turns(after)
            if cancelled:
                task.cancel()
        await asyncio.wait(tasks)
        await store.aclose()
        accepted = [number for number, task in enumerate(tasks) if not task.cancelled()]
        assert visit == accepted
        assert store.statistics().submitted == len(accepted)

    run(main)


# ---- ids that cannot be used


class Notes:
    """Takes down all it is told."""

    def __init__(self) -> None:
        self.story: list[int | Gap] = []

    async def publish(self, message: Message[int], /) -> None:
        self.story.append(message.data)

    async def publish_gap(self, gap: Gap, /) -> None:
        self.story.append(gap)


def resumed(
    cursor: Callable[[list[str]], str], size: int, before: int, after: int
) -> list[int | Gap]:
    """Return what is seen by one who resumes between so many and so many messages."""
    notes = Notes()

    async def main(loop: HandLoop) -> None:
        store = QueueStore[int](history=size)
        ids = [(await store.submit(n)).id or "" for n in range(1, before + 1)]
        store.resume(notes, cursor(ids))
        for n in range(before + 1, before + after + 1):
            await store.submit(n)
        await store.aclose()

    run(main)
    return notes.story


def live(before: int, after: int) -> list[int]:
    return list(range(before + 1, before + after + 1))


def kept_live(size: int, before: int, after: int) -> list[int]:
    """Tell what is still there when a gap is told, after a burst that gave no turn before."""
    return live(before, after)[max(0, after - size) :]


counts = st.integers(0, 6)


@given(size=counts, before=counts, after=counts, other=st.integers(1, 9))
def test_p8_an_id_of_another_store_is_a_gap_and_then_the_live_messages(
    size: int, before: int, after: int, other: int
) -> None:
    foreign: list[str] = []

    async def main(loop: HandLoop) -> None:
        store = QueueStore[int]()
        foreign.extend([(await store.submit(n)).id or "" for n in range(other)])
        await store.aclose()

    run(main)
    story = resumed(lambda _: foreign[-1], size, before, after)
    assert story == [Gap("restarted", foreign[-1]), *kept_live(size, before, after)]


@given(
    size=counts,
    before=st.integers(1, 6),
    after=counts,
    garbage=texts.filter(bool) | fields,
    mixed=st.sampled_from(["garbage", "suffix", "prefix", "epoch", "zero", "leading", "future"]),
    ahead=st.integers(1, 10**30),
)
def test_p8_a_garbled_id_or_one_of_the_future_is_a_gap_and_then_the_live_messages(
    size: int, before: int, after: int, garbage: str, mixed: str, ahead: int
) -> None:
    def cursor(ids: list[str]) -> str:
        epoch = ids[-1].rpartition("-")[0]
        return {
            "garbage": garbage,
            "suffix": ids[-1] + "x" + garbage,
            "prefix": garbage + "x" + ids[-1],
            "epoch": epoch,
            "zero": f"{epoch}-0",
            "leading": f"{epoch}-0{before}",
            "future": f"{epoch}-{before + ahead}",
        }[mixed]

    story = resumed(cursor, size, before, after)
    assert story == [Gap("unknown"), *kept_live(size, before, after)]


@given(size=counts, before=st.integers(1, 12), after=st.integers(0, 3), data=st.data())
def test_p8_resuming_gives_what_came_after_the_id_and_a_gap_only_for_what_has_expired(
    size: int, before: int, after: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, before))
    story = resumed(lambda ids: ids[at - 1], size + after, before, after)
    kept = max(0, before + after - (size + after))  # the lowest position not kept any more
    if at >= kept:
        assert story == live(at, before + after - at)
    else:
        gap, *rest = story
        assert isinstance(gap, Gap)
        assert gap.reason == "expired"
        assert gap.after is not None
        assert gap.after.endswith(f"-{at}")
        assert rest == live(kept, before + after - kept)


@given(cursor=st.none() | st.integers() | st.binary())
def test_an_id_that_is_no_string_is_refused_with_the_value(cursor: object) -> None:
    with pytest.raises(TypeError) as caught:
        resumed(lambda _: cursor, 1, 0, 0)  # type: ignore[arg-type, return-value]  # on purpose
    assert repr(cursor) in str(caught.value)
