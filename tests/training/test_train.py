"""Whole runs: signals, disks, settings."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import JOBS, SHRUNK, Harness
from tests.training.kills import killed_run, wait_for_step


@pytest.mark.full
def test_a_signal_saves_and_ends_with_75(harness: Harness) -> None:
    """A line says how to resume. `tests/system/test_processes.py` tests the other signals."""
    words = harness.train_words("lstm", "stopped", "--set", "train.checkpoint_every_s=86400")
    process = harness.start(*words, "--set", "train.epochs=200")
    run = harness.runs / "lstm" / "stopped"
    wait_for_step(process, run, 13)
    process.send_signal(signal.SIGINT)
    said, warned = process.communicate(timeout=60)
    assert process.returncode == 75, warned
    assert f"harness resume {run}" in warned
    assert "Traceback" not in warned
    assert json.loads((run / "state.json").read_text())["phase"] == "interrupted"
    assert "epoch 1/200" in said


@pytest.mark.full
def test_a_run_without_exactness_warns_and_records_it(harness: Harness) -> None:
    """The settings are `train.deterministic` and `train.tf32`."""
    settings = ["train.deterministic=false", "train.tf32=true", "train.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = harness.succeed(*harness.train_words("lstm", "loose", *words))
    assert "train.deterministic = false: two runs of this job" in done.stderr
    record = json.loads((harness.runs / "lstm" / "loose" / "provenance.json").read_text())
    start = record["starts"][0]
    assert (start["tf32"], start["deterministic"], start["cublas_workspace"]) == (True, False, None)


@pytest.mark.full
def test_a_finished_run_stays_as_it_is(finished: tuple[Harness, Path]) -> None:
    """Another start reports that the run has finished, changes nothing and exits with 0."""
    harness, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for words in (["resume", run], harness.train_words("bilstm", "calm")):
        done = harness.run_here(*words)
        assert done.returncode == 0
        assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(harness: Harness) -> None:
    """A run with NaN among its weights stops at the next step, and has no result. A warning names
    its broken checkpoint.
    """
    run = killed_run(harness)
    *paths, newest = sorted(run.glob("checkpoints/*.npz"))
    newest.write_bytes(newest.read_bytes()[:-5000])
    for path in paths:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["model/0"][:] = np.nan
        np.savez(path, **arrays)
    step = int(paths[-1].stem.partition("-")[2])
    done = harness.run("resume", run)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert f"warning: checkpoint {newest.name} is broken (" in warning
    assert f"the loss is not finite at step {step + 1} " in error
    assert not (run / "result.json").exists()
    state = json.loads((run / "state.json").read_text())
    assert (state["phase"], "not finite" in state["error"]) == ("failed", True)


@pytest.mark.full
def test_strict_refuses_a_run_of_another_machine(harness: Harness) -> None:
    """`tests/tracking/test_provenance.py` tests the other changes."""
    run = killed_run(harness)
    record = json.loads((run / "provenance.json").read_text())
    record["starts"][0]["processor"] = "Intel 8086"
    (run / "provenance.json").write_text(json.dumps(record))
    done = harness.run("resume", run, "--strict")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the processor was Intel 8086 and is now" in done.stderr


@pytest.mark.full
def test_a_full_disk_ends_the_run_in_one_line(harness: Harness) -> None:
    """No file is half-written, and the exit code is 1."""
    words = harness.command(*harness.train_words("lstm", "full"))
    # The kernel refuses files over 200 KB, and a checkpoint of this run has 3 MB.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *words]
    done = subprocess.run(
        limited, env=harness.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    run = harness.runs / "lstm" / "full"
    assert not list(run.rglob("*.tmp*"))
    assert not list(run.glob("checkpoints/*"))
    assert not (run / "result.json").exists()


@pytest.mark.full
def test_a_folder_that_can_not_be_made_ends_in_one_line(harness: Harness) -> None:
    """The exit code is 2."""
    line = harness.refuse("train", JOBS / "lstm.toml", *SHRUNK, "--runs", "/dev/null/runs")
    assert "/dev/null/runs" in line
