"""The real supervisor and worker in a made-up world, over schedules with faults of all kinds."""

import pytest

from tests.sweep_protocol.sweep_world import Process, World


@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_keeps_its_promises_over_faults(seed: int) -> None:
    """Each trial counts once, with the score of an undisturbed one, whatever is lost or late."""
    for each in range(30 * seed, 30 * seed + 30):
        World(each).run()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_a_sweep_keeps_its_promises_over_many_faults(seed: int) -> None:
    """The same over ten thousand schedules."""
    for each in range(1000 + 100 * seed, 1100 + 100 * seed):
        World(each).run()


class Large(World):
    """A thousand trials on 64 workers, where one process is killed now and then."""

    def __init__(self, seed: int, num_kills: int) -> None:
        super().__init__(seed, num_trials=1000, num_workers=64)
        self.num_kills, self.plan = num_kills, [(0, "", "kill")]

    def end(self, process: Process) -> None:
        if process.alive:
            process.alive = False
            self.push(5.0, lambda: self.start(process.kind))

    def _strike(self, op: tuple[str, str], process: Process) -> str:
        if self.num_kills and self.rng.random() < 0.0005:
            self.num_kills -= 1
            process.crashed = True
            self.end(process)
        self.last_fault_s = self.time_s
        return ""


@pytest.mark.slow
def test_a_thousand_trials_by_64_workers_with_30_kills() -> None:
    """Each trial counts once; who is killed, supervisor or worker, is left to chance."""
    world = Large(1, num_kills=30)
    world.run()
    assert world.num_kills == 0
    print(f"{world.time_s:.0f} s of its own time, {world.num_ops} operations")  # noqa: T201
