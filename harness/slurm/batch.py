"""The supervisor of a batch job: the command of its script, and whether the job is requeued.

`plan` chooses the command when a job starts, `decide` between requeue and stop when the command has
ended; both also run in the site's container. The script, `slurm/common.sh`, creates the environment
and calls Slurm.
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
KILLED = 137  # by SIGKILL, mostly from the kernel when memory runs out
ENDED_BY_WARNING = (138, 140, 143)  # by USR1, USR2 or TERM, before the harness handles them
MEMORY_FACTOR = 1.5
MAX_MEMORY_RETRIES = 2
NUM_OPEN = 64  # newest trials of a search whose steps count
STEPS_OF_A_TRIAL = 10**9  # more than any trial has
MAX_REQUEUES = 2  # in succession without a new step, so the third start is the last

# ---- The command of a start


@dataclass(frozen=True)
class Plan:
    """The command of a start."""

    words: tuple[str, ...]  # a program of the environment, and its arguments
    run: str = ""  # the folder of the run or sweep, empty if unknown
    runs: str = ""
    step: tuple[str, ...] = ()  # srun with its options, if each node of the job runs a process

    def shell(self) -> str:
        """The lines that the script evaluates."""
        lines = (
            f"export HARNESS_RUNS={shlex.quote(self.runs)}",
            f"RUN={shlex.quote(self.run)}",
            f"STEP=({shlex.join(self.step)})",
            f"inside_venv {shlex.join(self.words)}",
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Start:
    """The circumstances of a start."""

    home: Path  # the project
    runs: str
    allocation: SlurmEnvironment | None = None  # of the batch job; None for a local run
    is_called: bool = False  # by a user's own job script, which may start several runs
    seeds: tuple[str, ...] = ()  # of the array tasks from 1, if seeds exceed the largest index
    task: str | None = None  # index of the array task
    never: tuple[str, ...] = ()  # options that the site refuses

    @property
    def step(self) -> tuple[str, ...]:
        """srun for one process on each of several nodes; empty on one node."""
        if not self.allocation or self.allocation.num_nodes == 1:
            return ()
        num, cpus = self.allocation.num_nodes, self.allocation.cpus_per_task
        return (
            *("srun", f"--nodes={num}", f"--ntasks={num}", "--ntasks-per-node=1"),
            *([] if "mem" in self.never else ["--mem=0"]),
            # srun does not inherit the CPUs from sbatch nor, at some sites, the environment.
            *("--export=ALL", "--kill-on-bad-exit=0", "--wait=60"),
            *([f"--cpus-per-task={cpus}"] if cpus else []),
        )

    def run_id(self, words: Sequence[str], *, of_array: bool = False) -> str | None:
        """The run's id, the same after a requeue; None outside of a batch job."""
        if not self.allocation:
            return None
        job = self.allocation.own_id
        job = job.partition("_")[0] if of_array else job
        checksum = f"-{zlib.crc32(chr(0).join(words).encode('utf-8', 'surrogateescape'))}"
        return f"slurm-{job}{checksum if self.is_called and words else ''}"


def plan(kind: str, words: Sequence[str], start: Start) -> Plan:
    """The command of a script in `slurm/`.

    Args:
        kind: train JOB, tune, resume run|sweep FOLDER, compare, tensorboard or doctor.
        words: the user's arguments.
    """
    runs = value_of("--runs", words) or start.runs
    if kind == "train":
        return _training(words, start, runs)
    if kind == "tune":
        return _search(words, start, runs)
    if kind == "resume":
        of, folder, *rest = words
        # A sweep starts the steps of its workers itself.
        return Plan(
            ("harness", "resume", folder, *rest), folder, runs, start.step if of == "run" else ()
        )
    if kind == "compare":
        out = ("--out", f"{runs}/comparison") if value_of("--out", words) is None else ()
        return Plan(("harness", "compare", *out, *words), runs=runs)
    if kind == "doctor":  # -P: the current folder may contain a package `tests`
        return Plan(("python", "-P", "-m", "tests.gpu", *words), runs=runs)
    return Plan(("harness", kind, *words), runs=runs)


def _training(words: Sequence[str], start: Start, runs: str) -> Plan:
    job, *rest = words
    job = str(start.home / job)
    options = []
    if start.task is not None and value_of("--seed", rest) is None:
        seed = start.seeds[int(start.task) - 1] if start.seeds else start.task
        options += ["--seed", seed]
    if (run_id := value_of("--run-id", rest)) is None and (run_id := start.run_id(rest)):
        options += ["--run-id", run_id]
    return Plan(
        ("harness", "train", job, *options, *rest),
        run=f"{runs}/{_name_of(job)}/{run_id}" if run_id else "",
        runs=runs,
        step=start.step if value_of("--seeds", rest) is None else (),  # each seed uses one node
    )


def _search(words: Sequence[str], start: Start, runs: str) -> Plan:
    """All tasks of an array share a search; `--join SWEEP` is `harness sweep join SWEEP`."""
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
    """The name of a job file, which is the folder of its runs."""
    return text(read_toml(Path(job)).get("name")) or Path(job).name.removesuffix(".toml")


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value of `--name value` or `--name=value`; None without this option."""
    value = None
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, joined = word.partition("=")
        if name == option:
            value = joined if equals else after
    return value


# ---- The end of a start


@dataclass(frozen=True)
class Counters:
    """Counts over all starts of a job and of its successors."""

    start: str = ""  # the last counted start
    reached: int = 0  # the most steps, or finished trials, of its runs
    idle: int = 0  # starts in succession without a new step
    faulty: tuple[str, ...] = ()  # nodes with a fault in these starts
    memory_retries: int = 0

    @classmethod
    def read(cls, path: Path) -> "Counters":
        """Read a file; a missing or broken file counts as empty."""
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
    """The end of a start."""

    code: int  # exit code of the harness
    start: str = "1.0"  # differs between the starts of a job
    signals: tuple[str, ...] = ()  # received by the script, such as USR2
    preempted: bool = False  # Slurm has cancelled the job for another one and does not requeue it
    requeued: bool = False  # by Slurm, such as after `scontrol requeue`
    num_nodes: int = 1
    reached: int | None = None  # steps, or finished trials, of its runs; None if unknown
    faulty: tuple[str, ...] = ()  # nodes that reported a fault in this start
    excluded: str = ""  # nodes that the job excludes already, as Slurm lists them
    asked_gb: float | None = None  # memory per node; None for the whole node
    used_gb: float | None = None
    retries_memory: bool = False  # --retry-memory
    max_requeues: int = MAX_REQUEUES
    why: str = ""  # the reason in the run's heartbeat

    @property
    def was_starting(self) -> bool:
        """Whether a signal ended the harness before there was anything to save."""
        return bool(self.signals) and self.code in ENDED_BY_WARNING

    @property
    def was_cancelled(self) -> bool:
        """Whether a user ended the job."""
        return not self.preempted and bool({"TERM", "INT"} & {*self.signals})

    @property
    def can_go_on(self) -> bool:
        """Whether the run saved, also on the other nodes after one process died."""
        saved = self.code == SAVED or self.was_starting
        return saved or (self.code > 128 and self.num_nodes > 1)


@dataclass(frozen=True)
class Decision:
    """Requeue or stop, with the reason."""

    requeue: bool
    reason: str
    counters: Counters
    exclude: tuple[str, ...] = ()  # nodes
    memory_mb: int | None = None  # new request per node
    code: int | None = None  # exit code of the job instead of the harness's

    def line(self) -> str:
        """The line for the script: `requeue` with changes of the job, or `stop` with a code."""
        if not self.requeue:
            return f"stop {'' if self.code is None else self.code}".strip()
        nodes = f"ExcNodeList={','.join(self.exclude)}" if self.exclude else ""
        memory = f"MinMemoryNode={self.memory_mb}" if self.memory_mb else ""
        return " ".join(filter(None, ("requeue", nodes, memory)))


def decide(ending: Ending, before: Counters) -> Decision:
    """Decide whether a job is requeued; no other code decides this."""
    counters = _count(ending, before)

    def stop(reason: str, code: int | None = None) -> Decision:
        return Decision(requeue=False, reason=reason, counters=counters, code=code)

    if ending.requeued:
        return stop("interrupted; Slurm has put the job back into the queue")
    if ending.was_cancelled:
        return stop("interrupted; submit or run the job again to resume it")
    if ending.code == KILLED and ending.num_nodes == 1:
        return _out_of_memory(ending, counters)
    if not ending.can_go_on:
        return stop(
            f"harness ended with exit code {ending.code} for the reason above; not requeued"
        )
    if counters.idle > ending.max_requeues:
        why = ending.why or "see above"
        if len(counters.faulty) > 1:
            why = f"nodes {', '.join(counters.faulty)} were faulty"
        return stop(
            f"gave up after {counters.idle} starts in succession without a new step or finished "
            f"trial (HARNESS_MAX_REQUEUES is {ending.max_requeues})"
            f"{'; give more --time' if ending.signals else ''}: {why}",
            1,
        )
    if not ending.faulty:
        return Decision(requeue=True, reason="", counters=counters)
    return Decision(
        requeue=True,
        reason=f"{', '.join(ending.faulty)}: faulty, see above; the job avoids this node from now "
        "on; report it to your site",
        counters=counters,
        exclude=tuple(filter(None, (ending.excluded, *counters.faulty))),
    )


def _count(ending: Ending, before: Counters) -> Counters:
    """Count a start once, even if several signals ask about its end."""
    reached = before.reached if ending.reached is None else ending.reached
    is_further = reached > before.reached
    if ending.reached is None:  # as for several runs of a user's own script
        is_further = not ending.was_starting and not ending.faulty
    again = ending.start == before.start
    known = () if is_further else before.faulty
    return replace(
        before,
        start=ending.start,
        reached=max(reached, before.reached),  # a start that fails early has none
        idle=0 if is_further else before.idle + (not again),
        faulty=tuple(dict.fromkeys((*known, *ending.faulty))),
    )


def _out_of_memory(ending: Ending, counters: Counters) -> Decision:
    """State requested and used memory; request more if the user wants that."""
    asked = f"{ending.asked_gb:.1f} GB" if ending.asked_gb else "all memory of the node"
    used = f" and last used {ending.used_gb:.1f} GB" if ending.used_gb else ""
    reason = f"killed, most likely out of memory: the job requested {asked}{used}; exit code 137"
    if not ending.asked_gb:
        return Decision(requeue=False, reason=reason, counters=counters)
    more_mb = round(ending.asked_gb * 1e9 / 2**20 * MEMORY_FACTOR)  # --mem counts in MiB
    if ending.retries_memory and counters.memory_retries < MAX_MEMORY_RETRIES:
        return Decision(
            requeue=True,
            reason=f"{reason}; requests {more_mb} MB from now on",
            counters=replace(counters, memory_retries=counters.memory_retries + 1),
            memory_mb=more_mb,
        )
    reason += f"; give --mem={more_mb}M or more"
    return Decision(requeue=False, reason=reason, counters=counters)


# ---- Files of the job, and Slurm's answers


def counters_file(runs: Path, allocation: SlurmEnvironment) -> Path:
    """The counters of a job and its successors."""
    return submissions(runs) / f"ends-{allocation.first_job_id}.json"


def faults_file(runs: Path, allocation: SlurmEnvironment) -> Path:
    """The reports of a start, a line with node and reason per faulty node."""
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
    """Collect the facts about the end of a start.

    Args:
        code: exit code of the harness.
        run: the folder of the run or sweep, empty if unknown.
        shown: output of `scontrol --oneliner show job`, empty without an answer.
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
    """The progress: a finished trial outweighs all steps, because its runs may be removed."""
    finished, steps = (
        sum(whole(state.get(name)) or 0 for state in states) for name in ("finished", "step")
    )
    return finished * STEPS_OF_A_TRIAL + steps


def shown_values(shown: str) -> dict[str, str]:
    """The fields of `scontrol show job`, values with spaces up to their first word."""
    return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", shown))


def is_preempted(known: Mapping[str, str], restarts: int) -> bool:
    """Whether `PreemptMode=CANCEL` ends the job for another one.

    If its user cancels the job in its grace time, PreemptTime and EndTime differ.
    """
    time = known.get("PreemptTime", "None")
    is_own = known.get("EndTime") == time and known.get("Restarts") == str(restarts)
    return re.fullmatch(r"[-0-9T:]+", time) is not None and is_own
