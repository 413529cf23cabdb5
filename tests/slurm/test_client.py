"""Slurm's client programs, with stand-ins for them on the PATH."""

from pathlib import Path

import pytest

from harness.errors import InputError, RunError
from harness.slurm.client import NoNodesError, ask, would_start


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for stand-ins, the first on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_arguments_go_through_as_they_are(commands: Path) -> None:
    """No shell reads them."""
    stand_in(commands, "scontrol", 'printf "%s\\n" "$@"')
    assert ask("scontrol", "a b", "$HOME", ";") == "a b\n$HOME\n;\n"


def test_a_users_own_settings_do_not_change_an_answer(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hide jobs, ask a question or write times otherwise; sbatch passes all on to a job."""
    own = ("SQUEUE_PARTITION", "SCANCEL_INTERACTIVE", "SINFO_SORT", "SLURM_TIME_FORMAT")
    for name in (*own, "SLURM_CONF", "SLURM_CLUSTERS", "HOME"):
        monkeypatch.setenv(name, "x")
    for program in ("squeue", "scancel", "sinfo", "scontrol", "sbatch"):
        stand_in(commands, program, "env")
        seen = {line.partition("=")[0] for line in ask(program).splitlines()}
        assert {"SLURM_CONF", "SLURM_CLUSTERS", "HOME"} < seen
        assert seen & {*own} == ({*own} if program == "sbatch" else set())


def test_a_new_job_takes_nothing_for_its_own_of_the_one_that_submits_it(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch passes all on: a step, a task of an array, memory asked in another way, requeues."""
    own = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_CPU")
    for name in (*own, "SLURM_RESTART_COUNT", "SLURM_GPUS", "SLURM_CONF", "SBATCH_QOS"):
        monkeypatch.setenv(name, "1")
    stand_in(commands, "sbatch", "env")
    for command in (["sbatch"], ["env", "-uSBATCH_QOS", "sbatch"]):
        names = {line.partition("=")[0] for line in ask(*command).splitlines()}
        assert {name for name in names if name.startswith("SLURM_")} == {"SLURM_CONF"}


def test_a_name_that_is_not_utf8_is_no_obstacle(commands: Path) -> None:
    """Another job's script may have one."""
    stand_in(commands, "squeue", r"printf '1|/home/\334bung/run.sh\n2|/x.sh\n'")
    assert ask("squeue").splitlines() == ["1|/home/\ufffdbung/run.sh", "2|/x.sh"]


def test_a_failure_is_told_by_all_that_it_says(commands: Path) -> None:
    """Without the hint at --help; without any line the exit code serves."""
    stand_in(commands, "scancel", "printf 'a rule\\n\\nerror: no job\\nTry --help\\n' >&2; exit 1")
    with pytest.raises(RunError, match=r"^scancel 7: a rule; error: no job$"):
        ask("scancel", "7")
    stand_in(commands, "scancel", "exit 3")
    with pytest.raises(RunError, match=r"^scancel 7: exit code 3$"):
        ask("scancel", "7")


def test_no_program_and_no_answer_are_told_with_the_remedy(commands: Path) -> None:
    """The user learns whether to look for Slurm or for its controller."""
    with pytest.raises(InputError, match="no-such-client: is not on the PATH"):
        ask("no-such-client")
    stand_in(commands, "squeue", "exec sleep 20")
    with pytest.raises(RunError, match="squeue: no answer within 0 s; is Slurm up"):
        ask("squeue", timeout_s=0.2)


def test_an_expected_start_and_the_two_refusals(commands: Path) -> None:
    """The job and its flags are the user's input; nodes that are down, and Slurm, are not."""
    script = commands / "job.sh"
    stand_in(commands, "sbatch", "echo 'sbatch: Job 4 to start at noon' >&2")
    assert would_start(script) == "Job 4 to start at noon"
    stand_in(commands, "sbatch", "echo 'sbatch: unrecognized option' >&2; exit 255")
    with pytest.raises(InputError, match=r"^unrecognized option; see man sbatch$"):
        would_start(script, "--no-such")
    for said, kind in (
        ("Invalid qos specification", InputError),
        ("Requested node configuration is not available", NoNodesError),
        ("Unable to contact slurm controller (connect failure)", RunError),
    ):
        stand_in(commands, "sbatch", f"echo 'allocation failure: {said}' >&2; exit 1")
        with pytest.raises(kind, match=rf"^would not start: allocation failure: {said[:9]}"):
            would_start(script)
