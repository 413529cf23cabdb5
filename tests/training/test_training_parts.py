"""Optimizers, schedules, losses and callbacks in whole runs: exact over kills, on any replicas."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.job.keys import OPTIMIZERS
from tests.conftest import JOBS, PROJECT, Harness, results
from tests.training.kills import kill_at


def runs_of(folder: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """What `part_runs` prints of each case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.part_runs", folder, *cases],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each["case"]: each for each in found}


def check_case(found: dict[str, Any]) -> None:
    """A run that was ended twice has the bytes of a calm one, and one replica its losses."""
    assert found["ended"] == found["two"]
    check_equal(found["two"], found["one"])


def check_equal(found: dict[str, Any], other: dict[str, Any]) -> None:
    """The losses and rates of each epoch, to rounding."""
    for name in ("loss", "val_loss", "learning_rate"):
        one, two = ([line[name] for line in each["metrics"]] for each in (found, other))
        np.testing.assert_allclose(one, two, rtol=2e-5)


def rates(found: dict[str, Any]) -> list[float]:
    """The learning rate of each epoch."""
    return [line["learning_rate"] for line in found["two"]["metrics"]]


@pytest.mark.slow
def test_parts_are_exact_over_ends_and_the_same_on_replicas(tmp_path: Path) -> None:
    """The job own/parts.toml."""
    found = runs_of(tmp_path, "parts")["parts"]
    check_case(found)
    assert rates(found)[-1] == pytest.approx(0.002 * 0.05)
    lines = found["two"]["metrics"]
    assert found["two"]["kept_epoch"] == 1 + np.argmax([each["val_f1"] for each in lines])


@pytest.mark.full
def test_an_own_loss_and_optimizer_are_exact_over_ends_and_on_replicas(tmp_path: Path) -> None:
    """The job own/focal.toml, with a schedule."""
    check_case(runs_of(tmp_path, "own")["own"])


@pytest.mark.slow
def test_a_plateau_is_exact_over_ends_and_the_same_on_replicas(tmp_path: Path) -> None:
    """By ROC AUC, after a warm-up."""
    found = runs_of(tmp_path, "plateau")["plateau"]
    check_case(found)
    assert rates(found)[-1] < 0.02
    assert all("val_roc_auc" in line for line in found["two"]["metrics"])


@pytest.mark.slow
def test_steps_are_exact_over_ends_and_the_same_on_replicas(tmp_path: Path) -> None:
    """Rates that fall in steps."""
    found = runs_of(tmp_path, "steps")["steps"]
    check_case(found)
    np.testing.assert_allclose(rates(found)[:2], [5e-5, 5e-5], rtol=1e-5)


@pytest.mark.slow
def test_half_precision_is_exact_over_ends_and_the_same_on_replicas(tmp_path: Path) -> None:
    """In float16 with clipping, two steps at a time, and a cosine."""
    check_case(runs_of(tmp_path, "half")["half"])


@pytest.mark.slow
def test_every_optimizer_is_exact_and_the_same_on_replicas(tmp_path: Path) -> None:
    """Each of Keras's optimizers, with weight decay."""
    for each in runs_of(tmp_path, *OPTIMIZERS).values():
        check_case(each)


@pytest.mark.full
@pytest.mark.parametrize("name", ["parts", pytest.param("focal", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(harness: Harness, tmp_path: Path, name: str) -> None:
    """SIGKILL leaves no trace in a run of an example, whose functions' file is gone."""
    shutil.copytree(JOBS / "own", tmp_path / "own")
    for path in (tmp_path / "own", *(tmp_path / "own").iterdir()):
        path.chmod(0o755)
    job, words = str(tmp_path / "own" / name), ["--set", "train.epochs=6"]
    calm = harness.train(job, "calm", *words)
    assert calm.returncode == 0, calm.stderr
    kill_at(harness, job, 30, *words)
    shutil.rmtree(tmp_path / "own")
    last = harness.run("resume", harness.runs / name / "killed")
    assert last.returncode == 0, last.stderr
    assert results(harness.runs / name / "killed") == results(harness.runs / name / "calm")


@pytest.mark.full
def test_bad_training_parts_leave_nothing(harness: Harness) -> None:
    """Each is refused in one line before the run's folder is made."""
    sgd = ("--set", "train.optimizer=sgd")
    for words, says in (
        (("--set", "train.class_weights={ positve = 2 }"), "train.class_weights.positve"),
        ((*sgd, "--set", "train.optimizer_options={ momentum = 2 }"), "sgd refuses"),
    ):
        done = harness.train("lstm", "refused", *words)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr.splitlines()[-1]
        assert not harness.runs.exists()
