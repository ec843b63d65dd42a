"""What a store and a subscriber are. Implement these; inherit nothing.

A subscriber needs `Subscriber.publish` alone, a store `register`, `deregister` and
`submit`. The other protocols are capabilities that a class may have besides; they are
looked for on the type.
"""

from __future__ import annotations

from asyncio import Event
from typing import Literal, Protocol, TypeAlias, TypeVar

from .messages import Batch, Gap, Message

__all__ = (
    "GapSubscriber",
    "LateSubscriber",
    "LeavingSubscriber",
    "NowaitSubscriber",
    "Released",
    "ReleasedSubscriber",
    "ResumableSource",
    "Sink",
    "Source",
    "Store",
    "Subscriber",
    "TargetedStore",
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

Released: TypeAlias = Literal["overflow", "failed", "timeout", "closed", "limit"]


class Subscriber(Protocol[T_contra]):
    """Whoever receives messages."""

    async def publish(self, message: Message[T_contra], /) -> None:
        """Take one message, and return when ready for the next.

        Raising ends the subscription, but for `PoisonedError`, which refuses this
        message alone. It is cancelled when the subscriber is deregistered meanwhile.
        """
        ...


class NowaitSubscriber(Subscriber[T_contra], Protocol[T_contra]):
    """A subscriber that can tell at once whether it keeps up.

    Used only if the class that defines `publish_nowait` is the one that defines the
    effective `publish`, or derives from it: who overrides `publish` sees every message.
    """

    def publish_nowait(self, batch: Batch[T_contra], /) -> bool:
        """Take the whole batch and return true, or take nothing and return false."""
        ...


class GapSubscriber(Subscriber[T_contra], Protocol[T_contra]):
    """A subscriber that is told of gaps; for others they are logged."""

    async def publish_gap(self, gap: Gap, /) -> None:
        """Take note that messages were missed at this place of the stream."""
        ...


class ReleasedSubscriber(Subscriber[T_contra], Protocol[T_contra]):
    """A subscriber that is told when the store lets go of it."""

    def released(self, reason: Released, /) -> None:
        """Say goodbye: nothing more will be delivered.

        ``overflow``, the backlog was full; ``failed``, `publish` raised or the store
        failed; ``timeout``, there was no room for `block_timeout` seconds, or the
        deadline of `aclose` has passed; ``closed``, the store was closed and everything
        was delivered; ``limit``, the store has `max_subscribers` already.
        """
        ...


class LateSubscriber(Subscriber[T_contra], Protocol[T_contra]):
    """A subscriber that may be registered before it can take anything."""

    def acceptance(self) -> Event | None:
        """Return, at registration, what to wait for before any delivery; ``None`` if nothing."""
        ...


class LeavingSubscriber(ReleasedSubscriber[T_contra], Protocol[T_contra]):
    """A subscriber whose goodbye takes time, for which `aclose` waits."""

    def leaving(self) -> bool:
        """Tell, after `released`, whether it is not gone yet and will `deregister` then."""
        ...


class Source(Protocol[T_co]):
    """Where messages come from."""

    def register(self, subscriber: Subscriber[T_co], /) -> None:
        """Deliver to this subscriber what is accepted from now on. Twice does nothing."""
        ...

    def deregister(self, subscriber: Subscriber[T_co], /) -> None:
        """Begin no further delivery to this subscriber. A stranger does nothing."""
        ...


class ResumableSource(Source[T_co], Protocol[T_co]):
    """A source that can go on where a subscriber left it."""

    def resume(self, subscriber: Subscriber[T_co], after: str, /) -> None:
        """Register, and deliver first what came after the message with this id.

        An id that cannot be used is a gap in the stream, never an error.
        """
        ...


class Sink(Protocol[T_contra]):
    """Where messages go in.

    Where `submit` itself publishes to the subscribers, it lets none of them delay the others
    or keep their message from them, and takes note of what `Subscriber.publish` raises.
    `BaseStore` does all that.
    """

    async def submit(self, data: T_contra, /, *, event: str | None = None) -> Message[object]:
        """Accept the payload, and return the message it has become."""
        ...


class Store(Source[T], Sink[T], Protocol[T]):
    """A source and a sink: what the handlers ask for."""

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Accept the payload, and return the message it has become."""
        ...


class TargetedStore(Store[T], Protocol[T]):
    """A store that can queue a message for one of its subscribers."""

    async def deliver(self, subscriber: Subscriber[T], message: Message[T], /) -> bool:
        """Queue it behind what the subscriber has not taken yet; false for a stranger."""
        ...
