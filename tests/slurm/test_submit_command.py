"""`harness submit` with stand-ins for Slurm's programs: warnings, refusals, records, the queue."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness import __version__
from harness.job.job_file import load_job
from harness.slurm import client
from harness.slurm.client import first_look_s
from harness.system.files import distrust
from tests.conftest import JOBS, PROJECT, SHRUNK, Harness
from tests.slurm.test_submit import contents
from tests.slurm.test_submit import project as project

LSTM = JOBS / "lstm.toml"
REFUSES = "case $* in *--test-only*) echo 'allocation failure: {}' >&2; exit 1 ;; esac\necho 77"


@pytest.fixture
def site(harness: Harness) -> Harness:
    """A Slurm that accepts each job with the id 77; scancel records its arguments."""
    harness.program("sbatch", "echo 77")
    harness.program("scontrol", "exit 1")
    harness.program("scancel", f'echo "$@" >>"{harness.folder}/cancelled"')
    return harness


def answer(site: Harness, *lines: str) -> None:
    """Let squeue print these states and reasons of job 77, and record its arguments."""
    text = "\n".join(f"77|77|{line}|/a" for line in lines)
    site.program("squeue", f'echo "$@" >>"{site.folder}/asked"\ncat <<\'end\'\n{text}\nend')


def submissions(harness: Harness) -> list[Path]:
    """Return the folders of submissions, without snapshots and records."""
    return [*(harness.runs / ".submissions").glob("2*-*")]


# Before the submission


def test_a_dry_run_writes_nothing(harness: Harness) -> None:
    """`--dry-run` prints script and command, needs no Slurm, and imports no large library."""
    harness.hide_slurm()
    harness.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    before = contents(harness.folder)
    words = ["--seeds", "1-2", "--gpus", "2", "--dry-run", "--", "--mem=4G"]
    done = harness.run("submit", LSTM, *SHRUNK, *words)
    assert done.returncode == 0, done.stderr
    assert contents(harness.folder) == before
    assert not harness.runs.exists()
    assert f"export HARNESS_RUNS={harness.runs}\n" in done.stdout
    command = done.stdout.strip().splitlines()[-1]
    assert "--array=1-2 " in command
    assert " --gres=gpu:2 --mem=4G " in command
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "harness.slurm.submit" in imported
    assert not imported & {"tensorflow", "keras", "numpy", "sklearn"}


def test_the_start_of_a_job_is_asked_for(site: Harness) -> None:
    """With sbatch's option `--test-only` nothing is written, and nothing is submitted."""
    starts = "Job 5 to start at 2026-12-01T09:00:00 using 4 processors on nodes n1"
    site.program(
        "sbatch", f"case $* in *--test-only*) echo 'sbatch: {starts}' >&2 ;; *) exit 1 ;; esac"
    )
    done = site.run_here("submit", LSTM, "--", "--test-only", "--mem=4G")
    assert (done.returncode, done.stdout) == (0, f"lstm: {starts}\n")
    assert not site.runs.exists()


def test_warnings_before_a_submission(harness: Harness, project: Path) -> None:
    """`submit` warns of a missing dataset or environment."""
    words = ["submit", LSTM, "--dry-run"]
    harness.environment |= {"HARNESS_VENV": str(harness.folder), "HARNESS_HOME": str(project)}
    done = harness.run_here(*words)
    assert "packaged SAMPLE instead; to get the dataset, run: harness data fetch" in done.stderr
    assert f"warning: {harness.folder}/bin/harness is missing" in done.stderr
    site = project / "slurm/site.sh"
    site.write_text("HARNESS_CONTAINER=(env)\n")  # the environment may be in the image
    assert "bin/harness is missing" not in harness.run_here(*words).stderr
    site.unlink()
    harness.environment["HARNESS_DATA"] = str(harness.folder)
    done = harness.run_here(*words)
    assert "job will end with an error; put the dataset into this folder, or unset" in done.stderr
    for name in ("imdb.npz", "bin/harness"):
        (harness.folder / name).parent.mkdir(exist_ok=True)
        (harness.folder / name).touch()
    done = harness.run_here(*words)
    assert done.returncode == 0
    assert "SAMPLE" not in done.stderr
    assert "bin/harness" not in done.stderr
    assert f"export HARNESS_DATA={harness.folder}\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--all"),
        (["lstn.toml"], "lstn.toml"),
        ([LSTM, "--set", "model.unit=8"], "model.units"),
        ([LSTM, "--set", "data.source=no.csv"], "no.csv"),
        ([JOBS / "tune_lstm.toml", "--set", "data.source=no.csv"], "no.csv"),
        ([LSTM, "--seeds", "1,2147483648"], "train.seed=2147483648"),
        (
            [LSTM, "--seeds", "1-2", "--set", "train.seed=7"],
            "--set train.seed=7: can't be combined",
        ),
        ([LSTM, "--pack"], "--pack"),
        ([LSTM, "--seeds", "1-5%0"], "the part after % should be"),
        ([LSTM, "--seeds", "1-5%2", "--pack"], "with --pack, leave this part out"),
        ([LSTM, "--gpu", "2"], "--gpus"),
        ([LSTM, "--partition", "x"], "--partition; sbatch options go after"),
        ([LSTM, JOBS / "gru.toml"], "--all"),
        ([LSTM, "--", "--comment=x", "gru"], "gru: should be an sbatch option"),
        ([LSTM, "--runs", PROJECT], "--runs"),
        ([JOBS / "tune_lstm.toml", "--seeds", "1"], "search.executions"),
        ([LSTM, "--", "--array=1-2"], "--seeds"),
        ([LSTM, "--", "-N2"], "use --nodes before --"),
        ([LSTM, "--", "--clusters=other"], "export SLURM_CLUSTERS=NAME instead"),
        ([LSTM, "--", "-M", "other"], "export SLURM_CLUSTERS=NAME instead"),
    ],
)
def test_bad_input_is_refused(harness: Harness, words: list[object], named: str) -> None:
    """The command ends with exit code 2 and one line, and writes nothing."""
    before = contents(harness.folder)
    done = harness.run_here("submit", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert contents(harness.folder) == before
    assert not harness.runs.exists()


def test_sbatch_refuses_before_anything_is_written(site: Harness) -> None:
    """`sbatch --test-only` comes first; if sbatch is not on the PATH, the line has the remedy."""
    refuses = f'echo "$*" >>{site.folder}/calls\n' + REFUSES.format("Invalid qos")
    site.program("sbatch", refuses)
    done = site.run_here("submit", "--all", "--", "--qos=none")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "rnn: would not start: allocation failure: Invalid qos" in line
    calls = (site.folder / "calls").read_text().splitlines()
    assert sum("--test-only" in call for call in calls) == 1
    site.hide_slurm()
    done = site.run_here("submit", LSTM)
    assert (done.returncode, "sbatch: is not on the PATH" in done.stderr) == (2, True)
    assert not site.runs.exists()


# The submission


def test_record_and_log_of_a_submitted_job(site: Harness) -> None:
    """The record's name is the job's id. Slurm would drop the log if its folder were missing."""
    site.program("sbatch", "echo checking 7 hosts: OK; echo '77;cluster'")
    done = site.run_here("submit", LSTM)
    assert (done.returncode, "job 77: lstm, seed 1\n" in done.stdout) == (0, True), done.stderr
    assert re.search(r"(?m)^code  .*/code-\w+ \(\d+ files, \d+\.\d MB\)$", done.stdout)
    record = json.loads((site.runs / ".submissions/77.json").read_text())
    assert (record["harness"], record["job_id"], record["resumes"]) == (__version__, "77", False)
    assert record["runs"] == [str(site.runs / "lstm/slurm-77")]
    assert record["logs"] == [str(site.runs / "logs/lstm-77.out")]
    assert (site.runs / "logs").is_dir()


def test_the_next_commands_find_a_waiting_job(site: Harness) -> None:
    """The record of the job may be in another folder of runs than the default one."""
    answer(site, "PENDING|0:00|Priority")
    done = site.run_here("submit", LSTM, "--runs", site.folder / "my runs")
    printed = re.findall(r"(?m)^(?:next|    )  harness (.*)$", done.stdout)
    words = [shlex.split(line.removesuffix(" -f")) for line in printed]
    status, logs, cancel = (site.run_here(*each) for each in words)
    assert " pending " in status.stdout
    assert "the run is pending" in logs.stderr, logs.stderr
    assert "job 77 was removed from the queue" in cancel.stdout, cancel.stderr
    assert (site.folder / "cancelled").read_text() == "77\n"


@pytest.mark.parametrize(("error", "code"), [("no way", 2), ("Unable to contact slurm", 1)])
def test_a_refused_submission_leaves_nothing(site: Harness, error: str, code: int) -> None:
    """The message contains all messages of sbatch. The exit code is 1 if the controller is down."""
    says = f"echo warming up >&2; echo 'sbatch: error: {error}' >&2; exit 1"
    site.program("sbatch", f"case $1 in --test-only) exit ;; esac\n{says}")
    done = site.run_here("submit", LSTM)
    assert done.returncode == code
    line = f"harness: lstm: was not submitted: warming up; sbatch: error: {error}"
    assert done.stderr.splitlines()[-1] == line
    assert submissions(site) == []


def test_a_job_without_a_record_is_named(site: Harness) -> None:
    """Without a record the harness can't find the job, so the user might submit a second job."""
    (site.runs / ".submissions/77.json").mkdir(parents=True)  # a file can't replace a folder
    done = site.run_here("submit", LSTM)
    assert done.returncode == 1
    assert "77.json: can't be written" in done.stderr
    assert "; job 77 is in the queue" in done.stderr
    assert done.stderr.endswith("cancel it: scancel 77\n")


def test_ctrl_c_leaves_no_job_without_a_record(site: Harness) -> None:
    """A terminal's Ctrl-C takes effect after the current job; no further job is submitted."""
    answers = "kill -INT -$PPID; sleep 0.2; echo 77"  # to all processes of the command's group
    site.program("sbatch", f"case $1 in --test-only) exit ;; esac; {answers}")
    done = subprocess.run(
        site.command("submit", "--all"), cwd=site.folder, env=site.environment,
        start_new_session=True, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("job 77: ")) == (75, 1), done.stderr
    assert "interrupted by Ctrl-C" in done.stderr
    assert json.loads((site.runs / ".submissions/77.json").read_text())["job"] == "rnn"
    assert len(submissions(site)) == 1


def test_a_later_refusal_leaves_the_earlier_jobs(site: Harness) -> None:
    """The lines above the error name the submitted jobs."""
    site.program(
        "sbatch", "case $* in *=compare*) echo 'no more jobs' >&2; exit 1 ;; esac; echo 77"
    )
    done = site.run_here("submit", "--all")
    assert (done.returncode, done.stdout.count("job 77: ")) == (2, 5)
    assert done.stderr.splitlines()[-1].endswith("compare: was not submitted: no more jobs")


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("exec sleep 20", "the job may be in the queue; check with squeue --me"),
        ("echo checking 7 hosts: OK", "may be in the queue; .*only 'checking 7 hosts: OK'"),
    ],
)
def test_a_job_without_an_id_may_be_in_the_queue(
    site: Harness, monkeypatch: pytest.MonkeyPatch, does: str, message: str
) -> None:
    """The job's files are kept, because the job may start."""
    site.program("sbatch", f"case $1 in --test-only) ;; *) {does} ;; esac")
    monkeypatch.setattr(client, "TIMEOUT_S", 1)
    done = site.run_here("submit", LSTM)
    assert done.returncode == 1
    assert re.search(message, done.stderr.splitlines()[-1])
    (folder,) = submissions(site)
    assert {path.name for path in folder.iterdir()} == {"job.sh", "lstm.toml"}


def test_a_run_gets_no_second_job(site: Harness) -> None:
    """If squeue does not answer, the run may have a waiting job, so the commands refuse."""
    run = site.runs / "lstm/a"
    run.mkdir(parents=True)
    (run / "job.toml").write_text(LSTM.read_text())
    state = {"phase": "interrupted", "slurm_job": "12", "time_s": 1.0}
    (run / "state.json").write_text(json.dumps(state))
    site.program("squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    for session in ({}, {"SLURM_JOB_ID": "9"}):  # outside of a job, and in an interactive job
        site.environment |= session
        for words in (
            ["submit", "--all-interrupted"],
            ["submit", "--resume", run],
            ["cancel", run],
        ):
            done = site.run_here(*words)
            assert done.returncode == 1, words
            assert "squeue gives no answer" in done.stderr, words
    site.environment["HARNESS_BATCH_JOB"] = "9"  # the script of a job continues the job's own run
    assert site.run_here("submit", "--resume", run, "--dry-run").returncode == 0


def test_the_next_job_repeats_the_request_of_a_job_whose_run_has_not_begun(site: Harness) -> None:
    """The run has no record of the request; options that the site refuses are left out."""
    assert site.run_here("submit", LSTM).returncode == 0
    site.environment |= {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "HARNESS_BATCH_JOB": "77",
        "HARNESS_FLAGS": "--qos=long --exclude=n1 --gres=gpu:a100:2 --mem=9G",
        "HARNESS_SBATCH_NEVER": "gres",
        "HARNESS_TRUSTED_NETWORK": "1",
    }
    run = site.runs / "lstm/slurm-77"
    done = site.run("job-successor", run, "--runs", site.runs, "--", "ExcNodeList=n1,n2")
    assert done.returncode == 0, done.stderr
    options = "--nodes=2 --qos=long --mem=9G --exclude=n1,n2 --dependency=afterany:77"
    assert f" {options} " in done.stdout.splitlines()[0]
    assert " --gres" not in done.stdout


def test_files_of_a_job_in_any_locale_and_with_any_umask(
    site: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TOML is UTF-8, paths keep their bytes, and only the user can change the job's code."""
    (site.folder / "net.py").write_text("def net(): ...  # \u00e4\n", "utf-8")
    own = site.folder / "own.toml"
    own.write_text(LSTM.read_text().replace('"lstm"', '"net.py:net"', 1))
    plain = dict(site.environment)
    site.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = site.run("submit", "own.toml", "--runs", "gr\u00fcn")
    assert done.returncode == 0, done.stderr
    (folder,) = (site.folder / "gr\u00fcn/.submissions").glob("*-own")
    assert "# \u00e4" in (folder / "own.toml").read_text("utf-8")
    assert "/gr\u00fcn/" in (folder / "job.sh").read_text("utf-8")
    site.environment = plain
    monkeypatch.setattr("harness.system.files._is_own_group", lambda _: False)
    umask = os.umask(0o002)
    try:
        done = site.run_here("submit", own)
    finally:
        os.umask(umask)
    assert done.returncode == 0, done.stderr
    (folder,) = submissions(site)
    assert load_job(folder / "own.toml").code
    assert not distrust(folder.parent), "others can't replace the code of a waiting job"


def test_a_folder_of_runs_that_others_can_write_is_a_warning(site: Harness) -> None:
    """Others could replace the folder of submissions, unless the sticky bit forbids it."""
    warning = "others can write to it, so other users could replace the code of a waiting job"
    site.runs.mkdir(exist_ok=True)
    for mode, is_warned in ((0o777, True), (0o1777, False)):
        site.runs.chmod(mode)
        done = site.run_here("submit", LSTM, "--dry-run")
        assert (done.returncode, warning in done.stderr) == (0, is_warned), done.stderr


# The queue


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PENDING|0:00|QOSMinGRES", "pending (QOSMinGRES)"),
        ("PENDING|0:00|None", "pending"),
        ("RUNNING|0:01 UNLIMITED|None", "running"),
        ("PENDING|0:00 2:00|Priority", "pending (Priority); with a time limit of 120 s, the run"),
    ],
)
def test_state_of_a_new_job(site: Harness, line: str, message: str) -> None:
    """One call of squeue leads to one line: state, reason, and a warning of a short time limit."""
    answer(site, line)
    done = site.run_here("submit", LSTM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"queue {message}")
    (call,) = (site.folder / "asked").read_text().splitlines()
    assert "--jobs=77" in call.split()
    assert not (site.folder / "cancelled").exists()


def test_a_job_is_submitted_though_squeue_or_nodes_are_down(site: Harness) -> None:
    """If nodes are down, `--test-only` finds no node, but sbatch accepts the job."""
    site.program("squeue", "exit 1")
    done = site.run_here("submit", LSTM)
    assert (done.returncode, "\nqueue" in done.stdout) == (0, False)
    assert "job 77: lstm" in done.stdout
    site.program("sbatch", REFUSES.format("Requested node configuration is not available"))
    answer(site, "PENDING|0:00|ReqNodeNotAvail, UnavailableNodes:n1")
    done = site.run_here("submit", LSTM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("queue pending (ReqNodeNotAvail, UnavailableNodes:n1)\n")


def test_slurm_has_time_to_consider_a_job() -> None:
    """`submit` waits a second longer than batch_sched_delay, which is 3 s by default."""
    assert first_look_s({}) == 0
    assert first_look_s({"SchedulerParameters": "(null)"}) == 4
    assert first_look_s({"SchedulerParameters": "a,batch_sched_delay=9,b=1"}) == 10
