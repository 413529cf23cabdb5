"""`python -m tests.compute.trace_kernels DEVICES NAME…`: kernels where Keras believes in a GPU."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
from harness.job.job_file import load_job

JOBS = Path(__file__).resolve().parents[2] / "jobs"
SMALL = ["data.vocab_size=100", "data.maxlen=8", "train.steps_per_execution=2"]
HALF_FUSED = "half fused"  # a stack whose second layer cuDNN can't take


def main() -> None:
    """Print the kernels of each job that the arguments name, with its settings."""
    tf: Any = import_tensorflow(None, 1)
    strategy = make_strategy(parse_devices(sys.argv[1]))
    tf.config.list_logical_devices = _with_a_gpu(tf.config.list_logical_devices, tf)
    from harness import architectures

    kernels = {}
    for name in sys.argv[2:]:
        if name == HALF_FUSED:
            with mock.patch.dict(architectures.BUILDERS, stacked_lstm=_half_fused):
                kernels[name] = _kernels(strategy, "stacked_lstm")
        else:
            kernels[name] = _kernels(strategy, *name.split())
    print(json.dumps(kernels))  # noqa: T201


def _with_a_gpu(list_devices: Any, tf: Any) -> Any:
    def list_logical_devices(kind: str | None = None) -> Any:
        if kind == "GPU":
            return [tf.config.LogicalDevice("/device:GPU:0", "GPU")]
        return list_devices(kind)

    return list_logical_devices


def _half_fused(vocab_size: int, config: Any, *, num_outputs: int) -> Any:
    from keras.layers import LSTM

    from harness.architectures import sentiment

    first = LSTM(config.units, return_sequences=True)
    rest = LSTM(config.units, activation="relu")
    return sentiment(vocab_size, config, first, rest, num_outputs=num_outputs)


def _kernels(strategy: Any, name: str, *settings: str) -> list[str]:
    import numpy as np

    from harness.compute.recurrent import kernels_of
    from harness.compute.train_step import TrainStep
    from harness.data.epoch_order import BatchShape
    from harness.data.input_pipeline import Reviews, batches

    job = load_job(JOBS / f"{name}.toml", [*SMALL, *settings])
    train_step = TrainStep(job, strategy, ExecutionPlan("keras", 1))
    reviews = Reviews(np.ones(64, np.int32), np.arange(65), np.zeros(64, np.int32))
    order = np.arange(64, dtype=np.int32)[None]
    shape = BatchShape(job.train.batch_size, 8, job.data.bucket)
    opened = batches(strategy, reviews, order, shape=shape)
    graph = train_step.train_steps.get_concrete_function(iter(opened), 1).graph
    return list(kernels_of(train_step.model, graph, "keras").values())


if __name__ == "__main__":
    main()
