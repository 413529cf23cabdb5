"""What CUDA reports ends a run in one line with a remedy; the messages are TensorFlow's."""

from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from harness.errors import Interrupted, RunError
from harness.training.failures import device_error, explained_losses


def internal(text: str) -> tf.errors.OpError:
    return tf.errors.InternalError(None, None, text)


def test_other_errors_are_left_alone() -> None:
    """An error that no rule knows keeps its traceback; TensorFlow's own text is enough of one."""
    assert device_error(internal("Cannot convert a string to a number")) is None
    assert isinstance(device_error(internal("CUDA_ERROR_NO_BINARY_FOR_GPU")), RunError)


def test_a_worker_that_nccl_lost_is_an_interruption() -> None:
    """Like one that TensorFlow lost: the others have saved and can go on."""
    group: Any = SimpleNamespace(explain=lambda: None, lost=lambda message: "n2")
    with pytest.raises(Interrupted, match="the loss of the worker on n2"), explained_losses(group):
        raise internal("NCCL: ncclRemoteError: remote process exited or there was a network error")
