"""The results as tables, in Markdown that can be read on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .figures import FIGURES
from .results import Results, Row, rows
from .shapes import RAW

__all__ = ("LEGEND", "figures_table", "servers_table", "yardstick_line")

HEAD = (
    *("shape", "server", "CPU µs", "x", "from-to", "wall s", "per s", "bytes"),
    *("p50 ms", "p99 ms", "KiB", "server", "client"),
)
BUSY = 0.8  # share of its core with which a server keeps nobody waiting but itself

LEGEND = """\
CPU µs: of the server, user and system, for each message that a client has received; of churn,
for each client that came and went; of idle, for each second. x: against the raw loop, or the
redis-py loop, in the same repetition; from-to: the least and the most of these ratios, and of
the raw loop itself, against its median. bytes: for each delivery, with what frames it. p50, p99:
from submit to receipt, of all repetitions together; no p99 of fewer than 500. KiB: of memory, for
each connection, one sample. server, client: share of its core that the server, and the load
client, used; two processes share a core, and what they do for Redis is in it. Else: medians."""


def servers_table(results: Results) -> str:
    """Return the table of servers and shapes; `LEGEND` explains it."""
    return _table(HEAD, [_cells(row) for row in rows(results)], left=2)


def figures_table(results: Results) -> str:
    """Return the table of what is to be reached."""
    lines = [
        (
            figure.name,
            f"<= {figure.reach:g}{figure.unit}",
            "" if figure.beyond is None else f"<= {figure.beyond:g}{figure.unit}",
            "" if (found := figure.measured(results)) is None else f"{found:.2f}{figure.unit}",
            figure.verdict(results),
        )
        for figure in FIGURES
    ]
    return _table(("figure", "to reach", "beyond", "measured", ""), lines, left=1)


def yardstick_line(results: Results) -> str:
    """Say whether the load client was the bottleneck anywhere, as the yardstick shows it.

    It was where the raw loop waited, and the client did not. A high share alone says little:
    who is woken for each message is busier than who gets many at once.
    """
    raw = [row for row in rows(results) if row.server == RAW.name and row.client]
    if not raw:
        return ""
    busiest = max(raw, key=_client)
    slow = [row.shape for row in raw if row.busy < min(BUSY, row.client)]
    verdict = f"IT WAS THE BOTTLENECK in {', '.join(slow)}" if slow else "never the bottleneck"
    return (
        f"With the raw loop, the load client used at most {busiest.client:.0%} of its core"
        f" ({busiest.shape}, where the server used {busiest.busy:.0%} of its own): {verdict}."
    )


def _client(row: Row) -> float:
    return row.client


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.shape,
        row.server,
        f"{row.cpu:,.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.least is None or row.most is None else f"{row.least:.2f}-{row.most:.2f}",
        f"{row.wall:.2f}",
        f"{row.rate:,.0f}",
        f"{row.size:,.0f}" if row.size else "",
        "" if row.p50 is None else f"{row.p50:.1f}",
        "" if row.p99 is None else f"{row.p99:.1f}",
        f"{row.memory:.1f}" if row.memory else "",
        f"{row.busy:.0%}",
        f"{row.client:.0%}" if row.client else "",
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Lay the cells out, with so many columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]

    def laid_out(cells: Sequence[str]) -> Iterator[str]:
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            yield cell.ljust(width) if number < left else cell.rjust(width)

    rule = ["-" * w if number < left else "-" * (w - 1) + ":" for number, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(laid_out(cells))} |" for cells in (head, rule, *lines))
