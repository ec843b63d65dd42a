"""Refuse wrong arguments where they enter, with the value in the message."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import isawaitable

__all__ = ("check_methods", "check_seconds", "check_size", "checked_awaitable")

LONGEST = 1e9  # seconds, which is longer than anybody waits, and what the system can still count


def check_size(name: str, value: object, at_least: int) -> None:
    """Refuse what is no whole number of at least this much."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, not {value!r}")
    if value < at_least:
        raise ValueError(f"{name}: {value!r} is less than {at_least}")


def check_seconds(
    name: str, value: object, *, or_none: bool = False, or_zero: bool = False
) -> None:
    """Refuse what is no positive number of seconds, nor one of the exceptions."""
    if value is None and or_none:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected seconds, not {value!r}")
    if not 0 <= value <= LONGEST or (value == 0 and not or_zero):
        raise ValueError(f"{name}: {value!r} is not a usable number of seconds")


def check_methods(what: str, value: object, *names: str) -> None:
    """Refuse what lacks one of these methods, and a class in the place of an instance."""
    if isinstance(value, type):
        raise TypeError(f"{what}: expected an instance, not {value!r}")
    for name in names:
        if not callable(getattr(value, name, None)):
            raise TypeError(f"{what}: {value!r} has no method {name}()")


def checked_awaitable(hook: str, returned: object) -> Awaitable[object]:
    """Return what `publish`, or another hook, has returned, and refuse what cannot be awaited."""
    if not isawaitable(returned):
        raise TypeError(f"{hook} returned {returned!r}: it has to be `async def`")
    return returned
