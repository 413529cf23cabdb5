"""One model on several nodes needs a trusted network; the site confirms it in the environment."""

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.slurm.environment import NETWORK_REMEDY, NETWORK_RISK, not_sourced
from harness.system.console import quoted
from harness.training.launch import own_allocation
from tests.conftest import JOBS, Harness
from tests.slurm.stand_in import TWO_NODES, Project

WORD = "export HARNESS_TRUSTED_NETWORK=1\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project on a cluster of two nodes with a stand-in for the harness."""
    project = Project(tmp_path)
    project.two_nodes()
    return project


def test_a_job_script_refuses_before_anything_starts(project: Project) -> None:
    """Searches and several seeds do start, because each of their models uses one node."""
    env = project.slurm(**TWO_NODES)
    result = project.run(project.spool(), env=env)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1].removeprefix("harness: training one model on 2 nodes is ")
    assert line == f"refused: {NETWORK_RISK}; {NETWORK_REMEDY}"
    assert not project.note.exists()
    for script, words in (("bilstm", ["--seeds", "1-2"]), ("tune", ["jobs/x.toml"])):
        result = project.run(project.spool(script), *words, env=env)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("word", [None, "0", "1 "])
def test_train_refuses(word: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` refuses under plain srun, too, unless the variable is exactly 1."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "0",
                        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HARNESS_TRUSTED_NETWORK", raising=False)
    if word is not None:
        monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", word)
    with pytest.raises(InputError, match="could act with your permissions"):
        own_allocation()
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "1")
    assert own_allocation()


def test_submit_refuses(harness: Harness) -> None:
    """The command ends with exit code 2 and writes nothing; one node needs no trusted network."""
    args = ["submit", JOBS / "lstm.toml", "--dry-run"]
    done = harness.run_here(*args, "--nodes", "2")
    assert done.returncode == 2, done.stdout
    assert NETWORK_RISK in done.stderr.splitlines()[-1]
    assert not harness.runs.exists()
    for words in (["--nodes", "1"], ["--nodes", "2", "--seeds", "1-3", "--pack"]):
        assert harness.run_here(*args, *words).returncode == 0
    harness.environment["HARNESS_TRUSTED_NETWORK"] = "1"
    assert harness.run_here(*args, "--nodes", "2").returncode == 0


def test_a_shell_that_has_not_sourced_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python reads only the environment, and warns of settings that only site.sh exports.

    Outside of the project's folder, the command names the whole path of site.sh.
    """
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.sh").write_text(WORD + "export SBATCH_QOS=q\n# export SBATCH_GRES=a\n")
    names = ["HARNESS_TRUSTED_NETWORK", "SBATCH_QOS", "SBATCH_GRES", "SBATCH_ACCOUNT"]
    monkeypatch.setenv("SBATCH_QOS", "other")
    line = not_sourced(names, tmp_path)
    assert "HARNESS_TRUSTED_NETWORK" in line
    assert line.endswith(f"; run: source {quoted(tmp_path / 'slurm/site.sh')}")
    assert not any(name in line for name in names[1:])
    assert not_sourced(names, tmp_path / "none") == ""
    monkeypatch.chdir(tmp_path)
    assert not_sourced(names, tmp_path).endswith("; run: source slurm/site.sh")
