"""What a stream loses: by a crash, a deletion or a reset, each told once and in its place."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from pathlib import Path

import pytest

from conftest import Logged
from servers import KINDS, Server, proxied, running
from streams import (
    BLOCKING,
    HELD,
    KEY,
    SHORT,
    accepted,
    add,
    calls,
    dump,
    entries,
    fall_back,
    fallen,
    fill,
    fill_from,
    gaps,
    hold,
    mended,
    once_asked,
    outages,
    script,
    store_on,
    story,
)
from support import DEADLINE, Told, eventually
from tornadose import (
    Gap,
    GapReason,
    Message,
    RedisStreamStore,
    Released,
)
from tornadose.stores.redis import broker
from tornadose.stores.redis.connection import Connection, client_of
from tornadose.stores.redis.entries import Hole, position_of
from tornadose.stores.redis.pages import PageReader, StreamPage
from tornadose.stores.redis.replay import StreamHistory

ADD_AND_TRIM = """
redis.call('XADD', KEYS[1], '*', 'data', 'last')
redis.call('XTRIM', KEYS[1], 'MAXLEN', 1)
"""
ADD_AND_DELETE = "redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], '*', 'data', ''))"


def in_a_second(_failures: int) -> float:
    return 1.0


async def crash(server: Server, disk: Path, copy: Path) -> None:
    """Start the server again with what it had on its disk when this copy was made."""
    await asyncio.to_thread(server.kill)
    shutil.rmtree(disk)
    shutil.move(copy, disk)
    await server.start()


async def test_p10_a_loss_is_one_gap_for_each_of_more_than_are_told_in_one_turn(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT, max_subscribers=None) as store:
        crowd = [Told[str]() for _ in range(3000)]
        for told in crowd:
            store.register(told)
        lost = await store.submit("lost")
        await eventually(lambda: all(told.got == ["lost"] for told in crowd))
        await server.command("DEL", KEY)
        await eventually(lambda: all(gaps(told) for told in crowd))
        await store.submit("new")
        await eventually(lambda: all(told.got[-1] == "new" for told in crowd))
        expected = ["lost", Gap("restarted", lost.id), "new"]
        assert all(told.events == expected for told in crowd)


@pytest.mark.parametrize("reads", [True, False])
async def test_p2_p10_what_a_crash_loses_is_one_gap_and_nothing_is_repeated(
    server: Server, tmp_path: Path, reads: bool, logged: Logged
) -> None:
    """As with ``appendfsync everysec``, Redis forgets what it has confirmed."""
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        told = await hold(store)
        expected: list[str | Gap] = [*HELD]
        alone: asyncio.Task[bool] | None = None
        shutil.copytree(disk, copy)
        lost = await store.submit("lost")  # and the reader has no time for it yet
        if reads:
            told.running.set()
            expected.append("lost")
            assert await story(told, len(expected)) == expected
        else:
            alone = asyncio.create_task(store.deliver(told, Message("alone")))  # behind "lost"
            await asyncio.sleep(0)
        await crash(server, disk, copy)
        told.running.set()
        await mended(logged)
        assert await (alone or store.deliver(told, Message("alone")))
        expected += [Gap("restarted", lost.id if reads else told.messages[2].id), "alone"]
        assert await story(told, len(expected)) == expected
        resumed = Told[str]()
        store.resume(resumed, str(lost.id))
        assert await story(resumed, 1) == [Gap("restarted", lost.id)]
        await accepted(store, "live")
        await eventually(lambda: told.got[-1:] == resumed.got == ["live"])
        assert told.events == [*expected, "live"]
        assert [data for _, data in await entries(server)] == [*HELD, "live"]


@pytest.mark.parametrize("unread", [0, 30, 300])
async def test_p2_p10_what_a_crash_loses_is_one_gap_also_where_others_have_added_since(
    server: Server, tmp_path: Path, unread: int, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        told = await hold(store)
        for number in range(unread):
            await store.submit(str(number))
        shutil.copytree(disk, copy)
        await store.submit("lost")
        await store.submit("lost as well")
        await crash(server, disk, copy)
        await fill(server, 3, "foreign")
        await accepted(store, "own")
        told.running.set()
        await mended(logged)
        await eventually(lambda: told.got[-1] == "own")
        await store.submit("live")
        await eventually(lambda: told.got[-1] == "live")
        assert told.got == [data for _, data in await entries(server)]
        assert gaps(told) == ["restarted"]
        assert told.events[3 + unread] == Gap("restarted", told.messages[2 + unread].id)


async def test_p8_p10_who_reads_history_hears_of_what_a_crash_has_lost(
    server: Server, tmp_path: Path, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    await fill(server, 60, "old")
    async with store_on(server.port, **BLOCKING) as store:
        told, reader = await hold(store), Told[str]()
        reader.running.clear()
        offered = store.statistics().offered
        store.resume(reader, "0-0")
        await eventually(lambda: store.statistics().offered > offered)  # its first page
        shutil.copytree(disk, copy)
        await store.submit("lost")
        await crash(server, disk, copy)
        await add(server, "data", "foreign")
        told.running.set()
        await mended(logged)
        await eventually(lambda: told.got[-1] == "foreign")
        reader.running.set()
        await store.submit("live")
        await eventually(lambda: reader.got[-1:] == ["live"])
        assert reader.got == [data for _, data in await entries(server)]
        assert gaps(reader) == gaps(told) == ["restarted"]
        assert reader.events[63] == Gap("restarted", told.messages[2].id)


async def test_p8_what_others_delete_before_it_is_read_has_expired_where_it_was(
    server: Server,
) -> None:
    async with store_on(server.port, 2 * SHORT, **BLOCKING) as store:
        told = await hold(store)
        sent = [await store.submit(f"own {number}") for number in range(300)]
        for number in (2, 40):
            await server.command("XDEL", KEY, str(sent[number].id))
        told.running.set()
        await eventually(lambda: told.got[-1:] == ["own 299"])
        await store.submit("live")
        await eventually(lambda: told.got[-1] == "live")
        await asyncio.sleep(2 * SHORT)  # it looks at the whole stream again, twice
        holes = [Gap("expired", sent[number - 1].id) for number in (2, 40)]
        assert [event for event in told.events if isinstance(event, Gap)] == holes


async def test_p8_p10_who_resumes_before_a_crash_is_noticed_is_told_where_the_loss_was(
    server: Server, tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port) as store:
        told, early = Told[str](), Told[str]()
        store.register(told)
        first = await store.submit("first")
        kept = await store.submit("kept")
        shutil.copytree(disk, copy)
        lost = await store.submit("lost")
        await eventually(lambda: told.got == ["first", "kept", "lost"])
        monkeypatch.setattr(broker, "delay_after", in_a_second)  # and it is not read until then
        await crash(server, disk, copy)
        await fill(server, 2, "foreign")
        store.resume(early, str(first.id))
        assert await story(early, 4) == ["kept", Gap("restarted", kept.id), "foreign1", "foreign2"]
        await eventually(lambda: told.got[-1] == "foreign2")
        assert told.events[3] == Gap("restarted", lost.id)
    outages(logged)


async def test_p8_p10_nobody_who_resumes_gets_ahead_of_a_loss_that_the_reader_has_yet_to_see(
    server: Server, tmp_path: Path, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        store.register(told := Told[str]())
        kept = await store.submit("kept")
        await eventually(lambda: told.got == ["kept"])
        shutil.copytree(disk, copy)
        told.running.clear()
        await fill(server, 5, "lost")  # all of which the reader has in hand
        await eventually(lambda: store.statistics().published == 4)
        await crash(server, disk, copy)
        await add(server, "data", "new")
        store.resume(resumed := Told[str](), str(kept.id))
        while not await calls(server, "xrange"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        told.running.set()
        await mended(logged)
        assert await story(resumed, 2) == [Gap("restarted", kept.id), "new"]
        lost = [f"lost{number}" for number in range(1, 6)]
        await eventually(lambda: told.got == ["kept", *lost, "new"])
        assert told.events[6] == Gap("restarted", told.messages[5].id)


async def test_p8_p10_a_replay_is_told_where_its_own_last_entry_is_lost(
    server: Server, tmp_path: Path, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        told, reader = await hold(store), Told[str]()
        shutil.copytree(disk, copy)
        await fill(server, 30, "lost")  # unread, but for those on the first page of history
        reader.running.clear()
        offered = store.statistics().offered
        store.resume(reader, "0-0")
        await eventually(lambda: store.statistics().offered > offered)
        await crash(server, disk, copy)
        await add(server, "data", "new")
        reader.running.set()
        await eventually(lambda: reader.got[-1:] == ["new"])
        *before, gap, _ = reader.events
        assert before == [*HELD, *(f"lost{number}" for number in range(1, len(before) - 2))]
        assert len(before) > 3
        assert gap == Gap("restarted", reader.messages[-2].id)
        told.running.set()
        await mended(logged)


async def test_p2_p10_what_is_submitted_while_a_loss_is_announced_is_accepted_as_ever(
    server: Server, tmp_path: Path, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        slow, told, newcomer = Told[str](), Told[str](), Told[str]()
        store.register(slow)
        store.register(told)
        await store.submit("kept")
        shutil.copytree(disk, copy)
        lost = await store.submit("lost")
        await eventually(lambda: slow.got == told.got == ["kept", "lost"])
        slow.running.clear()
        alone = [asyncio.create_task(store.deliver(slow, Message("alone"))) for _ in range(3)]
        await crash(server, disk, copy)
        await mended(logged)  # and now the reader waits behind those for its turn
        await accepted(store, "before")
        store.register(newcomer)
        slow.running.set()
        assert all(await asyncio.gather(*alone))
        await store.submit("after")
        await eventually(lambda: newcomer.got[-1:] == told.got[-1:] == ["after"])
        assert newcomer.events == ["after"]
        assert told.events == ["kept", "lost", Gap("restarted", lost.id), "before", "after"]


async def test_p8_p10_whom_its_replay_has_told_of_a_loss_is_not_told_again_by_the_reader(
    server: Server, tmp_path: Path, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    async with store_on(server.port, **BLOCKING) as store:
        store.register(slow := Told[str]())
        ids = [(await store.submit(str(number))).id for number in range(15)]  # over a page
        shutil.copytree(disk, copy)
        await store.submit("lost")
        await eventually(lambda: slow.got[-1:] == ["lost"])
        slow.running.clear()
        alone = [asyncio.create_task(store.deliver(slow, Message("alone"))) for _ in range(3)]
        (resumed := Told[str]()).running.clear()
        store.resume(resumed, "0-0")
        await eventually(lambda: store.statistics().pending > 10)
        await crash(server, disk, copy)
        await add(server, "data", "new")
        await mended(logged)  # and now the reader waits behind those for its turn
        resumed.running.set()
        await eventually(lambda: resumed.got[-1:] == ["new"])
        slow.running.set()
        assert all(await asyncio.gather(*alone))
        await accepted(store, "live")
        await eventually(lambda: resumed.got[-1] == slow.got[-1] == "live")
        assert resumed.events[14:] == ["14", Gap("restarted", ids[-1]), "new", "live"]
        assert gaps(slow) == ["restarted"]


async def test_p8_who_begins_live_ahead_of_the_reader_is_told_when_the_stream_is_another_one(
    server: Server,
) -> None:
    async def add_many(prefix: str, numbers: range) -> None:
        for number in numbers:
            await add(server, "data", f"{prefix}{number}", cursor=f"{number}-0")

    async with store_on(server.port, SHORT, **BLOCKING) as store:
        store.register(slow := Told[str]())
        await add_many("a", range(1, 4))
        await eventually(lambda: slow.got == ["a1", "a2", "a3"])
        slow.running.clear()
        await add_many("a", range(4, 11))
        await eventually(lambda: store.statistics().pending > 1)
        store.resume(resumed := Told[str](), "5000-0")
        await eventually(lambda: resumed.events == [Gap("restarted", "5000-0")])
        await server.command("DEL", KEY)
        await add_many("b", range(1, 4))
        slow.running.set()
        await eventually(lambda: len(gaps(resumed)) == 2)
        await add_many("b", range(4, 8))
        await eventually(lambda: slow.got[-1:] == ["b7"])
        await eventually(lambda: resumed.got == ["b4", "b5", "b6", "b7"])


@pytest.mark.parametrize("noticed", [False, True])
async def test_p8_p10_a_loss_is_told_to_who_has_just_read_the_page_in_front_of_it(
    server: Server, noticed: bool, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening: asyncio.Task[object] | None = None

    async def meanwhile(self: StreamHistory[str], position: int) -> StreamPage[str]:
        nonlocal opening
        monkeypatch.undo()
        monkeypatch.setattr(broker, "delay_after", once_asked)
        await server.command("CLIENT", "KILL", "TYPE", "normal")  # also that of the reader
        await fallen(logged)
        await add(server, "data", "read")
        await server.command("EVAL", ADD_AND_DELETE, 1, KEY)
        page = await read(self, position)
        await accepted(store, "lost")
        await fall_back(server, backup)
        await add(server, "data", "new")
        monkeypatch.undo()
        opening = asyncio.create_task(store.__aenter__())
        if noticed:
            await eventually(lambda: told.got[-1] == "new")
        return page

    read = StreamHistory[str]._read  # pyright: ignore[reportPrivateUsage]
    async with store_on(server.port) as store:
        store.register(told := Told[str]())
        await store.submit("kept")
        backup = await dump(server)
        last = str((await store.submit("last")).id)
        await eventually(lambda: told.got == ["kept", "last"])
        monkeypatch.setattr(StreamHistory, "_read", meanwhile)
        store.resume(resumed := Told[str](), last)
        await eventually(lambda: resumed.got[-1:] == ["new"])
        assert await story(told, 4) == ["kept", "last", Gap("restarted", last), "new"]
    if noticed:
        assert resumed.events == [Gap("unknown"), "new", "closed"]
    else:
        id_ = resumed.messages[0].id
        expected = [Gap("expired", last), "read", Gap("restarted", id_), "new", "closed"]
        assert resumed.events == expected
    outages(logged)


async def test_p2_p8_p10_what_is_added_after_a_crash_is_none_of_what_it_has_lost(
    server: Server, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash_to(backup: bytes) -> None:
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await fall_back(server, backup)
        await fallen(logged)

    async with store_on(server.port) as store:
        told, newcomer, resumed = Told[str](), Told[str](), Told[str]()
        store.register(told)
        await store.submit("kept")
        before = await dump(server)
        lost = await store.submit("lost")
        await eventually(lambda: told.got == ["kept", "lost"])
        monkeypatch.setattr(broker, "delay_after", once_asked)
        await crash_to(before)
        first = await accepted(store, "first")
        before = await dump(server)
        store.register(newcomer)
        second = await store.submit("second")
        await store.__aenter__()
        await mended(logged)
        await eventually(lambda: told.got[-1:] == newcomer.got == ["second"])
        await crash_to(before)
        await store.__aenter__()
        await add(server, "data", "new")
        await eventually(lambda: told.got[-1:] == newcomer.got[-1:] == ["new"])
        store.resume(resumed, str(first.id))
        assert await story(resumed, 2) == [Gap("restarted", first.id), "new"]
        again = [Gap("restarted", second.id), "new"]
        assert newcomer.events == ["second", *again]
        between = Gap("restarted", lost.id)
        assert told.events == ["kept", "lost", between, "first", "second", *again]
    outages(logged)


async def test_p8_p10_what_is_lost_after_ids_have_begun_lower_again_is_another_loss(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        await server.command("XADD", KEY, "9-0", "data", "old")
        await eventually(lambda: told.got == ["old"])
        await server.command("DEL", KEY)
        await eventually(lambda: gaps(told) == ["restarted"])
        for number in 1, 2:
            await server.command("XADD", KEY, f"{number}-0", "data", f"kept{number}")
        before = await dump(server)
        await server.command("XADD", KEY, "3-0", "data", "lost")
        await eventually(lambda: told.got[-1] == "lost")
        await fall_back(server, before)
        await eventually(lambda: gaps(told) == ["restarted", "restarted"])
        await server.command("XADD", KEY, "4-0", "data", "new")
        for number in 1, 2:
            store.resume(resumed := Told[str](), f"{number}-0")
            behind = ["kept2", Gap("restarted", "2-0"), "new"]
            assert await story(resumed, 4 - number) == behind[number - 1 :]


@pytest.mark.parametrize("added", [0, 1])  # behind what is lost
async def test_p2_p8_p10_each_of_two_losses_is_a_gap_although_both_are_noticed_at_once(
    server: Server, added: int
) -> None:
    kept = await add(server, "data", "kept")
    first = await dump(server)
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        await store.submit("unread")
        await fall_back(server, first)
        between = str((await store.submit("between")).id)
        second = await dump(server)
        await store.submit("lost")
        await fall_back(server, second)
        new = [await add(server, "data", "new") for _ in range(added)]
        held.running.set()
        await eventually(lambda: gaps(held) == 2 * ["restarted"])
        await store.submit("live")
        behind = ["between", Gap("restarted", between), *("new" for _ in new), "live"]
        events = await story(held, 7 + added)
        assert events == [*HELD, Gap("restarted", str(held.messages[2].id)), *behind]
        for cursor, expected in (kept, [Gap("restarted", kept), *behind]), (between, behind[1:]):
            store.resume(resumed := Told[str](), cursor)
            assert await story(resumed, len(expected)) == expected


async def test_p2_p8_p10_what_was_deleted_does_not_hide_what_is_lost_behind_it(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        await server.command("EVAL", ADD_AND_DELETE, 1, KEY)
        between = str((await store.submit("between")).id)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        held.running.set()
        behind = ["between", Gap("restarted", between), "new"]
        events = await story(held, 7)
        assert events == [*HELD, Gap("expired", str(held.messages[2].id)), *behind]
        store.resume(resumed := Told[str](), between)
        assert await story(resumed, 2) == behind[1:]


@pytest.mark.parametrize("deleted", ["", "39-0"])
async def test_p2_p10_a_stream_that_is_another_is_a_gap_also_where_a_page_does_not_show_all(
    server: Server, deleted: str, logged: Logged
) -> None:
    async with store_on(server.port) as store:
        store.register(told := Told[str]())
        await fill_from(server, 10, 4)
        await eventually(lambda: len(told.got) == 4)
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await server.command("DEL", KEY)
        await fill_from(server, 1, 3)
        await fill_from(server, 14, 37)
        await server.command("XDEL", KEY, deleted or "39-1")
        await mended(logged)
        await eventually(lambda: told.got[-1] == "50")
        assert told.events[4:6] == [Gap("restarted", "13-0"), "14"]
        assert gaps(told) == ["restarted"]


async def test_p2_p10_a_deletion_is_why_an_entry_is_missing_only_where_the_counts_agree(
    server: Server,
) -> None:
    await fill_from(server, 1, 3)
    await fill_from(server, 14, 5)
    await server.command("XDEL", KEY, "16-0")
    connection = Connection(client_of(None, {"port": server.port}))
    await connection.connect()
    pages = PageReader[str](KEY, str, 1 << 20, deque())
    at = position_of(b"13-0")
    counted = await pages.whole(connection.call, at, 4, anew=True, last=b"13-0")
    unknown = await pages.whole(connection.call, at, None, anew=True, last=b"13-0")
    await connection.close()
    assert (counted.hole, unknown.hole) == (None, Hole("restarted", None))


async def test_p2_p8_p10_what_is_lost_within_an_older_loss_is_a_gap_of_its_own(
    server: Server, logged: Logged
) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        future = await add(server, "data", "future", cursor=f"{1 << 50}-0")
        await eventually(lambda: told.got == ["future"])
        await server.command("DEL", KEY)
        await eventually(lambda: gaps(told) == ["restarted"])
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await fallen(logged)
        between = str((await accepted(store, "between")).id)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        behind = ["between", Gap("restarted", between), "new"]
        assert await story(told, 5) == ["future", Gap("restarted", future), *behind]
        store.resume(resumed := Told[str](), between)
        assert await story(resumed, 2) == behind[1:]
    outages(logged)


async def test_p2_a_loss_does_not_make_a_gap_of_what_is_trimmed_once_it_is_read(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        held.running.set()
        events = [*await story(held, 5)]
        assert events == [*HELD, Gap("restarted", str(held.messages[2].id)), "new"]
        await server.command("EVAL", ADD_AND_TRIM, 1, KEY)
        assert await story(held, 6) == [*events, "last"]


@pytest.mark.parametrize("foreign", [1, 300])  # of which the counts say less
@pytest.mark.parametrize("kind", KINDS)
async def test_p10_a_loss_is_noticed_also_where_the_connection_holds(
    kind: str, tmp_path: Path, foreign: int
) -> None:
    """As when a replica has taken over what another server has of the stream."""
    options = "--enable-debug-command", "local"
    async with running(kind, tmp_path, *options) as server, store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        await store.submit("kept")
        await server.command("SAVE")
        lost = await store.submit("lost")
        await eventually(lambda: told.got == ["kept", "lost"])
        await server.command("DEBUG", "RELOAD", "NOSAVE")
        if foreign == 1:
            await asyncio.sleep(2 * SHORT)  # it looks at the whole stream, and again
        await fill(server, foreign, "new")
        new = [f"new{number}" for number in range(1, foreign + 1)]
        expected = ["kept", "lost", Gap("restarted", lost.id), *new]
        assert await story(told, 3 + foreign) == expected
        await store.submit("live")
        assert await story(told, 4 + foreign) == [*expected, "live"]


@pytest.mark.parametrize("foreign", [0, 300])
@pytest.mark.parametrize("reads", [True, False])
async def test_p8_p10_who_resumes_later_is_told_of_what_a_crash_has_lost_where_it_was(
    server: Server, tmp_path: Path, reads: bool, foreign: int, logged: Logged
) -> None:
    disk, copy = tmp_path / "appendonlydir", tmp_path / "copy"
    first, *_ = await fill(server, 3, "old")
    async with store_on(server.port, **BLOCKING) as store:
        told = await hold(store)
        shutil.copytree(disk, copy)
        lost = [await store.submit(data) for data in ("lost", "lost as well")]
        if reads:
            told.running.set()
            await eventually(lambda: told.got[-1:] == ["lost as well"])
        await crash(server, disk, copy)
        added = await fill(server, foreign, "foreign")
        told.running.set()
        await mended(logged)
        await store.submit("live")
        await eventually(lambda: told.got[-1] == "live")
        assert gaps(told) == ["restarted"]
        kept = str(told.messages[2].id)
        new = [f"foreign{n}" for n in range(1, foreign + 1)] + ["live"]
        expected: dict[str, list[str | Gap]] = {
            first: ["old2", "old3", *HELD, Gap("restarted", kept), *new],
            kept: [Gap("restarted", kept), *new],
        }
        if foreign:
            expected[added[0]] = [*new[1:]]
        for cursor, events in expected.items():
            store.resume(resumed := Told[str](), cursor)
            assert await story(resumed, len(events)) == events
        for message in lost:
            store.resume(resumed := Told[str](), str(message.id))
            gap, *events = await story(resumed, 1 + len(new))
            assert isinstance(gap, Gap)
            assert events == new


async def test_p2_p10_a_stream_that_is_another_after_an_outage_is_a_gap_whatever_its_counts(
    server: Server, logged: Logged
) -> None:
    async with proxied(server.port) as proxy, store_on(proxy.port, SHORT) as store:
        store.register(told := Told[str]())
        await fill(server, 100, "old")
        await eventually(lambda: len(told.got) == 100)
        proxy.blackhole()
        await fallen(logged)
        await server.command("DEL", KEY)
        await fill(server, 250, "new")
        await server.command("XTRIM", KEY, "MAXLEN", 150)  # 100 are gone, as many as were read
        proxy.heal()
        await mended(logged)
        gap = Gap("expired", told.messages[99].id)
        left = [f"new{n}" for n in range(101, 251)]
        assert await story(told, 251) == [*told.got[:100], gap, *left]


async def test_p10_a_stream_that_is_another_is_a_gap_also_where_entries_were_deleted_from_it(
    server: Server, logged: Logged
) -> None:
    async with proxied(server.port) as proxy, store_on(proxy.port, SHORT) as store:
        store.register(told := Told[str]())
        await fill(server, 3, "old")
        await eventually(lambda: len(told.got) == 3)
        proxy.blackhole()
        await fallen(logged)
        await add(server, "data", "never seen")
        await server.command("DEL", KEY)
        for cursor in await fill(server, 3):
            await server.command("XDEL", KEY, cursor)
        await add(server, "data", "new")
        proxy.heal()
        await mended(logged)
        expected = ["old1", "old2", "old3", Gap("expired", told.messages[2].id), "new"]
        assert await story(told, 5) == expected


async def test_p10_after_an_outage_an_entry_that_was_read_and_deleted_is_not_missed(
    server: Server, logged: Logged
) -> None:
    async with store_on(server.port) as store:
        store.register(told := Told[str]())
        for number in range(3):
            await store.submit(str(number))
            await story(told, number + 1)
            await server.command("XDEL", KEY, str(told.messages[-1].id))
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await add(server, "data", "d")
        await mended(logged)
        await eventually(lambda: told.got[-1] == "d")
        assert told.events == ["0", "1", "2", "d"]


async def test_p2_what_is_left_of_more_than_a_page_is_behind_one_gap(server: Server) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        await fill(server, 500)  # so that the pages become as long as they may
        await eventually(lambda: len(told.got) == 500)
        lines = script(*(f"XADD * data {n}" for n in range(1000)), "XTRIM MAXLEN 700")
        await server.command(*lines)  # at one moment
        await eventually(lambda: told.got[-1] == "999")
        looked = await calls(server, "xinfo|stream")
        async with asyncio.timeout(DEADLINE):
            while await calls(server, "xinfo|stream") < looked + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert told.got[500:] == [str(n) for n in range(300, 1000)]
        assert gaps(told) == ["expired"]


async def test_p8_p10_what_redis_loses_under_a_replay_is_one_gap_behind_what_is_left(
    server: Server,
) -> None:
    async with store_on(server.port) as store:
        live, slow, late = Told[str](), Told[str](), Told[str]()
        store.register(live)
        ids = [(await store.submit(str(number))).id or "" for number in range(500)]
        backup = await dump(server)
        for number in range(500, 600):
            await store.submit(str(number))
        await eventually(lambda: len(live.got) == 600)
        slow.running.clear()
        store.resume(slow, ids[0])
        await eventually(lambda: store.statistics().pending)
        await fall_back(server, backup)
        store.resume(late, ids[-10])
        await eventually(lambda: live.events[-1:] == [Gap("restarted", live.messages[-1].id)])
        slow.running.set()
        await eventually(lambda: len(slow.events) == 500 and len(late.events) == 10)
        await store.submit("live")
        await eventually(lambda: live.got[-1] == slow.got[-1] == late.got[-1] == "live")
    texts, gap = [str(number) for number in range(500)], Gap("restarted", ids[-1])
    assert slow.events == [*texts[1:], gap, "live", "closed"]
    assert late.events == [*texts[-9:], gap, "live", "closed"]


GAP = Gap("restarted")


@pytest.mark.parametrize(
    ("then", "live", "resumed"),
    [
        ("", [GAP], [GAP]),
        ("redis.call('XADD', KEYS[1], '*', 'data', 'new')", [GAP, "new"], ["new"]),
        (
            "redis.call('DEL', KEYS[1]) redis.call('XADD', KEYS[1], '1-0', 'data', 'lower')",
            [GAP],
            [GAP],
        ),
    ],
    ids=["nothing more", "more", "another stream"],
)
async def test_p2_p10_what_only_a_replay_has_read_is_not_lost_without_a_word(
    server: Server, then: str, live: list[str | Gap], resumed: list[str | Gap]
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        told, reader = await hold(store), Told[str]()
        backup = await dump(server)
        await fill(server, 3, "lost")  # which the live messages have yet to come to
        store.resume(reader, "0-0")
        before = [*HELD, "lost1", "lost2", "lost3"]
        await eventually(lambda: reader.got == before)
        await fall_back(server, backup, then)
        told.running.set()
        await eventually(lambda: len(told.events) == 3 + len(live))
        await store.submit("live")
        await eventually(lambda: told.got[-1] == reader.got[-1] == "live")
    for subscriber, start, end in (told, HELD, live), (reader, before, resumed):
        gap = Gap("restarted", subscriber.messages[len(start) - 1].id)
        expected = [*start, *(gap if event == GAP else event for event in end)]
        assert subscriber.events == [*expected, "live", "closed"]


async def test_p8_p10_a_replay_tells_in_its_place_of_a_loss_that_the_reader_has_yet_to_see(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        between = str((await store.submit("between")).id)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        store.resume(resumed := Told[str](), between)
        assert await story(resumed, 2) == [Gap("restarted", between), "new"]
        assert held.got == []
        held.running.set()
        assert await story(held, 6) == [*HELD, "between", Gap("restarted", between), "new"]
        await store.submit("live")
        await eventually(lambda: held.got[-1] == resumed.got[-1] == "live")
        assert gaps(held) == gaps(resumed) == ["restarted"]


async def test_p8_an_entry_that_was_deleted_unread_is_one_gap_for_who_resumes(
    server: Server,
) -> None:
    kept = await add(server, "data", "kept")
    await fill(server, 15, "old")  # more than a page
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        await server.command("XDEL", KEY, str((await store.submit("deleted")).id))
        await store.submit("new")
        store.resume(resumed := Told[str](), kept)
        old = [f"old{number}" for number in range(1, 16)]
        assert await story(resumed, 20) == [Gap("expired", kept), *old, *HELD, "new"]
        held.running.set()


async def test_p8_who_is_past_a_deleted_entry_is_not_told_again_by_the_reader(
    server: Server,
) -> None:
    kept = await add(server, "data", "kept")
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        await server.command("XDEL", KEY, str((await store.submit("deleted")).id))
        await store.submit("new")
        store.resume(resumed := Told[str](), kept)
        await eventually(lambda: resumed.got == [*HELD, "new"])
        held.running.set()
        await store.submit("live")
        gap = Gap("expired", held.messages[-1].id)
        assert await story(held, 6) == [*HELD, gap, "new", "live"]
        assert await story(resumed, 6) == [Gap("expired", kept), *HELD, "new", "live"]


async def test_p8_an_entry_with_the_id_of_the_last_that_was_is_behind_the_gap(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        await fill_from(server, 1, 3)
        await eventually(lambda: told.got == ["1", "2", "3"])
        await server.command(*script("DEL", "XADD 2-0 data again", "XADD 3-0 data other"))
        await eventually(lambda: gaps(told))
        await add(server, "data", "new", cursor="4-0")
        store.resume(resumed := Told[str](), "2-0")
        assert await story(resumed, 3) == [Gap("restarted", "2-0"), "other", "new"]


async def test_p8_who_begins_behind_a_deleted_entry_is_not_told_of_it(server: Server) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        first = await store.submit("first")
        await server.command("EVAL", ADD_AND_DELETE, 1, KEY)
        second = await store.submit("second")
        await eventually(lambda: told.got == ["first", "second"])
        store.register(newcomer := Told[str]())
        store.resume(resumed := Told[str](), str(second.id))
        await store.submit("third")
        await eventually(lambda: gaps(told))  # it looks at the whole stream
        await store.submit("fourth")
        await eventually(lambda: told.got[-1] == "fourth")
        for late in newcomer, resumed:
            assert await story(late, 2) == ["third", "fourth"]
        assert gaps(told) == ["expired"]
        store.resume(early := Told[str](), str(first.id))
        assert await story(early, 4) == [Gap("expired", first.id), "second", "third", "fourth"]


@pytest.mark.parametrize("falls_back_to", ["what it has had", "what was before"])
async def test_p8_p10_who_is_past_a_gap_is_told_of_what_was_lost_in_front_of_the_same_entry(
    server: Server, falls_back_to: str, logged: Logged
) -> None:
    kept = await add(server, "data", "kept")
    backup = await dump(server)
    reason: GapReason = "restarted"
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        past = await store.submit("past")
        store.resume(resumed := Told[str](), kept)
        await eventually(lambda: resumed.got == [*HELD, "past"])
        if falls_back_to == "what it has had":
            await server.command("XDEL", KEY, str(past.id))
            backup, reason = await dump(server), "expired"
        store.register(newcomer := Told[str]())
        await store.submit("lost")
        store.register(late := Told[str]())
        await fall_back(server, backup)
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await add(server, "data", "new")
        held.running.set()
        assert await story(newcomer, 2) == [Gap(reason), "new"]
        assert await story(late, 1) == ["new"]
        assert await story(resumed, 6) == [*HELD, "past", Gap(reason, past.id), "new"]
        events = await story(held, 5)
        assert events == [*HELD, Gap(reason, held.messages[2].id), "new"]
    outages(logged)


async def test_p8_who_reads_history_is_told_of_each_deletion_ahead_of_it_whatever_their_order(
    server: Server,
) -> None:
    ids = await fill(server, 60)
    async with store_on(server.port) as store:
        await server.command("XDEL", KEY, ids[58])
        resumed = Told[str]()
        resumed.running.clear()
        store.resume(resumed, ids[0])
        await eventually(lambda: store.statistics().pending)  # it has the first page in hand
        await server.command("XDEL", KEY, ids[50])
        resumed.running.set()
        await eventually(lambda: resumed.got[-1:] == ["60"])
        assert gaps(resumed) == 2 * ["expired"]
        assert resumed.events.index("50") > resumed.events.index(Gap("expired", ids[10]))
        assert resumed.got == [str(n) for n in range(2, 61) if n not in (51, 59)]


async def test_p2_what_is_deleted_once_it_was_read_as_history_is_one_gap_where_it_was(
    server: Server,
) -> None:
    kept = await add(server, "data", "kept")
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        own = [await store.submit(f"own {number}") for number in range(40)]
        await server.command("XDEL", KEY, str(own[2].id))  # so that the counts are not known
        read, _ = [await add(server, "data", data) for data in ("read", "next")]
        store.resume(resumed := Told[str](), kept)
        await eventually(lambda: resumed.got[-1:] == ["next"])
        held.stops_behind = "own 3"
        held.running.set()
        await eventually(lambda: held.got[-1:] == ["own 3"])
        await server.command("XDEL", KEY, read)
        held.running.set()
        await eventually(lambda: held.got[-1:] == ["next"])
        assert gaps(held) == 2 * ["expired"]
        assert held.events[-2:] == [Gap("expired", own[-1].id), "next"]


async def test_p2_each_is_told_once_of_a_deletion_between_what_is_unread(server: Server) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        await store.submit("before")
        store.register(newcomer := Told[str]())
        deleted = await store.submit("deleted")
        await store.submit("behind")
        await server.command("XDEL", KEY, str(deleted.id))
        held.running.set()
        assert await story(newcomer, 2) == [Gap("expired"), "behind"]
        third = held.messages[2].id
        assert await story(held, 6) == [*HELD, Gap("expired", third), "before", "behind"]


async def test_p2_who_began_between_two_that_were_deleted_is_told_of_the_second(
    server: Server,
) -> None:
    kept = await add(server, "data", "kept")
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        first = await store.submit("first")
        store.register(newcomer := Told[str]())
        second = await add(server, "data", "second")
        await add(server, "data", "third")
        store.resume(resumed := Told[str](), kept)
        await eventually(lambda: resumed.got[-1:] == ["third"])
        await server.command("XDEL", KEY, str(first.id), second)
        held.running.set()
        assert await story(newcomer, 2) == [Gap("expired"), "third"]
        assert await story(held, 5) == [*HELD, Gap("expired", held.messages[2].id), "third"]
        await store.submit("live")
        assert await story(resumed, 7) == [*HELD, "first", "second", "third", "live"]


async def test_p8_nobody_gets_a_kept_page_once_another_page_shows_that_it_is_trimmed(
    server: Server,
) -> None:
    first = await add(server, "data", "first")
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        for number in range(20):
            await store.submit(f"more {number}")
        store.resume(early := Told[str](), first)
        await eventually(lambda: early.got[-1:] == ["more 19"])
        await server.command("XTRIM", KEY, "MAXLEN", 3)
        for cursor in "0-0", first:
            store.resume(late := Told[str](), cursor)
            assert await story(late, 4) == [
                Gap("expired", cursor),
                "more 17",
                "more 18",
                "more 19",
            ]
        held.running.set()


@pytest.mark.parametrize("meanwhile", ["nothing", "an entry", "a deletion"])
async def test_p8_p10_a_page_that_was_asked_for_before_a_loss_is_read_again_after_it(
    server: Server, meanwhile: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, going, back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def away(*_: object) -> None:
        await back.wait()

    async def slowly(self: Connection) -> None:
        monkeypatch.undo()
        asked.set()
        await going.wait()
        await connect(self)

    connect = Connection.connect
    kept = await add(server, "data", "kept")
    backup = await dump(server)
    await add(server, "data", "lost")
    async with store_on(server.port) as store:
        store.register(told := Told[str]())
        monkeypatch.setattr(Connection, "connect", slowly)
        store.resume(resumed := Told[str](), kept)
        await asked.wait()
        before: list[str | Gap | Released] = []
        last = None
        if meanwhile == "an entry":
            last = await add(server, "data", "lost as well")
            before = ["lost as well"]
        elif meanwhile == "a deletion":
            await server.command("EVAL", ADD_AND_DELETE, 1, KEY)
            before = [Gap("expired", None)]
        await eventually(lambda: told.events == before)
        monkeypatch.setattr(RedisStreamStore, "_pause", away)
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await fallen(logged)
        await fall_back(server, backup)
        await add(server, "data", "new")
        looks = await calls(server, "exec")
        going.set()
        while await calls(server, "exec") == looks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        back.set()
        assert await story(told, len(before) + 2) == [*before, Gap("restarted", last), "new"]
        assert await story(resumed, 2) == [Gap("restarted", kept), "new"]
    outages(logged)


async def test_p8_p10_who_resumes_at_a_deleted_entry_is_told_of_what_was_lost_behind_it(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        deleted = str((await store.submit("deleted")).id)
        await server.command("XDEL", KEY, deleted)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        held.running.set()
        await eventually(lambda: held.got[-1:] == ["new"])
        store.resume(resumed := Told[str](), deleted)
        assert await story(resumed, 2) == [Gap("restarted", deleted), "new"]


async def test_p8_p10_who_resumes_is_told_of_a_loss_also_if_another_one_undoes_a_deletion(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        kept = str((await store.submit("kept")).id)
        first = await dump(server)
        await store.submit("lost")
        await fall_back(server, first)
        new = str((await store.submit("new")).id)
        second = await dump(server)
        await server.command("EVAL", ADD_AND_DELETE, 1, KEY)
        held.running.set()
        assert await story(held, 6) == [*HELD, Gap("expired", held.messages[2].id), "kept", "new"]
        await fall_back(server, second)
        await store.submit("newer")
        await eventually(lambda: held.got[-1] == "newer")
        store.resume(resumed := Told[str](), kept)
        behind = [Gap("restarted", new), "newer"]
        assert await story(resumed, 4) == [Gap("expired", kept), "new", *behind]


async def test_p2_p8_p10_where_ids_begin_lower_again_no_loss_hides_in_the_one_before(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        held = await hold(store)
        held.stops_behind = HELD[-1]
        first = await dump(server)
        await add(server, "data", "future", cursor=f"{1 << 50}-0")
        store.resume(ahead := Told[str](), "0-0")
        await eventually(lambda: ahead.got[-1:] == ["future"])
        await fall_back(server, first)
        more = [f"more {number}" for number in range(4)]
        last = [await add(server, "data", data) for data in more][-1]
        await asyncio.sleep(SHORT)  # then it looks at the whole stream
        held.running.set()
        await eventually(lambda: store.statistics().published == 6)  # the reader is held again
        store.resume(resumed := Told[str](), last)
        between = str((await store.submit("between")).id)
        second = await dump(server)
        await store.submit("lost")
        await fall_back(server, second)
        await add(server, "data", "new")
        held.running.set()
        behind = [Gap("restarted", last), "between", Gap("restarted", between), "new"]
        assert await story(held, 11) == [*HELD, *more, *behind]
        assert await story(resumed, 4) == behind


async def test_p8_p10_who_asks_for_everything_is_told_of_a_loss_below_an_older_one(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        store.register(told := Told[str]())
        await add(server, "data", "future", cursor=f"{1 << 50}-0")
        await eventually(lambda: told.got == ["future"])
        await server.command("DEL", KEY)
        await eventually(lambda: gaps(told) == ["restarted"])
        await hold(store)
        between = str((await store.submit("between")).id)
        backup = await dump(server)
        await store.submit("lost")
        await fall_back(server, backup)
        await store.submit("new")
        store.resume(resumed := Told[str](), "0-0")
        assert await story(resumed, 6) == [*HELD, "between", Gap("restarted", between), "new"]
        store.deregister(told)
        for subscriber in store.subscribers:
            store.deregister(subscriber)


async def test_p8_p10_nobody_gets_a_kept_page_once_another_page_shows_that_it_is_lost(
    server: Server,
) -> None:
    async with store_on(server.port, **BLOCKING) as store:
        held = await hold(store)
        last = str((await store.submit("kept")).id)
        backup = await dump(server)
        await fill(server, 200, "lost")
        for cursor in last, "0-0":
            store.resume(early := Told[str](), cursor)
            await eventually(lambda: early.got[-1:] == ["lost200"])
        await fall_back(server, backup)
        await add(server, "data", "new")
        third, *_ = [cursor for cursor, data in await entries(server) if data == HELD[2]]
        for cursor, events in (
            (third, ["kept", Gap("restarted", last), "new"]),
            (last, [Gap("restarted", last), "new"]),
        ):
            store.resume(late := Told[str](), cursor)
            assert await story(late, len(events)) == events
        held.running.set()


async def test_p8_p10_nobody_reads_history_while_the_reader_is_not_back(
    server: Server, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_on(server.port) as store:
        first, *_ = await fill(server, 3, "old")
        monkeypatch.setattr(broker, "delay_after", once_asked)
        await server.command("CLIENT", "KILL", "TYPE", "normal")
        await fallen(logged)
        store.resume(resumed := Told[str](), first)
        await asyncio.sleep(0.2)
        assert resumed.events == []
        await store.__aenter__()
        await eventually(lambda: resumed.got == ["old2", "old3"])
    outages(logged)


async def test_p8_p10_an_id_from_elsewhere_is_told_of_a_loss_that_the_reader_has_yet_to_see(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT) as store:
        store.register(told := Told[str]())
        await store.submit("kept")
        backup = await dump(server)
        lost = await store.submit("lost")
        await eventually(lambda: told.got == ["kept", "lost"])
        await fall_back(server, backup)
        elsewhere = f"{1 + int(str(lost.id).split('-')[0])}-0"
        store.resume(resumed := Told[str](), elsewhere)
        await eventually(lambda: gaps(told) == gaps(resumed) == ["restarted"])
        await store.submit("live")
        await eventually(lambda: told.got[-1] == "live" and resumed.got == ["live"])
        assert told.events == ["kept", "lost", Gap("restarted", lost.id), "live"]
        assert resumed.events == [Gap("restarted", elsewhere), "live"]


async def test_p8_p10_what_was_trimmed_does_not_hide_a_loss_that_the_reader_has_yet_to_see(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        store.register(told := Told[str]())
        kept = [await add(server, "data", f"kept{number}") for number in range(3)]
        await eventually(lambda: len(told.got) == 3)
        backup = await dump(server)
        told.running.clear()
        await fill(server, 3, "lost")  # all of which the reader has in hand
        await eventually(lambda: store.statistics().published == 6)
        await fall_back(server, backup)
        await server.command("XTRIM", KEY, "MAXLEN", 1)
        await add(server, "data", "new")
        await server.command("CONFIG", "RESETSTAT")
        store.resume(resumed := Told[str](), kept[0])
        while not await calls(server, "xrange"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        told.running.set()
        expected = [Gap("expired", kept[0]), "kept2", Gap("restarted", kept[2]), "new"]
        assert await story(resumed, 4) == expected


async def test_p8_p10_nobody_waits_for_a_loss_that_cannot_be_told_from_a_deletion_any_more(
    server: Server,
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        store.register(told := Told[str]())
        first = await add(server, "data", "first")
        await eventually(lambda: told.got == ["first"])
        told.running.clear()
        for data in "a", "b":
            await add(server, "data", data)
        await eventually(lambda: store.statistics().published == 3)
        backup = await dump(server)
        await add(server, "data", "lost")  # which the reader has in hand
        await eventually(lambda: store.statistics().published == 4)
        await fall_back(server, backup)
        new = await fill(server, 300, "new")
        await server.command("CONFIG", "RESETSTAT")
        store.resume(resumed := Told[str](), first)
        while not await calls(server, "xrange"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await server.command("XDEL", KEY, new[100])  # so that the counts are as expected
        told.running.set()
        await eventually(lambda: told.got[-1:] == resumed.got[-1:] == ["new300"])


@pytest.mark.parametrize("added", [0, 1])
async def test_p8_p10_nobody_gets_pages_of_what_redis_has_lost_behind_the_reader(
    server: Server, added: int
) -> None:
    async with store_on(server.port, SHORT, **BLOCKING) as store:
        told, early, late = await hold(store), Told[str](), Told[str]()
        await fill(server, 30, "kept")
        backup = await dump(server)
        await fill(server, 300, "lost")
        store.resume(early, "0-0")
        await eventually(lambda: len(early.got) == 333)
        await fall_back(server, backup)
        await fill(server, added, "new")
        told.running.set()
        await eventually(lambda: gaps(told) == ["restarted"])
        store.resume(late, "0-0")
        await store.submit("live")
        await eventually(lambda: late.got[-1:] == ["live"])
        assert late.got == [data for _, data in await entries(server)]
