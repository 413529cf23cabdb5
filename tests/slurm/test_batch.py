"""What becomes of a job after each start, as a table: how it ended, what is known, what happens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.slurm.batch import Counters, Ending, Start, decide, ending_of, plan
from harness.slurm.environment import SlurmEnvironment

WARNED = ("USR2",)
TERMED = ("TERM",)
NEW = Counters()
TWICE = Counters(start="1.1", reached=10, idle=2)  # two starts without a step beyond the tenth
AT_FAULT = replace(TWICE, faulty=("n8", "n9"))
OUT_OF_MEMORY = Ending(137, reached=20, asked_gb=17.2, used_gb=17.1)

# How it ended, what was counted before, the line that the script obeys, the end of what is said.
TABLE = {
    "time limit": (Ending(75, signals=WARNED, reached=20), NEW, "requeue", ""),
    "time limit, further again": (Ending(75, signals=WARNED, reached=11), TWICE, "requeue", ""),
    "time limit, third start without a step": (
        Ending(75, signals=WARNED, reached=10),
        TWICE,
        "stop 1",
        "HARNESS_MAX_REQUEUES is 2); give more --time: see above",
    ),
    "the same where the site allows more": (
        Ending(75, signals=WARNED, reached=10, max_requeues=20),
        TWICE,
        "requeue",
        "",
    ),
    "time limit while it starts": (Ending(140, signals=WARNED, reached=0), NEW, "requeue", ""),
    "the same, and its runs are not known": (Ending(140, signals=WARNED), TWICE, "stop 1", "above"),
    "its runs are not known": (Ending(75, signals=WARNED), TWICE, "requeue", ""),
    "preempted by a requeue": (Ending(75, signals=(*WARNED,), reached=20), NEW, "requeue", ""),
    "preempted by a cancel": (
        Ending(75, signals=TERMED, preempted=True, reached=20),
        NEW,
        "requeue",
        "",
    ),
    "cancelled": (Ending(75, signals=TERMED, reached=20), NEW, "stop", "again to resume it"),
    "cancelled after its warning": (
        Ending(75, signals=("USR2", "TERM")),
        NEW,
        "stop",
        "again to resume it",
    ),
    "put back by Slurm itself": (
        Ending(75, signals=TERMED, requeued=True, reached=20),
        NEW,
        "stop",
        "into the queue, where it goes on",
    ),
    "Ctrl-C": (Ending(75, signals=("INT",)), NEW, "stop", "again to resume it"),
    "a node at fault": (
        Ending(75, faulty=("n1",), reached=0),
        NEW,
        "requeue ExcNodeList=n1",
        "tell your site",
    ),
    "another one": (
        Ending(75, faulty=("n2",), reached=0, excluded="n[5-6]"),
        Counters(idle=1, faulty=("n1",)),
        "requeue ExcNodeList=n[5-6],n1,n2",
        "tell your site",
    ),
    "the third in a row": (
        Ending(75, faulty=("n1",), reached=0),
        AT_FAULT,
        "stop 1",
        "n8 n9 n1 were at fault one after another",
    ),
    "the third, but not in a row": (
        Ending(75, faulty=("n1",), reached=11),
        AT_FAULT,
        "requeue ExcNodeList=n1",
        "tell your site",
    ),
    "a worker that hangs": (Ending(75, reached=20), NEW, "requeue", ""),
    "a worker that hangs for the third time": (
        Ending(75, reached=10, why="a step that did not end"),
        TWICE,
        "stop 1",
        "a step that did not end",
    ),
    "a process on one of two nodes is killed": (
        Ending(137, num_nodes=2, reached=20),
        NEW,
        "requeue",
        "",
    ),
    "a process on one of two nodes aborts": (
        Ending(134, num_nodes=2, reached=20),
        NEW,
        "requeue",
        "",
    ),
    "the one process aborts": (Ending(134, reached=20), NEW, "stop", "see above why"),
    "no program": (
        Ending(127, reached=0),
        NEW,
        "stop",
        "exit code 127; not requeued, see above why",
    ),
    "out of memory": (
        OUT_OF_MEMORY,
        NEW,
        "stop",
        "asked for 17.2 GB, 17.1 GB used when last seen; exit code 137; give --mem=24605M or more",
    ),
    "out of memory, more is wanted": (
        replace(OUT_OF_MEMORY, reached=0, retries_memory=True),
        replace(TWICE, memory_retries=1),
        "requeue MinMemoryNode=24605",
        "asks for 24605 MB from now on",
    ),
    "out of memory, more was given twice": (
        replace(OUT_OF_MEMORY, retries_memory=True),
        Counters(memory_retries=2),
        "stop",
        "or more",
    ),
    "out of all memory of the node": (
        Ending(137, retries_memory=True),
        NEW,
        "stop",
        "the job had asked for all memory of the node; exit code 137",
    ),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_what_becomes_of_a_job(case: tuple[Ending, Counters, str, str]) -> None:
    """The line for the script, and a reason where somebody must do something."""
    ending, before, line, said = case
    decision = decide(replace(ending, start="1.2"), before)
    assert decision.line() == line
    assert decision.reason.endswith(said)
    assert bool(decision.reason) == bool(said)


def test_a_start_is_counted_once() -> None:
    """However often it is asked about, as when a signal comes meanwhile."""
    ending = Ending(75, start="7.1", reached=0, faulty=("n1",))
    once = decide(ending, NEW).counters
    assert decide(replace(ending, faulty=()), once).counters == once
    assert decide(replace(ending, start="7.2"), once).counters.idle == 2


def test_counters_survive_a_file(tmp_path: Path) -> None:
    """A missing or broken one counts from nothing."""
    file = tmp_path / "a/ends-7.json"
    assert Counters.read(file) == NEW
    counters = replace(AT_FAULT, memory_retries=1)
    counters.write(file)
    assert Counters.read(file) == counters
    file.write_text('{"idle": "x", "faulty": [3], "start": 1}')
    assert Counters.read(file) == NEW


def allocation(**more: str) -> SlurmEnvironment:
    """The job 7 with 16 GB."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "16384", **more}
    found = SlurmEnvironment.from_environment(variables)
    assert found is not None
    return found


def note(folder: Path, **state: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps(state))


def ends(run: Path | str, runs: Path, shown: str = "", **more: str) -> Ending:
    found = allocation(**more)
    return ending_of(75, signals=(), run=str(run), runs=runs, allocation=found, shown=shown)


def test_how_far_the_runs_of_a_job_are(tmp_path: Path) -> None:
    """Steps of a run, of all runs of a pack; of a sweep its trials, and the steps of these."""
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
    (sweep / "trials/4/1/seed1/state.json").unlink()  # a trial that ended, and was removed
    note(sweep, finished=4)
    assert before < further < (ends(sweep, tmp_path).reached or 0)


def test_what_is_known_of_an_end(tmp_path: Path) -> None:
    """Memory, faults and what Slurm shows of the job."""
    (tmp_path / ".submissions").mkdir()
    (tmp_path / ".submissions/node-faults-7").write_text("n1 broken\n\nn2 too\nn1 again\n")
    shown = "JobId=7 Restarts=2 EndTime=2026-01-01T12:00:00 PreemptTime=2026-01-01T12:00:00 "
    end = ends("", tmp_path, f"{shown} ExcNodeList=n[5-6] x", SLURM_RESTART_COUNT="2")
    assert (end.faulty, end.excluded, end.preempted) == (("n1", "n2"), "n[5-6]", True)
    assert end.asked_gb == pytest.approx(17.18, abs=0.01)
    other = shown.replace("EndTime=2026-01-01T12:00:00", "EndTime=2026-01-01T12:00:02")
    for known, restarts in (
        (other, "2"),
        (shown, "1"),
        ("PreemptTime=None EndTime=None", "0"),
        ("", "0"),
    ):
        assert not ends("", tmp_path, known, SLURM_RESTART_COUNT=restarts).preempted
    assert ends("", tmp_path, "ExcNodeList=(null)").excluded == ""
    assert [ends("", tmp_path, f"Restarts={num}").requeued for num in (0, 1)] == [False, True]


def test_a_name_in_the_job_file_is_the_folder(tmp_path: Path) -> None:
    """Only one above the first table; a file that is not there has its own name."""
    (tmp_path / "a.toml").write_text('name = "b"\n[model.options]\nname = "wide"\n')
    start = Start(tmp_path, "/runs", allocation())
    assert plan("train", ["a.toml"], start).run == "/runs/b/slurm-7"
    assert plan("train", ["none.toml"], start).run == "/runs/none/slurm-7"


def test_words_stay_what_they_are_in_the_shell(tmp_path: Path) -> None:
    """Spaces, quotes, new lines and nothing at all."""
    words = ["a b.toml", "--set", "x=it's", "", "two\nlines", "$HOME"]
    shell = plan("train", words, Start(tmp_path, "/my runs")).shell()
    assert shell.endswith("""'x=it'"'"'s' '' 'two\nlines' '$HOME'""")
    assert "export HARNESS_RUNS='/my runs'\n" in shell


def test_all_tasks_of_an_array_work_at_one_search(tmp_path: Path) -> None:
    """They train runs of their own, though."""
    task = allocation(SLURM_JOB_ID="44", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3")
    start = Start(tmp_path, "/runs", task, task="3")
    assert plan("tune", ["t.toml"], start).run == "/runs/t/slurm-42"
    assert plan("train", ["a.toml"], start).run == "/runs/a/slurm-42_3"


def test_a_step_leaves_out_what_the_site_refuses(tmp_path: Path) -> None:
    """Of several nodes; one has none."""
    two = allocation(SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="4")
    step = Start(tmp_path, "/runs", two).step
    assert "--mem=0" in step
    assert Start(tmp_path, "/runs", two, never=("mem",)).step == tuple(
        word for word in step if word != "--mem=0"
    )
    assert Start(tmp_path, "/runs", allocation()).step == ()
