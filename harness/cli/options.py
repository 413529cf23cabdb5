"""Arguments and options that several commands share."""

import logging
import os
from pathlib import Path
from socket import gethostname
from typing import Annotated

import typer

from harness.errors import InputError
from harness.job.own_code import TRUST
from harness.slurm.client import has_client, read_settings
from harness.slurm.environment import SlurmEnvironment, not_sourced
from harness.system.console import log, quoted

JOBS_ONLY = "HARNESS_JOBS_ONLY"
CONFIRMED = "HARNESS_HERE"
# The settings of site.sh that change how a model is trained, besides HARNESS_RUNS (see `_runs`).
OF_TRAINING = (JOBS_ONLY, "HARNESS_DATA", "HARNESS_DATA_OWNERS", "HARNESS_DEVICES", TRUST)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run: runs/lstm/my-run")]


def _runs(ctx: typer.Context, runs: Path) -> Path:
    """Refuse a folder whose path is not UTF-8: neither records nor TensorBoard can store the path.

    Also warns if the default is used although site.sh sets HARNESS_RUNS.
    """
    try:
        os.fsencode(runs.absolute()).decode()
    except UnicodeDecodeError:
        raise InputError(
            f"--runs {quoted(runs.absolute())}: should be UTF-8; use another folder"
        ) from None
    source = ctx.get_parameter_source("runs")
    is_default = source is not None and source.name == "DEFAULT" and not ctx.resilient_parsing
    own = SlurmEnvironment.from_environment()
    # `submit` warns about all settings later. A job script has already read site.sh.
    warns = is_default and ctx.info_name != "submit" and not (own and own.is_batch)
    if warns and (hint := not_sourced(["HARNESS_RUNS"])):
        log(logging.WARNING, hint)
    return runs


RunsFolder = Annotated[
    Path,
    typer.Option(
        "--runs", callback=_runs, metavar="DIR", envvar="HARNESS_RUNS", help="folder of the runs"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="set a key of the job, such as train.epochs=8; repeat the option for more keys",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="folder of the dataset, instead of HARNESS_DATA"),
]
DataOfRun = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="folder of IMDB, instead of HARNESS_DATA; if the run was trained on your texts, "
        "the table or folder of these texts",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="refuse to continue a run if its code, packages or devices have changed",
    ),
]


def _some_devices(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise InputError("--devices '': should name devices, such as gpu:2 or cpu; or leave it out")
    return text


DeviceList = Annotated[
    str | None,
    typer.Option(
        "--devices",
        callback=_some_devices,
        metavar="KIND:N",
        help="devices, such as gpu:2, cpu or cpu:2; for a search or several runs, gpu or cpu: each "
        "trial or run uses one device; default: the devices requested at the first start of the "
        "run, else HARNESS_DEVICES, else all GPUs, else the CPU",
    ),
]
Full = Annotated[
    bool,
    typer.Option("--full", help="if IMDB is missing, fail instead of training on the SAMPLE"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=1000, metavar="N", help="number of runs at a time; default: one per GPU or CPU"
    ),
]
WorkersPerGpu = Annotated[
    int, typer.Option(min=1, max=64, metavar="N", help="number of workers that share a GPU")
]
Here = Annotated[
    bool,
    typer.Option("--here", help="allow training on this machine, outside of a Slurm job"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _trust(trusted: bool) -> bool:
    """Set HARNESS_TRUST_CODE, which this process and its children read."""
    if trusted:
        os.environ[TRUST] = "1"
    return trusted


TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=_trust,
        help="run custom code even if other users wrote it or can change it",
    ),
]


def confirm_here(*, here: bool) -> None:
    """Warn if this shell lacks settings of site.sh, or if training should run in a Slurm job.

    Args:
        here: whether the user passed --here, which allows training outside of a Slurm job.

    Raises:
        InputError: if the site sets HARNESS_JOBS_ONLY=1, and `here` is False.
    """
    if os.environ.get(CONFIRMED):
        return
    own = SlurmEnvironment.from_environment()
    if not own and not here and has_client("sbatch"):
        instead = "use harness submit, or put srun before the command"
        if os.environ.get(JOBS_ONLY) == "1":
            raise InputError(
                f"this site allows training only in Slurm jobs; {instead}; or pass --here to train "
                "on this machine"
            )
        if read_settings():  # Slurm's programs may be installed without a cluster
            log(
                logging.WARNING,
                f"this is not a Slurm job, so training runs on {gethostname()} itself; to train in "
                f"a Slurm job, {instead}",
            )
    # A job script has already read site.sh.
    if not (own and own.is_batch) and (hint := not_sourced(OF_TRAINING)):
        log(logging.WARNING, hint)
    os.environ[CONFIRMED] = "1"  # keeps child processes from repeating the warnings
