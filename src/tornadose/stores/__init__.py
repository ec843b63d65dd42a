"""Where messages go in, and from where they are published."""

from __future__ import annotations

from .base import BaseStore
from .memory import DataStore, QueueStore

__all__ = ("BaseStore", "DataStore", "QueueStore")
