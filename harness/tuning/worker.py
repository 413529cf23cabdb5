"""A worker of a sweep: `python -m harness.tuning.worker SWEEP NAME`, started by the supervisor.

It asks the chief for a trial, trains it as a run of its own, tells the scores, and asks again. One
that is killed and started again under its name is handed its unfinished trial, which goes on from
its checkpoint.
"""

import argparse
import gc
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compute.gpus import check_gpus, promised_gpus
from harness.compute.strategy import import_tensorflow, make_strategy, num_own_gpus, parse_devices
from harness.errors import InputError, Interrupted, RunError, TakenOver
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import Console
from harness.system.processes import end_with_parent
from harness.system.resource_monitor import ResourceMonitor, idle_warning_min
from harness.system.signals import StopRequest
from harness.training.context import Observers
from harness.tuning.auth_proxy import WorkerProxy
from harness.tuning.sweep_dir import RESTART_CODE, SweepDirectory

if TYPE_CHECKING:
    from harness.tuning.trial import Trials


ASK_AGAIN_S = 0.5  # while others' trials must end before there is a next one
MAX_TRIALS = 50  # of a process: each leaves some ten megabytes behind (KerasTuner's issue 395)
CALL_S = 10  # for an answer of the chief's, before the worker looks whether it should stop


def work(
    sweep: SweepDirectory, name: str, *, devices: str | None, data: Path | None, threads: int
) -> bool:
    """Take trials until there are no more, or enough for one process.

    Returns:
        Whether there are more.

    Raises:
        Interrupted: a signal came; the trial at hand is saved.
        InputError, RunError: this worker can't work, whatever the trial.
    """
    stop = StopRequest()
    stop.listen()
    dataset, idle_min = sweep.dataset(sweep.search().job, data), idle_warning_min()
    import_tensorflow(SlurmEnvironment.from_environment(), threads)
    # It warns of graphs that are traced again, which each trial's are.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    requested = parse_devices(devices) if devices else None
    check_gpus(promised_gpus(requested, SlurmEnvironment.from_environment()), Console().warning)
    strategy = make_strategy(requested)
    stop.listen()

    from harness.tuning.trial import Trials

    console = Console()
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    on = f"GPU {gpu}" if gpu else f"{threads} CPU thread{'s' if threads > 1 else ''}"
    console.info(f"worker {name} on {socket.gethostname()}, {on}")
    monitor = ResourceMonitor(num_own_gpus(), threads, idle_min=idle_min, warn=console.warning)
    with monitor, tempfile.TemporaryDirectory(prefix="harness-worker-") as private:
        trials = Trials(sweep, dataset, strategy, observers=Observers(console, monitor, stop))
        proxy = WorkerProxy(Path(private), name, sweep.secret(), sweep.address)
        os.environ |= {
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "unix",
            "KERASTUNER_ORACLE_PORT": str(proxy.path),
        }
        return ask_for_trials(sweep, trials, stop, Path(private))


def ask_for_trials(
    sweep: SweepDirectory, trials: "Trials", stop: StopRequest, private: Path
) -> bool:
    """KerasTuner's own search, as its worker: it asks the chief until that says stop.

    Returns:
        Whether there are more trials, for a fresh process.
    """
    import grpc
    import keras_tuner as kt
    from keras_tuner.src.distribute import oracle_client

    from harness.tuning.oracle import make_oracle

    oracle_client.TIMEOUT = CALL_S  # an hour, during which no signal would end the worker

    class Patient:
        """The chief's oracle, asked again where the chief is away."""

        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, attribute: str) -> Any:
            found = getattr(self._client, attribute)
            if not callable(found):
                return found

            def ask(*words: Any, **named: Any) -> Any:
                while True:
                    stop.check()
                    try:
                        return found(*words, **named)
                    except grpc.RpcError as error:
                        if error.code() not in (
                            grpc.StatusCode.UNAVAILABLE,
                            grpc.StatusCode.DEADLINE_EXCEEDED,
                            grpc.StatusCode.CANCELLED,
                        ):
                            raise
                        if sweep.finished():  # and the chief has gone home
                            raise _Leave from None
                        time.sleep(ASK_AGAIN_S)

            return ask

    class Worker(kt.engine.base_tuner.BaseTuner):  # type: ignore[misc]
        """Trains each trial as a run; what ends the worker goes through KerasTuner untouched."""

        taken_over = False
        had_trial = True
        num_trials = 0

        def pre_create_trial(self) -> None:
            stop.check()
            if self.num_trials >= MAX_TRIALS:
                raise _Again
            if not self.had_trial:
                time.sleep(ASK_AGAIN_S)
            self.had_trial = self.taken_over = False

        def on_trial_begin(self, trial: Any) -> None:
            self.had_trial = True
            self.num_trials += 1

        def run_trial(self, trial: Any) -> dict[str, float]:
            try:
                return trials.run(trial.trial_id, trial.hyperparameters.values)
            except Interrupted as end:
                raise _Stopped(end) from None
            except TakenOver:  # the chief thought us lost; another has the trial
                self.taken_over = True
                raise
            except (InputError, RunError) as error:
                trials.note_failure(trial.trial_id, error)
                raise kt.errors.FailedTrialError(str(error)) from None
            except Exception as error:
                # An error of the trial's own: Keras and TensorFlow raise what they like.
                trials.note_failure(trial.trial_id, error)
                raise kt.errors.FailedTrialError(str(error)) from error
            finally:
                gc.collect()

        def on_trial_end(self, trial: Any) -> None:
            if not self.taken_over:
                self.oracle.end_trial(trial)

    class _Stopped(kt.errors.FatalError):  # type: ignore[misc]
        def __init__(self, end: Interrupted) -> None:
            super().__init__(str(end))
            self.end = end

    class _Leave(kt.errors.FatalError):  # type: ignore[misc]
        pass

    class _Again(kt.errors.FatalError):  # type: ignore[misc]
        pass

    oracle = make_oracle(sweep.search(), private, sweep.trial_error)
    worker = Worker(oracle, directory=private, project_name="tuner")
    worker.oracle = Patient(worker.oracle)
    try:
        worker.search()
    except _Stopped as stopped:
        raise stopped.end from None
    except _Leave:
        return False
    except _Again:
        return True
    return False


def main(words: Sequence[str] | None = None) -> int:
    """Work for the sweep in the first argument to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.worker")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    parser.add_argument("--devices")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, help="the place among the GPUs that this process sees")
    arguments = parser.parse_args(words)
    end_with_parent()
    if arguments.gpu is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        seen_list = seen.split(",") if seen else []
        mine = seen_list[arguments.gpu] if arguments.gpu < len(seen_list) else str(arguments.gpu)
        os.environ["CUDA_VISIBLE_DEVICES"] = mine
    try:
        more = work(
            SweepDirectory.open(arguments.sweep),
            arguments.name,
            devices=arguments.devices,
            data=arguments.data,
            threads=arguments.threads,
        )
    except (InputError, RunError, Interrupted) as end:
        print(f"harness: {' '.join(str(end).split())}", file=sys.stderr, flush=True)  # noqa: T201
        return end.exit_code
    return RESTART_CODE if more else 0


if __name__ == "__main__":
    sys.exit(main())
