"""The tables: medians of the rounds, ratios within a round, and the targets beside them."""

import argparse
import sys
from collections import defaultdict
from itertools import pairwise
from statistics import median

from measure import Figures, Run, RunFailedError, measure
from rich.console import Console
from rich.table import Table

TARGETS = {"straight": 0.6, "superduper": 40.0, "pixeltable": 4.0}
"""How many times as fast as each of them asyncdl is to be."""

COMPETITORS = {
    "straight": "a straight-line sqlite3 script",
    "superduper": "superduper-framework 0.10.0",
    "pixeltable": "pixeltable 0.7",
    "ours": "asyncdl",
}


class Results:
    """The figures of each run by name, one for each round."""

    def __init__(self) -> None:
        self.console = Console() if sys.stdout.isatty() else Console(width=120)
        self.runs: dict[str, Run] = {}
        self.failures: dict[str, str] = {}
        self._figures: dict[str, dict[int, Figures]] = defaultdict(dict)

    def add(self, run: Run, turn: int) -> None:
        """Run it once more, unless it has failed before; a failure takes all its figures away."""
        if run.name in self.failures:
            return
        self.runs[run.name] = run
        try:
            figures = measure(run)
        except RunFailedError as error:
            self.failures[run.name] = str(error)
            self._figures.pop(run.name, None)
            self.console.print(f"round {turn}: [red]{run.name} failed[/]")
        else:
            self._figures[run.name][turn] = figures
            self.console.print(f"round {turn}: {run.name}: {figures['seconds']:.3f} s", highlight=False)

    def has(self, name: str) -> bool:
        """Return whether there are figures of this name."""
        return bool(self._figures.get(name))

    def all(self, name: str, figure: str = "seconds") -> list[float]:
        """Return a figure in the order of the rounds."""
        rounds = self._figures.get(name, {})
        return [rounds[turn][figure] for turn in sorted(rounds)]

    def median(self, name: str, figure: str = "seconds") -> float:
        """Return the median of a figure."""
        return median(self.all(name, figure))

    def times_faster(self, name: str, other: str) -> float:
        """Return how many times the rows per second of another one are reached: the median of the rounds' ratios."""
        pairs = zip(self.all(name), self.all(other), strict=True)
        rows = self.runs[name].rows / self.runs[other].rows
        return median(rows * theirs / mine for mine, theirs in pairs)


def print_tables(results: Results, chosen: argparse.Namespace) -> None:
    """Print everything that was measured."""
    results.console.print()
    for table in (_beside(results, chosen), _alone(results, chosen)):
        if table.row_count:
            results.console.print(table)
    for failure in results.failures.values():
        results.console.print(failure, style="red", markup=False, highlight=False)


def _beside(results: Results, chosen: argparse.Namespace) -> Table:
    title = f"Backfill of {chosen.rows:,} rows with {chosen.keys} keys: median of {chosen.repeat}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("seconds", "from - to", "rows/s", "asyncdl is x", "target"):
        table.add_column(heading, justify="right")
    for name, words in COMPETITORS.items():
        if name in chosen.names:
            table.add_row(words, *_speed(results, name), *_ratio(results, name))
    return table


def _speed(results: Results, name: str) -> tuple[str, str, str]:
    if not results.has(name):
        return "failed", "", ""
    seconds = results.all(name)
    middle = median(seconds)
    return f"{middle:.3f}", f"{min(seconds):.3f} - {max(seconds):.3f}", f"{results.runs[name].rows / middle:,.0f}"


def _ratio(results: Results, name: str) -> tuple[str, str]:
    if name not in TARGETS:
        return "", ""
    if not (results.has(name) and results.has("ours")):
        return "", f"≥ {TARGETS[name]:g}"
    ratio = results.times_faster("ours", name)
    return _judged(f"{ratio:.2f}", ratio >= TARGETS[name]), f"≥ {TARGETS[name]:g}"


def _judged(text: str, good: bool) -> str:
    return f"[green]{text}[/]" if good else f"[red]{text}[/]"


def _alone(results: Results, chosen: argparse.Namespace) -> Table:
    table = Table(title=f"asyncdl by itself: median of {chosen.repeat}", title_justify="left")
    table.add_column("")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    for mode, words in (("scale", "backfill"), ("live", "inserted beside the listener")):
        _add_sizes(table, results, mode, words, [size for size in chosen.sizes if results.has(f"{mode} {size}")])
    if results.has("slow"):
        ratio = results.median("slow") / results.median("slow", "ideal")
        text = f"{results.median('slow'):.3f} s = {ratio:.2f} x ideal"
        table.add_row("async model of 50 ms, 10,000 rows, 1,000 at once", _judged(text, ratio <= 1.5), "≤ 1.5 x")
    if results.has("one-row"):
        waited = results.median("one-row", "waited_median")
        table.add_row("one row: insert → wait() returns", _judged(f"{waited:.1f} ms", waited < 15), "< 15 ms")
        table.add_row("… the slowest of them", f"{results.median('one-row', 'waited_max'):.1f} ms", "")
        read = results.median("one-row", "read_median")
        table.add_row("… insert → output read by a query", _judged(f"{read:.1f} ms", read < 15), "< 15 ms")
    if results.has("heartbeat"):
        middle, late = (results.median("heartbeat", figure) for figure in ("gap_median", "gap_p999"))
        table.add_row("1 ms heartbeat in a backfill: median gap", f"{middle:.1f} ms", "")
        table.add_row("… 99.9th percentile", _judged(f"{late:.1f} ms", late < 20), "< 20 ms")
        table.add_row("… longest (of all rounds)", f"{max(results.all('heartbeat', 'gap_max')):.1f} ms", "")
    return table


def _add_sizes(table: Table, results: Results, mode: str, words: str, sizes: list[int]) -> None:
    for size in sizes:
        seconds, memory = results.median(f"{mode} {size}"), results.median(f"{mode} {size}", "memory")
        figures = f"{size / seconds:,.0f} rows/s, {seconds / size * 1e6:.2f} µs/row, peak {memory:.0f} MB"
        table.add_row(f"{words}, {size:,} rows", figures, "")
    if len(sizes) > 1:
        costs = [results.median(f"{mode} {size}") / size for size in sizes]
        spread = max(costs) / min(costs) - 1
        table.add_row("… cost per row: dearest over cheapest", _judged(f"+{spread:.0%}", spread <= 0.2), "≤ +20 %")
    for small, large in list(pairwise(sizes))[-1:]:
        grown = results.median(f"{mode} {large}", "memory") - results.median(f"{mode} {small}", "memory")
        words = f"… peak memory, {large:,} over {small:,}"
        table.add_row(words, _judged(f"{grown:+.0f} MB", grown <= 150), "≤ +150 MB")
