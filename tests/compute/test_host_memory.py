"""The estimate of a run's memory on its node is a little above measured peaks."""

from pathlib import Path

import pytest

from harness.compute.execution_plan import BASE_GB, GPU_BASE_GB, largest_gb, reckoned_gb
from harness.job.job_file import load_job
from harness.job.search import load_search
from tests.conftest import JOBS

# Peaks of the resident memory in GB: one epoch of 600 IMDB reviews on a CPU, with compiled steps
# from the cache. Compiling the steps takes up to 0.2 GB more.
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


@pytest.mark.parametrize(("job", "settings", "peak_gb"), MEASURED)
def test_the_estimate_is_a_little_above_the_measured_peak(
    job: str, settings: tuple[str, ...], peak_gb: float
) -> None:
    """The estimate exceeds the peak by at most 20 % plus 0.4 GB. A GPU adds CUDA's libraries."""
    loaded = load_job(JOBS / f"{job}.toml", [*settings, "data.limit=600"])
    reckoned = reckoned_gb(loaded)
    assert peak_gb + 0.1 <= reckoned <= 1.2 * peak_gb + 0.4
    assert reckoned_gb(loaded, "gpu") - reckoned == pytest.approx(GPU_BASE_GB - BASE_GB)


def gb(job: str, *settings: str) -> float:
    return reckoned_gb(load_job(JOBS / f"{job}.toml", settings))


def test_padded_reviews_are_counted() -> None:
    """Both splits of IMDB count up to the limit; custom texts without a limit count as 1 GB."""
    long = ("lstm", "data.maxlen=2000")
    least = gb(*long, "data.limit=10")
    assert gb(*long) - least == pytest.approx(4 * (50_000 - 20) * 2000 / 1e9)
    assert gb(*long, "data.limit=10000") - least == pytest.approx(4 * (20_000 - 20) * 2000 / 1e9)
    custom = (*long, "data.source=/reviews.csv")
    assert gb(*custom) - least == pytest.approx(1.0 - 4 * 20 * 2000 / 1e9)
    assert gb(*custom, "data.limit=10") == pytest.approx(least)


def test_ngram_ratios_are_counted() -> None:
    """The reviews of both splits count. Custom texts count like IMDB, or by `data.limit`."""

    def ratios_gb(*settings: str, ratios: int = 1) -> float:
        without = gb("best", *settings, "model.ngram_ratios=0")
        return gb("best", *settings, f"model.ngram_ratios={ratios}") - without

    whole_gb = 3 * 50_000 * 235 * 4 / 1e9
    assert ratios_gb() == pytest.approx(whole_gb)
    assert ratios_gb(ratios=3) == pytest.approx(3 * whole_gb)
    assert ratios_gb("data.limit=100000") == pytest.approx(whole_gb)
    assert ratios_gb("data.source=/reviews.csv") == pytest.approx(whole_gb)
    twice = ratios_gb("data.source=/reviews.csv", "data.limit=50000")
    assert twice == pytest.approx(2 * whole_gb)


@pytest.mark.parametrize(
    ("architecture", "space", "largest"),
    [
        (
            "rnn",
            'model.architecture = ["gru", "bilstm"]\nmodel.ngram_ratios = [0, 2]\n'
            "data.maxlen = { min = 100, max = 800 }\n",
            ["model.architecture=bilstm", "model.ngram_ratios=2", "data.maxlen=800"],
        ),
        ("stacked_lstm", "model.second_units = [0, 8]\n", []),
    ],
)
def test_a_search_needs_the_memory_of_its_largest_trial(
    tmp_path: Path, architecture: str, space: str, largest: list[str]
) -> None:
    """The largest trial has the largest value of each list and range, and the largest network.

    `model.second_units = 0` stands for the value of `model.units`.
    """
    model = f'[model]\narchitecture = "{architecture}"\n'
    job, search = tmp_path / "job.toml", tmp_path / "search.toml"
    job.write_text(model)
    search.write_text(
        f"{model}[search]\ntrials = 4\n[search.space]\n{space}model.units = [16, 256]\n"
    )
    of_trial = reckoned_gb(load_job(job, [*largest, "model.units=256"]))
    assert largest_gb(load_search(search)) == pytest.approx(of_trial)
