"""Records the code, packages, machine and data of a run, so that anyone can repeat it."""

import functools
import hashlib
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import PROJECT, __version__
from harness.job.search import is_sweep
from harness.slurm.environment import SlurmEnvironment, asked_of, given_cpus
from harness.system.git import code_version
from harness.system.lenient_json import table
from harness.system.processes import installed_version, nvidia_driver, processor
from harness.tracking.run_dir import RECORD, TIME, RunDirectory, first_start, stamped

if TYPE_CHECKING:  # the module imports NumPy, which `harness cancel` does not need
    from harness.data.dataset import Dataset

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorboard", "keras-tuner")


def write_provenance(
    run: RunDirectory,
    dataset: "Dataset",
    allocation: SlurmEnvironment | None,
    *,
    devices_asked: str | None,
    plan: Mapping[str, Any],
    start: Mapping[str, Any],
) -> None:
    """Write the provenance record of a run if none exists; add the current start to `starts`.

    Call this function before the training: a resumed run reads from the record which devices and
    data to use.

    Args:
        devices_asked: the value of `--devices`.
        plan: the fields of the `ExecutionPlan`, which says how training steps are computed.
        start: values for the new entry of the record's list `starts`; must contain `devices`.
    """
    code = code_of(run)
    asked = asked_of(allocation) if allocation else {}
    if allocation:  # each seed of a job on several nodes trains on a single node
        asked["nodes"] = allocation.num_tasks
    record = run.certain_json(RECORD) or {
        **code,
        "packages": _packages(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "driver": nvidia_driver(),
        "devices_asked": devices_asked,
        "plan": dict(plan),
        "kernels": {},  # added when the graph of a step is traced
        "slurm": allocation.variables if allocation else {},
        "dataset": dataset.record(),
        "starts": [],
    }
    record.setdefault("starts", []).append(
        {
            "at": time.strftime(TIME),
            "harness": __version__,
            "host": socket.gethostname(),
            "slurm_job": allocation.job_id if allocation else None,
            "slurm_asked": asked,
            "cpus": given_cpus(allocation),
            **_fingerprint(code),
            **this_machine(start["devices"]),
            **start,
        }
    )
    run.write_json(RECORD, stamped(record))


def code_of(run: RunDirectory) -> Mapping[str, Any]:
    """Return the commit, the uncommitted changes and the checksum of this process's code.

    Files in the folder of runs do not count as changes of the code.
    """
    folder = run.folder.absolute()
    # The folder of a trial's run is up to four levels below the folder of its sweep.
    sweep = next((each for each in folder.parents[:4] if is_sweep(each)), folder)
    return _code(sweep.parent.parent)


@functools.cache  # computes the result only once, although a sweep's worker starts many runs
def _code(runs: Path) -> Mapping[str, Any]:
    return {**code_version(PROJECT, runs), "sources_sha256": sources_checksum()}


def sources_checksum(package: Path = PROJECT / "harness") -> str:
    """Return a sha256 of the names and contents of the package's Python files."""
    checksum = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        checksum.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        checksum.update(content)
    return checksum.hexdigest()


def changes_since_first_start(run: RunDirectory, devices: Sequence[Mapping[str, str]]) -> list[str]:
    """List the changes of code, packages, devices and processor since a run's first start.

    Args:
        run: the run; there are no changes if it has not begun.
        devices: the devices of this start, as `describe_devices` returns them.
    """
    record = run.certain_json(RECORD)
    if not record:
        return []
    machine = machine_changes(first_start(record), this_machine(devices))
    return [*code_changes(record, code_of(run)), *machine]


def code_changes(record: Mapping[str, Any], code: Mapping[str, Any]) -> list[str]:
    """List the differences between the recorded code and `code`; empty if there are none."""
    before, now = _fingerprint(record), _fingerprint(code)
    if before["commit"] != now["commit"]:
        commits = (str(each["commit"] or "unknown")[:12] for each in (before, now))
        return ["the code's commit was {} and is now {}".format(*commits)]
    return [] if before == now else ["the uncommitted changes of the code differ"]


def this_machine(devices: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return this process's packages, processor and devices, with the keys of a start's record."""
    return {"packages": _packages(), "processor": processor(), "devices": devices}


def package_changes(
    record: dict[str, Any], packages: Mapping[str, str | None] | None = None
) -> list[str]:
    """List the packages whose versions differ from those in a record.

    Args:
        record: the record of a run or of a start.
        packages: the versions to compare with; by default those of this process.
    """
    known = table(record, "packages")
    return [
        f"{name} was {known.get(name)} and is now {version}"
        for name, version in (packages or _packages()).items()
        if known.get(name) != version
    ]


def machine_changes(start: dict[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """List the changes of packages, devices and processor since a recorded start.

    Args:
        start: the record of the start.
        machine: the result of `this_machine`, or the record of another start.
    """
    changes = package_changes(start, machine["packages"])
    before, now = (_kinds(each.get("devices") or ()) for each in (start, machine))
    if before and before != now:
        changes.append(f"the devices were {before} and are now {now}")
    was = start.get("processor")
    uses_cpus = not any(device.get("name") for device in machine["devices"])
    if uses_cpus and was and was != machine["processor"]:
        changes.append(f"the processor was {was} and is now {machine['processor']}")
    return changes


def _kinds(devices: Sequence[Mapping[str, str]]) -> str:
    """Return the devices as text, such as `4 × NVIDIA A100-SXM4-80GB` or `2 × CPU`."""
    kinds = Counter(device.get("name") or "CPU" for device in devices)
    return ", ".join(f"{number} × {kind}" for kind, number in kinds.items())


def _fingerprint(code: Mapping[str, Any]) -> dict[str, Any]:
    diff = code.get("uncommitted_diff")
    content = diff.encode(errors="surrogateescape") if isinstance(diff, str) else None
    return {
        "commit": code.get("commit"),
        "sources_sha256": code.get("sources_sha256"),
        "diff_sha256": None if content is None else hashlib.sha256(content).hexdigest(),
    }


def _packages() -> dict[str, str | None]:
    return {name: installed_version(name) for name in PACKAGES}
