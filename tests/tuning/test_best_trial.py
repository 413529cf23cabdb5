"""The best trial of a sweep: as a job, and trained anew over seeds, whatever is killed."""

import subprocess
from pathlib import Path

import pytest

from harness.cli import sweep as commands
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.slurm.pool import Slot, Task
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from harness.tuning import best_trial
from harness.tuning.best_trial import (
    best_job,
    best_of,
    best_trial_toml,
    retrain,
    retrained_job,
)
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial
from harness.tuning.show import scored_trials
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness, wait_for
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

VALUES = {"model.pooling": "max", "model.units": 32, "train.learning_rate": 0.00123}


def best(sweep: SweepDirectory) -> Trial:
    return best_of(sweep, ranked(sweep.trials(), sweep.search()))


def test_the_best_trial_is_a_job_that_train_takes(tmp_path: Path) -> None:
    """All that the trial had, the test set read; an early stop is no other number of epochs."""
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
    said = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for words in (str(sweep.folder), "trial 1", "val_accuracy 0.8000", "best of 2", "SAMPLE"):
        assert words in said


def test_the_best_trial_is_printed_alike_in_every_locale(harness: Harness) -> None:
    """Into a file, from which a job is read as UTF-8."""
    toml = RANDOM.replace("[train]", "[data]\nsource = '/d/gr\u00fcn.csv'\n[train]")
    make_sweep(harness.folder / "s", toml, trial(0, 0.8, values=VALUES))
    for encoding in ("ascii", "latin-1"):
        harness.environment |= {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
        with (harness.folder / "mine.toml").open("wb") as file:
            done = subprocess.run(
                harness.command("sweep", "best", "s"),
                env=harness.environment,
                cwd=harness.folder,
                stdout=file,
                timeout=60,
            )
        assert done.returncode == 0
        assert load_job(harness.folder / "mine.toml").data.source == "/d/gr\u00fcn.csv"


def test_hyperbands_best_trial_has_the_epochs_of_its_trial(tmp_path: Path) -> None:
    """Not the most that hyperband would give; and a key that it did not have is as in the job."""
    sweep = make_sweep(
        tmp_path / "s",
        HYPERBAND,
        trial(0, 0.8, values={"model.architecture": "gru", "model.dropout": 0.3}, epochs=3),
    )
    (tmp_path / "mine.toml").write_text(best_trial_toml(sweep))
    job = load_job(tmp_path / "mine.toml")
    assert (job.train.epochs, job.model.dropout, job.model.second_units) == (3, 0.3, 0)


def test_without_a_finished_trial_none_is_the_best(tmp_path: Path) -> None:
    """One line that says how to go on; nothing is trained then."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, error="it broke"))
    with pytest.raises(InputError, match=r"no finished trial.*harness resume"):
        best_trial_toml(sweep)
    with pytest.raises(InputError, match="no finished trial"):
        retrain(sweep, (1,), data=None, workers=None, console=Console())
    assert not sweep.path("winner").exists()


def test_trained_anew_it_needs_no_validation_reviews(tmp_path: Path) -> None:
    """All reviews train; the epochs are those of the best weights, rounded up."""
    toml = RANDOM.replace("epochs = 6", "epochs = 6\nreduce_lr_patience = 1\nkeep = 'best'")
    sweep = make_sweep(tmp_path / "s", toml, trial(0, 0.8, values=VALUES, kept_epoch=2.5))
    job = retrained_job(sweep.search(), best(sweep))
    assert (job.data.validation_split, job.data.test) == (0, True)
    assert (job.train.epochs, job.train.keep) == (3, "last")
    assert (job.train.early_stopping_patience, job.train.reduce_lr_patience) == (0, 0)
    assert not [*job.without_effect()]


@pytest.mark.parametrize(("own", "length"), [("", 6), ("schedule_epochs = 9\n", 9)])
def test_trained_anew_its_rate_falls_as_it_fell_in_the_trial(
    tmp_path: Path, own: str, length: int
) -> None:
    """Not faster, because the best weights came early."""
    falling = f"epochs = 6\nschedule = 'cosine'\nwarmup_epochs = 2\n{own}"
    toml = RANDOM.replace("epochs = 6\n", falling)
    sweep = make_sweep(tmp_path / "s", toml, trial(0, 0.8, values=VALUES, kept_epoch=2))
    job = retrained_job(sweep.search(), best(sweep))
    assert (job.train.epochs, job.train.schedule_epochs) == (2, length)


def test_a_key_that_the_trial_did_not_have_is_not_its_empty_choice(tmp_path: Path) -> None:
    """Its cell is empty either way; the job's own value stays."""
    toml = RANDOM.replace("epochs = 6", "epochs = 6\nclass_weights = 'balanced'")
    toml += """
train.optimizer = ["adam", "sgd"]
train.class_weights = { values = ["", "balanced"], when = { train.optimizer = ["sgd"] } }
"""
    for optimizer, own, weights in (
        ("adam", {}, "balanced"),
        ("sgd", {"train.class_weights": ""}, ""),
    ):
        values = {**VALUES, "train.optimizer": optimizer, **own}
        sweep = make_sweep(tmp_path / optimizer, toml, trial(0, 0.8, values=values))
        search, row = sweep.search(), best(sweep)
        assert best_job(search, row).train.class_weights == weights
        scored = scored_trials([row], search)
        assert scored["train.class_weights"].notna().tolist() == [optimizer == "sgd"]


@pytest.mark.parametrize("seeds", [(1, 2), (2,)])
def test_another_best_trial_is_not_mixed_with_the_first(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    """A sweep that went on to a better trial does not go on beside the runs of the old one."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, 0.8, values=VALUES))
    job = retrained_job(sweep.search(), best(sweep))
    run = RunDirectory(sweep.path("winner", job.name, "retrained-seed1"))
    run.take_lease()
    other = job.model_copy(update={"train": job.train.model_copy(update={"epochs": 99})})
    run.write("job.toml", other.to_toml())
    with pytest.raises(InputError, match=r"earlier best trial.*move .*winner/tune_lstm_best away"):
        retrain(sweep, seeds, data=None, workers=None, console=Console())


@pytest.mark.parametrize(("patience", "warns"), [(0, False), (2, True)])
def test_the_warning_is_of_the_best_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, warns: bool
) -> None:
    """Its learning rate stays constant, or never fell; what the search began with is no matter."""
    toml = RANDOM.replace("epochs = 6", f"epochs = 6\nreduce_lr_patience = {2 - patience}")
    toml += "train.reduce_lr_patience = [0, 2]\n"
    values = {**VALUES, "train.reduce_lr_patience": patience}
    sweep = make_sweep(tmp_path / "s", toml, trial(0, 0.8, values=values))
    said: list[str] = []
    console = Console()
    monkeypatch.setattr(console, "warning", said.append)
    monkeypatch.setattr("harness.tracking.batch.run_tasks", lambda *_, **__: None)
    monkeypatch.setattr(best_trial, "print_runs", lambda _: None)
    retrain(sweep, (1,), data=None, workers=1, console=console)
    assert any("train.reduce_lr_patience needs" in line for line in said) == warns


def test_the_site_says_on_which_devices_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for other commands: on CPUs the GPUs set no limit, and one run takes one device."""
    make_sweep(tmp_path / "s", RANDOM, trial(0, 0.8, values=VALUES))
    begun: list[Slot] = []

    def begin(tasks: list[Task], slots: list[Slot], **_: object) -> None:
        assert all("--devices=cpu" in task.args for task in tasks)
        begun.extend(slots)

    monkeypatch.setattr("harness.tracking.batch.run_tasks", begin)
    monkeypatch.setattr(best_trial, "print_runs", lambda _: None)
    monkeypatch.setattr("harness.slurm.pool.visible_gpus", lambda: 1)
    monkeypatch.setattr("harness.slurm.pool.given_cpus", lambda _: 4)
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    commands.retrain(tmp_path / "s", seeds="1-4", workers=4)
    assert [slot.gpu for slot in begun] == [None] * 4
    with pytest.raises(InputError, match="--devices cpu:2: a run uses one device"):
        commands.retrain(tmp_path / "s", devices="cpu:2")


# Children


SHRUNK_SEARCH = """
name = "tune_lstm"
[model]
architecture = "lstm"
units = 8
[data]
limit = 500
maxlen = 30
[train]
epochs = 25
batch_size = 32
checkpoint_every_s = 0.2
log_every_steps = 3
[search]
trials = 1
[search.space]
model.pooling = ["last", "max"]
"""


@pytest.mark.full
def test_killed_in_between_it_goes_on_and_prints_the_table(harness: Harness) -> None:
    """No process outlives the command; told again it goes on, and leaves alone what is done.

    The data are the sweep's packaged sample, whatever HARNESS_DATA names by then.
    """
    harness.environment["HARNESS_DATA"] = str(harness.folder / "elsewhere")
    sweep = make_sweep(
        harness.runs / "tune_lstm" / "s",
        SHRUNK_SEARCH,
        trial(0, 0.8, values={"model.pooling": "max"}, kept_epoch=25.0),
        finished=True,
    )
    folder = sweep.path("winner", "tune_lstm_best")
    runs = [RunDirectory(folder / f"retrained-seed{seed}") for seed in (1, 2)]
    words = ("sweep", "retrain", sweep.folder, "--seeds", "1-2", "--workers", "2")

    command = harness.start(*words)
    wait_for(lambda: all([*run.folder.glob("checkpoints/step-*")] for run in runs))
    command.kill()
    command.communicate()
    wait_for(lambda: all(run.read_json("state.json")["phase"] == "interrupted" for run in runs))
    assert not any(run.finished() for run in runs)

    done = harness.run(*words)
    assert done.returncode == 0, done.stderr
    assert [run.read_json("state.json")["restarts"] for run in runs] == [1, 1]
    results = [run.result() for run in runs]
    assert [(r["seed"], r["num_epochs"], r["num_training"]) for r in results] == [
        *((1, 25, 500), (2, 25, 500))
    ]
    assert all(result["is_sample"] and "accuracy" in result for result in results)
    assert "SAMPLE of IMDB" in done.stdout
    assert "tune_lstm_best" in done.stdout

    def traces() -> list[object]:
        logs = [path.read_text() for path in sorted(sweep.path("winner", "logs").iterdir())]
        assert len(logs) == 2
        return [*logs, *(run.read_json("state.json") for run in runs)]

    before = traces()
    again = harness.run(*words)
    assert again.returncode == 0
    assert "tune_lstm_best" in again.stdout
    assert traces() == before
