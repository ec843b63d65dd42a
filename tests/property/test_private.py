"""What is for one subscriber alone stands where it was queued, whatever the others do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import balanced
from tornadose import Batch, Gap, Message, QueueStore, Released
from tornadose.limits import Policy

Step: TypeAlias = Literal["submit", "deliver", "stall", "go on", "turn"]
steps = st.lists(
    st.sampled_from(["submit", "submit", "deliver", "deliver", "stall", "go on", "turn"]),
    max_size=20,
)


@dataclass(eq=False)
class Private:
    """A payload for one alone: behind all for all up to `earliest`, and no later than `latest`."""

    number: int
    earliest: int
    latest: int | None = None


class Reader:
    """One that goes on or stalls, and hears of everything."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.story: list[int | Private | Gap | Released] = []

    async def publish(self, message: Message[int | Private], /) -> None:
        await asyncio.sleep(0)
        await self.running.wait()
        self.story.append(message.data)

    async def publish_gap(self, gap: Gap, /) -> None:
        self.story.append(gap)

    def released(self, reason: Released, /) -> None:
        self.story.append(reason)


class BatchReader(Reader):
    def publish_nowait(self, batch: Batch[int | Private], /) -> bool:
        if self.running.is_set():
            self.story.extend(message.data for message in batch)
        return self.running.is_set()


@pytest.mark.parametrize("kind", [Reader, BatchReader])
@pytest.mark.parametrize("policy", ["block", "drop_oldest", "drop_newest", "disconnect"])
@given(
    before=st.integers(1, 80),
    backlog=st.sampled_from([1, 1, 3, 100]),
    stalled=st.booleans(),
    todo=steps,
)
def test_p1_p2_what_is_for_one_alone_keeps_its_place_in_history_and_behind_it(
    policy: Policy,
    kind: type[Reader],
    before: int,
    backlog: int,
    stalled: bool,
    todo: list[Step],
) -> None:
    store = QueueStore[int | Private](backlog=backlog, policy=policy, block_timeout=60)
    first: list[Step] = ["stall"] if stalled else []
    asyncio.run(check(store, kind(), before, first + todo))


async def check(
    store: QueueStore[int | Private], reader: Reader, before: int, todo: list[Step]
) -> None:
    private, delivering = list[Private](), list[asyncio.Task[None]]()

    async def deliver(one: Private) -> None:
        await store.deliver(reader, Message(one))
        one.latest = store.statistics().submitted

    first, *_ = [store.submit_nowait(position) for position in range(1, before + 1)]
    store.resume(reader, str(first.id))
    for step in todo:
        if step == "submit":
            await store.submit(store.statistics().submitted + 1)
        elif step == "deliver":
            private.append(Private(len(private), store.statistics().submitted))
            delivering.append(asyncio.create_task(deliver(private[-1])))
        elif step == "stall":
            reader.running.clear()
        elif step == "go on":
            reader.running.set()
        await asyncio.sleep(0)
    reader.running.set()
    await asyncio.gather(*delivering)
    last = store.statistics().submitted
    await store.aclose()
    check_story(reader.story, private, last)
    assert balanced(store.statistics())


def check_story(
    story: list[int | Private | Gap | Released], private: list[Private], last: int
) -> None:
    public = [item for item in story if isinstance(item, int)]
    alone = [item for item in story if isinstance(item, Private)]
    assert public == sorted(set(public))
    assert [one.number for one in alone] == sorted({one.number for one in alone})
    for one in alone:
        at = story.index(one)
        assert all(item > one.earliest for item in story[at:] if isinstance(item, int))
        assert one.latest is not None
        assert all(item <= one.latest for item in story[:at] if isinstance(item, int))
    if story[-1] == "closed" and not any(isinstance(item, Gap) for item in story):
        assert public == [*range(2, last + 1)]
        assert alone == private
