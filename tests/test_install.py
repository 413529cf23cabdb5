"""The environment that the scripts make: complete or absent, once, from the locks."""

import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.slurm.stand_in import Project

# Builds the wheel of a package without setuptools, so that pip itself is what the tests run.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "harness-0-py3-none-any.whl"
    files = {
        "harness_stand_in.py": (
            "import sys\\ndef main():"
            " print('inside_venv harness x' if sys.argv[1] == 'job-begin' else 'trained')"
        ),
        "harness-0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: harness\\nVersion: 0\\n",
        "harness-0.dist-info/WHEEL": "Wheel-Version: 1.0\\nTag: py3-none-any\\n",
        "harness-0.dist-info/entry_points.txt": "[console_scripts]\\nharness=harness_stand_in:main",
        "harness-0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose environment is a stand-in that was made by other means."""
    return Project(tmp_path)


def test_container_brings_the_python(project: Project) -> None:
    """With a container, the interpreter that is judged is the container's."""
    (project.path / "slurm/site.sh").write_text(
        "HARNESS_VENV=new HARNESS_CONTAINER=(bash -c 'echo Python 3.8.0; [[ $1 == --version ]]')\n"
    )
    result = project.run(project.path / "slurm/bilstm.sh")
    assert result.returncode == 2
    assert "python3 is Python 3.8.0" in result.stderr


def test_no_usable_python_is_one_line(project: Project) -> None:
    """Without a Python to make the environment, one line names what was found and the remedy."""
    old = project.executable(
        project.outside / "an old/python", "#!/bin/sh\necho Python 3.9.2\n[ $1 = --version ]\n"
    )
    env = {
        **project.environment,
        "HARNESS_VENV": str(project.outside / "new"),
        "HARNESS_PYTHON": str(old),
    }
    result = project.run(project.path / "slurm/bilstm.sh", env=env)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{old} is Python 3.9.2" in line
    assert "HARNESS_PYTHON" in line
    assert not (project.outside / "new").exists()


def test_an_environment_of_ones_own_is_not_changed(project: Project) -> None:
    """Without harness in it, it is refused: nothing is installed into it, now or the next time."""
    own = project.outside / "own"
    project.executable(own / "bin/python", "#!/bin/sh\n")
    (own / "pyvenv.cfg").touch()
    before = sorted(own.rglob("*"))
    for _ in range(2):
        env = {**project.environment, "HARNESS_VENV": str(own)}
        result = project.run(project.path / "slurm/bilstm.sh", env=env)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert f"{own}: this script did not make it" in line
        assert sorted(own.rglob("*")) == before


def locked_wheel(wheels: Path) -> str:
    """Write a wheel into a folder; return the line that locks it."""
    wheels.mkdir()
    wheel = wheels / "part-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("part.py", "")
        file.writestr(
            "part-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: part\nVersion: 1\n"
        )
        file.writestr(
            "part-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr("part-1.dist-info/RECORD", "")
    return f"part==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.mark.full
def test_failed_install_is_made_again(project: Project) -> None:
    """A failed install ends with 1 and its remedy, and leaves nothing that passes for complete."""
    wheels = project.outside / "wheels"
    lock = locked_wheel(wheels)
    (project.path / "requirements.lock").write_text(lock)
    (project.path / "requirements-gpu.lock").write_text(lock + "# more\n")
    (project.path / "backend.py").write_text(BACKEND)
    env = {
        **project.environment,
        "HARNESS_VENV": "",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
    }
    script = project.path / "slurm/bilstm.sh"

    failed = project.run(script, env=env)
    assert failed.returncode == 1, failed.stderr
    *_, log, line = failed.stderr.splitlines()
    assert "part==1" in log
    assert "run `bash slurm/common.sh --setup` on the login node first" in line
    assert not (project.path / ".venv/harness-lock.sha256").exists()

    half_written = project.path / ".venv/half written"
    half_written.touch()
    env["PIP_FIND_LINKS"] = str(wheels)
    both = [
        subprocess.Popen(
            ["bash", str(script)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out for out, _ in said] == ["trained\n", "trained\n"]
    assert sum("installing requirements.lock" in err for _, err in said) == 1

    assert not half_written.exists()

    again = project.run(script, env=env)
    assert (again.stdout, again.stderr) == ("trained\n", "")

    (project.path / "requirements.lock").write_text(lock + "# changed\n")
    assert "installing requirements.lock" in project.run(script, env=env).stderr


UV = """#!/bin/sh
echo "$@" >>"$UV_CALLS"
[ -z "$UV_FAILS" ] || exit 2
exec "${0%/uv}/python" -m pip install --no-index --find-links "$PIP_FIND_LINKS" part
"""


def uv_wheel(wheels: Path) -> str:
    """Write a wheel whose program `uv` is a stand-in; return the line that locks it."""
    wheel = wheels / "uv-9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        program = zipfile.ZipInfo("uv-9.data/scripts/uv")
        program.external_attr = (stat.S_IFREG | 0o755) << 16
        file.writestr(program, UV)
        file.writestr("uv-9.dist-info/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 9\n")
        file.writestr(
            "uv-9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("uv-9.dist-info/RECORD", "")
    return f"uv==9 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "calls"), [({}, 1), ({"UV_FAILS": "1"}, 1), ({"PIP_NO_INDEX": "1"}, 0)]
)
def test_uv_installs_where_pip_has_no_settings(
    project: Project, settings: dict[str, str], calls: int
) -> None:
    """With an index of the site's own, or after an error of uv, pip installs the same lock."""
    wheels = project.outside / "wheels"
    lock = locked_wheel(wheels)
    for name in ("requirements.lock", "requirements-gpu.lock"):
        (project.path / name).write_text(lock)
    (project.path / "requirements-uv.lock").write_text(uv_wheel(wheels))
    (project.path / "backend.py").write_text(BACKEND)
    log = project.outside / "calls"
    env = {
        **project.environment,
        "HARNESS_VENV": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(wheels),
        "PIP_RETRIES": "0",  # whether or not an index can be reached
        "UV_CALLS": str(log),
        **settings,
    }
    result = project.run(project.path / "slurm/bilstm.sh", env=env)
    assert (result.returncode, result.stdout) == (0, "trained\n"), result.stderr
    assert len(list((project.path / ".venv").rglob("part.py"))) == 1
    said = log.read_text().splitlines() if calls else []
    assert len(said) == calls
    assert all("--require-hashes" in each and "requirements" in each for each in said)


def test_locks_agree() -> None:
    """The three locks hold one version of what they share, and name no index and no folder."""

    def pins(name: str) -> set[str]:
        text = (PROJECT / name).read_text()
        assert "://" not in text
        assert "--find-links" not in text
        return {line.rstrip(" \\") for line in text.splitlines() if line[0].isalnum()}

    runtime = pins("requirements.lock")
    assert any(pin.startswith("setuptools==") for pin in runtime), "the editable install needs it"
    assert runtime < pins("requirements-gpu.lock")
    assert runtime < pins("requirements-test.lock")


def test_setup_makes_nothing_of_other_arguments(project: Project) -> None:
    """common.sh itself accepts --setup and refuses everything else."""
    result = project.run(project.path / "slurm/common.sh", "--step")
    assert (result.returncode, result.stderr) == (
        2,
        "harness: usage: bash slurm/common.sh --setup\n",
    )


def test_gpu_environment_serves_every_job(project: Project) -> None:
    """What the gpu lock made serves jobs without a GPU, but not the other way round."""
    for name in ("requirements.lock", "requirements-gpu.lock"):
        (project.path / name).write_text(name)
    check = """source "$1/slurm/common.sh"; VENV=${HARNESS_VENV:-$PROJECT/.venv}
    answer() { choose_locks; is_ready "${LOCKS[@]}" && echo ready || echo missing; }
    : >"$VENV/bin/python"; chmod +x "$VENV/bin/python"
    for lock in requirements.lock requirements-gpu.lock; do
        stamp_of $lock >"$VENV/harness-lock.sha256"
        for HARNESS_EXTRA in none gpu; do answer; done
    done"""
    result = subprocess.run(
        ["bash", "-c", check, "bash", str(project.path)],
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.split() == ["ready", "missing", "ready", "ready"], result.stderr


NO_FLOCK = 'command() { [[ $* != "-v flock" ]] && builtin command "$@"; };'


@pytest.mark.parametrize("flock", ["", "flock() { return 71; };", NO_FLOCK])
def test_lock_lets_one_in_at_a_time(project: Project, flock: str) -> None:
    """One process at a time holds the lock, also where flock fails or is not there."""
    work = 'work() { mkdir "$1/one"; sleep 0.3; rmdir "$1/one"; };'
    command = f'source "$1/slurm/common.sh"; {flock} {work} with_lock work "$1"'
    both = [subprocess.Popen(["bash", "-c", command, "bash", str(project.path)]) for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert not (project.path / ".setup.lock.d").exists()


COMPLETE = """source "$1/slurm/common.sh"; VENV=${HARNESS_VENV:-$PROJECT/.venv}
install() { say "would be installed"; }
HARNESS_EXTRA=none
[[ $2 != 'set up' ]] || SETS_UP=yes
[[ $2 != 'without the gpu packages' ]] || {
    HARNESS_EXTRA=gpu
    stamp_of requirements.lock >"$VENV/harness-lock.sha256"
}
choose_locks
STATE=$2
is_batch() { [[ $STATE == 'in a job' ]]; }
ensure_venv "${LOCKS[@]}"
"""


@pytest.fixture
def visible() -> Iterator[Path]:
    """A folder that other users reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("read-only", "as it is: it is read-only"),
        ("named", "as it is: it was made from other lock files; `bash slurm/common.sh --setup`"),
        ("in a job", "as it is: it was made from other lock files; `bash slurm/common.sh --setup`"),
        ("own", "would be installed"),
        ("set up", "would be installed"),
        ("without the gpu packages", "would be installed"),
    ],
)
def test_an_environment_of_another_lock(visible: Path, state: str, said: str) -> None:
    """A job, and one that others may share, uses it as it is; the project's own is brought up."""
    project = Project(visible)
    for name in ("requirements.lock", "requirements-gpu.lock"):
        (project.path / name).write_text(name)
    own = project.path / ".venv"
    for name in ("python", "harness"):
        project.executable(own / "bin" / name, "#!/bin/sh\n")
    (own / "setup.log").touch()
    (own / "harness-lock.sha256").write_text("of another lock")
    shell = ["bash", "-c", COMPLETE, "bash", str(project.path), state]
    if state == "read-only":
        own.chmod(0o555)
        if os.getuid() == 0:  # to whom every folder can be written
            shell = ["setpriv", "--reuid=65534", "--clear-groups", *shell]
    env = {**project.environment, "HARNESS_VENV": str(own) if state == "named" else ""}
    result = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=60)
    own.chmod(0o755)
    assert said in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_container_without_slurm_and_flock(project: Project) -> None:
    """The script outside of it asks for the nodes, and puts the job back into the queue."""
    inside = project.outside / "inside"
    for name in ("sh", "env", "test"):
        inside.mkdir(exist_ok=True)
        (inside / name).symlink_to(str(shutil.which(name)))
    with (project.path / "slurm/site.sh").open("w") as site:
        site.write(f"HARNESS_CONTAINER=(env PATH={shlex.quote(str(inside))})\n")
    asked = project.outside / "asked"
    answer = 'echo "$@" >>"$ASKED"; [ "$2" != hostnames ] || printf "n08\\nn10\\n"'
    project.executable(project.commands / "scontrol", f"#!/bin/sh\n{answer}\n")
    project.executable(
        project.commands / "srun",
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    )
    more = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[08,10]"}
    env = project.slurm(ASKED=str(asked), HARNESS_TRUSTED_NETWORK="1", EXIT="75", **more)
    result = project.run(project.spool(), env=env)
    assert project.call()["nodes"].split() == ["n08", "n10"], result.stderr
    assert "is back in the queue" in result.stderr
    assert asked.read_text().splitlines()[-1] == "requeue 42"
