"""Records why a run failed or was interrupted, and explains why a worker ended."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from harness.compute.device_errors import explained_device_errors
from harness.compute.strategy import describe_devices, one_device, title_of_devices
from harness.errors import Interrupted, RunError, TakenOver
from harness.slurm.environment import node_name, resume_command
from harness.slurm.nodes import WorkerGroup
from harness.system import watchdog
from harness.tracking.records import Heartbeat
from harness.training.context import Compute

# TensorFlow's errors if a worker does not take part in a collective operation.
LOST_TO_TENSORFLOW = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)

# NCCL's messages if another process of a collective operation has ended.
LOST_TO_NCCL = re.compile("ncclRemoteError|remote process (has )?exited|ncclSystemError")


@contextlib.contextmanager
def recorded_failures(
    heartbeat: Heartbeat, worker_group: WorkerGroup | None = None
) -> Iterator[None]:
    """Record in `state.json` that a run was interrupted or failed, and why."""
    try:
        with explained_device_errors(), explained_losses(worker_group):
            yield
    except Interrupted as reason:
        heartbeat.interrupted(reason)
        raise
    except Exception as error:
        # If another process has taken over the run, it has truncated the run's logs and removed
        # incomplete files. `error` is then usually a consequence, and is not recorded.
        try:
            heartbeat.run.check_lease()
        except TakenOver:
            raise
        except RunError:  # the lease can't be read; `error` explains more
            pass
        # Writing the record can fail too, on a full disk or without the lease.
        with contextlib.suppress(RunError):
            heartbeat.beat("failed", error=f"{type(error).__name__}: {error}")
        raise


def watching(compute: Compute, heartbeat: Heartbeat) -> contextlib.AbstractContextManager[None]:
    """If the run's devices stop responding, let the watchdog end the run and record why."""
    folder, group = heartbeat.run.folder, compute.worker_group
    title = title_of_devices(describe_devices(one_device()), compute.plan.threads)
    where, next_step = f"{title} of {node_name()}", f"continue with: {resume_command(folder)}"
    if group:
        others = [node for rank, node in enumerate(group.nodes) if rank != group.rank]
        where += f", or another worker ({', '.join(others)})"
    if compute.trial:
        next_step = "the search continues the trial"
    elif group and not group.is_chief:
        next_step = f"the message of the worker on {group.nodes[0]} says how to continue"

    return watchdog.current.watching(watchdog.Watched(where, next_step, heartbeat.interrupted))


@contextlib.contextmanager
def explained_losses(worker_group: WorkerGroup | None) -> Iterator[None]:
    """Replace TensorFlow's error about another worker with the reason why that worker ended.

    Raises:
        RunError: if another worker failed.
        Interrupted: if another worker was lost.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        if worker_group is None:
            raise
        worker_group.explain()
        if isinstance(error, LOST_TO_TENSORFLOW) or LOST_TO_NCCL.search(str(error)):
            node = worker_group.lost(str(error))
            raise Interrupted(f"a lost worker on {node}") from None
        raise
