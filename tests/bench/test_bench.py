"""The bench: ratios of pairs, records that are held against each other, real processes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.bench import scale
from harness.bench.baselines import (
    BATCH_SIZE,
    MAXLEN,
    VOCAB_SIZE,
    Padded,
    _speeds,
    by_keras,
    by_keras_tuner,
    load,
    load_without_keras,
)
from harness.bench.bench import SEARCH, resuming
from harness.bench.made_up_runs import write_jobs
from harness.bench.measured import Measured, changes, read_record, to_record, write_record
from harness.bench.processes import Bench, Settings
from harness.checks.probe import ARCHITECTURES
from harness.cli.bench import bench
from harness.data.imdb_sources import open_dataset
from harness.errors import InputError, RunError
from harness.inputs.epoch_order import BatchShape
from harness.inputs.input_pipeline import Reviews
from harness.report.collect import group_runs, scored_runs
from harness.report.predictions import epochs_of, progress_of, read_predictions
from harness.search_space import load_search
from harness.system.console import Console
from tests.conftest import JOBS, PROJECT, Harness
from tests.report.small_data import small_data


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands in this process find no data of this machine, and no word of its site."""
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    monkeypatch.setenv("HARNESS_HERE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


SETTINGS = Settings(ARCHITECTURES, pairs=1, reviews=200, epochs=2, data=None, jobs=())


def speeds(harness: tuple[float, ...], notebook: tuple[float, ...]) -> Measured:
    ways = {"notebook": notebook, "harness": harness}
    return Measured("rnn training", "reviews/s", True, ways, "notebook")


def test_a_ratio_is_the_median_over_pairs_and_above_one_where_better() -> None:
    """Neighbours are divided, not medians; of seconds fewer are better."""
    ratio = speeds((200.0, 100.0, 330.0), (100.0, 100.0, 110.0)).ratio("harness")
    assert ratio is not None
    assert ratio.pairs == (2.0, 1.0, 3.0)
    assert str(ratio) == "2.00 (1.00 to 3.00)"
    start = Measured("start", "s", False, {"a": (4.0,), "b": (2.0,)}, "a")
    assert str(start.ratio("b")) == "2.00"
    assert start.ratio("a") is None


@pytest.mark.parametrize(
    ("now", "verdict"),
    [((150.0, 160.0), "same"), ((210.0, 220.0), "better"), ((110.0, 120.0), "worse")],
)
def test_a_change_counts_beyond_the_spread_of_both(now: tuple[float, ...], verdict: str) -> None:
    """Ratios of 1.4 to 1.8 then: what overlaps is the same, what lies apart has changed."""
    then = [speeds((140.0, 180.0), (100.0, 100.0))]
    (change,) = changes([speeds(now, (100.0, 100.0))], then)
    assert change.verdict == verdict
    assert change.name == "rnn training, harness over notebook"


def test_what_only_one_of_them_measured_is_no_change() -> None:
    """Another name, way or base, or no base: there is nothing to be held against."""
    lonely = Measured("help", "ms", False, {"harness": (3.0,)})
    other = Measured("lstm training", "reviews/s", True, {"notebook": (1.0,)}, "notebook")
    ways: dict[str, tuple[float, ...]] = {"torch": (2.0,), "harness": (3.0,)}
    based = Measured("rnn training", "reviews/s", True, ways, "torch")
    assert changes([lonely, other, based], [lonely, speeds((1.0,), (1.0,))]) == []


def test_nothing_compared_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty table would say that nothing got worse; other sizes are refused before."""
    path, machine = tmp_path / "bench.json", {"processor": "a", "cpus": 2}
    write_record(to_record([speeds((1.0,), (1.0,))], machine, {"epochs": 3}), path)
    monkeypatch.setattr("harness.bench.bench.measure", lambda *_: iter(()))
    with pytest.raises(InputError, match=r"bench.json: was measured with --epochs 3; give the"):
        bench(reference=path)
    with pytest.raises(RunError, match=r"nothing was compared: .*bench.json has none of these"):
        bench(reference=path, epochs=3)


def test_another_dataset_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample's reviews are short. A record that does not name its data is taken."""
    full, path, sample = tmp_path / "full", tmp_path / "bench.json", tmp_path / "sample.json"
    small_data(full)
    monkeypatch.setattr("harness.bench.bench.measure", lambda *_: iter([speeds((1.0,), (1.0,))]))
    bench(data=full, json_file=path)
    bench(json_file=sample)
    assert "; data: SAMPLE" in capsys.readouterr().out
    for reference, data, other in ((path, full, None), (sample, None, full)):
        bench(reference=reference, data=data)
        with pytest.raises(InputError, match=r"was measured on .*; give the same by --data"):
            bench(reference=reference, data=other)
    with pytest.raises(RunError, match="worse than"):  # it was compared
        bench(reference=PROJECT / "tests" / "bench.json")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Machine, settings and every value."""
    measured = [speeds((200.0, 100.0), (100.0, 50.0))]
    record = to_record(measured, {"processor": "a", "cpus": 2}, {"pairs": 2})
    write_record(record, tmp_path / "bench.json")
    read, held = read_record(tmp_path / "bench.json")
    assert (read["machine"], held) == ({"processor": "a", "cpus": 2}, measured)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read (No such file or directory)"),
        ("{", "is no record of harness bench"),
        ("[]", "is no record of harness bench"),
        ('{"format": 7}', "can't be read (its format is 7, not 1)"),
        ('{"format": 1, "machine": {}, "measured": []}', "is no record"),
        ('{"format": 1, "machine": {"processor": ""}, "measured": [{"name": 1}]}', "is no record"),
        ('{"format": 1, "machine": {"processor": ""}, "measured": [], "settings": 1}', "no record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    """One line with the file and how to make one, before anything is measured."""
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as refused:
        read_record(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_reference_is_a_record_of_every_section() -> None:
    """What `bench --compare tests/bench.json` holds later figures against."""
    record, held = read_record(PROJECT / "tests" / "bench.json")
    assert record["machine"]["processor"]
    names = {each.name for each in held}
    assert {f"{name} training" for name in ARCHITECTURES} <= names
    assert {"start to first step", "input pipeline", "rnn step", "lstm sweep"} <= names
    assert {"lstm, five seeds", "stacked_lstm on several devices", "command to answer"} <= names
    assert all(each.base in each.ways for each in held if len(each.ways) > 1)


def test_the_notebook_is_given_the_reviews_of_a_run(tmp_path: Path) -> None:
    """The first training and test reviews are the same, in the same words."""
    padded = load(Bench(SETTINGS, tmp_path, Console()).keras_file(), 100)
    dataset, shape = open_dataset(), BatchShape(BATCH_SIZE, MAXLEN)
    for split, tokens in ((dataset.train, padded.tokens), (dataset.test, padded.test)):
        reviews = Reviews(split.tokens, split.offsets[:101], split.labels[:100], VOCAB_SIZE)
        np.testing.assert_array_equal(tokens, reviews.padded(np.arange(100), shape))
    np.testing.assert_array_equal(padded.labels, dataset.train.labels[:100])


def test_torch_is_given_the_same_reviews_without_keras(tmp_path: Path) -> None:
    """Its start and its memory are its own: the process imports neither Keras nor TensorFlow."""
    generator, arrays = np.random.default_rng(1), dict[str, Any]()
    for name in ("train", "test"):  # short and long reviews, frequent and rare words
        arrays[f"x_{name}"] = reviews = np.empty(40, object)
        reviews[:] = [generator.integers(1, 9000, n).tolist() for n in range(180, 220)]
        arrays[f"y_{name}"] = generator.integers(0, 2, 40)
    file = tmp_path / "imdb.npz"
    np.savez(file, **arrays)
    code = (
        "import sys; from pathlib import Path; from harness.bench.baselines import *;"
        "load_without_keras(Path(sys.argv[1]), 9); print({'keras', 'tensorflow'} & {*sys.modules})"
    )
    args = [sys.executable, "-c", code, str(file)]
    assert subprocess.run(args, capture_output=True, text=True, check=True).stdout == "set()\n"
    for ours, theirs in zip(load_without_keras(file, 30), load(file, 30), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.full
@pytest.mark.parametrize(
    "architecture", ["rnn", pytest.param("stacked_lstm", marks=pytest.mark.slow)]
)
def test_the_notebooks_way_trains_and_is_timed(architecture: str) -> None:
    """Reviews a second of both kinds and the first step are measured, not guessed."""
    tokens = np.ones((80, MAXLEN), np.int32)
    got = by_keras(architecture, Padded(tokens, np.tile([0, 1], 40), tokens[:8]), epochs=2)
    assert got.keys() == {"first_step_s", "training_reviews_per_s", "evaluation_reviews_per_s"}
    assert min(got.values()) > 0


def test_speeds_are_medians_of_the_epochs_after_the_first() -> None:
    """80 of 100 reviews are trained in 2 s and 4 s, and 20 evaluated in 1 s and 3 s."""
    times = [0.0, 50.0, 70.0, 100.0, 102.0, 103.0, 110.0, 114.0, 117.0]
    speeds = {"training_reviews_per_s": 80 / 3, "evaluation_reviews_per_s": 20 / 2}
    assert _speeds(times, 100) == pytest.approx(speeds)


@pytest.mark.slow
def test_kerastuner_by_itself_searches(tmp_path: Path) -> None:
    """Every trial that was asked for, of the choices that the harness's search has too."""
    tokens = np.ones((80, MAXLEN), np.int32)
    reviews = Padded(tokens, np.tile([0, 1], 40), tokens[:8])
    assert by_keras_tuner("rnn", reviews, 1, trials=2, folder=str(tmp_path)) == {"trials": 2}
    (tmp_path / "tune_rnn.toml").write_text((JOBS / "notebook" / "rnn.toml").read_text() + SEARCH)
    search = load_search(tmp_path / "tune_rnn.toml")
    assert [each.key for each in search.space] == ["model.dropout", "train.learning_rate"]


def test_ways_take_turns_and_keep_their_neighbours(tmp_path: Path) -> None:
    """A B, B A, A B: the i-th values of both ways were measured one after the other."""
    order: list[str] = []

    def way(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    bench = Bench(replace(SETTINGS, pairs=3), tmp_path, Console())
    got = bench.in_turn("it", {"a": lambda: way("a"), "b": lambda: way("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert got == {"x": {"a": (1.0, 4.0, 5.0), "b": (2.0, 3.0, 6.0)}}


def test_a_process_that_fails_is_reported_by_its_last_line(tmp_path: Path) -> None:
    """Not a figure of what did not run."""
    bench = Bench(SETTINGS, tmp_path, Console())
    with pytest.raises(RunError, match=r"harness train .*ended with code 2 \(.*nothing\.toml"):
        bench.harness("train", "nothing.toml")


@pytest.mark.full
@pytest.mark.parametrize(
    ("part", "name", "ways"),
    [
        ("pipeline", "input pipeline", {"rnn training", "pipeline alone"}),
        pytest.param("training", "rnn training", {"notebook", "harness"}, marks=pytest.mark.slow),
    ],
)
def test_the_bench_measures_in_whole_processes(
    harness: Harness, part: str, name: str, ways: set[str]
) -> None:
    """On the packaged sample: a table, and a record that names no folder of this machine."""
    record = harness.folder / "bench.json"
    words = ("bench", "--only", part, "--architecture", "rnn", "--pairs", "1")
    done = harness.run(*words, "--reviews", "200", "--epochs", "2", "--json", record)
    assert done.returncode == 0, done.stderr
    assert f"{name}, reviews/s" in done.stdout
    content = json.loads(record.read_text())
    held = {each["name"]: each["ways"] for each in content["measured"]}
    assert held[name].keys() >= ways
    if part == "training":
        assert 0.1 < held["rnn peak memory"]["harness"][0] < 10
    assert content["machine"]["packages"]["tensorflow"]
    assert str(harness.folder) not in record.read_text()


@pytest.mark.full
def test_an_interrupted_bench_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that fails after half an hour costs its own figures, not those before."""

    def measure(*_: object) -> Iterator[Measured]:
        yield speeds((2.0,), (1.0,))
        raise RunError("the next one failed")

    monkeypatch.setattr("harness.bench.bench.measure", measure)
    with pytest.raises(RunError, match="the next one"):
        bench(json_file=tmp_path / "bench.json")
    assert read_record(tmp_path / "bench.json")[1] == [speeds((2.0,), (1.0,))]
    assert "rnn training, reviews/s" in capsys.readouterr().out


def test_every_process_is_given_the_data_that_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have a cache of their own, in which they would find none, and take the sample."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    small_data(tmp_path / "harness" / "imdb")
    seen: list[Settings] = []

    def measure(settings: Settings, *_: object) -> Iterator[Measured]:
        seen.append(settings)
        yield from ()

    monkeypatch.setattr("harness.bench.bench.measure", measure)
    bench()
    bench(job=[JOBS / "rnn.toml"])  # which may have texts of its own, that --data is not for
    assert [each.data for each in seen] == [tmp_path / "harness" / "imdb", None]


def test_a_process_without_a_first_step_is_reported(tmp_path: Path) -> None:
    """By its command and code, before the next is started."""
    bench = Bench(replace(SETTINGS, data=tmp_path / "nowhere"), tmp_path, Console())
    with pytest.raises(RunError, match=r"harness train .* ended with code 2 before its first step"):
        next(resuming(bench))


@pytest.mark.slow
def test_the_bench_measures_a_sweep(harness: Harness) -> None:
    """KerasTuner by itself and a real sweep, to their ends."""
    words = ("bench", "--only", "sweep", "--architecture", "rnn", "--pairs", "1")
    done = harness.run(*words, "--reviews", "200", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "rnn sweep, trials/hour" in done.stdout


def test_made_up_jobs_are_compared_as_trained_ones_are(tmp_path: Path) -> None:
    """Twelve jobs of five seeds, each with predictions, curves and times."""
    runs = write_jobs(tmp_path / "runs", 60, small_data(tmp_path / "data"))
    (group,), repeated = group_runs(scored_runs([runs])[0])
    assert (len(group.results), group.num_runs, repeated) == (12, 60, [])
    predictions = read_predictions(group, pytest.fail)
    assert predictions
    assert set(predictions.seeds.values()) == {(1, 2, 3, 4, 5)}
    assert all(len(epochs_of(each, "val_accuracy")) == 8 for each in group.results)
    assert all(len(progress_of(each)) == 5 for each in group.results)


@pytest.mark.slow
def test_the_bench_measures_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command over more and more runs, and a real TensorBoard over generated logs."""
    monkeypatch.setattr(scale, "SIZES", (10, 60))
    monkeypatch.setattr(scale, "SIZES_COMPARED", (10, 30))
    monkeypatch.setattr(scale, "SIZES_ON_BOARD", (10, 12))
    found = {each.name: each for each in scale.scale(Bench(SETTINGS, tmp_path, Console()))}
    assert {"status", "status, first look", "prune", "TensorBoard: all curves"} <= found.keys()
    assert {"compare", "compare --out: HTML", "compare --out: JSON"} <= found.keys()
    for each in found.values():
        assert next(iter(each.ways)) == each.base == "10 runs"
    if shutil.which("strace"):
        calls = {
            name: found[f"{name}: file calls"].ways for name in ("status", "status, first look")
        }
        more = {name: ways["60 runs"][0] - ways["10 runs"][0] for name, ways in calls.items()}
        assert more["status"] < 50 < more["status, first look"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "speed"), "known: training,"),
        (("--job", JOBS / "mine.toml"), "mine.toml"),
        (("--job", JOBS / "rnn.toml", "--only", "training"), "leave --only out"),
        (("--architecture", "transformer"), "known: rnn,"),
        (("--compare", "nothing.json"), "nothing.json: can't be read"),
        (("--json", "nowhere/bench.json"), "no such folder nowhere; make it first"),
        (("--json", "."), "--json .: is a folder; name a file"),
        (("--only", "training", "--data", "nowhere"), "nowhere: is no folder"),
        (("--only", "scale", "--data", "nowhere"), "nowhere: is no folder"),
        (("--only", "replicas", "--data", "nowhere"), "nowhere: is no folder"),
    ],
)
def test_what_can_not_be_measured_is_refused(
    harness: Harness, words: tuple[str, ...], said: str
) -> None:
    """One line, exit code 2."""
    done = harness.run_here("bench", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
