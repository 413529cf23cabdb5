"""Writes the event files in a run's `tensorboard/` folder.

Users' dashboards rely on these tags:

| folder | tags | step |
| --- | --- | --- |
| `train/` | `step/loss step/accuracy step/learning_rate step/reviews_per_s` | optimizer step |
| `train/` | `step/duration_ms` | optimizer step |
| `train/` | `device/cpu_share device/memory_gb` | optimizer step |
| `train/` | `device/gpu0_share device/gpu0_memory_gb` and so on | optimizer step |
| `train/` | `epoch/loss epoch/accuracy epoch/learning_rate epoch/reviews_per_s` | epoch, from 1 |
| `validation/` | `epoch/loss epoch/accuracy` | epoch, from 1 |
| `.` | `test/accuracy` and the other scores, pictures, texts, graph, hyperparameters | 0 |
| `.` of a trial | `search/val_accuracy` or another objective of the search | 0 |

Because TensorBoard keeps all points in memory, and a curve needs only hundreds of points, the log
contains the losses of about 500 evenly spaced steps at most. The choice of these 500 steps
depends only on the run's total number of steps. Learning rate, speed and the machine's load are
measured only when the run copies results from the device; the log contains these values for about
100 steps at most.

A checkpoint contains the log's `mark`: the size of each event file at the time of the checkpoint. A
resumed run truncates the event files to the sizes in the checkpoint's `mark`, and then writes the
same events as an undisturbed run.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.hparams import api as hp
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.image import metadata as image_plugin
from tensorboard.plugins.scalar import metadata as scalar_plugin
from tensorboard.plugins.text import metadata as text_plugin
from tensorboard.util.tensor_util import make_tensor_proto

from harness.errors import DiskError
from harness.job.search import TrialRow
from harness.system.files import atomic_write, sync

# TensorBoard shows each folder as a run; "." is `tensorboard/` itself. Each folder has one writer.
FOLDERS = (".", "train", "validation")

STEP_POINTS, MEASURED_POINTS = 500, 100  # approximate number of points of a curve

REMEDY = "free up space on this disk, then resume the run"


class TensorBoardLog(contextlib.AbstractContextManager["TensorBoardLog"]):
    """Writes a `tensorboard/` folder. At the end of a `with` block the log closes its files.

    All methods hand their events to the operating system at once, so a running TensorBoard shows
    the events, and a killed process loses none. All methods raise DiskError if the disk can't be
    written.
    """

    def __init__(
        self,
        folder: Path,
        mark: Mapping[str, int] | None = None,
        *,
        num_steps: int = 0,
    ) -> None:
        """Open the log, and remove all events that were written after the checkpoint.

        Args:
            folder: the folder for the run's event files; created if missing.
            mark: the size of each event file at the checkpoint, as `mark()` returned it. A file
                that has grown since the checkpoint is truncated to this size. An event file without
                a size in `mark` is removed.
            num_steps: the largest number of steps that the run can have. If this number is at most
                500, the losses of all steps are logged.
        """
        self._folder = folder
        self._started: set[str] = set()
        self._every = max(1, math.ceil(num_steps / STEP_POINTS))
        self._measured_every = max(1, math.ceil(num_steps / MEASURED_POINTS))
        self._measured: dict[str, float] = {}  # the newest measurements that are not yet written
        with _one_line(folder):
            # TensorBoard reads a folder's files in the order of their names, and never returns to
            # an earlier file. So the new file's name must come last, even if the host that wrote
            # the last file had a clock that is ahead of this host's clock.
            later_s = [int(path.name.split(".")[3]) + 1 for path in _event_files(folder)]
            start_s = max([time.time(), *later_s])
            _cut_back(folder, mark or {})
            name = f"events.out.tfevents.{start_s:017.6f}.{socket.gethostname()}.{os.getpid()}"
            self._paths = {key: folder / key / name for key in FOLDERS}
            self._writers = {
                key: tf.io.TFRecordWriter(str(path)) for key, path in self._paths.items()
            }
        for key in FOLDERS:
            self._write(key, Event(file_version="brain.Event:2"))

    def steps(
        self,
        first_step: int,
        losses: np.ndarray,
        accuracies: np.ndarray,
        measured: Mapping[str, float],
    ) -> None:
        """Log n training steps.

        Args:
            first_step: the number of the first step, counted from 1 over the whole run.
            losses: each step's mean loss over the global batch, `[n]`.
            accuracies: each step's share of correct predictions, `[n]`.
            measured: the learning rate, the speed and the machine's load at the last step in
                `losses`, by tag. A run logs these values about 100 times at most.
        """
        self._start("train", first_step)
        last_step = first_step + len(losses) - 1
        events = [
            _scalar_event({"step/loss": loss, "step/accuracy": accuracy}, step)
            for step, (loss, accuracy) in enumerate(
                zip(losses, accuracies, strict=True), first_step
            )
            if step % self._every == 0 or step == 1
        ]
        self._measured |= measured
        every = self._measured_every
        if last_step // every > (first_step - 1) // every:
            events.append(_scalar_event(self._measured, last_step))
            self._measured = {}
        self._write("train", *events)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch.

        Validation metrics have the same tags as training metrics, so TensorBoard draws both in one
        chart.

        Args:
            line: the epoch's line in `metrics.jsonl`, with its measured times.
        """
        epoch, tags = line["epoch"], ("loss", "accuracy", "learning_rate", "reviews_per_s")
        train = {f"epoch/{tag}": line[tag] for tag in tags if tag in line}
        validation = {f"epoch/{tag}": line[f"val_{tag}"] for tag in tags if f"val_{tag}" in line}
        self._write("train", _scalar_event(train, epoch))
        if validation:
            self._start("validation", epoch)
            self._write("validation", _scalar_event(validation, epoch))

    def scores(self, group: str, scores: Mapping[str, object]) -> None:
        """Log the scores that are numbers, with tags `<group>/<name>` such as `test/accuracy`."""
        numbers = {f"{group}/{name}": n for name, n in scores.items() if isinstance(n, int | float)}
        self._write(".", _scalar_event(numbers))

    def text(self, tag: str, markdown: str) -> None:
        """Log a text in Markdown, such as the model's summary."""
        self._log(tag, text_plugin, markdown.encode())

    def picture(self, tag: str, png: bytes) -> None:
        """Log a PNG file without changing it."""
        # The first chunk of a PNG contains width and height, 32-bit and big-endian (RFC 2083).
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        self._log(tag, image_plugin, [str(width).encode(), str(height).encode(), png])

    def _log(self, tag: str, plugin: Any, content: bytes | list[bytes]) -> None:
        metadata = plugin.create_summary_metadata(display_name=None, description=None)
        tensor = make_tensor_proto(content, dtype=np.object_)
        summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
        self._write(".", Event(summary=summary))

    def graph(self, graph: tf.Graph) -> None:
        """Log a graph of operations, such as `step.get_concrete_function(...).graph`."""
        self._write(".", Event(graph_def=graph.as_graph_def().SerializeToString()))

    def hyperparameters(self, row: TrialRow) -> None:
        """Log a row of the HParams page, and the list of metrics that the page shows.

        TensorBoard finds the validation metrics only if its --logdir is a parent of the log's
        folder. If --logdir is the log's folder itself, TensorBoard looks for a run named
        "./validation", which does not exist.
        """
        # TensorBoard applies the first run's description to all runs. So the description contains
        # the types of the keys, but not their domains, which would hide runs with other values.
        examples = sorted(row.columns.items())
        infos = [api_pb2.HParamInfo(name=key, type=_type(value)) for key, value in examples]
        # The validation metrics are those of the last epoch, although the run may have saved the
        # weights of an earlier epoch.
        metrics = [
            hp.Metric("epoch/accuracy", group="validation", display_name="last val. accuracy"),
            hp.Metric("epoch/loss", group="validation", display_name="last val. loss"),
            hp.Metric("test/accuracy", display_name="test accuracy"),
        ]
        if row.objective:
            score = hp.Metric(f"search/{row.objective}", display_name=row.objective)
            metrics = [score, *metrics[:2]]
        now_s = time.time()
        experiment = hparams_summary.experiment_pb(
            infos, [metric.as_proto() for metric in metrics], time_created_secs=now_s
        )
        session = hp.hparams_pb(dict(row.values), trial_id=row.name, start_time_secs=now_s)
        # `experiment` is an object of TensorFlow's class, but `Event` needs TensorBoard's class.
        summary = Summary.FromString(experiment.SerializeToString())
        self._write(".", Event(summary=summary), Event(summary=session))

    def mark(self) -> dict[str, int]:
        """Sync the event files, and return each file's relative path and size in bytes."""
        with _one_line(self._folder):
            for path in self._paths.values():
                sync(path)
            return {
                path.relative_to(self._folder).as_posix(): path.stat().st_size
                for path in _event_files(self._folder)
            }

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, key: str, *events: Any) -> None:
        with _one_line(self._paths[key]):
            for event in events:
                event.wall_time = time.time()
                self._writers[key].write(event.SerializeToString())
            self._writers[key].flush()

    def _start(self, key: str, step: int) -> None:
        """Make a running TensorBoard forget all events from `step` on.

        TensorBoard may have read events that the resumed run has removed from the files.
        """
        if key not in self._started:
            self._started.add(key)
            self._write(key, Event(step=step, session_log=SessionLog(status=SessionLog.START)))


def _scalar_event(values: Mapping[str, float], step: int = 0) -> Any:
    metadata = scalar_plugin.create_summary_metadata(display_name=None, description=None)
    event = Event(step=step)
    for tag, value in values.items():
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape={}, float_val=[value])
        event.summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    return event


def _type(value: bool | float | str) -> int:
    if isinstance(value, bool):
        return int(api_pb2.DATA_TYPE_BOOL)
    if isinstance(value, int | float):
        return int(api_pb2.DATA_TYPE_FLOAT64)
    return int(api_pb2.DATA_TYPE_STRING)


def _event_files(folder: Path) -> list[Path]:
    return [path for key in FOLDERS for path in sorted((folder / key).glob("*.tfevents.*"))]


def _cut_back(folder: Path, mark: Mapping[str, int]) -> None:
    for key in FOLDERS:
        (folder / key).mkdir(parents=True, exist_ok=True)
        for leftover in (folder / key).glob(".*.tmp"):  # left by a killed process
            leftover.unlink(missing_ok=True)
    for path in _event_files(folder):
        size = mark.get(path.relative_to(folder).as_posix())
        if size is None:
            path.unlink()
        elif path.stat().st_size > size:
            # Replace the file instead of truncating it, because TensorBoard may be reading it.
            with path.open("rb") as file:
                start = file.read(size)
            atomic_write(path, start, remedy=REMEDY)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
    except tf.errors.OpError as error:
        reason = error.message
    else:
        return
    raise DiskError(f"{path}: can't be written: {reason}; {REMEDY}")
