"""An environment packed into one file, and unpacked to a node's disk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import InputError, RunError
from harness.node_disk import packed
from harness.node_disk.image import NAME, RECORD, pack, read_image
from harness.node_disk.packed import unpack
from harness.node_disk.use import MARK, environments
from tests.conftest import PROJECT

MODULE = ["-S", "-P", "-m", "harness.node_disk.packed"]


def call(environment: Path, *args: object) -> subprocess.Popen[str]:
    """Start packing or unpacking as the job scripts do, without any installed package."""
    return subprocess.Popen(
        [environment / "bin/python", *MODULE, *map(str, args)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_scratch(scratch: Path) -> list[str]:
    return sorted(each.name for each in environments(scratch).iterdir() if each.name[0] != ".")


def test_what_is_unpacked_works_from_there(environment: Path, scratch: Path) -> None:
    """Its interpreter runs this code with the packages of the new folder; nobody else reads it."""
    for words in (["pack", environment], ["unpack", environment, scratch]):
        done = call(environment, *words)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
    folder = Path(out.strip())
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    program = "import harness, sys; print(sys.prefix, harness.PROJECT, sep=chr(10))"
    said = subprocess.run(
        [folder / "bin/python", "-P", "-c", program],
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [str(folder), str(PROJECT)]
    assert not list(folder.glob(f"{NAME}*")), "the image holds itself"


@pytest.mark.parametrize("programs", [["tar", "gzip"], ["tar", "zstd"]])
def test_it_is_packed_by_what_is_there(
    environment: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, programs: list[str]
) -> None:
    """zstd if it is on the PATH, else gzip; a node without the program says how to pack again."""
    if missing := [name for name in programs if not shutil.which(name)]:
        pytest.skip(f"no {missing[0]}")
    before = os.environ["PATH"]
    folder = scratch / "programs"
    folder.mkdir()
    for name in programs:
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    assert pack(environment).file.endswith({"gzip": ".gz", "zstd": ".zst"}[programs[1]])
    (folder / programs[1]).unlink()
    with pytest.raises(InputError, match=f"{programs[1]}: is not on this node; .*--pack"):
        unpack(environment, scratch)
    monkeypatch.setenv("PATH", before)
    assert unpack(environment, scratch).is_dir()


def test_several_jobs_unpack_once(environment: Path, scratch: Path) -> None:
    """They start together and get the same folder, whose files are written by one of them."""
    pack(environment)
    jobs = [call(environment, "unpack", environment, scratch) for _ in range(4)]
    said = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, said
    (folder,) = {Path(out.strip()) for out, _ in said}
    assert in_scratch(scratch) == [folder.name]
    made = (folder / "pyvenv.cfg").stat().st_ctime_ns
    assert unpack(environment, scratch) == folder
    assert (folder / "pyvenv.cfg").stat().st_ctime_ns == made


def test_one_at_a_time_without_flock(
    environment: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is the lock there: one waits for the other, a lock that is old is taken over."""
    pack(environment)

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    lock = environments(scratch) / ".lock.d"
    lock.mkdir(parents=True)
    with pytest.raises(RunError, match="another job unpacks since 0 s"):
        unpack(environment, scratch, patience_s=0)
    os.utime(lock, (0, 0))
    assert unpack(environment, scratch, patience_s=0).is_dir()
    assert not lock.exists()


@pytest.mark.parametrize("moment", ["copyfile", "call_tar", "_check_python"])
def test_a_killed_unpacking_leaves_nothing_half_used(
    environment: Path, scratch: Path, moment: str
) -> None:
    """Killed while it copies, extracts or checks, it leaves no environment; the next one works."""
    pack(environment)
    program = f"""
import shutil, sys, time
from pathlib import Path
from harness.node_disk import packed
module = shutil if {moment!r} == "copyfile" else packed
real = getattr(module, {moment!r})
def then_wait(*args, **options):
    real(*args, **options)
    print("now", flush=True)
    time.sleep(60)
setattr(module, {moment!r}, then_wait)
packed.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    killed = subprocess.Popen(
        [sys.executable, "-c", program, environment, scratch],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert killed.stdout
    assert killed.stdout.readline() == "now\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert in_scratch(scratch) == []
    assert (unpack(environment, scratch) / "bin/python").exists()


def install(environment: Path, name: str) -> Path:
    """Make the record of a package, as pip does."""
    record = next(environment.glob("lib/python*/site-packages")) / f"{name}.dist-info"
    record.mkdir()
    return record


def change(environment: Path) -> None:
    install(environment, "more-1")


def install_again(environment: Path) -> None:
    next(environment.glob("lib/python*/site-packages/mynet-1.dist-info")).rmdir()
    os.utime(install(environment, "mynet-1"), (1e9, 1e9))


def damage(environment: Path) -> None:
    image = read_image(environment)
    assert image
    with (environment / image.file).open("r+b") as file:
        file.seek(image.num_bytes // 2)
        file.write(b"not what was packed")


@pytest.mark.parametrize(
    ("disturb", "said"),
    [
        (lambda environment: (environment / RECORD).unlink(), "has no image that is whole"),
        (lambda environment: (environment / RECORD).write_text("{"), "has no image that is whole"),
        (change, "has changed since it was packed; run .*--setup --pack again"),
        (install_again, "has changed since it was packed; run .*--setup --pack again"),
        (damage, "is damaged; run .*--setup --pack again"),
    ],
)
def test_an_image_that_does_not_serve(
    environment: Path, scratch: Path, disturb: Callable[[Path], object], said: str
) -> None:
    """It is refused in one line, and nothing of it is unpacked."""
    install(environment, "mynet-1")
    pack(environment)
    disturb(environment)
    with pytest.raises((InputError, RunError), match=said):
        unpack(environment, scratch)
    assert not environments(scratch).exists() or in_scratch(scratch) == []


def test_what_cleaners_of_disks_left_is_unpacked_again(environment: Path, scratch: Path) -> None:
    """A file that is missing is back."""
    pack(environment)
    folder = unpack(environment, scratch)
    lost = next(folder.glob("lib/python*/site-packages")) / "tests.pth"
    lost.unlink()
    assert unpack(environment, scratch) == folder
    assert lost.exists()
    assert (folder / MARK).exists()


def test_disks_that_do_not_serve(
    environment: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, a shared disk, and a folder in which others could replace the code are refused."""
    pack(environment)
    for kind, said in (("tmpfs", "is in memory"), ("nfs4", "no disk of this node alone")):
        monkeypatch.setattr(packed, "file_system", lambda _, kind=kind: kind)
        monkeypatch.setattr(packed, "is_network", lambda _, kind=kind: kind == "nfs4")
        with pytest.raises(InputError, match=said):
            unpack(environment, scratch)
    monkeypatch.undo()
    scratch.chmod(0o777)
    with pytest.raises(InputError, match="others can write to it"):
        unpack(environment, scratch)
    scratch.chmod(0o700)
    environments(scratch).symlink_to(scratch)
    with pytest.raises(InputError, match="is no folder; remove it"):
        unpack(environment, scratch)


def test_only_a_virtual_environment_is_packed(tmp_path: Path) -> None:
    """Others, such as conda's, do not work from another folder."""
    with pytest.raises(InputError, match="is no virtual environment"):
        pack(tmp_path)


def test_what_the_disk_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a package is gone between the look at its folder and the one at itself."""
    (tmp_path / "pyvenv.cfg").touch()
    gone = tmp_path / "lib/python3/site-packages/a.dist-info"
    gone.parent.mkdir(parents=True)
    gone.symlink_to("nowhere")
    assert packed.main(["pack", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{gone}: No such file or directory\n"


def test_packing_again_replaces_the_image(environment: Path, scratch: Path) -> None:
    """One image stays; what was unpacked before is left for those who use it."""
    first = pack(environment)
    before = unpack(environment, scratch)
    change(environment)
    second = pack(environment)
    assert [each.name for each in environment.glob(f"{NAME}-*")] == [second.file] != [first.file]
    assert unpack(environment, scratch) != before
    assert before.is_dir()
    assert time.time() - (before / MARK).stat().st_mtime < 60
