"""A search: a job file with `[search]`, where keys of the job may have a range instead of a value.

Checked before TensorFlow and KerasTuner are imported; `harness.tuning.oracle` turns it
into KerasTuner's hyperparameters.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from harness.config import ConfigSection, Facts, Tables, dump_toml, facts_of, without_effect
from harness.errors import InputError
from harness.job.job_file import (
    check_job,
    explain,
    kept_names,
    put_overrides,
    put_value,
    read_toml_file,
    resolve_source,
    with_code,
)
from harness.job.keys import FACTS, OF_EACH_EPOCH, SCORES, TABLES, Job
from harness.job.search_parameters import Parameter, Value, Values, read_space, without_fixed

SEARCH_FILE = "search.toml"  # in a sweep's folder
Objective = Literal[
    "val_accuracy",
    "val_loss",
    "val_balanced_accuracy",
    "val_f1",
    "val_f1_macro",
    "val_f1_weighted",
    "val_roc_auc",
    "val_log_loss",
]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
GUIDED = ("bayesian", "hyperband", "asha")  # tuners whose choices depend on results


class SearchConfig(ConfigSection):
    """`[search]`: how to search, and for what."""

    tuner: Literal["random", "grid", "bayesian", "hyperband", "asha"] = Field(
        "random", description="algorithm that chooses the trials"
    )
    objective: Objective = Field(
        "val_accuracy",
        description="validation score of the saved weights, by which trials are ranked",
    )
    trials: int = Field(
        0,
        ge=0,
        le=100_000,
        description="largest number of trials, for asha of settings; 0 = all, for grid and "
        "hyperband only",
    )
    executions: int = Field(
        1, ge=1, le=100, description="runs per trial, with different seeds; their mean counts"
    )
    seed: int = Field(1, ge=1, le=2**31 - 1, description="seed of the tuner")
    min_epochs: Annotated[int, Facts(only_with={"search.tuner": ("asha",)})] = Field(
        1, ge=1, le=1000, description="fewest epochs of a trial"
    )
    factor: Annotated[int, Facts(only_with={"search.tuner": ("hyperband", "asha")})] = Field(
        3,
        ge=2,
        le=10,
        description="one trial in `factor` continues, with `factor` times the epochs",
    )
    parallel: Annotated[
        int,
        Facts(only_with={"search.tuner": GUIDED}, is_decided=True),
    ] = Field(
        0,
        ge=0,
        le=10_000,
        description="trials that may still be running when the next one is chosen; 0 = twice the "
        "workers at the start",
    )


class SearchFile(Job):
    """A job with its search, the space aside."""

    search: SearchConfig


SEARCH_TABLES: Tables = {**TABLES, "search": SearchConfig}
DECIDED = {
    key for key, info in SearchConfig.model_fields.items() if facts_of(info).is_decided
}  # when a sweep begins, where they are 0


@dataclass(frozen=True)
class TrialRow:
    """A trial's row in TensorBoard's HParams page, which the runs of its seeds share."""

    name: str
    values: Values  # by the keys that differ between trials, as far as this one has them
    columns: Values  # an example for each of these keys
    objective: Objective


@dataclass(frozen=True)
class SearchSpec:
    """A whole search."""

    job: Job  # what all trials share
    table: SearchConfig
    space: tuple[Parameter, ...]  # a parent stands before those that depend on it
    content: dict[str, Any]  # of the file, every default filled in
    notes: tuple[str, ...] = ()  # lines to print when the search begins

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def goal(self) -> Literal["max", "min"]:
        """Whether more of the objective is better, or less."""
        return SCORES[self.table.objective]

    @property
    def scores_validation(self) -> bool:
        """Whether the objective is not computed at each epoch."""
        return self.table.objective not in OF_EACH_EPOCH

    @property
    def max_trials(self) -> int | None:
        """The largest number of trials, None if the oracle alone decides when to end."""
        return None if self.table.tuner == "asha" else self.table.trials or None

    @property
    def continues_trials(self) -> bool:
        """Whether a trial may begin where another one ended, so that trials differ in length."""
        return self.table.tuner in ("hyperband", "asha")

    def to_toml(self) -> str:
        """The search as a file that `harness tune` takes again."""
        return dump_toml(self.content)

    def job_of(self, values: Values, *, seed: int | None = None, epochs: int | None = None) -> Job:
        """The job of a trial, which never reads the test set.

        Raises:
            InputError: if these values do not go together.
        """
        content = self.job.model_dump()
        for key, value in values.items():
            put_value(content, key, rounded(value))
        content["data"]["test"] = False
        if seed is not None:
            content["train"]["seed"] = seed
        if epochs is not None:
            content["train"]["epochs"] = epochs
            if content["train"]["schedule"] in ("cosine", "linear"):
                # A trial that goes on with another one follows the same schedule.
                whole = content["train"]["schedule_epochs"] or self.job.train.epochs
                content["train"]["schedule_epochs"] = whole
        return check_job(content, Path(f"{self.name}.toml"))

    def row(self, name: str, values: Values, epochs: int | None) -> TrialRow:
        """What TensorBoard shows of a trial; the arguments but its name as `job_of` takes them."""
        columns = {parameter.key: parameter.examples()[0] for parameter in self.space}
        shown = {key: rounded(values[key]) for key in columns if key in values}
        if epochs is not None:
            columns["train.epochs"] = shown["train.epochs"] = epochs
        return TrialRow(name, shown, columns, self.table.objective)

    def seeds(self) -> range:
        """The seeds of a trial's runs."""
        first = self.job.train.seed
        return range(first, first + self.table.executions)

    def with_table(self, **changes: int) -> "SearchSpec":
        """The same search with other values in `[search]`."""
        content = {**self.content, "search": {**self.content["search"], **changes}}
        return replace(self, table=self.table.model_copy(update=changes), content=content)

    def changes(self, other: "SearchSpec") -> Iterator[str]:
        """`train.epochs was 6 and is 8`, for each key in which the other one differs.

        It may have more trials. What is decided when the sweep begins is the same if one of them
        leaves it open.
        """
        yield from _changes(self.content, other.content)


def _changes(known: dict[str, Any], asked: dict[str, Any], at: str = "") -> Iterator[str]:
    for key in {**known, **asked}:
        was, now = known.get(key), asked.get(key)
        is_open = at == "search." and (key == "trials" or (key in DECIDED and not (was and now)))
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{at}{key}.")
        elif was != now and not is_open:
            yield f"{at}{key} was {was} and is {now}"


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


def is_of_search(result: Mapping[str, Any], search: Mapping[str, Any]) -> bool:
    """Whether a sweep's result is of as many trials as its search file has now.

    A command may write its result just after another one has raised the number.
    """
    of_search = search.get("search")
    return isinstance(of_search, dict) and of_search.get("trials") == result.get("trials")


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search's file, apply `--set` overrides, and check the whole.

    Raises:
        InputError: one line that names the key, the value, the rule and the remedy.
    """
    content = read_toml_file(path)
    content.setdefault("name", path.stem)
    origins = put_overrides(content, overrides, path, tables=SEARCH_TABLES)
    table = content.get("search")
    if not isinstance(table, dict):
        raise InputError(f"job {path}: has no [search] table; train it by: harness train {path}")
    raw_space = table.pop("space", {})
    try:
        file = SearchFile.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error, path, origins, tables=SEARCH_TABLES)) from None
    del content["search"]
    resolve_source(content, path, origins)
    job = with_code(check_job(content, path, origins), path, origins)
    if not isinstance(raw_space, dict) or not raw_space:
        raise InputError(
            f"job {path}: search.space is empty; give a key of the job a list or a range, such as "
            "model.units = [32, 64]"
        )
    space = read_space(raw_space, path)
    for parameter in space:
        if FACTS.get(parameter.key, Facts()).is_function:
            code, where = dict(job.code), f"job {path}: search.space.{parameter.key}"
            names = kept_names(parameter.choices, code, where, base=path.absolute().parent)
            job, raw_space = job.model_copy(update={"code": code}), _renamed(raw_space, names)
            space = read_space(raw_space, path)
    fixed = {p.key: by for p in space if (by := _fixed_by(p.key, job, origins))}
    if fixed:
        settings = job.settings()  # without tables, on which no other key depends
        raw_space = without_fixed(raw_space, space, {key: settings.get(key) for key in fixed})
        space = read_space(raw_space, path)
    if not space:
        first = next(iter(fixed.values()))
        raise InputError(f"{first}: leaves nothing to search over; leave it out")
    notes = tuple(
        f"{by}: all trials have this value; it is not searched over"
        for by in dict.fromkeys(fixed.values())
    )
    content = {**job.model_dump(), "search": {**file.search.model_dump(), "space": raw_space}}
    search = SearchSpec(job, file.search, tuple(space), content, notes)
    _check_together(search, path)
    return search


def _renamed(raw: Any, names: Mapping[str, str]) -> Any:
    """A space with other names for its networks."""
    if isinstance(raw, dict):
        return {key: _renamed(value, names) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_renamed(value, names) for value in raw]
    return names.get(raw, raw) if isinstance(raw, str) else raw


def _fixed_by(key: str, job: Job, origins: Mapping[str, str]) -> str | None:
    """The option that gives a key one value, by itself or in a free table such as model.options."""
    table = key.rpartition(".")[0]
    return origins.get(key) or (origins.get(table) if key in job.settings() else None)


def _check_together(search: SearchSpec, path: Path) -> None:
    table, job = search.table, search.job
    if job.data.validation_split == 0:
        raise InputError(
            f"job {path}: data.validation_split = 0: a search is judged on validation reviews; "
            "take 0.1 or so"
        )
    if table.trials == 0 and table.tuner not in ("grid", "hyperband"):
        raise InputError(
            f"job {path}: search.trials = 0: the {table.tuner} tuner needs a number of trials"
        )
    values = {f"search.{key}": value for key, value in table}
    for key, other in without_effect({"search": SearchConfig}, values):
        raise InputError(f"job {path}: {key} has no effect without {other}; leave it out")
    if table.tuner == "asha" and job.train.epochs < table.min_epochs * table.factor:
        raise InputError(
            f"job {path}: train.epochs = {job.train.epochs}: asha needs search.min_epochs times "
            f"search.factor at least, {table.min_epochs * table.factor}"
        )
    keys = [parameter.key for parameter in search.space]
    if search.continues_trials and "train.epochs" in keys:
        raise InputError(
            f"job {path}: search.space.train.epochs: {table.tuner} chooses the epochs itself, up "
            "to train.epochs; leave the key out"
        )
    needed: dict[str, Values] = {}  # by key, the values under which it is searched over
    for parameter in search.space:
        continuous = not parameter.choices and parameter.step is None
        if table.tuner == "grid" and continuous and (parameter.log or not parameter.is_whole):
            raise InputError(
                f"job {path}: search.space.{parameter.key}: the grid tuner needs a list, or a "
                "range with a step"
            )
        parents: list[Values] = [
            {**needed[parameter.parent], parameter.parent: choice}
            for choice in parameter.parent_choices
            if parameter.parent
        ] or [{}]
        needed[parameter.key] = parents[0]
        for given, value in itertools.product(parents, parameter.examples()):
            try:  # is each allowed in a job?
                search.job_of({**given, parameter.key: value}, seed=search.seeds()[-1])
            except InputError as error:
                said = str(error).partition(": ")[2]
                raise InputError(f"job {path}: search.space: {said}") from None


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`units` for `model.units`, but the whole key where two would have one name."""
    # A key of [code] is the path of a file.
    names = {k: k[5:] if k.startswith("code.") else k.rpartition(".")[2] for k in keys}
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else key for key, name in names.items()}
