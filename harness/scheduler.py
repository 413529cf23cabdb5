"""Slurm's client programs, each called with a list of words and a time limit."""

import shlex
import shutil
import subprocess
from pathlib import Path

from harness.errors import InputError, RunError

TIMEOUT_S = 30


def has_client(program: str = "sbatch") -> bool:
    """Whether a client program of Slurm's is on the PATH."""
    return shutil.which(program) is not None


def ask(*words: str, timeout_s: float = TIMEOUT_S) -> str:
    """Call a client program, and give back what it printed.

    Raises:
        InputError: if the program is not here.
        RunError: if it fails or does not answer in time, with its own last line.
    """
    return _call(words, timeout_s).stdout


def would_start(script: Path, *flags: str, timeout_s: float = TIMEOUT_S) -> str:
    """When and where `sbatch --test-only` says that a script would start; nothing is submitted.

    Raises:
        InputError: if sbatch is not here.
        RunError: if the script is not accepted, with the reason.
    """
    # The answer comes on standard error: "sbatch: Job 7 to start at TIME using 4 processors on …".
    said = _call(("sbatch", "--test-only", *flags, str(script)), timeout_s).stderr
    _, _, answer = said.rpartition(" to start at ")
    return " ".join(answer.split())


def _call(words: tuple[str, ...], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    if not has_client(words[0]):
        raise InputError(
            f"{words[0]}: is not on the PATH; run this where Slurm's clients are, such as a login "
            "node, or load the site's module"
        )
    line = shlex.join(words)
    try:
        done = subprocess.run(  # noqa: S603 - a list of words, no shell
            words, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{line}: no answer within {timeout_s:.0f} s; is Slurm up?") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"{line}: {said[-1]}")
    return done
