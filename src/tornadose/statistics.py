"""The books of a store: what became of every message for every subscriber."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("Books", "Statistics")


class Statistics(NamedTuple):
    """A moment in the life of a store.

    ``subscribers``, ``submitted``, ``published``, ``gaps``, ``resumed`` and
    ``max_backlog`` count what they say; the others count (message, subscriber) pairs,
    replays included, and always
    ``offered == delivered + dropped + poisoned + abandoned + pending``.

    Args:
        subscribers: Subscribers now.
        submitted: Messages accepted.
        published: Messages handed to the fan-out.
        offered: Pairs handed to a subscriber's lane.
        delivered: Pairs that the subscriber took.
        dropped: Pairs given up by the backlog policy.
        poisoned: Pairs that could not be encoded.
        abandoned: Pairs given up because the subscriber left or was released.
        pending: Pairs in a backlog or on their way.
        gaps: Gaps announced, or logged for those who have no gap hook.
        resumed: Subscriptions that asked to continue after an id.
        max_backlog: The longest backlog there has been, in messages.
    """

    subscribers: int = 0
    submitted: int = 0
    published: int = 0
    offered: int = 0
    delivered: int = 0
    dropped: int = 0
    poisoned: int = 0
    abandoned: int = 0
    pending: int = 0
    gaps: int = 0
    resumed: int = 0
    max_backlog: int = 0


class Books:
    """The running counts that the lanes of one fan-out keep together."""

    published = 0
    offered = 0
    delivered = 0
    dropped = 0
    poisoned = 0
    abandoned = 0
    pending = 0
    gaps = 0
    resumed = 0
    max_backlog = 0

    def took(self, count: int) -> None:
        """Count messages that a subscriber took when they were offered."""
        self.offered += count
        self.delivered += count
