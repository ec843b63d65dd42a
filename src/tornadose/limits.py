"""How much a store keeps for subscribers that are behind, and for how many."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from .checks import check_seconds, check_size

__all__ = ("Limits", "Policy")

Policy: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "disconnect"]


class Limits:
    """How much is kept for those who are behind, and what happens beyond.

    Args:
        backlog: Messages kept for one subscriber.
        policy: ``block`` lets the publisher wait for room, ``drop_oldest`` and
            ``drop_newest`` give messages up, ``disconnect`` releases the subscriber.
        block_timeout: Seconds that one message may wait under ``block``, after which
            the subscribers without room are released.
        max_subscribers: Subscribers at a time; ``None`` is no limit.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If one is out of range, or the policy is unknown.
    """

    def __init__(
        self,
        backlog: int = 1024,
        policy: Policy = "disconnect",
        block_timeout: float = 5.0,
        max_subscribers: int | None = None,
    ) -> None:
        check_size("backlog", backlog, at_least=1)
        if policy not in get_args(Policy):
            raise ValueError(f"policy: {policy!r} is none of {get_args(Policy)}")
        check_seconds("block_timeout", block_timeout)
        if max_subscribers is not None:
            check_size("max_subscribers", max_subscribers, at_least=0)
        self.backlog = backlog
        self.policy: Policy = policy
        self.block_timeout = block_timeout
        self.max_subscribers = max_subscribers
