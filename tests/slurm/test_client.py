"""Calls of Slurm's client programs, which are shell scripts here, and the output of squeue."""

from pathlib import Path

import pytest

from harness.errors import InputError, RunError
from harness.slurm import client
from harness.slurm.client import (
    NoNodesError,
    Queue,
    QueuedJob,
    ask,
    find_job,
    parse_jobs,
    seconds,
    training_script,
    would_start,
)
from tests.conftest import write_program


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the programs; it is the first on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_arguments_pass_unchanged_and_output_need_not_be_utf8(commands: Path) -> None:
    """No shell interprets the arguments; the output may contain another user's file names."""
    write_program(commands / "scontrol", 'printf "%s\\n" "$@"; printf "\\334"')
    assert ask("scontrol", "a b", "$HOME", ";") == "a b\n$HOME\n;\n\ufffd"


def test_variables_of_the_user_and_of_the_calling_job_are_hidden(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's variables would change answers; a new job would inherit its caller's variables."""
    users = {"SQUEUE_PARTITION", "SCANCEL_INTERACTIVE", "SINFO_SORT", "SLURM_TIME_FORMAT"}
    callers = {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_MEM_PER_CPU", "SLURM_RESTART_COUNT"}
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_QOS"}
    for name in (*users, *callers, *kept):
        monkeypatch.setenv(name, "x")
    for words, hidden in (
        (["squeue"], users),
        (["scancel"], users),
        (["sbatch"], callers),
        (["env", "-uSBATCH_QOS", "sbatch"], {*callers, "SBATCH_QOS"}),
    ):
        if words[0] != "env":
            write_program(commands / words[0], "env")
        seen = {line.partition("=")[0] for line in ask(*words).splitlines()}
        assert seen & {*users, *callers, *kept} == {*users, *callers, *kept} - hidden


def test_errors_have_all_messages_and_the_remedy(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint at --help is left out; if the program prints nothing, its exit code is shown."""
    script = "printf 'a rule\\n\\nerror: no job\\nTry --help\\n' >&2; exit 1"
    write_program(commands / "scancel", script)
    with pytest.raises(RunError, match=r"^scancel 7: a rule; error: no job$"):
        ask("scancel", "7")
    write_program(commands / "scancel", "exit 3")
    with pytest.raises(RunError, match=r"^scancel 7: exit code 3$"):
        ask("scancel", "7")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(commands))
        with pytest.raises(InputError, match="sbatch: is not on the PATH"):
            ask("env", "-uSBATCH_ACCOUNT", "sbatch")
    write_program(commands / "squeue", "exec sleep 20")
    monkeypatch.setattr(client, "QUEUE_TIMEOUT_S", 0.2)
    queue = Queue()
    assert queue.jobs() is None
    assert (queue.problem or "").startswith("squeue gives no answer (no answer within 0 s; try")


def test_expected_start_and_refusals(commands: Path) -> None:
    """A refusal is an InputError; if nodes or the controller are down, the user can try again."""
    write_program(commands / "sbatch", 'echo "sbatch: Job 4 to start at $(cat)" >&2')
    assert would_start("noon") == "Job 4 to start at noon"
    for message, kind in (
        ("Invalid qos specification", InputError),
        ("Requested node configuration is not available", NoNodesError),
        ("Unable to contact slurm controller (connect failure)", RunError),
    ):
        write_program(commands / "sbatch", f"echo 'allocation failure: {message}' >&2; exit 1")
        with pytest.raises((InputError, RunError), match=f": {message[:9]}") as raised:
            would_start("")
        assert raised.type is kind


# The queue

PRINTED = """\
7|7|RUNNING|1-02:03:04 2-00:00:00|None|/home/me/project/slurm/lstm.sh --set a=b|c
12_3|15|PENDING|0:00|Priority|(null)
slurm_load_jobs error: something
x|y|RUNNING|0:01|None|/a
"""


def job(shown: str, raw: str) -> QueuedJob:
    return QueuedJob(shown, raw, "RUNNING", "None", 0.0, "")


def test_output_of_squeue() -> None:
    """A job's command may contain the separator `|`; lines of another form are skipped.

    Days, hours and minutes are optional; a text that is no time counts as 0 s.
    """
    running, pending = parse_jobs(PRINTED)
    command = "/home/me/project/slurm/lstm.sh --set a=b|c"
    assert running == QueuedJob("7", "7", "RUNNING", "None", 93_784.0, command, 172_800.0)
    assert pending == QueuedJob("12_3", "15", "PENDING", "Priority", 0.0, "", 0.0)
    assert (running.waits, pending.waits, running.ended) == (False, True, False)
    assert training_script(running) == ("/home/me/project", "lstm", ["--set", "a=b|c"])
    for other in ("/p/other/lstm.sh", "slurm/lstm.sh", ""):
        assert training_script(QueuedJob("1", "1", "RUNNING", "None", 0.0, other)) is None
    assert [seconds(text) for text in ("5", "0:05", "1:00:00", "NO")] == [5, 5, 3600, 0]


def test_the_job_of_a_run() -> None:
    """Waiting tasks share a raw id, so the shown id decides; any job may continue a task's run."""
    jobs = [job("12_1", "12"), job("12_2", "12"), job("20", "20")]
    assert find_job(jobs, None, "12_2") == jobs[1]
    assert find_job(jobs, "12", "12_2") == jobs[1]
    assert find_job(jobs, "20", "20") == jobs[2]
    assert find_job(jobs, "20", "12_1") == jobs[2]
    assert find_job(jobs, "12", "12_3") is None
    assert find_job(jobs, "99", "20") is None
    assert find_job(jobs, None, "99") is None


def test_the_queue_is_read_every_half_minute(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If squeue is missing or does not answer, the queue is unknown, not empty."""
    write_program(commands / "squeue", "echo x >>calls; echo '7|7|RUNNING|0:01|None|/a'")
    monkeypatch.chdir(commands)
    now = iter([0.0, 0.0, 29.0, 31.0, 31.0])
    queue = Queue(clock=lambda: next(now))
    for num_calls in (1, 1, 2):
        assert [each.id for each in queue.jobs() or ()] == ["7"]
        assert (commands / "calls").read_text().count("x") == num_calls
    write_program(commands / "squeue", "echo 'error: Unable to contact' >&2; exit 1")
    queue = Queue()
    assert queue.jobs() is None
    assert queue.problem == "squeue gives no answer (Unable to contact)"
    monkeypatch.setenv("PATH", str(commands / "nowhere"))
    queue = Queue()
    assert (queue.jobs(), queue.problem) == (None, None)
