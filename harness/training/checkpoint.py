"""Writes and reads checkpoints, which contain all that a run needs to resume exactly.

A checkpoint is one NumPy archive with a checksum of each array. The archive is written atomically,
and loaded without unpickling. `tf.train.Checkpoint` is not used, because it would write several
files, and can store only variables.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.optimizer import schedule_of
from harness.compute.train_step import TrainStep
from harness.errors import InputError, RunError
from harness.slurm.nodes import WorkerGroup
from harness.system.console import quoted
from harness.system.files import disk_error_in, open_plain_file, raise_unless_missing
from harness.system.leased_dir import PATIENCE_S, RETRY_S
from harness.tracking.run_dir import RECORD, RunDirectory, check_format, stamped, weights_of

BFLOAT16 = tf.bfloat16.as_numpy_dtype
MAX_CHECKPOINTS = 2  # checkpoints per run; the older is a spare in case a disk damages the newer


@dataclass
class Progress:
    """The state of a run's training, which checkpoints store."""

    identity: str = ""  # the checksum of job and data (`RunContext.identity`)
    epoch: int = 0  # the index of the current epoch, from 0
    step: int = 0  # the number of finished steps in the current epoch
    loss_sum: float = 0.0  # the sum of the reviews' losses in the epoch so far
    num_correct: float = 0.0  # the number of correct predictions in the epoch so far
    epoch_s: float = 0.0  # the training time of the epoch so far, in seconds
    training_s: float = 0.0  # the run's training time in seconds; a repeated step counts once
    history: list[dict[str, Any]] = field(default_factory=list)  # the metrics of each epoch
    event_mark: dict[str, int] = field(default_factory=dict)  # see `TensorBoardLog.mark`
    stopped: bool = False  # whether a callback ends the training after the current epoch
    callback_states: list[Any] = field(default_factory=list)  # see `RunCallbacks.states`
    best_weights: list[np.ndarray] = field(default_factory=list)  # of the kept epoch so far


def save(run: RunDirectory, train_step: TrainStep, progress: Progress, *, total_steps: int) -> None:
    """Write a checkpoint named after the number of steps, and remove all but the last two.

    Also remove all checkpoints with more steps than the new one. They are broken: if one were
    intact, the run would have resumed from it.

    Raises:
        RunError: if the file can't be written, or a newer process took over the run.
        OSError: if an older file can't be removed.
    """
    meta = {**vars(progress)}  # dataclasses.asdict would copy all arrays
    arrays = {f"best/{i}": value for i, value in enumerate(meta.pop("best_weights"))}
    for name, variables in _variables(train_step).items():
        for i, variable in enumerate(variables):
            arrays[f"{name}/{i}"] = variable.numpy()
    check_results()
    record = json.dumps(stamped(meta))
    arrays["progress"] = np.frombuffer(record.encode(), np.uint8)
    name = f"step-{total_steps:09d}.npz"
    # List the broken checkpoints before `_write` checks the lease, so that the list contains no
    # checkpoint of a newer process.
    broken = [path for path in run.checkpoints() if path.name > name]
    _write(run, name, arrays)
    for path in broken:
        path.unlink(missing_ok=True)
    for old in run.checkpoints()[:-MAX_CHECKPOINTS]:
        old.unlink(missing_ok=True)


def restore(
    run: RunDirectory,
    train_step: TrainStep,
    identity: str,
    *,
    worker_group: WorkerGroup | None = None,
) -> tuple[Progress, list[str]]:
    """Restore the newest intact checkpoint; without one, start from the beginning.

    On several nodes only the chief reads the folder. The chief sends the checkpoint to the other
    workers, which may see an older state of a shared file system, or no folder at all.

    Returns:
        The progress, and a warning for each broken checkpoint.

    Raises:
        InputError: if another version of harness wrote the checkpoint.
        Interrupted: if the chief is lost before it sends the checkpoint.
        DiskError: if the disk can't be read; the checkpoints may be intact.
        RunError: if a checkpoint was written for another job or other data, or if the run began
            with another run's weights and all its checkpoints are broken.
    """
    if worker_group and not worker_group.is_chief:
        content = worker_group.share()
        if not content:
            return Progress(identity=identity), []
        arrays = _load(io.BytesIO(content))
        _assign(arrays, train_step)
        return _progress(arrays, "the chief's checkpoint"), []
    progress, path, skipped = _newest(run, train_step, identity, monotonic())
    if worker_group:
        worker_group.share(path.read_bytes() if path else b"")
    return progress, skipped


def adopt(
    source: RunDirectory,
    target: RunDirectory,
    identity: str,
    *,
    source_identity: str,
    max_epochs: int | None = None,
) -> bool:
    """Copy the newest suitable checkpoint of another run to a new run.

    The jobs (apart from `train.epochs`) and the data of both runs must be the same. `train.epochs`
    must also be the same if the job has custom callbacks, or if the learning-rate schedule depends
    on `train.epochs`. The new run's result is bitwise identical to the result that it would have
    if it trained from the start.

    Args:
        source: the run whose checkpoint is copied.
        target: the new run; this process must hold the new run's lease.
        identity: the checksum of the new run's job and data.
        source_identity: the checksum of the source's job and data; a checkpoint with another
            checksum is not suitable.
        max_epochs: the largest number of trained epochs that the checkpoint may contain; None for
            no limit.

    Returns:
        Whether a checkpoint was copied. False if no intact checkpoint is suitable.

    Raises:
        DiskError: if the disk can't be read; the checkpoints may be intact.
        RunError: if the new run can't be written.
    """
    for path in reversed(source.checkpoints()):
        try:
            arrays: dict[str, Any] = _load(open_plain_file(path))
            meta = json.loads(arrays["progress"].tobytes())
        except MemoryError:
            raise
        except Exception as error:  # a broken file raises errors of many types
            if refusal := disk_error_in(error):
                raise_unless_missing(refusal, path)
            continue
        fits = max_epochs is None or (meta["epoch"], meta["step"]) <= (max_epochs, 0)
        if fits and meta.get("identity") == source_identity:
            meta |= {"identity": identity, "event_mark": {}}  # the new run has its own log
            arrays["progress"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
            _write(target, path.name, arrays)
            return True
    return False


def _write(run: RunDirectory, name: str, arrays: dict[str, Any]) -> None:
    run.write(f"checkpoints/{name}", lambda file: np.savez(file, **arrays))


def _newest(
    run: RunDirectory, train_step: TrainStep, identity: str, since_s: float
) -> tuple[Progress, Path | None, list[str]]:
    skipped: list[str] = []
    paths = run.checkpoints()
    for path in reversed(paths):
        try:
            arrays = _load(open_plain_file(path))
            progress = _progress(arrays, f"checkpoint {path}")
        except (InputError, MemoryError):  # the checkpoint may be intact
            raise
        except Exception as error:  # a broken file raises errors of many types
            if isinstance(error, FileNotFoundError) and monotonic() - since_s < PATIENCE_S:
                # This node's listing of the shared file system is stale: an earlier process has
                # replaced the checkpoint with newer ones.
                sleep(RETRY_S)
                return _newest(run, train_step, identity, since_s)
            if refusal := disk_error_in(error):
                raise_unless_missing(refusal, path)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            left = (
                "using the checkpoint before it"
                if path != paths[0]
                else "no checkpoint is left, so the run starts over"
            )
            skipped.append(f"checkpoint {path.name} is broken ({reason}); {left}")
            continue
        if progress.identity != identity:
            raise RunError(
                f"{path}: this checkpoint was written for another job or other data; restore "
                f"{run.path('job.toml')} and the file of model.embeddings as they were when the "
                "run began, or start a new run"
            )
        try:
            _assign(arrays, train_step)
        except (KeyError, ValueError):
            raise RunError(
                f"{path}: does not fit the network, because the code or a package has changed; "
                "restore both as they were when the run began, or start a new run"
            ) from None
        return progress, path, skipped
    if skipped and (parent := weights_of(run.certain_json(RECORD))):
        raise RunError(
            f"run {run.folder}: all its checkpoints are broken; to begin again with the weights of "
            f"{parent}, remove {run.path('checkpoints')}, then run harness resume "
            f"{quoted(run.folder)}"
        )
    return Progress(identity=identity), None, skipped


def _assign(arrays: dict[str, np.ndarray], train_step: TrainStep) -> None:
    for name, variables in _variables(train_step).items():
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"{name}/{i}"])


def checksum(train_step: TrainStep) -> str:
    """Return the sha256 of all variables of the model, the optimizer and the schedule."""
    digest = hashlib.sha256()
    for variables in _variables(train_step).values():
        for variable in variables:
            digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _variables(train_step: TrainStep) -> dict[str, list[keras.Variable]]:
    # `model.variables` includes the layers' random generators; `model.weights` does not. The
    # optimizer's variables include the step, learning rate, moments and averaged weights.
    variables = {"model": train_step.model.variables, "optimizer": train_step.optimizer.variables}
    if schedule := schedule_of(train_step.optimizer):
        variables["schedule"] = [schedule.cut]
    return variables


def _load(file: BinaryIO) -> dict[str, np.ndarray]:
    # Read every array to its end, where zipfile verifies the array's checksum.
    with file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    # NumPy has no bfloat16 type, and writes a bfloat16 array as raw bytes of type "V2".
    return {name: a.view(BFLOAT16) if a.dtype == "V2" else a for name, a in arrays.items()}


def _progress(arrays: dict[str, np.ndarray], name: str) -> Progress:
    meta = json.loads(arrays["progress"].tobytes())
    check_format(name, meta)
    del meta["format"], meta["harness"]
    num = sum(key.startswith("best/") for key in arrays)
    return Progress(**meta, best_weights=[arrays[f"best/{i}"] for i in range(num)])
