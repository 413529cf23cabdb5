"""Collects finished runs from folders, and groups the runs that can be compared."""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config import flat, is_free
from harness.data.dataset import OFFICIAL
from harness.errors import DiskError, InputError, did_you_mean
from harness.job.keys import DECIDING, KEYS
from harness.job.own_code import source_digest
from harness.job.search import is_sweep, short_names
from harness.system.console import printable
from harness.system.lenient_json import number, table, text, whole
from harness.tracking.audits import AUDITS, mark_of
from harness.tracking.records import one_line
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    RECORD,
    RESULT,
    RunDirectory,
    attempt_of,
    began_s,
    check_format,
    find_runs,
    is_ensemble,
    is_whole,
)

if TYPE_CHECKING:
    import pandas

# Test accuracies from the last table of the teaching notebook whose networks are in
# `jobs/notebook/`. The notebook follows exercises 6.01 to 6.05 of "the book": Baig et al. (2020),
# The Deep Learning Workshop.
BOOK = {"rnn": 0.8415, "lstm": 0.8705, "gru": 0.8706, "bilstm": 0.8760, "stacked_lstm": 0.8753}

NO_SPREAD = 1e-11  # smaller standard errors of accuracies are only rounding errors

# Runs of one job may differ in these settings: the seed, and settings that don't change the result.
WITHOUT_RESULT = {"train.seed", *KEYS.keys() - {*DECIDING}}
DEFAULTS = {
    key: info.default
    for key, info in KEYS.items()
    if key not in WITHOUT_RESULT and not is_free(info) and not info.is_required()
}

# The numbers in `result.json` whose means are in the tables; `COLUMNS` in `summary` shows them.
NUMBERS = (
    *("f1", "roc_auc", "log_loss", "training_s", "val_accuracy", "val_loss"),
    *("recurrent_parameters", "parameters"),
)


@dataclass(frozen=True)
class ScoredRun:
    """A finished run or ensemble with test scores."""

    folder: Path
    job: str
    architecture: str
    seed: int
    accuracy: float  # on the test set, from 0 to 1
    result: Mapping[str, Any]  # the content of `result.json`
    settings: Mapping[str, Any]  # values by `table.key`, without the keys in `WITHOUT_RESULT`
    began_s: float = math.inf  # the run's start in seconds since 1970; infinite if unknown
    audits: str = ""  # the mark of the user's audits, see `mark_of`
    members: tuple[Path, ...] = ()  # the folders of an ensemble's runs


@dataclass(frozen=True)
class LeftOut:
    """A folder that the comparison leaves out, with the reason."""

    folder: Path
    kind: str  # such as failed, unfinished, broken, unreadable, not tested, search, repeated
    why: str


@dataclass(frozen=True)
class DatasetGroup:
    """Runs that used the same reviews. Runs of different groups must not be compared."""

    data: str  # the dataset's name
    checksum: str
    limit: int  # number of reviews of each split that are used, 0 for all
    is_sample: bool
    num_test: int | None
    # The runs of each row of the tables, one run per seed. The keys are the names of the rows.
    runs: Mapping[str, Sequence[ScoredRun]]

    @property
    def title(self) -> str:
        """The name of the dataset, with the limit of reviews if there is one."""
        limited = f", the first {self.limit:,} reviews of each split" if self.limit else ""
        return f"{self.data}{limited}"

    @property
    def all_runs(self) -> list[ScoredRun]:
        """All runs of the group, as one list."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return tuple(map(printable, self.all_runs[0].result["classes"]))

    @cached_property
    def by_seed(self) -> "pandas.DataFrame":
        """A row for each job and seed; the columns are `accuracy` and those in `NUMBERS`."""
        import pandas

        scores = {
            (name, run.seed): [run.accuracy, *(number(run.result.get(key)) for key in NUMBERS)]
            for name, runs in self.runs.items()
            for run in runs
        }
        index = pandas.MultiIndex.from_tuples(scores, names=["job", "seed"])
        return pandas.DataFrame([*scores.values()], index, ["accuracy", *NUMBERS], dtype=float)

    @cached_property
    def jobs(self) -> "pandas.DataFrame":
        """The mean scores of each job over its seeds; a mean is NaN if any seed lacks the score.

        `deviation` is the sample standard deviation (n - 1). `interval_low` and `interval_high` are
        the 95 % t interval of the mean, clipped to 0 and 1. The interval is NaN if the job has only
        one seed, or if all seeds have the same accuracy, because a t interval needs scores that
        differ.
        """
        grouped = self.by_seed.groupby(level="job", sort=False)
        jobs, accuracy = grouped.mean(skipna=False), grouped["accuracy"]
        firsts = [runs[0] for runs in self.runs.values()]
        jobs["architecture"] = [run.architecture for run in firsts]
        jobs["num_seeds"] = grouped.size()
        marks = [Counter(run.audits for run in runs if run.audits) for runs in self.runs.values()]
        jobs["audits"] = ["; ".join(f"{mark}: {n}" for mark, n in each.items()) for each in marks]
        jobs["deviation"] = accuracy.std()
        interval = t_interval(jobs["accuracy"], accuracy.sem(), jobs["num_seeds"] - 1, 0.95)
        jobs["interval_low"], jobs["interval_high"] = np.clip(interval, 0, 1)
        is_in_book = self.checksum == OFFICIAL and not self.limit
        book = [BOOK.get(run.architecture) if is_in_book else None for run in firsts]
        return jobs.assign(book_accuracy=np.array(book, float))

    @cached_property
    def settings(self) -> "pandas.DataFrame":
        """The settings of each job: a column per `table.key`, NaN where unset."""
        import pandas

        settings = [runs[0].settings for runs in self.runs.values()]
        return pandas.DataFrame(settings, index=[*self.runs], dtype=object)

    def best(self, num: int) -> "DatasetGroup":
        """Return the group with only the `num` rows of highest accuracy, in unchanged order."""
        kept = {*self.jobs["accuracy"].sort_values(ascending=False, kind="stable").index[:num]}
        return replace(self, runs={name: self.runs[name] for name in self.runs if name in kept})


def t_interval(mean: Any, error: Any, dof: Any, level: float) -> tuple[Any, Any]:
    """Return the two-sided t interval of a mean, for numbers or arrays.

    Args:
        mean: the mean, in any unit.
        error: the standard error of the mean.
        dof: the degrees of freedom of the error.
        level: the confidence level, such as 0.95.

    Returns:
        The lower and the upper end; NaN if the error or the degrees of freedom are 0.
    """
    from scipy.stats import t

    low, high = t.interval(level, dof, mean, np.where(error < NO_SPREAD, np.nan, error))
    return low, high


# Find runs


def scored_runs(
    named: Sequence[Path], own: Path | None = None
) -> tuple[list[ScoredRun], list[LeftOut]]:
    """Return the tested runs in the named folders, and the folders that are left out.

    A sweep's trials have no test scores, so only the sweep's retrained runs are returned.

    Args:
        named: runs, folders of runs, or glob patterns that match such folders.
        own: the user's folder of runs, in which `harness audit` stores the user's audits.

    Raises:
        InputError: if a folder is missing, or there is no run at all.
    """
    left_out: list[LeftOut] = []
    refused: dict[str, str] = {}
    found = find_runs(expand(named, left_out), in_sweeps=("winner",), refused=refused)
    left_out += [LeftOut(Path(at), "unreadable", why) for at, why in refused.items()]
    read = [read_run(run.path) for run in found]
    if not read and not refused:
        raise InputError(
            f"{', '.join(map(str, named))}: contains no run; to make one, run: harness train JOB"
        )
    left_out += [each for each in read if isinstance(each, LeftOut)]
    scored = [each for each in read if isinstance(each, ScoredRun)]
    if own and (own / AUDITS).is_dir():  # otherwise no result needs to be read a second time
        scored = [replace(run, audits=mark_of(own, run.folder)) for run in scored]
    return scored, left_out


def expand(named: Iterable[Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """Yield the named folders and the folders that match a pattern.

    A pattern that matches no folder is added to `left_out` and raises no error, because the
    pattern may be for runs that have not started yet.

    Raises:
        InputError: if a name is neither a pattern nor a folder.
    """
    for path in named:
        if os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` may raise an error
            yield path
        elif has_magic(str(path)):
            matching = sorted(glob(str(path)))  # noqa: PTH207 - the pattern may contain folders
            if not matching:
                left_out.append(LeftOut(path, "unmatched", "no run matches this pattern"))
            yield from map(Path, matching)
        else:
            raise InputError(
                f"{path}: is not a folder that you can read; name runs, or a folder of runs"
            )


def read_run(folder: Path) -> ScoredRun | LeftOut:
    """Return the scores and settings of a run, or the reason why the run can't be compared."""
    run = RunDirectory(folder)
    if is_sweep(folder):
        count = sum(1 for _ in folder.glob("trials/*/"))
        return LeftOut(folder, "search", f"the {count} trials of this search have no test scores")
    try:
        # `finished` is called before the result is read, because the run may end in between.
        toml, is_finished = run.certain_toml("job.toml"), run.finished()
        result = run.certain_json(RESULT)
        ensemble = run.certain_toml(ENSEMBLE_FILE)
    except (DiskError, OSError) as error:
        return LeftOut(folder, "unreadable", str(error))
    record = run.read_json(RECORD)  # empty if the record is private to another user
    try:
        check_format(f"run {folder}", record)
    except InputError as error:
        return LeftOut(folder, "of another version", str(error))
    if not is_ensemble(folder) and not os.path.lexists(run.path("job.toml")):
        return LeftOut(folder, "broken", "job.toml is missing; copy the whole folder of the run")
    settings = table(ensemble, "settings") if is_ensemble(folder) else _settings(toml, result)
    # If a run began before a settings key existed, the run was trained with the key's default.
    settings = DEFAULTS | settings
    if settings.get("data.test") is False:
        return LeftOut(folder, "not tested", "data.test = false")
    if not is_finished and not is_ensemble(folder):
        return _unfinished(folder, run.read_json("state.json"))
    # A pandas table can't contain an unpaired surrogate, which is a kind of invalid character.
    result = {key: printable(e) if isinstance(e, str) else e for key, e in result.items()}
    job, architecture = text(result.get("job")), text(result.get("architecture"))
    accuracy, seed = number(result.get("accuracy")), whole(result.get("seed"))
    is_known = is_whole(result) and text(result.get("data"))
    if job is None or architecture is None or accuracy is None or seed is None or not is_known:
        remedy = MAKE_AGAIN if is_ensemble(folder) else "remove this file and run harness resume"
        return LeftOut(folder, "broken", f"result.json is broken; {remedy}")
    began = began_s(record)
    runs = ensemble.get("runs")
    tables = [each for each in runs if isinstance(each, dict)] if isinstance(runs, list) else []
    paths = [folder.resolve() / printable(str(each.get("folder"))) for each in tables]
    members = tuple(Path(os.path.normpath(path)) for path in paths)
    return ScoredRun(
        folder, job, architecture, seed, accuracy, result, settings, began, members=members
    )


def _unfinished(folder: Path, state: Mapping[str, Any]) -> LeftOut:
    phase, epoch = text(state.get("phase")), whole(state.get("epoch"))
    if phase == "failed":
        lines = (text(state.get("error")) or "").splitlines() or ["no reason is known"]
        return LeftOut(folder, "failed", one_line(lines[-1]))
    if phase == "finished":
        return LeftOut(folder, "broken", "result.json is missing; run harness resume")
    at = f" in epoch {epoch}" if epoch else ""
    return LeftOut(folder, "unfinished", f"{one_line(phase or 'not begun')}{at}")


def _settings(job: dict[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings by `table.key`, except the seed and keys that change no result.

    Initial weights from another run, pretrained word vectors and custom code count as settings, so
    that runs with different ones are in different rows of the tables.
    """
    pairs = [pair for name in job for pair in flat(name, table(job, name))]
    settings = {key: value for key, value in pairs if key not in WITHOUT_RESULT}
    if origin := text(result.get("weights_of")):
        parts = Path(origin).parent.parts  # `<job>` or `<job>/<sweep>/trials/<trial>/<attempt>`
        named = parts[-5:-1] if attempt_of(Path(origin)) else parts[-1:]
        settings["train.from"] = printable("/".join(named))
    if vectors := text(result.get("embeddings_checksum")):
        settings["model.embeddings"] = vectors[:8]
    for path, source in table(job, "code").items():
        settings[f"code.{path}"] = source_digest(str(source))
    return settings


def with_settings(runs: Sequence[ScoredRun], where: Sequence[str]) -> list[ScoredRun]:
    """Return the runs that have all settings in `where`, such as `model.units=64`.

    Raises:
        InputError: if a setting is not `KEY=VALUE`, or if no run has the settings.
    """
    found = [(run, {**run.settings, "train.seed": run.seed}) for run in runs]
    known = [*dict.fromkeys(key for _, settings in found for key in settings)]
    for each in where:
        key, equals, value = each.partition("=")
        if not equals or key not in known:
            raise InputError(
                f"--where {each}: should be a setting of a run, such as model.units=64"
                f"{'' if key in known else did_you_mean(key, known)}"
            )
        found = [(run, settings) for run, settings in found if _is(settings.get(key), value)]
        if not found:
            raise InputError(f"--where {each}: no run has this setting; choose another value")
    return [run for run, _ in found]


def _is(setting: Any, value: str) -> bool:
    """Whether a setting equals `value`, the text after `KEY=` on a command line."""
    if type(setting) in (int, float):
        with contextlib.suppress(ValueError):
            return bool(float(value) == setting)
    return value in (str(setting), as_text(setting))


def as_text(setting: Any) -> str:
    """Return a setting as text for comparisons; 1 and 1.0 have the same text, 1 and true do not."""
    if isinstance(setting, float) and setting.is_integer():
        setting = int(setting)
    return json.dumps(setting, sort_keys=True, default=str)


# Group runs


def group_runs(runs: Iterable[ScoredRun]) -> tuple[list[DatasetGroup], list[LeftOut]]:
    """Group runs by their data, and within a group by job and settings.

    Returns:
        The groups, and a list of the repeated runs, which have the job, settings and seed of an
        earlier run, or share a run with an earlier ensemble. Groups on full datasets come first;
        groups on the harness's sample reviews come last. Groups contain no repeated runs, so nobody
        can improve a job's scores by repeating some of its runs.
    """
    by_data: dict[tuple[str, int], list[ScoredRun]] = {}
    for run in runs:
        limit = whole(run.result.get("limit")) or 0
        by_data.setdefault((run.result["dataset_checksum"], limit), []).append(run)
    repeated: list[LeftOut] = []
    groups = [
        DatasetGroup(
            data=members[0].result["data"],
            checksum=checksum,
            limit=limit,
            is_sample=members[0].result.get("is_sample") is True,
            num_test=whole(members[0].result.get("num_test")),
            runs={
                name: _first_of_each_seed(alike, repeated)
                for name, alike in sorted(_named(members).items(), key=_order)
            },
        )
        for (checksum, limit), members in by_data.items()
    ]
    groups.sort(key=lambda each: (each.is_sample, each.limit != 0, each.data, each.limit))
    return groups, repeated


def _named(runs: Iterable[ScoredRun]) -> dict[str, list[ScoredRun]]:
    """Group runs by job and settings.

    Runs of the same job with the same settings are a group. A group's name consists of the job's
    name and the settings in which the group differs from the job's largest group.
    """
    by_job: dict[str, dict[str, list[ScoredRun]]] = {}
    for run in runs:
        settings = str(sorted((key, as_text(value)) for key, value in run.settings.items()))
        by_job.setdefault(run.job, {}).setdefault(settings, []).append(run)
    named: dict[str, list[ScoredRun]] = {}
    for job, by_settings in by_job.items():
        # The usual settings are the most common ones; of equally common ones, the first.
        usual = max(by_settings.values(), key=len)[0].settings
        for alike in by_settings.values():
            name = printable(" ".join([job, *_differing(alike[0].settings, usual)]))
            named[f"{name} ({len(named) + 1})" if name in named else name] = alike
    return named


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    names = short_names([*{**usual, **settings}])
    return [
        f"{name}={settings.get(key, 'unset')}"
        for key, name in names.items()
        if as_text(settings.get(key)) != as_text(usual.get(key))
    ]


def _first_of_each_seed(runs: Iterable[ScoredRun], repeated: list[LeftOut]) -> list[ScoredRun]:
    by_seed: dict[int, ScoredRun] = {}
    for run in sorted(runs, key=lambda each: (each.began_s, each.folder)):
        # Ensembles with a common run are not independent, as the intervals assume.
        shared = (each for each in by_seed.values() if {*each.members} & {*run.members})
        first = by_seed.get(run.seed) or next(shared, None)
        if not first:
            by_seed[run.seed] = run
            continue
        whose = f"run with seed {run.seed}" if first.seed == run.seed else "ensemble of a run"
        scores = f"has accuracy {first.accuracy:.2%}, this run has {run.accuracy:.2%}"
        why = f"only the first {whose} is counted: {first.folder} {scores}"
        repeated.append(LeftOut(run.folder, "repeated", why))
    return [by_seed[seed] for seed in sorted(by_seed)]


def _order(row: tuple[str, Sequence[ScoredRun]]) -> tuple[bool, int, str]:
    """Return the sort key of a table's row.

    Rows are sorted by architecture, in the order of the constant `BOOK`, then by name. Jobs whose
    name begins with `notebook` come after all other jobs.
    """
    name, (first, *_) = row
    book = [*BOOK, first.architecture]
    return first.job.startswith("notebook"), book.index(first.architecture), name
