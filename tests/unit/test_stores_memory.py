"""DataStore and QueueStore, with subscribers in plain Python."""

from __future__ import annotations

import pytest

from support import Direct, Plain, Told, balanced, eventually
from tornadose import DataStore, Gap, QueueStore, StoreClosedError, StoreFullError


async def test_p1_a_subscriber_sees_messages_in_order_of_acceptance() -> None:
    async with QueueStore[int]() as store:
        plain, direct = Plain[int](), Direct[int]()
        store.register(plain)
        store.register(direct)
        for number in range(100):
            await store.submit(number)
        await eventually(lambda: len(plain.got) == len(direct.got) == 100)
        assert plain.got == direct.got == list(range(100))
        assert balanced(store.statistics())
