"""Plans: the fastest measured one is taken, a run keeps its own, and the record says why."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.checks.probe import ARCHITECTURES
from harness.compute import execution_plan as plans
from harness.compute.execution_plan import (
    choose,
    measured_ms,
    read_measured,
    save_measured,
    save_measured_ms,
    shape,
)
from harness.files.atomic_file import atomic_write
from harness.job_file import load_job
from harness.system.host import processor
from tests.conftest import JOBS, Harness

RNN, LSTM = load_job(JOBS / "rnn.toml"), load_job(JOBS / "lstm.toml")
TIMES = {"loop 1": 69.0, "loop 2": 62.0, "xla 1": 80.0, "xla 2": 55.0, "xla 8": 9.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_fastest_measured_plan_within_the_cpus_is_taken() -> None:
    """Of two CPUs' plans the fastest, of one's the other; the reason holds the times."""
    best = choose(LSTM, "cpu", 2, device="a CPU", times_ms=TIMES)
    assert (best.xla, best.threads) == (True, 2)
    assert best.why == (
        "train.xla = auto, the fastest measured on a CPU "
        "(ms a step: xla 2: 55, loop 2: 62, loop 1: 69, xla 1: 80)"
    )
    one = choose(LSTM, "cpu", 1, times_ms=TIMES)
    assert (one.xla, one.threads) == (False, 1)


@pytest.mark.parametrize(("setting", "xla"), [("on", True), ("off", False)])
def test_what_the_job_says_comes_first(setting: str, xla: bool) -> None:
    """Measurements choose the threads alone then."""
    job = load_job(JOBS / "lstm.toml", [f"train.xla={setting}"])
    assert choose(job, "cpu", 2, times_ms=TIMES).xla is xla
    plan = choose(job, "cpu", 4)
    assert (plan.xla, plan.threads, plan.why) == (xla, 4, f"train.xla = {setting}")


def test_a_job_may_ask_for_the_block_kernel() -> None:
    """Of a CPU, in two parts, whatever was measured; a resumed run keeps what it began with."""
    job = load_job(JOBS / "lstm.toml", ["train.block_lstm=true"])
    plan = choose(job, "cpu", 4, times_ms=TIMES)
    assert (plan.block, plan.xla, plan.threads, plan.parts) == (True, False, 4, 2)
    assert plan.why == "train.block_lstm = true"
    for settings in (
        ["train.precision=float64"],
        ["train.xla=on"],
        ["model.recurrent=false", "model.pooling=max"],
    ):
        other = load_job(JOBS / "lstm.toml", ["train.block_lstm=true", *settings])
        assert not choose(other, "cpu", 2, times_ms=TIMES).block
    own = job.model_copy(update={"model": job.model.model_copy(update={"architecture": "a.py:f"})})
    for other in (load_job(JOBS / "gru.toml", ["train.block_lstm=true"]), own):
        assert not choose(other, "cpu", 2).block
    assert not choose(job, "gpu", 2).block
    begun = {"xla": False, "threads": 3, "parts": 2, "block": True}
    resumed = choose(LSTM, "cpu", 2, begun=begun)
    assert (resumed.block, resumed.parts, resumed.threads) == (True, 2, 3)
    assert not choose(job, "cpu", 2, begun={"xla": False, "threads": 2}).block


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_a_measurement_small_operations_are_compiled(name: str) -> None:
    """The steady jobs' batches of 32; the notebook's of 128 in halves, if there is one layer."""
    plan = choose(load_job(JOBS / f"{name}.toml"), "cpu", 3)
    assert (plan.xla, plan.threads, plan.parts) == (True, 3, 1)
    plan = choose(load_job(JOBS / "notebook" / f"{name}.toml"), "cpu", 3)
    halves = name in ("rnn", "lstm", "gru")
    assert (plan.xla, plan.parts) == (halves, 2 if halves else 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lstm", ["model.units=192"]),
        ("rnn", ["model.units=96", "train.batch_size=128"]),
        ("gru", ["model.pooling=max", "data.maxlen=600"]),
        ("lstm", ["model.pooling=max", "model.recurrent=false"]),
        ("stacked_lstm", ["data.maxlen=400"]),
        ("stacked_lstm", ["model.second_units=128"]),
        ("rnn", ["data.bucket=true"]),
    ],
)
def test_large_operations_and_kept_outputs_are_left_to_the_loop(
    name: str, settings: list[str]
) -> None:
    """Where XLA was slower when measured, or would be near it."""
    job = load_job(JOBS / f"{name}.toml", settings)
    assert choose(job, "cpu", 1).xla is False


def test_on_a_gpu_what_cudnn_can_not_take_is_compiled() -> None:
    """The notebook's GRU, under several devices too; the others are left to cuDNN."""
    gru = load_job(JOBS / "notebook" / "gru.toml")
    after = load_job(JOBS / "notebook" / "gru.toml", ["model.reset_after=true"])
    jobs = (RNN, gru, after, LSTM)
    assert [choose(job, "gpu", 3).xla for job in jobs] == [
        True,
        True,
        False,
        False,
    ]
    assert choose(gru, "gpu", 3).parts == 1


def test_a_run_that_goes_on_keeps_its_plan() -> None:
    """Whatever was measured since, its bytes stay."""
    assert choose(LSTM, "cpu", 2, begun={"xla": False}, times_ms=TIMES).xla is False
    assert choose(RNN, "cpu", 2, begun={"xla": False}).xla is False
    assert choose(RNN, "cpu", 2, begun={"xla": True, "parts": 3}).parts == 3
    earlier = choose(RNN, "cpu", 2, begun={"xla": True})  # of an earlier version
    assert (earlier.parts, earlier.fused) == (1, False)
    assert choose(RNN, "cpu", 2, begun={"xla": True, "fused": True}).fused


@pytest.mark.parametrize(
    ("recorded", "threads"), [(1, 1), (4, 4), (None, 2), (0, 2), ("3", 2), (True, 2)]
)
def test_a_run_that_goes_on_keeps_its_threads(recorded: object, threads: int) -> None:
    """On fewer and on more CPUs; an earlier version's record, or a broken one, has none."""
    begun = {"xla": False} if recorded is None else {"xla": False, "threads": recorded}
    assert choose(RNN, "cpu", 2, begun=begun).threads == threads


@pytest.mark.parametrize(
    ("kind", "optimizer", "fused"),
    [
        ("cpu", "rmsprop", True),
        ("cpu", "muon", False),
        ("cpu", "adafactor", False),
        ("gpu", "rmsprop", False),
    ],
)
def test_elementwise_updates_on_a_cpu_are_one_pass(kind: str, optimizer: str, fused: bool) -> None:
    """Others depend on sums over a variable; on a GPU nobody has measured it."""
    job = load_job(JOBS / "rnn.toml", [f"train.optimizer={optimizer}"])
    assert choose(job, kind, 2).fused is fused


def test_times_are_kept_by_device_and_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device's stay; those of another TensorFlow count no more, nor does a broken file."""
    save_measured_ms("a", LSTM, {"loop 1": 3.0})
    path = save_measured_ms("b", LSTM, {"xla 1": 2.0})
    save_measured_ms("b", RNN, {"xla 1": 1.0})
    assert measured_ms("a", LSTM) == {"loop 1": 3.0}
    assert measured_ms("b", LSTM) == {"xla 1": 2.0}
    assert measured_ms("a", RNN) == measured_ms("c", LSTM) == {}
    monkeypatch.setattr(plans, "installed_version", lambda _: "1.15")
    assert measured_ms("a", LSTM) == {}
    monkeypatch.undo()
    path.write_text("{")
    assert measured_ms("a", LSTM) == {}


def test_what_several_runs_measure_in_one_moment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what the others have written."""
    begun = threading.Barrier(4)

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.05)
        atomic_write(path, text)

    def save(number: int) -> None:
        begun.wait()
        save_measured("a", "gpu_gb", {f"job {number}": number})

    monkeypatch.setattr(plans, "atomic_write", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    assert read_measured("a", "gpu_gb") == {f"job {number}": number for number in range(4)}


def test_times_count_for_jobs_of_the_same_sizes_alone() -> None:
    """What was fastest in batches of 32 says nothing of 128; seed, rate and dropout are free."""
    save_measured_ms("a", LSTM, {"loop 1": 3.0})
    like = ["train.seed=7", "train.learning_rate=0.1", "model.dropout=0.1", "train.epochs=1"]
    assert measured_ms("a", load_job(JOBS / "lstm.toml", like)) == {"loop 1": 3.0}
    for setting in ("train.batch_size=128", "model.units=64", "data.maxlen=100"):
        assert measured_ms("a", load_job(JOBS / "lstm.toml", [setting])) == {}


SETTINGS = ("data.limit=200", "data.maxlen=20", "train.epochs=1")
SMALL = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.mark.full
def test_a_run_takes_the_plan_measured_and_keeps_it_when_it_goes_on(
    harness: Harness, cache: Path
) -> None:
    """The run's record names plan and reason; what is measured later changes no run."""
    harness.environment["XDG_CACHE_HOME"] = str(cache)
    job = load_job(JOBS / "lstm.toml", SETTINGS)
    save_measured_ms(processor(), job, {"loop 1": 1.0, "xla 1": 2.0})
    words = ("train", JOBS / "lstm.toml", "--run-id", "a", *SMALL)
    assert harness.run(*words).returncode == 0
    run = harness.runs / "lstm" / "a"
    plan = json.loads((run / "provenance.json").read_text())["plan"]
    assert (plan["xla"], plan["threads"]) == (False, 1)
    assert f"measured on {processor()}" in plan["why"]
    result = (run / "result.json").read_text()
    assert set(json.loads(result)["kernels"].values()) == {"loop"}

    save_measured_ms(processor(), job, {"loop 1": 2.0, "xla 1": 1.0})
    (run / "result.json").unlink()
    assert harness.run("resume", run).returncode == 0
    assert set(json.loads((run / "result.json").read_text())["kernels"].values()) == {"loop"}


def test_jobs_whose_steps_do_other_work_share_no_measurement() -> None:
    """Batches by length and a second pass take another time and other memory."""
    shapes = {
        shape(load_job(JOBS / "lstm.toml", [setting]))
        for setting in ("train.seed=2", "train.seed=3", "data.bucket=true", "train.adversarial=5")
    }
    assert len(shapes) == 3
