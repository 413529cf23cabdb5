"""What a run is reckoned to take of a node's memory is what runs were seen to take, or more."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.compute.memory import BASE_GB, GPU_BASE_GB, largest_gb, reckoned_gb
from harness.job.job_file import load_job
from harness.job.search import load_search
from tests.conftest import JOBS, Harness

# Peaks of the resident memory in GB, of one epoch of 600 reviews of IMDB on a CPU, with compiled
# steps from the cache: to compile them takes up to 0.2 GB more.
WIDE = ("data.vocab_size=80000", "model.embedding_dim=256", "train.optimizer='adam'")
LONG = ("data.maxlen=1000", "train.batch_size=256", "model.units=128", "model.embedding_dim=128")
MEASURED = [
    ("lstm", (), 0.986),
    ("lstm", ("data.vocab_size=40000", "model.embedding_dim=256"), 1.323),
    ("lstm", WIDE, 1.898),
    ("gru", ("data.vocab_size=40000", "model.embedding_dim=512", "train.ema_momentum=0"), 1.653),
    ("lstm", ("data.maxlen=1000", "train.batch_size=128"), 1.089),
    ("bilstm", LONG, 4.174),
    ("stacked_lstm", ("data.maxlen=400", "train.batch_size=128", "model.units=128"), 1.447),
]

MEASURE = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.executable, sys.argv[1:], os.environ), 0)
print(status, usage.ru_maxrss)
"""


def test_a_gpu_takes_memory_of_its_node_too() -> None:
    """CUDA's libraries and what TensorFlow keeps beside them: 2 GB before the first variable."""
    job = load_job(JOBS / "lstm.toml")
    more = reckoned_gb(job, "gpu") - reckoned_gb(job, "cpu")
    assert more == pytest.approx(GPU_BASE_GB - BASE_GB)
    assert reckoned_gb(job, "gpu") > 2


@pytest.mark.parametrize(("job", "settings", "peak_gb"), MEASURED)
def test_it_is_a_little_above_the_measured_peak(
    job: str, settings: tuple[str, ...], peak_gb: float
) -> None:
    """By 0.4 GB and a fifth at most, whatever part of the job is large."""
    reckoned = reckoned_gb(load_job(JOBS / f"{job}.toml", [*settings, "data.limit=600"]))
    assert peak_gb + 0.1 <= reckoned <= 1.2 * peak_gb + 0.4


def test_reviews_that_are_held_padded_are_counted() -> None:
    """Both splits of IMDB, or of the limit; how many own texts there are is not known yet."""

    def gb(*settings: str) -> float:
        return reckoned_gb(load_job(JOBS / "lstm.toml", ["data.maxlen=2000", *settings]))

    least = gb("data.limit=10")
    padded: dict[tuple[str, ...], int] = {(): 50_000, ("data.limit=10000",): 20_000}
    for settings, reviews in padded.items():
        assert gb(*settings) - least == pytest.approx(4 * (reviews - 20) * 2000 / 1e9)
    own = "data.source=/reviews.csv"
    assert gb(own) - least == pytest.approx(1.0 - 4 * 20 * 2000 / 1e9)
    assert gb(own, "data.limit=10") == pytest.approx(least)


def test_ratios_of_ngrams_are_counted() -> None:
    """For each word of both splits, of no more reviews than IMDB has; own texts count as IMDB."""

    def gb(*settings: str) -> float:
        return reckoned_gb(load_job(JOBS / "best.toml", settings))

    none = gb("model.ngram_ratios=0")
    assert gb("data.limit=100000") == pytest.approx(gb())
    for ratios in (1, 3):
        each_gb = 50_000 * 235 * 4 * ratios / 1e9
        assert gb(f"model.ngram_ratios={ratios}") - none == pytest.approx(3 * each_gb)
    own = "data.source=/reviews.csv"
    assert gb(own) - gb(own, "model.ngram_ratios=0") == pytest.approx(gb() - none)
    twice = gb(own, "data.limit=50000") - gb(own, "data.limit=50000", "model.ngram_ratios=0")
    assert twice == pytest.approx(2 * (gb() - none))


def test_a_search_needs_what_its_largest_trial_needs(tmp_path: Path) -> None:
    """Each size at its largest, whether searched in a list or a range."""
    file = tmp_path / "mine.toml"
    file.write_text(
        '[model]\narchitecture = "lstm"\n[search]\ntrials = 4\n[search.space]\n'
        'model.architecture = ["gru", "bilstm"]\nmodel.units = [16, 256]\n'
        "model.ngram_ratios = [0, 2]\n"
        "data.maxlen = { min = 100, max = 800 }\n"
    )
    job = tmp_path / "largest.toml"
    job.write_text(
        '[model]\narchitecture = "bilstm"\nunits = 256\nngram_ratios = 2\n[data]\nmaxlen = 800\n'
    )
    assert largest_gb(load_search(file)) == pytest.approx(reckoned_gb(load_job(job)))


@pytest.mark.slow
def test_a_run_stays_below_it(harness: Harness) -> None:
    """The peak of a real run, as the kernel counts it."""
    words = ["--set", "data.limit=600", "--set", "train.epochs=1", "--devices", "cpu:1"]
    command = harness.command("train", JOBS / "lstm.toml", "--run-id", "seen", *words)
    # From a small process: Linux counts for a child what the one that starts it holds.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], env=harness.environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, peak_kb = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0
    job = load_job(JOBS / "lstm.toml", ["data.limit=600"])
    assert peak_kb * 1024 / 1e9 <= reckoned_gb(job)
