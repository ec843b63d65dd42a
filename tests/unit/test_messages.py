from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import pickle
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from weakref import WeakSet

import pytest

from conftest import Logged
from tornadose import Batch, Gap, Message, PoisonedError


def numbered(number: int, message: Message[object]) -> bytes:
    return b"%d" % number


def text(message: Message[object]) -> bytes:
    return str(message.data).encode()


@pytest.mark.parametrize("field", ["id", "event"])
@pytest.mark.parametrize("value", ["", "a\nb", "a\rb", "a\0b"])
def test_names_that_would_break_the_stream_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: "):
        Message(1, **{field: value})


@pytest.mark.parametrize("field", ["id", "event"])
def test_names_that_are_no_strings_are_refused(field: str) -> None:
    values: dict[str, str] = {field: 7}  # type: ignore[dict-item]  # the wrong type on purpose
    with pytest.raises(TypeError, match=f"{field}: expected a string, not 7"):
        Message(1, **values)


def test_the_name_of_the_control_frame_is_reserved() -> None:
    with pytest.raises(ValueError, match="'gap' is reserved"):
        Message(1, event="gap")


def test_a_message_is_a_value() -> None:
    message = Message([1], "a-1", "tick")
    rendered = Message([1], "a-1", "tick")
    rendered.render(text)
    assert message == rendered
    assert repr(message) == repr(rendered) == "Message(data=[1], id='a-1', event='tick')"
    assert dataclasses.asdict(rendered) == {"data": [1], "id": "a-1", "event": "tick"}
    assert pickle.loads(pickle.dumps(rendered)) == message  # noqa: S301
    assert copy.deepcopy(rendered) == copy.copy(rendered) == message
    assert dataclasses.replace(rendered, data=[2]).render(text) == b"[2]"
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.data = [2]  # type: ignore[misc]  # the point of the test


def test_the_payload_type_can_be_written_out() -> None:
    assert Message[int](1, "a-1") == Message(1, "a-1")
    assert Batch[int]([Message[int](1)])[0].data == 1


def test_copies_can_be_rendered() -> None:
    message = Message("x")
    message.render(text)
    for twin in (pickle.loads(pickle.dumps(message)), copy.copy(message), copy.deepcopy(message)):  # noqa: S301
        assert twin.render(text) == b"x"


def test_p5_a_message_is_encoded_once_per_format() -> None:
    calls: list[object] = []

    def count(message: Message[object]) -> bytes:
        calls.append(message.data)
        return b"."

    one, two = Message(1), Message(2)
    batch = Batch([one, two])
    assert batch.render(count) == batch.render(count) == b".."
    assert Batch([two, one]).render(count) == b".."
    assert one.render(count) == b"."
    assert calls == [1, 2]
    assert batch.render(text) == b"12"


def test_p5_a_batch_of_one_shares_the_bytes_of_its_message() -> None:
    message = Message("x" * 1000)
    assert Batch([message]).render(text) is message.render(text)


def test_p9_what_cannot_be_encoded_is_tried_and_logged_once(logged: Logged) -> None:
    calls: list[object] = []

    def fail(message: Message[object]) -> bytes:
        calls.append(message.data)
        raise ValueError("no such thing")

    message = Message(1, "a-1")
    for _ in range(3):
        with pytest.raises(PoisonedError, match="message 'a-1': ValueError: no such thing"):
            message.render(fail)
        with pytest.raises(PoisonedError):
            Batch([Message(2), message]).render(lambda m: fail(m) if m.id else b"")
    assert calls[0] == 1
    assert len([call for call in calls if call == 1]) == 4  # once for fail, thrice for lambdas
    records = logged.take("message 'a-1' (event None) cannot be encoded", times=4)
    assert all(record.exc_info for record in records)


def test_p4_what_cannot_be_encoded_holds_nobody_who_has_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Handler:
        def write(self, message: Message[int]) -> None:
            with suppress(PoisonedError):
                message.render(fail)

    def fail(message: Message[object]) -> bytes:
        raise ValueError("no such thing")

    monkeypatch.setattr(logging.getLogger("tornadose"), "disabled", True)  # or pytest holds it
    message, handlers = Message(1), WeakSet[Handler]()
    for handler in [Handler(), Handler()]:
        handlers.add(handler)
        handler.write(message)
    del handler
    gc.collect()
    assert len(handlers) == 0


def test_p9_a_format_that_returns_text_is_an_error_of_its_own(logged: Logged) -> None:
    def wrong(message: Message[int]) -> bytes:
        return "text"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    with pytest.raises(PoisonedError, match="returned str, not bytes"):
        Batch([Message(1), Message(2)]).render(wrong)
    logged.take("cannot be encoded")


def test_p3_a_batch_is_joined_piece_by_piece_where_encoding_takes_long() -> None:
    encoded: list[int] = []

    def slow(message: Message[int]) -> bytes:
        encoded.append(message.data)
        time.sleep(0.003)
        return b"%d" % message.data

    batch = Batch([Message(number) for number in range(9)])
    before, rendered = 0, None
    while rendered is None:
        rendered = batch.render(slow)
        assert 0 < len(encoded) - before <= 3
        before = len(encoded)
    assert rendered == b"012345678"
    assert encoded == [*range(9)]


def test_a_batch_is_an_immutable_sequence() -> None:
    messages = [Message(1), Message(2, "a-2"), Message(3)]
    batch: Sequence[Message[int]] = Batch(messages)
    assert list(batch) == messages
    assert list(reversed(batch)) == messages[::-1]
    assert (len(batch), batch[0], batch[-1]) == (3, messages[0], messages[2])
    tail = batch[1:]
    assert isinstance(tail, Batch)
    assert list(tail) == messages[1:]
    assert tail.last_id == "a-2"
    assert Batch[int]([]).last_id is None
    assert messages[1] in batch
    with pytest.raises(IndexError):
        batch[3]
    with pytest.raises(TypeError):
        batch[0] = messages[1]  # type: ignore[index]  # the point of the test


def test_a_gap_is_a_value() -> None:
    assert Gap("expired", "a-1") == Gap("expired", "a-1") != Gap("expired")


def test_p4_renderings_do_not_outlive_their_formats() -> None:
    message = Message("x")
    for number in range(100):
        message.render(partial(numbered, number))
    assert len(message._renderings) <= 9  # pyright: ignore[reportPrivateUsage]


def test_p5_any_number_of_formats_in_use_is_remembered() -> None:
    calls: list[int] = []

    def count(number: int, message: Message[object]) -> bytes:
        calls.append(number)
        return b"."

    message, formats = Message("x"), [partial(count, number) for number in range(50)]
    for fmt in formats * 3:
        message.render(fmt)
    assert calls == list(range(50))


def test_p4_a_batch_is_bounded_in_bytes() -> None:
    message, large = Message("x"), Message("x" * 200_000)
    assert Batch([large]).render(text) is large.render(text)
    assert Batch([large, large]).render(text) is None
    assert Batch([large, message]).render(text) is not None


def test_p5_a_method_is_a_format_too_however_often_it_is_looked_up() -> None:
    class Renderer:
        calls = 0

        def render(self, message: Message[object]) -> bytes:
            self.calls += 1
            return b"."

    renderer, message = Renderer(), Message("x")
    for _ in range(3):
        assert Batch([message]).render(renderer.render) == b"."
    assert renderer.calls == 1
