"""An environment packed, and unpacked to a node's own disk, once for all jobs of a user there.

`python -S -P -m harness.node_disk.packed pack ENVIRONMENT` and `... unpack ENVIRONMENT SCRATCH` are
for the job scripts. The second prints the folder of the environment on SCRATCH.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import InputError, RunError
from harness.files.scratch import lock_folder, scratch_directory
from harness.files.shared_disk import file_system, is_network
from harness.node_disk.image import (
    COMPRESSORS,
    PACK,
    Image,
    call_tar,
    count_files,
    is_current,
    pack,
    read_image,
)
from harness.node_disk.use import environments, mark_used
from harness.ownership import distrust, owner_name

PATIENCE_S = 600.0  # for another job of the node that unpacks
SPARE_BYTES = 500_000_000  # that stay free
POLL_S = 0.5
DEAD_AFTER_S = 900.0  # a lock without flock of that age was left by a killed process


def unpack(environment: Path, scratch: Path, *, patience_s: float = PATIENCE_S) -> Path:
    """Unpack an environment's image to a node's disk, unless it is there; return its folder.

    Raises:
        InputError: if image or disk do not serve; the environment is then used where it is.
        RunError: if another job unpacks for too long, the image is damaged, or the disk is full.
    """
    image = read_image(environment)
    if image is None:
        raise InputError(f"{environment}: has no image that is whole; {PACK} makes one")
    if not is_current(environment, image):
        raise InputError(f"{environment}: has changed since it was packed; run {PACK} again")
    scratch = scratch.resolve()
    _check_disk(scratch)
    folder = _own_folder(scratch)
    target = folder / image.sha256[:16]
    if _is_whole(target, image):
        return target
    with _one_at_a_time(folder, patience_s):
        if not _is_whole(target, image):
            _unpack(environment, image, target)
        if not mark_used(target):
            raise RunError(f"{target}: was removed by another job; submit the job again")
    return target


def _check_disk(scratch: Path) -> None:
    """Refuse a disk that is no node's own, is memory, or where others could replace the code."""
    if is_network(scratch):
        raise InputError(f"{scratch}: is no disk of this node alone ({file_system(scratch)})")
    if file_system(scratch) in ("tmpfs", "ramfs"):
        raise InputError(f"{scratch}: is in memory, which counts against --mem")
    for each in (scratch, *scratch.parents):
        if reason := distrust(each):
            raise InputError(f"{each}: {reason}, so they could change the code that you run")


def _own_folder(scratch: Path) -> Path:
    """This user's folder for environments, which nobody else can enter."""
    folder = environments(scratch)
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            kind = f"{owner_name(status.st_uid)}'s" if stat.S_ISDIR(status.st_mode) else "no folder"
            raise InputError(f"{folder}: is {kind}; remove it, or name another TMPDIR")
        folder.chmod(0o700)
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return folder


def _is_whole(target: Path, image: Image) -> bool:
    """Whether the environment is there with all its files; it is marked as used first.

    Programs that clean disks remove files one by one.
    """
    try:
        return mark_used(target) and count_files(target)[0] == image.num_files + 1  # the mark
    except OSError:  # it is being removed
        return False


def _unpack(environment: Path, image: Image, target: Path) -> None:
    scratch = target.parent.parent
    try:
        if target.exists():
            _remove_broken(target)
        free = shutil.disk_usage(scratch).free
        needed = image.num_bytes + image.unpacked_bytes + SPARE_BYTES
        if free < needed:
            raise RunError(f"{scratch}: needs {needed:,} bytes, the disk has {free:,} free")
        # A folder that a killed process left is removed by a later one.
        with scratch_directory(scratch) as temporary:
            copy, unpacked = temporary / image.file, temporary / "environment"
            shutil.copyfile(environment / image.file, copy)
            with copy.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != image.sha256:
                raise RunError(f"{environment / image.file}: is damaged; run {PACK} again")
            unpacked.mkdir()
            _extract(copy, unpacked, image.compression)
            copy.unlink()
            _check_python(unpacked)
            mark_used(unpacked)
            unpacked.rename(target)
    except OSError as error:
        raise RunError(f"{target}: can't be written: {error.strerror or error}") from None


def _remove_broken(target: Path) -> None:
    held = lock_folder(target)
    if held is None:
        raise RunError(f"{target}: misses files, and another job still uses it")
    try:
        shutil.rmtree(target)
    finally:
        os.close(held)


def _extract(image: Path, folder: Path, compression: str) -> None:
    """Unpack a verified image into a folder.

    Raises:
        InputError: if the program for it is not on this node.
        RunError: if it fails.
    """
    program = COMPRESSORS[compression][0]
    if not shutil.which(program):
        raise InputError(f"{program}: is not on this node; {PACK}, where only gzip is on the PATH")
    call_tar(compression, "--extract", f"--file={image}", f"--directory={folder}",
             "--no-same-owner")  # fmt: skip


def _check_python(environment: Path) -> None:
    """See that the interpreter works from here: what it links to may be missing on this node."""
    probe = "import sys; print(sys.prefix)"
    python = environment / "bin" / "python"
    try:
        done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
            [python, "-I", "-c", probe], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{python}: does not run on this node: {error}") from None
    if done.returncode != 0 or done.stdout.strip() != str(environment):
        raise InputError(f"{python}: does not work from another folder than its own")


@contextlib.contextmanager
def _one_at_a_time(folder: Path, patience_s: float) -> Iterator[None]:
    """Let one process of the node unpack at a time.

    Raises:
        RunError: if another one takes longer than `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    substitute = folder / ".lock.d"  # where the file system has no locks: only one can make it
    made = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            except OSError:
                if made := _make(substitute):
                    break
            if time.monotonic() > deadline:
                raise RunError(f"{folder}: another job unpacks since {patience_s:.0f} s")
            time.sleep(POLL_S)
        yield
    finally:
        if made:
            substitute.rmdir()
        os.close(descriptor)


def _make(lock: Path) -> bool:
    """Make the folder that stands for a lock; one that is too old is taken over."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > DEAD_AFTER_S:
            lock.rmdir()
    try:
        lock.mkdir()
    except FileExistsError:
        return False
    return True


def main(args: Sequence[str]) -> int:
    """Pack or unpack; returns the exit code."""
    try:
        match args:
            case ["pack", environment]:
                image = pack(Path(environment))
                size = f"{image.num_bytes / 1e6:,.0f} MB for {image.num_files:,} files"
                print(f"{Path(environment) / image.file}: {size}")  # noqa: T201
            case ["unpack", environment, scratch]:
                print(unpack(Path(environment), Path(scratch)))  # noqa: T201
            case _:
                raise InputError("usage: packed pack ENVIRONMENT | unpack ENVIRONMENT SCRATCH")
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:  # such as a package that is replaced meanwhile
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
