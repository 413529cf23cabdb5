"""Supervise a batch job: choose its command, and decide whether Slurm requeues it.

A start is one execution of the job script; a requeue leads to the next start. When the job script
begins, `plan` chooses the harness command to run. When the harness command has ended, `decide`
chooses between requeue and stop. If the site sets HARNESS_CONTAINER, `plan` and `decide` run in a
container, but the job script calls Slurm's programs outside of the container.
"""

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.errors import InputError, Interrupted
from harness.slurm.environment import MAX_REQUEUES, SlurmEnvironment, given_memory_gb
from harness.slurm.resources import refused_options
from harness.slurm.script import submissions
from harness.system.console import quoted
from harness.system.files import atomic_write, make_folder
from harness.system.leased_dir import to_json
from harness.system.lenient_json import number, read_json, read_toml, table, text, whole
from harness.system.processes import memory_peak_gb

SAVED = Interrupted.exit_code
KILLED = 137  # exit code after SIGKILL, which the kernel sends when memory runs out
ENDED_BY_WARNING = (138, 140, 143)  # exit codes of a process that USR1, USR2 or TERM ended
MEMORY_FACTOR = 1.5  # a job that ran out of memory is advised to request this multiple
NUM_OPEN = 64  # `_reached` adds up the steps of a sweep's newest NUM_OPEN trials
STEPS_OF_A_TRIAL = 10**9  # larger than the number of steps of any trial

# ---- The command of a start


@dataclass(frozen=True)
class Plan:
    """The command that the job script runs."""

    words: tuple[str, ...]  # a program in the Python environment, and its arguments
    run: str = ""  # the folder of the run or sweep, empty if unknown
    runs: str = ""  # the folder of all runs
    step: tuple[str, ...] = ()  # srun and its options; empty if the command runs on one node

    def shell(self) -> str:
        """Return the plan as lines of bash, which the job script evaluates."""
        lines = (
            f"export HARNESS_RUNS={shlex.quote(self.runs)}",
            f"RUN={shlex.quote(self.run)}",
            f"STEP=({shlex.join(self.step)})",
            f"inside_venv {shlex.join(self.words)}",
        )
        return "\n".join(lines)


def _step(allocation: SlurmEnvironment | None) -> tuple[str, ...]:
    """Return the srun command that starts a process on each node; empty for one node."""
    if not allocation or allocation.num_nodes == 1:
        return ()
    num, cpus = allocation.num_nodes, allocation.cpus_per_task
    return (
        *("srun", f"--nodes={num}", f"--ntasks={num}", "--ntasks-per-node=1"),
        *([] if "mem" in refused_options() else ["--mem=0"]),
        # srun does not inherit --cpus-per-task from sbatch. At some sites, srun does not inherit
        # the environment either.
        *("--export=ALL", "--kill-on-bad-exit=0", "--wait=60"),
        *([f"--cpus-per-task={cpus}"] if cpus else []),
    )


def plan(
    kind: str,
    words: Sequence[str],
    runs: str,
    allocation: SlurmEnvironment | None,
    seed: str | None,
) -> Plan:
    """Choose the command that a script in `slurm/` runs.

    Args:
        kind: the purpose of the script: train, tune, resume, compare, tensorboard or doctor.
        words: the script's arguments, followed by the user's arguments. For train, the script's
            argument is the path of a job file; for resume, `run FOLDER` or `sweep FOLDER`.
        runs: the folder of all runs. The option --runs of a job that writes runs overrides it;
            other jobs only read that folder, which may belong to another user.
        allocation: the batch job that runs the script; None if the script runs in another way.
        seed: the seed of this array task; None outside of an array.

    Raises:
        InputError: if an array task has the option --seeds.
    """
    if kind in ("train", "tune", "resume"):
        runs = value_of("--runs", words) or runs
    if kind == "train":
        return _training(words, runs, allocation, seed)
    if kind == "tune":
        return _search(words, runs, allocation)
    if kind == "resume":
        of, folder, *rest = words
        # For a sweep, `harness resume` itself calls srun to start the workers.
        step = _step(allocation) if of == "run" else ()
        return Plan(("harness", "resume", folder, *rest), folder, runs, step)
    if kind == "compare":
        out = ("--out", f"{runs}/comparison") if value_of("--out", words) is None else ()
        return Plan(("harness", "compare", *out, *words), runs=runs)
    if kind == "doctor":  # -P: ignore any package `tests` in the current folder
        return Plan(("python", "-P", "-m", "tests.gpu", *words), runs=runs)
    return Plan(("harness", kind, *words), runs=runs)


def _training(
    words: Sequence[str], runs: str, allocation: SlurmEnvironment | None, seed: str | None
) -> Plan:
    job, *rest = words
    options, seeds = [], value_of("--seeds", rest)
    if seed is not None and seeds is not None:
        raise InputError(
            f"--seeds {seeds}: can't be combined with --array, because each task of an array "
            "trains one seed; leave out --seeds or --array"
        )
    if seed is not None and value_of("--seed", rest) is None:
        options += ["--seed", seed]
    if (run_id := value_of("--run-id", rest)) is None and allocation:
        run_id = f"slurm-{allocation.own_id}"
        options += ["--run-id", run_id]
    return Plan(
        ("harness", "train", job, *options, *rest),
        run=f"{runs}/{_name_of(job)}/{run_id}" if run_id else "",
        runs=runs,
        step=_step(allocation) if seeds is None else (),  # with --seeds, each run uses one node
    )


def _search(words: Sequence[str], runs: str, allocation: SlurmEnvironment | None) -> Plan:
    """Return a search's command, which is the same for all tasks of an array.

    The options `--join`, `--retrain`, `--show` and `--best` select a command of `harness sweep`.
    For example, the command for `--join X` is `harness sweep join X`.
    """
    command, arguments = ["tune"], []
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("--join", "--retrain", "--show", "--best"):
            command = ["sweep", option.removeprefix("--")]
            arguments += [value] if equals else []
        else:
            arguments.append(word)
    run = value_of("--join", words) or ""
    if command == ["tune"]:
        jobs = [word for word in words if word.endswith(".toml")] or [*words[:1], ""]
        if (sweep_id := value_of("--sweep-id", words)) is None and allocation:
            sweep_id = f"slurm-{allocation.own_id.partition('_')[0]}"
            arguments += ["--sweep-id", sweep_id]
        run = f"{runs}/{_name_of(jobs[0])}/{sweep_id}" if sweep_id else ""
    return Plan(("harness", *command, *arguments), run, runs)


def _name_of(job: str) -> str:
    """Return a job's name, which is also the name of the folder of its runs."""
    return text(read_toml(Path(job)).get("name")) or Path(job).name.removesuffix(".toml")


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the last value of an option, or None if the option is missing.

    Args:
        option: the name, such as `--seeds`.
        words: arguments with options in the form `--name value` or `--name=value`.
    """
    value = None
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, joined = word.partition("=")
        if name == option:
            value = joined if equals else after
    return value


# ---- The end of a start


class Counters(BaseModel, frozen=True):
    """Facts about all starts of a run, from which `decide` chooses requeue or stop."""

    start: str = ""  # id of the last start that was counted
    reached: int = 0  # the largest progress so far, as `_reached` returns it
    idle: int = 0  # number of successive starts without a new step
    faulty: tuple[str, ...] = ()  # nodes that reported a fault since the last new step

    @classmethod
    def read(cls, path: Path) -> "Counters":
        """Read the counters from a file; return new counters if the file is missing or broken."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError:
            return cls()

    def write(self, path: Path) -> None:
        """Write the counters to a file, which may already exist."""
        make_folder(path.parent)
        atomic_write(path, to_json(self.model_dump()))


@dataclass(frozen=True)
class Ending:
    """How a start ended."""

    code: int  # exit code of the harness
    start: str = "1.0"  # id of the start: the job's id and the number of its restarts
    run: str = ""  # the folder of the run or sweep; empty if unknown
    signals: tuple[str, ...] = ()  # signals that the script received, such as USR2
    preempted: bool = False  # whether Slurm cancelled this job to run another job
    requeued: bool = False  # whether Slurm or a user has already requeued the job
    num_nodes: int = 1
    reached: int | None = None  # the progress, as `_reached` returns it; None if unknown
    faulty: tuple[str, ...] = ()  # nodes that reported a fault in this start
    excluded: str = ""  # nodes that the job already excludes, as Slurm lists them
    asked_gb: float | None = None  # requested GB per node; None for all memory of the node
    used_gb: float | None = None  # largest measured memory use in GB; None if unknown
    max_requeues: int = MAX_REQUEUES
    is_submitted: bool = True  # whether `harness submit` submitted the job
    why: str = ""  # why the run stopped, from its heartbeat; empty if unknown
    runs: str = "runs"  # the folder of all runs
    begun: bool = True  # whether job-begin has chosen the start's command

    @property
    def was_starting(self) -> bool:
        """Whether a signal ended the harness while it was loading, with nothing to save yet."""
        return bool(self.signals) and self.code in ENDED_BY_WARNING

    @property
    def was_cancelled(self) -> bool:
        """Whether a user cancelled the job."""
        return not self.preempted and bool({"TERM", "INT"} & {*self.signals})

    @property
    def can_go_on(self) -> bool:
        """Whether a later start can continue the run.

        A run on several nodes can also continue after the process on one node has died.
        """
        saved = self.code == SAVED or self.was_starting
        return saved or (self.code > 128 and self.num_nodes > 1)


@dataclass(frozen=True)
class Decision:
    """Whether to requeue or stop a job, and why."""

    requeue: bool
    reason: str
    counters: Counters
    exclude: tuple[str, ...] = ()  # nodes that the job avoids from now on
    code: int | None = None  # exit code of a stopped job; None for the harness's exit code

    def line(self) -> str:
        """Return the line for `slurm/requeue.sh`: `requeue [SETTING]` or `stop [EXIT_CODE]`."""
        if not self.requeue:
            return f"stop {'' if self.code is None else self.code}".strip()
        return f"requeue ExcNodeList={','.join(self.exclude)}" if self.exclude else "requeue"


def decide(ending: Ending, before: Counters) -> Decision:
    """Decide whether to requeue a job.

    If Python can't start, `slurm/requeue.sh` decides in bash whether to requeue the job.
    """
    counters = _count(ending, before)

    def stop(reason: str, code: int | None = None) -> Decision:
        return Decision(requeue=False, reason=reason, counters=counters, code=code)

    if ending.requeued:
        return stop("interrupted; Slurm has put the job back into the queue")
    if ending.was_cancelled:
        job, _, restarts = ending.start.rpartition(".")
        if restarts != "0" and not ending.begun:  # an earlier start may have begun a run
            named = f"{job} --runs {quoted(Path(ending.runs).absolute())}"
            return stop(f"interrupted; continue with: harness submit --resume {named}")
        has_run = ending.run and Path(ending.run).is_dir()
        if not (ending.reached or has_run):
            return stop("interrupted; submit the job again")
        # In a job with several seeds, the folder `ending.run` does not exist: each run's folder has
        # the seed in its name too.
        runs = Path(ending.run).absolute().parent.parent  # the user's default may be another one
        named = quoted(ending.run) if has_run else f"{job} --runs {quoted(runs)}"
        again = f"harness submit --resume {named}"
        if not (has_run or ending.is_submitted):  # no record lists the seeds that have not begun
            again = f"the same command with --run-id {Path(ending.run).name}"
        return stop(f"interrupted; continue with: {again}")
    if ending.code == KILLED and ending.num_nodes == 1:
        return stop(_out_of_memory(ending))
    if not ending.can_go_on:
        return stop(
            f"harness ended with exit code {ending.code} for the reason above; the job is not "
            "requeued"
        )
    if counters.idle > ending.max_requeues:
        why = ending.why or "see above"
        if len(counters.faulty) > 1:
            why = f"nodes {', '.join(counters.faulty)} were faulty"
        return stop(
            f"gave up after {counters.idle} starts in succession without a new step or finished "
            f"trial (HARNESS_MAX_REQUEUES is {ending.max_requeues}): {why}"
            f"{'; give more --time' if ending.signals and not ending.preempted else ''}",
            1,
        )
    if not ending.faulty:
        return Decision(requeue=True, reason="", counters=counters)
    return Decision(
        requeue=True,
        reason=f"{', '.join(ending.faulty)}: faulty, see above; the job avoids faulty nodes from "
        "now on; report the fault to your site",
        counters=counters,
        exclude=tuple(filter(None, (ending.excluded, *counters.faulty))),
    )


def _count(ending: Ending, before: Counters) -> Counters:
    """Return the counters after a start of the job; a start is counted only once."""
    reached = before.reached if ending.reached is None else ending.reached
    is_further = reached > before.reached
    if ending.reached is None:
        # The progress is unknown, for example in a job of `tune.sh --retrain`. Assume a new step if
        # a signal ended the harness after it had loaded. Without a signal it may have hung.
        is_further = bool(ending.signals) and not ending.was_starting and not ending.faulty
    again = ending.start == before.start
    known = () if is_further else before.faulty
    return Counters(
        start=ending.start,
        reached=max(reached, before.reached),  # a start that fails early may report less progress
        idle=0 if is_further else before.idle + (not again),
        faulty=tuple(dict.fromkeys((*known, *ending.faulty))),
    )


def _out_of_memory(ending: Ending) -> str:
    """Describe a job that was killed for lack of memory, and say how much memory to request."""
    asked = f"{ending.asked_gb:.1f} GB" if ending.asked_gb else "all memory of the node"
    # Ignore a peak far above the job's limit: if Slurm made no cgroup for the job, the value is the
    # peak of all jobs on the node. The peak of one job may be a little above the job's limit.
    is_own = 0 < (ending.used_gb or 0) <= 1.1 * (ending.asked_gb or math.inf)
    used = f" and used up to {ending.used_gb:.1f} GB" if is_own else ""
    reason = f"killed, most likely out of memory: the job requested {asked}{used}; exit code 137"
    if not ending.asked_gb:
        return reason
    more_mb = round(ending.asked_gb * 1e9 / 2**20 * MEMORY_FACTOR)  # --mem counts in MiB
    return f"{reason}; give --mem={more_mb}M or more"


# ---- The job's files, and Slurm's answers


def counters_file(runs: Path, allocation: SlurmEnvironment, run: str) -> Path:
    """Return the path of a run's counters, which all jobs that continue the run share."""
    named = "-".join(("ends", allocation.first_job_id, *Path(run).parts[-2:]))
    return submissions(runs) / f"{named}.json"


def faults_file(runs: Path, allocation: SlurmEnvironment) -> Path:
    """Return the path of a job's file of faulty nodes; a line names a node and its fault."""
    return submissions(runs) / f"node-faults-{allocation.own_id}"


def ending_of(
    code: int,
    *,
    signals: Sequence[str],
    run: str,
    runs: Path,
    allocation: SlurmEnvironment,
    shown: str,
    begun: bool = True,
) -> Ending:
    """Collect the facts from which `decide` chooses what the job does next.

    Args:
        code: the exit code of the harness.
        signals: the names of the signals that the job script received, such as USR2.
        run: the folder of the run or sweep, empty if unknown.
        runs: the folder of all runs.
        shown: the output of `scontrol --oneliner show job`, empty if Slurm does not answer.
        begun: whether job-begin has chosen the start's command.
    """
    states, known = _states(run), shown_values(shown)
    state = states[0] if len(states) == 1 else {}
    used_gb = memory_peak_gb() or number(table(state, "device").get("memory_gb"))
    faults = faults_file(runs, allocation)
    lines = faults.read_text(errors="replace").splitlines() if faults.is_file() else []
    return Ending(
        code,
        f"{allocation.own_id}.{allocation.restarts}",
        run,
        tuple(signals),
        preempted=is_preempted(known, allocation.restarts),
        requeued=int(known.get("Restarts") or 0) > allocation.restarts,
        num_nodes=allocation.num_nodes,
        reached=_reached(states) if run else None,
        faulty=tuple(dict.fromkeys(line.split()[0] for line in lines if line.strip())),
        excluded=known.get("ExcNodeList", "").replace("(null)", ""),
        asked_gb=given_memory_gb(allocation),
        used_gb=used_gb,
        max_requeues=allocation.max_requeues,
        is_submitted=allocation.is_submitted,
        why=text(state.get("error")) or text(state.get("signal")) or "",
        runs=str(runs),
        begun=begun,
    )


def _states(run: str) -> list[dict[str, Any]]:
    """Return the heartbeats of a run, or of a sweep and its newest trials.

    In a job with several seeds, the folder `run` does not exist, but its parent folder contains a
    run for each seed. Then return the heartbeats of these runs.
    """
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
    """Return the progress of a run or a sweep as one number.

    A finished trial counts as STEPS_OF_A_TRIAL steps, because its run, which has the true number of
    steps, may have been removed. No trial has more steps than that, so the progress never falls.
    """
    finished, steps = (
        sum(whole(state.get(name)) or 0 for state in states) for name in ("finished", "step")
    )
    return finished * STEPS_OF_A_TRIAL + steps


def shown_values(shown: str) -> dict[str, str]:
    """Return the fields of `scontrol show job`; a value with spaces is cut after the first word."""
    return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", shown))


def is_preempted(known: Mapping[str, str], restarts: int) -> bool:
    """Whether Slurm cancels the job (PreemptMode=CANCEL) to run another job.

    The result is False if EndTime differs from PreemptTime, because in that case the user cancelled
    the job during the grace time.

    Args:
        known: the fields of `scontrol show job`.
        restarts: how often the job was requeued before this start.
    """
    time = known.get("PreemptTime", "None")
    is_own = known.get("EndTime") == time and known.get("Restarts") == str(restarts)
    return re.fullmatch(r"[-0-9T:]+", time) is not None and is_own
