"""Publish live data from a Tornado server to browsers and programs."""

from __future__ import annotations

from .exceptions import (
    GapError,
    PoisonedError,
    ReleasedError,
    StoreClosedError,
    StoreFullError,
    TornadoseError,
)
from .handlers import BaseHandler, EventSource, WebSocketSubscriber
from .lanes import Policy
from .messages import Batch, Gap, GapReason, Message
from .protocols import (
    GapSubscriber,
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
    "LeavingSubscriber",
    "Message",
    "NowaitSubscriber",
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
