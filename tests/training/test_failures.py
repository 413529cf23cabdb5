"""What CUDA reports ends a run in one line with a remedy; the messages are TensorFlow's."""

from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from harness.compute import device_errors
from harness.errors import Interrupted, NodeFault, RunError
from harness.training.failures import device_error, explained_losses
from harness.tuning.protocol import Trial
from harness.tuning.trial import Trials


def internal(text: str) -> tf.errors.OpError:
    return tf.errors.InternalError(None, None, text)


def test_other_errors_are_left_alone() -> None:
    """An error that no rule knows keeps its traceback; TensorFlow's own text is enough of one."""
    assert device_error(internal("Cannot convert a string to a number")) is None
    assert isinstance(device_error(internal("CUDA_ERROR_NO_BINARY_FOR_GPU")), RunError)


def test_out_of_memory_names_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much was free and who held it, on a GPU; a CPU has no such list."""
    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    assert str(device_error(exhausted)) == (
        "the device is out of memory; lower train.batch_size or data.maxlen, or use more devices"
    )
    held = "GPU 0 has 0.1 of 80.0 GB free, run b-seed2 (process 12) holds 40.0 GB"
    monkeypatch.setattr(device_errors, "describe_memory", lambda: held)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu"])
    for error in (exhausted, internal("CUDA_ERROR_OUT_OF_MEMORY: out of memory")):
        line = str(device_error(error))
        assert line.startswith(f"the device is out of memory: {held}; lower train.batch_size")
        assert line.endswith("or fewer runs a GPU")


def test_a_worker_that_nccl_lost_is_an_interruption() -> None:
    """Like one that TensorFlow lost: the others have saved and can go on."""
    group: Any = SimpleNamespace(explain=lambda: None, lost=lambda message: "n2")
    with pytest.raises(Interrupted, match="the loss of the worker on n2"), explained_losses(group):
        raise internal("NCCL: ncclRemoteError: remote process exited or there was a network error")


@pytest.mark.parametrize(
    "error", [NodeFault("lost", will_requeue=False), OSError(5, "EIO"), Interrupted("a")]
)
def test_a_fault_of_the_node_or_of_a_disk_is_no_result_of_a_trial(error: Exception) -> None:
    """The worker's process hears of it: CUDA refuses all that follows, a disk may come back."""

    def fail(*_: object) -> None:
        raise error

    trials: Any = SimpleNamespace(_run=fail, observers=SimpleNamespace(stop=None))
    with pytest.raises(type(error)):
        Trials.run(trials, Trial(n=1, values={}), 1)


@pytest.mark.parametrize(
    ("error", "line"), [(RunError("too large"), "too large"), (ValueError("x"), "ValueError: x")]
)
def test_an_error_of_a_trial_is_its_result(error: Exception, line: str) -> None:
    """It is reported, and the worker goes on with others."""

    def fail(*_: object) -> None:
        raise error

    trials: Any = SimpleNamespace(_run=fail, observers=SimpleNamespace(stop=None))
    report = Trials.run(trials, Trial(n=1, values={}), 1)
    assert (report.error, report.scores) == (line, {})
