"""Runs a sweep from its command to its result; several commands may do so at the same time."""

import contextlib
import os
import socket
import time
from dataclasses import replace
from typing import Any

from harness.errors import CANCELLED, DiskError, Interrupted, RunError
from harness.files.atomic_file import atomic_write, remove_abandoned
from harness.files.leased_dir import LeasedDirectory, to_json
from harness.own_code import mode_in
from harness.search_space import GUIDED, SEARCH_FILE, SearchSpec
from harness.slurm.environment import SlurmEnvironment, asked_of, num_tasks_of_array, resume_command
from harness.slurm.process_pool import SAVE_S
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tracking.heartbeat import Heartbeat
from harness.tuning.course import View, follow, lift_stop, next_stop, running, shown, tell_gone
from harness.tuning.disk import Disk, died, patiently, stop_now
from harness.tuning.kept_trials import KeptTrials
from harness.tuning.leaderboard import (
    LEADERBOARD,
    describe,
    leaderboard_csv,
    ranked,
    result_of,
    same_failure,
)
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.records import PREPARED, Trial
from harness.tuning.sweep_dir import RESULT, SweepDirectory

RECORD_S = 5.0  # for workers to save before an interruption is recorded; KillWait is often 30 s
TEND_S = 0.5  # between two looks after the own processes


def tune(
    sweep: SweepDirectory,
    search: SearchSpec,
    request: WorkerRequest,
    *,
    console: Console,
    full: bool = False,
    resumes: bool = False,
) -> dict[str, Any]:
    """Begin a sweep, or help with one, to its result.

    With `full` there is no falling back to the packaged sample. A search that was stopped goes on
    only with `resumes`, where a person asks for it.

    Returns:
        The content of `result.json`: the best trial and its score; empty if it was cancelled.

    Raises:
        InputError: if the search can't run here, or if another version of harness wrote the sweep;
            nothing has been written then.
        Interrupted: a signal came; all is saved, and the sweep can go on.
        RunError: the sweep can't go on.
    """
    sweep.check_format()
    allocation = SlurmEnvironment.from_environment()
    slots = request.slots(allocation, search)
    dataset = sweep.dataset(search.job, request.data, full=full)
    is_new = sweep.begin(settled(search, len(slots) * num_tasks_of_array(allocation)), dataset)
    sweep.check_search(search)
    if sweep.certain_json("data.json").get("checksum") != dataset.checksum:
        sweep.dataset(search.job, request.data)  # another command has begun it just now
    known = sweep.search()
    if search.table.trials != known.table.trials:
        search = with_table(known, trials=search.table.trials)
        sweep.write(SEARCH_FILE, search.to_toml(), mode=mode_in(sweep.folder, search.job.code))
    else:
        search = known
    if sweep.is_of_other_code():
        console.warning(f"sweep {sweep.folder}: was begun by other code; trials may differ by it")
    sweep.note_start(asked_of(allocation) if allocation else None)
    sweep.path(PREPARED).mkdir(exist_ok=True)  # somebody may have cleaned up
    remove_abandoned(sweep.path(PREPARED), ".*.tmp")
    if dataset.introduction:
        console.info(dataset.introduction)
    table, more = search.table, "" if is_new else " more"
    num_trials = f"{table.trials} trials" if table.trials else "all trials"
    parallel = f", parallel = {table.parallel}" if table.parallel else ""
    console.info(
        f"sweep {sweep.folder}: {table.tuner}, {num_trials}, {len(slots)}{more} worker"
        f"{'s' if len(slots) > 1 else ''}{parallel}, data: {dataset.title}"
    )
    del dataset  # its workers open it themselves
    name = command_name(allocation)
    with WorkerPool(
        sweep.folder, request, slots, name=name, allocation=allocation, console=console
    ) as pool:
        command = Command(sweep, search, pool, allocation=allocation, console=console, name=name)
        return command.run(resumes=resumes and not (allocation and allocation.restarts))


def with_table(search: SearchSpec, **changes: int) -> SearchSpec:
    """A search with other values in `[search]`."""
    content = {**search.content, "search": {**search.content["search"], **changes}}
    return replace(search, table=search.table.model_copy(update=changes), content=content)


def settled(search: SearchSpec, num_workers: int) -> SearchSpec:
    """A search with what is decided once, when its sweep begins."""
    if search.table.tuner not in GUIDED or search.table.parallel:
        return search
    return with_table(search, parallel=2 * num_workers)


def command_name(allocation: SlurmEnvironment | None) -> str:
    """Tells this command from others of the search; a job that is requeued keeps its name."""
    return f"job{allocation.own_id}" if allocation else f"{socket.gethostname()}-{os.getpid()}"


class CommandDirectory(LeasedDirectory):
    """Where a command notes its own progress, and with it that of the search."""

    def __init__(self, sweep: SweepDirectory, name: str) -> None:
        super().__init__(sweep.path("commands", name))
        self.sweep = sweep

    def check_lease(self) -> None:
        """Allow every write: the name is this command's alone."""

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write the own copy, and that of the search, where the latest counts."""
        self.folder.mkdir(exist_ok=True)
        super().write_json(name, content)
        atomic_write(self.sweep.path(name), to_json(content))


class Command:
    """A command of a search: its processes, the files for people, the console."""

    def __init__(
        self,
        sweep: SweepDirectory,
        search: SearchSpec,
        pool: WorkerPool,
        *,
        allocation: SlurmEnvironment | None,
        console: Console,
        name: str,
    ) -> None:
        self.sweep, self.search, self.pool, self.console = sweep, search, pool, console
        self.signals = StopRequest()
        self.disk = Disk(sweep.folder, self.signals)
        self.view = View(time.monotonic, sweep.terms(), died)
        self.heartbeat = Heartbeat(CommandDirectory(sweep, name), allocation)
        self._started_s = time.monotonic()
        self._num_at_start: int | None = None  # trials that had ended when this process began
        self._kept = KeptTrials(sweep, search)
        self._table = b""  # the leaderboard as written last

    def run(self, *, resumes: bool) -> dict[str, Any]:
        """Work to the result, which is empty if the search is cancelled.

        Raises:
            Interrupted: a signal came; all is saved, and the sweep can go on.
            InputError, RunError: the sweep can't go on.
        """
        self.signals.listen()
        with self.console:
            try:
                if resumes:
                    patiently(lambda: self.disk.run(lift_stop(self.view, stop_now())), self.signals)
                result = patiently(self._first_look, self.signals)
                if result is not None:
                    return result
                self.pool.num_lifted = self.view.num_lifted
                self.pool.start_all()
                return self._run()
            except OSError as error:  # what no patience mends, such as a folder that is gone
                self.pool.stop()
                raise DiskError(f"sweep {self.sweep.folder}: {error}") from None
            except Interrupted as reason:
                self._stop(reason)
                raise
            except Exception as error:
                self.pool.stop()
                with contextlib.suppress(RunError):
                    self.heartbeat.beat("failed", error=str(error))
                raise

    def _first_look(self) -> dict[str, Any] | None:
        """See what has become of the search so far; a result, if it is not to be searched."""
        self._look()
        with contextlib.suppress(DiskError):  # a copy for people
            self.heartbeat.beat("starting", **self._progress())
        return self._stopped() if self.view.stop else None

    def _run(self) -> dict[str, Any]:
        looked_s = time.monotonic()
        while True:
            patiently(self._tend, self.signals)
            self.signals.check()
            time.sleep(TEND_S)
            if time.monotonic() - looked_s < self.view.terms.table_s:
                continue
            result = patiently(self._turn, self.signals)
            looked_s = time.monotonic()
            if result is not None:
                return result

    def _tend(self) -> None:
        self.pool.tend(len(self.view.accepted), self.view.heard)

    def _turn(self) -> dict[str, Any] | None:
        """Look at the whole search; its result once it is over or stopped."""
        self._look()
        self.disk.run(tell_gone(self.view, self.pool.ended))
        if self.view.stop:
            self.pool.leave(SAVE_S)
            self._look()
            return self._stopped()
        if self.pool.num_stopped:  # by a stop that somebody lifted meanwhile
            self.pool.num_lifted = self.view.num_lifted
            self.pool.start_all()
        asked = self.sweep.search()
        if asked.table.trials != self.search.table.trials:  # by another command
            self.search = asked
            self.pool.start_all()
        if self.disk.run(self.view.is_over(asked.table.trials)):
            return self._conclude()
        if error := same_failure(self._failed()):
            failed = tuple(trial.n for trial in self._failed())
            reason = f"three trials failed alike: {error}"
            self.disk.run(next_stop(self.view, stop_now(reason, failed)))
        self.heartbeat.beat("searching", **self._progress())
        return None

    def _look(self) -> None:
        """Read what is new, and tell people."""
        news = self.disk.run(follow(self.view))
        self.disk.run(self.view.is_stopped())
        if self._num_at_start is None:
            self._num_at_start = len(news)
        else:
            for trial in news:
                self.console.info(describe(trial, self.search))
        trials = shown(self.view)
        table = leaderboard_csv(trials, self.search)
        if table != self._table:
            self.sweep.write(LEADERBOARD, table)
            self._table = table
            self._kept.trim(trials)
        self._show()

    def _failed(self) -> list[Trial]:
        """The failed trials that nobody has gone on after."""
        found = self.view.accepted.items()
        return [trial for n, trial in found if trial.error and n not in self.view.forgiven]

    def _conclude(self) -> dict[str, Any]:
        trials = shown(self.view)
        result = result_of(self.sweep, self.search, trials)
        self.sweep.write(LEADERBOARD, leaderboard_csv(trials, self.search))
        self.sweep.write_json(RESULT, result)
        self.heartbeat.beat("finished", **self._progress())
        self._kept.trim(trials, is_over=True)
        self.pool.leave()
        return result

    def _stopped(self) -> dict[str, Any]:
        """Record that the search was cancelled; nothing of it is lost.

        Raises:
            RunError: if it has failed, and why.
        """
        stop = self.view.stop
        if stop and stop.reason:
            raise RunError(f"{stop.reason}; go on by: {resume_command(self.sweep.folder)}")
        self.heartbeat.beat("interrupted", signal=CANCELLED)
        return {}

    def _stop(self, reason: Interrupted) -> None:
        """Let this command's workers save and end.

        After `RECORD_S` the interruption is recorded: Slurm may kill this process soon.

        Raises:
            RunError: if it was interrupted too often without progress.
        """
        self.pool.stop(RECORD_S)
        try:
            with contextlib.suppress(DiskError):  # the record is for people; the job goes on
                self.heartbeat.interrupted(reason)
        finally:
            self.pool.stop()
            with contextlib.suppress(OSError, DiskError):
                self._look()
                self.disk.run(tell_gone(self.view, self.pool.ended))

    # For people

    def _progress(self) -> dict[str, Any]:
        """The fields of the sweep's heartbeat."""
        view, total = self.view, self.search.max_trials
        ended, num_running = [*view.accepted.values()], len(running(view))
        num_failed = sum(bool(trial.error) for trial in ended)
        num_workers = max(num_running, self.pool.num_workers)
        eta_s = None
        if total and ended and num_workers:
            left = max(0.0, total - len(ended) - num_running / 2)
            training_s = sum(trial.training_s or 0.0 for trial in ended)
            eta_s = round(left * training_s / len(ended) / num_workers, 1)
        best = self._best()
        score = best and best.scores[self.search.table.objective]
        return {
            "trials": total,
            "finished": len(ended) - num_failed,
            "failed": num_failed,
            "running": num_running,
            "waiting": len(view.open) - num_running,
            "workers": num_workers,
            "best": {"trial": str(best.n), "score": score} if best else None,
            "eta_s": eta_s,
        }

    def _best(self) -> Trial | None:
        finished = [trial for trial in self.view.accepted.values() if not trial.error]
        return ranked(finished, self.search)[0] if finished else None

    def _show(self) -> None:
        """The live line, on a terminal."""
        num_ended = len(self.view.accepted)
        num_new = num_ended - (self._num_at_start or 0)
        per_hour = 3600 * num_new / max(1.0, time.monotonic() - self._started_s)
        figures = f"{len(running(self.view))} running, {per_hour:.0f}/h"
        if best := self._best():
            score = best.scores[self.search.table.objective]
            figures += f", best {score:.4f} (trial {best.n})"
        total = self.search.table.trials or len(self.view.known)
        self.console.advance("trials", num_ended, max(total, num_ended), figures=figures)
