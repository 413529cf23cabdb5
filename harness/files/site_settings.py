"""Settings of the site are environment variables, which slurm/site.sh exports.

The job scripts source that file, and a person sources it in a shell. Only bash knows what it sets,
so no value is read from it here: names alone, to tell a shell that has not sourced it.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import PROJECT

SITE = "slurm/site.sh"  # ignored by git


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
