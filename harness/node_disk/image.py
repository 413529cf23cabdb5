"""A Python environment as one compressed file, made once on the shared disk where it is.

An environment has tens of thousands of files. A job reads one file instead, and unpacks it to the
disk of its node.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import read_json, text, whole

FORMAT = 1
RECORD = "harness-image.json"
NAME = "harness-image"  # of the file; its compression follows
STAMP = "harness-lock.sha256"  # that slurm/environment.sh writes
PACK = "bash slurm/common.sh --setup --pack"

# Decompressing is what counts, and zstd does it several times as fast as gzip. tar takes these
# commands, and adds -d; the first that is here packs. Login nodes are shared: at most four threads.
COMPRESSORS = {"zst": ("zstd", "zstd -q -3 -T4"), "gz": ("gzip", "gzip -1")}


@dataclass(frozen=True)
class Image:
    """What is known of a packed environment."""

    file: str  # its name, in the environment's folder
    sha256: str
    num_bytes: int
    num_files: int  # in it, without byte code, which Python adds
    unpacked_bytes: int
    contents: str  # of the environment when it was packed, from `contents_of`

    @property
    def compression(self) -> str:
        """Its kind, a key of COMPRESSORS."""
        return self.file.rpartition(".")[2]


def read_image(environment: Path) -> Image | None:
    """The record of an environment's image, None where there is none that is whole."""
    record = read_json(environment / RECORD)
    file, sha256, contents = (text(record.get(name)) for name in ("file", "sha256", "contents"))
    counts = [whole(record.get(name)) for name in ("num_bytes", "num_files", "unpacked_bytes")]
    num_bytes, num_files, unpacked_bytes = counts
    if (
        not (file and sha256 and contents and num_bytes and num_files and unpacked_bytes)
        or record.get("format") != FORMAT
        or Path(file).name != file
        or file.rpartition(".")[2] not in COMPRESSORS
    ):
        return None
    return Image(file, sha256, num_bytes, num_files, unpacked_bytes, contents)


def is_current(environment: Path, image: Image) -> bool:
    """Whether the environment still holds what was packed."""
    return image.contents == contents_of(environment)


def contents_of(environment: Path) -> str:
    """A sum of the packages in an environment: of their names, versions and times, and its lock."""
    found = hashlib.sha256()
    with contextlib.suppress(FileNotFoundError):  # not made by our scripts
        found.update((environment / STAMP).read_bytes())
    for folder in sorted(environment.glob("lib/python*/site-packages")):
        names = sorted(map(_name, folder.iterdir()))
        found.update("\0".join([folder.parent.name, *filter(None, names)]).encode())
    return found.hexdigest()


def _name(path: Path) -> str:
    """A name in site-packages; a package's own record also by when it was installed."""
    if path.suffix == ".dist-info":  # pip makes it anew, even for the same version
        return f"{path.name} {int(path.stat().st_mtime)}"
    return "" if path.name == "__pycache__" else path.name


def count_files(folder: Path, *, byte_code: bool = False) -> tuple[int, int]:
    """The number of files in a folder, with byte code or without, and the bytes of all."""
    num_files = num_bytes = 0
    for entry in _files(folder):
        num_files += byte_code or not entry.name.endswith(".pyc")
        num_bytes += entry.stat(follow_symlinks=False).st_size
    return num_files, num_bytes


def _files(folder: Path | str) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif not entry.name.startswith(f"{NAME}-") and entry.name != RECORD:
                yield entry


def pack(environment: Path) -> Image:
    """Pack an environment into one file in its own folder; an earlier one is replaced.

    Raises:
        InputError: if it is no virtual environment, or nothing here compresses.
        RunError: if it changes meanwhile, or the disk refuses.
    """
    if not (environment / "pyvenv.cfg").is_file():
        raise InputError(
            f"{environment}: is no virtual environment, and others do not work from another "
            f"folder; name one by HARNESS_VENV in slurm/site.sh, then {PACK}"
        )
    kind = next((each for each, (name, _) in COMPRESSORS.items() if shutil.which(name)), None)
    if kind is None or not shutil.which("tar"):
        raise InputError("--pack: needs tar, and zstd or gzip; none is on the PATH, load a module")
    contents = contents_of(environment)
    num_files, unpacked_bytes = count_files(environment)
    image = Image("", "", 0, num_files, unpacked_bytes, contents)
    try:
        image = _write(environment, kind, image)
        record = {"format": FORMAT, **asdict(image)}
        atomic_write(environment / RECORD, json.dumps(record, indent=2) + "\n")
        for other in environment.glob(f"{NAME}-*"):
            if other.name != image.file:
                other.unlink()
    except OSError as error:
        raise RunError(
            f"{environment}: can't be packed there: {error.strerror or error}; free some space, or "
            "choose another HARNESS_VENV that you can write to"
        ) from None
    if not is_current(environment, image) or count_files(environment)[0] != num_files:
        (environment / RECORD).unlink(missing_ok=True)
        raise RunError(f"{environment}: changed while it was packed; run {PACK} again")
    return image


def _write(environment: Path, kind: str, image: Image) -> Image:
    """Write the image under a name with the beginning of its sum, and return its record."""
    passing = environment / f"{NAME}-new"  # a killed packing leaves it; the next replaces it
    left_out = [f"--exclude=./{name}" for name in (f"{NAME}-*", RECORD)]  # itself
    try:
        call_tar(kind, "--create", f"--file={passing}", f"--directory={environment}", "--anchored",
                 *left_out, ".")  # fmt: skip
    except RunError:  # of a full disk, which it would leave full
        passing.unlink(missing_ok=True)
        raise
    with passing.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    final = environment / f"{NAME}-{sha256[:16]}.tar.{kind}"
    passing.replace(final)
    return replace(image, file=final.name, sha256=sha256, num_bytes=final.stat().st_size)


def call_tar(kind: str, *args: str) -> None:
    """Run tar on an image of that compression.

    Raises:
        RunError: with the last that it says, if it fails.
    """
    program = f"--use-compress-program={COMPRESSORS[kind][1]}"
    done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
        ["tar", program, *args],  # noqa: S607 - the one on the PATH
        capture_output=True,
        text=True,
        errors="replace",
    )
    # 1: a folder changed while it was read, as this one does; `pack` looks whether it matters.
    if done.returncode > (1 if "--create" in args else 0):
        said = done.stderr.strip().splitlines()
        raise RunError(f"tar: {said[-1] if said else f'exit code {done.returncode}'}")
