"""Long polling, for clients that have neither event streams nor WebSockets."""

import argparse
import asyncio
from contextlib import suppress

from running import serving

from tornadose import BaseHandler, Gap, Message, QueueStore


class LongPoll(BaseHandler[int]):
    """Answer with the next message, or with a gap; 204 after 25 seconds without either."""

    async def get(self, *args: str, **kwargs: str) -> None:
        self.set_header("Cache-Control", "no-store")
        try:
            async with asyncio.timeout(25):
                await super().get(*args, **kwargs)
        except TimeoutError:
            self.set_status(204)

    async def publish(self, message: Message[int], /) -> None:
        self.finish({"data": message.data, "id": message.id, "event": message.event})

    async def publish_gap(self, gap: Gap, /) -> None:
        self.finish({"gap": {"reason": gap.reason, "after": gap.after}})


async def count(store: QueueStore[int]) -> None:
    number = 0
    while True:
        number += 1
        await store.submit(number)
        await asyncio.sleep(1)


async def main(port: int) -> None:
    store = QueueStore[int]()
    async with serving(store, port, LongPoll.route(r"/", store)) as url:
        print(f"curl {url}, and then with the id: curl '{url}?last_event_id=...'", flush=True)
        await count(store)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().port))
