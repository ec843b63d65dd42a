"""Messages as bytes: server-sent events, and WebSocket frames with JSON in them. Pure.

Source: WHATWG HTML, 9.2 Server-sent events; RFC 6455, 5.2 Base Framing Protocol;
RFC 9112, 7.1 Chunked Transfer Coding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from .messages import Gap, Message

__all__ = (
    "COMMENT",
    "Encoder",
    "Format",
    "chunk",
    "event_stream",
    "gap_event",
    "gap_object",
    "retry_field",
    "text_frame",
    "websocket_frame",
    "websocket_json",
)

T = TypeVar("T")
Encoder: TypeAlias = Callable[[T], str]

COMMENT = b":\n\n"


def text_of(data: object) -> str:
    """Return a string as it is, bytes decoded from UTF-8, and everything else as JSON."""
    if isinstance(data, str):
        return data
    if isinstance(data, bytes | bytearray):
        return str(data, "utf-8")
    return json_of(data)


def json_of(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def data_json(data: object) -> str:
    """Return the JSON for a payload; bytes stand for the text they encode."""
    return json_of(text_of(data) if isinstance(data, bytes | bytearray) else data)


def event(message: Message[object], text: str) -> bytes:
    """Return a server-sent event; clients see every line end of the text as LF."""
    if "\r" in text:  # to look takes a tenth of the time
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in text:
        text = text.replace("\n", "\ndata: ")
    # Joined, as an f-string would give a member of a string enumeration by its name.
    id_line = "" if message.id is None else "id: " + message.id + "\n"
    event_line = "" if message.event is None else "event: " + message.event + "\n"
    return "".join((id_line, event_line, "data: ", text, "\n\n")).encode()


def gap_event(gap: Gap) -> bytes:
    """Return the control event for a gap; without an id, a client's cursor stays."""
    return f"event: gap\ndata: {json_of({'reason': gap.reason, 'after': gap.after})}\n\n".encode()


def retry_field(seconds: float) -> bytes:
    """Return the field that sets a client's reconnection time."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def chunk(body: bytes) -> bytes:
    """Return the body as one chunk of a chunked response."""
    return b"".join((b"%x\r\n" % len(body), body, b"\r\n"))


def event_chunk(message: Message[object], text: str) -> bytes:
    return chunk(event(message, text))


def websocket_object(message: Message[object], json_text: str) -> bytes:
    """Return the JSON object for a message, with the text as its data."""
    id_part = "" if message.id is None else f',"id":{json_of(message.id)}'
    event_part = "" if message.event is None else f',"event":{json_of(message.event)}'
    return f'{{"data":{json_text}{id_part}{event_part}}}'.encode()


def websocket_text(message: Message[object], text: str) -> bytes:
    return websocket_object(message, json_of(text))


def websocket_text_frame(message: Message[object], text: str) -> bytes:
    return text_frame(websocket_text(message, text))


def websocket_object_frame(message: Message[object], json_text: str) -> bytes:
    return text_frame(websocket_object(message, json_text))


def gap_object(gap: Gap) -> bytes:
    """Return the JSON object that tells a WebSocket client of a gap."""
    return json_of({"gap": {"reason": gap.reason, "after": gap.after}}).encode()


def text_frame(payload: bytes) -> bytes:
    """Return an unmasked text frame, which serves every client alike."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x81, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


class Format(Generic[T]):
    """A way to make bytes of a message, known by its identity.

    Attributes:
        joins: Whether the bytes of several messages may stand together.

    Args:
        frame: Makes the bytes of the message and its text.
        encode: Makes the text of the payload.
    """

    __slots__ = ("__weakref__", "_encode", "_frame", "joins")

    def __init__(self, frame: Callable[[Message[T], str], bytes], encode: Encoder[T]) -> None:
        self._frame = frame
        self._encode = encode
        self.joins = frame not in (websocket_object, websocket_text)

    def __call__(self, message: Message[T]) -> bytes:
        return self._frame(message, check_text(self._encode(message.data)))


_formats: WeakValueDictionary[object, Format[Any]] = WeakValueDictionary()
_lasting: set[Format[Any]] = set()  # those without an encoder of the user's


def _shared(frame: Callable[[Message[T], str], bytes], encode: Encoder[T]) -> Format[T]:
    """Return one and the same format as long as somebody uses it."""
    return _formats.setdefault((frame, encode), Format(frame, encode))


def _default(frame: Callable[[Message[T], str], bytes], encode: Encoder[T]) -> Format[T]:
    fmt = _shared(frame, encode)
    _lasting.add(fmt)
    return fmt


def check_text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the encoder returned {text!r}, which is no string")
    return text


def event_stream(encode: Encoder[T] | None, *, chunked: bool) -> Format[T]:
    """Return the format of an event stream."""
    frame = event_chunk if chunked else event
    return _default(frame, text_of) if encode is None else _shared(frame, encode)


def websocket_json(encode: Encoder[T] | None) -> Format[T]:
    """Return the format of WebSocket payloads; the encoder's text is a JSON string."""
    if encode is None:
        return _default(websocket_object, data_json)
    return _shared(websocket_text, encode)


def websocket_frame(encode: Encoder[T] | None) -> Format[T]:
    """Return the format of whole WebSocket frames."""
    if encode is None:
        return _default(websocket_object_frame, data_json)
    return _shared(websocket_text_frame, encode)
