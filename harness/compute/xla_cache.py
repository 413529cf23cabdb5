"""The user's cache of steps compiled by XLA, which lets the next process start sooner.

TensorFlow can cache them in a folder, but raises in the middle of a run if the disk is full or an
entry is damaged. So it gets a private folder with copies of the intact entries, and what it adds
is moved to the cache at the end. An entry is machine code: it is read only from a folder that
nobody else can write to, and only for the same processor and the same TensorFlow. TensorFlow
itself compares the whole program, so an entry is never mistaken for another one.
"""

import contextlib
import hashlib
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.compute.execution_plan import shape
from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.files.paths import private_cache
from harness.files.scratch import scratch_directory
from harness.job import Job
from harness.system.host import installed_version, processor, processor_features
from harness.system.stderr_filter import filtered_stderr

NEEDED_BYTES = 256e6  # of free space, else nothing is cached; an entry has about 1 MB
MAX_ENTRIES = 64
NUMBERS = 10_000  # more than a process uses until it traces its step; to count on takes 2 ms
FLAGS = "TF_XLA_FLAGS"  # which TensorFlow reads once, when it first compiles
DIRECTORY = "--tf_xla_persistent_cache_directory"
DEVICES = "--tf_xla_persistent_cache_device_types"


@contextlib.contextmanager
def compiled_steps(job: Job, threads: int) -> Iterator[None]:
    """Offer TensorFlow, before it is imported, the steps compiled for jobs of the same sizes.

    Only steps compiled for CPUs are cached. If the cache can't be used safely, TensorFlow compiles
    as it would without one.

    Args:
        threads: of each operation; XLA divides the work among them when it compiles.
    """
    folder, flags = private_cache("xla"), os.environ.get(FLAGS, "")
    with scratch_directory() as own:
        # The user has a cache of their own, or the folder can't be named: options end at spaces.
        refused = f"{DIRECTORY}=" in flags or " " in str(own)
        if folder is None or refused or _room(own) < NEEDED_BYTES:
            yield
            return
        key = _key(job, threads)
        offered = _offer(folder, key, own)
        os.environ[FLAGS] = f"{flags} {DIRECTORY}={own} {DEVICES}=CPU"
        try:
            yield
        finally:
            os.environ[FLAGS] = flags
            # On a full disk nothing is cached.
            with contextlib.suppress(OSError, RunError):
                _store([path for path in own.glob("*.pb") if path.name not in offered], folder, key)


def _room(folder: Path) -> float:
    """How many bytes a file there may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(folder).free
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def is_offered() -> bool:
    """Whether TensorFlow may find the step that it would compile next."""
    folder = re.search(rf"{DIRECTORY}=(\S+)", os.environ.get(FLAGS, ""))
    return folder is not None and any(Path(folder[1]).glob("*.pb"))


@contextlib.contextmanager
def quiet_loading(*, loads: bool) -> Iterator[None]:
    """Filter what TensorFlow says when it loads a compiled step: three lines, as errors.

    Args:
        loads: whether it may, as `is_offered` said before the first was compiled. Nothing is
            filtered where XLA compiles: if that crashes, its message must be seen.
    """
    with filtered_stderr() if loads else contextlib.nullcontext():
        yield


def name_functions_alike() -> None:
    """Let what TensorFlow traces next have the same names in every process.

    It looks compiled steps up by the names of their functions, and these hold numbers of a counter
    that every eager operation advances: a resumed run has done others by then than a new one.
    """
    from tensorflow.python.framework.ops import uid  # there is no public one

    while uid() % NUMBERS != 0:
        pass


def _key(job: Job, threads: int) -> str:
    """The name of the entries of jobs that compile the same, this TensorFlow and processor."""
    machine = f"{processor()} {processor_features()}"
    compiler = f"{installed_version('tensorflow')} {os.environ.get('XLA_FLAGS')}"
    compiled = f"{job.train.block_lstm} {job.train.compile_evaluation}"
    parts = (shape(job), compiled, str(threads), machine, compiler)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _offer(folder: Path, key: str, own: Path) -> set[str]:
    """Copy a key's intact entries to where TensorFlow looks for them; returns their names."""
    names = set()
    for path in folder.glob(f"{key}.*"):
        _, checksum, name = path.name.split(".", 2)
        try:
            entry = path.read_bytes()
            os.utime(path)  # the cache keeps the entries used last
        except OSError:  # another process removed it
            continue
        if hashlib.sha256(entry).hexdigest() == checksum:
            (own / name).write_bytes(entry)
            names.add(name)
    return names


def _store(paths: list[Path], folder: Path, key: str) -> None:
    for path in paths:
        entry = path.read_bytes()
        checksum = hashlib.sha256(entry).hexdigest()
        atomic_write(folder / f"{key}.{checksum}.{path.name}", entry)
    entries = [(path.stat().st_mtime, path) for path in folder.iterdir()]
    for _, path in sorted(entries)[:-MAX_ENTRIES]:
        path.unlink(missing_ok=True)
