"""`harness doctor --probe` estimates how long a job takes on this machine."""

import json
import os
from pathlib import Path

import pytest

from harness.doctor import probe
from harness.errors import InputError, RunError
from harness.job.job_file import load_job
from tests.conftest import JOBS, Harness


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [(10, "00:05:00"), (145, "00:10:00"), (3600, "01:20:00"), (24 * 3600, "1-06:05:00")],
)
def test_the_time_limit_has_a_margin(seconds: float, limit: str) -> None:
    """The limit adds a quarter and 2 min for Slurm's warning; it is a multiple of 5 min."""
    assert probe.time_limit(seconds) == limit


def test_an_estimate_counts_every_step_and_evaluation(tmp_path: Path) -> None:
    """The estimate adds the short run's start and end to the job's epochs, validations and test."""
    settings = ["train.epochs=4", "data.validation_split=0.2", "train.batch_size=20"]
    job = load_job(JOBS / "lstm.toml", settings)
    start = {"devices": [{"device": "gpu:0", "name": "A100"}] * 2, "gpu_gb": 1.5}
    for name, content in {
        "result.json": {"num_validation": 1000, "first_step_s": 4.0, "data": "IMDB"},
        "provenance.json": {"starts": [start]},
        "timings.jsonl": {"epoch_s": 2.0, "validation_s": 0.5, "reviews_per_s": 2000.0},
        "state.json": {"device": {"memory_gb": 1.0}},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    made = probe.estimate(job, tmp_path, wall_s=12.5)
    # 20,000 reviews train in 10 s, 5,000 validate in 2.5 s, 25,000 test in 12.5 s.
    assert made.total_s == 12.5 - 2.5 + 4 * (10 + 2.5) + 12.5
    assert (made.devices, made.step_s) == ("2 x A100", 0.01)
    assert (made.memory_gb, made.gpu_gb) == (1.0, 1.5)


def test_a_child_that_takes_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how the child ended."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "endless.py").write_text("while True: pass\n")
    with pytest.raises(RunError, match=r"a short run took over 0 s and was killed"):
        probe._run_module("endless", timeout_s=0.1, what="a short run")


@pytest.mark.full
def test_the_probe_trains_each_job(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """One real job is trained; a missing data folder is refused."""
    for name in set(os.environ) - set(harness.environment):
        monkeypatch.delenv(name)
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    text = (JOBS / "lstm.toml").read_text().replace('xla = "auto"', 'xla = "off"')
    (harness.folder / "lstm.toml").write_text(text.replace("maxlen = 200", "maxlen = 30"))
    monkeypatch.setattr(probe, "JOBS", harness.folder)
    monkeypatch.setattr(probe, "ARCHITECTURES", ("lstm",))
    monkeypatch.setattr(probe, "SHORT", {"cpu": 200})
    (lstm,) = probe.probe("cpu", None)
    assert (lstm.error, lstm.is_well) == ("", True)
    assert (lstm.job, lstm.devices) == ("lstm", "1 x cpu")
    assert min(lstm.reviews_per_s, lstm.memory_gb) > 0
    assert lstm.total_s > lstm.first_step_s > 0
    with pytest.raises(InputError, match="nowhere"):
        next(probe.probe("cpu", Path("nowhere")))


def test_a_probe_without_an_estimate_fails(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of each job is printed."""
    broken = [probe.Estimate("lstm", error="it broke"), probe.Estimate("gru", error="it too")]
    monkeypatch.setattr(probe, "probe", lambda *_: iter(broken))
    done = harness.run_here("doctor", "--probe")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:] == ["lstm: it broke", "gru: it too"]
