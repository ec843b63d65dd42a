"""Both Redis stores on real servers: what they have in common and other stores have not."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as Unreachable

from conftest import Logged
from servers import Server
from tornadose import RedisStore, RedisStreamStore


@pytest.mark.parametrize("kind", [RedisStore, RedisStreamStore])
async def test_a_server_that_cannot_be_reached_is_an_error_when_the_store_is_opened(
    server: Server, kind: type[RedisStore | RedisStreamStore], logged: Logged
) -> None:
    server.kill()
    with pytest.raises(Unreachable):
        async with kind(port=server.port):
            pass
    logged.take("cannot read from Redis")
