"""What can go wrong, one class per situation.

TornadoseError
├── StoreClosedError    the store was closed, or is closing
├── StoreFullError      the inbox has no room, and the caller does not wait
├── OutcomeUnknownError the broker's reply was lost: the message may have been accepted
├── PoisonedError       this message cannot be encoded; the others can
├── GapError            messages were missed here, and iterating again goes on
└── ReleasedError       the store has let go of this subscription

Wrong arguments raise ``TypeError`` or ``ValueError``; use from another event loop
or thread raises ``RuntimeError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .messages import Gap
    from .protocols import Released

__all__ = (
    "GapError",
    "OutcomeUnknownError",
    "PoisonedError",
    "ReleasedError",
    "StoreClosedError",
    "StoreFullError",
    "TornadoseError",
)


class TornadoseError(Exception):
    """The root of this package's exceptions."""


class StoreClosedError(TornadoseError):
    """The store was closed, or is closing: it takes no messages and no subscribers."""


class StoreFullError(TornadoseError):
    """The inbox of the store is full. ``await store.submit(...)`` waits for room instead."""


class OutcomeUnknownError(TornadoseError):
    """The message was sent to the broker, and the reply was lost.

    It may have been accepted, or not. The store does not send it again; whoever can bear
    to have it twice may submit it again. The cause tells what has happened.
    """


class PoisonedError(TornadoseError):
    """This message cannot be encoded.

    A subscriber's ``publish`` or ``publish_nowait`` may raise it: the message is counted
    as poisoned, a gap is announced in its place, and the subscription goes on.
    """


class GapError(TornadoseError):
    """Messages were, or may have been, missed at this place of an iteration.

    Attributes:
        gap: What is known of the hole.
    """

    def __init__(self, gap: Gap) -> None:
        super().__init__(gap)
        self.gap: Gap = gap

    def __str__(self) -> str:
        after = "" if self.gap.after is None else f" after {self.gap.after!r}"
        return f"messages{after} were missed: {self.gap.reason}"


class ReleasedError(TornadoseError):
    """The store has let go of this subscription; what it had room for was delivered.

    Attributes:
        reason: Why, one of the values of `Released`.
    """

    def __init__(self, reason: Released) -> None:
        super().__init__(reason)
        self.reason: Released = reason

    def __str__(self) -> str:
        return f"the store released this subscription: {self.reason}"
