"""`doctor --probe`: how fast a job is here, and what its runs leave for later ones."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.checks import probe, probe_child
from harness.compute import strategy
from harness.compute.execution_plan import ExecutionPlan
from harness.errors import RunError
from harness.job import Job
from harness.system import cuda
from tests.conftest import JOBS, Harness
from tests.data.made_up_texts import write_csv


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        (10, "00:05:00"),
        (145, "00:10:00"),
        (3600, "01:20:00"),
        (24 * 3600, "1-06:05:00"),
    ],
)
def test_the_time_limit_has_a_margin_and_is_as_sbatch_wants_it(seconds: float, limit: str) -> None:
    """A quarter more, two minutes for the warning, rounded up to five minutes."""
    assert probe.time_limit(seconds) == limit


def test_a_kernel_that_goes_away_meanwhile_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other jobs of the user write into CUDA's cache, and trim it."""
    (tmp_path / "kernel").write_bytes(b"x" * 1000)
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert probe.folder_gb(tmp_path) == 1e-6


def test_the_probe_says_what_it_put_into_cuda_s_cache(tmp_path: Path) -> None:
    """Kernels that the driver compiled, or none where all were there; and where nothing is kept."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kernel").write_bytes(b"x" * 30_000_000)
    assert probe.folder_gb(tmp_path) == 0.03
    told = probe.describe_kernel_cache(tmp_path, 0.01)
    assert told == (
        "CUDA's cache of kernels got 0.02 GB that the driver compiled for this card: "
        f"0.03 GB in {tmp_path}"
    )
    assert "had all that the five jobs need: 0.03 GB" in probe.describe_kernel_cache(tmp_path, 0.03)
    assert cuda.kernel_cache({"CUDA_CACHE_PATH": "/mine"}) == Path("/mine")
    assert cuda.kernel_cache({"CUDA_CACHE_DISABLE": "1", "CUDA_CACHE_PATH": "/mine"}) is None
    assert "unset CUDA_CACHE_DISABLE" in probe.describe_kernel_cache(None, 0.0)


@pytest.mark.parametrize(
    ("devices", "gpus", "limit_s"),
    [
        ("cpu", [], probe.START_S),
        ("gpu:1", [], probe.FIRST_USE_S),
        (None, ["A"], probe.FIRST_USE_S),
    ],
)
def test_the_probe_waits_for_a_card_s_first_use(
    monkeypatch: pytest.MonkeyPatch, devices: str | None, gpus: list[str], limit_s: float
) -> None:
    """A driver may compile for half an hour; a process on a CPU that long hangs."""
    limits: list[float] = []

    def ask(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if request["do"] == "devices":
            return {"gpus": gpus}
        limits.append(timeout_s - request["seconds"])
        raise RunError("enough")

    monkeypatch.setattr(probe, "ask_child", ask)
    monkeypatch.setattr(
        probe, "time_small_run", lambda devices, data, limit_s: limits.append(limit_s)
    )
    estimates = probe.probe(0.1, devices, None)
    assert {each.error.endswith("enough") for each in estimates} == {True}
    assert limits == pytest.approx([limit_s] * 6)


def test_an_estimate_counts_every_step_and_evaluation() -> None:
    """Start, steps, evaluations and the rest are added up, and two devices compared with one."""
    measured: dict[str, Any] = {
        "devices": "1 x A100",
        "data": "IMDB",
        "is_sample": False,
        "batch_size": 32,
        "first_step_s": 4.0,
        "step_s": 0.02,
        "evaluation_batch_s": 0.5,
        "measured_s": 10.0,
        "peak_memory_gb": 1.0,
        "num_steps": 1000,
        "num_evaluation_batches": 30,
    }
    told = probe.estimate("lstm", measured, {**measured, "step_s": 0.025}, rest_s=6.0)
    assert (told.total_s, told.reviews_per_s) == (4 + 20 + 15 + 6, 1600)
    assert told.speed_of_two == 0.8


def test_the_measured_step_is_that_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its classes, threads and numerics."""
    texts = [(f"film number {i}", "abc"[i % 3]) for i in range(60)]
    source = write_csv(tmp_path / "texts.csv", texts)
    plan = ExecutionPlan(xla=False, threads=3, parts=1, why="by rule")
    asked: dict[str, Any] = {}

    def build(job: Job, _: object, plan: ExecutionPlan, **given: Any) -> None:
        asked.update(given, plan=plan)
        raise RunError("enough")

    monkeypatch.setattr(probe_child, "plan_of", lambda *_: plan)
    monkeypatch.setattr(strategy, "import_tensorflow", lambda *args: asked.update(args=args[1:]))
    monkeypatch.setattr("harness.compute.device_check.checked_strategy", lambda *_: None)
    monkeypatch.setattr("harness.compute.train_step.TrainStep", build)
    classes = ("train.class_weights={a=1.0,b=2.0,c=3.0}", f"data.source='{source}'")
    with pytest.raises(RunError, match="enough"):
        probe_child._speed(
            str(JOBS / "lstm.toml"),
            "cpu",
            None,
            seconds=0,
            overrides=[*classes, "train.tf32=true"],
        )
    assert asked["args"] == (3, strategy.Numerics(tf32=True))
    assert (asked["plan"], asked["num_outputs"]) == (plan, 3)
    assert asked["facts"].class_weights == (1.0, 2.0, 3.0)


@pytest.mark.full
def test_the_probe_measures_and_names_the_job_that_it_could_not(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real children measure a shrunk job; the steps are those that the job would take."""
    for name in set(os.environ) - set(harness.environment):
        monkeypatch.delenv(name)
    for name, value in harness.environment.items():
        monkeypatch.setenv(name, value)
    text = (JOBS / "lstm.toml").read_text().replace("limit = 0", "limit = 500")
    text = text.replace('xla = "auto"', 'xla = "off"')  # to compile takes longer than the steps
    (harness.folder / "lstm.toml").write_text(text.replace("maxlen = 200", "maxlen = 30"))
    monkeypatch.setattr(probe, "JOBS", harness.folder)
    monkeypatch.setattr(probe, "ARCHITECTURES", ("rnn", "lstm"))
    before = "tensorflow" in sys.modules  # another test may have imported it
    rnn, lstm = probe.probe(0.02, "cpu", None)
    assert "no such file" in rnn.error
    assert lstm.error == ""
    assert (lstm.devices, lstm.is_sample, lstm.speed_of_two) == ("1 x cpu", True, None)
    assert lstm.reviews_per_s > 0
    assert lstm.total_s > lstm.first_step_s > 0
    request = {"do": "speed", "job": str(harness.folder / "lstm.toml"), "data": None}
    measured = probe.ask_child({**request, "devices": "cpu:2", "seconds": 0.1}, timeout_s=100)
    # 450 of 500 reviews train in batches of 32, 7 times; 50 validate as often, and 500 test.
    assert (measured["num_steps"], measured["num_evaluation_batches"]) == (7 * 15, 7 + 1)
    assert measured["devices"] == "2 x cpu"
    assert ("tensorflow" in sys.modules) == before
