"""The supervisor of a batch job: what its script runs, and what becomes of the job then.

The script, `slurm/common.sh`, makes the environment and calls Slurm's programs. What it runs and
does is decided here, inside a container too: `plan` says it at each start, `decide` at each end.
`<runs>/.submissions/ends-<job id>.json` holds all that is counted from start to start.
"""

import itertools
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import Interrupted
from harness.slurm.environment import SlurmEnvironment, given_memory_gb
from harness.slurm.script import submissions
from harness.system.files import atomic_write, make_folder
from harness.system.leased_dir import to_json
from harness.system.lenient_json import number, read_json, read_toml, table, text, whole
from harness.system.processes import memory_peak_gb

SAVED = Interrupted.exit_code
KILLED = 137  # by SIGKILL, which for a job is mostly the kernel's when memory runs out
ENDED_BY_WARNING = (138, 140, 143)  # by USR1, USR2 or TERM, before the harness took them over
RAISE = 1.5
MAX_MEMORY_RETRIES = 2
NUM_OPEN = 64  # trials of a search, the newest, whose steps count
STEPS_OF_A_TRIAL = 10**9  # more than any has
MAX_REQUEUES = 2  # without a step in between: the third start is the last

# ---- What the script runs


@dataclass(frozen=True)
class Plan:
    """What a start of the script runs."""

    words: tuple[str, ...]  # a program of the environment, and its arguments
    run: str = ""  # the folder of the run or sweep, empty if it is not known
    runs: str = ""
    step: tuple[str, ...] = ()  # srun, for one process on each node of the job

    def shell(self) -> str:
        """The same for the script to evaluate."""
        lines = (
            f"export HARNESS_RUNS={shlex.quote(self.runs)}",
            f"RUN={shlex.quote(self.run)}",
            f"STEP=({shlex.join(self.step)})",
            f"inside_venv {shlex.join(self.words)}",
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Start:
    """What is known when a script starts."""

    home: Path  # the project
    runs: str
    allocation: SlurmEnvironment | None = None  # of the batch job; None for a local run
    is_called: bool = False  # by a user's own job script, which may call several
    seeds: tuple[str, ...] = ()  # of an array's tasks from 1, where they are no indices
    task: str | None = None  # of an array
    never: tuple[str, ...] = ()  # options that the site refuses

    @property
    def step(self) -> tuple[str, ...]:
        """The command that starts one process on each of several nodes; empty on one."""
        if not self.allocation or self.allocation.num_nodes == 1:
            return ()
        num, cpus = self.allocation.num_nodes, self.allocation.cpus_per_task
        return (
            *("srun", f"--nodes={num}", f"--ntasks={num}", "--ntasks-per-node=1"),
            *([] if "mem" in self.never else ["--mem=0"]),
            # It does not inherit the CPUs from sbatch nor, at some sites, the environment.
            *("--export=ALL", "--kill-on-bad-exit=0", "--wait=60"),
            *([f"--cpus-per-task={cpus}"] if cpus else []),
        )

    def run_id(self, words: Sequence[str], *, of_array: bool = False) -> str | None:
        """The name of the job's run, by which a requeued job finds it; None outside of a job."""
        if not self.allocation:
            return None
        job = self.allocation.own_id
        job = job.partition("_")[0] if of_array else job
        other = f"-{zlib.crc32(chr(0).join(words).encode('utf-8', 'surrogateescape'))}"
        return f"slurm-{job}{other if self.is_called and words else ''}"


def plan(kind: str, words: Sequence[str], start: Start) -> Plan:
    """What a script of `slurm/` runs.

    Args:
        kind: train JOB, tune, resume run|sweep FOLDER, compare, tensorboard or doctor.
        words: the user's other arguments.
    """
    runs = value_of("--runs", words) or start.runs
    if kind == "train":
        return _training(words, start, runs)
    if kind == "tune":
        return _search(words, start, runs)
    if kind == "resume":
        of, folder, *rest = words
        # A sweep starts its workers' steps itself.
        return Plan(
            ("harness", "resume", folder, *rest), folder, runs, start.step if of == "run" else ()
        )
    if kind == "compare":
        out = () if has_option("--out", words) else ("--out", f"{runs}/comparison")
        return Plan(("harness", "compare", *out, *words), runs=runs)
    if kind == "doctor":  # -P: the current folder may have tests of its own
        return Plan(("python", "-P", "-m", "tests.gpu", *words), runs=runs)
    return Plan(("harness", kind, *words), runs=runs)


def _training(words: Sequence[str], start: Start, runs: str) -> Plan:
    job, *rest = words
    job = str(start.home / job)
    options = []
    if start.task is not None and not has_option("--seed", rest):
        seed = start.seeds[int(start.task) - 1] if start.seeds else start.task
        options += ["--seed", seed]
    if (run_id := value_of("--run-id", rest)) is None and (run_id := start.run_id(rest)):
        options += ["--run-id", run_id]
    return Plan(
        ("harness", "train", job, *options, *rest),
        run=f"{runs}/{_name_of(job)}/{run_id}" if run_id else "",
        runs=runs,
        step=() if has_option("--seeds", rest) else start.step,  # several, each on one node
    )


def _search(words: Sequence[str], start: Start, runs: str) -> Plan:
    """All tasks of an array work at one search; `--join SWEEP` is `harness sweep join SWEEP`."""
    command, arguments = ["tune"], []
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("--join", "--retrain", "--show", "--best"):
            command = ["sweep", option.removeprefix("--")]
            arguments += [value] if equals else []
        else:
            arguments.append(word)
    run = ""
    if command == ["tune"]:
        jobs = [word for word in words if word.endswith(".toml")] or [*words[:1], ""]
        if (sweep_id := value_of("--sweep-id", words)) is None:
            sweep_id = start.run_id(words, of_array=True)
            arguments += ["--sweep-id", sweep_id] if sweep_id else []
        run = f"{runs}/{_name_of(jobs[0])}/{sweep_id}" if sweep_id else ""
    return Plan(("harness", *command, *arguments), run, runs)


def _name_of(job: str) -> str:
    """The name of a job file, by which the folder of its runs goes."""
    return text(read_toml(Path(job)).get("name")) or Path(job).name.removesuffix(".toml")


def has_option(option: str, words: Sequence[str]) -> bool:
    """Whether an option is among the arguments, as `--name value` or `--name=value`."""
    return any(word.partition("=")[0] == option for word in words)


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option; of several, the last; None if it is not there."""
    value = None
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, given = word.partition("=")
        if name == option:
            value = given if equals else after
    return value


# ---- What becomes of the job


@dataclass(frozen=True)
class Counters:
    """All that is counted from start to start of one job, and of those that go on with its run."""

    start: str = ""  # the last one that was counted
    reached: int = 0  # the most steps, or finished trials, of its runs
    idle: int = 0  # starts one after another that ended without a step more
    faulty: tuple[str, ...] = ()  # the nodes that were at fault in these
    memory_retries: int = 0

    @classmethod
    def read(cls, path: Path) -> "Counters":
        """Those of a file; of one that is missing or broken none."""
        record = read_json(path)
        listed = record.get("faulty")
        return cls(
            start=text(record.get("start")) or "",
            reached=whole(record.get("reached")) or 0,
            idle=whole(record.get("idle")) or 0,
            faulty=tuple(filter(text, listed)) if isinstance(listed, list) else (),
            memory_retries=whole(record.get("memory_retries")) or 0,
        )

    def write(self, path: Path) -> None:
        """Replace the file."""
        make_folder(path.parent)
        atomic_write(path, to_json({"format": 1, **asdict(self)}))


@dataclass(frozen=True)
class Ending:
    """How a start of a job ended, and what is known of it."""

    code: int  # the exit code of its harness
    start: str = "1.0"  # differs between the starts of a job
    signals: tuple[str, ...] = ()  # that the script received, such as USR2
    preempted: bool = False  # cancelled for another job, and not back in the queue yet
    requeued: bool = False  # by Slurm itself, such as by `scontrol requeue`
    num_nodes: int = 1
    reached: int | None = None  # steps, or finished trials, of its runs; None if not known
    faulty: tuple[str, ...] = ()  # nodes that reported a fault in this start
    excluded: str = ""  # nodes that the job must not have, as Slurm lists them
    asked_gb: float | None = None  # memory of a node; None means all of it
    used_gb: float | None = None
    retries_memory: bool = False  # the user wants more to be asked for
    max_requeues: int = MAX_REQUEUES  # without a step in between
    why: str = ""  # what the run says of its end

    @property
    def was_starting(self) -> bool:
        """Whether a signal ended it before there was anything to save."""
        return bool(self.signals) and self.code in ENDED_BY_WARNING

    @property
    def was_cancelled(self) -> bool:
        """Whether a user ended the job."""
        return not self.preempted and bool({"TERM", "INT"} & {*self.signals})

    @property
    def can_go_on(self) -> bool:
        """Whether it saved, or those on other nodes than the one that died lived to save."""
        saved = self.code == SAVED or self.was_starting
        return saved or (self.code > 128 and self.num_nodes > 1)


@dataclass(frozen=True)
class Decision:
    """What becomes of the job, and why."""

    requeue: bool
    reason: str
    counters: Counters
    exclude: tuple[str, ...] = ()  # nodes, from now on
    memory_mb: int | None = None  # of each node, from now on
    code: int | None = None  # of the job, in place of its harness's

    def line(self) -> str:
        """The decision as the script obeys it: `requeue`, with changes of the job, or `stop`."""
        if not self.requeue:
            return f"stop {'' if self.code is None else self.code}".strip()
        nodes = f"ExcNodeList={','.join(self.exclude)}" if self.exclude else ""
        memory = f"MinMemoryNode={self.memory_mb}" if self.memory_mb else ""
        return " ".join(filter(None, ("requeue", nodes, memory)))


def decide(ending: Ending, before: Counters) -> Decision:
    """What becomes of a job: the only place where that is decided."""
    counters = _count(ending, before)

    def stop(reason: str, code: int | None = None) -> Decision:
        return Decision(requeue=False, reason=reason, counters=counters, code=code)

    if ending.requeued:
        return stop("interrupted; Slurm has put the job back into the queue, where it goes on")
    if ending.was_cancelled:
        return stop("interrupted; submit or run the job again to resume it")
    if ending.code == KILLED and ending.num_nodes == 1:
        return _out_of_memory(ending, counters)
    if not ending.can_go_on:
        return stop(f"harness ended with exit code {ending.code}; not requeued, see above why")
    if counters.idle > ending.max_requeues:
        why = ending.why or "see above"
        if len(counters.faulty) > 1:
            why = f"{' '.join(counters.faulty)} were at fault one after another"
        told = f"given up: {counters.idle} starts one after another ended without a step, or a "
        told += f"finished trial, more (HARNESS_MAX_REQUEUES is {ending.max_requeues})"
        more = "; give more --time" if ending.signals else ""
        return stop(f"{told}{more}: {why}", 1)
    if not ending.faulty:
        return Decision(requeue=True, reason="", counters=counters)
    told = f"{', '.join(ending.faulty)}: at fault, see above; the job will not run there again; "
    return Decision(
        requeue=True,
        reason=f"{told}tell your site",
        counters=counters,
        exclude=tuple(filter(None, (ending.excluded, *counters.faulty))),
    )


def _count(ending: Ending, before: Counters) -> Counters:
    """Counts each start once, however often it is asked about."""
    reached = before.reached if ending.reached is None else ending.reached
    is_further = reached > before.reached
    if ending.reached is None:  # such as several runs of a user's own script
        is_further = not ending.was_starting and not ending.faulty
    again = ending.start == before.start
    known = () if is_further else before.faulty
    return replace(
        before,
        start=ending.start,
        reached=max(reached, before.reached),  # a failure at the start reaches none
        idle=0 if is_further else before.idle + (not again),
        faulty=tuple(dict.fromkeys((*known, *ending.faulty))),
    )


def _out_of_memory(ending: Ending, counters: Counters) -> Decision:
    """Tell what was asked and used; ask for half as much again if the user wants that."""
    asked = f"{ending.asked_gb:.1f} GB" if ending.asked_gb else "all memory of the node"
    told = f"killed, most likely out of memory: the job had asked for {asked}"
    told += f", {ending.used_gb:.1f} GB used when last seen" if ending.used_gb else ""
    told += "; exit code 137"
    if not ending.asked_gb:
        return Decision(requeue=False, reason=told, counters=counters)
    more_mb = round(ending.asked_gb * 1e9 / 2**20 * RAISE)  # as --mem takes it with an M
    if ending.retries_memory and counters.memory_retries < MAX_MEMORY_RETRIES:
        return Decision(
            requeue=True,
            reason=f"{told}; asks for {more_mb} MB from now on",
            counters=replace(counters, memory_retries=counters.memory_retries + 1),
            memory_mb=more_mb,
        )
    told += f"; give --mem={more_mb}M or more"
    return Decision(requeue=False, reason=told, counters=counters)


# ---- What is on disk, and what Slurm says


def counters_file(runs: Path, allocation: SlurmEnvironment) -> Path:
    """The counters of a job, and of those that go on with its run."""
    return submissions(runs) / f"ends-{allocation.first_job_id}.json"


def faults_file(runs: Path, allocation: SlurmEnvironment) -> Path:
    """Where the processes of a start report their nodes: a line for each, its name and why."""
    return submissions(runs) / f"node-faults-{allocation.own_id}"


def ending_of(
    code: int,
    *,
    signals: Sequence[str],
    run: str,
    runs: Path,
    allocation: SlurmEnvironment,
    shown: str,
) -> Ending:
    """What is known of the end of a start.

    Args:
        code: the exit code of its harness.
        run: the folder of its run or sweep, empty if that is not known.
        shown: what `scontrol --oneliner show job` says of the job, empty if nothing.
    """
    states, known = _states(run), shown_values(shown)
    state = states[0] if len(states) == 1 else {}
    used_gb = memory_peak_gb() or number(table(state, "device").get("memory_gb"))
    faults = faults_file(runs, allocation)
    lines = faults.read_text(errors="replace").splitlines() if faults.is_file() else []
    return Ending(
        code,
        f"{allocation.own_id}.{allocation.restarts}",
        tuple(signals),
        preempted=is_preempted(known, allocation.restarts),
        requeued=int(known.get("Restarts") or 0) > allocation.restarts,
        num_nodes=allocation.num_nodes,
        reached=_reached(states) if run else None,
        faulty=tuple(dict.fromkeys(line.split()[0] for line in lines if line.strip())),
        excluded=known.get("ExcNodeList", "").replace("(null)", ""),
        asked_gb=given_memory_gb(allocation),
        used_gb=used_gb,
        retries_memory=allocation.retries_memory,
        max_requeues=MAX_REQUEUES if (num := allocation.max_requeues) is None else num,
        why=text(state.get("error")) or text(state.get("signal")) or "",
    )


def _states(run: str) -> list[dict[str, Any]]:
    """The heartbeats of a run or sweep and its trials, or of the runs of a pack."""
    if not run:
        return []
    folder = Path(run)
    if folder.is_dir():
        trials = [each for each in folder.glob("trials/*") if each.name.isdigit()]
        newest = sorted(trials, key=lambda each: int(each.name))[-NUM_OPEN:]
        others = [path for trial in newest for path in trial.glob("*/*/state.json")]
    else:
        others = sorted(folder.parent.parent.glob(f"*/{folder.name}-seed*/state.json"))
    return [state for path in (folder / "state.json", *others) if (state := read_json(path))]


def _reached(states: Sequence[Mapping[str, Any]]) -> int:
    """Finished trials first, since the runs of a trial may be removed then; then steps."""
    finished, steps = (
        sum(whole(state.get(name)) or 0 for state in states) for name in ("finished", "step")
    )
    return finished * STEPS_OF_A_TRIAL + steps


def shown_values(shown: str) -> dict[str, str]:
    """What Slurm shows of a job, by its names; of a value with spaces the first word."""
    return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", shown))


def is_preempted(known: Mapping[str, str], restarts: int) -> bool:
    """Whether Slurm has just cancelled the job for another one, and does not requeue it.

    This is `PreemptMode=CANCEL`. If a user cancels it in its grace time, the two times differ.
    """
    time = known.get("PreemptTime", "None")
    is_own = known.get("EndTime") == time and known.get("Restarts") == str(restarts)
    return re.fullmatch(r"[-0-9T:]+", time) is not None and is_own
