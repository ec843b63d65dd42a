"""How a message travels through a channel."""

from __future__ import annotations

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornadose.stores.redis.channel import framed, unframed


class Word(str, Enum):  # noqa: UP042 (which format as their names)
    READY = "ready"


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
EVENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)


@given(text=TEXT | TEXT.map("\x1e{}".format), event=st.none() | EVENT)
def test_a_payload_and_its_event_come_back_as_they_were(text: str, event: str | None) -> None:
    assert unframed(framed(text, event).decode()) == (text, event)


@pytest.mark.parametrize(
    ("text", "event", "payload"),
    [
        ("hello", None, b"hello"),
        ("", None, b""),
        ("a\nb", None, b"a\nb"),
        ("hello", "tick", b"\x1etick\nhello"),
        ("\x1ehello", None, b"\x1e\n\x1ehello"),
        (Word.READY, Word.READY, b"\x1eready\nready"),
    ],
)
def test_a_payload_travels_as_the_documentation_says(
    text: str, event: str | None, payload: bytes
) -> None:
    assert framed(text, event) == payload


def test_what_begins_like_an_event_and_names_none_is_a_bare_payload() -> None:
    assert unframed("\x1ehello") == ("\x1ehello", None)
