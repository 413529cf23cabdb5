"""Measured values of each way: medians, spreads and ratios, as a table and as JSON.

A way is one side of a comparison, such as the program `notebook` or `100 runs`.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.system.console import rich_console
from harness.system.files import atomic_write


@dataclass(frozen=True)
class Measured:
    """The values of one quantity; the i-th values of all ways were measured in the same turn."""

    name: str  # for example lstm training
    unit: str  # for example reviews/s
    more_is_better: bool
    ways: dict[str, tuple[float, ...]]  # the values of each way, in the order of the table
    base: str = ""  # the way with which all others are compared; if empty, there are no ratios

    def ratio(self, way: str) -> str:
        """Describe how much better `way` is than the base, such as `1.20 (1.10 to 1.30)`.

        The text has the median, minimum and maximum of the ratios of all pairs of values. For the
        base itself the text is empty.
        """
        if way == self.base or self.base not in self.ways:
            return ""
        pairs = zip(self.ways[way], self.ways[self.base], strict=True)
        ratios = [a / b if self.more_is_better else b / a for a, b in pairs]
        text = f"{statistics.median(ratios):.2f}"
        return text if len(ratios) == 1 else f"{text} ({min(ratios):.2f} to {max(ratios):.2f})"


def rounded(value: float) -> str:
    """Format a value with two decimals, one decimal from 10, and no decimals from 100."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_table(measured: Sequence[Measured]) -> None:
    """Print a line for each way of each quantity: median, minimum, maximum, ratio to the base."""
    table = Table(
        "measured", "way", "median", "from", "to", "times", box=None, padding=(0, 1, 0, 0)
    )
    for each in measured:
        for index, (way, values) in enumerate(each.ways.items()):
            table.add_row(
                f"{each.name}, {each.unit}" if index == 0 else "",
                way,
                rounded(statistics.median(values)),
                *(map(rounded, (min(values), max(values))) if len(values) > 1 else ("", "")),
                each.ratio(way),
            )
    rich_console().print(table)


def write_record(path: Path, about: Mapping[str, Any], measured: Sequence[Measured]) -> None:
    """Write a JSON file with `about` (machine, settings and data) and all measured values."""
    record = {**about, "measured": [asdict(each) for each in measured]}
    atomic_write(path, f"{json.dumps(record, indent=1)}\n")
