"""One model on several nodes is refused everywhere until the site says that nobody listens in."""

import contextlib
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.system.site_settings import (
    AT_STAKE,
    REMEDY,
    check_trusted_network,
    is_trusted_network,
    not_sourced,
)
from harness.training.launch import own_allocation
from tests.conftest import JOBS, Harness
from tests.slurm.stand_in import Project

TWO_NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[08,10]"}
WORD = "export HARNESS_TRUSTED_NETWORK=1\n"
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project on a cluster of two nodes, whose harness only notes how it was called."""
    project = Project(tmp_path)
    project.executable(project.commands / "srun", SRUN)
    project.executable(project.commands / "scontrol", "#!/bin/sh\nprintf 'n08\\nn10\\n'\n")
    return project


def test_a_job_script_refuses_before_anything_starts(project: Project) -> None:
    """On no node, and in the same words as all commands."""
    result = project.run(project.spool(), env=project.slurm(**TWO_NODES))
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line == f"harness: one model on 2 nodes: {AT_STAKE}; {REMEDY}"
    assert not project.note.exists()


@pytest.mark.parametrize("word", [WORD, 'export HARNESS_TRUSTED_NETWORK="1" # asked\n'])
def test_with_the_sites_word_a_job_starts(project: Project, word: str) -> None:
    """The word reaches the processes on all nodes."""
    (project.path / "slurm/site.sh").write_text(word)
    result = project.run(project.spool(), env=project.slurm(**TWO_NODES))
    assert result.returncode == 0, result.stderr
    assert project.call()["trusted"] == "1"


def test_runs_side_by_side_need_no_word(project: Project) -> None:
    """Several seeds, or a search, use one node for each model, so nothing of TensorFlow listens."""
    result = project.run(project.spool(), "--seeds", "1-2", env=project.slurm(**TWO_NODES))
    assert result.returncode == 0, result.stderr
    result = project.run(project.spool("tune"), "jobs/x.toml", env=project.slurm(**TWO_NODES))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("word", [None, "0", "yes", ""])
def test_train_itself_refuses(word: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under plain srun too, and for any other word than 1."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "0",
                        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HARNESS_TRUSTED_NETWORK", raising=False)
    if word is not None:
        monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", word)
    with pytest.raises(InputError, match="could act as you"):
        own_allocation()
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "1")
    assert own_allocation()


def test_submit_refuses(harness: Harness) -> None:
    """One line that says what is at stake, exit code 2, nothing written; one node passes."""
    args = ["submit", JOBS / "lstm.toml", "--dry-run"]
    done = harness.run_here(*args, "--nodes", "2")
    assert done.returncode == 2, done.stdout
    assert AT_STAKE in done.stderr.splitlines()[-1]
    assert not harness.runs.exists()
    for words in (["--nodes", "1"], ["--nodes", "2", "--seeds", "1-3", "--pack"]):
        assert harness.run_here(*args, *words).returncode == 0
    harness.environment["HARNESS_TRUSTED_NETWORK"] = "1"
    assert harness.run_here(*args, "--nodes", "2").returncode == 0


# What a site.sh may hold, and whether bash exports the word 1 after it.
TEXTS = [
    (f"  {WORD}", True),
    ("one=1\nexport HARNESS_TRUSTED_NETWORK=$one\n", True),
    ("HARNESS_TRUSTED_NETWORK=1\n", False),  # no process would see it
    (f"# {WORD}", False),
    (f"if false; then {WORD}fi\n", False),
    (f"{WORD}export HARNESS_TRUSTED_NETWORK=0\n", False),
    ("export HARNESS_TRUSTED_NETWORK='1 '\n", False),
]


@pytest.mark.parametrize(("text", "trusted"), TEXTS, ids=range(len(TEXTS)))
def test_bash_alone_says_what_the_file_sets(
    project: Project, monkeypatch: pytest.MonkeyPatch, text: str, trusted: bool
) -> None:
    """A job script, and Python in a shell that has sourced the file, give the same answer."""
    site = project.path / "slurm/site.sh"
    site.write_text(text)
    script = project.run(project.spool(), env=project.slurm(**TWO_NODES))
    shell = 'source "$1"; printf \'<%s>\' "$(printenv HARNESS_TRUSTED_NETWORK)"'
    words = ["bash", "-c", shell, "shell", str(site)]
    sourced = subprocess.run(words, capture_output=True, text=True, timeout=60)
    word = sourced.stdout[sourced.stdout.rindex("<") + 1 : -1]
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", word)
    assert (word == "1", script.returncode) == (trusted, 0 if trusted else 2)
    with contextlib.nullcontext() if trusted else pytest.raises(InputError, match="could act as"):
        check_trusted_network(2)


def test_the_file_by_itself_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python believes the environment alone, and says so where the file names the setting."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.sh").write_text(WORD + "export SBATCH_QOS=q\n# export SBATCH_GRES=a\n")
    names = ["HARNESS_TRUSTED_NETWORK", "SBATCH_QOS", "SBATCH_GRES", "SBATCH_ACCOUNT"]
    assert not_sourced(names, tmp_path, {"SBATCH_QOS": "other"}) == (
        "slurm/site.sh names HARNESS_TRUSTED_NETWORK, which this shell does not have: "
        "source slurm/site.sh"
    )
    assert not_sourced(names[1:], tmp_path, {}).startswith("slurm/site.sh names SBATCH_QOS, which")
    assert not_sourced(names, tmp_path / "none", {}) == ""
    monkeypatch.delenv("HARNESS_TRUSTED_NETWORK", raising=False)
    assert not is_trusted_network()


@pytest.fixture
def setup(project: Project) -> Callable[[str], str]:
    """`common.sh --setup` on a terminal of a cluster, with an answer typed; what it prints."""
    project.executable(project.commands / "sbatch", "#!/bin/sh\n")

    def call(answer: str) -> str:
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "r+b", buffering=0) as terminal:
            terminal.write(answer.encode())
            done = subprocess.run(
                ["bash", str(project.path / "slurm/common.sh"), "--setup"],
                env=project.environment, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60,
            )  # fmt: skip
            os.close(theirs)
            assert done.returncode == 0
            said = b""
            try:
                while part := terminal.read(1 << 16):
                    said += part
            except OSError:  # the other end is closed
                pass
        return said.decode()

    return call


@pytest.mark.parametrize(("answer", "word"), [("y\n", "1"), ("\n", "0"), ("no\n", "0")])
def test_setup_asks_once_on_a_terminal(
    project: Project, setup: Callable[[str], str], answer: str, word: str
) -> None:
    """The answer goes into slurm/site.sh, whose other lines stay; it is never asked again."""
    site = project.path / "slurm/site.sh"
    site.write_text("# my site")
    assert AT_STAKE in " ".join(setup(answer).split())
    assert site.read_text() == f"# my site\nexport HARNESS_TRUSTED_NETWORK={word}\n"
    assert "could act as you" not in setup("y\n")
    assert site.read_text() == f"# my site\nexport HARNESS_TRUSTED_NETWORK={word}\n"


def test_setup_without_a_terminal_asks_nothing(project: Project) -> None:
    """A script's set-up never waits for an answer, and gives none."""
    project.executable(project.commands / "sbatch", "#!/bin/sh\n")
    result = project.run(project.path / "slurm/common.sh", "--setup")
    assert result.returncode == 0, result.stderr
    assert not (project.path / "slurm/site.sh").exists()
