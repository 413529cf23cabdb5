"""Runs a sweep to its end; several commands can work on a sweep at the same time."""

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from harness.compute.execution_plan import largest_gb
from harness.data.vocabulary import vectors_checksum
from harness.errors import (
    CANCELLED,
    DiskError,
    InputError,
    Interrupted,
    RunError,
    explain_interruption,
)
from harness.job.search import GUIDED, MAX_PARALLEL, SEARCH_FILE, SearchSpec
from harness.slurm.environment import (
    FIRST_JOB,
    SlurmEnvironment,
    asked_of,
    num_tasks_of_array,
    resume_command,
)
from harness.slurm.pool import allocate_slots
from harness.system import watchdog
from harness.system.console import Console, log
from harness.system.files import is_of_disk
from harness.system.processes import StopRequest, has_died
from harness.system.resource_monitor import IDLE, IDLE_MIN
from harness.tracking.provenance import package_changes, sources_checksum
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RECORD, RESULT, stamped, take_back_cancel
from harness.training.launch import dataset_of
from harness.tuning.disk import Disk, execute
from harness.tuning.leaderboard import (
    LEADERBOARD,
    describe,
    leaderboard_csv,
    ranked,
    result_of,
    same_failure,
)
from harness.tuning.protocol import View, change_stop, follow, running, shown, tell_gone
from harness.tuning.prune_runs import KeptTrials, Pruned
from harness.tuning.sweep_dir import SweepDirectory, stop_now
from harness.tuning.worker import WorkerPool, WorkerRequest

PATIENCE_S = 600.0  # how long a command tries again while the disk fails
# Time for workers to save before the interruption is recorded. After a signal, Slurm often waits
# only 30 s before it kills all processes.
RECORD_S = 5.0
TEND_S, LOOK_S = 0.5, 1.0  # time between two checks of the processes, and of the search


def tune(
    sweep: SweepDirectory,
    search: SearchSpec,
    request: WorkerRequest,
    *,
    console: Console,
    full: bool,
    resumes: bool,
) -> dict[str, Any]:
    """Begin or join a sweep, run it to its end and return its result.

    Args:
        sweep: the sweep; its folder may exist.
        search: the search space, the tuner and its options, and the job.
        request: the workers that this command starts.
        console: the console for messages.
        full: whether to fail if IMDB is missing, instead of using the packaged sample.
        resumes: whether to continue a search that was stopped, or that began before a change of
            harness's code.

    Returns:
        The content of `result.json`: the best trial and its score; empty if the search was
        cancelled.

    Raises:
        InputError: if the search can't run here, the data or the word vectors have changed, or
            another version of harness wrote the sweep.
        Interrupted: after a signal; all trials have saved checkpoints, and the sweep can continue.
        RunError: if the search fails.
    """
    watchdog.from_settings()  # refuses wrong settings here, before each worker does
    watchdog.read_limit(IDLE, "minutes", IDLE_MIN)
    allocation = SlurmEnvironment.from_environment()
    slots = allocate_slots(
        allocation,
        request.num_workers,
        workers_per_gpu=request.workers_per_gpu,
        devices=request.devices,
        process_gb=largest_gb(search, request.devices),
    )
    dataset = dataset_of(sweep, search.job, request.data, full=full)
    embeddings = Path(search.job.model.embeddings)
    vectors = vectors_checksum(embeddings) if search.job.model.embeddings else None
    sweep.begin(settled(search, len(slots) * num_tasks_of_array(allocation)), dataset, vectors)
    sweep.check_search(search)
    if vectors:
        sweep.check_vectors(embeddings, vectors)
    asked, search = search, sweep.search()
    if asked.trial_limit > search.trial_limit:
        search = search.with_table(trials=asked.table.trials)
        sweep.write(SEARCH_FILE, search.to_toml())
    elif asked.trial_limit < search.trial_limit:
        number = search.table.trials or "all possible"
        console.warning(f"search.trials has no effect: the search has {number} trials already")
    record, mixed = sweep.certain_json(RECORD), "new and earlier trials may not be comparable"
    for change in package_changes(record) if record.get("packages") else ():
        console.warning(f"changed since the sweep began: {change}; scores of {mixed}")
    if record.get("sources_sha256") not in (None, sources_checksum()):
        line = (
            f"sweep {sweep.folder}: the code of harness has changed since the sweep began, so "
            f"scores of {mixed}"
        )
        # The next job of a search goes on as the earlier job did.
        if not resumes and FIRST_JOB not in os.environ:
            raise InputError(
                f"{line}; restore the earlier code, begin another sweep, or continue anyway with: "
                f"{resume_command(sweep.folder)}"
            )
        console.warning(line)
    if allocation:  # `submit --resume` requests the same resources again
        starts = [{"slurm_asked": asked_of(allocation)}]
        sweep.write_json(RECORD, stamped({**sweep.certain_json(RECORD), "starts": starts}))
    for line in [*asked.fixed, *search.without_effect()]:
        console.warning(line)
    if dataset.introduction:
        console.info(dataset.introduction)
    parallel = f", parallel = {search.table.parallel}" if search.table.parallel else ""
    console.info(
        f"sweep {sweep.folder}: {search.table.tuner}, {search.table.trials or 'all'} trials, "
        f"workers of this command: {len(slots)}{parallel}, data: {dataset.title}"
    )
    del dataset  # the workers open the dataset themselves
    # The commands of different jobs need different names; a requeued job keeps its name.
    name = f"job{allocation.own_id}" if allocation else f"{socket.gethostname()}-{os.getpid()}"
    with WorkerPool(
        sweep.folder, request, slots, name=name, allocation=allocation, console=console
    ) as pool:
        command = Command(sweep, search, pool, allocation)
        # A requeued job has logs of its workers if an earlier start has lifted the stop.
        has_lifted = bool(allocation and allocation.restarts) and any(
            sweep.path("workers").glob(f"{name}-*")
        )
        return command.run(resumes=resumes and not has_lifted)


def settled(search: SearchSpec, num_workers: int) -> SearchSpec:
    """Set `search.parallel` to twice `num_workers` if the tuner needs the key and it is unset."""
    is_open = search.table.tuner in GUIDED and not search.table.parallel
    return search.with_table(parallel=min(2 * num_workers, MAX_PARALLEL)) if is_open else search


class Command:
    """Controls a command's processes, writes leaderboard and result, and prints the progress."""

    def __init__(
        self,
        sweep: SweepDirectory,
        search: SearchSpec,
        pool: WorkerPool,
        allocation: SlurmEnvironment | None,
    ) -> None:
        self.sweep, self.search, self.pool, self.console = sweep, search, pool, pool.console
        self.signals = StopRequest()
        self.view = View(Disk(sweep.folder))
        self.heartbeat = Heartbeat(sweep, allocation)
        self.heartbeat.note(restarts=allocation.restarts if allocation else 0)
        self._kept = KeptTrials(sweep, search, Pruned())
        self._table = b""  # the leaderboard that was written last
        self._began: tuple[float, int] | None = None  # time and ended trials at the first look
        self._trial_s: float | None = None  # since the first look, per ended trial of all workers

    def run(self, *, resumes: bool) -> dict[str, Any]:
        """Run the search to its end and return its result; a cancelled search has an empty result.

        Raises:
            Interrupted: after a signal; all trials have saved checkpoints.
            InputError, RunError: if the search fails.
        """
        self.signals.listen()
        remedy = f"trials saved; continue with: {resume_command(self.sweep.folder)}"
        with self.console, explain_interruption(remedy):
            try:
                return self._run(resumes=resumes)
            except Interrupted as reason:
                self._stop(reason)
                raise
            except Exception as error:
                self.pool.stop()
                with contextlib.suppress(RunError):
                    self.heartbeat.beat("failed", error=str(error))
                raise

    def _lift_stop(self) -> None:
        """Resume a stopped search; trials that have already failed can't stop the search again."""
        execute(self.view.look())
        failed = tuple(n for n, trial in self.view.accepted.items() if trial.error)
        execute(change_stop(self.view, stop_now(is_lifted=True, forgiven=failed)))
        take_back_cancel(self.sweep.folder)

    def _run(self, *, resumes: bool) -> dict[str, Any]:
        """Repeat `_turn` until the search ends; if the disk fails, try again for PATIENCE_S.

        Raises:
            DiskError: if the disk fails for longer than PATIENCE_S, or if an error does not go away
                with time, for example because a folder is missing.
            InputError, RunError: if the search fails for a reason other than the disk.
            Interrupted: after a signal.
        """
        turn_s, failing_s = 0.0, None  # time of the next turn, and of the first failure of the disk
        while True:
            self.signals.check()
            now_s = time.monotonic()
            try:
                if resumes:
                    self._lift_stop()
                    resumes = False
                if now_s >= turn_s:
                    if (result := self._turn()) is not None:
                        return result
                    turn_s = now_s + max(self.view.rest_s, LOOK_S)
                self._tend()
                failing_s = None
            except (OSError, InputError, RunError) as error:
                if not is_of_disk(error) and not isinstance(error, OSError):
                    raise
                # Some errors do not go away with time: for example, a missing folder stays missing.
                if not is_of_disk(error) or (failing_s and now_s > failing_s + PATIENCE_S):
                    raise DiskError(str(error)) from None
                if not failing_s:
                    failing_s = now_s
                    log(logging.WARNING, f"{error}; trying again for {PATIENCE_S:.0f} s")
            time.sleep(TEND_S)

    def _tend(self) -> None:
        silent = execute(tell_gone(self.view, self._ended()))
        self.pool.kill([each for each in self.pool.workers if each.uuid in silent])
        self.pool.tend(len(self.view.accepted))

    def _turn(self) -> dict[str, Any] | None:
        """Check the search once; if the search has ended, return its result, else None.

        The result of a cancelled search is empty.

        Raises:
            RunError: if the search has failed; the message contains the reason.
        """
        self.sweep.check_lease()
        idle = [each for each in self.pool.everybody if each.is_done]
        self._look()
        if execute(self.view.is_stopped()):
            self.pool.stop()
            self._look()
            if self.view.stop and (reason := self.view.stop.reason):
                raise RunError(f"{reason}; continue with: {resume_command(self.sweep.folder)}")
            self.heartbeat.beat("interrupted", signal=CANCELLED)
            return {}
        self.search = self.sweep.search()  # another command may have raised the number of trials
        num_asked = self.search.table.trials
        if execute(self.view.is_over(num_asked)):
            trials = shown(self.view)
            result = result_of(self.sweep, self.search, trials)
            self.sweep.write_json(RESULT, result)
            self.heartbeat.beat("finished", **self._progress())
            self._kept.trim(trials, is_over=True)
            return result
        forgiven = self.view.stop.forgiven if self.view.stop else ()
        if error := same_failure(t for n, t in self.view.accepted.items() if n not in forgiven):
            reason = f"three trials had the same error: {error}"
            execute(change_stop(self.view, stop_now(reason=reason)))
            return None
        is_proposed = execute(self.view.end(num_asked))
        # An idle process was never started, has ended because its memory had grown too large, or
        # had no work left before the user raised `search.trials`.
        for process in idle:
            if process.slot or not is_proposed:
                self.pool.start_one(process)
        self.heartbeat.beat("searching", **self._progress())
        return None

    def _look(self) -> None:
        """Read the changes in the sweep; show them on the console and in the leaderboard."""
        news = execute(follow(self.view, time.monotonic()))
        # The first call also finds results from before this command began; do not print them.
        for trial in news if self._table else ():
            self.console.info(describe(trial, self.search))
        trials = shown(self.view)
        table = leaderboard_csv(trials, self.search)
        if table != self._table:
            self.sweep.write(LEADERBOARD, table)
            self._table = table
            self._kept.trim(trials, is_over=False)
        now_s, num_ended = time.monotonic(), len(self.view.accepted)
        began_s, num_before = self._began = self._began or (now_s, num_ended)
        if num_ended > num_before:
            self._trial_s = (now_s - began_s) / (num_ended - num_before)
        progress = self._progress()
        figures = f"{progress['running']} running"
        if best := progress["best"]:
            figures += f", best {best['score']:.4f} (trial {best['trial']})"
        if self._trial_s:
            figures += f", {3600 / self._trial_s:.0f} trials/h"
        total = max(self.search.table.trials, len(trials))
        self.console.advance("trials", num_ended, total, figures=figures)

    def _ended(self) -> set[str]:
        """Return the uuids of all workers that have certainly ended, whoever started them."""
        attempts = running(self.view).values()
        dead = {each.worker for each in attempts if has_died(each.process, each.space)}
        return dead | self.pool.ended

    def _stop(self, reason: Interrupted) -> None:
        """Record the interruption, after this command's workers have saved their trials and ended.

        The interruption is recorded after RECORD_S at the latest, even if workers are still saving,
        because Slurm may soon kill this process.
        """
        self.pool.stop(RECORD_S)
        try:
            with contextlib.suppress(DiskError):  # the search does not need this record
                self.heartbeat.interrupted(reason)
        finally:
            self.pool.stop()
            with contextlib.suppress(OSError, DiskError):
                self._look()
                execute(tell_gone(self.view, self._ended()))

    def _progress(self) -> dict[str, Any]:
        """Return the progress for the heartbeat in the sweep's `state.json`."""
        view, total = self.view, self.search.max_trials
        ended, num_running = [*view.accepted.values()], len(running(view))
        num_failed = sum(bool(trial.error) for trial in ended)
        num_workers = max(num_running, sum(each.alive for each in self.pool.workers))
        eta_s = best = None
        if total and self._trial_s:
            eta_s = round((total - len(ended)) * self._trial_s, 1)
        if len(ended) > num_failed:
            first = ranked(ended, self.search)[0]
            best = {"trial": str(first.n), "score": first.scores[self.search.table.objective]}
        return {
            "trials": total,
            "finished": len(ended) - num_failed,
            "failed": num_failed,
            "running": num_running,
            "waiting": len(view.open) - num_running,
            "workers": num_workers,
            "best": best,
            "eta_s": eta_s,
        }
