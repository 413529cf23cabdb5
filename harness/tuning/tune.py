"""A sweep from its command to its result, and what is taken from it."""

from pathlib import Path
from typing import Any

from harness.errors import InputError, RunError
from harness.search_space import SEARCH_FILE, SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import allocate_slots
from harness.system.console import Console
from harness.system.resource_monitor import idle_warning_min
from harness.tuning.supervisor import STALL_S, Crew, Supervisor, chief_host, describe, is_free
from harness.tuning.sweep_dir import SweepDirectory, ranked_rows


def tune(
    sweep: SweepDirectory,
    search: SearchSpec,
    *,
    num_workers: int | None,
    workers_per_gpu: int,
    devices: str | None,
    data: Path | None,
    full: bool,
    port: int = 0,
    stall_s: float = STALL_S,
    console: Console,
) -> dict[str, Any]:
    """Begin a sweep, or go on with one, to its result.

    Returns:
        The content of `result.json`: the winner and its score.

    Raises:
        InputError: for what can't be searched here, or a sweep that a later version of harness
            wrote; nothing is written then.
        Interrupted, RunError: as `harness.tuning.supervisor` says.
    """
    sweep.check_format()
    allocation = SlurmEnvironment.from_environment()
    slots = allocate_slots(
        allocation, num_workers, workers_per_gpu=workers_per_gpu, devices=devices
    )
    idle_warning_min()  # refused here, before each worker would
    if port and not is_free(chief_host(allocation), port):
        raise InputError(f"--port {port}: is in use at {chief_host(allocation)}; leave --port out")
    dataset = sweep.dataset(search.job, data, full=full)
    sweep.take_lease()
    sweep.write_format()
    sweep.make_secret()
    sweep.write_data(dataset)
    sweep.write_text(SEARCH_FILE, search.to_toml())  # from here on the sweep is one that can go on
    sweep.path("result.json").unlink(missing_ok=True)  # it may go on with more trials
    if dataset.introduction:
        console.info(dataset.introduction)
    table = search.table
    much = f"{table.trials} trials" if table.trials else "all trials"
    console.info(
        f"sweep {sweep.folder}: {table.tuner}, {much}, {len(slots)} worker"
        f"{'s' if len(slots) > 1 else ''}, data: {dataset.title}"
    )
    supervisor = Supervisor(sweep, Crew(slots, devices, data, stall_s, port), allocation, console)
    supervisor.run()
    result = conclude(sweep, search)
    assert supervisor.heartbeat  # noqa: S101 - it does not join
    supervisor.heartbeat.beat("finished", **describe(sweep, sweep.progress(), len(slots)))
    sweep.write_json("result.json", result)
    return result


def join(
    sweep: SweepDirectory,
    *,
    num_workers: int | None,
    workers_per_gpu: int,
    devices: str | None,
    data: Path | None,
    stall_s: float = STALL_S,
    console: Console,
) -> None:
    """Work for a sweep whose chief runs elsewhere, until that has no more trials.

    Raises:
        InputError: if the sweep's secret can't be read, or it has other data.
        Interrupted, RunError: as `harness.tuning.supervisor` says.
    """
    sweep.check_format()
    if sweep.finished():
        console.info(f"sweep {sweep.folder}: is finished, nothing to do")
        return
    allocation = SlurmEnvironment.from_environment()
    slots = allocate_slots(
        allocation, num_workers, workers_per_gpu=workers_per_gpu, devices=devices
    )
    idle_warning_min()  # refused here, before each worker would
    sweep.secret()
    sweep.dataset(sweep.search().job, data)
    console.info(f"sweep {sweep.folder}: {len(slots)} more workers")
    crew = Crew(slots, devices, data, stall_s)
    Supervisor(sweep, crew, allocation, console, joins=True).run()


def conclude(sweep: SweepDirectory, search: SearchSpec) -> dict[str, Any]:
    """The result of a search that is over.

    Raises:
        RunError: if no trial has ended well.
    """
    rows = ranked_rows(sweep)
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished:
        error = rows[0]["error"] if rows else "there were none"
        raise RunError(f"sweep {sweep.folder}: no trial ended well: {error}")
    best = finished[0]
    return {
        "job": search.name,
        "sweep": sweep.folder.name,
        "tuner": search.table.tuner,
        "objective": search.table.objective,
        "num_trials": len(rows),
        "num_failed": sum(row["status"] == "failed" for row in rows),
        "best_trial": best["trial"],
        "best_score": float(best[search.table.objective]),
        "best_values": {d.key: best[d.key] for d in search.space if best[d.key]},
    }
