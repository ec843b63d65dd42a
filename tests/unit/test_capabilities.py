"""Capabilities are read off the type."""

from __future__ import annotations

from support import Direct, Plain, Told
from tornadose import Batch, Gap, Message, QueueStore, Released, Subscriber
from tornadose.capabilities import hears_gaps, hears_release, resumes, takes_batches


class Overriding(Direct[int]):
    async def publish(self, message: Message[int], /) -> None:
        await super().publish(message)


class OverridingBoth(Overriding):
    def publish_nowait(self, batch: Batch[int], /) -> bool:
        return super().publish_nowait(batch)


class OverridingNowait(Direct[int]):
    def publish_nowait(self, batch: Batch[int], /) -> bool:
        return super().publish_nowait(batch)


class Without(Told[int]):
    publish_gap = None  # type: ignore[assignment]  # a capability taken away
    released = None  # type: ignore[assignment]  # another one


def test_who_overrides_publish_sees_every_message() -> None:
    assert takes_batches(Direct[int]())
    assert not takes_batches(Overriding())
    assert takes_batches(OverridingBoth())
    assert takes_batches(OverridingNowait())
    assert not takes_batches(Plain[int]())


def test_the_hooks_are_found_on_the_type_and_not_on_the_instance() -> None:
    assert hears_gaps(Told[int]())
    assert hears_release(Told[int]())
    plain = Plain[int]()

    async def publish_gap(gap: Gap, /) -> None: ...
    def released(reason: Released, /) -> None: ...

    vars(plain).update(publish_gap=publish_gap, released=released)
    assert not hears_gaps(plain)
    assert not hears_release(plain)


def test_a_capability_can_be_taken_away() -> None:
    assert not hears_gaps(Without())
    assert not hears_release(Without())


class Minimal:
    def register(self, subscriber: Subscriber[int], /) -> None: ...
    def deregister(self, subscriber: Subscriber[int], /) -> None: ...


def test_stores_that_resume_say_so() -> None:
    assert resumes(QueueStore[int]())
    assert not resumes(Minimal())
