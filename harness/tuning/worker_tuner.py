"""KerasTuner's search as a worker runs it: asks the chief for trials until there are no more.

Import it after TensorFlow is set up, since it imports KerasTuner.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import keras_tuner as kt
from keras_tuner.src.distribute import oracle_client

from harness.errors import InputError, Interrupted, NodeFault, RunError, TakenOver
from harness.system.signals import StopRequest
from harness.tuning.oracle import make_oracle
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.trial import Trials

ASK_AGAIN_S = 0.5  # while trials of other workers must end before there is a next one
MAX_TRIALS = 50  # of a process: each leaves about ten megabytes behind (KerasTuner's issue 395)
CALL_TIMEOUT_S = 10  # of a call to the chief, after which the worker looks whether it should stop
CHIEF_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


class EndSearch(kt.errors.FatalError):  # type: ignore[misc]  # KerasTuner ships no types
    """Ends KerasTuner's search, which passes a FatalError on instead of failing the trial."""

    def __init__(self, *, has_more: bool = False, interruption: Interrupted | None = None) -> None:
        super().__init__()
        self.has_more, self.interruption = has_more, interruption


class PatientOracle:
    """The chief's oracle; each call is repeated while the chief is away."""

    def __init__(self, client: Any, sweep: SweepDirectory, stop: StopRequest) -> None:
        self._client, self._sweep, self._stop = client, sweep, stop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return self._repeated(attribute) if callable(attribute) else attribute

    def _repeated(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            while True:
                self._stop.check()
                try:
                    return method(*args, **kwargs)
                except grpc.RpcError as error:
                    if error.code() not in CHIEF_AWAY:
                        raise
                    if self._sweep.finished():  # so the chief has ended for good
                        raise EndSearch from None
                    time.sleep(ASK_AGAIN_S)

        return call


class WorkerTuner(kt.engine.base_tuner.BaseTuner):  # type: ignore[misc]
    """Trains each trial as a run of its own."""

    oracle: Any  # of KerasTuner's base class

    def __init__(
        self, sweep: SweepDirectory, trials: Trials, *, stop: StopRequest, folder: Path
    ) -> None:
        oracle = make_oracle(sweep.search(), folder, sweep.trial_error)
        super().__init__(oracle, directory=folder, project_name="tuner")
        self.oracle = PatientOracle(self.oracle, sweep, stop)
        self._runner, self._stop = trials, stop
        self._had_trial, self._taken_over = True, False
        self._num_trials = 0

    def pre_create_trial(self) -> None:
        """Wait a moment if the last call gave no trial, and end if this process has had enough."""
        self._stop.check()
        if self._num_trials >= MAX_TRIALS:
            raise EndSearch(has_more=True)
        if not self._had_trial:
            time.sleep(ASK_AGAIN_S)
        self._had_trial = self._taken_over = False

    def on_trial_begin(self, trial: Any) -> None:
        """Count the trial."""
        self._had_trial = True
        self._num_trials += 1

    def run_trial(self, trial: Any) -> dict[str, float]:
        """Train the trial and return its scores; an error of its own fails this trial alone."""
        try:
            return self._runner.run(trial.trial_id, trial.hyperparameters.values)
        except Interrupted as end:
            raise EndSearch(interruption=end) from None
        except TakenOver:  # the chief took this worker for lost and gave the trial to another
            self._taken_over = True
            raise
        except (InputError, RunError) as error:
            if isinstance(error, NodeFault):  # CUDA takes no more orders from this process
                self._num_trials = MAX_TRIALS
            self._runner.note_failure(trial.trial_id, error)
            raise kt.errors.FailedTrialError(str(error)) from None
        except Exception as error:  # Keras and TensorFlow raise errors of any type
            self._runner.note_failure(trial.trial_id, error)
            raise kt.errors.FailedTrialError(str(error)) from error
        finally:
            gc.collect()

    def on_trial_end(self, trial: Any) -> None:
        """Report the trial, unless another worker has it by now."""
        if not self._taken_over:
            self.oracle.end_trial(trial)


def run_trials(sweep: SweepDirectory, trials: Trials, *, stop: StopRequest, folder: Path) -> bool:
    """Run trials until the chief has no more, or this process has run `MAX_TRIALS`.

    Args:
        sweep: whose trials.
        trials: trains them.
        stop: checked before each call to the chief.
        folder: an empty one for KerasTuner's own files.

    Returns:
        Whether there are more trials, for a fresh process.

    Raises:
        Interrupted: a signal came; the current trial is saved.
    """
    oracle_client.TIMEOUT = CALL_TIMEOUT_S  # by default an hour, in which no signal has an effect
    try:
        WorkerTuner(sweep, trials, stop=stop, folder=folder).search()
    except EndSearch as end:
        if end.interruption:
            raise end.interruption from None
        return end.has_more
    return False
