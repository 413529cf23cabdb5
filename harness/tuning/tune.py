"""Runs a sweep from its command to its result, or joins one."""

from typing import Any

from harness.errors import InputError, RunError
from harness.search_space import SEARCH_FILE, SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import Console
from harness.system.network import is_free
from harness.system.resource_monitor import idle_warning_min
from harness.tuning.supervisor import Supervisor, WorkerRequest, chief_host, describe
from harness.tuning.sweep_dir import SweepDirectory, ranked_rows


def tune(
    sweep: SweepDirectory,
    search: SearchSpec,
    request: WorkerRequest,
    *,
    console: Console,
    full: bool = False,
) -> dict[str, Any]:
    """Begin a sweep, or go on with one, to its result.

    Args:
        sweep: its folder.
        search: checked.
        request: the workers.
        console: where progress is reported.
        full: refuse to fall back to the packaged sample.

    Returns:
        The content of `result.json`: the best trial and its score.

    Raises:
        InputError: if the search can't run here, or if a later version of harness wrote the sweep;
            nothing has been written then.
        Interrupted, RunError: see `harness.tuning.supervisor`.
    """
    sweep.check_format()
    allocation = SlurmEnvironment.from_environment()
    slots = request.slots(allocation)
    idle_warning_min()  # refuse a bad value here, before each worker does
    host = chief_host(allocation)
    if request.port and not is_free(host, request.port):
        raise InputError(f"--port {request.port}: is in use at {host}; leave --port out")
    dataset = sweep.dataset(search.job, request.data, full=full)
    sweep.take_lease()
    sweep.write_format()
    sweep.make_secret()
    sweep.write_data(dataset)
    sweep.write_text(SEARCH_FILE, search.to_toml())  # from here on the sweep can be resumed
    sweep.path("result.json").unlink(missing_ok=True)  # there may be more trials to run now
    if dataset.introduction:
        console.info(dataset.introduction)
    num_trials = f"{search.table.trials} trials" if search.table.trials else "all trials"
    console.info(
        f"sweep {sweep.folder}: {search.table.tuner}, {num_trials}, {len(slots)} worker"
        f"{'s' if len(slots) > 1 else ''}, data: {dataset.title}"
    )
    supervisor = Supervisor(sweep, request, slots, allocation=allocation, console=console)
    supervisor.run()
    result = conclude(sweep, search)
    assert supervisor.heartbeat  # noqa: S101 - it does not join
    supervisor.heartbeat.beat("finished", **describe(sweep, sweep.progress(), len(slots)))
    sweep.write_json("result.json", result)
    return result


def join(sweep: SweepDirectory, request: WorkerRequest, console: Console) -> None:
    """Work for a sweep whose chief runs elsewhere until it has no more trials.

    Raises:
        InputError: if the sweep's secret can't be read, or the data differ from the sweep's.
        Interrupted, RunError: see `harness.tuning.supervisor`.
    """
    sweep.check_format()
    if sweep.finished():
        console.info(f"sweep {sweep.folder}: is finished, nothing to do")
        return
    allocation = SlurmEnvironment.from_environment()
    slots = request.slots(allocation)
    idle_warning_min()  # refuse a bad value here, before each worker does
    sweep.secret()
    sweep.dataset(sweep.search().job, request.data)
    console.info(f"sweep {sweep.folder}: {len(slots)} more workers")
    Supervisor(sweep, request, slots, allocation=allocation, console=console, joins=True).run()


def conclude(sweep: SweepDirectory, search: SearchSpec) -> dict[str, Any]:
    """The result of a search that is over.

    Raises:
        RunError: if no trial has finished.
    """
    rows = ranked_rows(sweep)
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished:
        error = rows[0]["error"] if rows else "there were none"
        raise RunError(f"sweep {sweep.folder}: no trial finished: {error}")
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
