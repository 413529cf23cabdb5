"""Several jobs and seeds in one command: which runs train, under which names."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted
from harness.job.job_file import load_job
from harness.slurm.pool import Task
from harness.system.console import Console
from harness.tracking.batch import BatchRequest, jobs_of, train_batch
from tests.conftest import JOBS


def test_all_jobs_of_a_seed_come_before_those_of_the_next() -> None:
    """Without `--seeds` the job file sets the seed. A job that is given twice is refused."""
    files = [JOBS / "lstm.toml", JOBS / "gru.toml"]
    found = [(job.name, job.train.seed) for job in jobs_of(files, (), (2, 1))]
    assert found == [("lstm", 2), ("gru", 2), ("lstm", 1), ("gru", 1)]
    assert [job.train.seed for job in jobs_of(files, ["train.seed=9"], ())] == [9, 9]
    with pytest.raises(InputError, match="job lstm: is given 2 times"):
        jobs_of([files[0], files[0]], (), (1,))


def test_an_interrupted_batch_names_the_command_that_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job of `harness submit`, the command is `harness submit --resume` with the job's id.

    Plain sbatch records no seeds, so `submit --resume` would omit seeds that have not begun. The
    runs of `harness sweep retrain` are not named after the job, so this command must be repeated.
    """

    def begin(*_: object, **__: object) -> None:
        raise Interrupted("a signal")

    monkeypatch.setattr("harness.tracking.batch.run_tasks", begin)
    request = BatchRequest(jobs_of([JOBS / "lstm.toml"], (), (1, 2)), tmp_path, run_id="slurm-7")
    with pytest.raises(Interrupted, match="the same command with --run-id slurm-7"):
        train_batch(request, Console())
    for name in ("SLURM_JOB_ID", "HARNESS_BATCH_JOB"):
        monkeypatch.setenv(name, "7")
    with pytest.raises(Interrupted, match="the same command with --run-id slurm-7"):
        train_batch(request, Console())
    monkeypatch.setenv("HARNESS_SNAPSHOT", "1")
    with pytest.raises(Interrupted, match=f"harness submit --resume 7 --runs {tmp_path}$"):
        train_batch(request, Console())
    with pytest.raises(Interrupted, match=r"continue with harness sweep retrain s$"):
        train_batch(replace(request, again="harness sweep retrain s"), Console())


def test_finished_runs_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command trains only the unfinished runs, each from a copy of its job file."""
    begun: list[str] = []
    jobs = jobs_of([JOBS / "lstm.toml"], ["data.source='Größe'"], (1, 2))

    def begin(tasks: list[Task], *_: object, **__: object) -> None:
        begun.extend(task.name for task in tasks)
        for task in tasks:
            file = Path(task.args[task.args.index("train") + 1])
            assert file.is_relative_to(tmp_path)  # other nodes can read this folder
            assert load_job(file) == jobs[1]

    monkeypatch.setattr("harness.tracking.batch.run_tasks", begin)
    folders = [tmp_path / "lstm" / f"x-seed{seed}" for seed in (1, 2)]
    request = BatchRequest(jobs, tmp_path, run_id="x", devices="cpu", workers=1)
    for folder, job in zip(folders, jobs, strict=True):
        folder.mkdir(parents=True)
        (folder / "job.toml").write_text(job.to_toml())
        (folder / "result.json").write_text("{}")
        assert train_batch(request, Console()) == folders
        assert begun == ["lstm-x-seed2"]  # from the first round; the second begins no run
    assert list(tmp_path.rglob("lstm-x-*.toml")) == []


def test_batches_of_the_same_second_have_different_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If batches share a seed, the later batch's runs get other names; no empty folder remains."""
    begun: list[list[str]] = []

    def begin(tasks: list[Task], *_: object, **__: object) -> None:
        begun.append([task.name for task in tasks])
        if len(begun) == 1:  # the second batch begins while the first one trains
            train_batch(request((2, 3)), Console())

    def request(seeds: tuple[int, ...]) -> BatchRequest:
        jobs = jobs_of([JOBS / "lstm.toml"], (), seeds)
        return BatchRequest(jobs, tmp_path / "runs", devices="cpu")

    monkeypatch.setattr("harness.tracking.batch.run_tasks", begin)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    train_batch(request((1, 2)), Console())
    assert begun == [["lstm-now-seed1", "lstm-now-seed2"], ["lstm-now-2-seed2", "lstm-now-2-seed3"]]
    assert not (tmp_path / "runs/lstm").exists()
