"""The job scripts, run by a real bash; in place of training stands a note of how it was called."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
JOBS = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")

# Notes how it was called, then waits for a signal where it is told to. It starts as pip's own
# commands do, since a path with a space cannot stand after `#!`.
STAND_IN = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
import json, os, signal, sys, time
from pathlib import Path
note = Path(os.environ["NOTE"])
call = {{
    "argv": sys.argv[1:],
    "runs": os.environ["HARNESS_RUNS"],
    "image": os.environ.get("IMAGE"),
    "signals": [],
}}
def stop(number, frame):
    call["signals"].append(signal.Signals(number).name)
    time.sleep(0.2)  # saving takes a while, in which signals may repeat
    note.write_text(json.dumps(call))
    sys.exit(75)
if "WAIT" in os.environ:
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), stop)
    note.with_suffix(".ready").touch()
    time.sleep(20)
note.write_text(json.dumps(call))
sys.exit(int(os.environ.get("EXIT", "0")))
"""

# Builds the wheel of a package without setuptools, so that pip itself is what the tests run.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "harness-0-py3-none-any.whl"
    files = {
        "harness_stand_in.py": "def main(): print('trained')",
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
PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "harness"
version = "0"
"""


class Project:
    """A copy of the scripts in a folder with an awkward name, and an environment to run them in."""

    def __init__(self, folder: Path) -> None:
        self.outside = folder
        self.path = folder / "it's a project"
        self.note = folder / "note.json"
        shutil.copytree(
            REPOSITORY / "slurm", self.path / "slurm", ignore=shutil.ignore_patterns("site.sh")
        )
        (self.path / "pyproject.toml").write_text(PYPROJECT)
        self.venv = self.executable(folder / "my venv/bin/harness", STAND_IN).parent.parent
        self.commands = folder / "commands"
        self.environment = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "HARNESS_VENV": str(self.venv),
            "HARNESS_EXTRA": "none",
            "NOTE": str(self.note),
        }

    def executable(self, path: Path, text: str) -> Path:
        """Write an executable file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def spool(self, job: str = "bilstm") -> Path:
        """Copy a script to where Slurm would run it from."""
        copy = self.outside / "spool/job00042/slurm_script"
        copy.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.path / f"slurm/{job}.sh", copy))

    def slurm(self, **more: str) -> dict[str, str]:
        """Return the environment of a batch job that was submitted in the project."""
        return {
            **self.environment,
            "SLURM_JOB_ID": "42",
            "SLURM_SUBMIT_DIR": str(self.path),
            **more,
        }

    def run(
        self, script: Path, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script from a folder that is not the project's."""
        return subprocess.run(
            ["bash", str(script), *arguments],
            env=env or self.environment,
            cwd=self.outside,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def call(self) -> dict[str, Any]:
        """Return how the stand-in was called."""
        call: dict[str, Any] = json.loads(self.note.read_text())
        return call

    def signalled(
        self, script: Path, *signals: signal.Signals, env: dict[str, str]
    ) -> tuple[int, str]:
        """Send signals while the harness waits; return the script's exit code and what it said."""
        with subprocess.Popen(
            ["bash", str(script)],
            env={**env, "WAIT": "1"},
            cwd=self.outside,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            deadline = time.monotonic() + 15
            while not self.note.with_suffix(".ready").exists():
                assert time.monotonic() < deadline, "the stand-in never started"
                time.sleep(0.02)
            for number in signals:
                process.send_signal(number)
                time.sleep(0.05)
            code = process.wait(timeout=20)
            assert self.note.exists(), "the script did not wait for the harness to save"
            assert process.stderr is not None
            return code, process.stderr.read()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose environment is a stand-in that was made by other means."""
    return Project(tmp_path)


@pytest.mark.parametrize("job", JOBS)
def test_script_trains_its_job(project: Project, job: str) -> None:
    """Each script trains the job of its name, into the project's runs, from any folder."""
    result = project.run(project.path / f"slurm/{job}.sh")
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == ["train", f"{project.path}/jobs/{job}.toml"]
    assert project.call()["runs"] == f"{project.path}/runs"


def test_scripts_differ_in_their_name_only() -> None:
    """What the scripts say beyond their job's name is the same, so a mend reaches all."""
    texts = {(REPOSITORY / f"slurm/{job}.sh").read_text().replace(job, "NAME") for job in JOBS}
    assert len(texts) == 1


def test_arguments_pass_unchanged(project: Project) -> None:
    """Arguments with spaces, quotes, globs and nothing in them reach the harness as they are."""
    arguments = ["--set", "train.note=two words", "it's", '"', "*", "", "$HOME"]
    result = project.run(project.path / "slurm/bilstm.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"][2:] == arguments


@pytest.mark.parametrize("code", [1, 2, 75])
def test_exit_code_is_the_harness_own(project: Project, code: int) -> None:
    """The script ends with the exit code of the run."""
    env = {**project.environment, "EXIT": str(code)}
    assert project.run(project.path / "slurm/bilstm.sh", env=env).returncode == code


def test_bare_environment_is_enough(project: Project) -> None:
    """A script runs without HOME and PATH, which `--export=NONE` drops."""
    env = project.slurm()
    del env["PATH"]
    result = subprocess.run(
        [shutil.which("bash") or "bash", str(project.spool())],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("below", ["", "slurm", "runs/bilstm/deep"])
def test_spool_copy_finds_the_project(project: Project, below: str) -> None:
    """Under Slurm the project is at or above the submit folder; the job's id names the run."""
    folder = project.path / below
    folder.mkdir(parents=True, exist_ok=True)
    result = project.run(
        project.spool("gru"), "--set", "a.b=1", env=project.slurm(SLURM_SUBMIT_DIR=str(folder))
    )
    assert result.returncode == 0, result.stderr
    job = f"{project.path}/jobs/gru.toml"
    assert project.call()["argv"] == ["train", job, "--run-id", "slurm-42", "--set", "a.b=1"]


def test_home_overrides_the_submit_folder(project: Project) -> None:
    """HARNESS_HOME names the project wherever sbatch was called."""
    env = project.slurm(SLURM_SUBMIT_DIR="/", HARNESS_HOME=str(project.path))
    assert project.run(project.spool(), env=env).returncode == 0
    assert project.call()["argv"][1] == f"{project.path}/jobs/bilstm.toml"


@pytest.mark.parametrize("name", ["SLURM_SUBMIT_DIR", "HARNESS_HOME"])
def test_no_project_is_one_line(project: Project, name: str) -> None:
    """A folder outside the project is refused in one line that names it and the remedy."""
    result = project.run(project.spool(), env=project.slurm(**{name: str(project.outside)}))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"harness: no project at or above {project.outside}; "
        "run sbatch inside it or set HARNESS_HOME"
    ]


def test_interactive_allocation_starts_fresh_runs(project: Project) -> None:
    """Inside salloc, where many runs share the job's id, the harness names the run."""
    env = project.slurm(SLURM_SUBMIT_DIR="/")
    assert project.run(project.path / "slurm/bilstm.sh", env=env).returncode == 0
    assert "--run-id" not in project.call()["argv"]


def test_array_task_is_the_seed(project: Project) -> None:
    """An array task's number becomes the seed and a part of the run's id."""
    env = project.slurm(SLURM_JOB_ID="44", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3")
    assert project.run(project.spool(), env=env).returncode == 0
    assert project.call()["argv"][2:] == ["--seed", "3", "--run-id", "slurm-42_3"]


@pytest.mark.parametrize("given", [["--seed", "7"], ["--seed=7"]])
def test_given_seed_wins(project: Project, given: list[str]) -> None:
    """A seed on the command line wins over the array task's number."""
    env = project.slurm(SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3")
    assert project.run(project.spool(), *given, env=env).returncode == 0
    assert project.call()["argv"][2:] == ["--run-id", "slurm-42_3", *given]


def test_two_nodes_start_a_process_on_each(project: Project) -> None:
    """On several nodes srun starts one harness a node, with the job's CPUs and environment."""
    project.executable(project.commands / "srun", '#!/bin/bash\necho "$@" >&2\nexec "${@: -5}"\n')
    env = project.slurm(SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="4")
    result = project.run(project.spool(), env=env)
    assert result.returncode == 0, result.stderr
    assert (
        "--nodes=2 --ntasks=2 --ntasks-per-node=1 --export=ALL --cpus-per-task=4" in result.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_is_passed_on_once(project: Project, number: signal.Signals) -> None:
    """A signal reaches the harness once, however often it comes, and its 75 is returned."""
    code, _ = project.signalled(
        project.path / "slurm/bilstm.sh", number, number, env=project.environment
    )
    assert code == 75
    assert project.call()["signals"] == [number.name]


def test_interrupt_reaches_the_harness_as_term(project: Project) -> None:
    """Ctrl-C stops the harness too, though a background child ignores INT."""
    code, _ = project.signalled(
        project.path / "slurm/bilstm.sh", signal.SIGINT, env=project.environment
    )
    assert code == 75
    assert project.call()["signals"] == ["SIGTERM"]


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR2, "requeue 42\n"), (signal.SIGTERM, "")]
)
def test_warned_job_goes_back_into_the_queue(
    project: Project, number: signal.Signals, requeued: str
) -> None:
    """A job that was warned requeues itself; one that was cancelled stays cancelled."""
    asked = project.outside / "asked"
    asked.touch()
    project.executable(project.commands / "scontrol", '#!/bin/sh\necho "$@" >>"$ASKED"\n')
    code, said = project.signalled(project.spool(), number, env=project.slurm(ASKED=str(asked)))
    assert code == 75, said
    assert asked.read_text() == requeued


def test_site_settings_and_container(project: Project) -> None:
    """slurm/site.sh is read, may use unset variables, and its container starts the harness."""
    (project.path / "slurm/site.sh").write_text(
        'export HARNESS_RUNS=/elsewhere\nHARNESS_CONTAINER=(env "IMAGE=an image" $UNSET)\n'
    )
    assert project.run(project.path / "slurm/bilstm.sh").returncode == 0
    assert project.call()["runs"] == "/elsewhere"
    assert project.call()["image"] == "an image"


def test_container_brings_the_python(project: Project) -> None:
    """With a container, the interpreter that is judged is the container's."""
    (project.path / "slurm/site.sh").write_text(
        "HARNESS_VENV=new HARNESS_CONTAINER=(bash -c 'echo 3.8.0; exit 1')\n"
    )
    result = project.run(project.path / "slurm/bilstm.sh")
    assert result.returncode == 2
    assert "python3 is 3.8.0" in result.stderr


def test_no_usable_python_is_one_line(project: Project) -> None:
    """Without a Python to make the environment, one line names what was found and the remedy."""
    old = project.executable(project.outside / "an old/python", "#!/bin/sh\necho 3.9.2\nexit 1\n")
    env = {
        **project.environment,
        "HARNESS_VENV": str(project.outside / "new"),
        "HARNESS_PYTHON": str(old),
    }
    result = project.run(project.path / "slurm/bilstm.sh", env=env)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{old} is 3.9.2" in line
    assert "HARNESS_PYTHON" in line
    assert not (project.outside / "new").exists()


def test_failed_install_is_made_again(project: Project) -> None:
    """A failed install ends with 1 and its remedy, and leaves nothing that passes for complete."""
    wheels = project.outside / "wheels"
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
    lock = f"part==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
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


def test_locks_agree() -> None:
    """The three locks hold one version of what they share, and name no index and no folder."""

    def pins(name: str) -> set[str]:
        text = (REPOSITORY / name).read_text()
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
    check = """source "$1/slurm/common.sh"; read_site
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


@pytest.mark.parametrize("flock", ["", "flock() { return 71; };"])
def test_lock_lets_one_in_at_a_time(project: Project, flock: str) -> None:
    """One process at a time holds the lock, also on a file system where flock fails."""
    work = 'work() { mkdir "$1/one"; sleep 0.3; rmdir "$1/one"; };'
    command = f'source "$1/slurm/common.sh"; {flock} {work} with_lock work "$1"'
    both = [subprocess.Popen(["bash", "-c", command, "bash", str(project.path)]) for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert not (project.path / ".setup.lock.d").exists()
