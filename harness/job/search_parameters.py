"""The parameters of a search: keys of a job with a list or a range, read from `search.space`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import is_free
from harness.errors import InputError
from harness.job.job_file import is_key, suggest_key
from harness.job.keys import FACTS, KEYS, TABLES

Value = bool | int | float | str
Values = Mapping[str, Value]  # of a trial, by the job's keys in dotted form


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


def read_space(raw: Mapping[str, Any], path: Path) -> list[Parameter]:
    """The parameters of `search.space`, each after the one that it depends on.

    Raises:
        InputError: one line that names the key, the value, the rule and the remedy.
    """
    return _in_order([*_parameters(raw, path)], path)


def without_fixed(
    raw_space: Mapping[str, Any], space: Sequence[Parameter], fixed: Mapping[str, Value | None]
) -> dict[str, Any]:
    """The space without the keys that have one value, and without what depends on another value.

    A key that depends on just this value is searched over in every trial.
    """
    left = {table: dict(_by_key(table, keys)) for table, keys in raw_space.items()}
    dropped = set(fixed)
    for parameter in space:  # parents first
        table, _, name = parameter.key.partition(".")
        if parameter.key in fixed:
            del left[table][name]
        elif parameter.parent in dropped:
            if fixed.get(parameter.parent) in parameter.parent_choices:
                left[table][name] = {k: v for k, v in left[table][name].items() if k != "when"}
            else:
                del left[table][name]
                dropped.add(parameter.key)
    return {table: keys for table, keys in left.items() if keys}


def _parameters(raw: Mapping[str, Any], path: Path) -> Iterator[Parameter]:
    for table, keys in raw.items():
        if table not in TABLES or not isinstance(keys, dict):
            known = ", ".join(TABLES)
            raise InputError(
                f"job {path}: search.space.{table} is no table of a job; known: {known}; write "
                "model.units = [32, 64]"
            )
        for name, value in _by_key(table, keys):
            key = f"{table}.{name}"
            if not is_key(table, name):
                raise InputError(
                    f"job {path}: search.space.{key} is not a key of a job{suggest_key(key)}"
                )
            if (facts := FACTS.get(key)) and (why := facts.not_searched):
                raise InputError(f"job {path}: search.space.{key} can't be searched: {why}")
            yield _parameter(key, value, path)


def _by_key(table: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a table, those of a free table inside of it as `options.filters`."""
    for name, value in keys.items():
        info = KEYS.get(f"{table}.{name}")
        if info and is_free(info) and isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


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
    return _range(key, raw, where, parent=parent, choices=parent_choices)


def _choices(key: str, values: object, where: str) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{where} = {values!r}: is empty; list a value at least")
    if any(isinstance(value, dict | list) for value in values):
        raise InputError(f"{where} = {values!r}: should list plain values")
    if _kind(key, values) is float:  # a list of 1 and 0.5
        values = [float(v) if type(v) is int else v for v in values]
    if len({type(value) for value in values}) > 1 or len(set(values)) < len(values):
        raise InputError(f"{where} = {values!r}: should list different values of one type")
    return tuple(values)


def _range(
    key: str, raw: Mapping[str, Any], where: str, *, parent: str | None, choices: tuple[Value, ...]
) -> Parameter:
    log, step = raw.get("log", False), raw.get("step")
    kind = _kind(key, [raw.get(name) for name in ("min", "max", "step") if name in raw])
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


def _kind(key: str, values: Sequence[object]) -> type:
    if key not in KEYS:  # of a free table, which has no types
        kinds = {type(value) for value in values}
        if not kinds or (float in kinds and kinds <= {int, float}):
            return float  # a range without values is refused for want of its ends
        return kinds.pop()
    annotation = KEYS[key].annotation
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
            yield from ((f"{table}.{name}", value) for name, value in _by_key(table, keys))
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
