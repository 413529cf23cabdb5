"""How a run that fails is recorded, and what its error says: the cause rather than a symptom."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from harness.errors import Interrupted, RunError
from harness.slurm.rendezvous import WorkerGroup
from harness.tracking.heartbeat import Heartbeat

# How TensorFlow ends an operation of all workers when one of them does not take part.
LOST_TO_TENSORFLOW = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


@contextlib.contextmanager
def recorded_failures(
    heartbeat: Heartbeat, worker_group: WorkerGroup | None = None
) -> Iterator[None]:
    """Record in `state.json` how a run ended that was interrupted or failed."""
    try:
        with explained_losses(worker_group):
            yield
    except Interrupted as reason:
        try:
            heartbeat.interrupted(reason)
        except RunError as refusal:
            _record(heartbeat, refusal)
            raise refusal from None
        raise
    except tf.errors.ResourceExhaustedError:
        error = RunError(
            "the device is out of memory; lower train.batch_size or data.maxlen, or use more "
            "devices"
        )
        _record(heartbeat, error)
        raise error from None
    except Exception as error:
        # A process that took the run over cuts its log and removes leftovers, so a failure here
        # is usually a consequence of the takeover.
        heartbeat.run.check_lease()
        _record(heartbeat, error)
        raise


@contextlib.contextmanager
def explained_losses(worker_group: WorkerGroup | None) -> Iterator[None]:
    """Raise the reason why another worker ended in place of TensorFlow's error about it."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        if worker_group is None:
            raise
        worker_group.explain()
        if isinstance(error, LOST_TO_TENSORFLOW):
            first_line = str(error).splitlines()[0]
            raise Interrupted(f"TensorFlow, which lost another worker: {first_line}") from None
        raise


def _record(heartbeat: Heartbeat, error: Exception) -> None:
    # A full disk or a lost lease refuses this record too; the error itself is what matters.
    with contextlib.suppress(RunError):
        heartbeat.beat("failed", error=f"{type(error).__name__}: {error}")
