"""Publish live data from a Tornado server to browsers and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import handlers, stores
from .exceptions import (
    GapError,
    OutcomeUnknownError,
    PoisonedError,
    ReleasedError,
    StoreClosedError,
    StoreFullError,
    TornadoseError,
)
from .handlers import BaseHandler, EventSource
from .limits import Policy
from .messages import Batch, Gap, GapReason, Message
from .protocols import (
    GapSubscriber,
    LateSubscriber,
    LeavingSubscriber,
    NowaitSubscriber,
    Released,
    ReleasedSubscriber,
    ResumableSource,
    Sink,
    Source,
    Store,
    Subscriber,
    TargetedStore,
)
from .statistics import Statistics
from .stores import BaseStore, DataStore, QueueStore
from .subscription import subscribe

if TYPE_CHECKING:
    from .handlers import WebSocketSubscriber as WebSocketSubscriber
    from .stores import RedisStore as RedisStore
    from .stores import RedisStreamStore as RedisStreamStore

__all__ = (
    "BaseHandler",
    "BaseStore",
    "Batch",
    "DataStore",
    "EventSource",
    "Gap",
    "GapError",
    "GapReason",
    "GapSubscriber",
    "LateSubscriber",
    "LeavingSubscriber",
    "Message",
    "NowaitSubscriber",
    "OutcomeUnknownError",
    "PoisonedError",
    "Policy",
    "QueueStore",
    "Released",
    "ReleasedError",
    "ReleasedSubscriber",
    "ResumableSource",
    "Sink",
    "Source",
    "Statistics",
    "Store",
    "StoreClosedError",
    "StoreFullError",
    "Subscriber",
    "TargetedStore",
    "TornadoseError",
    "WebSocketSubscriber",
    "subscribe",
)

__version__ = "1.0.0"

_lazy = {"RedisStore": stores, "RedisStreamStore": stores, "WebSocketSubscriber": handlers}


def __getattr__(name: str) -> object:
    """Load what imports much when it is asked for (PEP 562)."""
    if name in _lazy:
        return getattr(_lazy[name], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
