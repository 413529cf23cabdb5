"""What a run took of a GPU's memory: measured, recorded, kept for jobs of the same sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from harness.compute import gpu_memory
from harness.compute.gpu_memory import CONTEXT_GB, keep_gb, kept_gb, measure_gb
from harness.job_file import load_job
from harness.system import nvml
from tests.conftest import JOBS, SHRUNK, Harness

LSTM = load_job(JOBS / "lstm.toml")


def test_the_driver_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's own count knows nothing of CUDA's context, and stands in where it must."""
    assert measure_gb() is None  # no GPU trains here
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a", "b"])
    peaks = {"GPU:0": {"peak": 2e9}, "GPU:1": {"peak": 3e9}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.get)
    for held, gb in ((2.5, 2.5), (None, 3.0 + CONTEXT_GB)):
        monkeypatch.setattr(nvml, "own_gb", lambda held=held: held)
        assert measure_gb() == gb


def test_memory_is_kept_for_jobs_of_the_same_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed takes as much; another batch, network or card is unknown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_memory, "device_name", lambda kind: "NVIDIA A100")
    keep_gb(LSTM, 1.25)
    for setting, gb in (
        ("train.seed=7", 1.25),
        ("train.batch_size=128", None),
        ("train.xla=on", None),
    ):
        assert kept_gb(load_job(JOBS / "lstm.toml", [setting])) == gb
    monkeypatch.setattr(gpu_memory, "device_name", lambda kind: "NVIDIA T4")
    assert kept_gb(LSTM) is None


def test_a_cache_that_refuses_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is then in the record of the run alone."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_gb(LSTM, 1.0)
    assert kept_gb(LSTM) is None


NVML = """
from types import SimpleNamespace
class NVMLError(Exception): pass
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetHandleByIndex = int
nvmlDeviceGetComputeMode = lambda handle: 0
nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(free=1.5e9, total=80e9)
"""
MEASURED = """
import sys
from harness.compute import gpu_memory
gpu_memory.measure_gb = lambda: 0.5
from harness.cli.main import main
sys.exit(main())
"""


@pytest.mark.full
def test_a_run_measures_for_those_that_share_a_gpu(harness: Harness) -> None:
    """Its record says what it took, and more such runs than a GPU holds are refused at once."""
    words = harness.train_words("rnn", "measured", "--set", "train.epochs=1")
    command = [sys.executable, "-c", MEASURED, *map(str, words)]
    subprocess.run(command, cwd=harness.folder, env=harness.environment, check=True, timeout=300)
    record = json.loads((harness.runs / "rnn" / "measured" / "provenance.json").read_text())
    assert record["starts"][-1]["gpu_gb"] == 0.5
    (harness.folder / "pynvml.py").write_text(NVML)
    harness.environment |= {"CUDA_VISIBLE_DEVICES": "0"}
    harness.environment["PYTHONPATH"] += f":{harness.folder}"
    done = harness.run(
        *("train", JOBS / "rnn.toml", *SHRUNK, "--set", "train.epochs=1", "--runs", harness.runs),
        *("--seeds", "2-5", "--runs-per-gpu", "4"),
    )
    assert done.returncode == 2
    assert "4 runs on a GPU: the largest took 0.5 GB" in done.stderr
    assert done.stderr.endswith("has 1.5 GB free, which holds 2; use --runs-per-gpu 2\n")
    assert [path.name for path in (harness.runs / "rnn").iterdir()] == ["measured"]
