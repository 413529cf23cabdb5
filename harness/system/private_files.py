"""Files in a checkout that look like secrets, which no snapshot and no record may hold."""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

MORE = "HARNESS_PRIVATE_FILES"  # a site's own patterns
NAMES = (
    *("*secret*", "*credential*", "*passw*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*apikey*", "*api_key*", "*api-key*"),
    *(".env*", ".netrc", ".pgpass", ".htpasswd", ".pypirc", ".npmrc", ".aws", ".ssh", ".kube"),
)
NO_CODE = ("*token*",)  # but tokenizer.py is code
CODE = (".py", ".pyi")
SAMPLE = 200  # files that say whether a checkout is private


def private_files(
    project: Path, names: Sequence[str], others: Sequence[str] = ()
) -> dict[str, str]:
    """The files that look like secrets, each with what says so: its name, or its mode.

    A mode that keeps a file from all other users says so where most files have another.

    Args:
        names: paths of files in it.
        others: more of its files, which show what mode is usual.
    """
    more = site_patterns()
    sample = [*others, *names][:SAMPLE]
    judges_mode = 2 * sum(_is_private(project / name) for name in sample) < len(sample)
    found = {}
    for name in names:
        if looks_secret(name, more):
            found[name] = "its name"
        elif judges_mode and _is_private(project / name):
            found[name] = f"its mode {(project / name).lstat().st_mode & 0o777:04o}"
    return found


def site_patterns() -> tuple[str, ...]:
    """A site's own patterns, in small letters."""
    return tuple(os.environ.get(MORE, "").lower().replace(",", " ").split())


def looks_secret(name: str, more: Sequence[str]) -> bool:
    """Whether a path, or a folder in it, is named like a secret, in capitals or not."""
    patterns = [*NAMES, *more]
    path = PurePosixPath(name.lower())
    if path.suffix not in CODE:
        patterns += NO_CODE
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in patterns)


def _is_private(path: Path) -> bool:
    try:
        return path.lstat().st_mode & 0o077 == 0
    except OSError:  # a tracked file that was deleted
        return False
