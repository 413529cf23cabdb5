"""Plans: a rule decides, and a run keeps its own."""

import pytest

from harness.checks.probe import ARCHITECTURES
from harness.compute.execution_plan import choose
from harness.job_file import load_job
from tests.conftest import JOBS

RNN, LSTM = load_job(JOBS / "rnn.toml"), load_job(JOBS / "lstm.toml")


@pytest.mark.parametrize(("setting", "xla"), [("on", True), ("off", False)])
def test_what_the_job_says_comes_first(setting: str, xla: bool) -> None:
    """On all CPUs, and the reason is the key."""
    job = load_job(JOBS / "lstm.toml", [f"train.xla={setting}"])
    plan = choose(job, "cpu", 4)
    assert (plan.xla, plan.threads, plan.why) == (xla, 4, f"train.xla = {setting}")


def test_a_job_may_ask_for_the_block_kernel() -> None:
    """Of a CPU, in two parts; a resumed run keeps what it began with."""
    job = load_job(JOBS / "lstm.toml", ["train.block_lstm=true"])
    plan = choose(job, "cpu", 4)
    assert (plan.block, plan.xla, plan.threads, plan.parts) == (True, False, 4, 2)
    assert plan.why == "train.block_lstm = true"
    for settings in (
        ["train.precision=float64"],
        ["train.xla=on"],
        ["model.recurrent=false", "model.pooling=max"],
    ):
        other = load_job(JOBS / "lstm.toml", ["train.block_lstm=true", *settings])
        assert not choose(other, "cpu", 2).block
    own = job.model_copy(update={"model": job.model.model_copy(update={"architecture": "a.py:f"})})
    for other in (load_job(JOBS / "gru.toml", ["train.block_lstm=true"]), own):
        assert not choose(other, "cpu", 2).block
    assert not choose(job, "gpu", 2).block
    begun = {"xla": False, "threads": 3, "parts": 2, "block": True}
    resumed = choose(LSTM, "cpu", 2, begun=begun)
    assert (resumed.block, resumed.parts, resumed.threads) == (True, 2, 3)
    assert not choose(job, "cpu", 2, begun={"xla": False, "threads": 2}).block


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_operations_are_compiled(name: str) -> None:
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
    plans = [choose(job, "gpu", 3) for job in jobs]
    assert [plan.xla for plan in plans] == [False, True, False, False]
    assert [plan.cudnn_rnn for plan in plans] == [True, False, True, True]
    assert plans[1].parts == 1
    assert not choose(load_job(JOBS / "rnn.toml", ["train.xla=on"]), "gpu", 3).cudnn_rnn
    assert not choose(RNN, "cpu", 3).cudnn_rnn


def test_a_run_that_goes_on_keeps_its_plan() -> None:
    """Whatever the rule of this version says, its bytes stay."""
    assert choose(RNN, "cpu", 2, begun={"xla": False}).xla is False
    assert choose(RNN, "cpu", 2, begun={"xla": True, "parts": 3}).parts == 3


@pytest.mark.parametrize(
    ("recorded", "threads"), [(1, 1), (4, 4), (None, 2), (0, 2), ("3", 2), (True, 2)]
)
def test_a_run_that_goes_on_keeps_its_threads(recorded: object, threads: int) -> None:
    """On fewer and on more CPUs; an earlier version's record, or a broken one, has none."""
    begun = {"xla": False} if recorded is None else {"xla": False, "threads": recorded}
    assert choose(RNN, "cpu", 2, begun=begun).threads == threads
