"""Execution plans: a rule chooses the plan of a run, and the run keeps it."""

from dataclasses import asdict

import pytest

from harness.architectures import ARCHITECTURES
from harness.compute.execution_plan import ExecutionPlan, choose
from harness.errors import InputError
from harness.job.job_file import load_job
from tests.conftest import JOBS

RNN, LSTM = load_job(JOBS / "rnn.toml"), load_job(JOBS / "lstm.toml")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cpu_takes_the_fastest_way_of_each_network(name: str) -> None:
    """An LSTM layer is one operation, XLA compiles other layers; batches of 128 have two parts."""
    for folder, parts in ((JOBS, 1), (JOBS / "notebook", 2)):
        plan = choose(load_job(folder / f"{name}.toml"), "cpu", 3)
        assert (plan.way, plan.threads) == ("block" if "lstm" in name else "xla", 3)
        assert plan.parts == parts
        assert plan.compiles_evaluation


@pytest.mark.parametrize("name", ["lstm", "notebook/gru", "best"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_setting_of_the_job_has_priority(name: str, kind: str) -> None:
    """With `train.xla=off` a CPU uses Keras's layers and TensorFlow's operations."""
    path = JOBS / f"{name}.toml"
    off = choose(load_job(path, ["train.xla=off"]), kind, 4)
    assert off.way == ("keras" if kind == "cpu" else "cudnn")
    assert (off.threads, off.parts, off.compiles_evaluation) == (4, 1, False)
    on = choose(load_job(path, ["train.xla=on"]), kind, 4)
    assert (on.way, on.compiles_evaluation) == ("xla", kind == "cpu")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rnn", ["model.units=96", "train.batch_size=128"]),
        ("gru", ["model.pooling=max", "data.maxlen=600"]),
        ("lstm", ["model.pooling=max", "model.recurrent=false"]),
        ("lstm", ["train.precision=float64", "model.units=192"]),
        ("stacked_lstm", ["train.precision=float64", "data.maxlen=400"]),
        ("stacked_lstm", ["train.precision=float64", "model.second_units=128"]),
        ("rnn", ["data.bucket=true"]),
        ("own/conv_gru", []),
    ],
)
def test_keras_loop_stays_where_xla_is_slower(name: str, settings: list[str]) -> None:
    """The cases are large operations, outputs per word, batches by length, and custom networks."""
    job = load_job(JOBS / f"{name}.toml", settings)
    plan = choose(job, "cpu", 1)
    assert (plan.way, plan.parts) == ("keras", 1)


@pytest.mark.parametrize(
    ("name", "settings", "compiled"),
    [
        ("lstm", ["data.limit=4999"], False),
        ("lstm", ["data.limit=5000"], True),
        ("lstm", ["data.bucket=true"], False),
        ("gru", ["model.pooling=max", "data.maxlen=600"], True),
        ("lstm", ["model.pooling=max", "model.recurrent=false"], False),
        ("own/conv_gru", [], False),
    ],
)
def test_evaluations_are_compiled_where_that_takes_less_time(
    name: str, settings: list[str], compiled: bool
) -> None:
    """A few reviews, batches by length and custom networks are evaluated without compilation."""
    job = load_job(JOBS / f"{name}.toml", settings)
    assert choose(job, "cpu", 2).compiles_evaluation is compiled


def test_on_a_gpu_xla_compiles_only_layers_that_cudnn_lacks() -> None:
    """Of the built-in networks, only the notebook's GRU (reset_after = false) is compiled."""
    gru = load_job(JOBS / "notebook" / "gru.toml")
    after = load_job(JOBS / "notebook" / "gru.toml", ["model.reset_after=true"])
    plans = [choose(job, "gpu", 3) for job in (RNN, gru, after, LSTM)]
    assert [plan.way for plan in plans] == ["cudnn", "xla", "cudnn", "cudnn"]
    assert {plan.parts for plan in plans} == {1}
    assert not any(plan.compiles_evaluation for plan in plans)


def test_a_resumed_run_keeps_its_plan() -> None:
    """Another number of CPUs or another rule doesn't change the plan, so the bytes stay equal."""
    begun = ExecutionPlan("xla", 4, 3, compiles_evaluation=True)
    assert choose(LSTM, "cpu", 2, begun=asdict(begun)) == begun


@pytest.mark.parametrize("wrong", [{"way": "tpu"}, {"threads": 0}, {"parts": 5}, {"parts": "x"}])
def test_a_record_without_a_valid_plan_is_refused(wrong: dict[str, object]) -> None:
    """Another user may have written the record."""
    begun = {"way": "keras", "threads": 1, "parts": 1, **wrong}
    with pytest.raises(InputError, match="has no valid plan; start a new run"):
        choose(LSTM, "cpu", 2, begun=begun)
