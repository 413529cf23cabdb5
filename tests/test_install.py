"""The job scripts install their environment once, completely, from the lock files."""

import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import PROJECT, write_program
from tests.slurm.stand_in import TWO_NODES, Project

# A build backend that needs no setuptools, so the tests can use pip itself.
BACKEND = """
import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("harness-1-py3-none-any.whl", folder).rpartition("/")[2]
"""
STAND_IN = {
    "harness_stand_in.py": "import sys\ndef main():"
    " print('inside_venv harness x' if sys.argv[1] == 'job-begin' else 'trained')",
    "harness-1.dist-info/entry_points.txt": "[console_scripts]\nharness=harness_stand_in:main",
}

UV = """#!/bin/sh
echo "$@" >>"$UV_CALLS"
exit 2
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose environment has a stand-in for the harness."""
    return Project(tmp_path)


def locked_wheel(wheels: Path, name: str, files: dict[str, str], mode: int = 0o644) -> str:
    """Write a wheel into a folder; return its line of a lock file."""
    wheels.mkdir(exist_ok=True)
    wheel, info = wheels / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as file:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (stat.S_IFREG | mode) << 16
            file.writestr(entry, text)
    return f"{name}==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize(
    ("container", "found"),
    [("", "{python} is Python 3.9.2"), ("HARNESS_CONTAINER=(false)\n", "{python} is missing")],
)
def test_without_a_suitable_python_the_line_has_the_remedy(
    project: Project, container: str, found: str
) -> None:
    """With a container, the Python in the container must be suitable."""
    program = "#!/bin/sh\necho Python 3.9.2\n[ $1 = --version ]\n"
    old = project.executable(project.outside / "an old/python", program)
    (project.path / "slurm/site.sh").write_text(container)
    new = project.outside / "new"
    env = {**project.environment, "HARNESS_VENV": str(new), "HARNESS_PYTHON": str(old)}
    result = project.run(project.path / "slurm/bilstm.sh", env=env)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert found.format(python=old) in line
    assert "HARNESS_PYTHON" in line
    assert not new.exists()


def test_a_users_environment_is_never_changed(project: Project) -> None:
    """An environment without the harness is refused each time, one with the harness is used.

    The script has no argument except `--setup`.
    """
    own = project.outside / "own"
    project.executable(own / "bin/python", "#!/bin/sh\n")
    (own / "pyvenv.cfg").touch()
    before = sorted(own.rglob("*"))
    for _ in range(2):
        env = {**project.environment, "HARNESS_VENV": str(own)}
        result = project.run(project.path / "slurm/bilstm.sh", env=env)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert f"{own}: was not made by this script" in line
        assert sorted(own.rglob("*")) == before
    project.executable(own / "bin/harness", "#!/bin/sh\n")
    result = project.run(project.path / "slurm/common.sh", "--step", env=env)
    usage = "harness: usage: bash slurm/common.sh --setup\n"
    assert (result.returncode, result.stderr) == (2, usage)
    program, activate = own / "bin/python", own / "bin/activate"
    source = f"source {activate}"
    for change, ready in ((None, own), (activate.touch, source), (program.unlink, own)):
        if change:
            change()
        result = project.run(project.path / "slurm/common.sh", "--setup", env=env)
        line, *_, last = result.stderr.splitlines()
        assert line.endswith(f"using {own} unchanged; {NOT_LOCKED}")
        assert last == f"harness: ready: {ready}"


def test_an_incomplete_environment_behind_a_link_is_first_removed(project: Project) -> None:
    """Otherwise pip could take the incomplete packages for complete ones."""
    scratch = project.outside / "scratch"
    project.executable(scratch / "bin/harness", "")
    for file in (scratch / "pyvenv.cfg", scratch / "setup.log", project.path / "requirements.lock"):
        file.touch()
    (project.path / ".venv").symlink_to(scratch)
    call = (
        'source "$1/slurm/common.sh"; VENV=$PROJECT/.venv; install_steps() { ls "$VENV" >&3; }\n'
        "install requirements.lock 3>&1"
    )
    words = ["bash", "-c", call, "bash", str(project.path)]
    assert subprocess.check_output(words, text=True, timeout=60) == "setup.log\n"


def test_a_project_that_can_not_be_written(project: Project) -> None:
    """A job needs no `logs` there. An installation needs its lock; a line has the remedy."""
    (project.path / "logs").touch()
    script = project.path / "slurm/bilstm.sh"
    result = project.run(script)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1), result.stderr
    (project.path / ".setup.lock").mkdir()
    python = project.executable(project.commands / "python", "#!/bin/sh\n")
    new = {"HARNESS_VENV": str(project.outside / "new"), "HARNESS_PYTHON": str(python)}
    result = project.run(script, env=project.environment | new)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert f"{project.path}/.setup.lock: can't be opened" in line
    assert "set HARNESS_VENV to an environment that contains harness" in line


@pytest.mark.full
def test_a_failed_installation_is_repeated(project: Project) -> None:
    """The job ends with exit code 1 and the remedy; later, one of two jobs installs and both train.

    If the site configures pip, or if uv fails, pip installs the lock file. `.venv` is a link to
    another disk.
    """
    (project.outside / "disk").mkdir()
    (project.path / ".venv").symlink_to(project.outside / "disk")
    calls, wheels, with_uv = (project.outside / name for name in ("calls", "wheels", "uv"))
    lock = locked_wheel(wheels, "part", {"part.py": ""})
    (project.path / "requirements.lock").write_text(lock)
    (project.path / "requirements-gpu.lock").write_text(lock + "# more\n")
    lock = locked_wheel(with_uv, "uv", {"uv-1.data/scripts/uv": UV}, mode=0o755)
    (project.path / "requirements-uv.lock").write_text(lock)
    (project.path / "backend.py").write_text(BACKEND)
    locked_wheel(project.path, "harness", STAND_IN)
    env = {**project.environment, "HARNESS_VENV": "", "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_FIND_LINKS": str(with_uv), "UV_CALLS": str(calls)}
    env |= {"PYTHONHOME": "/another/python"}  # exported by a module of the site
    script = project.path / "slurm/bilstm.sh"
    failed = project.run(script, env=env | {"PIP_NO_INDEX": "1"})
    assert failed.returncode == 1, failed.stderr
    *_, log, line = failed.stderr.splitlines()
    assert "part==1" in log
    assert "run `bash slurm/common.sh --setup` on the login node first" in line
    assert not (project.path / ".venv/harness-lock.sha256").exists()
    assert not calls.exists()

    half_written = project.path / ".venv/half written"
    half_written.touch()
    # PIP_RETRIES avoids a delay if no index can be reached.
    env |= {"PIP_FIND_LINKS": f"{with_uv} {wheels}", "PIP_RETRIES": "0"}
    both = [
        subprocess.Popen(["bash", str(script)], env=env, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out for out, _ in said] == ["trained\n", "trained\n"]
    assert sum("installing requirements.lock" in err for _, err in said) == 1
    assert not half_written.exists()
    assert len(list((project.path / ".venv").rglob("part.py"))) == 1
    (call,) = calls.read_text().splitlines()
    assert "--require-hashes" in call
    assert "requirements.lock" in call
    again = project.run(script, env=env)
    assert (again.stdout, again.stderr) == ("trained\n", "")


def test_lock_files_agree() -> None:
    """The lock files share versions, and name neither an index nor a folder."""

    def pins(name: str) -> set[str]:
        text = (PROJECT / name).read_text()
        assert "://" not in text
        assert "--find-links" not in text
        return {line.rstrip(" \\") for line in text.splitlines() if line[0].isalnum()}

    runtime = pins("requirements.lock")
    assert any(pin.startswith("setuptools==") for pin in runtime), "the editable install needs it"
    assert runtime < pins("requirements-gpu.lock")
    assert runtime < pins("requirements-test.lock")


ENSURE = """source "$1/slurm/common.sh"; VENV=${HARNESS_VENV:-$PROJECT/.venv}
install() { say "would be installed"; }
SETS_UP=$2
stamp_of requirements-gpu.lock >"$VENV/harness-lock.sha256"
[[ $3 != other ]] || echo other >"$VENV/harness-lock.sha256"
[[ $3 != cpu ]] || stamp_of requirements.lock >"$VENV/harness-lock.sha256"
choose_locks
ensure_venv "${LOCKS[@]}"
"""
NOT_LOCKED = "it was not installed from this project's lock files"
AS_IT_IS = f"{NOT_LOCKED}, which `bash slurm/common.sh --setup`"
WITH_CUDA = ", which `HARNESS_EXTRA=gpu bash slurm/common.sh --setup` installs"


@pytest.mark.parametrize(
    ("setup", "stamp", "extra", "said"),
    [
        ("", "gpu", "none", ""),
        ("", "cpu", "none", ""),
        ("", "gpu", "gpu", ""),
        ("", "cpu", "gpu", f"unchanged; it has no CUDA libraries{WITH_CUDA}"),
        ("", "other", "gpu", f"{NOT_LOCKED}{WITH_CUDA}"),
        ("", "other", "none", AS_IT_IS),
        ("yes", "cpu", "gpu", "would be installed"),
    ],
)
def test_only_setup_changes_a_complete_environment(
    project: Project, setup: str, stamp: str, extra: str, said: str
) -> None:
    """The environment with CUDA serves all jobs; the one without CUDA serves no GPU job."""
    for name in ("requirements.lock", "requirements-gpu.lock"):
        (project.path / name).write_text(name)
    own = project.path / ".venv"
    for name in ("python", "harness"):
        project.executable(own / "bin" / name, "#!/bin/sh\n")
    (own / "setup.log").touch()
    env = {**project.environment, "HARNESS_VENV": "", "HARNESS_EXTRA": extra}
    words = ["bash", "-c", ENSURE, "bash", str(project.path), setup, stamp]
    result = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == bool(said)


NO_FLOCK = 'command() { [[ $* != "-v flock" ]] && builtin command "$@"; };'


@pytest.mark.parametrize("flock", ["", "flock() { return 71; };", NO_FLOCK])
def test_one_process_at_a_time_holds_the_lock(project: Project, flock: str) -> None:
    """The lock works even if flock is missing, or if the disk does not support locks."""
    work = 'work() { mkdir "$1/one"; sleep 0.3; rmdir "$1/one"; };'
    command = f'source "$1/slurm/common.sh"; {flock} {work} with_lock work "$1"'
    both = [subprocess.Popen(["bash", "-c", command, "bash", str(project.path)]) for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert not (project.path / ".setup.lock.d").exists()


def test_a_container_needs_neither_slurm_nor_flock(project: Project) -> None:
    """The script outside of the container calls scontrol and requeues the job."""
    inside = project.outside / "inside"
    inside.mkdir()
    for name in ("sh", "env", "test"):
        (inside / name).symlink_to(str(shutil.which(name)))
    with (project.path / "slurm/site.sh").open("w") as site:
        site.write(f"HARNESS_CONTAINER=(env PATH={shlex.quote(str(inside))})\n")
    project.two_nodes()
    asked = project.outside / "asked"
    answer = 'echo "$@" >>"$ASKED"; [ "$2" != hostnames ] || printf "n08\\nn10\\n"'
    write_program(project.commands / "scontrol", answer)
    env = project.slurm(ASKED=str(asked), HARNESS_TRUSTED_NETWORK="1", EXIT="75", **TWO_NODES)
    result = project.run(project.spool(), env=env)
    assert project.call()["nodes"].split() == ["n08", "n10"], result.stderr
    assert "is back in the queue" in result.stderr
    assert asked.read_text().splitlines()[-1] == "requeue 42"


def test_the_tests_start_in_their_project(tmp_path: Path) -> None:
    """With CDPATH, `cd tests/..` may enter another folder."""
    (tmp_path / "tests").mkdir()
    words, env = ["bash", "tests/run.sh", "--help"], os.environ | {"CDPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout[:11]) == (0, "usage: bash"), done.stderr
