"""Plans: one rule decides, and a run keeps its own."""

from dataclasses import asdict

import pytest

from harness.checks.probe import ARCHITECTURES
from harness.compute.execution_plan import ExecutionPlan, choose
from harness.errors import InputError
from harness.job_file import load_job
from tests.conftest import JOBS

RNN, LSTM = load_job(JOBS / "rnn.toml"), load_job(JOBS / "lstm.toml")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cpu_takes_the_fastest_way_of_each_network(name: str) -> None:
    """LSTM layers as one operation, the others compiled; batches of 128 in halves."""
    for folder, parts in ((JOBS, 1), (JOBS / "notebook", 2)):
        plan = choose(load_job(folder / f"{name}.toml"), "cpu", 3)
        assert (plan.way, plan.threads) == ("block" if "lstm" in name else "xla", 3)
        assert plan.parts == parts
        assert plan.compiles_evaluation
        assert plan.why == "train.xla = auto, by rule"


@pytest.mark.parametrize("name", [*ARCHITECTURES, "notebook/bilstm", "best"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_what_the_job_says_comes_first(name: str, kind: str) -> None:
    """`off` leaves a CPU Keras's own layers and TensorFlow's own operations, and nothing else."""
    path = JOBS / f"{name}.toml"
    off = choose(load_job(path, ["train.xla=off"]), kind, 4)
    assert off.way == ("keras" if kind == "cpu" else "cudnn")
    assert (off.threads, off.parts, off.compiles_evaluation) == (4, 1, False)
    on = choose(load_job(path, ["train.xla=on"]), kind, 4)
    assert (on.way, on.compiles_evaluation) == ("xla", kind == "cpu")
    assert (off.why, on.why) == ("train.xla = off", "train.xla = on")


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
def test_large_operations_and_kept_outputs_are_left_to_the_loop(
    name: str, settings: list[str]
) -> None:
    """Where XLA was slower when measured, or would be near it; and a network of the user's."""
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
    """Not for a few reviews, for batches of many lengths, or for a network of the user's."""
    job = load_job(JOBS / f"{name}.toml", settings)
    assert choose(job, "cpu", 2).compiles_evaluation is compiled


def test_on_a_gpu_what_cudnn_can_not_take_is_compiled() -> None:
    """The notebook's GRU, under several devices too; the others are left to cuDNN."""
    gru = load_job(JOBS / "notebook" / "gru.toml")
    after = load_job(JOBS / "notebook" / "gru.toml", ["model.reset_after=true"])
    plans = [choose(job, "gpu", 3) for job in (RNN, gru, after, LSTM)]
    assert [plan.way for plan in plans] == ["cudnn", "xla", "cudnn", "cudnn"]
    assert {plan.parts for plan in plans} == {1}
    assert not any(plan.compiles_evaluation for plan in plans)


def test_a_run_that_goes_on_keeps_its_plan() -> None:
    """Whatever the rule of this version says, on fewer and on more CPUs, its bytes stay."""
    begun = ExecutionPlan("xla", 4, 3, compiles_evaluation=True, why="then")
    plan = choose(LSTM, "cpu", 2, begun=asdict(begun))
    assert asdict(plan) == {**asdict(begun), "why": "as the run began"}
    with pytest.raises(InputError, match="holds no plan"):
        choose(LSTM, "cpu", 2, begun={"threads": 2})
