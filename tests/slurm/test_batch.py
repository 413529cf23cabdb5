"""The supervisor of a batch job chooses each start's command, then decides: requeue or stop."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.slurm.batch import Counters, Ending, counters_file, decide, ending_of, plan
from harness.slurm.environment import SlurmEnvironment
from tests.slurm.test_environment import allocation

WARNED, TERMED = ("USR2",), ("TERM",)
NEW = Counters()
TWICE = Counters(start="1.1", reached=10, idle=2)  # two starts made no step after step 10
THIRD = TWICE.model_copy(update={"faulty": ("n8", "n9")})
IDLE = Ending(75, signals=WARNED, reached=10)
CANCELLED = Ending(75, run="/my runs/lstm/slurm-1", signals=TERMED, reached=20)
OUT_OF_MEMORY = Ending(137, reached=20, asked_gb=17.2, used_gb=17.1)
LEAVES = "the job avoids faulty nodes from now on; report the fault to your site"

# Each case: a start's end, the counters before it, the line for the script, the message's end.
TABLE = {
    "time limit, one step further": (replace(IDLE, reached=11), TWICE, "requeue", ""),
    "time limit, third start without a step": (IDLE, TWICE, "stop 1", "above; give more --time"),
    "preempted, third start without a step": (
        replace(IDLE, signals=TERMED, preempted=True),
        TWICE,
        "stop 1",
        "HARNESS_MAX_REQUEUES is 2): see above",
    ),
    "time limit at a site that allows more": (replace(IDLE, max_requeues=20), TWICE, "requeue", ""),
    "loading, unknown runs": (Ending(140, signals=WARNED), TWICE, "stop 1", "give more --time"),
    "unknown runs": (Ending(75, signals=WARNED), TWICE, "requeue", ""),
    "unknown runs that hang": (
        Ending(75),
        TWICE,
        "stop 1",
        "HARNESS_MAX_REQUEUES is 2): see above",
    ),
    "cancelled": (CANCELLED, NEW, "stop", ": harness submit --resume 1 --runs '/my runs'"),
    "cancelled, no record of the seeds": (
        replace(CANCELLED, is_submitted=False),
        NEW,
        "stop",
        "continue with: the same command with --run-id slurm-1",
    ),
    "cancelled before a step": (replace(CANCELLED, reached=0), NEW, "stop", "submit the job again"),
    "Ctrl-C, unknown runs": (Ending(75, signals=("INT",)), NEW, "stop", "submit the job again"),
    "requeued by Slurm": (replace(CANCELLED, requeued=True), NEW, "stop", "back into the queue"),
    "a faulty node, after another one": (
        Ending(75, faulty=("n2",), reached=0, excluded="n[5-6]"),
        Counters(idle=1, faulty=("n1",)),
        "requeue ExcNodeList=n[5-6],n1,n2",
        LEAVES,
    ),
    "the third faulty node in succession": (
        Ending(75, faulty=("n1",), reached=0),
        THIRD,
        "stop 1",
        "nodes n8, n9, n1 were faulty",
    ),
    "the third faulty node after a step": (
        Ending(75, faulty=("n1",), reached=11),
        THIRD,
        "requeue ExcNodeList=n1",
        LEAVES,
    ),
    "the third hang": (replace(IDLE, signals=(), why="a hang"), TWICE, "stop 1", ": a hang"),
    "a process on one of two nodes dies": (Ending(137, num_nodes=2), NEW, "requeue", ""),
    "the only process aborts": (
        Ending(134, reached=20),
        NEW,
        "stop",
        "exit code 134 for the reason above; the job is not requeued",
    ),
    "out of memory": (
        OUT_OF_MEMORY,
        NEW,
        "stop",
        "requested 17.2 GB and used up to 17.1 GB; exit code 137; give --mem=24605M or more",
    ),
    "out of memory, as is another job of the node": (
        replace(OUT_OF_MEMORY, used_gb=99.0),
        NEW,
        "stop",
        "requested 17.2 GB; exit code 137; give --mem=24605M or more",
    ),
    "out of the whole node's memory": (
        Ending(137),
        NEW,
        "stop",
        "the job requested all memory of the node; exit code 137",
    ),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_future_of_a_job(case: tuple[Ending, Counters, str, str]) -> None:
    """The job script gets a line; the user gets a message, unless the requeue is routine."""
    ending, before, line, message = case
    decision = decide(replace(ending, start="1.2"), before)
    assert decision.line() == line
    assert decision.reason.endswith(message)
    assert bool(decision.reason) == bool(message)


def test_a_cancelled_job_names_the_folder_of_its_run(tmp_path: Path) -> None:
    """A task's id would not name the folder, because all tasks of an array share it in a search."""
    ending = Ending(75, start="7_2.1", run=f"{tmp_path}/a b", signals=TERMED, reached=20)
    assert " --resume 7_2 --runs " in decide(ending, NEW).reason  # several seeds share this job
    (tmp_path / "a b").mkdir()
    for reached in (20, 0):  # a start that ended before its first step may have continued the run
        reason = decide(replace(ending, reached=reached), NEW).reason
        assert reason.endswith(f" --resume '{tmp_path}/a b'")


def test_a_cancelled_job_names_itself_if_only_an_earlier_start_knew_its_run() -> None:
    """A new job would begin a new run; tensorboard and others have no run in any start."""
    ending = Ending(143, start="7.1", runs="/my runs", begun=False, signals=TERMED)
    reason = "interrupted; continue with: harness submit --resume 7 --runs '/my runs'"
    assert decide(ending, NEW).reason == reason
    for other in (replace(ending, start="7.0"), replace(ending, begun=True)):
        assert decide(other, NEW).reason == "interrupted; submit the job again"


def test_a_start_is_counted_once() -> None:
    """Two signals during one start lead to two decisions, but are counted once."""
    ending = Ending(75, start="7.1", reached=0, faulty=("n1",))
    once = decide(ending, NEW).counters
    assert decide(replace(ending, faulty=()), once).counters == once
    assert decide(replace(ending, start="7.2"), once).counters.idle == 2


def test_counters_survive_a_file(tmp_path: Path) -> None:
    """A missing or broken file is read as zero counters."""
    file = tmp_path / "a/ends-7.json"
    assert Counters.read(file) == NEW
    counters = TWICE.model_copy(update={"faulty": ("n8", "n9")})
    counters.write(file)
    assert Counters.read(file) == counters
    file.write_text('{"idle": "x", "faulty": [3], "start": 1}')
    assert Counters.read(file) == NEW


def test_each_run_of_a_job_has_its_own_counters(tmp_path: Path) -> None:
    """A user's script may start several runs. A run's later jobs use the first job's counters."""
    runs = ("lstm/slurm-7", "gru/slurm-7", "lstm/slurm-7-12", "")
    files = [counters_file(tmp_path, allocation(), f"/runs/{run}" if run else "") for run in runs]
    assert len({*files}) == len(runs)
    later = allocation(SLURM_JOB_ID="9", HARNESS_FIRST_JOB="7")
    assert counters_file(tmp_path, later, "/runs/lstm/slurm-7") == files[0]


def note(folder: Path, **state: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps(state))


def ends(run: Path | str, runs: Path, shown: str = "", **more: str) -> Ending:
    found = allocation(**more)
    return ending_of(75, signals=(), run=str(run), runs=runs, allocation=found, shown=shown)


def test_progress_of_the_runs_of_a_job(tmp_path: Path) -> None:
    """Progress is the number of steps of all runs; a sweep also counts its finished trials."""
    run = tmp_path / "lstm/slurm-7"
    assert (ends("", tmp_path).reached, ends(run, tmp_path).reached) == (None, 0)
    for name, seed in (("lstm", 1), ("lstm", 2), ("gru", 1)):
        note(tmp_path / f"{name}/slurm-7-seed{seed}", step=10)
    note(tmp_path / "lstm/slurm-77-seed1", step=1000)
    assert ends(run, tmp_path).reached == 30
    note(run, step=500, error="why")
    assert (ends(run, tmp_path).reached, ends(run, tmp_path).why) == (500, "why")
    sweep = tmp_path / "tune/slurm-7"
    note(sweep, finished=3)
    note(sweep / "trials/4/1/seed1", step=40)
    before = ends(sweep, tmp_path).reached or 0
    note(sweep / "trials/4/1/seed1", step=41)
    further = ends(sweep, tmp_path).reached or 0
    (sweep / "trials/4/1/seed1/state.json").unlink()  # the trial ended, and its run was removed
    note(sweep, finished=4)
    assert before < further < (ends(sweep, tmp_path).reached or 0)


def test_facts_about_an_end(tmp_path: Path) -> None:
    """scontrol shows exclusions, requeues and preemptions; a file lists the faulty nodes."""
    (tmp_path / ".submissions").mkdir()
    (tmp_path / ".submissions/node-faults-7").write_text("n1 broken\n\nn2 too\nn1 again\n")
    shown = "JobId=7 Restarts=2 EndTime=2026-01-01T12:00:00 PreemptTime=2026-01-01T12:00:00 "
    variables = {"SLURM_RESTART_COUNT": "2", "SLURM_MEM_PER_NODE": "16384"}
    end = ends("", tmp_path, f"{shown} ExcNodeList=n[5-6] x", **variables)
    assert (end.faulty, end.excluded, end.preempted) == (("n1", "n2"), "n[5-6]", True)
    assert end.asked_gb == pytest.approx(17.18, abs=0.01)
    other = shown.replace("EndTime=2026-01-01T12:00:00", "EndTime=2026-01-01T12:00:02")
    for known, restarts in ((other, "2"), (shown, "1"), ("PreemptTime=None EndTime=None", "0")):
        assert not ends("", tmp_path, known, SLURM_RESTART_COUNT=restarts).preempted
    assert ends("", tmp_path, "ExcNodeList=(null)").excluded == ""
    assert [ends("", tmp_path, f"Restarts={num}").requeued for num in (0, 1)] == [False, True]


JOB = allocation(SLURM_JOB_ID="42")
TASK = allocation(SLURM_JOB_ID="44", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3")


@pytest.mark.parametrize(
    ("start", "words", "command", "run"),
    [
        (None, "train a.toml --set a=1", "harness train a.toml --set a=1", ""),
        (JOB, "train a.toml -x", "harness train a.toml --run-id slurm-42 -x", "a/slurm-42"),
        (JOB, "train a.toml --run-id=u --run-id v", None, "a/v"),
        (JOB, "train a.toml --run-id u --run-id=v", None, "a/v"),
        (
            TASK,
            "train a.toml -x",
            "harness train a.toml --seed 3 --run-id slurm-42_3 -x",
            "a/slurm-42_3",
        ),
        (
            TASK,
            "train a.toml --seed=7",
            "harness train a.toml --run-id slurm-42_3 --seed=7",
            None,
        ),
        (TASK, "tune b.toml", "harness tune b.toml --sweep-id slurm-42", "b/slurm-42"),
        (JOB, "tune --sweep-id u b.toml", "harness tune --sweep-id u b.toml", "b/u"),
        (JOB, "tune --workers 2 --join /runs/s", "harness sweep join --workers 2 /runs/s", "s"),
        (TASK, "tune --join=/runs/s=t", "harness sweep join /runs/s=t", "s=t"),
        (JOB, "tune --retrain s --seeds 1", "harness sweep retrain s --seeds 1", ""),
        (JOB, "compare x*", "harness compare --out /runs/comparison x*", ""),
        (JOB, "compare --out=o x", "harness compare --out=o x", ""),
        (JOB, "compare --runs=/s", "harness compare --out /runs/comparison --runs=/s", ""),
        (JOB, "tensorboard --hours 2", "harness tensorboard --hours 2", ""),
        (JOB, "doctor --full", "python -P -m tests.gpu --full", ""),
    ],
)
def test_plan_of_a_start(
    start: SlurmEnvironment | None, words: str, command: str | None, run: str | None
) -> None:
    """A run is named after its Slurm job, array tasks share a sweep, and users may choose ids."""
    kind, *rest = words.split()
    seed = "3" if start is TASK else None
    planned = plan(kind, rest, "/runs", start, seed)
    assert command is None or list(planned.words) == command.split()
    assert run is None or planned.run == (f"/runs/{run}" if run else "")


@pytest.mark.parametrize(("kind", "runs"), [("compare", "/runs"), ("tune", "/theirs")])
def test_a_job_that_only_reads_runs_writes_elsewhere(kind: str, runs: str) -> None:
    """The folder of --runs may belong to another user."""
    assert plan(kind, ["jobs/tune.toml", "--runs", "/theirs"], "/runs", JOB, None).runs == runs


def test_seeds_in_an_array_are_refused() -> None:
    """Each task would train all seeds. The message names an option that the user has given."""
    with pytest.raises(InputError, match="--seeds 1-3: can't be combined with --array"):
        plan("train", ["b.toml", "--seeds", "1-3"], "/runs", TASK, "2")


def test_bash_gets_quoted_words(tmp_path: Path) -> None:
    """The run's folder is named after the `name` in the job file."""
    (tmp_path / "a.toml").write_text('name = "b"\n[model.options]\nname = "wide"\n')
    named = plan("train", [f"{tmp_path}/a.toml"], "/my runs", JOB, None)
    assert named.run == "/my runs/b/slurm-42"
    words = ["a b.toml", "--set", "x=it's", "", "two\nlines", "$HOME"]
    shell = plan("train", words, "/my runs", None, None).shell()
    assert shell.endswith("""'x=it'"'"'s' '' 'two\nlines' '$HOME'""")
    assert "export HARNESS_RUNS='/my runs'\n" in shell


def test_a_continued_run_uses_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on several nodes starts a run in a job step, without options that the site refuses.

    A sweep starts its own job steps.
    """
    two = allocation(SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="4")
    words = ("resume", ["run", "f"], "/runs")
    step = [*plan(*words, two, None).step]
    assert step[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert {"--cpus-per-task=4", "--mem=0", "--export=ALL"} < {*step}
    step.remove("--mem=0")
    monkeypatch.setenv("HARNESS_SBATCH_NEVER", "mem")
    assert [*plan(*words, two, None).step] == step
    assert plan(*words, allocation(), None).step == ()
    sweep = plan("resume", ["sweep", "f"], "/runs", two, None)
    assert (sweep.words, sweep.step) == (("harness", "resume", "f"), ())
