"""What a run took of a GPU's memory: measured and recorded."""

import json

import pytest
import tensorflow as tf

from harness.compute.memory import CONTEXT_GB, measure_gpu_gb
from harness.job.job_file import load_job
from harness.system import gpu
from tests.conftest import JOBS, Harness

LSTM = load_job(JOBS / "lstm.toml")


def test_the_driver_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's own count knows nothing of CUDA's context, and stands in where it must."""
    assert measure_gpu_gb() is None  # no GPU trains here
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a", "b"])
    peaks = {"GPU:0": {"peak": 2e9}, "GPU:1": {"peak": 3e9}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.get)
    for held, gb in ((2.5, 2.5), (None, 3.0 + CONTEXT_GB)):
        monkeypatch.setattr(gpu, "own_gb", lambda held=held: held)
        assert measure_gpu_gb() == gb


# Imported by each process of Python at its start.
MEASURED = """
from harness.compute import memory
memory.measure_gpu_gb = lambda: 0.5
"""


def measure(harness: Harness) -> None:
    """From here on each process of the harness says that it holds 0.5 GB of a GPU."""
    (harness.folder / "sitecustomize.py").write_text(MEASURED)
    harness.environment["PYTHONPATH"] += f":{harness.folder}"


@pytest.mark.full
def test_a_run_records_what_it_took(harness: Harness) -> None:
    """The measurement is in the start's record."""
    measure(harness)
    done = harness.run(*harness.train_words("rnn", "measured", "--set", "train.epochs=1"))
    assert done.returncode == 0, done.stderr
    record = json.loads((harness.runs / "rnn" / "measured" / "provenance.json").read_text())
    assert record["starts"][-1]["gpu_gb"] == 0.5
