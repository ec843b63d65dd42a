"""The results as tables, in Markdown that can be read on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .figures import FIGURES
from .results import Results, Row, rows

__all__ = ("LEGEND", "figures_table", "servers_table", "yardstick_line")

HEAD = ("shape", "server", "CPU µs", "x", "wall s", "per s", "p50 ms", "p99 ms", "KiB", "client")


LEGEND = """\
CPU µs: of the server, user and system, for each message that a client has received; of churn,
for each client that came and went; of idle, for each second. x: against the raw loop, or the
redis-py loop, in the same repetition. p50, p99: from submit to receipt. KiB: of memory, for each
connection. client: share of its core that the load client used. Medians of the repetitions."""


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
    """Say how near the load client came to be the bottleneck."""
    shares = [row for row in rows(results) if row.client]
    if not shares:
        return ""
    busiest, quickest = max(shares, key=_client), max(shares, key=_rate)
    return (
        f"The load client used at most {busiest.client:.0%} of its core"
        f" ({busiest.shape}: {busiest.server}); it took up to {quickest.rate:,.0f} deliveries a"
        f" second ({quickest.shape}: {quickest.server})."
    )


def _client(row: Row) -> float:
    return row.client


def _rate(row: Row) -> float:
    return row.rate


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.shape,
        row.server,
        f"{row.cpu:,.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.wall:.2f}",
        f"{row.rate:,.0f}",
        f"{row.p50:.1f}" if row.p50 else "",
        f"{row.p99:.1f}" if row.p99 else "",
        f"{row.memory:.1f}" if row.memory else "",
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
