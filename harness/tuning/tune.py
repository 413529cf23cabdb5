"""Runs a sweep from its command to its result."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.errors import DiskError, Interrupted, RunError, TakenOver
from harness.own_code import mode_in
from harness.search_space import GUIDED, SEARCH_FILE, SearchSpec
from harness.slurm.environment import SlurmEnvironment, asked_of
from harness.sweep_protocol.journal import Ledger
from harness.sweep_protocol.mailbox import RESULT, WorkerState
from harness.sweep_protocol.supervisor import CANCELLED, SUPERSEDED, Generation, supervise
from harness.sweep_protocol.worker import StopClock
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tracking.heartbeat import Heartbeat
from harness.tuning.kept_trials import KeptTrials
from harness.tuning.oracle_process import OracleProcess
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.sweep_dir import (
    LEADERBOARD,
    SweepDirectory,
    Trial,
    gather,
    leaderboard_csv,
    ranked,
    trial_of,
)

KNOWN = ("trials", "finished", "failed", "best", "generation")  # of a sweep that goes on
RECORD_S = 5.0  # for workers to save before an interruption is recorded; KillWait is often 30 s


def tune(
    sweep: SweepDirectory,
    search: SearchSpec,
    request: WorkerRequest,
    *,
    console: Console,
    full: bool = False,
) -> dict[str, Any]:
    """Begin a sweep, or go on with one, to its result.

    With `full` there is no falling back to the packaged sample.

    Returns:
        The content of `result.json`: the best trial and its score; empty if it was cancelled.

    Raises:
        InputError: if the search can't run here, or if another version of harness wrote the sweep;
            nothing has been written then.
        Interrupted, RunError: see `harness.sweep_protocol.supervisor`.
    """
    sweep.check_format()
    allocation = SlurmEnvironment.from_environment()
    slots = request.slots(allocation, search)
    dataset = sweep.dataset(search.job, request.data, full=full)
    sweep.take_lease()  # makes the folder; what follows needs none
    for name in ("journal", "workers", "trials"):
        sweep.path(name).mkdir(exist_ok=True)
    search = settled(search, sweep, len(slots))
    sweep.write_format(asked_of(allocation) if allocation else None)
    sweep.write_data(dataset)
    # There may be more trials to run now, and the old result must never seem to be of all of them.
    sweep.path(RESULT).unlink(missing_ok=True)
    mode = mode_in(sweep.folder, search.job.code)
    sweep.write(SEARCH_FILE, search.to_toml(), mode=mode)  # from here on it can be resumed
    if dataset.introduction:
        console.info(dataset.introduction)
    num_trials = f"{search.table.trials} trials" if search.table.trials else "all trials"
    console.info(
        f"sweep {sweep.folder}: {search.table.tuner}, {num_trials}, {len(slots)} worker"
        f"{'s' if len(slots) > 1 else ''}, data: {dataset.title}"
    )
    with WorkerPool(sweep.folder, request, slots, allocation=allocation, console=console) as pool:
        return SweepHost(sweep, search, pool, allocation=allocation, console=console).run()


def settled(search: SearchSpec, sweep: SweepDirectory, num_workers: int) -> SearchSpec:
    """A search with what is decided once: when its sweep begins, for as long as it goes on."""
    known = sweep.search().table if sweep.exists() else search.table
    if known.tuner not in GUIDED:
        return search
    fixed = {"parallel": known.parallel or 2 * num_workers}
    content = {**search.content, "search": {**search.content["search"], **fixed}}
    return replace(search, table=search.table.model_copy(update=fixed), content=content)


class SweepHost:
    """What surrounds a sweep's supervisor: its own workers, the files for people, the console."""

    def __init__(
        self,
        sweep: SweepDirectory,
        search: SearchSpec,
        pool: WorkerPool,
        *,
        allocation: SlurmEnvironment | None,
        console: Console,
    ) -> None:
        self.sweep, self.search, self.pool, self.console = sweep, search, pool, console
        self.signals = StopRequest()
        self.heartbeat = Heartbeat(sweep, allocation)
        self.result: dict[str, Any] = {}
        self._started_s = time.monotonic()
        self._num_at_start: int | None = None  # trials that had ended when this process began
        self._kept = KeptTrials(sweep, search)
        self._table, self._table_s = b"", float("-inf")  # the leaderboard as written last
        self._best: Trial | None = None
        self._training_s = 0.0  # of all trials that have ended
        self._num_seen = 0  # of them
        self._refused_s = float("inf")  # since when the result can't be written

    def run(self) -> dict[str, Any]:
        """Supervise to the result, which is empty if the search was cancelled.

        Raises:
            Interrupted: a signal came; all is saved, and the sweep can go on.
            InputError, RunError: the sweep can't go on.
        """
        self.signals.listen()
        shared = self.sweep.shared(StopClock(self.signals))
        before = self.sweep.read_json("state.json")
        self.heartbeat.note(**{name: before[name] for name in KNOWN if name in before})
        with contextlib.suppress(DiskError):  # a copy for people; the first round may be far
            self.heartbeat.beat("starting")
        with self.console:
            try:
                self.pool.start_all()
                how = supervise(shared, self)
            except Interrupted:  # `stop` has recorded it
                raise
            except Exception as error:
                with contextlib.suppress(RunError):
                    self.heartbeat.beat("failed", error=str(error))
                raise
            if how == SUPERSEDED:
                self.pool.stop()
                raise TakenOver(
                    f"sweep {self.sweep.folder}: another harness tune or resume took it over; "
                    "this one stops"
                )
            self.pool.leave()
            if how == CANCELLED:
                self.heartbeat.beat("interrupted", signal="harness cancel")
        return self.result

    # What the supervisor calls

    def planner(self, ledger: Ledger) -> OracleProcess:
        """The oracle, in a process of its own."""
        path = self.sweep.path
        return OracleProcess(path(SEARCH_FILE), path("workers", "oracle.log"), ledger)

    @property
    def ended(self) -> set[str]:
        """The workers that this command started and that have ended."""
        return self.pool.ended

    def stop(self, reason: Exception) -> None:
        """Let this command's workers save and end.

        After `RECORD_S` an interruption is recorded: Slurm may kill this process soon.
        """
        self.pool.stop(RECORD_S)
        try:
            if isinstance(reason, Interrupted):
                with contextlib.suppress(DiskError):  # the record is for people; the job goes on
                    self.heartbeat.interrupted(reason)
        finally:
            self.pool.stop()

    def limit_s(self, state: WorkerState) -> float:
        """The time for which a worker's trial may make no progress."""
        return self.pool.request.limit_s(state)

    def note(self, error: OSError) -> None:
        """Warn that the file system fails."""
        self.console.warning(f"sweep {self.sweep.folder}: {error}; tried again")

    def after_round(self, generation: Generation, news: list[int]) -> None:
        """Tell people, and look after the own workers.

        Raises:
            InputError, RunError: if the sweep can't go on.
        """
        ledger = generation.ledger
        if self._num_at_start is None:
            self._num_at_start = len(ledger.accepted) - len(news)
        self._count(ledger)
        for trial in (trial_of(self.search, ledger, ledger.proposals[n]) for n in news):
            self.console.info(describe(trial, self.search))
        if self.result:  # `conclude` has recorded that the search is over
            self._show(generation)
            return
        # Copies for people; the disk may be better next time.
        with contextlib.suppress(OSError, RunError):
            if not generation.journal.is_superseded():  # its round may have taken long
                self.heartbeat.beat("searching", **self.progress(generation))
                self._write_table(generation, is_last=bool(ledger.same_failure))
        self._show(generation)
        if error := ledger.same_failure:
            raise RunError(f"three trials failed alike: {error}")
        states = {name: each.state for name, each in generation.workers.items() if each.state}
        self.pool.tend(len(ledger.accepted), states)

    def conclude(self, generation: Generation) -> None:
        """Write the result.

        Raises:
            OSError: the file system fails; a new generation tries again.
            RunError: if no trial has finished, or the file system fails for long.
        """
        shared = generation.shared
        try:
            self._write_result(generation)
        except (OSError, DiskError) as error:
            # Rounds before this one went well, so only here it is seen for how long it fails.
            self._refused_s = min(self._refused_s, shared.clock.now())
            if shared.clock.now() - self._refused_s > shared.terms.patience_s:
                raise DiskError(str(error)) from None
            raise OSError(str(error)) from None

    def _write_result(self, generation: Generation) -> None:
        trials = ranked(gather(self.search, generation.ledger, {}), self.search.goal)
        self.sweep.write(LEADERBOARD, leaderboard_csv(trials, self.search))
        result = {
            **result_of(self.sweep, self.search, trials),
            "generation": generation.number,
        }
        self._count(generation.ledger)
        self.heartbeat.beat("finished", **self.progress(generation))
        self.sweep.write_json(RESULT, result)
        self._kept.trim(trials, is_over=True)
        self.result = result  # last: until then a disk that fails may have it all done again

    # For people

    def _count(self, ledger: Ledger) -> None:
        """Take up the trials that have ended since the last time."""
        accepted = list(ledger.accepted)  # in the order in which they were accepted
        for n in accepted[self._num_seen :]:
            trial = trial_of(self.search, ledger, ledger.proposals[n])
            self._training_s += trial.training_s or 0.0
            if trial.status == "finished":
                both = [each for each in (self._best, trial) if each]
                self._best = ranked(both, self.search.goal)[0]
        self._num_seen = len(accepted)

    def progress(self, generation: Generation) -> dict[str, Any]:
        """The fields of the sweep's heartbeat."""
        ledger = generation.ledger
        num_running, num_ended = len(running(generation)), len(ledger.accepted)
        total = self.search.max_trials
        eta_s = None
        if total and num_ended and generation.alive:
            left = max(0.0, total - num_ended - num_running / 2)
            eta_s = round(left * self._training_s / num_ended / len(generation.alive), 1)
        best = self._best
        return {
            "trials": total,
            "finished": num_ended - ledger.num_failed,
            "failed": ledger.num_failed,
            "running": num_running,
            "waiting": len(ledger.open) - num_running,
            "workers": len(generation.alive),
            "best": {"trial": best.trial, "score": best.score} if best else None,
            "eta_s": eta_s,
            "generation": generation.number,
        }

    def _write_table(self, generation: Generation, *, is_last: bool) -> None:
        now_s = time.monotonic()
        if now_s - self._table_s < generation.shared.terms.table_s and not is_last:
            return
        self._table_s = now_s
        trials = gather(self.search, generation.ledger, running(generation))
        table = leaderboard_csv(trials, self.search)
        # What is above may have taken long, and a newer one may have written its last.
        if table != self._table and not generation.journal.is_superseded():
            self.sweep.write(LEADERBOARD, table)
            self._table = table
            self._kept.trim(trials)

    def _show(self, generation: Generation) -> None:
        """The live line, on a terminal."""
        num_ended = len(generation.ledger.accepted)
        num_new = num_ended - (self._num_at_start or 0)
        per_hour = 3600 * num_new / max(1.0, time.monotonic() - self._started_s)
        figures = f"{len(running(generation))} running, {per_hour:.0f}/h"
        if self._best and self._best.score is not None:
            figures += f", best {self._best.score:.4f} (trial {self._best.trial})"
        total = self.search.table.trials or len(generation.ledger.proposals)
        self.console.advance("trials", num_ended, max(total, num_ended), figures=figures)


def running(generation: Generation) -> dict[int, str]:
    """The trials that are being trained, each with its worker's name."""
    states = {name: each.state for name, each in generation.workers.items() if each.state}
    return {
        n: state.name or name
        for n, name in generation.holders().items()
        if (state := states.get(name)) and state.attempt.partition("/")[0] == str(n)
    }


def describe(trial: Trial, search: SearchSpec) -> str:
    """A line about a trial that has ended: how, and with which values."""
    how = f"failed: {trial.error}"
    if trial.status == "finished":
        how = f"{search.table.objective} {trial.score:.4f}"
    values = ", ".join(f"{key} = {value}" for key, value in trial.values.items())
    return f"trial {trial.trial}: {how}; {values}"


def result_of(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> dict[str, Any]:
    """The result of a search that is over, from its trials, the best first.

    Raises:
        RunError: if no trial has finished.
    """
    if not trials or trials[0].status != "finished":
        error = trials[0].error if trials else "there were none"
        raise RunError(f"sweep {sweep.folder}: no trial finished: {error}")
    best = trials[0]
    return {
        "job": search.name,
        "sweep": sweep.folder.name,
        "tuner": search.table.tuner,
        "objective": search.table.objective,
        "trials": search.table.trials,  # as asked for: see `is_of_search`
        "num_trials": len(trials),
        "num_failed": sum(trial.status == "failed" for trial in trials),
        "best_trial": best.trial,
        "best_score": best.score,
        "best_values": {
            each.key: str(best.values[each.key]) for each in search.space if each.key in best.values
        },
    }
