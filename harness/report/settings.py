"""Jobs by their settings: those that differ, runs chosen by a setting, jobs grouped by one."""

import json
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import InputError, suggest
from harness.report.collect import WITHOUT_RESULT, JobResult, ScoredRun
from harness.report.text_tables import Line
from harness.search_space import short_names

UNSET = "unset"
MAX_VALUES = 10  # of a key in a message


def chosen(runs: Sequence[ScoredRun], where: Sequence[str]) -> list[ScoredRun]:
    """The runs whose jobs have all these settings.

    Args:
        runs: to choose from.
        where: each `table.key=value`, the value as TOML writes it, bare words allowed.

    Raises:
        InputError: for a key that no run has, or a value that none of them has for it.
    """
    left = list(runs)
    for text in where:
        key, equals, value = text.partition("=")
        check_key("--where", key, runs)
        if not equals:
            raise InputError(f"--where {text}: should be TABLE.KEY=VALUE, such as model.units=64")
        wanted = _value(value)
        known = {_shown(run.settings.get(key)): run.settings.get(key) for run in left}
        left = [run for run in left if _same(run.settings.get(key), wanted)]
        if not left:
            names = sorted(known, key=lambda name: _place(known[name]))
            more = f" and {len(names) - MAX_VALUES} more" if len(names) > MAX_VALUES else ""
            raise InputError(
                f"--where {text}: no run has it; there {key} is {', '.join(names[:MAX_VALUES])}"
                f"{more}"
            )
    return left


def check_key(option: str, key: str, runs: Iterable[ScoredRun]) -> None:
    """Refuse a key that no run's job has, or that tells no jobs apart.

    Raises:
        InputError: with the nearest key, or with what to do instead.
    """
    known = sorted({name for run in runs for name in run.settings})
    if key in WITHOUT_RESULT and key not in known:
        raise InputError(
            f"{option} {key}: runs that differ in it alone are of one job; name the runs instead"
        )
    if key not in known:
        raise InputError(f"{option} {key}: no run has this key{suggest(key, known)}")


def differing(results: Sequence[JobResult]) -> dict[str, str]:
    """The keys whose values differ between jobs, each with its short name."""
    keys = dict.fromkeys(key for result in results for key in result.runs[0].settings)
    return short_names(
        [key for key in keys if len({_shown(each.setting(key)) for each in results}) > 1]
    )


def setting_cells(result: JobResult, keys: Mapping[str, str]) -> Line:
    """The job's values of these keys, by their short names."""
    return {name: _shown(result.setting(key)) for key, name in keys.items()}


def grouped(results: Sequence[JobResult], key: str) -> list[Line]:
    """A row for each value of a key: its jobs' mean and their best, by test accuracy in per cent.

    The best value comes first.
    """
    by_value: dict[str, list[JobResult]] = {}
    for result in results:
        by_value.setdefault(_shown(result.setting(key)), []).append(result)
    lines = []
    for value, members in by_value.items():
        best = max(members, key=lambda each: each.mean)
        mean = statistics.fmean(each.mean for each in members)
        lines.append((mean, {
            key: value,
            "jobs": str(len(members)),
            "runs": str(sum(len(each.runs) for each in members)),
            "mean test %": f"{mean:.2f}",
            "best test %": f"{best.mean:.2f}",
            "best job": best.name,
        }))  # fmt: skip
    return [line for _, line in sorted(lines, key=lambda each: -each[0])]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _same(one: Any, other: Any) -> bool:
    # 1 is 1.0, but not true.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _place(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return UNSET
    return value if isinstance(value, str) else json.dumps(value, default=str)
