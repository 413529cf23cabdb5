"""Kernels, copies, all-reduces and precision of a training step on the null GPU."""

import json
import re
from typing import Any

import pytest

from tests.gpu.conftest import PROJECT, Rig

pytestmark = pytest.mark.full

COUNT = ("-m", "tests.gpu.count_steps")
HERE = {"PYTHONPATH": str(PROJECT)}
FIVE = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")


def steps(rig: Rig, num_gpus: int, *jobs: str) -> list[dict[str, Any]]:
    """Return the output of `count_steps` for each job."""
    done = rig.run([*COUNT, f"gpu:{num_gpus}", *jobs], num_gpus, HERE)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(step: dict[str, Any], num_gpus: int, *, all_reduces: int = 1) -> None:
    """Assert that cuDNN computes all layers, and that the host gets no copy and never waits."""
    assert set(step["kernels"].values()) == {"cudnn"}, step
    assert step["of_cudnn"] >= 3 * num_gpus, step  # one forward and two backward calls
    assert (step["to_host"], step["waits"]) == (0, 0), step
    assert step["all_reduces"] == (all_reduces * num_gpus if num_gpus > 1 else 0), step


HALF_FUSED = """
import keras
from keras import layers
def net(vocab_size, config, *, num_outputs, options):
    return keras.Sequential([
        layers.Embedding(vocab_size, 8),
        layers.LSTM(8, return_sequences=True, name="lstm"),
        layers.LSTM(8, activation="relu", name="lstm_1"),
        layers.Dense(num_outputs, activation="sigmoid"),
    ])
"""


def test_a_step_copies_nothing_to_the_host(rig: Rig) -> None:
    """Words, sums and shapes stay on the device; two GPUs add up their gradients once.

    The record has the kernel of each layer: cuDNN does not support the layer with relu.
    """
    (rig.folder / "half.py").write_text(HALF_FUSED)
    (rig.folder / "half.toml").write_text('[model]\narchitecture = "half.py:net"\n')
    jobs = ("rnn", "bilstm,data.bucket=true", f"{rig.folder}/half,data.maxlen=8")
    *fused, half = steps(rig, 2, *jobs)
    for step in fused:
        check(step, 2)
    assert half["kernels"] == {"lstm": "cudnn", "lstm_1": "loop"}


@pytest.mark.slow
@pytest.mark.parametrize("num_gpus", [1, 2, 4])
def test_no_job_copies_anything_to_the_host(rig: Rig, num_gpus: int) -> None:
    """The jobs include the five networks, several steps per call, and batches by length."""
    for step in steps(rig, num_gpus, *FIVE, "lstm,train.steps_per_execution=3"):
        check(step, num_gpus)
    # With clipnorm, Keras adds up the clipped gradients of all GPUs once more.
    for step in steps(rig, num_gpus, "best", "words"):
        check(step, num_gpus, all_reduces=2)


PRECISIONS = """
import sys
import keras
from harness.compute.strategy import import_tensorflow, one_device
tf = import_tensorflow(None)
from harness.compute.execution_plan import choose
from harness.compute.train_step import TrainStep
from harness.job.job_file import load_job
from tests.gpu.count_steps import JOBS, open_batches
for name, precision in CASES:
    without_dropout = ["model.dropout=0", "model.spatial_dropout=0"]
    job = load_job(JOBS / f"{name}.toml", [*without_dropout, f"train.precision={precision}"])
    step = TrainStep(job, one_device(), choose(job, "gpu", 1))
    print("BEGIN", precision, name, *step.in_float32, file=sys.stderr, flush=True)
    found, _ = step.gradients(next(open_batches(job, one_device())))
    [each.numpy() for each in found]
layer = keras.layers.LSTM(32, dtype="mixed_bfloat16")
layer.build((16, 50, 32))
print("BEGIN Keras", file=sys.stderr, flush=True)
with tf.GradientTape() as tape:
    total = tf.reduce_sum(layer(tf.ones((16, 50, 32), tf.bfloat16)))
tape.gradient(total, layer.weights[0].value).numpy()
"""
CASES = [
    ("lstm", "float16"),
    ("lstm", "bfloat16"),
    ("lstm", "float32"),
    ("lstm", "float64"),
    ("rnn", "bfloat16"),
]
DTYPES = {"float16": 2, "bfloat16": 0, "float32": 0, "float64": 1}  # cuDNN's numbers of these types
RESERVE = 12_344  # bytes: a multiple of 8 that is the size of no other allocation


def test_the_backward_pass_reads_what_the_forward_pass_reserved(rig: Rig) -> None:
    """The test covers all precisions. `compute_in_float32` corrects Keras's layer in bfloat16.

    If the last assertion fails, TensorFlow has corrected the layer: remove `compute_in_float32`.
    """
    script = f"CASES = {CASES}\n{PRECISIONS}"
    done = rig.run(["-c", script], env=HERE | {"STUB_RNN": "1", "STUB_RESERVE": str(RESERVE)})
    assert done.returncode == 0, done.stderr
    _, *parts, keras = re.split(r"^BEGIN ", done.stderr, flags=re.MULTILINE)
    assert len(parts) == len(CASES)
    for part in parts:
        precision, _, *in_float32 = part.splitlines()[0].split()
        assert bool(in_float32) == (precision == "bfloat16")
        assert BACKWARD.findall(part) == [(str(RESERVE), str(RESERVE), str(DTYPES[precision]))]
    ((_, kept, _),) = BACKWARD.findall(keras)
    assert int(kept) < RESERVE


BACKWARD = re.compile(
    r"BACKWARD .* size=(\d+) bytes as the forward pass left them: (\d+) dtype=(\d+)"
)


def test_a_run_on_two_gpus_ends(rig: Rig) -> None:
    """No decision and no shape depends on the GPUs' numbers, which are meaningless here.

    A warning names layers without cuDNN; the log names layers that compute in float32. It announces
    no compilation of kernels if CUDA's cache already contains kernels.
    """
    (rig.folder / "kernel").touch()
    settings = ("model.reset_after=false", "train.xla=off", "data.maxlen=4")
    words = [word for each in settings for word in ("--set", each)]
    words += ["--set", "train.precision=bfloat16", "--devices", "gpu:2"]
    done = rig.train("gru", *words, gpus=2, env={"CUDA_CACHE_PATH": str(rig.folder)})
    assert done.returncode == 0, done.stderr
    assert "no machine code" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "slow on a GPU" in line]
    assert line.startswith("warning: gru: ")
    assert "For a GRU, also set model.reset_after = true." in line
    assert "so during training these layers use float32: gru" in done.stdout
    result = json.loads((rig.folder / "runs/gru/rig/result.json").read_text())
    assert (result["num_replicas"], result["num_test"]) == (2, 200)
    record = json.loads((rig.folder / "runs/gru/rig/provenance.json").read_text())
    assert (record["kernels"], record["in_float32"]) == ({"gru": "loop"}, ["gru"])
