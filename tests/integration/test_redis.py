"""Both Redis stores on real servers: what they promise while nothing fails."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as Unreachable

from conftest import Logged
from servers import Server
from support import Told, eventually
from tornadose import RedisStore, RedisStreamStore


@pytest.mark.parametrize("kind", [RedisStore, RedisStreamStore])
async def test_what_is_submitted_arrives(
    server: Server, kind: type[RedisStore | RedisStreamStore]
) -> None:
    async with kind(port=server.port) as store:
        told = Told[str]()
        store.register(told)
        await store.submit("a")
        message = await store.submit("b", event="e")
        await eventually(lambda: told.got == ["a", "b"])
        assert told.messages[1] == message
    assert told.events == ["a", "b", "closed"]


@pytest.mark.parametrize("kind", [RedisStore, RedisStreamStore])
async def test_a_server_that_cannot_be_reached_is_an_error_when_the_store_is_opened(
    server: Server, kind: type[RedisStore | RedisStreamStore], logged: Logged
) -> None:
    server.kill()
    with pytest.raises(Unreachable):
        async with kind(port=server.port):
            pass
    logged.take("cannot read from Redis")
