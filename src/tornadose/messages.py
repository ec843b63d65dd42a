"""The values that travel: messages, batches of them, and gaps."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import FrozenInstanceError, dataclass
from time import monotonic
from traceback import format_exception_only
from types import MethodType
from typing import Final, Generic, Literal, TypeAlias, TypeVar, cast, overload
from weakref import WeakMethod, ref

from .exceptions import PoisonedError

__all__ = ("BATCH", "BATCH_BYTES", "Batch", "Gap", "GapReason", "Message", "numbered")

log = logging.getLogger("tornadose")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

GapReason: TypeAlias = Literal["overflow", "expired", "unknown", "restarted", "outage", "poisoned"]
BATCH = 32  # messages that are encoded and written together, at most
BATCH_BYTES = 1 << 18
SLOW = 0.002  # seconds of encoding, after which the rest of a batch is left for later
MANY_FORMATS = 8  # renderings, from which on it is worth looking for old ones
_MISSING = b"not rendered yet"  # known by its identity
_FORBIDDEN = "[\r\n\0\ud800-\udfff]"


class _Flaw(str):
    """Why a message cannot be encoded; the error itself would hold the frames it came from."""

    __slots__ = ()


class _Shared:
    """Remembers one rendering per format, outside the fields that make up a value.

    Formats are held weakly, as their encoder may be a method of a client's handler.
    """

    __slots__ = ("_renderings",)
    _renderings: dict[object, bytes | _Flaw]

    def _recall(self, key: object) -> bytes | _Flaw | None:
        try:
            return self._renderings.get(key)
        except AttributeError:  # the first time
            object.__setattr__(self, "_renderings", {})
            return None

    def _remember(self, key: object, rendering: bytes | _Flaw) -> None:
        """Keep it, and let go of those whose format nobody uses any more."""
        if len(self._renderings) >= MANY_FORMATS:
            for old in [key for key in self._renderings if _is_gone(key)]:
                del self._renderings[old]
        self._renderings[key] = rendering


def _key(fmt: Callable[..., object]) -> object:
    """Return what stands for this format without keeping it alive."""
    if isinstance(fmt, MethodType):
        return WeakMethod(fmt)
    try:
        return ref(fmt)
    except TypeError:  # a builtin
        return fmt


def _is_gone(key: object) -> bool:
    return isinstance(key, ref) and key() is None


@dataclass(frozen=True, slots=True, init=False)
class Message(_Shared, Generic[T_co]):
    """A payload on its way from a store to its subscribers.

    Args:
        data: The payload, of any type that the subscriber's encoder takes. It is kept as it
            is, not copied: who changes it later changes what is sent.
        id: The opaque cursor from which a client can resume; ``None`` where the
            store cannot resume.
        event: The event type; ``None`` is the default type, ``"message"``.

    Raises:
        TypeError: If ``id`` or ``event`` is neither a string nor ``None``.
        ValueError: If one of them is empty or has a newline, NUL or surrogate in it,
            or if the event is ``"gap"``, which is the name of the control frame.

    Source: WHATWG HTML, 9.2.6 Interpreting an event stream.
    """

    data: T_co
    id: str | None = None
    event: str | None = None

    def __init__(
        self,
        data: T_co,
        id: str | None = None,  # noqa: A002 (the name of the field)
        event: str | None = None,
    ) -> None:
        if id is not None:
            _check_field("id", id)
        if event is not None:
            check_event(event)
        _set_data(self, data)
        _set_id(self, id)
        _set_event(self, event)

    def __reduce__(self) -> tuple[type[Message[T_co]], tuple[T_co, str | None, str | None]]:
        return type(self), (self.data, self.id, self.event)

    def render(self, fmt: Callable[[Message[T_co]], bytes], /) -> bytes:
        """Return the message in this format, encoded at most once for all who share it.

        Raises:
            PoisonedError: If it cannot be encoded, which is logged the first time.
        """
        rendering = self._recall(key := _key(fmt))
        if rendering is None:
            try:
                rendering = _bytes_of(fmt(self))
            except Exception as error:
                log.exception(
                    "message %r (event %r) cannot be encoded; see `encode` about its %s",
                    self.id,
                    self.event,
                    type(self.data).__name__,
                )
                rendering = _Flaw("".join(format_exception_only(error)).strip())
            self._remember(key, rendering)
        if isinstance(rendering, _Flaw):
            raise PoisonedError(f"message {self.id!r}: {rendering}")
        return rendering


def _bytes_of(rendering: object) -> bytes:
    if not isinstance(rendering, bytes):
        raise TypeError(f"the format returned {type(rendering).__name__}, not bytes")
    return rendering


# A frozen class sets its slots by their descriptors, or twice as slowly by their names.
_set_data, _set_id, _set_event = (
    getattr(Message, name).__set__ for name in ("data", "id", "event")
)


def _refuse(message: Message[object], name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


# The one that dataclass makes raises TypeError for Message[int](1) on Python 3.11.
setattr(Message, "__setattr__", _refuse)  # noqa: B010


@dataclass(frozen=True, slots=True)
class Gap:
    """A statement that messages were, or may have been, missed.

    Args:
        reason: ``overflow``, the subscriber was too slow; ``expired``, its id is older
            than the history; ``unknown``, its id is not one of this store's;
            ``restarted``, its id is from before a restart; ``outage``, the broker was
            out of reach; ``poisoned``, a message could not be encoded or decoded.
        after: The last id known to be delivered before the gap.
    """

    reason: GapReason
    after: str | None = None


class Batch(Sequence[Message[T_co]]):
    """An immutable sequence of messages that all subscribers share.

    Attributes:
        last_id: The id of the last message that has one.
    """

    __slots__ = ("_messages", "_renderings", "last_id")

    def __init__(self, messages: Iterable[Message[T_co]]) -> None:
        self._messages = tuple(messages)
        self._renderings: dict[Callable[..., object], bytes | None] = {}
        self.last_id: Final = next((m.id for m in reversed(self._messages) if m.id), None)

    @overload
    def __getitem__(self, index: int) -> Message[T_co]: ...
    @overload
    def __getitem__(self, index: slice) -> Batch[T_co]: ...
    def __getitem__(self, index: int | slice) -> Message[T_co] | Batch[T_co]:
        if isinstance(index, slice):
            return Batch(self._messages[index])
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message[T_co]]:
        return iter(self._messages)

    def __repr__(self) -> str:
        return f"Batch({list(self._messages)!r})"

    def render(self, fmt: Callable[[Message[T_co]], bytes], /) -> bytes | None:
        """Return all messages in this format, one after the other, joined at most once.

        Returns ``None`` for several messages that are written one at a time: more than
        256 KiB together, or in a format whose attribute ``joins`` is false. So it does while
        encoding takes long, and goes on with the rest when it is called again.

        Raises:
            PoisonedError: If one of them cannot be encoded.
        """
        rendering = self._renderings.get(fmt, _MISSING)
        if rendering is not _MISSING:
            return rendering
        parts = list[bytes]()
        until = monotonic() + SLOW
        for message in self._messages:
            if parts and monotonic() > until:
                return None
            parts.append(message.render(fmt))
        apart = not getattr(fmt, "joins", True) or sum(map(len, parts)) > BATCH_BYTES
        rendering = None if apart and len(parts) > 1 else b"".join(parts)
        self._renderings[fmt] = rendering
        return rendering


def numbered(data: T, cursor: str, event: str | None) -> Message[T]:
    """Return a message with an id of the store's own making, which needs no check."""
    if event is not None:
        check_event(event)
    message = cast("Message[T]", object.__new__(Message))
    _set_data(message, data)
    _set_id(message, cursor)
    _set_event(message, event)
    return message


def check_event(event: str) -> None:
    """Refuse what is no event name, or the reserved one.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is empty, ``"gap"``, or has a newline, NUL or surrogate in it.
    """
    _check_field("event", event)
    if event == "gap":
        raise ValueError("event: 'gap' is reserved for the control frame")


def check_message(message: object) -> None:
    """Refuse what is no message."""
    if not isinstance(message, Message):
        raise TypeError(f"expected a Message, not {message!r}")


def check_cursor(after: object) -> None:
    """Refuse what cannot be an id at all; whether it is one, the source will tell."""
    if not isinstance(after, str):
        raise TypeError(f"after: expected a string, not {after!r}")


def _check_field(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, not {value!r}")
    if value and value.isprintable():  # as nearly all are, which is seen faster
        return
    if not value or re.search(_FORBIDDEN, value):
        raise ValueError(f"{name}: {value!r} is empty or has a newline, NUL or surrogate in it")
