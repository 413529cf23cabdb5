"""A copy of the job scripts, and a stand-in for the harness that records its calls."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT

# The stand-in records its call. If WAIT is set, it then waits for a signal. Its first lines are as
# in pip's commands, because `#!` allows no path with a space.
STAND_IN = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
import json, os, signal, sys, time
from pathlib import Path
if sys.argv[1] in ("job-begin", "job-end"):  # the real ones
    os.environ["PYTHONPATH"] = {str(PROJECT)!r}
    os.execv(sys.executable, [sys.executable, "-m", "harness", *sys.argv[1:]])
note = Path(os.environ["NOTE"])
def write():
    note.write_text(json.dumps(call))
    with note.with_suffix(".all").open("a") as file:
        file.write(json.dumps(call) + "\\n")
call = {{
    "argv": sys.argv[1:],
    "runs": os.environ["HARNESS_RUNS"],
    "image": os.environ.get("IMAGE"),
    "nodes": os.environ.get("HARNESS_NODES"),
    "data": os.environ.get("HARNESS_DATA"),
    "flags": os.environ.get("HARNESS_FLAGS"),
    "batch_job": os.environ.get("HARNESS_BATCH_JOB"),
    "slurm": sorted(name for name in os.environ if name.startswith("SLURM_")),
    "signals": [],
}}
def stop(number, frame):
    call["signals"].append(signal.Signals(number).name)
    time.sleep(0.2)  # saving takes a while, in which signals may repeat
    write()
    sys.exit(75)
if "WAIT" in os.environ:
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), stop)
    note.with_suffix(".ready").touch()
    for _ in range(200):  # a signal just before a sleep does not end it
        time.sleep(0.1)
write()
sys.exit(int(os.environ.get("EXIT", "0")))
"""

TWO_NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[08,10]"}

PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "harness"
version = "0"
"""


class Project:
    """A copy of the job scripts, whose path has spaces and a quote, and their environment."""

    def __init__(self, folder: Path) -> None:
        self.outside = folder
        self.path = folder / "it's a project"
        self.note = folder / "note.json"
        shutil.copytree(
            PROJECT / "slurm", self.path / "slurm", ignore=shutil.ignore_patterns("site.sh")
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

    def program(self, text: str, real: Sequence[str] = ("job-begin", "job-end")) -> Path:
        """Replace `harness` by a shell script; the commands in `real` still run the harness."""
        python = f"PYTHONPATH={shlex.quote(str(PROJECT))} exec {shlex.quote(sys.executable)}"
        case = f'case $1 in {"|".join(real)}) {python} -m harness "$@" ;; esac'
        return self.executable(self.venv / "bin/harness", f"#!/bin/sh\n{case}\n{text}\n")

    def two_nodes(self) -> None:
        """Add an srun that prints its options, and a scontrol that prints two nodes' names."""
        text = (
            '#!/bin/bash\nwhile [[ $1 == -* ]]; do printf "%s " "$1" >&2; shift; done\nexec "$@"\n'
        )
        self.executable(self.commands / "srun", text)
        self.executable(self.commands / "scontrol", "#!/bin/sh\nprintf 'n08\\nn10\\n'\n")

    def spool(self, job: str = "bilstm") -> Path:
        """Copy a script into a spool folder, as Slurm does, and return the copy."""
        copy = self.outside / "spool/job00042/slurm_script"
        copy.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.path / f"slurm/{job}.sh", copy))

    def slurm(self, **more: str) -> dict[str, str]:
        """Return the environment of a batch job that was submitted in the project."""
        return {
            **self.environment,
            "SLURM_JOB_ID": "42",
            "SLURM_SUBMIT_DIR": str(self.path),
            "HARNESS_RETRY_S": "0.1",
            **more,
        }

    def run(
        self, script: Path, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in a folder outside of the project."""
        return subprocess.run(
            ["bash", str(script), *arguments],
            env=env or self.environment,
            cwd=self.outside,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def call(self) -> dict[str, Any]:
        """Return the last call that the stand-in recorded."""
        call: dict[str, Any] = json.loads(self.note.read_text())
        return call

    def calls(self) -> list[dict[str, Any]]:
        """Return all calls that the stand-in recorded."""
        lines = self.note.with_suffix(".all").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def signalled(
        self, script: Path, *signals: signal.Signals, env: dict[str, str]
    ) -> tuple[int, str]:
        """Send signals while the harness waits; return the script's exit code and messages."""
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
