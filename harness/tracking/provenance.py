"""Where a run came from: code, packages, machine and data, so that anyone can repeat it."""

import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

from harness import PROJECT, __version__
from harness.data.dataset import Dataset
from harness.slurm.environment import SlurmEnvironment, given_cpus
from harness.system.git import code_version
from harness.system.host import installed_version, nvidia_driver, processor
from harness.tracking.record_format import RECORD, stamped
from harness.tracking.run_dir import RUN_FORMAT, RunDirectory

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorboard", "keras-tuner")


def write_provenance(
    run: RunDirectory,
    dataset: Dataset,
    allocation: SlurmEnvironment | None,
    *,
    devices_asked: str | None,
    plan: Mapping[str, Any],
    start: Mapping[str, Any],
) -> None:
    """Record the first start of a run in full, and each later one as an item of `starts`.

    Called before anything is trained: a resumed run takes its devices and data from here.

    Args:
        run: whose record it is.
        dataset: of the run.
        allocation: of Slurm, if there is one.
        devices_asked: as `--devices` names them.
        plan: how steps are computed.
        start: what is true of this start alone, such as its devices.
    """
    record = run.read_json(RECORD) or {
        **code_version(PROJECT, run.folder.absolute().parent.parent),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "driver": nvidia_driver(),
        "devices_asked": devices_asked,
        "plan": dict(plan),
        "kernels": {},  # known when the graph is traced
        "slurm": allocation.variables if allocation else {},
        "dataset": {
            "checksum": dataset.checksum,
            "official": dataset.official,
            "is_sample": dataset.is_sample,
            "is_own": dataset.is_own,
            "folder": str(dataset.folder.absolute()) if dataset.folder else None,
        },
        "starts": [],
    }
    record.setdefault("starts", []).append(
        {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "harness": __version__,
            "host": socket.gethostname(),
            "slurm_job": allocation.job_id if allocation else None,
            "cpus": given_cpus(allocation),
            **start,
        }
    )
    run.write_json(RECORD, stamped(record, RUN_FORMAT))


def record_kernels(run: RunDirectory, kernels: dict[str, str]) -> None:
    """Add the kernel that each recurrent layer uses."""
    run.write_json(RECORD, {**run.read_json(RECORD), "kernels": kernels})


def record_gpu_gb(run: RunDirectory, gb: float) -> None:
    """Add the GB that the last start took of a GPU, the fullest of several."""
    record = run.read_json(RECORD)
    record["starts"][-1]["gpu_gb"] = round(gb, 3)
    run.write_json(RECORD, record)
