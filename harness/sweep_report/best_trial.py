"""The winner of a sweep: as a job file, and trained anew on all training reviews.

`<sweep>/winner/` holds the job file, `data/` where the sweep has the packaged sample, a log for
each seed, and the runs, `<job>/seed<N>/`.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.data.dataset import save_folder
from harness.errors import InputError, explain_interruption
from harness.files.atomic_file import atomic_write
from harness.job import Job, TrainConfig
from harness.job_file import check_job
from harness.report.summary import print_runs
from harness.search_space import SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import allocate_slots
from harness.slurm.process_pool import Task, child_args, run_tasks
from harness.slurm.resources import array_spec
from harness.sweep_report.importance import value_of
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from harness.tuning.sweep_dir import LEADERBOARD, SweepDirectory, ranked_rows

WITHOUT_VALIDATION = {
    "keep": "last",
    "early_stopping_patience": 0,
    "reduce_lr_patience": 0,
    # What has no effect then, as by default: else each run would warn of it.
    "monitor": TrainConfig.model_fields["monitor"].default,
    "reduce_lr_factor": TrainConfig.model_fields["reduce_lr_factor"].default,
}


# The winner as a job


def winner_toml(sweep: SweepDirectory) -> str:
    """The winner as a job file that trains and tests it as its trial was trained.

    Raises:
        InputError: if no trial is finished yet.
    """
    search, row = sweep.search(), winning_row(sweep)
    job = winning_job(search, row)
    finished = sum(each["status"] == "finished" for each in ranked_rows(sweep))
    objective = search.table.objective
    so_far = "" if sweep.finished() else ", as far as the sweep has come"
    said = (
        f"{search.table.tuner} search, sweep {sweep.folder.absolute()}",
        f"trial {row['trial']}, {objective} {float(row[objective]):.4f}, the best of {finished} "
        f"finished trials{so_far}",
        f"data: {data_of(sweep, search)}, validated on the last "
        f"{100 * job.data.validation_split:.3g} % of the training reviews",
    )
    return "".join(f"# {' '.join(line.split())}\n" for line in said) + f"\n{job.to_toml()}"


def winning_row(sweep: SweepDirectory) -> dict[str, str]:
    """The row of the leaderboard with the best trial.

    Raises:
        InputError: if no trial is finished yet.
    """
    for row in ranked_rows(sweep):
        if row["status"] == "finished":
            return row
    raise InputError(
        f"sweep {sweep.folder}: has no finished trial, and so no winner; go on with it by: "
        f"harness resume {shlex.quote(str(sweep.folder))}"
    )


def winning_job(search: SearchSpec, row: Mapping[str, str]) -> Job:
    """The job of a trial, which reads the test set at its end.

    Raises:
        InputError: if the row does not say how many epochs hyperband gave the trial.
    """
    values = {
        dimension.key: value
        for dimension in search.space
        if (value := value_of(dimension, row.get(dimension.key, ""))) is not None
    }
    # Of other tuners' trials the search knows the epochs; fewer of them were an early stop.
    epochs = _epochs(row, "epochs") if search.table.tuner == "hyperband" else None
    content = search.job_of(values, epochs=epochs).model_dump()
    content["name"] = f"{search.name[:95]}_best"
    content["data"]["test"] = True
    return check_job(content, Path(f"{content['name']}.toml"))


def retrained_job(search: SearchSpec, row: Mapping[str, str]) -> Job:
    """The winner on all training reviews: as many epochs as its best weights had, the last kept.

    Raises:
        InputError: if the row does not say how many epochs.
    """
    content = winning_job(search, row).model_dump()
    content["data"]["validation_split"] = 0.0
    content["train"] |= {**WITHOUT_VALIDATION, "epochs": _epochs(row, "kept_epoch")}
    return check_job(content, Path(f"{content['name']}.toml"))


def _epochs(row: Mapping[str, str], field: str) -> int:
    try:
        return math.ceil(float(row[field]))
    except (KeyError, ValueError):
        raise InputError(
            f"{LEADERBOARD}: trial {row['trial']} has {field} {row.get(field)!r}, should be a "
            "number of epochs; its run is gone: choose a trial by hand, in a job file of your own"
        ) from None


def data_of(sweep: SweepDirectory, search: SearchSpec) -> str:
    """How a line names the data of a sweep: the title, how much of them, and their checksum."""
    record = sweep.read_json("data.json")
    titles = (
        RunDirectory(path.parent).read_json(path.name).get("data")
        for path in sorted(sweep.folder.glob("trials/*/result.json"))
    )
    title = next((str(title) for title in titles if title), "")
    title = title or Path(search.job.data.source).name or "IMDB"
    if record.get("is_sample"):
        title = "SAMPLE of IMDB, not the full data"
    limit = f", {search.job.data.limit:,} reviews of each split" if search.job.data.limit else ""
    return f"{title}{limit} (checksum {str(record.get('checksum'))[:12]})"


# Trained anew


def retrain(
    sweep: SweepDirectory,
    seeds: Sequence[int],
    data: Path | None,
    workers: int | None,
    console: Console,
) -> None:
    """Train the winner on all training reviews with each seed, test it, and print the table.

    A seed that is finished is left as it is, an unfinished one goes on.

    Args:
        sweep: whose winner.
        seeds: of the runs.
        data: folder of the sweep's data, where they have moved.
        workers: runs at a time, by default as many as there is room for.
        screen: where it is said how far it is.

    Raises:
        InputError: if there is no winner, these are other data, the folder has another winner, or a
            later version of harness wrote the sweep.
        Interrupted: a signal came; the runs are saved and can go on.
        RunError: a run failed, and why.
    """
    sweep.check_format()
    search, row = sweep.search(), winning_row(sweep)
    job = retrained_job(search, row)
    runs = [RunDirectory(sweep.path("winner", job.name, f"seed{seed}")) for seed in seeds]
    for run, seed in zip(runs, seeds, strict=True):
        _check_same(run, job, seed)
    _announce(sweep, search, row, job, console)
    words = _words(sweep, job, sweep_data(sweep, search, data))
    tasks = [
        Task(
            f"seed{seed}",
            [*words, "--seed", str(seed), "--run-id", f"seed{seed}"],
            sweep.path("winner", f"seed{seed}.log"),
        )
        for seed, run in zip(seeds, runs, strict=True)
        if not run.finished()
    ]
    if tasks:
        allocation = SlurmEnvironment.from_environment()
        slots = allocate_slots(allocation, workers, at_most=len(tasks))
        again = f"{shlex.quote(str(sweep.folder))} --seeds {array_spec(seeds)}"
        with explain_interruption(f"checkpoints saved; go on by: harness sweep retrain {again}"):
            run_tasks(tasks, slots, allocation=allocation, console=console)
    print_runs([run.folder for run in runs])


def _check_same(run: RunDirectory, job: Job, seed: int) -> None:
    if not run.exists():
        return
    mine = {**job.model_dump(), "train": {**job.train.model_dump(), "seed": seed}}
    if run.job().model_dump() != mine:
        raise InputError(
            f"run {run.folder}: is of another winner, since the sweep went on; move "
            f"{run.folder.parent} away"
        )


def _announce(
    sweep: SweepDirectory, search: SearchSpec, row: Mapping[str, str], job: Job, console: Console
) -> None:
    if not sweep.finished():
        console.warning(f"sweep {sweep.folder} is unfinished: this is its best trial so far")
    if search.job.train.reduce_lr_patience:
        console.warning(
            "train.reduce_lr_patience needs validation reviews: the rate stays as it begins"
        )
    objective = search.table.objective
    console.info(
        f"trial {row['trial']}, {objective} {float(row[objective]):.4f}: {job.train.epochs} "
        f"epoch{'s' if job.train.epochs > 1 else ''} on all training reviews"
    )


def sweep_data(sweep: SweepDirectory, search: SearchSpec, data: Path | None) -> Path | None:
    """A folder with the very data of a sweep; none where its job itself says what they are.

    Raises:
        InputError: if the data found are others.
        RunError: if a copy of the sample is needed and can't be written.
    """
    dataset = sweep.dataset(search.job, data)
    if dataset.is_own:
        return None
    if dataset.folder and not dataset.is_sample:
        return dataset.folder.absolute()
    # A run would look for the full data first.
    folder = sweep.path("winner", "data")
    save_folder(dataset, folder)
    return folder.absolute()


def _words(sweep: SweepDirectory, job: Job, data: Path | None) -> list[str]:
    """The command of a run, its seed aside."""
    job_file = sweep.path("winner", f"{job.name}.toml").absolute()
    job_file.parent.mkdir(exist_ok=True)
    atomic_write(job_file, job.to_toml())
    words = child_args("train", str(job_file), "--runs", str(job_file.parent))
    return [*words, "--data", str(data)] if data else words
