"""Subscribers that are Tornado request handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import BaseHandler
from .eventsource import EventSource

__all__ = ("BaseHandler", "EventSource", "WebSocketSubscriber")

if TYPE_CHECKING:
    from .websocket import WebSocketSubscriber
else:

    def __getattr__(name: str) -> object:
        """Load WebSockets, and Tornado's client for them, when they are asked for (PEP 562)."""
        if name != "WebSocketSubscriber":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .websocket import WebSocketSubscriber

        return WebSocketSubscriber
