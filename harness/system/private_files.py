"""Files in a checkout that look like secrets, which no snapshot and no record may hold."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

NAMES = (
    *("*secret*", "*credential*", "*passw*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*apikey*", "*api_key*", "*api-key*"),
    *(".env*", ".netrc", ".pgpass", ".htpasswd", ".pypirc", ".npmrc", ".aws", ".ssh", ".kube"),
)
NO_CODE = ("*token*",)  # but tokenizer.py is code
CODE = (".py", ".pyi")


def private_files(project: Path, names: Sequence[str]) -> dict[str, str]:
    """The files that look like secrets, each with what says so: its name, or its mode.

    A mode that keeps a file from all other users says nothing in a folder that has such a mode
    itself.

    Args:
        project: the folder of the checkout.
        names: paths of files in it.
    """
    judges_mode = not _is_private(project)
    found = {}
    for name in names:
        if looks_secret(name):
            found[name] = "its name"
        elif judges_mode and _is_private(project / name):
            found[name] = f"its mode {(project / name).lstat().st_mode & 0o777:04o}"
    return found


def looks_secret(name: str) -> bool:
    """Whether a path, or a folder in it, is named like a secret, in capitals or not."""
    path = PurePosixPath(name.lower())
    patterns = NAMES if path.suffix in CODE else (*NAMES, *NO_CODE)
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in patterns)


def _is_private(path: Path) -> bool:
    try:
        return path.lstat().st_mode & 0o077 == 0
    except OSError:  # a tracked file that was deleted
        return False
