"""Plans: the fastest measured one is taken, a run keeps its own, and the record says why."""

import json
from pathlib import Path

import pytest

from harness import plans
from harness.job import load_job
from harness.plans import choose, keep_measured, measured_ms
from harness.provenance import processor
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
    best = choose(LSTM, "cpu", "a CPU", 2, {}, TIMES)
    assert (best.xla, best.threads) == (True, 2)
    assert best.why == (
        "train.xla = auto, the fastest measured on a CPU "
        "(ms a step: xla 2: 55, loop 2: 62, loop 1: 69, xla 1: 80)"
    )
    one = choose(LSTM, "cpu", "a CPU", 1, {}, TIMES)
    assert (one.xla, one.threads) == (False, 1)


@pytest.mark.parametrize(("setting", "xla"), [("on", True), ("off", False)])
def test_what_the_job_says_comes_first(setting: str, xla: bool) -> None:
    """Measurements choose the threads alone then."""
    job = load_job(JOBS / "lstm.toml", [f"train.xla={setting}"])
    assert choose(job, "cpu", "a CPU", 2, {}, TIMES).xla is xla
    plan = choose(job, "cpu", "a CPU", 4, {}, {})
    assert (plan.xla, plan.threads, plan.why) == (xla, 4, f"train.xla = {setting}")


def test_without_a_measurement_the_rule_holds() -> None:
    """The plain RNN is compiled, the LSTM is not, on all CPUs."""
    assert [choose(job, "cpu", "a CPU", 3, {}, {}).xla for job in (RNN, LSTM)] == [True, False]
    assert choose(RNN, "cpu", "a CPU", 3, {}, {}).threads == 3


def test_on_a_gpu_what_cudnn_can_not_take_is_compiled() -> None:
    """The notebook's GRU, under several devices too; the others are left to cuDNN."""
    gru = load_job(JOBS / "notebook" / "gru.toml")
    after = load_job(JOBS / "notebook" / "gru.toml", ["model.reset_after=true"])
    jobs = (RNN, gru, after, LSTM)
    assert [choose(job, "gpu", "a GPU", 3, {}, {}).xla for job in jobs] == [
        True,
        True,
        False,
        False,
    ]
    assert choose(gru, "cpu", "a CPU", 3, {}, {}).xla is False


def test_a_run_that_goes_on_keeps_its_plan() -> None:
    """Whatever was measured since, its bytes stay."""
    assert choose(LSTM, "cpu", "a CPU", 2, {"xla": False}, TIMES).xla is False
    assert choose(RNN, "cpu", "a CPU", 2, {"xla": False}, {}).xla is False


def test_times_are_kept_by_device_and_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device's stay; those of another TensorFlow count no more, nor does a broken file."""
    keep_measured("a", {"lstm": {"loop 1": 3.0}})
    path = keep_measured("b", {"lstm": {"xla 1": 2.0}})
    assert measured_ms("a", "lstm") == {"loop 1": 3.0}
    assert measured_ms("b", "lstm") == {"xla 1": 2.0}
    assert measured_ms("b", "rnn") == measured_ms("c", "lstm") == {}
    monkeypatch.setattr(plans, "installed_version", lambda _: "1.15")
    assert measured_ms("a", "lstm") == {}
    monkeypatch.undo()
    path.write_text("{")
    assert measured_ms("a", "lstm") == {}


SMALL = ("--set", "data.limit=200", "--set", "data.maxlen=20", "--set", "train.epochs=1")


def test_a_run_takes_the_plan_measured_and_keeps_it_when_it_goes_on(
    harness: Harness, cache: Path
) -> None:
    """The run's record names plan and reason; what is measured later changes no run."""
    harness.environment["XDG_CACHE_HOME"] = str(cache)
    keep_measured(processor(), {"lstm": {"loop 1": 2.0, "xla 1": 1.0}})
    words = ("train", JOBS / "lstm.toml", "--run-id", "a", *SMALL)
    assert harness.run(*words).returncode == 0
    run = harness.runs / "lstm" / "a"
    plan = json.loads((run / "provenance.json").read_text())["plan"]
    assert (plan["xla"], plan["threads"]) == (True, 1)
    assert f"measured on {processor()}" in plan["why"]
    result = (run / "result.json").read_text()
    assert set(json.loads(result)["kernels"].values()) == {"xla"}

    keep_measured(processor(), {"lstm": {"loop 1": 1.0, "xla 1": 2.0}})
    (run / "result.json").unlink()
    assert harness.run("resume", run).returncode == 0
    assert set(json.loads((run / "result.json").read_text())["kernels"].values()) == {"xla"}


@pytest.mark.slow
def test_the_bench_measures_and_keeps_the_plans(harness: Harness) -> None:
    """Each plan of a job, in milliseconds a step, by this machine's name."""
    words = ("bench", "--only", "plans", "--architecture", "lstm", "--pairs", "1")
    done = harness.run(*words)
    assert done.returncode == 0, done.stderr
    record = json.loads((harness.folder / "cache/harness/plans.json").read_text())
    (device,) = record
    assert {name.split()[0] for name in record[device]["step_ms"]["lstm"]} == {"loop", "xla"}
