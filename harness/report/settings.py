"""Jobs by their settings: those that differ, runs chosen by a setting, jobs grouped by one."""

import hashlib
import json
import re
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.config import OPEN_TABLES, flat
from harness.errors import InputError
from harness.files.lenient_json import table
from harness.job import LATER_KEYS, SOURCE_FORMAT, TABLES
from harness.job_file import suggest
from harness.report.text_tables import Line
from harness.search_space import short_names

if TYPE_CHECKING:
    from harness.report.collect import JobResult, ScoredRun

# Settings of a job that don't change its result.
WITHOUT_RESULT = ("train.seed", "train.checkpoint_every_s", "train.log_every_steps",
                  "train.profile_steps",
                  # The checksum says which data, wherever and however they are stored.
                  "data.source", *(f"data.{key}" for key in SOURCE_FORMAT))  # fmt: skip

LATER_SETTINGS = {
    f"{name}.{key}": TABLES[name].model_fields[key].default
    for name, keys in LATER_KEYS.items()
    for key in keys
    if (name, key) not in OPEN_TABLES
}

DIGEST = re.compile(r"[0-9a-f]{8}")  # of a source, as it is shown
UNSET = "unset"
MAX_VALUES = 10  # of a key in a message


def settings_of(job: dict[str, Any]) -> dict[str, Any]:
    """The settings in a job's file by table.key, without those that change no result."""
    settings: dict[str, Any] = {}
    for name in job:
        for key, value in table(job, name).items():
            where = f"{name}.{key}"
            settings |= flat(where, value) if (name, key) in OPEN_TABLES else {where: value}
    for path, source in table(job, "code").items():
        # A whole source is no name. In an ensemble's settings it has been shortened before.
        if not DIGEST.fullmatch(str(source)):
            settings[f"code.{path}"] = hashlib.sha256(str(source).encode()).hexdigest()[:8]
    return {name: value for name, value in settings.items() if name not in WITHOUT_RESULT}


def as_text(setting: Any) -> str:
    """What tells settings apart: 1 and 1.0 are one, true is another."""
    if isinstance(setting, float) and setting.is_integer():
        setting = int(setting)
    return json.dumps(setting, sort_keys=True, default=str)


def chosen(runs: "Sequence[ScoredRun]", where: Sequence[str]) -> "list[ScoredRun]":
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


def check_key(option: str, key: str, runs: "Iterable[ScoredRun]") -> None:
    """Refuse a key that no run's job has.

    Raises:
        InputError: with the nearest key.
    """
    known = sorted({name for run in runs for name in run.settings})
    if key not in known:
        raise InputError(f"{option} {key}: no run has this key{suggest(key, known)}")


def differing(results: "Sequence[JobResult]") -> dict[str, str]:
    """The keys whose values differ between jobs, each with its short name."""
    keys = dict.fromkeys(key for result in results for key in result.runs[0].settings)
    return short_names(
        [key for key in keys if len({_shown(each.setting(key)) for each in results}) > 1]
    )


def setting_cells(result: "JobResult", keys: Mapping[str, str]) -> Line:
    """The job's values of these keys, by their short names."""
    return {name: _shown(result.setting(key)) for key, name in keys.items()}


def grouped(results: "Sequence[JobResult]", key: str) -> list[Line]:
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
