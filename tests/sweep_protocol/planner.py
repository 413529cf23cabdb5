"""An oracle that answers at once, where a real search has one in a process of its own."""

from harness.sweep_protocol.journal import Proposal
from harness.sweep_protocol.mailbox import Report
from harness.sweep_protocol.schedule import Schedule


class Planner:
    """A schedule as a supervisor uses it, in its own process and thread."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._num_known = schedule, len(schedule.known)

    def offer(self, n: int, report: Report) -> None:
        """Take a trial's result."""
        self._schedule.offer(n, report)

    def take(self, limit: int) -> list[Proposal]:
        """New trials, at most so many; none while the oracle waits for results, or computes."""
        new: list[Proposal] = []
        for proposal in self._schedule.advance() if limit > 0 else ():
            if proposal.n >= self._num_known:
                new.append(proposal)
            if len(new) == limit:
                break
        return new

    @property
    def is_over(self) -> bool:
        """Whether no trial will come any more."""
        return self._schedule.is_over

    def close(self) -> None:
        """Free what it holds."""
