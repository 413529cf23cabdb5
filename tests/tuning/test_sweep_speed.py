"""What a sweep costs beside its trials: run by hand, `-m slow -s`, on a quiet machine."""

import subprocess
import sys
import time

import pytest

from tests.conftest import Harness
from tests.tuning.test_sweep import Sweeps

SEARCH = """
[model]
architecture = "lstm"
units = 32
[data]
limit = {limit}
maxlen = {maxlen}
validation_split = 0.2
[train]
epochs = {epochs}
batch_size = 128
keep = "last"
ema_momentum = 0.0
[search]
tuner = "random"
trials = {trials}
[search.space]
model.dropout = {{ min = 0.1, max = 0.6, step = 0.01 }}
train.learning_rate = {{ min = 0.0005, max = 0.005, log = true }}
"""

# The same runs one after another in one process, without a search.
DIRECT = """
import sys, time
from pathlib import Path
from harness.compute.strategy import import_tensorflow, make_strategy
from harness.data.imdb_sources import open_sample
from harness.system.console import Console
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.tuning.sweep_dir import SweepDirectory
import_tensorflow(None, 1)
strategy = make_strategy(None)
from harness.tuning.records import Trial
from harness.training.context import Observers
from harness.tuning.trial import Trials
console = Console()
console.silent = True
observers = Observers(console, ResourceMonitor(0, 1), StopRequest())
sweep = SweepDirectory(Path(sys.argv[1]))
given = dict(dataset=open_sample(), strategy=strategy, observers=observers)
trials = Trials(sweep, sweep.search(), **given)
for i in range(24):
    if i == 4:
        began = time.perf_counter()
    values = {"model.dropout": 0.1 + 0.01 * i, "train.learning_rate": 0.001}
    assert not trials.run(Trial(n=1000 + i, values=values), 1, lambda: None).error
print((time.perf_counter() - began) / 20)
"""


def took_s(harness: Harness, code: str, *words: object) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=harness.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_what_a_search_adds_to_an_empty_trial(harness: Harness) -> None:
    """A trial of two reviews, in a search and without."""
    size = {"limit": 2, "maxlen": 1, "epochs": 1}
    sweeps = Sweeps(harness, SEARCH.format(**size, trials=4))
    times = []
    for trials in (4, 24):
        began = time.monotonic()
        done = sweeps.tune(f"of{trials}", "--workers", 1, "--set", f"search.trials={trials}")
        assert done.returncode == 0, done.stderr
        times.append(time.monotonic() - began)
    each_s = (times[1] - times[0]) / 20
    direct_s = took_s(harness, DIRECT, sweeps.folder("of4"))
    print(f"a trial {each_s:.3f} s, without {direct_s:.3f} s")  # noqa: T201
    print(f"added {1000 * (each_s - direct_s):.0f} ms")  # noqa: T201
    assert each_s < direct_s + 5
