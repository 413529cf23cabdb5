"""A search: a job file with the table `[search]`, which lists values or ranges of searched keys.

`harness.tuning.oracle` turns the searched keys into KerasTuner's hyperparameters.
"""

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from harness.config import (
    ConfigSection,
    Facts,
    Tables,
    dump_toml,
    flat,
    is_free,
    without_effect,
)
from harness.errors import InputError
from harness.job.job_file import (
    check_job,
    complete,
    explain,
    is_key,
    put_overrides,
    put_value,
    read_toml_file,
    shown,
    stored_name,
    suggest_key,
)
from harness.job.keys import DECAYS, FACTS, KEYS, OBJECTIVES, SCORES, TABLES, Job
from harness.job.own_code import source_digest
from harness.system.console import quoted

Value = bool | int | float | str
Values = Mapping[str, Value]  # maps a searched key, such as model.units, to a trial's value


@dataclass(frozen=True)
class Parameter:
    """A searched key: a list of choices, or a range."""

    key: str  # the key with its table, such as train.learning_rate
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False  # whether the range is logarithmic
    is_whole: bool = False  # whether the range contains only integers
    parent: str | None = None  # the key in `when`, on which this key depends
    parent_choices: tuple[Value, ...] = ()  # the values in `when` for which this key is searched

    def examples(self) -> tuple[Value, ...]:
        """Return all choices, or the two ends of the range."""
        return self.choices or (self.low, self.high)


def read_space(raw: Mapping[str, Any], path: Path) -> list[Parameter]:
    """Return the parameters of `search.space`; those with a condition `when` come last.

    Raises:
        InputError: if a key is refused; the message states key, value, rule and remedy.
    """
    free: dict[str, Parameter] = {}
    conditions: list[tuple[Parameter, object]] = []
    for key, value in _settings(raw, path):
        settings = {"values": value} if isinstance(value, list) else value
        parameter = _parameter(key, settings, f"job {path}: search.space.{key}")
        if "when" in settings:
            conditions.append((parameter, settings["when"]))
        else:
            free[key] = parameter
    return [*free.values(), *(_dependent(*each, free, path) for each in conditions)]


def _settings(raw: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    for table, keys in raw.items():
        if table not in TABLES or not isinstance(keys, dict):
            raise InputError(
                f"job {path}: search.space.{table}: search.space should contain only the tables "
                f"{', '.join(TABLES)}, with keys such as model.units = [32, 64]"
            )
        for name, value in _by_key(table, keys):
            key = f"{table}.{name}"
            if not is_key(key):
                raise InputError(
                    f"job {path}: search.space.{key} is not a key of a job{suggest_key(key)}"
                )
            if (facts := FACTS.get(key)) and (why := facts.not_searched):
                raise InputError(
                    f"job {path}: search.space.{key} can't be searched: {why}; remove this key"
                )
            yield key, value


def _by_key(table: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each key of a table with its value.

    A key of an inner table, such as `[model.options]`, has a name such as `options.filters`.
    """
    for name, value in keys.items():
        info = KEYS.get(f"{table}.{name}")
        if info and is_free(info) and isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _parameter(key: str, raw: object, where: str) -> Parameter:
    """Return a parameter without its condition `when`; `_broken_rule` checks the values later."""
    if not isinstance(raw, dict):
        raise InputError(
            f"{where} = {raw!r}: should be a list such as [32, 64], or a range such as "
            "{ min = 0.1, max = 0.5, step = 0.1 }"
        )
    known = ("values", "when") if "values" in raw else ("min", "max", "step", "log", "when")
    if unknown := sorted(set(raw) - {*known}):
        raise InputError(f"{where}.{unknown[0]} is unknown here; known: {', '.join(known)}")
    declared = KEYS[key].annotation if key in KEYS else None  # options have no declared type
    if "values" in raw:
        return Parameter(key, _choices(raw["values"], where, is_float=declared is float))
    values: list[Any] = [raw.get(name) for name in ("min", "max", "step", "log")]
    low, high, step, log = values
    numbers = [low, high] if step is None else [low, high, step]
    kinds = {*map(type, numbers)}
    if (
        not kinds <= ({int} if declared is int else {int, float})
        or not all(map(math.isfinite, numbers))
        or not low < high
        or not (step is None or 0 < step <= high - low)
        or not (log in (None, False) or (log is True and low > 0 and step is None))
    ):
        raise InputError(
            f"{where} = {shown(raw)}: a range needs numbers min and max (integers if {key} "
            "is an integer), with min below max; a step should be above 0 and at most max - min; "
            "log = true needs a min above 0 and no step"
        )
    is_whole = declared is int or (key not in KEYS and kinds == {int})
    return Parameter(key, (), low, high, step, log is True, is_whole=is_whole)


def _choices(values: Any, where: str, *, is_float: bool) -> tuple[Value, ...]:
    kinds = {*map(type, values)} if isinstance(values, list) else set()
    if kinds and kinds <= {int, float} and (is_float or len(kinds) > 1):
        # For example, [1, 0.5] becomes [1.0, 0.5].
        values, kinds = [*map(float, values)], {float}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str} or len({*values}) < len(values):
        raise InputError(f"{where} = {shown(values)}: should list different values of one type")
    return tuple(values)


def _dependent(
    parameter: Parameter, when: object, free: Mapping[str, Parameter], path: Path
) -> Parameter:
    """Add the condition `when` to a parameter; `when` names a key and some of its values.

    The key that `when` names must be in `free`, the parameters without a condition.
    """
    items = when.items() if isinstance(when, dict) else ()
    settings = [setting for name, value in items for setting in flat(name, value)]
    parent, values = settings[0] if len(settings) == 1 else ("", [])
    values = values if isinstance(values, list) else [values]
    known = free[parent].choices if parent in free else ()
    if not values or not all(value in known for value in values):
        raise InputError(
            f"job {path}: search.space.{parameter.key}.when = {shown(when)}: should name one key "
            'and some of its values, such as { model.architecture = ["stacked_lstm"] }; list that '
            "key and its values in search.space too, without a condition (when)"
        )
    # `when` may contain the integer 1 where the other key's list contains the float 1.0. KerasTuner
    # needs the value from the list, 1.0.
    same = tuple(value for value in known if value in values)
    return replace(parameter, parent=parent, parent_choices=same)


SEARCH_FILE = "search.toml"  # the file in a sweep's folder that contains the search
GUIDED = ("bayesian", "hyperband", "asha")  # tuners whose choices depend on earlier results
MAX_PARALLEL = 10_000  # maximum of `search.parallel`


class SearchConfig(ConfigSection):
    """`[search]`: the tuner, its objective and its limits."""

    tuner: Literal["random", "grid", "bayesian", "hyperband", "asha"] = Field(
        "random", description="algorithm that chooses the trials"
    )
    objective: Annotated[str, Facts(choices=OBJECTIVES)] = Field(
        "val_accuracy",
        description="validation score that ranks the trials, computed with the saved weights",
    )
    trials: int = Field(
        0,
        ge=0,
        le=100_000,
        description="maximum number of trials; with asha, maximum number of combinations of "
        "values; 0 = no limit, allowed only with grid and hyperband",
    )
    executions: int = Field(
        1,
        ge=1,
        le=100,
        description="number of runs of each trial, with different seeds; the trial's score is the "
        "mean score of its runs",
    )
    seed: int = Field(1, ge=1, le=2**31 - 1, description="seed of the tuner")
    min_epochs: Annotated[int, Facts(only_with={"search.tuner": ("asha",)})] = Field(
        1,
        ge=1,
        le=1000,
        description="lower limit for the number of epochs of a trial; `epochs = 9`, `factor = 3` "
        "and a limit of 1 give trials of 1, 3 and 9 epochs",
    )
    factor: Annotated[int, Facts(only_with={"search.tuner": ("hyperband", "asha")})] = Field(
        3,
        ge=2,
        le=10,
        description="the best 1/`factor` of the trials continue, until they have trained for "
        "`factor` times as many epochs as before",
    )
    parallel: Annotated[int, Facts(only_with={"search.tuner": GUIDED})] = Field(
        0,
        ge=0,
        le=MAX_PARALLEL,
        description="maximum number of trials that are proposed but not finished; 0 = twice "
        "the number of workers at the start of the search",
    )


class SearchFile(Job):
    """The content of a search file, except for `search.space`."""

    search: SearchConfig


SEARCH_TABLES: Tables = {**TABLES, "search": SearchConfig}


@dataclass(frozen=True)
class TrialRow:
    """A row of TensorBoard's HParams page. All runs of a trial share one row."""

    name: str  # TensorBoard averages runs with the same name
    values: Values  # the trial's value of each searched key; without a search, of every key
    columns: Values  # every searched key, with a sample value that shows the type
    objective: str = ""  # trials show this score instead of the test accuracy


@dataclass(frozen=True)
class SearchSpec:
    """A search. A key that the search file does not set has its default value."""

    job: Job  # the settings that all trials share
    table: SearchConfig
    space: tuple[Parameter, ...]  # the searched keys; a key follows the key in its `when`
    raw_space: Mapping[str, Any]  # `space` as in the search file
    fixed: tuple[str, ...] = ()  # a line for each option that sets a key of the search file's space

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def content(self) -> dict[str, Any]:
        """The content of a search file for `harness tune`."""
        search = {**self.table.model_dump(), "space": self.raw_space}
        return {**self.job.model_dump(), "search": search}

    @property
    def best_name(self) -> str:
        """The name of the job with the settings of the best trial."""
        return f"{self.name[:95]}_best"

    @property
    def goal(self) -> Literal["max", "min"]:
        """`max` if a higher objective is better, else `min`."""
        return SCORES[self.table.objective]

    @property
    def trial_limit(self) -> float:
        """The value of `search.trials`, or infinity if the value is 0 (no limit)."""
        return self.table.trials or math.inf

    @property
    def max_trials(self) -> int | None:
        """The maximum number of trials; None if the tuner decides when the search ends."""
        return None if self.table.tuner == "asha" else self.table.trials or None

    @property
    def continues_trials(self) -> bool:
        """Whether a trial may continue the training of an earlier trial for more epochs."""
        return self.table.tuner in ("hyperband", "asha")

    def without_effect(self) -> Iterator[str]:
        """Yield lines about options that set searched keys, and about settings without effect."""
        yield from self.fixed
        yield from self.job.without_effect([parameter.key for parameter in self.space])

    def to_toml(self) -> str:
        """Return the content of a search file for `harness tune`."""
        return dump_toml(self.content)

    def used(self, values: Values) -> dict[str, Value]:
        """Return a trial's values in the order of `space`; round the values of ranges."""
        return {
            each.key: values[each.key] if each.choices else rounded(values[each.key])
            for each in self.space
            if each.key in values
        }

    def job_of(self, values: Values, *, seed: int | None = None, epochs: int | None = None) -> Job:
        """Return the job of a trial, in which `data.test` is false.

        Raises:
            InputError: if the values contradict each other.
        """
        content = self.job.model_dump()
        for key, value in self.used(values).items():
            put_value(content, key, value)
        content["data"]["test"] = False
        if seed is not None:
            content["train"]["seed"] = seed
        if epochs is not None:
            content["train"]["epochs"] = epochs
            if content["train"]["schedule"] in DECAYS:
                # All trials have the same learning-rate schedule, because some continue others.
                whole = content["train"]["schedule_epochs"] or self.job.train.epochs
                content["train"]["schedule_epochs"] = whole
        return check_job(content, Path(f"{self.name}.toml"))

    def row(self, name: str, values: Values, epochs: int | None) -> TrialRow:
        """Return the row of a trial in TensorBoard.

        Args:
            name: the name of the trial.
            values: the values of the searched keys.
            epochs: the number of epochs, if the tuner chose it.
        """
        columns = {parameter.key: parameter.examples()[0] for parameter in self.space}
        of_row = self.used(values)
        if epochs is not None:
            columns["train.epochs"] = of_row["train.epochs"] = epochs
        return TrialRow(name, of_row, columns, self.table.objective)

    def seeds(self) -> range:
        """Return the seeds of a trial's runs."""
        first = self.job.train.seed
        return range(first, first + self.table.executions)

    def with_table(self, **changes: int) -> "SearchSpec":
        """Return a copy of the search with new values for some keys of `[search]`."""
        return replace(self, table=self.table.model_copy(update=changes))

    def changes(self, other: "SearchSpec") -> Iterator[str]:
        """Yield `KEY was 6 and is 8` for a key with the value 6 in this search and 8 in `other`.

        The method ignores changes of `search.trials`. The method also ignores a change of
        `search.parallel` from or to 0, because 0 lets the search choose the value.
        """
        known, asked = (
            {key: value for top in each.content.items() for key, value in flat(*top)}
            for each in (self, other)
        )
        for key in {**known, **asked}:
            was, now = known.get(key), asked.get(key)
            is_open = key == "search.trials" or (key == "search.parallel" and not (was and now))
            if was != now and not is_open:
                is_code = key.startswith("code.") and was and now
                show: Callable[[Any], str] = source_digest if is_code else shown
                yield f"{key} was {show(was)} and is {show(now)}"


def rounded(value: Value) -> Value:
    """Round a tuner's value to six significant digits: 0.30000000000000004 becomes 0.3."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def is_search(path: Path) -> bool:
    """Whether a job file contains a table `[search]`; False for an unreadable file."""
    try:
        return "search" in read_toml_file(path)
    except InputError:
        return False


def is_sweep(folder: Path) -> bool:
    """Whether a folder contains the file `search.toml` of a sweep."""
    return os.path.isfile(folder / SEARCH_FILE)  # noqa: PTH113 - `Path.is_file` may raise an error


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search file, apply `--set` overrides, and check the search.

    Raises:
        InputError: if the search is refused; the message states key, value, rule and remedy.
        DiskError: if the disk fails.
    """
    content = read_toml_file(path)
    content.setdefault("name", path.stem)
    origins = put_overrides(content, overrides, tables=SEARCH_TABLES)
    table = content.get("search")
    if not isinstance(table, dict):
        raise InputError(
            f"job {path}: has no [search] table; train it with: harness train {quoted(path)}"
        )
    raw_space = table.pop("space", {})
    try:
        file = SearchFile.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, path, origins, tables=SEARCH_TABLES)) from None
    del content["search"]
    job = complete(check_job(content, path, origins), path, origins)
    if not isinstance(raw_space, dict) or not raw_space:
        raise InputError(
            f"job {path}: search.space is empty; add a key with a list or a range of values, such "
            "as model.units = [32, 64]"
        )
    raw_space, fixed = _without_fixed(raw_space, job, path, origins)
    code = dict(job.code)
    for parameter in read_space(raw_space, path):
        names = _stored(parameter.key, parameter.choices, code, path, file.code)
        raw_space = _renamed(raw_space, names)
    job, space = job.model_copy(update={"code": code}), read_space(raw_space, path)
    search = SearchSpec(job, file.search, tuple(space), raw_space, tuple(fixed))
    if rule := _broken_rule(search):
        raise InputError(f"job {path}: {rule}")
    return search


def _without_fixed(
    raw: Mapping[str, Any], job: Job, path: Path, origins: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Remove from `search.space` the keys that `--set` options set; return a note on each option.

    The condition `when` of a dependent key names a parent key and some of its values. If `--set`
    gives the parent key one of these values, the condition is met in all trials, and is removed. If
    `--set` gives the parent key another value, the dependent key is removed.
    """
    space = {each.key: each for each in read_space(raw, path)}
    options = {key: origins.get(key) or origins.get(key.rpartition(".")[0]) for key in space}
    kept: dict[str, Any] = {}
    for key, value in _settings(raw, path):
        parent = space[key].parent
        if parent and options[parent]:
            code = dict(job.code)
            names = _stored(parent, space[key].parent_choices, code, path, code)
            if job.settings().get(parent) not in names.values():
                continue
            value = {name: each for name, each in value.items() if name != "when"}
        if not options[key]:
            put_value(kept, key, value)
    given = dict.fromkeys(option for option in options.values() if option)
    if given and not kept:
        raise InputError(f"{', '.join(given)}: no key is left to search; remove a --set option")
    note = "all trials use this value; the search space of its key is ignored"
    return kept, [f"{option}: {note}" for option in given]


def _stored(
    key: str, values: Sequence[Value], code: dict[str, str], path: Path, kept: Mapping[str, str]
) -> dict[Value, Value]:
    """Map values of a key to the values that the job stores; add functions' sources to `code`.

    `kept` contains the sources that the job file already has.

    Raises:
        InputError: if the source of a function is refused.
    """
    if not FACTS.get(key, Facts()).is_function:
        return {each: each for each in values}
    where, base = f"job {path}: search.space.{key}", path.absolute().parent
    return {each: stored_name(each, code, where, base=base, kept=kept) for each in values}


def _renamed(raw: Any, names: Mapping[Any, Any]) -> Any:
    """Return `search.space` with the names of custom functions replaced according to `names`."""
    if isinstance(raw, dict):
        return {key: _renamed(value, names) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_renamed(value, names) for value in raw]
    return names.get(raw, raw) if isinstance(raw, str) else raw


def _broken_rule(search: SearchSpec) -> str:
    """Return a message that names a broken rule and its key; empty if no rule is broken."""
    table, job = search.table, search.job
    if job.data.validation_split == 0:
        return (
            "data.validation_split = 0: a search needs validation reviews; set "
            "data.validation_split to a value above 0, such as 0.2"
        )
    if table.trials == 0 and table.tuner not in ("grid", "hyperband"):
        return f"search.trials = 0: the {table.tuner} tuner needs a number above 0, such as 20"
    values = {f"search.{key}": value for key, value in table}
    for key, other in without_effect({"search": SearchConfig}, values):
        return f"{key} has no effect without {other}; remove it"
    if table.tuner == "asha" and job.train.epochs < table.min_epochs * table.factor:
        return (
            f"train.epochs = {job.train.epochs}: should be at least search.min_epochs times "
            f"search.factor, {table.min_epochs * table.factor}"
        )
    if search.continues_trials and "train.epochs" in [each.key for each in search.space]:
        return (
            f"search.space.train.epochs: the {table.tuner} tuner chooses the number of epochs "
            "itself, at most train.epochs; remove train.epochs from search.space"
        )
    for parameter in search.space:
        continuous = not parameter.choices and parameter.step is None
        if table.tuner == "grid" and continuous and (parameter.log or not parameter.is_whole):
            where = f"search.space.{parameter.key}"
            return f"{where}: the grid tuner needs a list, or a range with a step"
        parent = parameter.parent
        parents = [{parent: each} for each in parameter.parent_choices] if parent else [{}]
        for given, value in itertools.product(parents, parameter.examples()):
            try:
                search.job_of({**given, parameter.key: value}, seed=search.seeds()[-1])
            except InputError as error:
                return f"search.space: {str(error).partition(': ')[2]}"
    return ""


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Map keys to short names, such as `model.units` to `units`.

    Keys whose short names would be equal keep their full names.
    """
    # A key in [code] is a path: the last dot in it does not separate a table from a key.
    names = {k: k[5:] if k.startswith("code.") else k.rpartition(".")[2] for k in keys}
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else key for key, name in names.items()}
