"""The benchmarks compare equal work of real processes, and report ratios of paired values."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.architectures import ARCHITECTURES
from harness.data.input_pipeline import BatchShape, BatchSource, Reviews
from harness.data.sources import open_dataset
from harness.data.vocabulary import encode_split
from harness.report.collect import group_runs, scored_runs
from harness.report.statistics import read_predictions
from harness.slurm.client import Queue
from harness.system.console import Console
from harness.tracking.status import survey
from tests.bench import scale
from tests.bench.__main__ import main, parse
from tests.bench.baselines import BATCH_SIZE, MAXLEN, VOCAB_SIZE, load, load_without_keras
from tests.bench.processes import Bench, Settings
from tests.conftest import PROJECT
from tests.report.small_data import small_data


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the data and the settings of this machine from the commands."""
    for name in ("HARNESS_DATA", "HARNESS_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    monkeypatch.setenv("HARNESS_HERE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


SETTINGS = Settings(ARCHITECTURES, pairs=1, reviews=200, epochs=2, data=None)


def test_all_programs_are_given_the_reviews_of_a_run(tmp_path: Path) -> None:
    """The programs get the words of a run's first reviews, and the training reviews' labels."""
    dataset, shape = open_dataset(), BatchShape(BATCH_SIZE, MAXLEN)
    for padded in (
        load(Bench(SETTINGS, tmp_path, Console()).keras_file(), 100),
        load_without_keras(None, 100),
    ):
        for split, tokens in ((dataset.train, padded.tokens), (dataset.test, padded.test)):
            reviews = Reviews(*encode_split(split.take(100), VOCAB_SIZE), split.labels[:100])
            every = np.arange(100)
            wanted, _ = BatchSource(reviews, every[None], shape).padded(every)
            np.testing.assert_array_equal(tokens, wanted)
        np.testing.assert_array_equal(padded.labels, dataset.train.labels[:100])


def test_torch_trains_without_keras() -> None:
    """The process imports neither Keras nor TensorFlow, which would need time and memory."""
    code = (
        "import sys; from tests.bench.baselines import load_without_keras;"
        "load_without_keras(None, 9); print({'keras', 'tensorflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_ways_take_turns_and_keep_their_neighbours(tmp_path: Path) -> None:
    """The order is A B, B A, A B, so the i-th values of both ways belong together."""
    order: list[str] = []

    def way(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    bench = Bench(replace(SETTINGS, pairs=3), tmp_path, Console())
    got = bench.in_turn("it", {"a": lambda: way("a"), "b": lambda: way("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert got == {"x": {"a": (1.0, 4.0, 5.0), "b": (2.0, 3.0, 6.0)}}


def test_the_manuals_commands_are_accepted() -> None:
    """The parser accepts each command that README.md and tests/README.md show."""
    sections = []
    for name in ("README.md", "tests/README.md"):
        commands = re.findall(r"python -m tests\.bench( [^`#\n]+)", (PROJECT / name).read_text())
        sections += [parse(command.split()).sections for command in commands]
    assert sections == [["training"], ["training"], ["scale"]]


def test_made_up_runs_are_read_as_trained_ones_are(tmp_path: Path) -> None:
    """All 60 runs, five seeds of twelve jobs, are finished, with predictions and a log."""
    log, data = tmp_path / "log", small_data(tmp_path / "data")
    log.mkdir()
    runs = scale.make_runs(tmp_path / "runs", 60, data, log)
    assert [each.state for each in survey(runs, Queue())] == ["finished"] * 60
    (group,), repeated = group_runs(scored_runs([runs])[0])
    assert (len(group.runs), len(group.all_runs), repeated) == (12, 60, [])
    assert read_predictions(group)
    assert len(list(runs.glob("lstm/*/tensorboard"))) == 60


@pytest.mark.slow
def test_the_bench_measures_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs over growing numbers of runs; a real TensorBoard shows their logs."""
    monkeypatch.setattr(scale, "SIZES", (10, 20, 30))
    monkeypatch.setattr(scale, "MOST_SCORED", 20)
    measured = list(scale.scale(Bench(SETTINGS, tmp_path, Console())))
    sizes = {each.name: list(each.ways) for each in measured}
    assert sizes["status"] == sizes["prune"] == ["10 runs", "20 runs", "30 runs"]
    assert sizes["compare --out"] == sizes["tensorboard"] == ["10 runs", "20 runs"]
    assert min(value for each in measured for way in each.ways.values() for value in way) > 0


@pytest.mark.slow
def test_the_bench_measures_in_whole_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark prints a table and writes a record without a path of this machine."""
    record = tmp_path / "bench.json"
    sizes = ("--pairs", "1", "--reviews", "200", "--epochs", "2")
    assert main(["training", "--architecture", "rnn", *sizes, "--json", str(record)]) == 0
    said = capsys.readouterr().out
    assert "rnn training, reviews/s" in said
    assert "; data: SAMPLE" in said
    content = json.loads(record.read_text())
    held = {each["name"]: each["ways"] for each in content["measured"]}
    assert held["rnn training"].keys() >= {"notebook", "harness", "harness, by length"}
    assert min(value for values in held["rnn training"].values() for value in values) > 0
    assert 0.1 < held["rnn peak memory"]["harness"][0] < 10
    assert content["machine"]["packages"]["tensorflow"]
    assert str(tmp_path) not in record.read_text()
