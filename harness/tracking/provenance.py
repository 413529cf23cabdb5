"""Records code, packages, machine and data of a run; restores its code and job from the record."""

import functools
import hashlib
import os
import platform
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import PROJECT, __version__
from harness.errors import InputError, RunError, about
from harness.job.search import is_sweep
from harness.slurm.environment import SlurmEnvironment, asked_of, given_cpus
from harness.system.console import quoted
from harness.system.files import atomic_directory, distrust, replace_file
from harness.system.git import COMMIT, GitError, code_version, is_snapshot, write_version
from harness.system.gpu import library_versions
from harness.system.lenient_json import table, text, whole
from harness.system.processes import installed_version, nvidia_driver, processor
from harness.tracking.run_dir import RECORD, TIME, RunDirectory, first_start, stamped, weights_of

if TYPE_CHECKING:  # the module imports NumPy, which `harness cancel` does not need
    from harness.data.dataset import Dataset

JOB_FILE, SAMPLE_FOLDER = "reproduced.toml", "imdb-sample"  # in a restored folder
# Prefixes of the environment variables that change how TensorFlow computes.
VARIABLES = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_CUDNN_", "NVIDIA_TF32_", "NCCL_ALGO", "NCCL_PROTO")
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
    """Write a run's provenance record if it does not exist; add the current start to `starts`.

    Call this function before the training: a resumed run reads from the record which devices and
    data to use.

    Args:
        devices_asked: the value of `--devices`.
        plan: the fields of the `ExecutionPlan`, which says how training steps are computed.
        start: values for the new entry of the record's list `starts`; must contain `devices`.
    """
    code = code_of(run)
    asked = asked_of(allocation) if allocation else {}
    if allocation:  # in a job with several seeds, each run uses one node, whatever the allocation
        asked["nodes"] = allocation.num_tasks
    record = run.certain_json(RECORD) or {
        **code,
        "packages": installed_packages(),
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
    return [] if before == now else ["the code's uncommitted changes differ from the record"]


def this_machine(devices: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return what a run's result may depend on besides its code, for `provenance.json`."""
    on_gpus = any(device.get("name") for device in devices)
    return {
        "packages": installed_packages(),
        "libraries": {"driver": nvidia_driver(), **library_versions()} if on_gpus else {},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "processor": processor(),
        "devices": devices,
    }


def package_changes(
    record: dict[str, Any], packages: Mapping[str, str | None] | None = None
) -> list[str]:
    """List the packages whose versions differ from those in a record.

    Args:
        record: the record of a run, or of one start of a run.
        packages: the versions to compare with; by default those of this process.
    """
    known = table(record, "packages")
    now = packages or installed_packages()
    return _differences({name: known.get(name) for name in now}, now)


def machine_changes(start: dict[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """List the changes of packages, libraries, variables, devices and processor since a start.

    Args:
        start: an entry of the list `starts` in a run's record.
        machine: the result of `this_machine`, or the record of another start.
    """
    changes = package_changes(start, machine["packages"])
    libraries, variables = machine.get("libraries"), machine.get("variables")
    if libraries and table(start, "libraries"):
        changes += _differences(table(start, "libraries"), libraries)
    if variables is not None and isinstance(start.get("variables"), dict):
        changes += _differences(start["variables"], variables)
    before, now = (_kinds(each.get("devices") or ()) for each in (start, machine))
    if before and before != now:
        changes.append(f"the devices were {before} and are now {now}")
    was = start.get("processor")  # computes metrics and n-grams even if GPUs train
    if was and was != machine["processor"]:
        changes.append(f"the processor was {was} and is now {machine['processor']}")
    return changes


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


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


def installed_packages() -> dict[str, str | None]:
    """Return the versions of the packages that a run's result may depend on."""
    return {name: installed_version(name) for name in PACKAGES}


# Restoring


@dataclass(frozen=True)
class Reproduced:
    """The restored code and job of a run."""

    source: str  # such as "commit 0123456789ab and the uncommitted changes"
    command: str  # the shell command that repeats the run
    warnings: list[str]


def reproduce(
    run: RunDirectory, project: Path, folder: Path, *, trust_code: bool = False
) -> Reproduced:
    """Restore the code of a run in a new folder, and the run's job as JOB_FILE in this folder.

    The code is the recorded commit with the recorded changes.

    Args:
        run: an existing run.
        project: a git checkout that contains the run's commit.
        folder: the folder to create, which only this user can open. After an error the folder does
            not exist.
        trust_code: whether to restore code that another user wrote or could have changed.

    Raises:
        InputError: if the folder exists, or if the code is missing, not trusted or can't be
            restored.
        RunError: if the folder can't be written.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--to {folder}: exists already; choose a new folder")
    record = run.read_json(RECORD)
    if not record:
        raise InputError(
            f"run {run.folder}: its {RECORD}, which records the code, is missing or broken"
        )
    read = (run.folder, run.path(RECORD), run.path("job.toml"))
    reasons = [f"{each}: {reason}" for each in read if (reason := distrust(each))]
    if reasons and not trust_code:
        raise InputError(
            f"{reasons[0]}, and the code that this command restores would run with your "
            "permissions; read the code, then add --trust-code"
        )
    warnings = [f"{reason}; read the restored code before you run it" for reason in reasons]
    warnings += package_changes(record)
    commit, patch = str(record.get("commit") or ""), record.get("uncommitted_diff")
    if not COMMIT.fullmatch(commit):
        why = record.get("git_problem") or "the run started outside of a git checkout"
        raise InputError(f"run {run.folder}: its record has no commit; {why}")
    if patch is None:
        warnings.append("the record does not say whether the code had uncommitted changes")
    kept = text(record.get("snapshot"))
    where = f"; all the code is in {kept}" if kept and is_snapshot(Path(kept)) else ""
    if names := record.get("left_out_files"):
        first = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
        warnings.append(
            f"{len(names)} files are not in the record, so not restored: {first}{where}"
        )
    try:
        with atomic_directory(folder) as temporary:
            # Other users get no access, because the changes may contain secrets, and because the
            # harness refuses code that other users can change.
            temporary.chmod(0o700)
            write_version(project, commit, str(patch or ""), folder=temporary)
            replace_file(temporary / JOB_FILE, run.path("job.toml").read_bytes())
            with about(f"run {run.folder}"):
                data = _put_data(record, temporary)
    except GitError as error:
        raise InputError(
            f"run {run.folder}: its code can't be restored: {error}; fetch commit "
            f"{commit[:12]} into {project}, or call harness reproduce in the checkout where the "
            f"run started{where}"
        ) from None
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    source = f"commit {commit[:12]}" + (" and the uncommitted changes" if patch else "")
    return Reproduced(source, _command(record, folder, data), warnings)


def _put_data(record: dict[str, Any], folder: Path) -> list[str]:
    """Return the options that make `harness train` use the data of the run.

    If the run used the packaged sample, write the sample into the folder, so that `harness train`
    does not use the full data.
    """
    from harness.data.dataset_folder import save_folder
    from harness.data.sources import open_sample

    data = table(record, "dataset")
    if data.get("is_sample"):
        if (folder / SAMPLE_FOLDER).is_symlink():
            raise InputError(
                f"its code contains a link, {SAMPLE_FOLDER}, where the sample of IMDB belongs; the "
                "sample would be written to the link's target; do not trust this record"
            )
        save_folder(open_sample(), folder / SAMPLE_FOLDER)
        return ["--data", SAMPLE_FOLDER]
    where = text(data.get("folder"))
    # For a user's own texts, the job file contains the path.
    return ["--data", where] if where and not data.get("is_own") else []


def _devices_of(start: dict[str, Any]) -> str:
    """Return the devices of a start as a value of `--devices`; empty on several nodes."""
    devices = start.get("devices")
    names = [str(each.get("device")) for each in devices] if isinstance(devices, list) else []
    kinds = {name.partition(":")[0] for name in names}
    return f"{kinds.pop()}:{len(names)}" if kinds in ({"cpu"}, {"gpu"}) else ""


def _command(record: dict[str, Any], folder: Path, data: Sequence[str]) -> str:
    args = [sys.executable, "-m", "harness", "train", JOB_FILE]
    if threads := whole(table(record, "plan").get("threads")):
        args = ["env", f"HARNESS_CPUS={threads}", *args]
    if devices := record.get("devices_asked") or _devices_of(first_start(record)):
        args += ["--devices", str(devices)]
    if origin := weights_of(record):
        args += ["--from", origin]
    return f"cd {quoted(folder)} && {shlex.join([*args, *data])}"
