"""The pure parts of the benchmarks; what they measure is not asserted anywhere."""

from __future__ import annotations

import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.chart import svg
from benchmarks.choice import chosen, matching
from benchmarks.compare import worse
from benchmarks.figures import FIGURES
from benchmarks.process import NotInstalledError, Process, Server
from benchmarks.protocol import (
    MARK,
    Connect,
    Count,
    Done,
    Order,
    Report,
    Setup,
    pack,
    payload,
    unpack,
)
from benchmarks.results import Delay, Results, Sample, load, percentile, ratio, rows, save
from benchmarks.session import Session
from benchmarks.shapes import Shape, plan
from benchmarks.tables import figures_table, servers_table, yardstick_line


def results(**microseconds: float) -> Results:
    """Return results of one shape, with the CPU time of each server for a delivery."""
    found = Results()
    for server, each in microseconds.items():
        for noise in (1.0, 1.5, 1.1, 0.9, 1.0):
            cpu = each * noise * 1000 / 1e6
            sample = Sample(cpu=cpu, wall=1.0, count=1000, client=0.25)
            found.add("paced", server.replace("_", " "), sample)
        delays = found.delays.setdefault("paced", {})
        delays[server.replace("_", " ")] = Delay(count=1000, p50=0.001, p99=0.002)
    return found


def test_a_ratio_pairs_the_repetitions() -> None:
    found = results(raw_loop=10.0, tornadose=12.0)
    assert ratio(found.samples["paced"], "tornadose", "raw loop") == pytest.approx(1.2)
    assert ratio(found.samples["paced"], "tornadose", "missing") is None


def test_a_row_has_the_medians() -> None:
    raw, ours = rows(results(raw_loop=10.0, tornadose=12.0))
    assert (raw.server, raw.ratio) == ("raw loop", 1.0)
    assert ours.cpu == pytest.approx(12.0)
    assert ours.ratio == pytest.approx(1.2)
    assert (ours.rate, ours.p50, ours.p99) == (1000.0, 1.0, 2.0)


def test_what_was_saved_can_be_loaded(tmp_path: Path) -> None:
    found = results(raw_loop=10.0, tornadose=12.0)
    found.about["python"] = "3.11"
    save(found, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == found


PACED = {("paced", "tornadose"), ("paced", "raw loop")}


def test_a_ratio_that_is_worse_by_more_than_15_percent_is_named_once() -> None:
    before = results(raw_loop=10.0, tornadose=12.0, aiohttp=36.0)
    assert worse(results(raw_loop=20.0, tornadose=27.0, aiohttp=200.0), before, PACED) == []
    assert worse(results(raw_loop=10.0, tornadose=14.0), before, PACED) == [
        "paced: tornadose, CPU: 1.20 before, 1.40 now",
    ]
    assert worse(results(raw_loop=10.0, tornadose=14.0), Results(), PACED) == []


@pytest.mark.parametrize("missing", [{"raw_loop": 10.0}, {"tornadose": 10.0}, {}])
def test_what_was_to_be_measured_and_is_missing_is_named(missing: dict[str, float]) -> None:
    before = results(raw_loop=10.0, tornadose=12.0)
    assert worse(results(**missing), before, PACED) == [
        "paced: tornadose, CPU: 1.20 before, missing now",
        "paced: tornadose, p99 against raw loop: 1.00 before, missing now",
    ]
    assert worse(results(**missing), before, {("paced", "raw loop")}) == []


def test_a_p99_that_is_worse_than_the_raw_loops_by_half_is_named() -> None:
    before, now = (results(raw_loop=10.0, tornadose=12.0) for _ in range(2))
    now.delays["paced"]["tornadose"] = Delay(count=1000, p50=0.001, p99=0.0029)
    assert worse(now, before, PACED) == []
    now.delays["paced"]["tornadose"] = Delay(count=1000, p50=0.001, p99=0.0031)
    assert worse(now, before, PACED) == [
        "paced: tornadose, p99 against raw loop: 1.00 before, 1.55 now"
    ]


def test_the_cpu_and_memory_of_who_is_idle_are_compared() -> None:
    def idle(cpu: float, memory: float) -> Results:
        found = Results()
        for server, each in ("raw loop", 0.1), ("tornadose", cpu):
            found.add("idle", server, Sample(cpu=each, wall=15.0, count=15, memory=memory))
        return found

    assert worse(idle(0.2, 20480.0), idle(0.15, 10240.0), {("idle", "tornadose")}) == [
        "idle: tornadose, CPU: 1.50 before, 2.00 now",
        "idle: tornadose, KiB: 10.00 before, 20.00 now",
    ]


def test_that_very_name_is_chosen_before_those_that_begin_so() -> None:
    names = "1 MB to 100", "1 MB to 10", "Redis Streams in"
    assert matching(["1 MB to 10"], names) == {"1 MB to 10"}
    assert matching(["1 MB", "redis"], names) == set(names)
    assert matching(None, names) == set(names)
    with pytest.raises(ValueError, match="'2 MB' is none of"):
        matching(["2 MB"], names)


def test_a_chosen_server_has_the_raw_loop_beside_it() -> None:
    stages = chosen(plan(full=True), {"paced", "stalled"}, {"tornadose"})
    assert [[entrant.name for entrant in stage.entrants] for stage in stages] == [
        ["raw loop", "tornadose"],
        ["tornadose", "tornadose (10 % stalled)"],
    ]


def test_figures_are_judged() -> None:
    paced = FIGURES[0]
    assert paced.verdict(Results()) == "not measured"
    assert paced.verdict(results(raw_loop=10.0, tornadose=10.9)) == "beyond"
    assert paced.verdict(results(raw_loop=10.0, tornadose=12.0)) == "reached"
    assert paced.verdict(results(raw_loop=10.0, tornadose=13.0)) == "NOT REACHED"


def test_a_copy_for_each_client_is_seen_in_the_cpu_time_of_1_mb() -> None:
    (figure,) = (each for each in FIGURES if each.name.startswith("1 MB to 100"))
    for cpu, verdict in (0.023, "reached"), (0.160, "NOT REACHED"):
        found = Results()
        for server, each in ("raw loop", 0.020), ("tornadose", cpu):
            found.add("1 MB to 100", server, Sample(cpu=each, wall=1.0, count=100))
        assert figure.verdict(found) == verdict


def test_tables_have_columns_of_one_width() -> None:
    found = results(raw_loop=10.0, tornadose=12.0)
    for table in servers_table(found), figures_table(found), servers_table(Results()):
        assert len({len(line) for line in table.splitlines()}) == 1
    assert "25%" in yardstick_line(found)
    assert yardstick_line(Results()) == ""


def test_a_row_shows_how_far_its_ratios_spread() -> None:
    (row,) = rows(results(raw_loop=10.0))
    assert (row.least, row.most) == pytest.approx((0.9, 1.5))


@pytest.mark.parametrize(
    ("busy", "client", "verdict"),
    [
        (0.9, 0.95, "never the bottleneck"),
        (0.2, 0.15, "never the bottleneck"),
        (0.65, 0.9, "IT WAS THE BOTTLENECK in lockstep"),
    ],
)
def test_the_load_client_is_the_bottleneck_where_the_raw_loop_waits_for_it(
    busy: float, client: float, verdict: str
) -> None:
    found = Results()
    found.add("lockstep", "raw loop", Sample(cpu=busy, wall=1.0, count=1, client=client))
    assert verdict in yardstick_line(found)


@pytest.mark.parametrize("servers", [{}, {"a": 1.0}, {"tornadose": 2.0, "b": 3.0, "c": 900.0}])
def test_the_chart_is_well_formed(servers: dict[str, float]) -> None:
    drawn = svg(results(**servers)) or "<svg/>"
    root = ElementTree.fromstring(drawn)  # noqa: S314 (it is our own)
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == len(servers)
    assert all(float(bar.attrib["width"]) < 600 for bar in bars)


@pytest.mark.parametrize("full", [False, True])
def test_what_is_published_is_whole_bursts(full: bool) -> None:
    for shape in (shape for stage in plan(full) for shape in stage.shapes):
        assert shape.messages % shape.burst == 0


@pytest.mark.parametrize("full", [False, True])
def test_every_entrant_has_a_server(full: bool) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "servers"
    for stage in plan(full):
        for entrant in stage.entrants:
            assert (folder / f"{entrant.module}.py").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and uses epoll")
@pytest.mark.parametrize("name", ["raw loop", "tornadose", "tornadose WebSocket"])
def test_a_server_can_be_measured(name: str) -> None:
    stage = next(iter(plan(full=False)))
    (entrant,) = (entrant for entrant in stage.entrants if entrant.name == name)
    with Session(entrant, replace(stage, clients=8), redis="") as session:
        for shape, received in (
            (Shape(name="paced", do="paced", messages=6, rate=1000.0, burst=3), 48),
            (Shape(name="lockstep", do="lockstep", messages=5, size=500_000), 40),
            (Shape(name="churn", do="churn", messages=3), 3),
        ):
            sample, latencies = session.measure(shape)
            assert sample.count == received
            assert sample.cpu > 0
            assert sample.size >= (shape.messages * shape.size * 8 if latencies else 0)


@contextmanager
def load_client(clients: int) -> Generator[tuple[Process, list[socket.socket]], None, None]:
    """Give the load client, and the server's sides of its connections."""
    with ExitStack() as stack:
        client = Process("client", "-1", -1)
        stack.callback(client.close)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        order = Connect(ports=server.getsockname()[1:], path="/", websocket=False, clients=clients)
        client.tell(order, "connect")
        accepted = [stack.enter_context(server.accept()[0]) for _ in range(clients)]
        for sock in accepted:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        client.answer(Done)
        yield client, accepted


@pytest.mark.skipif(sys.platform != "linux", reason="uses epoll")
@pytest.mark.parametrize(
    ("size", "sent", "trouble"),
    [
        (10_000, [10_000] * 4, ""),
        (100, [200, 200, 0, 0], "a client got more than was published"),
        (100, [200] * 4, "a client got more than was published"),
        (100, [100, 100, 100, 0], "1 of 4 clients got too little"),
        (10_000, [20] * 4, "4 of 4 clients got too little"),
    ],
)
def test_each_client_is_to_get_each_message_once(size: int, sent: list[int], trouble: str) -> None:
    with load_client(len(sent)) as (client, accepted):
        for sock, each in zip(accepted, sent, strict=True):
            sock.sendall(payload(size).encode()[-each:] * max(1, each // size) if each else b"")
        client.ask(Done, Count(messages=1, size=size, timeout=0.1), "count")
        report = client.answer(Report)
    assert report.trouble == trouble
    assert report.size == sum(sent) or trouble
    assert len(report.latencies) == len(sent) or trouble


@pytest.mark.skipif(sys.platform != "linux", reason="uses epoll")
@pytest.mark.parametrize("messages", [[0, 1], [1, 1]])
def test_a_client_that_is_disconnected_is_noticed(messages: list[int]) -> None:
    with load_client(2) as (client, accepted):
        for sock, number in zip(accepted, messages, strict=True):
            sock.sendall(payload(100).encode() * number)
        accepted[0].close()
        client.ask(Done, Count(messages=1, size=100), "count")
        assert client.answer(Report).trouble == "a client was disconnected"


@pytest.mark.skipif(sys.platform != "linux", reason="uses epoll")
def test_who_gets_no_heartbeat_is_not_counted() -> None:
    with load_client(3) as (client, (first, second, _)):
        for sock in first, second, first:
            sock.sendall(b":\n\n")
        assert client.ask(Done, Count(messages=0), "hear").count == 2
        assert client.ask(Done, Count(messages=0), "hear").count == 0


def test_too_few_latencies_have_no_p99() -> None:
    assert Delay.of([1000] * 499).p99 is None
    assert Delay.of([1000] * 500) == Delay(count=500, p50=1e-6, p99=1e-6)


def test_a_server_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCHAN", "")
    monkeypatch.setenv("NGINX", "/nonexistent")
    with pytest.raises(NotInstalledError, match="nginx"):
        Server("nchan", Setup())


def test_a_payload_has_its_size_and_one_mark() -> None:
    for size in 100, 1_000_000:
        text = payload(size).encode()
        assert (len(text), text.count(MARK)) == (size, 1)


def test_orders_travel_as_lines() -> None:
    order = Order(do="paced", messages=3, burst=10)
    assert "\n" not in pack(order)
    assert unpack(Order, pack(order)) == order


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile([1, 2, 3, 4], share) == expected
