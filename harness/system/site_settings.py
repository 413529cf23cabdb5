"""Settings of the site: environment variables that slurm/site.sh exports.

Job scripts source slurm/site.sh, and users source it in their shells. The file is a bash script, so
this module reads no values, but searches the file for names, to warn if a variable is unset.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError

SITE = "slurm/site.sh"  # ignored by git
TRUST = "HARNESS_TRUST_CODE"  # set by --trust-code
NEVER, ALWAYS = "HARNESS_SBATCH_NEVER", "HARNESS_SBATCH_ALWAYS"
LARGEST = 1440.0  # the largest value of a time limit, in its unit (minutes or seconds)

# Unless this variable is 1, no model trains on several nodes: TensorFlow's servers listen on every
# network interface, do not authenticate their clients, and are made for private networks
# (github.com/tensorflow/tensorflow/issues/11689).
TRUSTED_NETWORK = "HARNESS_TRUSTED_NETWORK"
RISK = (
    "any user who reaches the ports of your nodes could act as you and read and write your files, "
    "because TensorFlow's servers do not authenticate their clients"
)
REMEDY = (
    "train on one node; or, if no other user can reach the ports of your nodes, export "
    f"{TRUSTED_NETWORK}=1 in slurm/site.sh and source that file"
)


def not_sourced(
    names: Iterable[str] = (), project: Path = PROJECT, environment: Mapping[str, str] = os.environ
) -> str:
    """Return a hint if slurm/site.sh sets variables that are unset in this shell; else empty.

    Args:
        names: the names of the settings that are needed; by default all that the file exports.
    """
    try:
        text = (project / SITE).read_text(errors="replace")
    except OSError:
        return ""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    exports = "\n".join(re.findall(r"\bexport (.*)", code))
    names = names or dict.fromkeys(re.findall(r"\b((?:HARNESS|SBATCH)_\w+)=", exports))
    found = [n for n in names if n not in environment and re.search(rf"\b{n}=", code)]
    if not found:
        return ""
    return f"{SITE} sets {', '.join(found)}, which this shell lacks; run: source {SITE}"


def number_setting(name: str, unit: str, default: float, environment: Mapping[str, str]) -> float:
    """Read a time limit of the site from the environment; 0 means no limit.

    Raises:
        InputError: if the value is not a number from 0 to LARGEST.
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
            f"{name}={text[:40]}: should be a number of {unit} from 0 to {LARGEST:.0f}, 0 = no "
            "limit; correct it in slurm/site.sh or your shell"
        )
    return number


def check_trusted_network(num_nodes: int) -> None:
    """Refuse to train one model on several nodes of a network that is not trusted.

    Raises:
        InputError: for several nodes, unless HARNESS_TRUSTED_NETWORK is 1.
    """
    if num_nodes > 1 and os.environ.get(TRUSTED_NETWORK) != "1":
        hint = not_sourced([TRUSTED_NETWORK])
        raise InputError(
            f"training one model on {num_nodes} nodes is refused: {RISK}; {REMEDY}"
            f"{f' ({hint})' if hint else ''}"
        )
