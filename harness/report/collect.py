"""Collects runs from folders: which there are, and which of them may be compared."""

import errno
import json
import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config import flat, is_free
from harness.errors import DiskError, InputError
from harness.job.keys import FACTS, KEYS
from harness.job.own_code import source_digest
from harness.job.search import is_sweep, short_names
from harness.system.console import log, printable
from harness.system.files import disk_error_in, read_plain_file
from harness.system.lenient_json import number, table, text, whole
from harness.tracking.audits import AUDITS, audits_of, depth_of
from harness.tracking.records import one_line
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    RECORD,
    RunDirectory,
    began_s,
    check_format,
    find_runs,
    is_ensemble,
    job_file,
    weights_of,
)

if TYPE_CHECKING:
    import pandas

# Test accuracies of the notebook's closing table, after Baig et al. (2020), The Deep
# Learning Workshop, exercises 6.01 to 6.05.
BOOK = {"rnn": 0.8415, "lstm": 0.8705, "gru": 0.8706, "bilstm": 0.8760, "stacked_lstm": 0.8753}

NO_SPREAD = 1e-11  # of accuracies; 0 to rounding, since 0.1 + 0.2 is not 0.3

# Settings that tell no jobs apart: those that change no result, and the seed of a repetition.
WITHOUT_RESULT = {"train.seed", *(k for k, facts in FACTS.items() if facts.changes == "nothing")}
DEFAULTS = {
    key: info.default
    for key, info in KEYS.items()
    if key not in WITHOUT_RESULT and not is_free(info) and not info.is_required()
}

# Numbers of `result.json`; tables show their means.
NUMBERS = (
    *("f1", "roc_auc", "log_loss", "training_s", "val_accuracy", "val_loss"),
    *("recurrent_parameters", "parameters"),
)
UNKNOWN, UNSET = "unknown", "unset"
DIGEST = re.compile(r"[0-9a-f]{8}")  # of a source, as it is shown


@dataclass(frozen=True)
class ScoredRun:
    """A finished run that was scored on a test set."""

    folder: Path
    job: str
    architecture: str
    seed: int
    accuracy: float  # on the test set, from 0 to 1
    result: Mapping[str, Any]  # result.json
    settings: Mapping[str, Any]  # of its job by table.key, without those that change no result
    source: str | None = None  # where its own texts were, None for IMDB
    began_s: float = math.inf  # since 1970, infinite if it is not known
    audit: str = ""  # how deep the user has audited it, or that it differs; see `depth_of`


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no table, and why."""

    folder: Path
    kind: str  # failed, unfinished, broken, unreadable, not tested, search or repeated
    why: str


@dataclass(frozen=True)
class DatasetGroup:
    """The runs on the same reviews; only these may be compared with each other."""

    data: str  # the dataset's name
    checksum: str
    limit: int  # first reviews of each split, 0 for all
    is_sample: bool
    num_test: int | None
    runs: Mapping[str, Sequence[ScoredRun]]  # of each row, by its name: one for each seed

    @property
    def title(self) -> str:
        """Which reviews these are."""
        limited = f", the first {self.limit:,} reviews of each split" if self.limit else ""
        return f"{self.data}{limited}"

    @property
    def all_runs(self) -> list[ScoredRun]:
        """Those of all rows."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def classes(self) -> list[tuple[str, ...]]:
        """The names of the classes, for each run that records them."""
        named = (run.result.get("classes") for run in self.all_runs)
        return [tuple(map(str, names)) for names in named if isinstance(names, list)]

    @cached_property
    def by_seed(self) -> "pandas.DataFrame":
        """The scores of each run, by name and seed: `accuracy` and `NUMBERS`."""
        import pandas

        found = {
            (name, run.seed): [run.accuracy, *(number(run.result.get(key)) for key in NUMBERS)]
            for name, runs in self.runs.items()
            for run in runs
        }
        columns = ["accuracy", *NUMBERS]
        index = pandas.MultiIndex.from_tuples(found, names=["job", "seed"])
        return pandas.DataFrame([*found.values()], index, columns, dtype=float)

    @cached_property
    def jobs(self) -> "pandas.DataFrame":
        """A row for each name: means over the seeds, NaN where a run lacks the number.

        `deviation` divides by n - 1; the interval is the 95 % interval of the mean by Student's t,
        which ends at 0 and 1. One seed has no deviation. One seed, and equal seeds, have no
        interval: they say nothing about the spread.
        """
        grouped = self.by_seed.groupby(level="job", sort=False)
        jobs = grouped.agg(statistics.fmean)
        firsts = [runs[0] for runs in self.runs.values()]
        jobs["architecture"] = [run.architecture for run in firsts]
        jobs["num_seeds"] = grouped.size()
        jobs["audited"] = [_audits(runs) for runs in self.runs.values()]
        jobs["deviation"] = grouped["accuracy"].std()
        margin = t_margin(jobs["deviation"] / jobs["num_seeds"] ** 0.5, jobs["num_seeds"] - 1, 0.95)
        jobs["interval_low"] = (jobs["accuracy"] - margin).clip(lower=0)
        jobs["interval_high"] = (jobs["accuracy"] + margin).clip(upper=1)
        is_in_book = self.data == "IMDB" and not self.limit and not self.is_sample
        book = [BOOK.get(run.architecture) if is_in_book else None for run in firsts]
        return jobs.assign(book_accuracy=np.array(book, float))

    def best(self, num: int) -> "DatasetGroup":
        """The group with only the `num` rows of highest accuracy, in their order."""
        kept = {*self.jobs["accuracy"].sort_values(ascending=False, kind="stable").index[:num]}
        runs = {name: runs for name, runs in self.runs.items() if name in kept}
        return replace(self, runs=runs)

    def setting(self, name: str, key: str) -> Any:
        """A row's value of a `table.key`, None if it is not set."""
        return self.runs[name][0].settings.get(key)

    @cached_property
    def differing(self) -> dict[str, str]:
        """The keys whose values differ between rows, each with its short name."""
        keys = dict.fromkeys(key for runs in self.runs.values() for key in runs[0].settings)
        values = {key: {shown(self.setting(name, key)) for name in self.runs} for key in keys}
        return short_names([key for key in keys if len(values[key]) > 1])


def _audits(runs: Iterable[ScoredRun]) -> str | float:
    """`full: 3, quick: 1`; NaN where none was audited."""
    counts = Counter(run.audit for run in runs if run.audit)
    return ", ".join(f"{depth}: {num}" for depth, num in counts.most_common()) or math.nan


def t_margin(error: Any, dof: Any, level: float) -> Any:
    """Half the width of a two-sided interval by Student's t, for numbers or arrays.

    Args:
        error: the standard error of a mean.
        dof: its degrees of freedom.
        level: such as 0.95.

    Returns:
        In the error's unit; NaN without any spread, or where none is known.
    """
    from scipy.stats import t

    known = np.where((np.asarray(dof) > 0) & (np.asarray(error) >= NO_SPREAD), error, np.nan)
    return t.ppf((1 + level) / 2, dof) * known


# Finding runs


def scored_runs(
    named: Sequence[Path], audits: Path | None = None
) -> tuple[list[ScoredRun], list[LeftOut]]:
    """The scored runs at or below these folders and patterns, and what is left out.

    Of a sweep these are the runs of its winner: its trials are not to be compared.

    Args:
        audits: the folder of runs in which the user keeps audits.

    Raises:
        InputError: for a folder that is not there, or where no run is found at all.
    """
    left_out: list[LeftOut] = []
    read = [
        read_run(folder) for folder in find_runs(expand(named, left_out), in_sweeps=("winner",))
    ]
    if not read:
        raise InputError(f"{', '.join(map(str, named))}: holds no run; harness train makes one")
    left_out += [each for each in read if isinstance(each, LeftOut)]
    scored = [each for each in read if isinstance(each, ScoredRun)]
    if audits and (audits / AUDITS).is_dir():
        scored = [replace(run, audit=_audit(run.folder, audits)) for run in scored]
    closed = [each.folder for each in scored if each.settings.get("train.from") == UNKNOWN]
    if closed:
        log(
            logging.WARNING,
            f"{closed[0] / RECORD}{f' and {len(closed) - 1} more' if closed[1:] else ''}: can't be "
            "read, so nobody knows when these runs began, and whether with other weights",
        )
    return scored, left_out


def _audit(folder: Path, audits: Path) -> str:
    try:
        return depth_of(audits_of(audits, read_plain_file(folder / "result.json")))
    except OSError:
        return ""


def expand(named: Iterable[Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """The folders of these names, patterns expanded.

    A pattern that matches nothing is only noted: one of several jobs may never have started.

    Raises:
        InputError: for a name that is no pattern and no folder.
    """
    for path in named:
        if path.is_dir():
            yield path
        elif has_magic(str(path)):
            matching = sorted(glob(str(path)))  # noqa: PTH207 - with folders in its pattern
            if not matching:
                left_out.append(LeftOut(path, "unmatched", "no run matches it"))
            yield from map(Path, matching)
        else:
            raise InputError(f"{path}: is no folder; give runs, or a folder of runs")


def read_run(folder: Path) -> ScoredRun | LeftOut:
    """Read the result of a run, or why it is not to be compared."""
    run = RunDirectory(folder)
    if is_sweep(folder):
        count = sum(1 for _ in folder.glob("trials/*/"))
        return LeftOut(folder, "search", f"its {count} trials leave the test set unread")
    try:
        toml, is_finished = run.certain_toml(job_file(folder)), run.finished()
        result = run.certain_json("result.json")  # after that, since the run may end between them
        # A table of pandas takes no half of a character.
        result = {key: printable(e) if isinstance(e, str) else e for key, e in result.items()}
        ensemble, record = run.certain_toml(ENSEMBLE_FILE), _record(run)
    except (DiskError, OSError) as error:
        return LeftOut(folder, "unreadable", str(error))
    try:
        check_format(f"run {folder}", record or {})
    except InputError as error:
        return LeftOut(folder, "of another version", str(error))
    if is_ensemble(folder):
        settings = _settings(table(ensemble, "settings"))
    else:
        settings = _settings(toml)
        # A run that was begun before a key was declared has trained as by its default.
        settings = DEFAULTS | settings | _begun_with(record) | vectors_of(result)
    if settings.get("data.test") is False:
        return LeftOut(folder, "not tested", "data.test = false")
    if not is_finished and not is_ensemble(folder):
        return _unfinished(folder, run.read_json("state.json"))
    job, architecture = text(result.get("job")), text(result.get("architecture"))
    accuracy, seed = number(result.get("accuracy")), whole(result.get("seed"))
    known = text(result.get("data")) and text(result.get("dataset_checksum"))
    if accuracy is not None and not 0 <= accuracy <= 1:
        accuracy = None
    if job is None or architecture is None or accuracy is None or seed is None or not known:
        remedy = MAKE_AGAIN if is_ensemble(folder) else "remove it and harness resume"
        return LeftOut(folder, "broken", f"result.json is broken; {remedy}")
    source, since_s = text(table(toml, "data").get("source")), began_s(record or {})
    return ScoredRun(folder, job, architecture, seed, accuracy, result, settings, source, since_s)


def _record(run: RunDirectory) -> dict[str, Any] | None:
    """What a run was begun with; None where that is its owner's alone, since it holds a diff."""
    try:
        return run.certain_json(RECORD)
    except DiskError as error:
        cause = disk_error_in(error)
        if cause and cause.errno == errno.EACCES:
            return None
        raise


def _begun_with(record: dict[str, Any] | None) -> dict[str, str]:
    """The job whose trained weights a run started from, as a setting: such a run learned more."""
    if record is None:
        return {"train.from": UNKNOWN}
    # From a checkpoint it goes on to the same bytes as a run that began as that one did.
    origin = weights_of(record)
    return {"train.from": printable(Path(origin).parent.name)} if origin else {}


def vectors_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The pretrained vectors of a run as a setting: by their content, wherever their file is.

    Empty without any.
    """
    checksum = text(result.get("embeddings_checksum"))
    return {"model.embeddings": checksum[:8]} if checksum else {}


def _unfinished(folder: Path, state: Mapping[str, Any]) -> LeftOut:
    phase, epoch = text(state.get("phase")), whole(state.get("epoch"))
    if phase == "failed":
        lines = (text(state.get("error")) or "").splitlines() or ["no reason is known"]
        return LeftOut(folder, "failed", one_line(lines[-1]))
    at = f" in epoch {epoch}" if epoch else ""
    return LeftOut(folder, "unfinished", f"{one_line(phase or 'not begun')}{at}")


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    """The settings in a job's file by table.key, without those that change no result."""
    settings: dict[str, Any] = {}
    for name in job:
        for key, value in table(job, name).items():
            where = f"{name}.{key}"
            is_table = where in KEYS and is_free(KEYS[where])
            settings |= flat(where, value) if is_table else {where: value}
    for path, source in table(job, "code").items():
        # A whole source is no name. In an ensemble's settings it has been shortened before.
        if not DIGEST.fullmatch(str(source)):
            settings[f"code.{path}"] = source_digest(str(source))
    return {name: value for name, value in settings.items() if name not in WITHOUT_RESULT}


def _as_text(setting: Any) -> str:
    """What tells settings apart: 1 and 1.0 are one, true is another."""
    if isinstance(setting, float) and setting.is_integer():
        setting = int(setting)
    return json.dumps(setting, sort_keys=True, default=str)


# Grouping them


def group_runs(runs: Iterable[ScoredRun]) -> tuple[list[DatasetGroup], list[LeftOut]]:
    """Group runs by their data, and within a group by job and settings.

    Returns:
        The groups, full datasets first and samples last; and the runs left out because an earlier
        one has the same seed: trying again must not be a way to a better figure.
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
    """The runs of the same job and settings, by the job's name and its unusual settings."""
    by_job: dict[str, dict[str, list[ScoredRun]]] = {}
    for run in runs:
        settings = str(sorted((key, _as_text(value)) for key, value in run.settings.items()))
        by_job.setdefault(run.job, {}).setdefault(settings, []).append(run)
    named: dict[str, list[ScoredRun]] = {}
    for job, by_settings in by_job.items():
        # The usual settings are those of most runs; of two equally common ones the first found.
        usual = max(by_settings.values(), key=len)[0].settings
        for alike in by_settings.values():
            name = printable(" ".join([job, *_differing(alike[0].settings, usual)]))
            named[f"{name} ({len(named) + 1})" if name in named else name] = alike
    return named


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    names = short_names([*{**usual, **settings}])
    return [
        f"{name}={settings.get(key, UNSET)}"
        for key, name in names.items()
        if _as_text(settings.get(key)) != _as_text(usual.get(key))
    ]


def _first_of_each_seed(runs: Iterable[ScoredRun], repeated: list[LeftOut]) -> list[ScoredRun]:
    by_seed: dict[int, ScoredRun] = {}
    for run in sorted(runs, key=lambda each: (each.began_s, each.folder)):
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            why = f"seed {run.seed} counts once, as {first.folder}"
            if run.accuracy != first.accuracy:
                why += f" with {first.accuracy:.2%}, here {run.accuracy:.2%}"
            repeated.append(LeftOut(run.folder, "repeated", why))
    return [by_seed[seed] for seed in sorted(by_seed)]


def _order(row: tuple[str, Sequence[ScoredRun]]) -> tuple[bool, int, str]:
    name, (first, *_) = row
    places = {architecture: place for place, architecture in enumerate(BOOK)}
    place = places.get(first.architecture, len(places))
    return first.job.startswith("notebook"), place, name


def shown(value: Any) -> str:
    """A setting in a table."""
    if value is None:
        return UNSET
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))
