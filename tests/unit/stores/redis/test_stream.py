"""What a store on a stream refuses."""

from __future__ import annotations

from typing import Any

import pytest

from tornadose import RedisStreamStore


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stream": ""}, ValueError, "stream"),
        ({"stream": b"x"}, TypeError, "stream"),
        ({"maxlen": 0}, ValueError, "maxlen"),
        ({"maxlen": "1"}, TypeError, "maxlen"),
        ({"maxlen": True}, TypeError, "maxlen"),
        ({"policy": "x"}, ValueError, "policy"),
        ({"encode": 1}, TypeError, "encode"),
        ({"decode_responses": True}, ValueError, "decode_responses"),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_given(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        RedisStreamStore(**options)


@pytest.mark.parametrize(
    ("data", "event", "error"),
    [
        (1, None, TypeError),
        ("x", "gap", ValueError),
        ("x", "a\n", ValueError),
        ("\ud800", None, ValueError),
    ],
)
async def test_a_payload_that_cannot_travel_is_refused_before_redis_is_asked(
    data: str, event: str | None, error: type[Exception]
) -> None:
    store = RedisStreamStore(port=1)
    with pytest.raises(error):
        await store.submit(data, event=event)
    with pytest.raises(TypeError):
        store.resume(object(), "1-1")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.resume(object(), 1)  # type: ignore[arg-type]
    await store.aclose()
