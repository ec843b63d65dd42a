"""Stores in Redis: the one part of the package that knows redis-py."""

from __future__ import annotations

from .channel import RedisStore
from .stream import RedisStreamStore

__all__ = ("RedisStore", "RedisStreamStore")
