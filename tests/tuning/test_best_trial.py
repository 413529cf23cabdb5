"""The best trial of a sweep, as a job and retrained."""

from pathlib import Path

import pytest

from harness.cli import tune as commands
from harness.data.dataset_folder import open_folder
from harness.data.sources import open_sample
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.slurm.pool import Slot, Task
from harness.tracking.run_dir import RunDirectory
from harness.tuning import best_trial
from harness.tuning.best_trial import best_job, best_trial_toml, retrained_job
from tests.conftest import Harness, wait_for
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

VALUES = {"model.pooling": "max", "model.units": 32, "train.learning_rate": 0.00123}


def test_the_best_trial_is_a_job(tmp_path: Path) -> None:
    """The job has the trial's values and a test; it trains all epochs even if the trial did not."""
    sweep = make_sweep(
        tmp_path / "s",
        RANDOM,
        trial(0, 0.7, values=VALUES | {"model.units": 16}),
        trial(1, 0.8, values=VALUES, epochs=4),
        trial(2, None, error="it broke"),
    )
    text = best_trial_toml(sweep)
    (tmp_path / "mine.toml").write_text(text)
    job = load_job(tmp_path / "mine.toml")
    assert job.name == "tune_lstm_best"
    assert (job.model.units, job.model.pooling, job.train.learning_rate) == (32, "max", 0.00123)
    assert (job.data.test, job.data.validation_split, job.train.epochs) == (True, 0.2, 6)
    assert job.train.early_stopping_patience == 2
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for words in (str(sweep.folder), "trial 1, val_accuracy 0.8000, the best of 2", "SAMPLE"):
        assert words in comments


def test_the_best_trial_of_hyperband_keeps_its_epochs(tmp_path: Path) -> None:
    """The trial stopped early. A key that the trial did not have keeps the value of the job."""
    values = {"model.architecture": "gru", "model.dropout": 0.3}
    sweep = make_sweep(tmp_path / "s", HYPERBAND, trial(0, 0.8, values=values, epochs=2, limit=3))
    (tmp_path / "mine.toml").write_text(best_trial_toml(sweep))
    job = load_job(tmp_path / "mine.toml")
    assert (job.train.epochs, job.model.dropout, job.model.second_units) == (3, 0.3, 0)


def test_a_sweep_without_a_finished_trial_is_refused(tmp_path: Path) -> None:
    """The line says how to continue the search."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, error="it broke"))
    with pytest.raises(InputError, match=r"no finished trial.*harness resume"):
        best_trial_toml(sweep)


@pytest.mark.parametrize(("schedule_epochs", "length"), [(0, 6), (9, 9)])
def test_a_retrained_trial_reads_all_reviews_up_to_its_best_epoch(
    tmp_path: Path, schedule_epochs: int, length: int
) -> None:
    """The learning-rate schedule is as long as in the trial."""
    schedule = f"schedule = 'cosine'\nwarmup_epochs = 2\nschedule_epochs = {schedule_epochs}\n"
    toml = RANDOM.replace("epochs = 6\n", f"epochs = 6\n{schedule}")
    best = trial(0, 0.8, values=VALUES, kept_epoch=2.5)
    job = retrained_job(make_sweep(tmp_path / "s", toml, best).search(), best)
    assert (job.data.validation_split, job.data.test) == (0, True)
    assert (job.train.epochs, job.train.keep, job.train.schedule_epochs) == (3, "last", length)
    assert job.train.early_stopping_patience == 0
    assert not [*job.without_effect()]


@pytest.mark.parametrize(
    ("optimizer", "values", "weights"),
    [("adam", {}, "balanced"), ("sgd", {"train.class_weights": ""}, "")],
)
def test_an_inactive_key_differs_from_an_empty_value(
    tmp_path: Path, optimizer: str, values: dict[str, str], weights: str
) -> None:
    """An inactive key keeps the value of the job; an empty value replaces it."""
    toml = RANDOM.replace("epochs = 6", "epochs = 6\nclass_weights = 'balanced'")
    toml += """
train.optimizer = ["adam", "sgd"]
train.class_weights = { values = ["", "balanced"], when = { train.optimizer = ["sgd"] } }
"""
    best = trial(0, 0.8, values={**VALUES, "train.optimizer": optimizer, **values})
    job = best_job(make_sweep(tmp_path / "s", toml, best).search(), best)
    assert job.train.class_weights == weights


def test_retraining_uses_the_data_and_the_devices_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a search of the sample, the runs do not read an IMDB that was fetched later.

    On CPUs the runs ignore GPUs; `--devices cpu:2` is refused, because a run uses one device. A
    warning says that the learning rate is now constant.
    """
    toml = RANDOM + "train.reduce_lr_patience = [0, 2]\n"
    values = {**VALUES, "train.reduce_lr_patience": 2}
    make_sweep(tmp_path / "s", toml, trial(0, 0.8, values=values))
    begun: list[tuple[list[Task], list[Slot]]] = []
    monkeypatch.setattr("harness.tracking.batch.run_tasks", lambda *each, **_: begun.append(each))
    monkeypatch.setattr(best_trial, "print_runs", lambda _: None)
    monkeypatch.setattr("harness.slurm.pool.visible_gpus", lambda: 1)
    monkeypatch.setattr("harness.slurm.pool.given_cpus", lambda _: 4)
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    commands.retrain(tmp_path / "s", seeds="1-4", workers=4)
    ((tasks, slots),) = begun
    assert [slot.gpu for slot in slots] == [None] * 4
    assert all("--devices=cpu" in task.args for task in tasks)
    (option,) = (arg for arg in tasks[0].args if arg.startswith("--data="))
    dataset = open_folder(Path(option.removeprefix("--data=")))
    assert (dataset.is_sample, dataset.checksum) == (True, open_sample().checksum)
    assert "train.reduce_lr_patience needs validation reviews" in capfd.readouterr().err
    with pytest.raises(InputError, match="--devices cpu:2: a run uses one device"):
        commands.retrain(tmp_path / "s", devices="cpu:2")


SMALL = """[data]
limit = 500
maxlen = 30
[train]
batch_size = 32
checkpoint_every_s = 0.2
log_every_steps = 3
"""


@pytest.mark.full
def test_a_killed_retraining_continues(harness: Harness) -> None:
    """If the command is killed, its run ends. A second command continues the run."""
    best = trial(0, 0.8, values=VALUES, kept_epoch=25.0)
    toml = RANDOM.replace("[train]\n", SMALL)
    sweep = make_sweep(harness.runs / "tune_lstm/s", toml, best, finished=True)
    run = RunDirectory(sweep.path("winner/tune_lstm_best/trial0-seed2"))
    words = ("sweep", "retrain", sweep.folder, "--seeds", "2")

    command = harness.start(*words)
    wait_for(lambda: any(run.folder.glob("checkpoints/step-*")))
    command.kill()
    command.communicate()
    wait_for(lambda: run.read_json("state.json")["phase"] == "interrupted")
    assert not run.finished()

    done = harness.succeed(*words)
    assert run.read_json("state.json")["restarts"] == 1
    result = run.result()
    assert (result["seed"], result["num_epochs"], result["num_training"]) == (2, 25, 500)
    assert result["is_sample"]
    assert "accuracy" in result
    assert "SAMPLE of IMDB" in done.stdout
