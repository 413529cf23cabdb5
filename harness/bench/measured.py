"""What was measured, for each way: medians, spreads and ratios, as a table and as JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.errors import InputError
from harness.files.atomic_file import atomic_write
from harness.system.console import rich_console

FORMAT = 1  # of the JSON


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


def to_record(
    measured: Sequence[Measured], machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything as a JSON record."""
    return {
        "format": FORMAT,
        "machine": machine,
        "settings": settings,
        "measured": [asdict(each) for each in measured],
    }


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record, whole or not at all."""
    atomic_write(path, f"{json.dumps(record, indent=1)}\n")


def read_record(path: Path) -> tuple[dict[str, Any], list[Measured]]:
    """A record and what it holds.

    Raises:
        InputError: if it can't be read, or is not a record of `harness bench`.
    """
    try:
        record = json.loads(path.read_text())
        if (found := record["format"]) != FORMAT:
            raise OSError(0, f"its format is {found!r}, not {FORMAT}")
        held = [
            Measured(**{**each, "ways": {k: tuple(v) for k, v in each["ways"].items()}})
            for each in record["measured"]
        ]
        settings = {**record.get("settings", {})}
        _ = record["machine"]["processor"], settings.get("checksum", "")[:12]
        _ = [each.ratio(way) for each in held for way in each.ways]
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); harness bench --json {path} makes one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise InputError(
            f"{path}: is no record of harness bench; harness bench --json FILE makes one"
        ) from None
    return record, held


@dataclass(frozen=True)
class Change:
    """A ratio now, and what it was."""

    name: str
    now: Ratio
    then: Ratio

    @property
    def verdict(self) -> str:
        """`better` or `worse` only where the spreads of the pairs do not overlap."""
        if min(self.now.pairs) > max(self.then.pairs):
            return "better"
        if max(self.now.pairs) < min(self.then.pairs):
            return "worse"
        return "same"


def changes(now: Sequence[Measured], then: Sequence[Measured]) -> list[Change]:
    """What both hold, as ratios to the same: seconds of different machines can't be compared."""
    before = {each.name: each for each in then}
    changed = []
    for each in now:
        other = before.get(each.name)
        if other is None or other.base != each.base:
            continue
        for way in each.ways:
            ratio = each.ratio(way)
            if ratio and way in other.ways and (was := other.ratio(way)):
                changed.append(Change(f"{each.name}, {way} over {each.base}", ratio, was))
    return changed


def check_sizes(path: Path, record: dict[str, Any], **sizes: int) -> None:
    """Refuse to hold a measurement against one of other sizes, whose ratios are others.

    Raises:
        InputError: if a size in the record differs.
    """
    settings = record.get("settings", {})
    for name, size in sizes.items():
        if (was := settings.get(name, size)) != size:
            raise InputError(f"--compare {path}: was measured with --{name} {was}; give the same")


def check_data(path: Path, record: dict[str, Any], about: Mapping[str, Any]) -> None:
    """Refuse to hold a measurement against one on other data: reviews differ in length.

    Args:
        path: of the record.
        record: one of an earlier version does not say its data, and is taken.
        about: the data now: is_sample and checksum; empty if each job names its own.

    Raises:
        InputError: if the record names other data.
    """
    was = record.get("settings", {})
    if "checksum" in was and about and was["checksum"] != about["checksum"]:
        which, now = (
            "the sample" if each.get("is_sample") else each["checksum"][:12]
            for each in (was, about)
        )
        raise InputError(
            f"--compare {path}: was measured on other data ({which}, here {now}); give the same by "
            "--data"
        )


def print_changes(found: Sequence[Change]) -> None:
    """Print each ratio next to the reference's."""
    table = Table("ratio", "now", "reference", "", box=None, padding=(0, 1, 0, 0))
    for change in found:
        table.add_row(change.name, str(change.now), str(change.then), change.verdict)
    rich_console().print(table)
