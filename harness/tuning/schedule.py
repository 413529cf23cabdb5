"""Decides the order in which an oracle proposes trials and receives results.

The order does not depend on real time, but on a simulation with a virtual clock. In each tick of
the clock, each of a fixed number of simulated workers trains one epoch, or a whole trial if the
oracle sets no epochs. The oracle proposes a trial when a simulated worker is free, and receives a
trial's result when the trial's simulated worker ends the trial. Because real time has no effect,
the oracle's state depends only on the results: any process can compute the state again from the
results, and an interrupted search promotes the same trials as an uninterrupted search.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import RunError
from harness.job.search import Value
from harness.tuning.protocol import ENDS, End, Trial, View, trial_folder

EPOCHS, PARENT = "tuner/epochs", "tuner/trial_id"  # KerasTuner's own keys in a trial's values
RUNNING, COMPLETED, FAILED = "RUNNING", "COMPLETED", "FAILED"  # a trial's status in KerasTuner


class Schedule:
    """Requests trials from an oracle and reports results to it, in the order of a virtual clock."""

    def __init__(
        self,
        oracle: Any,
        *,
        num_trials: int,
        width: int | None,
        known: Sequence[Trial],
        results: Mapping[int, Trial],
    ) -> None:
        """Create the schedule of an oracle that has not proposed a trial yet.

        Args:
            oracle: KerasTuner's oracle.
            num_trials: the maximum number of trials; 0 sets no limit.
            width: the number of simulated workers; None for an oracle that does not learn from
                results, and therefore receives no results.
            known: the sweep's trials, sorted by number; the caller appends each new trial to the
                list.
            results: the trials that have results; the keys are the trials' numbers. The caller adds
                each new result. The oracle receives a trial's result later, when the trial ends on
                the virtual clock.
        """
        self.oracle, self.num_trials, self.width = oracle, num_trials, width
        self.known, self.results = known, results
        self._trials: list[Any] = []  # KerasTuner's objects for the proposed trials
        self._numbers: dict[str, int] = {}  # KerasTuner's id of a trial → its number
        self._epochs: list[int] = []  # the number of epochs of each proposed trial
        self._running: list[tuple[int, int]] = []  # a heap of (virtual end, trial number)
        self._now = 0  # the time on the virtual clock, in epochs
        self._is_idle = False  # whether the oracle waits for a result, or has no proposal left

    def next(self) -> Trial | None:
        """Return the next proposal; None if the oracle waits for results or has no proposal left.

        Raises:
            RunError: if the proposal differs from the known trial with the same number.
        """
        while True:
            if self._may_propose() and (proposal := self._propose()):
                return proposal
            if not self._give_result():
                return None

    @property
    def is_over(self) -> bool:
        """Whether the oracle has proposed its last trial."""
        is_last = self._is_idle and (self.width is None or not self._running)
        return is_last or 0 < self.num_trials <= len(self._trials)

    def _may_propose(self) -> bool:
        has_room = self.width is None or len(self._running) < self.width
        return has_room and not self._is_idle and not self.is_over

    def _propose(self) -> Trial | None:
        n = len(self._trials)
        trial = self.oracle.create_trial(str(n))
        if trial.status != RUNNING:
            self._is_idle = True
            return None
        proposal = self._proposal(n, trial.hyperparameters.values)
        if n < len(self.known) and proposal.proposal != self.known[n].proposal:
            raise RunError(
                f"the oracle proposes {proposal.values} as trial {n}, but the sweep's trial {n} is "
                f"{self.known[n].values}; continue with the versions of harness and KerasTuner "
                "that began the sweep, or begin a new sweep"
            )
        self._trials.append(trial)
        self._numbers[trial.trial_id] = n
        self._epochs.append(proposal.limit or 1)
        if self.width is not None:
            before = self._epochs[proposal.parent] if proposal.parent is not None else 0
            end = self._now + max(1, self._epochs[n] - before)
            heapq.heappush(self._running, (end, n))
        return proposal

    def _proposal(self, n: int, values: Mapping[str, Any]) -> Trial:
        of_job: dict[str, Value] = {
            key: value.item() if hasattr(value, "item") else value  # a NumPy number
            for key, value in values.items()
            if not key.startswith("tuner/")
        }
        epochs, parent = values.get(EPOCHS), values.get(PARENT)
        return Trial(
            n=n,
            values=of_job,
            limit=int(epochs) if epochs else None,
            parent=self._numbers[parent] if parent else None,
        )

    def _give_result(self) -> bool:
        """Give the oracle the result of the trial that ends next on the virtual clock.

        Return False if there is no such trial, or if a worker is still training this trial.
        """
        if not self._running or self._running[0][1] not in self.results:
            return False
        self._now, n = heapq.heappop(self._running)
        trial, result = self._trials[n], self.results[n]
        if result.error:
            trial.status, trial.message = FAILED, result.error
        else:
            self.oracle.update_trial(trial.trial_id, dict(result.scores))
            trial.status = COMPLETED
        self.oracle.end_trial(trial)
        self._is_idle = False
        return True


# A proposer


@dataclass
class Proposer:
    """Proposes the trials of a search; other processes may run proposers for the same search.

    If several proposers propose the same trial, the first to create the trial's folder decides the
    trial's values.
    """

    begin: Callable[[View], Schedule]  # makes the schedule of a search
    num_asked: int  # `search.trials`
    ahead: int  # largest number of waiting trials; has no effect if `is_guided`
    is_guided: bool  # whether the oracle's choices depend on results
    view: View
    _schedule: Schedule | None = None
    _next: Trial | None = None  # the proposed trial whose folder is not created yet

    async def turn(self) -> bool:
        """Propose trials as long as there is room; then pause, unless the proposer has finished.

        Returns:
            Whether the proposer has finished: all trials are proposed, or the search is stopped.

        Raises:
            RunError: if a proposal differs from the known trial with the same number.
        """
        view = self.view
        if await view.is_stopped():
            return True
        await view.look(None if self.is_guided else 0)
        while self._has_room and (trial := self._propose()):
            if await view.disk.make(trial_folder(trial.n), "values.json", trial):
                view.know(trial)
                self._next = None
            else:
                await view.learn()
                if len(view.known) <= trial.n:  # another proposer's trial is not visible yet
                    break
        if self._schedule and self._schedule.is_over and not self._next:
            end = End(num_trials=len(view.known))
            await view.disk.make(f"{ENDS}/{self.num_asked}", "end.json", end)
            return True
        await view.disk.sleep(view.rest_s)
        return False

    @property
    def _has_room(self) -> bool:
        """Whether another trial can be proposed: fewer than `ahead` trials wait for a worker.

        Always True for an oracle that learns from results: `Schedule` limits its proposals.
        """
        num_waiting = sum(not heard.k for heard in self.view.open.values())
        return self.is_guided or num_waiting < self.ahead

    def _propose(self) -> Trial | None:
        """Return the next trial that no process has proposed yet.

        Return None if the oracle has no trial left, or waits for results.
        """
        if self._next and len(self.view.known) > self._next.n:
            if self.view.known[self._next.n].proposal != self._next.proposal:
                # Another proposer, which rounded differently or had a larger `search.trials`, has
                # created this trial with other values. The sweep keeps the created values, so this
                # process begins a new schedule with the created values.
                self._schedule = None
            self._next = None
        if not self._schedule:
            self._schedule = self.begin(self.view)
        while not self._next and (proposed := self._schedule.next()):
            if proposed.n >= len(self.view.known):
                self._next = proposed
        return self._next
