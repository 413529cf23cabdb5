"""Settings of the site are environment variables, which slurm/site.sh exports.

The job scripts source that file, and a person sources it in a shell. Only bash knows what it sets,
so no value is read from it here: names alone, to tell a shell that has not sourced it.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError
from harness.system.console import echo

SITE = "slurm/site.sh"  # ignored by git
TRUST = "HARNESS_TRUST_CODE"  # set by --trust-code
LARGEST = 1440.0  # of a number of minutes or seconds

# Of one model on several nodes. TensorFlow's servers have no login and listen on every interface of
# a node; they are for private networks (github.com/tensorflow/tensorflow/issues/11689).
TRUSTED_NETWORK = "HARNESS_TRUSTED_NETWORK"
AT_STAKE = (
    "any user who reaches the ports of your nodes could act as you and read and write your files, "
    "because TensorFlow's servers have no login"
)
REMEDY = (
    f"use one node, or, if nobody else reaches them, export {TRUSTED_NETWORK}=1 in slurm/site.sh, "
    "and source that file"
)


def not_sourced(
    names: Iterable[str], project: Path = PROJECT, environment: Mapping[str, str] = os.environ
) -> str:
    """What to do about settings that slurm/site.sh names and this environment lacks; else empty.

    Args:
        names: of the settings that are needed.
    """
    try:
        text = (project / SITE).read_text(errors="replace")
    except OSError:
        return ""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = [n for n in names if n not in environment and re.search(rf"\b{n}=", code)]
    if not found:
        return ""
    return f"{SITE} names {', '.join(found)}, which this shell does not have: source {SITE}"


def number_setting(
    name: str, unit: str, default: float, environment: Mapping[str, str] = os.environ
) -> float:
    """A number of a site's, from the environment alone; 0 switches off what it limits.

    Raises:
        InputError: if it is no number from 0 to LARGEST.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LARGEST:
        raise InputError(
            f"{name}={text[:40]}: should be {unit}, 0 to {LARGEST:.0f}, 0 for never; correct it "
            "in slurm/site.sh or your shell"
        )
    return number


def ask_for_trusted_network(project: Path) -> None:
    """Ask once, on a terminal, whether the network is trusted; the answer goes into SITE."""
    if TRUSTED_NETWORK in os.environ or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    echo(f"One model trains on several nodes only if nobody else reaches them: {AT_STAKE}.")
    question = "Can only people whom you trust reach the ports of the nodes? [y/N] "
    try:
        word = int(input(question).strip().lower().startswith("y"))
    except EOFError:
        word = 0
    site = project / SITE
    text = site.read_text(errors="surrogateescape") if site.exists() else ""
    end = "\n" if text and not text.endswith("\n") else ""
    with site.open("a") as file:
        file.write(f"{end}export {TRUSTED_NETWORK}={word}\n")
    echo(f"noted in {SITE}")


def is_trusted_network(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the site says that nobody else reaches the ports of a job's nodes."""
    return environment.get(TRUSTED_NETWORK) == "1"


def check_trusted_network(num_nodes: int) -> None:
    """Refuse to train one model on several nodes of a network that is not trusted.

    Raises:
        InputError: for several nodes, until the site has said that its network is private.
    """
    if num_nodes > 1 and not is_trusted_network():
        hint = not_sourced([TRUSTED_NETWORK])
        raise InputError(
            f"one model on {num_nodes} nodes: {AT_STAKE}; {REMEDY}{f' ({hint})' if hint else ''}"
        )
