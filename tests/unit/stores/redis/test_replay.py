"""How a page of a stream comes to one subscriber."""

from __future__ import annotations

from tornadose import GapReason, Message
from tornadose.stores.redis.pages import StreamPage
from tornadose.stores.redis.replay import parts_of


def test_p9_a_page_is_cut_where_a_message_is_poisoned() -> None:
    messages = [Message(str(number), f"{number}-0") for number in range(3)]
    incoming: list[Message[str] | GapReason] = [
        messages[0],
        "poisoned",
        "poisoned",
        messages[1],
        messages[2],
    ]
    cursors = [b"0-%d" % number for number in range(1, 6)]
    page = StreamPage(incoming, cursors, 5)
    parts = [(part.messages, part.hole) for part in parts_of(page, "expired")]
    assert parts == [
        ([messages[0]], "expired"),
        ([], "poisoned"),
        (messages[1:], "poisoned"),
    ]
