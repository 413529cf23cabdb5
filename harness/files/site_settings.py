"""Settings of the site are environment variables, which slurm/site.sh exports.

The job scripts source that file, and a person sources it in a shell. Only bash knows what it sets,
so no value is read from it here: names alone, to tell a shell that has not sourced it.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError

SITE = "slurm/site.sh"  # ignored by git
LARGEST = 1440.0  # of a number of minutes or seconds


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
