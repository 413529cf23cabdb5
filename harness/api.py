"""The commands as Python functions: `harness.train`, `tune`, `audit`, `load_runs` and `compare`.

`train`, `tune` and `audit` run their command in a separate process, print the command's output, and
raise the command's error if the command fails. The separate process runs the same code as the
command line, so the results are bitwise equal. The caller's process keeps its signal handlers and
TensorFlow settings, so `train`, `tune` and `audit` can be called in a thread, and in a notebook
that already uses TensorFlow.

The functions return accuracies from 0 to 1; the printed tables of `compare` show percentages.
"""

import importlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.compute.strategy import reset_keras, set_variables
from harness.config import is_free, toml_value
from harness.errors import InputError, Interrupted, RunError
from harness.inference.predict import Classifier, Prediction, check_texts
from harness.job.job_file import load_job, shown
from harness.job.keys import KEYS
from harness.job.own_code import trusting
from harness.job.search import is_sweep, load_search
from harness.report.collect import LeftOut, expand
from harness.report.summary import Part, compared, figures, print_parts, to_markdown
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import run_printed
from harness.system.console import log, quoted, rich_console
from harness.system.lenient_json import read_json_lines
from harness.system.stderr_filter import filtered_stderr
from harness.tracking.audits import AUDITS, DIFFERS, audits_of
from harness.tracking.run_dir import (
    RESULT,
    RunDirectory,
    default_runs,
    find_runs,
    is_ensemble,
    named_or_all,
    remove_empty,
)
from harness.tuning.leaderboard import leaderboard_rows
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    import keras
    import pandas

    from harness.training.audit import Audit

PathLike = str | Path
Settings = Mapping[str, object]
IMPORT = threading.Lock()  # threads that import TensorFlow's modules at once end in a deadlock


@dataclass(frozen=True)
class Run:
    """A run, finished or unfinished. Each property reads the run's folder at every use."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run has a result.

        Raises:
            InputError: if the folder contains no run.
        """
        return self._directory.finished()

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`: scores, and measured times in keys that end in `_s`.

        Raises:
            InputError: if the run is unfinished, or the folder contains no run.
            RunError: if `result.json` is broken.
        """
        _check_finished("run", self.folder, self.finished)
        return self._directory.result()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The content of `metrics.jsonl`: a dictionary for each completed epoch."""
        return read_json_lines(self.folder / "metrics.jsonl")

    def model(self) -> "keras.Model":
        """Load the trained model, which maps word indices `[rows, time] int32` to probabilities.

        Raises:
            InputError: if the run is unfinished, or its model can't be loaded.
        """
        run = self._directory
        run.model_file()  # refuses an unfinished run before the slow import
        _import_tensorflow()
        from harness.inference.model_file import load_model

        return load_model(run)

    def predict(self, texts: str | Iterable[str]) -> list[Prediction]:
        """Classify raw texts, or a single text.

        If this process imported TensorFlow before, with oneDNN on (TensorFlow's default), then the
        probabilities may differ from those of `harness predict` by rounding.

        Raises:
            InputError: if a text contains no words, or the run is unfinished.
        """
        checked = check_texts([texts] if isinstance(texts, str) else [*texts])
        run = self._directory
        run.model_file()  # refuses an unfinished run before the slow import
        _import_tensorflow()
        return Classifier(run).classify(checked)

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory.open(self.folder)


class Runs(list[Run]):
    """Runs, in the order of the arguments of `load_runs`; within an argument, sorted by folder."""

    def to_frame(self) -> "pandas.DataFrame":
        """Return a table with a row for each run: the run's folder, job name, job keys and scores.

        Accuracies are numbers from 0 to 1; times are in seconds.
        """
        import pandas

        return pandas.DataFrame([_row(run) for run in self])


@dataclass(frozen=True)
class Sweep:
    """A search; each property reads the folder of the search at every use."""

    folder: Path

    @property
    def leaderboard(self) -> list[dict[str, Any]]:
        """The trials, best first, with the columns of `leaderboard.csv`.

        The list is empty if there are no trials. A missing number is None, and a missing text is
        empty. If a trial does not use a key of the search space, the value of this key is None.
        Values keep their types, such as int or bool, instead of being converted to text.

        Raises:
            InputError: if the folder contains no sweep, or another version wrote the sweep.
        """
        sweep = SweepDirectory.open(self.folder)
        search = sweep.search()
        return leaderboard_rows(sweep.trials(), search)

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`: the best trial, its score and its values.

        Raises:
            InputError: if the search is unfinished, or the folder contains no sweep.
        """
        sweep = SweepDirectory.open(self.folder)
        _check_finished("sweep", self.folder, sweep.finished())
        return sweep.read_json(RESULT)

    def to_frame(self) -> "pandas.DataFrame":
        """Return the leaderboard as a table."""
        import pandas

        return pandas.DataFrame(self.leaderboard)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `harness compare`; its repr is the text that the command prints."""

    parts: tuple[Part, ...]  # each part compares the runs on one dataset
    left_out: tuple[LeftOut, ...]  # the runs that are not compared, with the reasons

    def __repr__(self) -> str:
        """Return the tables and sentences that `harness compare` prints."""
        file = io.StringIO()
        print_parts(self.parts, rich_console(file=file, force_terminal=False, force_jupyter=False))
        return file.getvalue().rstrip("\n")

    def _repr_markdown_(self) -> str:
        """Return the tables in Markdown, for a notebook."""
        return to_markdown(self.parts)

    def to_frame(self) -> "pandas.DataFrame":
        """Return a table with a row for each job and each baseline.

        Accuracies are numbers from 0 to 1; times are in seconds.
        """
        return figures(self.parts).infer_objects()

    def write(self, folder: PathLike) -> Path:
        """Write the report of `harness compare --out`; return the path of its HTML page.

        Raises:
            InputError: if the folder contains files that don't belong to an earlier report.
            RunError: if the folder can't be written.
        """
        from harness.report.html import check_folder, write_comparison

        check_folder(Path(folder))
        return write_comparison(Path(folder), self.parts, self.left_out)


def train(
    job: PathLike,
    settings: Settings | None = None,
    *,
    seed: int | None = None,
    run_id: str | None = None,
    runs: PathLike | None = None,
    **options: object,
) -> Run:
    """Train a job, as `harness train` does.

    Args:
        job: the job file.
        settings: keys of the job to change, such as `{"train.epochs": 2}` or
            `{"train": {"epochs": 2}}`.
        seed: the value of `train.seed`.
        run_id: the name of the run. The call continues an unfinished run with this name, and leaves
            a finished run unchanged. If srun starts several tasks, they must name the run.
        runs: the folder of the runs, by default HARNESS_RUNS, or `runs`.
        options: options of `harness train` for which this function has no argument, such as
            `devices="cpu:2"` or `full=True`.

    Raises:
        InputError: if the job, an option or this machine is unsuitable; nothing was written, except
            perhaps an empty folder of runs.
        RunError: if the run failed.
        Interrupted: if a signal stopped the run. To continue the run, pass its name as `run_id`.
        KeyboardInterrupt: if you pressed Ctrl-C. The call raises this error after the run's process
            has saved the run and ended; a second Ctrl-C kills the process.
    """
    overrides = _overrides(settings, options)
    folder = default_runs() if runs is None else Path(runs)
    own = SlurmEnvironment.from_environment()
    if run_id is None and own and own.num_tasks > 1:
        raise InputError(
            f"run_id = None: all {own.num_tasks} tasks of srun should name one run; give run_id"
        )
    with trusting(bool(options.get("trust_code"))):
        loaded = load_job(Path(job), overrides, seed)
        run = RunDirectory.new(folder, loaded, run_id).folder
    options |= {"set": overrides, "seed": seed, "runs": folder, "run_id": run.name}
    try:
        run_printed("train", str(job), *_options(options))
    finally:
        if run_id is None:
            remove_empty([run])
    return Run(run)


def tune(
    job: PathLike,
    settings: Settings | None = None,
    *,
    sweep_id: str | None = None,
    runs: PathLike | None = None,
    **options: object,
) -> Sweep:
    """Run a search, as `harness tune` does.

    Args:
        job: a job file with a [search] table.
        settings: keys to change, such as `{"search.trials": 4}` or `{"search": {"trials": 4}}`.
        sweep_id: the name of the sweep. The call continues an unfinished sweep with this name, but
            not a failed or cancelled sweep.
        runs: the folder of the runs, by default HARNESS_RUNS, or `runs`.
        options: options of `harness tune` for which this function has no argument.

    Raises:
        InputError: if the job, an option or this machine is unsuitable; the folder of a sweep that
            has begun is kept.
        RunError: if the search failed.
        Interrupted, KeyboardInterrupt: if the search was interrupted or cancelled. To continue an
            interrupted search, pass its name as `sweep_id`. Only `harness resume` continues a
            cancelled or a failed search.
    """
    overrides = _overrides(settings, options)
    folder = default_runs() if runs is None else Path(runs)
    with trusting(bool(options.get("trust_code"))):
        search = load_search(Path(job), overrides)
        sweep = SweepDirectory.new(folder, search, sweep_id).folder
    options |= {"set": overrides, "runs": folder, "sweep_id": sweep.name}
    try:
        run_printed("tune", str(job), *_options(options))
    finally:
        if sweep_id is None:
            remove_empty([sweep])
    if not SweepDirectory(sweep).finished():  # a cancelled search has exit code 0
        raise Interrupted(
            f"sweep {sweep}: was stopped before its end; continue with: harness resume "
            f"{quoted(sweep)}"
        )
    return Sweep(sweep)


def audit(run: PathLike, *, runs: PathLike | None = None, **options: object) -> "Audit":
    """Check the numbers of a finished run by training it again, as `harness audit` does.

    Args:
        run: the folder of the run, which stays unchanged.
        runs: the folder of your runs, in which the audit is stored; by default HARNESS_RUNS, or
            `runs`.
        options: options of `harness audit`, such as `quick=True`, `epochs=2` or `full=True`.

    Returns:
        The result of the audit, with the attributes `outcome` (`equal`, `within rounding` or
        `differs`), `sentence` (what differs) and `checks` (all comparisons).

    Raises:
        InputError: if the run can't be audited here; the message contains the reason.
        RunError: if the audit fails, if the run's result changes during the audit, or if other
            users can write to the folder of audits.
        Interrupted, KeyboardInterrupt: if the audit was stopped.
    """
    from harness.training.audit import Audit

    folder, began_s = default_runs() if runs is None else Path(runs), time.time()
    error: RunError | None = None
    try:
        run_printed("audit", str(run), *_options(options | {"runs": folder}))
    except RunError as ended:  # exit code 1: the results differ, or the audit failed
        error = ended
    kept = audits_of(folder, (Path(run) / RESULT).read_bytes())
    latest: dict[str, Any] = max(kept.values(), key=lambda each: each["ended_s"], default={})
    # After another error than DIFFERS, the latest audit belongs to another call.
    is_failed = error is not None and latest.get("outcome") != DIFFERS
    if is_failed or latest.get("ended_s", 0.0) < began_s:
        raise error or RunError(
            f"run {run}: the audit does not count, because the run's {RESULT} changed meanwhile, "
            f"or because other users can write to {folder / AUDITS}; run chmod go-w "
            f"{quoted(folder / AUDITS)}, and repeat the audit"
        )
    return Audit(**latest)


def load_runs(*folders: PathLike) -> Runs:
    """Find the runs in folders, finished or not, except ensembles and trials of searches.

    Runs without a job file are left out.

    Args:
        folders: the folders of single runs, folders that contain runs, or glob patterns that match
            such folders; by default HARNESS_RUNS, or `runs`.

    Raises:
        InputError: if a folder does not exist.
    """
    named = named_or_all([Path(each) for each in folders], default_runs())
    found = find_runs(expand(named, []), in_sweeps=("winner",))
    begun = [run.path for run in found if RunDirectory(run.path).exists()]
    return Runs([Run(each) for each in begun if not is_sweep(each) and not is_ensemble(each)])


def compare(
    *folders: PathLike,
    baseline: Literal["ngrams", "none"] | None = None,
    data: PathLike | None = None,
    where: str | Sequence[str] = (),
    pairs: bool = False,
) -> Comparison:
    """Compare the test scores of finished runs, as `harness compare` does.

    Args:
        folders: the runs, as for `load_runs`.
        baseline: `"ngrams"` adds a linear model over 1- to 3-grams, `"none"` leaves out baselines.
        data: the folder of the dataset; replaces HARNESS_DATA.
        where: settings that the compared runs must have, such as `"model.units=64"`.
        pairs: whether to compare each pair of jobs, however many jobs there are.

    Raises:
        InputError: if a folder is missing; if `data` contains no dataset; if no run with the
            settings in `where` is finished and tested; or if `baseline` is `"ngrams"`, but the
            n-gram model can't be fit.
        RunError: if the dataset in `data` is broken.
    """
    if baseline not in (None, "ngrams", "none"):
        raise InputError(f"baseline = {baseline!r}: should be 'ngrams', 'none' or None")
    named = named_or_all([Path(each) for each in folders], default_runs())
    folder = None if data is None else Path(data)
    shared = [where] if isinstance(where, str) else where
    parts, left_out = compared(
        named, default_runs(), baseline=baseline, data=folder, where=shared, in_pairs=pairs
    )
    return Comparison(tuple(parts), tuple(left_out))


# Arguments


def _overrides(settings: Settings | None, options: Settings) -> list[str]:
    """Convert settings to values of the option `--set`.

    Raises:
        InputError: if `settings` is not a dictionary, or if `options` contains `set` or `seeds`.
            Instead of `set`, a caller passes `settings`; instead of `seeds`, a caller calls `train`
            once per seed.
    """
    if not isinstance(settings, Mapping | None):
        raise InputError(
            f'settings = {shown(settings)}: should be a dictionary, such as {{"train.epochs": 2}}'
        )
    remedies = {
        "set": 'pass settings as a dictionary, such as {"train.epochs": 2}',
        "seeds": "call the function once per seed",
    }
    for name in remedies.keys() & options.keys():
        raise InputError(f"{name} = {options[name]!r}: is not an argument; {remedies[name]}")
    return [f"{key}={toml_value(value)}" for key, value in _dotted(settings or {})]


def _dotted(settings: Settings, table: str = "") -> Iterator[tuple[str, object]]:
    """Yield each setting with its dotted key; flatten tables such as `{"train": {"epochs": 2}}`.

    Tables of options, such as `{"model": {"options": {"filters": 8}}}`, are flattened too. An
    option in such a table replaces the job's option of this name; the job's other options remain.
    """
    for name, value in settings.items():
        key = f"{table}.{name}" if table else name
        is_table = (key in KEYS and is_free(KEYS[key])) if table else "." not in name
        if is_table and isinstance(value, Mapping):
            yield from _dotted(value, key)
        else:
            yield key, value


def _options(options: Mapping[str, object]) -> list[str]:
    """Convert keyword arguments to options of a command; the command will check the options."""
    words = []
    for name, given in options.items():
        option = f"--{name.rstrip('_').replace('_', '-')}"  # from_ is --from
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value is not False:
                words.append(option if value is True else f"{option}={value}")
    return words


def _import_tensorflow() -> None:
    """Import TensorFlow, and hide messages that are useless to a user."""
    with IMPORT:
        if "tensorflow" not in sys.modules:
            set_variables()
            with filtered_stderr():
                import tensorflow as tf

                reset_keras()
                tf.config.list_physical_devices()
        importlib.import_module("harness.inference.model_file")  # imports Keras


# Results


def _check_finished(kind: str, folder: Path, is_finished: bool) -> None:
    if not is_finished:
        raise InputError(
            f"{kind} {folder}: is unfinished and has no result; "
            f"continue with: harness resume {quoted(folder)}"
        )


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": str(run.folder), "job": None, "finished": False}
    try:
        directory = RunDirectory.open(run.folder)
        row["finished"] = directory.finished()
        with trusting(True):  # `load_job` runs no code
            job = load_job(directory.path("job.toml"))
        row["job"] = job.name
        for table, keys in job.model_dump(exclude={"name"}).items():
            row |= {f"{table}.{key}": value for key, value in keys.items()}
        result = directory.result() if row["finished"] else {}
        row |= {k: v for k, v in result.items() if isinstance(v, bool | int | float)}
    except (InputError, RunError) as error:  # the row of a broken run stays incomplete
        log(logging.WARNING, str(error))
    return row
