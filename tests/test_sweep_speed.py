"""How fast a sweep is beside KerasTuner alone: run by hand, `-m slow -s`, on a quiet machine."""

import subprocess
import sys
import time

import pytest

from tests.conftest import Harness
from tests.test_sweep import Sweeps

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

# The notebook's way: a builder, padded arrays, KerasTuner in one process on all cores.
ALONE = """
import sys, time
began = time.perf_counter()
import keras, keras_tuner as kt
from harness.imdb_sources import open_sample
from harness.vocabulary import encode_split
limit, maxlen, epochs, trials = map(int, sys.argv[1:5])
data = open_sample()
tokens, offsets = encode_split(data.train.take(limit), 8000)
x = keras.utils.pad_sequences(
    [tokens[a:b] for a, b in zip(offsets[:-1], offsets[1:])], maxlen=maxlen)
y = data.train.labels[:limit]
def build(hp):
    model = keras.Sequential([
        keras.layers.Embedding(8000, 32), keras.layers.SpatialDropout1D(0.4),
        keras.layers.LSTM(32), keras.layers.Dropout(hp.Float("dropout", 0.1, 0.6, step=0.01)),
        keras.layers.Dense(1, activation="sigmoid")])
    rate = hp.Float("rate", 0.0005, 0.005, sampling="log")
    model.compile(keras.optimizers.RMSprop(rate), "binary_crossentropy", metrics=["accuracy"])
    return model
tuner = kt.RandomSearch(build, "val_accuracy", max_trials=trials, seed=1, directory=sys.argv[5])
tuner.search(x, y, batch_size=128, epochs=epochs, validation_split=0.2, verbose=0)
print(time.perf_counter() - began)
"""

# The same runs one after another in one process, without chief and supervisor.
DIRECT = """
import sys, time
from pathlib import Path
from harness.gauge import Gauge
from harness.imdb_sources import open_sample
from harness.screen import Screen
from harness.signals import StopRequest
from harness.strategy import import_tensorflow, make_strategy
from harness.sweep import Sweep
import_tensorflow(None, 1)
strategy = make_strategy(None)
from harness.trials import Trials
sweep = Sweep(Path(sys.argv[1]))
screen = Screen()
screen.silent = True
trials = Trials(sweep, open_sample(), strategy, StopRequest(), screen, Gauge(0, 1))
for i in range(24):
    if i == 4:
        began = time.perf_counter()
    trials.run(f"direct{i}", {"model.dropout": 0.1 + 0.01 * i, "train.learning_rate": 0.001})
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
def test_trials_an_hour_beside_kerastuner_alone(harness: Harness) -> None:
    """Two single-threaded workers do more trials an hour than one process on all cores."""
    size = {"limit": 4000, "maxlen": 100, "epochs": 3, "trials": 12}
    sweeps = Sweeps(harness, SEARCH.format(**size))
    ratios = []
    for i in range(3):  # in turn, so that a busy moment meets both
        alone_s = took_s(harness, ALONE, *size.values(), harness.folder / f"alone{i}")
        began = time.monotonic()
        done = sweeps.tune(f"two{i}", "--workers", 2)
        two_s = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        ratios.append(alone_s / two_s)
        print(f"KerasTuner alone {alone_s:.1f} s, two workers {two_s:.1f} s")  # noqa: T201
    print("ratio", sorted(ratios)[1])  # noqa: T201
    assert sorted(ratios)[1] > 1


@pytest.mark.slow
def test_what_the_supervisor_adds_to_an_empty_trial(harness: Harness) -> None:
    """A trial of two reviews, with chief and supervisor and without."""
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
