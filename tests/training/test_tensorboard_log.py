"""The event log: exact across kills, thinned, and shown by a real TensorBoard."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import io_wrapper
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from harness.errors import RunError
from harness.training.metrics import test_scores as scores_of
from harness.training.pictures import confusion_picture
from harness.training.tensorboard_log import TensorBoardLog
from tests.slurm.cluster import free_ports

STEPS_PER_EPOCH = 7
LABELS = [0, 0, 1, 1]
PROBABILITIES = [0.2, 0.6, 0.4, 0.9]

Point = tuple[str, str, int, float]


def write_epoch(log: TensorBoardLog, epoch: int) -> None:
    """Write an epoch in two parts; all values are functions of the step's number."""
    first = (epoch - 1) * STEPS_PER_EPOCH + 1
    for start, stop in ((first, first + 4), (first + 4, first + STEPS_PER_EPOCH)):
        steps = np.arange(start, stop)
        losses, accuracies = 1 / steps, 1 - 1 / steps
        rate, speed = 0.1 / stop, 1000 + stop
        log.steps(start, losses, accuracies, learning_rate=rate, reviews_per_s=speed)
    train = {"loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.1, "reviews_per_s": 7.0}
    log.epoch(epoch, train, {"loss": 2 / epoch, "accuracy": 0.25})


def points(folder: Path) -> list[Point]:
    """Return (folder, tag, step, value) of all scalars, in TensorBoard's order of reading."""
    found = []
    for key in (".", "train", "validation"):
        names = sorted(path for path in io_wrapper.ListDirectoryAbsolute(str(folder / key)))
        for name in filter(io_wrapper.IsTensorFlowEventsFile, names):
            for event in EventFileLoader(name).Load():
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        number = float(tensor_util.make_ndarray(value.tensor))
                        found.append((key, value.tag, event.step, number))
    return found


def write_steps(log: TensorBoardLog, first: int, last: int) -> None:
    """Write some steps, ten at a time; all values are functions of the step's number."""
    for start in range(first, last + 1, 10):
        steps = np.arange(start, min(start + 10, last + 1))
        losses, measured = 1 / steps, {"device/cpu_share": 0.5}
        log.steps(
            start, losses, 1 - losses, learning_rate=0.1, reviews_per_s=7.0, measured=measured
        )


@pytest.mark.parametrize("num_steps", [400, 500, 501, 123_456])
def test_a_log_has_about_500_evenly_spaced_steps(tmp_path: Path, num_steps: int) -> None:
    """It has every step of a short run, and at most about 100 figures of the machine."""
    with TensorBoardLog(tmp_path, num_steps=num_steps) as log:
        write_steps(log, 1, num_steps)
    steps: dict[str, list[int]] = {}
    for _, tag, step, value in points(tmp_path):
        steps.setdefault(tag, []).append(step)
        assert tag != "step/loss" or value == pytest.approx(1 / step)
    loss, speed = steps["step/loss"], steps["step/reviews_per_s"]
    assert (steps["step/accuracy"], steps["device/cpu_share"]) == (loss, speed)
    assert len(loss) == num_steps if num_steps <= 500 else 250 <= len(loss) <= 501
    assert loss[0] == 1
    assert len({b - a for a, b in itertools.pairwise(loss[1:])}) == 1
    assert 40 <= len(speed) <= 101


def test_a_log_is_exact_across_kills(tmp_path: Path) -> None:
    """The log has the points of an undisturbed log, wherever marks and kills fall.

    `test_exactness.py` kills real runs.
    """
    with TensorBoardLog(tmp_path / "undisturbed", num_steps=5000) as log:
        write_steps(log, 1, 5000)
    folder, saved = tmp_path / "killed", 0
    mark: dict[str, int] = {}
    for at, killed in ((3, 7), (1234, 1300), (1239, 1239), (4990, 5000), (5000, 5000)):
        log = TensorBoardLog(folder, mark, num_steps=5000)
        write_steps(log, saved + 1, at)
        mark, saved = log.mark(), at
        write_steps(log, at + 1, killed)
        for path in folder.glob("*/*tfevents*"):
            with path.open("ab") as file:
                file.write(b"half a record")
    warnings: list[str] = []
    TensorBoardLog(folder, mark, warn=warnings.append).close()
    assert warnings == []
    found = [
        [each for each in points(each) if each[1].endswith(("loss", "accuracy"))]
        for each in (folder, tmp_path / "undisturbed")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("later_s", [0, -3600])
def test_names_sort_in_the_order_of_writing(tmp_path: Path, later_s: float) -> None:
    """A new file sorts last, even in the same second, or if the clock went back an hour."""
    first = TensorBoardLog(tmp_path, clock=lambda: 1_700_000_000)
    mark = first.mark()
    first.close()
    old = {path for path in tmp_path.rglob("*tfevents*") if path.is_file()}
    TensorBoardLog(tmp_path, mark, clock=lambda: 1_700_000_000 + later_s).close()
    new = {path for path in tmp_path.rglob("*tfevents*") if path.is_file()} - old
    assert len(new) == len(old) == 3
    assert max(path.name for path in old) < min(path.name for path in new)


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    """One line names a missing and a short file, and the log continues."""
    with TensorBoardLog(tmp_path) as log:
        write_epoch(log, 1)
        mark = log.mark()
    missing, short = sorted(name for name in mark if "/" in name)
    (tmp_path / missing).unlink()
    os.truncate(tmp_path / short, mark[short] - 3)
    warnings: list[str] = []
    with TensorBoardLog(tmp_path, mark, warn=warnings.append) as log:
        write_epoch(log, 2)
    (warning,) = warnings
    assert "\n" not in warning
    assert "2 of 3 event files" in warning
    assert warning.endswith(f"{missing}, {short}")
    assert ("train", "step/loss", 14, float(np.float32(1 / 14))) in points(tmp_path)


def test_a_running_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """TensorBoard has already read events that a killed process wrote after its last mark."""
    log = TensorBoardLog(tmp_path)
    write_epoch(log, 1)
    mark = log.mark()
    write_epoch(log, 2)
    watchers = {
        key: EventAccumulator(str(tmp_path / key), size_guidance={"tensors": 0}).Reload()
        for key in ("train", "validation")
    }
    with TensorBoardLog(tmp_path, mark) as log:
        write_epoch(log, 2)
    for key, tag, last in (("train", "step/loss", 14), ("validation", "epoch/loss", 2)):
        shown = [event.step for event in watchers[key].Reload().Tensors(tag)]
        assert shown == list(range(1, last + 1))


def test_a_full_disk_is_one_line_with_the_name_of_the_file(tmp_path: Path) -> None:
    """Leaving the `with` block raises no second error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.zeros(1000)

    def write_more_than_fits() -> None:
        with TensorBoardLog(tmp_path) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            log.steps(1, values, values, learning_rate=0.1, reviews_per_s=1.0)

    try:
        with pytest.raises(RunError, match=r"^[^\n]*/train/[^\n]*can't be written[^\n]*$"):
            write_more_than_fits()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Get = Callable[..., Any]
RUN = "gru/tensorboard"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """Start a TensorBoard that shows a run; yield a function that requests its pages."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "gru/tensorboard"
    with TensorBoardLog(folder) as log:
        write_epoch(log, 1)
        mark = log.mark()
        write_epoch(log, 2)
    with TensorBoardLog(folder, mark) as log:
        write_epoch(log, 2)
        log.text("job", "a *job*")
        log.graph(tf.function(lambda x: x + 1).get_concrete_function(tf.TensorSpec([])).graph)
        log.hyperparameters(
            {"train.learning_rate": 0.01, "model.architecture": "gru", "train.shuffle": True},
            run_name="gru/1",
        )
        log.test(scores_of(LABELS, PROBABILITIES))
        log.picture("test/confusion", confusion_picture(LABELS, PROBABILITIES))

    port = free_ports(1)[0]

    def get(page: str, **arguments: str) -> Any:
        url = f"http://127.0.0.1:{port}/data/{page}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers["Content-Type"] else body

    command = [sys.executable, "-m", "tensorboard.main", "--load_fast=false", "--host=127.0.0.1"]
    command += [f"--port={port}", f"--logdir={runs}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 120
        while not _has_loaded(get):
            assert server.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        yield get
    finally:
        server.terminate()
        server.wait(timeout=20)


def _has_loaded(get: Get) -> bool:
    try:
        tags = get("plugin/scalars/tags")
    except urllib.error.URLError:
        return False
    return "epoch/loss" in tags.get(f"{RUN}/validation", {}) and "test/f1" in tags.get(RUN, {})


@pytest.mark.full
def test_board_shows_scalars(board: Get) -> None:
    """The Scalars page has every tag, and each step's loss once."""
    tags = {run: sorted(tags) for run, tags in board("plugin/scalars/tags").items()}
    assert tags[f"{RUN}/validation"] == ["epoch/accuracy", "epoch/loss"]
    names = ("accuracy", "learning_rate", "loss", "reviews_per_s")
    assert tags[f"{RUN}/train"] == [
        f"{group}/{name}" for group in ("epoch", "step") for name in names
    ]
    of_test = "accuracy balanced_accuracy f1 f1_macro f1_weighted log_loss num_reviews precision"
    assert tags[RUN] == [f"test/{name}" for name in f"{of_test} recall roc_auc".split()]
    series = board("plugin/scalars/scalars", run=f"{RUN}/train", tag="step/loss")
    assert [(step, value) for _, step, value in series] == [
        (step, float(np.float32(1 / step))) for step in range(1, 15)
    ]
    assert "step/loss" in board("plugin/timeseries/tags")["scalars"]["runTagInfo"][f"{RUN}/train"]


@pytest.mark.full
def test_board_shows_hyperparameters(board: Get) -> None:
    """The HParams page has a row with the job and the metrics of validation and test set."""
    experiment = board("plugin/hparams/experiment", request=json.dumps({"experimentName": ""}))
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert types == {
        "model.architecture": "DATA_TYPE_STRING",
        "train.learning_rate": "DATA_TYPE_FLOAT64",
        "train.shuffle": "DATA_TYPE_BOOL",
    }
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    request = {"allowedStatuses": statuses, "startIndex": 0, "sliceSize": 10}
    request["colParams"] = [{"hparam": name, "includeInResult": True} for name in types]
    answer = board("plugin/hparams/session_groups", request=json.dumps(request))
    (row,) = answer["sessionGroups"]
    assert row["name"] == "gru/1"
    assert row["hparams"]["train.learning_rate"] == 0.01
    metrics = {
        (value["name"].get("group", ""), value["name"]["tag"]): value["value"]
        for value in row["metricValues"]
    }
    assert metrics == {
        ("validation", "epoch/accuracy"): 0.25,
        ("validation", "epoch/loss"): 1.0,
        ("", "test/accuracy"): 0.5,
    }


@pytest.mark.full
def test_board_shows_picture_text_and_graph(board: Get) -> None:
    """The pages return the bytes of the picture, the text as HTML, and the graph's operations."""
    found = board("plugin/images/images", run=RUN, tag="test/confusion", sample="0")
    (image,) = found
    (key,) = urllib.parse.parse_qs(image["query"])["blob_key"]
    png = board("plugin/images/individualImage", blob_key=key)
    assert png == confusion_picture(LABELS, PROBABILITIES)
    (text,) = board("plugin/text/text", run=RUN, tag="job")
    assert text["text"] == "<p>a <em>job</em></p>"
    assert b'op: "AddV2"' in board("plugin/graphs/graph", run=RUN, conceptual="false")
