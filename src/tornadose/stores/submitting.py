"""Those who are in `submit`, to be let go of when nobody makes room for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Generator
from contextlib import contextmanager

from ..exceptions import StoreClosedError

__all__ = ("Submitters",)


class Submitters:
    """The tasks that are in the `submit` of a store; true if there are any."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._let_go: set[asyncio.Task[object]] = set()  # those that were cancelled here

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @contextmanager
    def joined(self) -> Generator[None]:
        """Have the current task among them.

        Raises:
            StoreClosedError: If it was let go of.
        """
        task = asyncio.current_task()
        if task is None or task in self._tasks:
            yield
            return
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._let_go or task.uncancel():
                raise
            raise StoreClosedError("the store has failed, or was closed meanwhile") from None
        finally:
            self._tasks.discard(task)
            self._let_go.discard(task)

    def let_go(self, but: Collection[asyncio.Task[object] | None] = ()) -> None:
        """Let their `submit` raise `StoreClosedError`, but for these and the current task."""
        for task in self._tasks - self._let_go:
            if task not in but and task is not asyncio.current_task():
                self._let_go.add(task)
                task.cancel()
