"""Writes a sweep's best trial as a job file, and retrains it on all training reviews.

`<sweep>/winner/` contains the retrained runs `<job>/trial<n>-seed<N>/`, their `logs/` and, in
`.submissions/`, temporary job files.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from harness.compute.execution_plan import reckoned_gb
from harness.data.dataset_folder import save_folder
from harness.data.vocabulary import vectors_checksum
from harness.errors import InputError
from harness.job.job_file import check_job, put_value
from harness.job.keys import DECAYS, FACTS, KEYS, Job
from harness.job.search import SearchSpec
from harness.report.summary import print_runs
from harness.slurm.resources import array_spec
from harness.system.console import Console, quoted
from harness.system.lenient_json import table
from harness.tracking.batch import BatchRequest, train_batch
from harness.tracking.provenance import SAMPLE_FOLDER
from harness.tracking.run_dir import RECORD
from harness.training.launch import dataset_of
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

# The best trial as a job


def best_trial_toml(sweep: SweepDirectory) -> str:
    """Return the text of a job that trains the best trial as in the search, and tests the model.

    Raises:
        InputError: if no trial has finished yet.
    """
    search = sweep.search()
    trials = ranked(sweep.trials(), search)
    best = best_of(sweep, trials)
    finished = sum(each.status == "finished" for each in trials)
    comments = (
        f"{search.table.tuner} search, sweep {sweep.folder.absolute()}",
        f"{_scored(best, search)}, the best of {finished} finished trials",
        f"data: {data_of(sweep, search)}",
    )
    lines = "".join(f"# {' '.join(line.split())}\n" for line in comments)
    return f"{lines}\n{best_job(search, best).to_toml()}"


def _scored(trial: Trial, search: SearchSpec) -> str:
    objective = search.table.objective
    return f"trial {trial.n}, {objective} {trial.scores[objective]:.4f}"


def best_of(sweep: SweepDirectory, trials: Sequence[Trial]) -> Trial:
    """Return the best of a sweep's ranked trials.

    Raises:
        InputError: if no trial has finished yet.
    """
    if trials and trials[0].status == "finished":
        return trials[0]
    raise InputError(
        f"sweep {sweep.folder} has no finished trial; to continue the sweep, run: "
        f"harness resume {quoted(sweep.folder)}"
    )


def best_job(search: SearchSpec, trial: Trial) -> Job:
    """Return a trial's job with a new name and `data.test = true`."""
    # Hyperband and asha choose a trial's number of epochs, `limit`. With other tuners `limit` is
    # None, and the job keeps the search's `train.epochs`. A trial may have stopped early.
    content = search.job_of(trial.values, epochs=trial.limit).model_dump()
    content["name"] = search.best_name
    content["data"]["test"] = True
    return check_job(content, Path(f"{content['name']}.toml"))


def retrained_job(search: SearchSpec, trial: Trial) -> Job:
    """Return a job that trains a trial's settings on all training reviews.

    The job trains for as many epochs as the trial needed to reach its best weights.
    """
    content = best_job(search, trial).model_dump()
    content["data"]["validation_split"] = 0.0
    train = content["train"]
    if train["schedule"] in DECAYS:  # the learning rate decays as fast as in the trial
        train["schedule_epochs"] = train["schedule_epochs"] or train["epochs"]
    train["epochs"] = math.ceil(trial.kept_epoch or train["epochs"])
    for key, facts in FACTS.items():
        if facts.unvalidated is not None:
            put_value(content, key, facts.unvalidated)
    job = check_job(content, Path(f"{content['name']}.toml"))
    for key, _ in job.unused_keys():  # otherwise every run would warn about these keys
        put_value(content, key, KEYS[key].default)
    return check_job(content, Path(f"{content['name']}.toml"))


def data_of(sweep: SweepDirectory, search: SearchSpec) -> str:
    """Describe a sweep's data: title, number of reviews if `data.limit` is set, and checksum."""
    record = table(sweep.read_json(RECORD), "dataset")
    title = Path(search.job.data.source).name or "IMDB"
    if record.get("is_sample"):
        title = "SAMPLE of IMDB, not the full data"
    limit = f", {search.job.data.limit:,} reviews of each split" if search.job.data.limit else ""
    return f"{title}{limit} (checksum {str(record.get('checksum'))[:12]})"


# Retraining


def retrain(
    sweep: SweepDirectory,
    seeds: Sequence[int],
    *,
    data: Path | None,
    workers: int | None,
    console: Console,
    devices: str | None = None,
) -> None:
    """Train the best trial on all training reviews, once per seed, and print the test scores.

    If runs of the same trial already exist, unfinished ones continue and finished ones stay
    unchanged. If an earlier call retrained another trial, the runs of that trial stay unchanged.

    Args:
        sweep: the sweep whose best trial is trained.
        seeds: the seeds, one for each run.
        data: the new folder of the sweep's data; None if the data were not moved.
        workers: the number of runs at a time; by default as many as devices and memory allow.
        console: the console for messages.
        devices: `gpu` to train each run on one GPU, `cpu` to use no GPU.

    Raises:
        InputError: if no trial has finished, the data or the word vectors have changed, or another
            version of harness wrote the sweep.
        Interrupted: after a signal; the runs have saved checkpoints and can continue.
        RunError: if a run failed.
    """
    search = sweep.search()
    best = best_of(sweep, ranked(sweep.trials(), search))
    job = retrained_job(search, best)
    if not sweep.finished():
        console.warning(
            f"sweep {sweep.folder} is unfinished: only its best trial so far is retrained"
        )
    if best_job(search, best).train.reduce_lr_patience:
        console.warning(
            "train.reduce_lr_patience needs validation reviews; the retrained runs have none, so "
            "this key has no effect"
        )
    console.info(
        f"retraining {_scored(best, search)}, on all training reviews for {job.train.epochs} epochs"
    )
    dataset = dataset_of(sweep, search.job, data)
    if search.job.model.embeddings:
        path = Path(search.job.model.embeddings)
        sweep.check_vectors(path, vectors_checksum(path))
    # A job on the user's own texts needs no `--data`, because its runs read `data.source`.
    folder = dataset.folder.absolute() if dataset.folder and not dataset.is_own else None
    if dataset.is_sample and not folder:  # without `--data`, the runs would use a fetched IMDB
        folder = sweep.path("winner", SAMPLE_FOLDER).absolute()
        save_folder(dataset, folder)
    request = BatchRequest(
        jobs=tuple(
            job.model_copy(update={"train": job.train.model_copy(update={"seed": seed})})
            for seed in seeds
        ),
        runs=sweep.path("winner"),
        run_id=f"trial{best.n}",
        train_args=(
            *([f"--data={folder}"] if folder else []),
            *([f"--devices={devices}"] if devices else []),
        ),
        devices=devices,
        workers=workers,
        host_gb=(reckoned_gb(job, devices),),
        again=(
            f"harness sweep retrain {quoted(sweep.folder)} --seeds {array_spec(seeds)}"
            + (f" --data {quoted(data)}" if data else "")
        ),
    )
    print_runs(train_batch(request, console))
