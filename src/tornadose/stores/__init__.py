"""Where messages go in, and from where they are published."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .base import BaseStore
from .memory import DataStore, QueueStore

if TYPE_CHECKING:
    from .redis import RedisStore as RedisStore
    from .redis import RedisStreamStore as RedisStreamStore

__all__ = ("BaseStore", "DataStore", "QueueStore")


def __getattr__(name: str) -> object:
    """Load the Redis stores when they are asked for (PEP 562)."""
    if name not in ("RedisStore", "RedisStreamStore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(".redis", __name__)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("redis"):
            raise
        raise ImportError(f'{name} needs redis-py: pip install "tornadose[redis]"') from error
    value: object = getattr(module, name)
    return value
