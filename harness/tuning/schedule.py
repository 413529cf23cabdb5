"""In which order an oracle proposes trials and gets their results: one that no clock decides.

The order is that of a virtual clock, on which a fixed number of workers train an epoch a tick. A
trial is proposed when a virtual worker is free; results are given in the order of their virtual
ends. So the oracle's state is a function of the results alone: whoever has the results replays it,
and promotions are those of a search that nobody disturbed.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import RunError
from harness.job.search import Value
from harness.tuning.protocol import (
    ENDS,
    Course,
    End,
    Make,
    Sleep,
    Trial,
    View,
    trial_folder,
)

EPOCHS, PARENT = "tuner/epochs", "tuner/trial_id"  # as KerasTuner names them in a trial's values
RUNNING, COMPLETED, FAILED = "RUNNING", "COMPLETED", "FAILED"  # a trial's status in KerasTuner


class Schedule:
    """Calls an oracle on a virtual clock."""

    def __init__(
        self,
        oracle: Any,
        *,
        num_trials: int,
        width: int | None,
        known: Sequence[Trial] = (),
    ) -> None:
        """Take an oracle that was not called yet.

        Args:
            oracle: KerasTuner's, which proposes the trials.
            num_trials: at most, 0 for as many as it proposes.
            width: the number of virtual workers; None for an oracle that does not learn from
                results, which then gets none.
            known: the first proposals, as they were made before; may grow.
        """
        self.oracle, self.num_trials, self.width, self.known = oracle, num_trials, width, known
        self.num_proposed = 0
        self._trials: list[Any] = []  # of the oracle
        self._numbers: dict[str, int] = {}  # by the oracle's name of a trial
        self._epochs: list[int] = []
        self._running: list[tuple[int, int]] = []  # a heap of (virtual end, trial)
        self._now = 0  # virtual, in epochs
        self._results: dict[int, Trial] = {}
        self._is_idle = False  # the oracle waits for a result, or has no more trials

    def offer(self, trial: Trial) -> None:
        """Take a trial's result, which the oracle gets when it is due."""
        self._results[trial.n] = trial

    def next(self) -> Trial | None:
        """The next trial that the oracle proposes by the results so far, None if there is none.

        Raises:
            RunError: if it is known and was another one.
        """
        while True:
            if self._may_propose() and (proposal := self._propose()):
                return proposal
            if not self._give_result():
                return None

    @property
    def is_over(self) -> bool:
        """Whether no trial will be proposed any more."""
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
                f"the oracle proposes {proposal.values} as trial {n}, which was "
                f"{self.known[n].values}; go on with the version of harness and KerasTuner that "
                "began the sweep, or begin a new one"
            )
        self._trials.append(trial)
        self._numbers[trial.trial_id] = n
        self._epochs.append(proposal.limit or 1)
        self.num_proposed = len(self._trials)
        if self.width is not None:
            before = self._epochs[proposal.parent] if proposal.parent is not None else 0
            end = self._now + max(1, self._epochs[n] - before)
            heapq.heappush(self._running, (end, n))
        return proposal

    def _proposal(self, n: int, values: Mapping[str, Any]) -> Trial:
        own: dict[str, Value] = {
            key: value.item() if hasattr(value, "item") else value  # of NumPy
            for key, value in values.items()
            if not key.startswith("tuner/")
        }
        epochs, parent = values.get(EPOCHS), values.get(PARENT)
        return Trial(
            n=n,
            values=own,
            limit=int(epochs) if epochs else None,
            parent=self._numbers[parent] if parent else None,
        )

    def _give_result(self) -> bool:
        """Give the oracle the result that is due; False if it is not known yet."""
        if not self._running or self._running[0][1] not in self._results:
            return False
        self._now, n = heapq.heappop(self._running)
        trial, result = self._trials[n], self._results.pop(n)
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
    """Proposes trials; of several that do, the first to make a trial's name decides its values."""

    begin: Callable[[list[Trial]], Schedule]  # the first trials are known, a list that grows
    num_asked: int  # `search.trials`
    ahead: int  # trials that wait for a worker, where the oracle waits for no result
    is_guided: bool  # whether the oracle's choices depend on results
    view: View = field(default_factory=View)
    _schedule: Schedule | None = None
    _num_offered: int = 0
    _next: Trial | None = None  # proposed, and not made yet

    def turn(self) -> Course:
        """Propose what is due, and rest; whether all is proposed, or the search is stopped.

        Raises:
            RunError: if the oracle proposes other trials than it did.
        """
        view = self.view
        if (yield from view.is_stopped()):
            return True
        yield from view.look(None if self.is_guided else 0)
        while self._has_room and (trial := self._propose()):
            if (yield Make(trial_folder(trial.n), "values.json", trial)):
                view.know(trial)
                self._next = None
            else:
                yield from view.learn()
                if len(view.known) <= trial.n:  # it can't be seen yet
                    break
        if self._schedule and self._schedule.is_over and not self._next:
            yield Make(f"{ENDS}/{self.num_asked}", "end.json", End(num_trials=len(view.known)))
            return True
        yield Sleep(view.rest_s)
        return False

    @property
    def _has_room(self) -> bool:
        """Whether too few trials wait for a worker; a guided oracle limits them by itself."""
        num_waiting = sum(not heard.k for heard in self.view.open.values())
        return self.is_guided or num_waiting < self.ahead

    def _propose(self) -> Trial | None:
        """The first trial that is not known, as the results so far have it."""
        if self._next and len(self.view.known) > self._next.n:
            if self.view.known[self._next.n].proposal != self._next.proposal:
                self._schedule = None  # another library rounds otherwise, or has more trials
            self._next = None
        if not self._schedule:
            self._schedule, self._num_offered = self.begin(self.view.known), 0
        for trial in [*self.view.accepted.values()][self._num_offered :]:
            self._schedule.offer(trial)
        self._num_offered = len(self.view.accepted)
        while not self._next and (proposed := self._schedule.next()):
            if proposed.n >= len(self.view.known):
                self._next = proposed
        return self._next
