"""What both stores in Redis refuse, and how they try again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tornadose import RedisStore, RedisStreamStore
from tornadose.stores.redis.broker import FIRST_DELAY, LONGEST_DELAY, back_off

KINDS = [RedisStore, RedisStreamStore]
KIND = pytest.mark.parametrize("kind", KINDS)

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"decode_responses": True}, ValueError, "decode_responses"),
    ({"url": "redis://h?decode_responses=1"}, ValueError, "decode_responses"),
    ({"protocol": 3}, ValueError, "protocol: '?3"),
    ({"url": "redis://h?protocol=3"}, ValueError, "protocol: '?3"),
    ({"retry": object()}, ValueError, "retry: "),
    ({"url": "redis://h?retry=5"}, ValueError, "retry: '5'"),
    ({"retry_on_timeout": True}, ValueError, "retry_on_timeout: True"),
    ({"retry_on_error": [OSError]}, ValueError, "retry_on_error: "),
    ({"socket_timeout": None}, TypeError, "socket_timeout: .*None"),
    ({"socket_timeout": "5"}, TypeError, "socket_timeout: .*'5'"),
    ({"socket_connect_timeout": 0}, ValueError, "socket_connect_timeout: 0"),
    ({"url": "redis://h?socket_timeout=nan"}, ValueError, "socket_timeout: nan"),
    ({"url": 5}, TypeError, "url: .*5"),
    ({"url": "http://h"}, ValueError, "redis://"),
    ({"unknown": 5}, TypeError, "unknown"),
    ({"encode": str}, TypeError, "encode and decode"),
    ({"decode": str}, TypeError, "encode and decode"),
    ({"encode": "json", "decode": str}, TypeError, "encode: 'json'"),
    ({"encode": str, "decode": 5}, TypeError, "decode: 5"),
    ({"inbox": 0}, ValueError, "inbox: 0"),
    ({"backlog": 0}, ValueError, "backlog: 0"),
    ({"policy": "wait"}, ValueError, "policy: 'wait'"),
]


@KIND
@pytest.mark.parametrize(("options", "error", "text"), REFUSED)
def test_what_the_store_cannot_be_had_with_is_refused_at_once(
    kind: type[RedisStore | RedisStreamStore],
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        kind(**options)


@KIND
@pytest.mark.parametrize(
    ("name", "error"),
    [(5, TypeError), (b"a", TypeError), ("", ValueError), ("\ud800", ValueError)],
)
def test_what_names_no_channel_or_stream_is_refused(
    kind: type[RedisStore | RedisStreamStore], name: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"channel|stream"):
        kind(name)


@KIND
def test_building_a_store_needs_no_event_loop_and_connects_to_nothing(
    kind: type[RedisStore | RedisStreamStore],
) -> None:
    store = kind("somewhere", host="nowhere.invalid", port=1, db=3, client_name="me")
    assert (store.subscribers, store.statistics().submitted) == ((), 0)
    asyncio.run(store.aclose())


async def test_each_pause_is_longer_up_to_a_limit_and_none_is_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def note(pause: float) -> None:
        pauses.append(pause)

    monkeypatch.setattr("tornadose.stores.redis.broker.asyncio.sleep", note)
    for failures in (*range(12), 10_000):
        await back_off(failures)
    limits = [min(LONGEST_DELAY, FIRST_DELAY * 2**n) for n in range(12)] + [LONGEST_DELAY]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))
    assert len(set(pauses)) == len(pauses)
