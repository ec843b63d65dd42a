"""A random number every second: curl -N http://localhost:9000"""

import asyncio
import random
import signal

from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import Application

from tornadose.handlers import EventSource
from tornadose.stores import DataStore


def stop_on_ctrl_c() -> None:
    """Stop between two callbacks; a KeyboardInterrupt may come in the middle of one."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, loop.stop)


store = DataStore()

app = Application([(r"/", EventSource, {"store": store})], debug=True)
app.listen(9000)
print("curl -N http://localhost:9000", flush=True)

loop = IOLoop.instance()
ticks = PeriodicCallback(lambda: store.submit(random.random()), 1000)
ticks.start()
loop.add_callback(stop_on_ctrl_c)  # pyright: ignore[reportUnknownMemberType]
loop.start()
ticks.stop()
loop.run_sync(store.aclose)  # pyright: ignore[reportUnknownMemberType]
