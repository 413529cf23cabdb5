"""Settings of the site for commands that no job script has started: lines of slurm/site.sh."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness import PROJECT

SITE = "slurm/site.sh"  # ignored by git
ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
SEPARATORS = (";", "&&", "||")
OPENERS = ("export", "then", "else", "do", "{")  # a command follows


def site_setting(
    name: str, project: Path = PROJECT, environment: Mapping[str, str] = os.environ
) -> str:
    """A setting from the environment, else the last that slurm/site.sh assigns to it.

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
    for line in text.splitlines():
        if f"{name}=" in line:
            value = dict(_assigned(line)).get(name, value)
    return value


def _assigned(line: str) -> Iterator[tuple[str, str]]:
    """The names and values of a line such as `export A=1 B=2`, or `A=1; B=2`."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    words.whitespace_split = True
    words.commenters = ""  # bash keeps a # within a word
    begins = True  # a command; a word of its arguments assigns nothing
    with contextlib.suppress(ValueError):  # a quotation mark that is not closed
        for word in words:
            if word.startswith("#"):
                return
            if word in OPENERS and begins:
                continue
            found = ASSIGNMENT.fullmatch(word)
            begins = word in SEPARATORS or (begins and found is not None)
            if begins and found:
                yield found[1], found[2]
