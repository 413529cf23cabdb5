"""Collects runs from folders: which there are, and which of them may be compared."""

import errno
import json
import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from harness.config import flat, is_free
from harness.errors import DiskError, InputError
from harness.files.lenient_json import number, table, text, whole
from harness.files.plain_file import disk_error_in
from harness.job import FACTS, KEYS
from harness.own_code import source_digest
from harness.search_space import is_sweep, short_names
from harness.system.console import log
from harness.tracking.record_format import RECORD, began_s, check_format, weights_of
from harness.tracking.records import one_line
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import (
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    find_runs,
    is_ensemble,
    job_file,
)

# Test accuracies in per cent of the notebook's closing table, after Baig et al. (2020), The Deep
# Learning Workshop, exercises 6.01 to 6.05.
BOOK = {"rnn": 84.15, "lstm": 87.05, "gru": 87.06, "bilstm": 87.60, "stacked_lstm": 87.53}

NO_SPREAD = 1e-9  # points; 0 to rounding, since 0.1 + 0.2 is not 0.3

# Settings that tell no jobs apart: those that change no result, and the seed of a repetition.
WITHOUT_RESULT = {"train.seed", *(k for k, facts in FACTS.items() if facts.changes == "nothing")}
DEFAULTS = {
    key: info.default
    for key, info in KEYS.items()
    if key not in WITHOUT_RESULT and not is_free(info) and not info.is_required()
}

UNKNOWN = "unknown"
DIGEST = re.compile(r"[0-9a-f]{8}")  # of a source, as it is shown


@dataclass(frozen=True)
class ScoredRun:
    """A finished run that was scored on a test set."""

    folder: Path
    job: str
    architecture: str
    seed: int
    accuracy: float  # on the test set, per cent
    result: Mapping[str, Any]  # result.json
    settings: Mapping[str, Any]  # of its job by table.key, without those that change no result
    source: str | None = None  # where its own texts were, None for IMDB
    began_s: float = math.inf  # since 1970, infinite if it is not known


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no table, and why."""

    folder: Path
    kind: str  # failed, unfinished, broken, unreadable, not tested, search or repeated
    why: str


@dataclass(frozen=True)
class JobResult:
    """The runs of one job with the same settings on the same data, one for each seed."""

    name: str  # the job's, with the settings that differ from its usual ones
    runs: tuple[ScoredRun, ...]  # by seed

    @property
    def job(self) -> str:
        """The job's own name."""
        return self.runs[0].job

    @property
    def architecture(self) -> str:
        """The network's name."""
        return self.runs[0].architecture

    @property
    def by_seed(self) -> dict[int, float]:
        """Test accuracy of each seed, per cent."""
        return {run.seed: run.accuracy for run in self.runs}

    @property
    def mean(self) -> float:
        """Mean test accuracy, per cent."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1), in points; None for one run."""
        return statistics.stdev(self.by_seed.values()) if len(self.runs) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, by Student's t over the seeds, clipped to 0 to 100.

        None for one run, or if all have the same accuracy: that says nothing about the spread.
        """
        margin = t_margin([*self.by_seed.values()], 0.95)
        if margin is None:
            return None
        return max(self.mean - margin, 0.0), min(self.mean + margin, 100.0)

    def mean_of(self, key: str) -> float | None:
        """The mean over the seeds of a number in `result.json`, None if a run lacks it."""
        return mean_of_all(number(run.result.get(key)) for run in self.runs)

    def setting(self, key: str) -> Any:
        """The job's value of a `table.key`, None if it is not set."""
        return self.runs[0].settings.get(key)


@dataclass(frozen=True)
class DatasetGroup:
    """The results from the same reviews; only these may be compared with each other."""

    data: str  # the dataset's name
    checksum: str
    limit: int  # first reviews of each split, 0 for all
    is_sample: bool
    num_test: int | None
    results: tuple[JobResult, ...]

    @property
    def title(self) -> str:
        """Which reviews these are."""
        limited = f", the first {self.limit:,} reviews of each split" if self.limit else ""
        return f"{self.data}{limited}"

    @property
    def in_book(self) -> bool:
        """Whether the book's figures are of these data: the whole of IMDB."""
        return self.data == "IMDB" and not self.limit and not self.is_sample

    @property
    def num_classes(self) -> int:
        """How many classes the runs tell apart; 2 where no run says so."""
        named = (run.result.get("classes") for each in self.results for run in each.runs)
        return max((len(names) for names in named if isinstance(names, list)), default=2)

    @property
    def num_runs(self) -> int:
        """Runs of all jobs."""
        return sum(len(each.runs) for each in self.results)


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean, None if one of the values is not known."""
    found = [*values]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def t_margin(values: Sequence[float], level: float) -> float | None:
    """Half the width of a sample's two-sided interval of the mean, by Student's t.

    Returns:
        In the values' unit; None for one value or without any spread, where none is known.
    """
    from scipy.special import stdtrit  # a tenth of the time that scipy.stats takes

    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    if deviation < NO_SPREAD:
        return None
    dof = len(values) - 1
    return float(stdtrit(dof, (1 + level) / 2) * deviation / len(values) ** 0.5)


# Finding runs


def scored_runs(named: Sequence[Path]) -> tuple[list[ScoredRun], list[LeftOut]]:
    """The scored runs at or below the folders and patterns given, and what is left out.

    Of a sweep these are the runs of its winner: its trials are not to be compared.

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
    closed = [each.folder for each in scored if each.settings.get("train.from") == UNKNOWN]
    if closed:
        log(
            logging.WARNING,
            f"{closed[0] / RECORD}{f' and {len(closed) - 1} more' if closed[1:] else ''}: can't be "
            "read, so nobody knows when these runs began, and whether with other weights",
        )
    return scored, left_out


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
    return ScoredRun(
        folder, job, architecture, seed, 100 * accuracy, result, settings, source, since_s
    )


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
    """The job whose trained weights a run began with, as a setting: it has learned more."""
    if record is None:
        return {"train.from": UNKNOWN}
    # From a checkpoint it goes on to the same bytes as a run that began as that one did.
    origin = weights_of(record)
    return {"train.from": Path(origin).parent.name} if origin else {}


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
            results=tuple(_make_results(members, repeated)),
        )
        for (checksum, limit), members in by_data.items()
    ]
    groups.sort(key=lambda each: (each.is_sample, each.limit != 0, each.data, each.limit))
    return groups, repeated


def _make_results(runs: Iterable[ScoredRun], repeated: list[LeftOut]) -> list[JobResult]:
    by_job: dict[str, dict[str, list[ScoredRun]]] = {}
    for run in runs:
        settings = str(sorted((key, _as_text(value)) for key, value in run.settings.items()))
        by_job.setdefault(run.job, {}).setdefault(settings, []).append(run)
    results = []
    for job, by_settings in by_job.items():
        # The usual settings are those of most runs; of two equally common ones the first found.
        counts = Counter({settings: len(alike) for settings, alike in by_settings.items()})
        usual = by_settings[counts.most_common(1)[0][0]][0].settings
        for alike in by_settings.values():
            name = " ".join([job, *_differing(alike[0].settings, usual)])
            by_seed = _first_of_each_seed(alike, repeated)
            results.append(JobResult(name, tuple(by_seed[seed] for seed in sorted(by_seed))))
    return sorted(results, key=_order)


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    names = short_names([*{**usual, **settings}])
    return [
        f"{name}={settings.get(key, 'unset')}"
        for key, name in names.items()
        if _as_text(settings.get(key)) != _as_text(usual.get(key))
    ]


def _first_of_each_seed(runs: Iterable[ScoredRun], repeated: list[LeftOut]) -> dict[int, ScoredRun]:
    by_seed: dict[int, ScoredRun] = {}
    for run in sorted(runs, key=lambda each: (each.began_s, each.folder)):
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            why = f"seed {run.seed} counts once, as {first.folder}"
            if run.accuracy != first.accuracy:
                why += f" with {first.accuracy:.2f} %, here {run.accuracy:.2f} %"
            repeated.append(LeftOut(run.folder, "repeated", why))
    return by_seed


def _order(result: JobResult) -> tuple[bool, int, str]:
    places = {architecture: place for place, architecture in enumerate(BOOK)}
    place = places.get(result.architecture, len(places))
    return result.job.startswith("notebook"), place, result.name
