"""Whatever is written, independent clients read the same, however the bytes are cut."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, cast

import h11
import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import example, given
from hypothesis import strategies as st
from sseclient import SSEClient
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from harness import recorded
from property.strategies import (
    events,
    fields,
    json_values,
    lone_surrogates,
    not_json,
    refused_fields,
    text_messages,
    texts,
)
from tornadose import Batch, Gap, Message, PoisonedError, wire

Format = Callable[[Message[Any]], bytes]
AS_IT_IS = cast("wire.Encoder[Any] | None", None)
STREAM: Format = wire.event_stream(AS_IT_IS, chunked=False)
CHUNKED: Format = wire.event_stream(AS_IT_IS, chunked=True)
FRAME: Format = wire.websocket_frame(AS_IT_IS)
JSON: Format = wire.websocket_json(AS_IT_IS)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Event(NamedTuple):
    id: str
    event: str
    data: str


def seen(messages: Iterable[Message[str]]) -> list[Event]:
    """Tell what the standard makes of messages: LF line ends, and an id that stays."""
    found: list[Event] = []
    last = ""
    for message in messages:
        last = message.id or last
        text = message.data.replace("\r\n", "\n").replace("\r", "\n")
        found.append(Event(last, message.event or "message", text))
    return found


def read_by_httpx_sse(pieces: list[bytes]) -> list[Event]:
    headers = {"content-type": "text/event-stream"}
    source = EventSource(httpx.Response(200, headers=headers, content=iter(pieces)))
    return [Event(e.id, e.event, e.data) for e in source.iter_sse()]


def read_by_sseclient(pieces: list[bytes]) -> list[Event]:
    def source() -> Generator[bytes, None, None]:
        yield from pieces

    found: list[Event] = []
    for event in SSEClient(source()).events():
        last = event.id or (found[-1].id if found else "")
        found.append(Event(last, event.event, event.data))
    return found


def render(messages: Iterable[Message[str]], fmt: Format) -> bytes:
    body = Batch(messages).render(fmt)
    assert body is not None  # only what is very large is not rendered together
    return body


READERS = [read_by_httpx_sse, read_by_sseclient]


def cuts(body: bytes) -> Iterator[list[bytes]]:
    """Cut the body in two at every position, and once between all bytes."""
    for position in range(len(body) + 1):
        yield [piece for piece in (body[:position], body[position:]) if piece]
    yield [body[i : i + 1] for i in range(len(body))]


def dechunked(pieces: list[bytes]) -> list[bytes]:
    """Return the pieces of the body that an HTTP client makes of a chunked response."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    found: list[bytes] = []
    for piece in [HEAD, *pieces, b"0\r\n\r\n"]:
        client.receive_data(piece)
        while (event := client.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Data):
                found.append(bytes(event.data))
            if isinstance(event, h11.EndOfMessage):
                return found
    raise AssertionError("the response does not end")


@pytest.mark.parametrize("read", READERS)
@given(messages=st.lists(text_messages, min_size=1, max_size=2))
@example(messages=[Message("")])
@example(messages=[Message("", id=" ", event=" ")])
@example(messages=[Message("\r\n\r\n\r\n"), Message("\n\r"), Message(" x"), Message("\ufeff")])
@example(messages=[Message("data: a\n\nid: 7\n\n:"), Message("a\u2028b\x85c\x0bd\U0001f426")])
def test_clients_read_any_text_as_it_was_written_however_it_is_cut(
    read: Callable[[list[bytes]], list[Event]], messages: list[Message[str]]
) -> None:
    expected = seen(messages)
    for pieces in cuts(render(messages, STREAM)):
        assert read(pieces) == expected


@given(messages=st.lists(text_messages, min_size=1, max_size=2))
def test_chunks_are_read_as_what_they_hold_however_they_are_cut(
    messages: list[Message[str]],
) -> None:
    body = render(messages, STREAM)
    for pieces in cuts(render(messages, CHUNKED)):
        assert b"".join(dechunked(pieces)) == body
    assert read_by_httpx_sse(dechunked([render(messages, CHUNKED)])) == seen(messages)


@pytest.mark.parametrize("read", READERS)
@given(
    before=text_messages.filter(lambda message: message.data),
    after=text_messages.filter(lambda message: message.data),
    gap=st.builds(Gap, st.sampled_from(["overflow", "unknown", "outage"]), st.none() | fields),
    seconds=st.integers(0, 10_000),
)
def test_a_gap_is_an_event_that_leaves_the_cursor_of_the_client_where_it_is(
    read: Callable[[list[bytes]], list[Event]],
    before: Message[str],
    after: Message[str],
    gap: Gap,
    seconds: int,
) -> None:
    control = wire.COMMENT + wire.retry_field(seconds) + wire.gap_event(gap)
    body = before.render(STREAM) + control + after.render(STREAM)
    first, last = seen([before, after])
    expected = [first, Event(first.id, "gap", ""), last]
    for pieces in cuts(body):
        # httpx-sse takes a comment, or a retry field, for an event without data
        found = [event for event in read(pieces) if event.data]
        assert [event[:2] for event in found] == [event[:2] for event in expected]
        assert (found[0], found[2]) == (first, last)
        assert json.loads(found[1].data) == {"reason": gap.reason, "after": gap.after}


@given(seconds=st.integers(0, 10_000))
def test_the_reconnection_time_is_read_in_milliseconds(seconds: int) -> None:
    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, content=wire.retry_field(seconds))
    assert [e.retry for e in EventSource(response).iter_sse()] == [seconds * 1000]


@given(name=st.sampled_from(["id", "event"]), value=refused_fields)
def test_a_newline_nul_or_nothing_in_an_id_or_event_is_refused_with_the_value(
    name: str, value: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        Message("x", id=value) if name == "id" else Message("x", event=value)


def test_the_event_gap_is_refused_with_the_value_and_the_id_gap_is_not() -> None:
    with pytest.raises(ValueError, match="'gap'"):
        Message("x", event="gap")
    assert seen([Message("x", id="gap")]) == read_by_httpx_sse([STREAM(Message("x", id="gap"))])


def test_a_message_is_made_with_its_payload_type_written_out() -> None:
    assert Message[str]("x", id="1") == Message("x", id="1")


@given(message=text_messages)
def test_a_copied_or_unpickled_message_is_rendered_like_the_original(
    message: Message[str],
) -> None:
    unpickled = pickle.loads(pickle.dumps(message))  # noqa: S301  # what we have just made
    for again in [copy.copy(message), copy.deepcopy(message), unpickled]:
        assert again.render(STREAM) == message.render(STREAM)


# ---- what cannot be encoded


class Encoder:
    """Counts what it encodes; encodes as it is told to."""

    def __init__(self, returns: object = "", raises: Exception | None = None) -> None:
        self.calls = 0
        self.returns = returns
        self.raises = raises

    def __call__(self, data: object) -> Any:
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        return self.returns


def formats(encode: Callable[[Any], str] | None) -> list[wire.Format[Any]]:
    return [
        wire.event_stream(encode, chunked=False),
        wire.event_stream(encode, chunked=True),
        wire.websocket_json(encode),
        wire.websocket_frame(encode),
    ]


def check_poisoned(message: Message[Any], fmt: Format) -> None:
    """Render a message for three subscribers, alone and in a batch; expect one log line."""
    records: list[logging.LogRecord] = []
    with recorded(records.append):
        for batch in [Batch([message]), Batch([message, Message("x")]), Batch([message])]:
            with pytest.raises(PoisonedError, match=re.escape(repr(message.id))):
                batch.render(fmt)
            with pytest.raises(PoisonedError, match=re.escape(repr(message.id))):
                message.render(fmt)
    assert ["cannot be encoded" in record.getMessage() for record in records] == [True]
    assert records[0].exc_info is not None


@pytest.mark.parametrize("index", range(4))
@given(data=not_json, cursor=st.none() | fields)
def test_p5_what_is_no_json_is_poisoned_and_logged_once_per_format(
    index: int, data: object, cursor: str | None
) -> None:
    check_poisoned(Message(data, id=cursor), formats(None)[index])


@pytest.mark.parametrize("index", range(4))
@given(before=texts, lone=lone_surrogates, after=texts, cursor=st.none() | fields)
def test_p5_a_lone_surrogate_is_poisoned_and_logged_once_per_format(
    index: int, before: str, lone: str, after: str, cursor: str | None
) -> None:
    check_poisoned(Message(before + lone + after, id=cursor), formats(None)[index])


@pytest.mark.parametrize("index", range(4))
@given(
    encode=st.builds(Encoder, returns=st.one_of(st.none(), st.integers(), st.binary()))
    | st.builds(
        Encoder,
        raises=st.sampled_from([ValueError("no"), KeyError(1), RecursionError(), OSError()]),
    )
)
def test_p5_an_encoder_that_fails_is_called_once_per_message_and_format(
    index: int, encode: Encoder
) -> None:
    for calls in [1, 2]:
        check_poisoned(Message("x", id=str(calls)), formats(encode)[index])
        assert encode.calls == calls


@given(
    payloads=st.lists(json_values, min_size=1, max_size=4),
    text=texts,
    spans=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=8),
)
def test_p5_a_message_is_encoded_once_per_format_for_all_batches_that_hold_it(
    payloads: list[object], text: str, spans: list[tuple[int, int]]
) -> None:
    encode = Encoder(returns=text)
    batch = Batch([Message(payload) for payload in payloads])
    for number, index in enumerate(range(4), start=1):
        for first, size in [(0, 4), *spans, (0, 4)]:
            fmt = formats(encode)[index]
            part = batch[first : first + size]
            whole = b"".join(message.render(fmt) for message in part)
            assert part.render(fmt) == (whole if fmt.joins or len(part) < 2 else None)
        assert encode.calls == number * len(batch)


class Codec:
    """Encodes with a method, which is a new object each time it is asked for."""

    def encode(self, data: object) -> str:
        return f"<{data}>"


@given(data=texts, users=st.permutations(range(3)))
def test_a_format_lasts_as_long_as_any_of_those_who_use_it(data: str, users: list[int]) -> None:
    codec = Codec()
    encoders = dict(enumerate([codec.encode, codec.encode, codec.encode]))
    formats = {user: wire.event_stream(encode, chunked=False) for user, encode in encoders.items()}
    for user in users:
        for fmt in formats.values():
            assert read_by_httpx_sse([fmt(Message(data))]) == seen([Message(f"<{data}>")])
        del encoders[user], formats[user]


# ---- WebSocket


def client_after_handshake() -> ClientProtocol:
    client = ClientProtocol(parse_uri("ws://localhost/"), max_size=None)
    server = ServerProtocol()
    client.send_request(client.connect())
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    client.receive_data(b"".join(server.data_to_send()))
    client.events_received()
    return client


def read_frames(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the payloads that a client reads; whole text frames they must be."""
    client = client_after_handshake()
    for piece in pieces:
        client.receive_data(piece)
    assert client.data_to_send() == []  # no complaint
    payloads: list[bytes] = []
    for frame in client.events_received():
        assert isinstance(frame, Frame)
        assert (frame.opcode, frame.fin) == (Opcode.TEXT, True)
        payloads.append(bytes(frame.data))
    return payloads


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
def test_frames_of_every_form_of_length_are_read_as_what_they_hold(size: int) -> None:
    payload = bytes(i % 127 for i in range(size))
    header = 2 if size < 126 else 4 if size < 65536 else 10  # the shortest form, RFC 6455 5.2
    assert len(wire.text_frame(payload)) == header + size
    body = wire.text_frame(payload) + wire.text_frame(b"after")
    for position in {0, 1, 2, 3, 4, 9, 10, 11, size, len(body) - 3}:
        assert read_frames([body[:position], body[position:]]) == [payload, b"after"]


@given(payloads=st.lists(st.text(max_size=300).map(str.encode), max_size=3))
def test_frames_are_read_without_a_seam_however_they_are_cut(payloads: list[bytes]) -> None:
    body = b"".join(wire.text_frame(payload) for payload in payloads)
    for position in range(0, len(body) + 1, 7):
        assert read_frames([body[:position], body[position:]]) == payloads


@given(
    data=json_values,
    cursor=st.none() | fields,
    event=st.none() | events,
    gap=st.builds(Gap, st.sampled_from(["overflow", "unknown", "outage"]), st.none() | fields),
)
def test_websocket_clients_read_any_json_as_it_was_written(
    data: object, cursor: str | None, event: str | None, gap: Gap
) -> None:
    message = Message(data, id=cursor, event=event)
    body = message.render(FRAME) + wire.text_frame(wire.gap_object(gap))
    optional = {"id": cursor, "event": event}
    expected = {"data": data} | {key: value for key, value in optional.items() if value}
    payload, control = read_frames([body])
    assert json.loads(payload) == expected
    assert payload == message.render(JSON)
    assert json.loads(control) == {"gap": {"reason": gap.reason, "after": gap.after}}


@given(data=texts, rendered=json_values)
def test_bytes_and_what_an_encoder_returns_travel_as_text(data: str, rendered: object) -> None:
    message = Message(data.encode())
    assert read_by_httpx_sse([STREAM(message)]) == seen([Message(data)])
    assert json.loads(JSON(message)) == {"data": data}
    encode = Encoder(returns=json.dumps(rendered))
    assert json.loads(wire.websocket_json(encode)(message)) == {"data": json.dumps(rendered)}
