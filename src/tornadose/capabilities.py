"""Which optional protocols an object satisfies, read off its type."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from .protocols import (
    GapSubscriber,
    LateSubscriber,
    LeavingSubscriber,
    NowaitSubscriber,
    ReleasedSubscriber,
    ResumableSource,
    Source,
    Store,
    Subscriber,
    TargetedStore,
)

__all__ = (
    "begins_late",
    "hears_gaps",
    "hears_release",
    "leaves_slowly",
    "resumes",
    "takes_batches",
    "targets",
)

T = TypeVar("T")


def takes_batches(subscriber: Subscriber[T]) -> TypeGuard[NowaitSubscriber[T]]:
    """Tell whether `publish_nowait` may stand in for the effective `publish`."""
    nowait = _definer(subscriber, "publish_nowait")
    publish = _definer(subscriber, "publish")
    return nowait is not None and publish is not None and issubclass(nowait, publish)


def hears_gaps(subscriber: Subscriber[T]) -> TypeGuard[GapSubscriber[T]]:
    return _definer(subscriber, "publish_gap") is not None


def hears_release(subscriber: Subscriber[T]) -> TypeGuard[ReleasedSubscriber[T]]:
    return _definer(subscriber, "released") is not None


def begins_late(subscriber: Subscriber[T]) -> TypeGuard[LateSubscriber[T]]:
    return _definer(subscriber, "acceptance") is not None


def leaves_slowly(subscriber: Subscriber[T]) -> TypeGuard[LeavingSubscriber[T]]:
    return _definer(subscriber, "leaving") is not None


def resumes(source: Source[T]) -> TypeGuard[ResumableSource[T]]:
    return _definer(source, "resume") is not None


def targets(store: Store[T]) -> TypeGuard[TargetedStore[T]]:
    return _definer(store, "deliver") is not None


def _definer(instance: object, name: str) -> type | None:
    """Return the class in which the type of the instance finds this method, if it does."""
    classes = (c for c in type(instance).__mro__ if not getattr(c, "_is_protocol", False))
    definer = next((c for c in classes if name in vars(c)), None)
    return definer if definer is not None and callable(vars(definer)[name]) else None
