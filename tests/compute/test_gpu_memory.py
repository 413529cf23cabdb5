"""What a run took of a GPU's memory: measured, recorded, kept for jobs of the same sizes."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from harness.compute import memory
from harness.compute.memory import CONTEXT_GB, keep_gpu_gb, kept_gpu_gb, measure_gpu_gb
from harness.files.atomic_file import atomic_write
from harness.job_file import load_job
from harness.search_space import load_search
from harness.system import nvml
from tests.conftest import JOBS, SHRUNK, Harness

LSTM = load_job(JOBS / "lstm.toml")


def test_the_driver_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's own count knows nothing of CUDA's context, and stands in where it must."""
    assert measure_gpu_gb() is None  # no GPU trains here
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a", "b"])
    peaks = {"GPU:0": {"peak": 2e9}, "GPU:1": {"peak": 3e9}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.get)
    for held, gb in ((2.5, 2.5), (None, 3.0 + CONTEXT_GB)):
        monkeypatch.setattr(nvml, "own_gb", lambda held=held: held)
        assert measure_gpu_gb() == gb


def test_memory_is_kept_for_jobs_of_the_same_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed takes as much; another batch, network or card is unknown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "gpu_name", lambda: "NVIDIA A100")
    keep_gpu_gb(LSTM, 1.25)
    for setting, gb in (
        ("train.seed=7", 1.25),
        ("train.batch_size=128", None),
        ("train.xla=on", None),
        ("train.ema_momentum=0.5", 1.25),
        ("train.ema_momentum=0", None),
    ):
        assert kept_gpu_gb(load_job(JOBS / "lstm.toml", [setting])) == gb
    monkeypatch.setattr(memory, "gpu_name", lambda: "NVIDIA T4")
    assert kept_gpu_gb(LSTM) is None
    monkeypatch.setattr(memory, "gpu_name", lambda: "NVIDIA A100")
    assert kept_gpu_gb(LSTM) == 1.25
    with monkeypatch.context() as patch:
        patch.setattr(memory, "installed_version", lambda _: "1.15")
        assert kept_gpu_gb(LSTM) is None
    memory.record_path().write_text("{")
    assert kept_gpu_gb(LSTM) is None


def test_what_several_runs_took_in_one_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads what the others have written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begun = threading.Barrier(4)
    jobs = [load_job(JOBS / "lstm.toml", [f"model.units={1 + number}"]) for number in range(4)]

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.05)
        atomic_write(path, text)

    def keep(number: int) -> None:
        begun.wait()
        keep_gpu_gb(jobs[number], 1 + number)

    monkeypatch.setattr(memory, "atomic_write", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(keep, range(4)))
    assert [kept_gpu_gb(job) for job in jobs] == [1, 2, 3, 4]


SEARCH = """
[model]
architecture = "lstm"
[search]
trials = 4
[search.space]
model.units = [16, 64]
train.learning_rate = { min = 0.001, max = 0.01 }
"""


def test_the_most_that_a_search_took_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any of its workers, or by a run of its largest trial's sizes; not by another space's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "gpu_name", lambda: "NVIDIA A100")
    file = tmp_path / "mine.toml"
    file.write_text(SEARCH)
    search, longer = (load_search(file, [f"search.trials={n}"]) for n in (4, 9))
    file.write_text(SEARCH.replace("64", "128"))
    wider = load_search(file)
    assert kept_gpu_gb(search) is None
    for gb, most in ((0.5, 0.5), (0.4, 0.5), (0.75, 0.75)):
        keep_gpu_gb(search, gb)
        assert (kept_gpu_gb(search), kept_gpu_gb(longer), kept_gpu_gb(wider)) == (most, most, None)
    keep_gpu_gb(search.job_of({"model.units": 64}), 2.0)
    keep_gpu_gb(search.job_of({"model.units": 16}), 3.0)  # by a run that another one stood beside
    assert (kept_gpu_gb(search), kept_gpu_gb(wider)) == (2.0, None)
    file.write_text(SEARCH.replace("[16, 64]", "[16, 32]\ntrain.ema_momentum = [0.0, 0.9]"))
    averaged = load_search(file)
    lean = averaged.job_of({"model.units": 32, "train.ema_momentum": 0.0})
    keep_gpu_gb(lean, 1.0)  # without the average, which is one more copy of the weights
    assert kept_gpu_gb(averaged) is None


def test_a_cache_that_refuses_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is then in the record of the run alone."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_gpu_gb(LSTM, 1.0)
    assert kept_gpu_gb(LSTM) is None


NVML = """
from types import SimpleNamespace
class NVMLError(Exception): pass
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetHandleByIndex = int
nvmlDeviceGetComputeMode = lambda handle: 0
nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(free=1.5e9, total=80e9)
"""
# Imported by each process of Python at its start.
MEASURED = """
from harness.compute import memory
memory.measure_gpu_gb = lambda: 0.5
"""


def measure(harness: Harness) -> None:
    """From here on each process of the harness says that it holds 0.5 GB of a GPU."""
    (harness.folder / "sitecustomize.py").write_text(MEASURED)
    harness.environment["PYTHONPATH"] += f":{harness.folder}"


def show_gpu(harness: Harness) -> None:
    """From here on each process sees a GPU with 1.5 GB free, by the driver's word."""
    (harness.folder / "pynvml.py").write_text(NVML)
    harness.environment |= {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.full
def test_a_run_measures_for_those_that_share_a_gpu(harness: Harness) -> None:
    """Its record says what it took, and more such runs than a GPU holds are refused at once."""
    measure(harness)
    done = harness.run(*harness.train_words("rnn", "measured", "--set", "train.epochs=1"))
    assert done.returncode == 0, done.stderr
    record = json.loads((harness.runs / "rnn" / "measured" / "provenance.json").read_text())
    assert record["starts"][-1]["gpu_gb"] == 0.5
    show_gpu(harness)
    done = harness.run(
        *("train", JOBS / "rnn.toml", *SHRUNK, "--set", "train.epochs=1", "--runs", harness.runs),
        *("--seeds", "2-5", "--runs-per-gpu", "4"),
    )
    assert done.returncode == 2
    assert "4 runs on a GPU: the largest took 0.5 GB" in done.stderr
    assert done.stderr.endswith("has 1.5 GB free, which holds 2; use --runs-per-gpu 2\n")
    assert [path.name for path in (harness.runs / "rnn").iterdir()] == ["measured"]


@pytest.mark.slow
def test_workers_measure_for_those_that_share_a_gpu(harness: Harness) -> None:
    """More workers than a GPU holds are refused at once, of a new search and of one that runs."""
    measure(harness)
    space = '[search]\ntuner = "grid"\n[search.space]\ntrain.learning_rate = [0.001, 0.01]\n'
    job = harness.folder / "small.toml"
    job.write_text((JOBS / "rnn.toml").read_text() + space)
    words = ["tune", job, *SHRUNK, "--set", "train.epochs=1", "--runs", harness.runs]
    done = harness.run(*words, "--sweep-id", "measured", "--workers", 1)
    assert done.returncode == 0, done.stderr
    sweep = harness.runs / "small" / "measured"
    (sweep / "result.json").unlink()  # as while it runs
    before = sorted(harness.runs.rglob("*"))
    show_gpu(harness)
    for command in ([*words, "--sweep-id", "new"], ["sweep", "join", sweep]):
        done = harness.run(*command, "--workers-per-gpu", 4)
        assert done.returncode == 2
        assert done.stderr == (
            "harness: 4 runs on a GPU: the largest took 0.5 GB of such a GPU, and GPU 0 has 1.5 GB "
            "free, which holds 2; use --workers-per-gpu 2\n"
        )
    assert sorted(harness.runs.rglob("*")) == before
