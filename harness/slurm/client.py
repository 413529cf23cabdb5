"""Slurm's client programs, each called with a list of arguments and a time limit."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.errors import InputError, RunError
from harness.slurm.environment import OF_CALLERS, OF_USERS, SlurmEnvironment

TIMEOUT_S = 30
SETTINGS_TIMEOUT_S = 10
BAD_OPTION = 255  # sbatch's exit code
NO_NODES = "configuration is not available"
# What sbatch says if it is not the job that is refused.
NO_SLURM = re.compile("unable to contact|timed out|zero bytes|standby mode|temporarily", re.I)


class NoAnswerError(RunError):
    """A program gave no answer. What it was called for may be done all the same."""


class NoNodesError(RunError):
    """`sbatch --test-only` finds no nodes: there are none, or all that suit are down at present."""


def has_client(program: str = "sbatch") -> bool:
    """Whether one of Slurm's client programs is on the PATH."""
    return shutil.which(program) is not None


def call(*args: str, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Call a client program, and return its exit code and output.

    Raises:
        InputError: if the program is not on the PATH.
        NoAnswerError: if it does not answer in time.
    """
    if not has_client(args[0]):
        raise InputError(
            f"{args[0]}: is not on the PATH; run this on a node with Slurm's clients, such as a "
            "login node, or load the site's module"
        )
    hidden = OF_CALLERS if "sbatch" in args else OF_USERS
    try:
        return subprocess.run(  # noqa: S603 - a list of arguments, no shell
            args,
            capture_output=True,
            text=True,
            errors="replace",  # a name of some job or file need not be UTF-8
            timeout=timeout_s,
            check=False,
            env={name: value for name, value in os.environ.items() if not hidden.fullmatch(name)},
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{shlex.join(args)}: no answer within {timeout_s:.0f} s; is Slurm up?"
        ) from None


def errors_of(done: "subprocess.CompletedProcess[str]") -> str:
    """What a failed program says, in one line, apart from its hint at --help.

    A site's own rules speak first; the last line is often only `Unspecified error`.
    """
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith("Try ")]
    return "; ".join(messages) or f"exit code {done.returncode}"


def has_cluster() -> bool:
    """Whether Slurm answers here: its programs may be installed where no cluster is."""
    try:
        ask("sinfo", "--noheader", "--format=%P", timeout_s=SETTINGS_TIMEOUT_S)
    except NoAnswerError:  # a controller that is busy is one all the same
        return True
    except (InputError, RunError):
        return False
    return True


def ask(*args: str, timeout_s: float = TIMEOUT_S) -> str:
    """Call a client program, and return what it printed.

    Raises:
        InputError: if the program is not on the PATH.
        RunError: if it fails or does not answer in time, with all that it says.
    """
    done = call(*args, timeout_s=timeout_s)
    if done.returncode != 0:
        raise RunError(f"{shlex.join(args)}: {errors_of(done)}")
    return done.stdout


def read_settings() -> dict[str, str]:
    """Slurm's configuration by its names, such as MaxArraySize; empty if it does not tell it."""
    try:
        text = ask("scontrol", "show", "config", timeout_s=SETTINGS_TIMEOUT_S)
    except (InputError, RunError):
        return {}
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def node_names(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of a job step in the order of its tasks, named as Slurm names them.

    In a container, where Slurm's clients may be missing, the job scripts have asked before.

    Raises:
        InputError, RunError: if Slurm must be asked and does not answer.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    return _expanded(allocation.node_list)


def job_nodes(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of the whole job; of one node that Slurm does not name here, an empty name.

    Raises:
        InputError, RunError: if Slurm must be asked and does not answer.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    if allocation.num_nodes > 1:
        return _expanded(allocation.job_node_list)
    return [allocation.node]


def _expanded(node_list: str) -> list[str]:
    """Only Slurm itself expands its lists rightly: `n[08-10]` is n08, n09, n10."""
    return ask("scontrol", "show", "hostnames", node_list).split()


def sbatch_args(unset: Sequence[str] = ()) -> list[str]:
    """The beginning of a command of sbatch, which may not see the variables `unset`."""
    return [*(["env", *(f"-u{name}" for name in unset)] if unset else []), "sbatch"]


def submitted_id(name: str, done: "subprocess.CompletedProcess[str]") -> str:
    """The id of a job that `sbatch --parsable` was called for; a site's own lines may come before.

    Raises:
        NoAnswerError: if it names none.
        InputError: if the job was refused, with all that sbatch says.
        RunError: if Slurm could not take it now.
    """
    if done.returncode != 0:
        raise _refusal(f"{name}: was not submitted: {errors_of(done)}")
    # The cluster's name may follow.
    found = re.findall(r"^[ \t]*(\d+)(?:;.*)?[ \t]*$", done.stdout, re.MULTILINE)
    if not found:
        raise NoAnswerError(f"sbatch printed only {done.stdout.strip()[:200]!r}")
    return str(found[-1])


def would_start(
    script: Path, *flags: str, timeout_s: float = TIMEOUT_S, unset: Sequence[str] = ()
) -> str:
    """When and where Slurm would start a script, as sbatch words it; nothing is submitted.

    Raises:
        InputError: if sbatch is not on the PATH or refuses the job, with all that it says.
        NoNodesError: if there are no nodes for such a job, or all of them are down.
        RunError: if Slurm does not answer.
    """
    done = call(*sbatch_args(unset), "--test-only", *flags, str(script), timeout_s=timeout_s)
    answer = errors_of(done).removeprefix("sbatch: ")  # on standard error even if it is no error
    if done.returncode == BAD_OPTION:
        raise InputError(f"{answer}; see man sbatch")
    if done.returncode != 0:
        told = f"would not start: {answer}"
        raise NoNodesError(told) if NO_NODES in answer else _refusal(told)
    return answer


def _refusal(told: str) -> InputError | RunError:
    return (RunError if NO_SLURM.search(told) else InputError)(told)
