"""Both Redis stores on real servers: what they have in common and other stores have not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as Unreachable

from conftest import Logged
from servers import KINDS, Server, proxied, running
from support import DEADLINE, Told, eventually, server_side
from tornadose import Gap, RedisStore, RedisStreamStore, StoreClosedError

Kind: TypeAlias = type[RedisStore] | type[RedisStreamStore]

both = pytest.mark.parametrize("kind", [RedisStore, RedisStreamStore])
QUICK = 0.5  # seconds, of `socket_timeout` and `socket_connect_timeout`


def quick(kind: Kind, **options: Any) -> RedisStore[str] | RedisStreamStore[str]:
    return kind(socket_timeout=QUICK, socket_connect_timeout=QUICK, **options)


async def enter(store: RedisStore[str] | RedisStreamStore[str]) -> None:
    async with store:
        pass


# ---- opening


@both
async def test_a_server_that_cannot_be_reached_is_an_error_when_the_store_is_opened(
    server: Server, kind: Kind, logged: Logged
) -> None:
    server.kill()
    with pytest.raises(Unreachable):
        await enter(kind(port=server.port))
    logged.take("cannot read from Redis")


@both
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"\0\xff\r\n"])
async def test_what_is_no_redis_at_all_is_one_that_cannot_be_reached(
    kind: Kind, answer: bytes, logged: Logged
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        with pytest.raises(Unreachable, match="no Redis"):
            await enter(quick(kind, port=server.sockets[0].getsockname()[1]))
    logged.take("cannot read from Redis")


@both
@pytest.mark.parametrize("server_kind", KINDS)
async def test_a_unix_socket_does_as_well(kind: Kind, server_kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with (
        running(server_kind, tmp_path, "--unixsocket", path),
        kind(unix_socket_path=path) as store,
    ):
        store.register(told := Told[str]())
        await store.submit("a")
        await eventually(lambda: told.got == ["a"])


@both
async def test_tls_does_as_well(
    server: Server, kind: Kind, certificate: tuple[str, str], logged: Logged
) -> None:
    async with proxied(server.port, server_side(certificate)) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        with pytest.raises(Unreachable):  # as nothing says that this certificate is good
            await enter(kind(url=url))
        logged.take("cannot read from Redis")
        async with kind(url=url, ssl_ca_certs=certificate[0]) as store:
            store.register(told := Told[str]())
            for text in "a", "b" * 3_000_000:
                await store.submit(text)
                await eventually(lambda: told.got[-1:] == [text])  # noqa: B023 (at once)
            proxy.cut()
            await eventually(lambda: "reads from Redis again" in "".join(logged.lines()))
            await store.submit("c")
            await eventually(lambda: told.got[-1] == "c")
            gaps = [event for event in told.events if isinstance(event, Gap)]
            assert gaps == ([Gap("outage")] if kind is RedisStore else [])
    logged.take("cannot read from Redis")
    logged.take("reads from Redis again")


@both
async def test_a_store_that_is_closed_while_it_opens_stays_closed(
    server: Server, kind: Kind
) -> None:
    async with proxied(server.port) as proxy:
        proxy.blackhole()
        store = kind(port=proxy.port)
        opening = asyncio.create_task(enter(store))
        await eventually(lambda: proxy.connections)
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await opening
        with pytest.raises(StoreClosedError):
            store.register(Told[str]())


@both
async def test_p7_who_fails_to_open_a_store_leaves_it_to_others_that_try(
    server: Server, kind: Kind, logged: Logged
) -> None:
    server.kill()
    store = kind(port=server.port)
    outcomes = list[type[Exception]]()

    async def insist(use: Callable[[], Any]) -> None:
        for _ in range(20):
            try:
                await use()
            except Exception as error:
                outcomes.append(type(error))

    uses = (lambda: enter(store), lambda: enter(store), lambda: store.submit("a"))
    await asyncio.wait_for(asyncio.gather(*map(insist, uses)), DEADLINE)
    assert outcomes == [Unreachable] * 60
    await server.start()
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await store.submit("a")
                break
            except Unreachable:  # until the reader has tried again
                await asyncio.sleep(0.01)
    await store.aclose()
    logged.unexpected.clear()  # how often it was opened anew depends on the order of the tasks


@both
async def test_who_tries_to_open_it_without_a_pause_succeeds_as_soon_as_redis_is_back(
    server: Server, kind: Kind, logged: Logged
) -> None:
    server.kill()
    store = kind(port=server.port)
    store.register(Told[str]())  # with whom it is not started afresh

    async def insist() -> None:
        while True:
            try:
                await store.__aenter__()
                return
            except Unreachable:
                continue

    insisting = asyncio.create_task(insist())
    await eventually(lambda: logged.unexpected)
    await server.start()
    await asyncio.wait_for(insisting, DEADLINE)
    await store.aclose()
    logged.take("cannot read from Redis")
    logged.take("reads from Redis again")


@both
async def test_who_opens_it_when_redis_is_back_does_not_wait_for_the_end_of_a_pause(
    server: Server, kind: Kind, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    def pause(failures: int) -> float:
        return 99.0 * failures

    server.kill()
    monkeypatch.setattr("tornadose.stores.redis.broker.delay_after", pause)
    store = kind(port=server.port)
    store.register(Told[str]())
    await eventually(lambda: logged.unexpected)
    await server.start()
    async with asyncio.timeout(DEADLINE), store:
        await store.submit("a")
    logged.take("cannot read from Redis")
    logged.take("reads from Redis again")


@both
async def test_a_missing_password_is_redis_pys_own_error_every_time(
    server: Server, kind: Kind, logged: Logged
) -> None:
    await server.command("CONFIG", "SET", "requirepass", "secret")
    store = kind(port=server.port)
    for _ in range(3):
        with pytest.raises(AuthenticationError):
            await store.submit("refused")
    await store.aclose()
    logged.take("cannot read from Redis")


# ---- outages


@both
async def test_p10_who_registers_while_redis_is_out_of_reach_is_told_when_it_is_back(
    server: Server, kind: Kind, logged: Logged
) -> None:
    async with proxied(server.port) as proxy:
        proxy.blackhole()
        store = quick(kind, port=proxy.port)
        store.register(told := Told[str]())
        await eventually(lambda: logged.unexpected)
        await server.command("XADD", "tornadose", "*", "data", "missed")
        await server.command("PUBLISH", "tornadose", "missed")
        proxy.heal()
        await eventually(lambda: told.events == [Gap("outage")])
        await store.submit("live")
        await eventually(lambda: told.events == [Gap("outage"), "live"])
        await store.aclose()
    logged.take("cannot read from Redis")
    logged.take("reads from Redis again")


class Moody(CredentialProvider):
    """Gives credentials, but not the second time."""

    asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        if self.asked == 2:
            raise LookupError("the service of the tokens is down")
        return "default", ""

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


@both
async def test_p10_credentials_that_are_not_to_be_had_are_an_outage(
    server: Server, kind: Kind, logged: Logged
) -> None:
    await server.command("ACL", "SETUSER", "default", "nopass")
    moody = Moody()
    async with kind(port=server.port, credential_provider=moody) as store:
        store.register(told := Told[str]())
        await server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await eventually(lambda: moody.asked >= 3)
        await eventually(lambda: any("again" in line for line in logged.lines()))
        await store.submit("a")
        await eventually(lambda: told.got == ["a"])
    logged.take("cannot read from Redis")
    logged.take("reads from Redis again")


@both
async def test_p10_a_reader_that_finds_nobody_waits_longer_each_time(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    pauses = list[int]()

    def note(failures: int) -> float:
        if failures:  # or it is the part that is never left out
            pauses.append(failures)
        return 0

    monkeypatch.setattr("tornadose.stores.redis.broker.delay_after", note)
    store = kind(port=1)  # where nobody listens
    store.register(Told[str]())
    await eventually(lambda: len(pauses) >= 5)
    await store.aclose(timeout=1)
    assert pauses[:5] == [1, 2, 3, 4, 5]
    logged.take("cannot read from Redis")


@both
@pytest.mark.parametrize("steady", [0, 60])
async def test_p10_after_a_connection_that_stood_for_long_the_next_one_is_tried_at_once(
    server: Server, kind: Kind, steady: int, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    pauses = list[int]()

    def note(failures: int) -> float:
        pauses.append(failures)
        return 0

    monkeypatch.setattr("tornadose.stores.redis.broker.delay_after", note)
    monkeypatch.setattr("tornadose.stores.redis.broker.STEADY", steady)
    async with kind(port=server.port):
        for _ in range(3):
            type_ = "pubsub" if kind is RedisStore else "normal"
            await server.command("CLIENT", "KILL", "TYPE", type_)
            await eventually(lambda: any("Redis again" in line for line in logged.lines()))
            logged.take("cannot read from Redis")
            logged.take("reads from Redis again")
    assert pauses == ([0, 1, 0, 2, 0, 3] if steady else 6 * [0])


# ---- nothing is left

CYCLES = 500  # on each of the two servers


async def test_p7_opened_used_cancelled_and_closed_over_and_over_nothing_is_left(
    server: Server, logged: Logged
) -> None:
    chance = random.Random(server.port)
    tasks = asyncio.all_tasks()

    async def use(store: RedisStore[str] | RedisStreamStore[str]) -> None:
        async with store:
            store.register(told := Told[str]())
            await asyncio.gather(*(store.submit(str(n)) for n in range(3)))
            await eventually(lambda: len(told.got) == 3)

    for cycle in range(CYCLES):
        store = (RedisStore if cycle % 2 else RedisStreamStore)(port=server.port)
        task = asyncio.create_task(use(store))
        await asyncio.wait({task}, timeout=chance.uniform(0, 0.015))
        task.cancel()
        await asyncio.wait({task})
        await store.aclose()
    assert asyncio.all_tasks() == tasks
    for connections in "pubsub", "normal":
        end = asyncio.get_running_loop().time() + DEADLINE
        while await server.clients(connections):
            assert asyncio.get_running_loop().time() < end
    logged.unexpected.clear()
