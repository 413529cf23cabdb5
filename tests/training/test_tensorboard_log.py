"""The event log: exact across kills, and shown by a real TensorBoard."""

import json
import os
import resource
import signal
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
    """Write an epoch in two parts, all of it a function of the step's number."""
    first = (epoch - 1) * STEPS_PER_EPOCH + 1
    for start, stop in ((first, first + 4), (first + 4, first + STEPS_PER_EPOCH)):
        steps = np.arange(start, stop)
        losses, accuracies = 1 / steps, 1 - 1 / steps
        rate, speed = 0.1 / stop, 1000 + stop
        log.steps(start, losses, accuracies, learning_rate=rate, reviews_per_s=speed)
    train = {"loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.1, "reviews_per_s": 7.0}
    log.epoch(epoch, train, {"loss": 2 / epoch, "accuracy": 0.25})


def be_killed(folder: str, marks: str) -> None:
    """Write two epochs, mark, write on with half a record at the end, and die."""
    log = TensorBoardLog(Path(folder))
    log.text("job", "a *job*")
    write_epoch(log, 1)
    write_epoch(log, 2)
    Path(marks).write_text(json.dumps(log.mark()))
    write_epoch(log, 3)
    for path in Path(folder).glob("train/*tfevents*"):
        with path.open("ab") as file:
            file.write(b"half a record")
    os.kill(os.getpid(), signal.SIGKILL)


def points(folder: Path) -> list[Point]:
    """All scalars as (folder, tag, step, value), in the order in which TensorBoard reads them."""
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


def undisturbed(folder: Path, epochs: int) -> list[Point]:
    """The scalars of a log that was never killed."""
    with TensorBoardLog(folder) as log:
        for epoch in range(1, epochs + 1):
            write_epoch(log, epoch)
    return points(folder)


@pytest.mark.full
def test_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    """A run killed after its mark and resumed has every point of an undisturbed one, once."""
    expected = undisturbed(tmp_path / "undisturbed", 4)
    folder, marks = tmp_path / "killed", tmp_path / "mark.json"
    code = (
        "from tests.training.test_tensorboard_log import be_killed; "
        f"be_killed({str(folder)!r}, {str(marks)!r})"
    )
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    lost = [point for point in expected if point[2] in (15, 18)]
    assert set(lost) <= set(points(folder))

    warnings: list[str] = []
    with TensorBoardLog(folder, json.loads(marks.read_text()), warn=warnings.append) as log:
        write_epoch(log, 3)
        write_epoch(log, 4)
    assert points(folder) == expected
    assert warnings == []


def test_marks_chain_over_resumes(tmp_path: Path) -> None:
    """A mark made after a resume covers the files from before it."""
    expected = undisturbed(tmp_path / "undisturbed", 4)
    mark: dict[str, int] | None = None
    for epoch in range(1, 5):
        log = TensorBoardLog(tmp_path / "killed", mark)
        write_epoch(log, epoch)
        mark = log.mark()
        write_epoch(log, epoch + 1)
    assert mark is not None
    assert len(mark) == 4 * 3
    TensorBoardLog(tmp_path / "killed", mark).close()
    assert points(tmp_path / "killed") == expected


@pytest.mark.parametrize("later_s", [0, 0.5, -3600])
def test_names_sort_in_the_order_of_writing(tmp_path: Path, later_s: float) -> None:
    """A new file sorts last, within the same second and where the clock went back an hour."""
    first = TensorBoardLog(tmp_path, clock=lambda: 1_700_000_000)
    mark = first.mark()
    first.close()
    old = {path for path in tmp_path.rglob("*tfevents*") if path.is_file()}
    TensorBoardLog(tmp_path, mark, clock=lambda: 1_700_000_000 + later_s).close()
    new = {path for path in tmp_path.rglob("*tfevents*") if path.is_file()} - old
    assert len(new) == len(old) == 3
    assert max(path.name for path in old) < min(path.name for path in new)


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    """A missing and a short file give one line that names both, and the log goes on."""
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


def test_a_watching_tensorboard_shows_no_doubles(tmp_path: Path) -> None:
    """A TensorBoard that read what a killed process wrote after its mark shows each step once."""
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


def test_full_disk(tmp_path: Path) -> None:
    """A disk that refuses to take more ends in one line that names the file, `with` included."""
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


SPEED = {"learning_rate": 0.1, "reviews_per_s": 7.0}


def test_measured_figures_stand_once_at_the_last_step(tmp_path: Path) -> None:
    """They are cut back with all else, so a resumed log holds no measurement twice."""
    with TensorBoardLog(tmp_path) as log:
        log.steps(1, [0.5, 0.4], [0.5, 0.6], **SPEED, measured={"device/cpu_share": 0.75})
        mark = log.mark()
        log.steps(3, [0.3, 0.2], [0.7, 0.8], **SPEED, measured={"device/cpu_share": 0.25})
    with TensorBoardLog(tmp_path, mark) as log:
        log.steps(3, [0.3, 0.2], [0.7, 0.8], **SPEED, measured={"device/cpu_share": 0.5})
    found = [point[2:] for point in points(tmp_path) if point[1] == "device/cpu_share"]
    assert found == [(2, 0.75), (4, 0.5)]


Get = Callable[..., Any]
RUN = "gru/tensorboard"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A TensorBoard process over a whole run; gives a function that asks it over HTTP."""
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
    """The Scalars page has every tag in its run, and each step's loss once."""
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
    """The HParams page has the job in a row with validation's and the test set's metrics."""
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
    """The picture comes back to the byte, the text as HTML, the graph with its operations."""
    found = board("plugin/images/images", run=RUN, tag="test/confusion", sample="0")
    (image,) = found
    (key,) = urllib.parse.parse_qs(image["query"])["blob_key"]
    png = board("plugin/images/individualImage", blob_key=key)
    assert png == confusion_picture(LABELS, PROBABILITIES)
    (text,) = board("plugin/text/text", run=RUN, tag="job")
    assert text["text"] == "<p>a <em>job</em></p>"
    assert b'op: "AddV2"' in board("plugin/graphs/graph", run=RUN, conceptual="false")
