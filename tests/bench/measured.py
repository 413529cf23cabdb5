"""What was measured, for each way: medians, spreads and ratios, as a table and as JSON."""

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
class Ratio:
    """How much better one way is than another, pair by pair; above 1 means better."""

    pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the pairs."""
        return statistics.median(self.pairs)

    def __str__(self) -> str:
        if len(self.pairs) == 1:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({min(self.pairs):.2f} to {max(self.pairs):.2f})"


@dataclass(frozen=True)
class Measured:
    """One quantity, measured for each way in turn: the i-th values of all ways are neighbours."""

    name: str  # such as lstm training
    unit: str  # such as reviews/s
    more_is_better: bool
    ways: dict[str, tuple[float, ...]]  # in the order of the table
    base: str = ""  # the way that the others are compared with; without one there is no ratio

    def ratio(self, way: str) -> Ratio | None:
        """How much better `way` is than the base, None for the base itself or without one."""
        if way == self.base or self.base not in self.ways:
            return None
        pairs = zip(self.ways[way], self.ways[self.base], strict=True)
        return Ratio(tuple(a / b if self.more_is_better else b / a for a, b in pairs))


def rounded(value: float) -> str:
    """Three significant digits, no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_table(measured: Sequence[Measured]) -> None:
    """Print a line for each way of each quantity: median, spread, ratio to the base."""
    table = Table(
        "measured", "way", "median", "from", "to", "times", box=None, padding=(0, 1, 0, 0)
    )
    for each in measured:
        for index, (way, values) in enumerate(each.ways.items()):
            ratio = each.ratio(way)
            table.add_row(
                f"{each.name}, {each.unit}" if index == 0 else "",
                way,
                rounded(statistics.median(values)),
                *(map(rounded, (min(values), max(values))) if len(values) > 1 else ("", "")),
                str(ratio) if ratio else "",
            )
    rich_console().print(table)


def write_record(path: Path, about: Mapping[str, Any], measured: Sequence[Measured]) -> None:
    """Write the values of all pairs as JSON, beside what they were measured on."""
    record = {**about, "measured": [asdict(each) for each in measured]}
    atomic_write(path, f"{json.dumps(record, indent=1)}\n")
