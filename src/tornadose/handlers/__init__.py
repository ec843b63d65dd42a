"""Subscribers that are Tornado request handlers."""

from __future__ import annotations

from .base import BaseHandler
from .eventsource import EventSource
from .websocket import WebSocketSubscriber

__all__ = ("BaseHandler", "EventSource", "WebSocketSubscriber")
