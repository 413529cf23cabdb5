"""What the report says of where its runs come from: machines, versions, code, folders."""

from collections.abc import Sequence
from typing import Any

from harness.compare import Row, ScoredRun
from harness.observation import table, text
from harness.run import Run
from harness.tables import Line

UNKNOWN = "unknown"


def environments(rows: Sequence[Row]) -> list[Line]:
    """Each unlike machine, set of versions and code, a line for each, with how many runs it had."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for row in rows:
        for run in row.runs:
            known = tuple(_environment(run).items())
            counts[known] = counts.get(known, 0) + 1
    return [{"runs": str(count), **dict(known)} for known, count in counts.items()]


def _environment(run: ScoredRun) -> dict[str, str]:
    record = Run(run.folder).read_json("provenance.json")
    packages = table(record, "packages")
    names = ("tensorflow", "keras", "numpy")
    commit = (text(record.get("commit")) or UNKNOWN)[:12]
    changed = " with uncommitted changes" if text(record.get("uncommitted_diff")) else ""
    return {
        "processor": text(record.get("processor")) or UNKNOWN,
        "devices": _devices(run, record),
        "driver": text(record.get("driver")) or "none",
        "packages": ", ".join(f"{n} {text(packages.get(n)) or UNKNOWN}" for n in names),
        "Python": text(record.get("python")) or UNKNOWN,
        "system": text(record.get("system")) or UNKNOWN,
        "code": f"{commit}{changed}",
    }


def _devices(run: ScoredRun, record: dict[str, Any]) -> str:
    """Each start of a run may have had others; the last one's, with the names where known."""
    starts = record.get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else {}
    devices = last.get("devices") if isinstance(last, dict) else None
    if not isinstance(devices, list) or not devices:
        devices = run.result.get("devices") or [UNKNOWN]
    named = [
        " ".join(map(str, each.values())) if isinstance(each, dict) else str(each)
        for each in devices
    ]
    return ", ".join(named)


def run_lines(rows: Sequence[Row]) -> list[Line]:
    """Each run with its seed, score and folder."""
    return [
        {
            "run": str(run.folder),
            "row": row.name,
            "seed": str(run.seed),
            "test %": f"{run.accuracy:.2f}",
        }
        for row in rows
        for run in row.runs
    ]
