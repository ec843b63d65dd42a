"""The bytes, by example; tests/property/ reads them with parsers that are not ours."""

from __future__ import annotations

import weakref
from enum import Enum

import pytest

from conftest import Logged
from tornadose import Batch, Gap, Message, PoisonedError
from tornadose.wire import (
    Format,
    chunk,
    event_stream,
    gap_event,
    gap_object,
    retry_field,
    text_frame,
    websocket_frame,
    websocket_json,
)


class Word(str, Enum):  # noqa: UP042 (which format as their names)
    READY = "ready"


STREAM: Format[object] = event_stream(None, chunked=False)
CHUNKS: Format[object] = event_stream(None, chunked=True)
JSON: Format[object] = websocket_json(None)
FRAMES: Format[object] = websocket_frame(None)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message("x"), "data: x\n\n"),
        (Message("x", "a-1", "tick"), "id: a-1\nevent: tick\ndata: x\n\n"),
        (Message(""), "data: \n\n"),
        (Message(" x"), "data:  x\n\n"),
        (Message("a\nb\rc\r\nd\n"), "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
        (Message("\u2028\ufeff\x85\x0b"), "data: \u2028\ufeff\x85\x0b\n\n"),
        (Message("é".encode()), "data: é\n\n"),
        (Message({"é": [1, None]}), 'data: {"é":[1,null]}\n\n'),
        (Message(1.5), "data: 1.5\n\n"),
        (Message(Word.READY, Word.READY, Word.READY), "id: ready\nevent: ready\ndata: ready\n\n"),
    ],
)
def test_an_event_is_its_fields_line_by_line(message: Message[object], expected: str) -> None:
    assert message.render(STREAM) == expected.encode()
    assert message.render(CHUNKS) == chunk(expected.encode())


def test_an_encoder_makes_the_text() -> None:
    assert Message(2).render(event_stream(bin, chunked=False)) == b"data: 0b10\n\n"
    assert Message(2, "i").render(websocket_json(str)) == b'{"data":"2","id":"i"}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message("x"), '{"data":"x"}'),
        (Message(b"x", "a-1"), '{"data":"x","id":"a-1"}'),
        (Message([1, None], event="tick"), '{"data":[1,null],"event":"tick"}'),
        (Message(None, 'q"', "t"), '{"data":null,"id":"q\\"","event":"t"}'),
        (Message(Word.READY, event=Word.READY), '{"data":"ready","event":"ready"}'),
    ],
)
def test_a_websocket_message_is_a_json_object(message: Message[object], expected: str) -> None:
    assert message.render(JSON) == expected.encode()
    assert message.render(FRAMES) == text_frame(expected.encode())


@pytest.mark.parametrize("data", [float("nan"), float("inf"), object(), "\ud800", b"\xff"])
def test_p9_what_cannot_be_encoded_is_poisoned(data: object, logged: Logged) -> None:
    for fmt in (STREAM, JSON):
        with pytest.raises(PoisonedError):
            Message(data).render(fmt)
    logged.take("cannot be encoded", times=2)


def test_p9_an_encoder_that_returns_no_string_is_poison(logged: Logged) -> None:
    def wrong(data: int) -> str:
        return data  # type: ignore[return-value]

    with pytest.raises(PoisonedError, match="7, which is no string"):
        Message(7).render(event_stream(wrong, chunked=False))
    logged.take("cannot be encoded")


def test_equal_arguments_give_one_format_as_long_as_it_is_used() -> None:
    def encode(data: object) -> str:
        return str(data)

    first = event_stream(encode, chunked=True)
    assert event_stream(encode, chunked=True) is first
    assert event_stream(encode, chunked=False) is not first
    assert CHUNKS is not first
    assert websocket_json(encode) is not websocket_frame(encode)


def test_control_frames_carry_no_id() -> None:
    assert gap_event(Gap("expired", "a-1")) == (
        b'event: gap\ndata: {"reason":"expired","after":"a-1"}\n\n'
    )
    assert gap_object(Gap("unknown")) == b'{"gap":{"reason":"unknown","after":null}}'
    assert retry_field(1.5) == b"retry: 1500\n\n"


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, b"\x81\x00"), (125, b"\x81\x7d"), (126, b"\x81\x7e\x00\x7e"),
     (65535, b"\x81\x7e\xff\xff"), (65536, b"\x81\x7f" + (65536).to_bytes(8, "big"))],
)  # fmt: skip
def test_a_frame_has_the_shortest_length_field(size: int, head: bytes) -> None:
    assert text_frame(b"x" * size) == head + b"x" * size


class Renderer:
    def render(self, data: object) -> str:
        return str(data)


def test_p4_a_message_keeps_no_encoder_alive() -> None:
    renderer = Renderer()
    gone = weakref.ref(renderer)
    message = Message("x")
    assert message.render(event_stream(renderer.render, chunked=True)) == b"9\r\ndata: x\n\n\r\n"
    del renderer
    assert gone() is None


def test_equal_methods_are_one_encoder_however_many_of_its_users_leave() -> None:
    renderer, message = Renderer(), Message("x")
    first = event_stream(renderer.render, chunked=False)
    second = event_stream(renderer.render, chunked=False)
    assert first is second
    del first
    assert message.render(second) == b"data: x\n\n"
    assert event_stream(str.upper, chunked=True) is event_stream(str.upper, chunked=True)


def test_only_payloads_that_tornado_compresses_are_written_one_at_a_time() -> None:
    batch = Batch[object]([Message("x"), Message("y")])
    assert batch.render(JSON) is None
    assert batch[:1].render(JSON) == b'{"data":"x"}'
    for joined in (STREAM, CHUNKS, FRAMES):
        assert batch.render(joined) == batch[0].render(joined) + batch[1].render(joined)
