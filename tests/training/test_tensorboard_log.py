"""The event log: exact across kills, thinned, and readable for TensorBoard."""

import itertools
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import io_wrapper
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

from harness.errors import RunError
from harness.job.search import TrialRow
from harness.training.metrics import confusion_picture
from harness.training.metrics import test_scores as scores_of
from harness.training.tensorboard_log import TensorBoardLog

LABELS = [0, 0, 1, 1]
PROBABILITIES = [0.2, 0.6, 0.4, 0.9]

Point = tuple[str, str, int, float]


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
        measured = {"step/reviews_per_s": 7.0, "device/cpu_share": 0.5}
        log.steps(start, 1 / steps, 1 - 1 / steps, measured)


@pytest.mark.parametrize("num_steps", [400, 500, 501, 123_456])
def test_a_log_has_about_500_evenly_spaced_steps(tmp_path: Path, num_steps: int) -> None:
    """The log has every step of a short run, and about 100 measurements of the machine at most."""
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
    with TensorBoardLog(folder, mark):
        pass
    found = [
        [each for each in points(each) if each[1].endswith(("loss", "accuracy"))]
        for each in (folder, tmp_path / "undisturbed")
    ]
    assert found[0] == found[1]


def test_a_running_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """TensorBoard has already read events that a killed process wrote after its last mark."""

    def write_epoch(log: TensorBoardLog, epoch: int) -> None:
        write_steps(log, 7 * epoch - 6, 7 * epoch)
        line = {"loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.1, "reviews_per_s": 7.0}
        log.epoch({"epoch": epoch, **line, "val_loss": 2 / epoch, "val_accuracy": 0.25})

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


def test_a_file_of_a_host_whose_clock_is_behind_sorts_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard never returns to an earlier file."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    with TensorBoardLog(tmp_path) as log:
        mark = log.mark()
    monkeypatch.setattr(time, "time", lambda: 1_699_996_400)
    with TensorBoardLog(tmp_path, mark):
        names = [path.rpartition("/")[2] for path in mark]
        (new,) = {path.name for path in tmp_path.rglob("*tfevents*")} - {*names}
    assert max(names) < new


def test_a_full_disk_is_one_line_with_the_name_of_the_file(tmp_path: Path) -> None:
    """Leaving the `with` block raises no second error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.zeros(1000)

    def write_more_than_fits() -> None:
        with TensorBoardLog(tmp_path) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            log.steps(1, values, values, {})

    try:
        with pytest.raises(RunError, match=r"^[^\n]*/train/[^\n]*can't be written[^\n]*$"):
            write_more_than_fits()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.full
def test_tensorboard_reads_all_that_is_no_curve(tmp_path: Path) -> None:
    """TensorBoard finds scores, picture, text and graph, and the columns of the HParams page.

    `tests/board/test_tensorboard_search.py` looks at the page's rows.
    """
    graph = tf.function(lambda x: x + 1).get_concrete_function(tf.TensorSpec([])).graph
    values: dict[str, bool | float | str] = {
        "train.learning_rate": 0.01,
        "model.architecture": "gru",
        "train.shuffle": True,
    }
    png = confusion_picture(LABELS, PROBABILITIES)
    with TensorBoardLog(tmp_path) as log:
        log.text("job", "a *job*")
        log.graph(graph)
        log.hyperparameters(TrialRow("gru/1", values, values))
        log.scores("test", scores_of(LABELS, PROBABILITIES))
        log.picture("confusion", png)
    found = EventAccumulator(str(tmp_path)).Reload()

    def content(tag: str) -> Any:
        return tensor_util.make_ndarray(found.Tensors(tag)[0].tensor_proto)

    of_test = "accuracy balanced_accuracy f1 f1_macro f1_weighted log_loss num_reviews precision"
    names = [tag for tag in found.Tags()["tensors"] if tag.startswith("test/")]
    assert sorted(names) == [f"test/{name}" for name in f"{of_test} recall roc_auc".split()]
    assert content("test/accuracy") == 0.5
    assert content("job") == b"a *job*"
    assert content("confusion").tolist() == [b"640", b"480", png]
    assert [node.op for node in found.Graph().node].count("AddV2") == 1
    about = found.PluginTagToContent("hparams")
    experiment = hparams.parse_experiment_plugin_data(about[hparams.EXPERIMENT_TAG])
    types = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    assert types == {
        "model.architecture": "DATA_TYPE_STRING",
        "train.learning_rate": "DATA_TYPE_FLOAT64",
        "train.shuffle": "DATA_TYPE_BOOL",
    }
    assert [(each.name.group, each.name.tag) for each in experiment.metric_infos] == [
        ("validation", "epoch/accuracy"),
        ("validation", "epoch/loss"),
        ("", "test/accuracy"),
    ]
