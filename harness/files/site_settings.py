"""Settings of the site for commands that no job script has started: lines of slurm/site.sh."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from harness import PROJECT

SITE = "slurm/site.sh"  # ignored by git


def site_setting(
    name: str, project: Path = PROJECT, environment: Mapping[str, str] = os.environ
) -> str:
    """A setting from the environment, else from the last line of slurm/site.sh that assigns it.

    Nothing is executed: a login node need not load modules for it, so a value stands as it is
    written, without variables. Empty if it is not set.
    """
    if name in environment:
        return environment[name]
    try:
        text = (project / SITE).read_text(errors="replace")
    except OSError:
        return ""
    value = ""
    for line in re.findall(rf"^[ \t]*(?:export[ \t]+)?{name}=(.*)$", text, re.MULTILINE):
        try:
            value = next(iter(shlex.split(line, comments=True)), "")
        except ValueError:  # a quotation mark that is not closed
            value = ""
    return value
