"""A random number every second: curl -N http://localhost:9000"""

import random

from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import Application

from tornadose.handlers import EventSource
from tornadose.stores import DataStore

store = DataStore()

app = Application([(r"/", EventSource, {"store": store})], debug=True)
app.listen(9000)
print("curl -N http://localhost:9000", flush=True)

loop = IOLoop.instance()
ticks = PeriodicCallback(lambda: store.submit(random.random()), 1000)
ticks.start()
try:
    loop.start()
except KeyboardInterrupt:
    ticks.stop()
    loop.run_sync(store.aclose)  # pyright: ignore[reportUnknownMemberType]
