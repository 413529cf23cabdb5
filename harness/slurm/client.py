"""Slurm's client programs, each called with a list of words and a time limit."""

import shlex
import shutil
import subprocess
from pathlib import Path

from harness.errors import InputError, RunError

TIMEOUT_S = 30
BAD_OPTION = 255  # sbatch's exit code


def has_client(program: str = "sbatch") -> bool:
    """Whether a client program of Slurm's is on the PATH."""
    return shutil.which(program) is not None


def call(*words: str, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Call a client program, and give back how it ended and what it printed.

    Raises:
        InputError: if the program is not here.
        RunError: if it does not answer in time.
    """
    need(words[0])
    try:
        return subprocess.run(  # noqa: S603 - a list of words, no shell
            words, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"{shlex.join(words)}: no answer within {timeout_s:.0f} s; is Slurm up?"
        ) from None


def need(program: str) -> None:
    """Raise unless a client program is on the PATH.

    Raises:
        InputError: with the remedy.
    """
    if not has_client(program):
        raise InputError(
            f"{program}: is not on the PATH; run this where Slurm's clients are, such as a login "
            "node, or load the site's module"
        )


def last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """What a program that failed said last, without its hint at its own help."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Try ")]
    return said[-1].strip() if said else f"exit code {done.returncode}"


def ask(*words: str, timeout_s: float = TIMEOUT_S) -> str:
    """Call a client program, and give back what it printed.

    Raises:
        InputError: if the program is not here.
        RunError: if it fails or does not answer in time, with its own last line.
    """
    done = call(*words, timeout_s=timeout_s)
    if done.returncode != 0:
        raise RunError(f"{shlex.join(words)}: {last_words(done)}")
    return done.stdout


def would_start(script: Path, *flags: str, timeout_s: float = TIMEOUT_S) -> str:
    """When and where Slurm would start a script, in its own words; nothing is submitted.

    Raises:
        InputError: if sbatch is not here, or does not know one of the flags.
        RunError: if there is no place for such a job, with the reason.
    """
    done = call("sbatch", "--test-only", *flags, str(script), timeout_s=timeout_s)
    said = last_words(done).removeprefix("sbatch: ")  # on standard error, whatever it is
    if done.returncode == BAD_OPTION:
        raise InputError(f"{said}; see man sbatch")
    if done.returncode != 0:
        raise RunError(f"would not be started: {said}")
    return said
