"""A search: a job file with `[search]`, where keys of the job may have a range instead of a value.

Checked before TensorFlow and KerasTuner are imported; `harness.oracle` makes KerasTuner's
hyperparameters of it.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError

from harness.config import ConfigSection
from harness.errors import InputError
from harness.job import TABLES, Job
from harness.job_file import (
    check_job,
    explain,
    put_overrides,
    read_toml_file,
    resolve_source,
    suggest_key,
)

SEARCH_FILE = "search.toml"  # in a sweep's folder

Value = bool | int | float | str
Values = Mapping[str, Value]  # of a trial, by the job's keys in dotted form


class SearchConfig(ConfigSection):
    """`[search]`: how to search, and for what."""

    tuner: Literal["random", "grid", "bayesian", "hyperband"] = Field(
        "random", description="KerasTuner oracle that chooses the trials"
    )
    objective: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="score that ranks the trials"
    )
    trials: int = Field(
        0,
        ge=0,
        le=100_000,
        description="largest number of trials; 0 = all, grid and hyperband only",
    )
    executions: int = Field(1, ge=1, le=100, description="runs of a trial, each with its own seed")
    seed: int = Field(1, ge=1, le=2**31 - 1, description="seed of the tuner's choices")
    stop_hopeless: bool = Field(
        False, description="end a trial whose best epoch is below the median of the others"
    )
    factor: int = Field(
        3,
        ge=2,
        le=10,
        description="hyperband only: one trial in `factor` goes on to the next round",
    )


# Keys whose change would compare what can't be compared, and why.
FIXED = {
    "data.source": "all trials must have the same reviews",
    "data.validation_split": "all trials must be validated on the same reviews",
    "data.limit": "all trials must have the same reviews",
    "data.test": "the test set chooses nothing",
    "train.seed": "search.executions trains each trial with several seeds",
}


class SearchFile(Job):
    """A job with its search, the space aside."""

    search: SearchConfig


SEARCH_TABLES: dict[str, type[ConfigSection]] = {**TABLES, "search": SearchConfig}


@dataclass(frozen=True)
class Parameter:
    """A key of the job that is searched over: a list of choices, or a range."""

    key: str  # such as train.learning_rate
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    is_whole: bool = False  # a range of whole numbers
    parent: str | None = None  # searched over only where this other key …
    parent_choices: tuple[Value, ...] = ()  # … has one of these values

    def examples(self) -> tuple[Value, ...]:
        """All choices, or the ends of the range."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)


@dataclass(frozen=True)
class SearchSpec:
    """A whole search."""

    job: Job  # what all trials share
    table: SearchConfig
    space: tuple[Parameter, ...]  # a parent stands before those that depend on it
    content: dict[str, Any]  # of the file, every default filled in

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def goal(self) -> Literal["max", "min"]:
        """Whether more of the objective is better, or less."""
        return "max" if self.table.objective == "val_accuracy" else "min"

    def to_toml(self) -> str:
        """The search as a file that `harness tune` takes again."""
        return tomli_w.dumps(self.content)

    def job_of(self, values: Values, *, seed: int | None = None, epochs: int | None = None) -> Job:
        """The job of a trial, which never reads the test set.

        Raises:
            InputError: if these values do not go together.
        """
        content = self.job.model_dump()
        for key, value in values.items():
            table, _, name = key.partition(".")
            content[table][name] = rounded(value)
        content["data"]["test"] = False
        if seed is not None:
            content["train"]["seed"] = seed
        if epochs is not None:
            content["train"]["epochs"] = epochs
        return check_job(content, Path(f"{self.name}.toml"))

    def seeds(self) -> range:
        """The seeds of a trial's runs."""
        first = self.job.train.seed
        return range(first, first + self.table.executions)

    def same_as(self, other: "SearchSpec") -> bool:
        """Whether both look for the same in the same space, be it with more trials."""

        def without_trials(search: SearchSpec) -> dict[str, Any]:
            table = {k: v for k, v in search.content["search"].items() if k != "trials"}
            return {**search.content, "search": table}

        return without_trials(self) == without_trials(other)


def rounded(value: Value) -> Value:
    """A tuner's value as a job has it: six digits are enough, 0.30000000000000004 is for no one."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def is_search(path: Path) -> bool:
    """Whether a job file has a `[search]`; what can't be read has none."""
    try:
        return "search" in read_toml_file(path)
    except InputError:
        return False


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's: it holds the search."""
    return os.path.isfile(folder / SEARCH_FILE)  # noqa: PTH113 - never raises


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search's file, apply `--set` overrides, and check the whole.

    Raises:
        InputError: one line that names the key, the value, the rule and the remedy.
    """
    content = read_toml_file(path)
    content.setdefault("name", path.stem)
    origins = put_overrides(content, overrides, path, SEARCH_TABLES)
    table = content.get("search")
    if not isinstance(table, dict):
        raise InputError(f"job {path}: has no [search] table; train it by: harness train {path}")
    raw_space = table.pop("space", {})
    try:
        file = SearchFile.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, path, origins, SEARCH_TABLES)) from None
    del content["search"]
    resolve_source(content, path, origins)
    job = check_job(content, path, origins)
    if not isinstance(raw_space, dict) or not raw_space:
        raise InputError(
            f"job {path}: search.space is empty; give a key of the job a list or a range, such as "
            "model.units = [32, 64]"
        )
    space = _in_order([*_parameters(raw_space, path)], path)
    search = SearchSpec(job, file.search, tuple(space), _filled(job, file.search, raw_space))
    _check_together(search, path)
    return search


def _filled(job: Job, table: SearchConfig, raw_space: dict[str, Any]) -> dict[str, Any]:
    return {**job.model_dump(), "search": {**table.model_dump(), "space": raw_space}}


# The space


def _parameters(raw: Mapping[str, Any], path: Path) -> Iterator[Parameter]:
    for table, keys in raw.items():
        if table not in TABLES or not isinstance(keys, dict):
            known = ", ".join(TABLES)
            raise InputError(
                f"job {path}: search.space.{table} is no table of a job; known: {known}; write "
                "model.units = [32, 64]"
            )
        for name, value in keys.items():
            key = f"{table}.{name}"
            if name not in TABLES[table].model_fields:
                raise InputError(
                    f"job {path}: search.space.{key} is not a key of a job{suggest_key(key)}"
                )
            if key in FIXED:
                raise InputError(f"job {path}: search.space.{key} can't be searched: {FIXED[key]}")
            yield _parameter(key, value, path)


def _parameter(key: str, raw: object, path: Path) -> Parameter:
    where = f"job {path}: search.space.{key}"
    if isinstance(raw, list):
        raw = {"values": raw}
    if not isinstance(raw, dict):
        raise InputError(
            f"{where} = {raw!r}: should be a list such as [32, 64], or a range such as "
            "{ min = 0.1, max = 0.5, step = 0.1 }"
        )
    unknown = sorted(set(raw) - {"values", "min", "max", "step", "log", "when"})
    if unknown:
        raise InputError(
            f"{where}.{unknown[0]} is unknown; known: values, min, max, step, log, when"
        )
    parent, parent_choices = _condition(raw.get("when"), where)
    if "values" in raw:
        if len(set(raw) - {"values", "when"}):
            raise InputError(f"{where}: has values and a range; give one of them")
        choices = _choices(key, raw["values"], where)
        return Parameter(key, choices, parent=parent, parent_choices=parent_choices)
    return _range(key, raw, where, parent, parent_choices)


def _choices(key: str, values: object, where: str) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{where} = {values!r}: is empty; list a value at least")
    if any(isinstance(value, dict | list) for value in values):
        raise InputError(f"{where} = {values!r}: should list plain values")
    if _kind(key) is float:  # a list of 1 and 0.5
        values = [float(v) if type(v) is int else v for v in values]
    if len({type(value) for value in values}) > 1 or len(set(values)) < len(values):
        raise InputError(f"{where} = {values!r}: should list different values of one type")
    return tuple(values)


def _range(
    key: str, raw: Mapping[str, Any], where: str, parent: str | None, choices: tuple[Value, ...]
) -> Parameter:
    kind, log, step = _kind(key), raw.get("log", False), raw.get("step")
    if kind not in (int, float):
        raise InputError(f"{where}: is no number, so it has no range; list its values")
    for name in ("min", "max", *(["step"] if step is not None else [])):
        value: Any = raw.get(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{where}.{name} = {value!r}: a range needs numbers for min and max")
        if kind is int and type(value) is not int:
            raise InputError(f"{where}.{name} = {value!r}: should be a whole number, as {key} is")
    low, high = raw["min"], raw["max"]
    if low >= high:
        raise InputError(f"{where}: min = {low} should be below max = {high}; exchange them")
    if not isinstance(log, bool):
        raise InputError(f"{where}.log = {log!r}: should be true or false")
    if log and low <= 0:
        raise InputError(f"{where}: min = {low}: a log range should begin above 0")
    if step is not None and (log or not 0 < step <= high - low):
        rule = "a log range has no step" if log else f"should be above 0, up to {high - low}"
        raise InputError(f"{where}.step = {step}: {rule}")
    return Parameter(key, (), low, high, step, log, kind is int, parent, choices)


def _kind(key: str) -> type:
    table, _, name = key.partition(".")
    annotation = TABLES[table].model_fields[name].annotation
    return annotation if isinstance(annotation, type) else str


def _condition(raw: object, where: str) -> tuple[str | None, tuple[Value, ...]]:
    if raw is None:
        return None, ()
    flat = dict(_flat(raw)) if isinstance(raw, dict) else {}
    if len(flat) != 1:
        raise InputError(
            f"{where}.when = {raw!r}: should name one key and its values, such as "
            '{ model.architecture = ["stacked_lstm"] }'
        )
    ((key, values),) = flat.items()
    values = values if isinstance(values, list) else [values]
    if not values:
        raise InputError(f"{where}.when = {raw!r}: is empty; list a value at least")
    return key, tuple(values)


def _flat(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for table, keys in raw.items():
        if isinstance(keys, dict):
            yield from ((f"{table}.{name}", value) for name, value in keys.items())
        else:
            yield table, keys


def _in_order(space: Sequence[Parameter], path: Path) -> list[Parameter]:
    """Each parent before those that depend on it."""
    known = {parameter.key: parameter for parameter in space}
    ordered: list[Parameter] = []
    waiting = list(space)
    while waiting:
        ready = [d for d in waiting if d.parent is None or known.get(d.parent) in ordered]
        if not ready:
            first = waiting[0]
            raise InputError(
                f"job {path}: search.space.{first.key}.when names {first.parent}, which should be "
                "a list of search.space itself, and not depend on this key"
            )
        for parameter in ready:
            parent = known.get(parameter.parent or "")
            strange = [v for v in parameter.parent_choices if parent and v not in parent.choices]
            if strange:
                raise InputError(
                    f"job {path}: search.space.{parameter.key}.when = {strange[0]!r}: "
                    f"{parameter.parent} never has this value in search.space"
                )
            ordered.append(parameter)
            waiting.remove(parameter)
    return ordered


def _check_together(search: SearchSpec, path: Path) -> None:
    table, job = search.table, search.job
    if job.data.validation_split == 0:
        raise InputError(
            f"job {path}: data.validation_split = 0: a search is judged on validation reviews; "
            "take 0.1 or so"
        )
    if table.trials == 0 and table.tuner in ("random", "bayesian"):
        raise InputError(
            f"job {path}: search.trials = 0: the {table.tuner} tuner needs a number of trials"
        )
    if table.factor != SearchConfig.model_fields["factor"].default and table.tuner != "hyperband":
        raise InputError(f"job {path}: search.factor is a setting of the hyperband tuner alone")
    keys = [parameter.key for parameter in search.space]
    if table.tuner == "hyperband" and "train.epochs" in keys:
        raise InputError(
            f"job {path}: search.space.train.epochs: hyperband chooses the epochs itself, up to "
            "train.epochs; leave the key out"
        )
    for parameter in search.space:
        continuous = not parameter.choices and parameter.step is None
        if table.tuner == "grid" and continuous and (parameter.log or not parameter.is_whole):
            raise InputError(
                f"job {path}: search.space.{parameter.key}: the grid tuner needs a list, or a "
                "range with a step"
            )
        for value in parameter.examples():  # is each allowed in a job?
            try:
                search.job_of({parameter.key: value})
            except InputError as error:
                said = str(error).partition(": ")[2]
                raise InputError(f"job {path}: search.space: {said}") from None


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`units` for `model.units`, but the whole key where two would have one name."""
    counts = Counter(key.rpartition(".")[2] for key in keys)
    return {key: name if counts[name := key.rpartition(".")[2]] == 1 else key for key in keys}
