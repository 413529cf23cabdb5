"""`harness audit`: whether the numbers of a finished run are what its job gives.

Nothing in the folder is believed, because whoever plants a score can write checksums and a record
too. The scores are computed again from the predictions, the predictions from the model, the model
by training. Where bytes can't be equal, on other machines, the differences that rounding makes are
measured here, by training in other ways.

The folder is read once and never written. Nothing of it is run: the network is built from the job,
and a job with code of its own is refused unless the user trusts it.
"""

import hashlib
import io
import itertools
import json
import signal
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.compute.execution_plan import ExecutionPlan, Way, choose
from harness.compute.strategy import MAX_DEVICES, Devices, parse_devices
from harness.data.dataset import content_checksum, vocab_to_bytes
from harness.data.ngrams import NgramRatios
from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.own_code import is_trusting
from harness.slurm.environment import SlurmEnvironment, given_cpus
from harness.slurm.pool import ManagedProcess, child_args
from harness.system.files import atomic_write, read_plain_file, scratch_directory
from harness.system.leased_dir import to_json
from harness.system.lenient_json import path, read_json_lines, table, text
from harness.tracking.audits import DIFFERS, EQUAL, ROUNDING
from harness.tracking.provenance import code_changes, code_of, machine_changes, this_machine
from harness.tracking.records import one_line
from harness.tracking.run_dir import (
    CHECKSUMS,
    PREDICTIONS,
    RECORD,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    last_start,
    stamped,
    untimed,
    weights_of,
)
from harness.training.context import RunContext, known_words
from harness.training.launch import computing, dataset_of

if TYPE_CHECKING:
    from harness.data.input_pipeline import Reviews

# Rounding grows in training, and by luck: this many times the largest difference that was measured.
SPREAD = 10
MAX_TEXT = 200  # characters of what another may have written
EPSILON = float(np.finfo(np.float32).eps)
MOVED = 2  # reviews whose prediction may flip by rounding, in a score that counts them
POLL_S = 0.1

Pair = tuple[str, Any, Any]  # where it is, the value here, and that of the run
Allowed = Mapping[str, float]  # differences, by where


@dataclass(frozen=True)
class Check:
    """One comparison."""

    compared: str
    outcome: str  # equal, within rounding or differs
    detail: str = ""  # what was compared, or the first place that differs


@dataclass(frozen=True)
class Audit:
    """What was compared with a run, and how it came out."""

    run: Path
    result_sha256: str
    depth: str  # `quick`, `3 epochs` or `full`
    checks: tuple[Check, ...]
    others: tuple[str, ...]  # how code, packages and machine are not those of the record
    tolerance: str  # how it was measured, and what it is; empty if it was not needed
    ended_s: float  # since 1970
    took_s: float

    @property
    def outcome(self) -> str:
        """The worst of all comparisons."""
        outcomes = {check.outcome for check in self.checks}
        return next(each for each in (DIFFERS, ROUNDING, EQUAL) if each in outcomes)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        why = f" ({'; '.join(self.others)})" if self.outcome != EQUAL and self.others else ""
        if self.outcome == DIFFERS:
            first = next(check for check in self.checks if check.outcome == DIFFERS)
            return f"run {self.run}: differs in {first.compared}: {first.detail}{why}"
        how = "to the byte" if self.outcome == EQUAL else "within rounding"
        return (
            f"run {self.run}: its numbers are those of its job {how}, {self.depth} audit of "
            f"{self.took_s:.0f} s{why}"
        )

    @property
    def rows(self) -> list[dict[str, str]]:
        """The comparisons as a table."""
        rows = [*self.checks, *(Check("record", "other here", line) for line in self.others)]
        if self.tolerance:
            rows.append(Check("tolerance", "measured here", self.tolerance))
        return [asdict(row) for row in rows]

    def record(self) -> dict[str, Any]:
        """As the auditor keeps it."""
        return {**asdict(self), "run": str(self.run.absolute()), "outcome": self.outcome}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Audit":
        """The audit that a record is of."""
        known = {each.name: record[each.name] for each in fields(cls)}
        checks = tuple(Check(**check) for check in known["checks"])
        return cls(**known | {"run": Path(known["run"]), "checks": checks})


# What is read of a run


@dataclass(frozen=True)
class Subject:
    """What is read of a run's folder, once."""

    folder: Path
    job: Job
    record: dict[str, Any]
    result: dict[str, Any]
    files: dict[str, bytes]  # by name, those of `CHECKSUMS` and `result.json`

    @property
    def num_epochs(self) -> int:
        """How many were trained."""
        return self.files["metrics.jsonl"].count(b"\n")

    def predictions(self, name: str) -> dict[str, np.ndarray]:
        """`probabilities` and `labels` of a file of predictions."""
        return arrays_of(self.files[name])


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive, which is never unpickled."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_subject(folder: Path, data: Path | None) -> Subject:
    """Read a finished run.

    Args:
        data: where IMDB is, or the texts of a job that has its own.

    Raises:
        InputError: if it can't be audited, and why.
    """
    run = RunDirectory.open(folder)
    run.check_format()
    if not run.finished():
        phase = text(run.read_json("state.json").get("phase")) or "not begun"
        raise InputError(
            f"run {folder}: is unfinished ({one_line(phase)}), so it has no numbers to audit; "
            f"wait for it, or harness resume {folder}"
        )
    job = load_job(folder / "job.toml")
    if job.code and not is_trusting():
        raise InputError(
            f"run {folder}: its job has code of its own ({', '.join(job.code)}), which an audit "
            "runs; read it in job.toml, then give --trust-code"
        )
    if data and job.data.source:
        job = load_job(folder / "job.toml", [f"data.source={json.dumps(str(data.absolute()))}"])
    files = {}
    for name in ("result.json", *CHECKSUMS):
        if run.path(name).exists():
            try:
                files[name] = read_plain_file(run.path(name))
            except OSError as error:
                path = run.path(name)
                raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    result = run.result()
    if "identity" not in result:
        raise InputError(
            f"run {folder}: was trained before runs kept checksums of their files; train it again "
            f"by: harness train {folder / 'job.toml'}"
        )
    for name in ("metrics.jsonl", "model.keras"):
        if name not in files:
            raise InputError(f"run {folder}: its {name} is gone; train it again to audit it")
    return Subject(folder, job, clean_record(run.certain_json(RECORD)), result, files)


def clean_record(record: dict[str, Any]) -> dict[str, Any]:
    """What an audit uses of a record, whoever wrote it; values of other types are left out."""

    def texts(content: dict[str, Any], *names: str) -> dict[str, Any]:
        found = {name: content[name] for name in names if isinstance(content.get(name), str)}
        return {name: one_line(value)[:MAX_TEXT] for name, value in found.items()}

    starts, data, diff = record.get("starts"), table(record, "dataset"), "uncommitted_diff"
    return {
        **texts(record, "commit", "sources_sha256"),
        **({diff: record[diff]} if isinstance(record.get(diff), str) else {}),
        "weights_of": weights_of(record),
        "plan": table(record, "plan"),
        "dataset": {
            "checksum": text(data.get("checksum")),
            "folder": path(data.get("folder")),
            "is_sample": data.get("is_sample") is True,
        },
        "starts": [
            {
                **texts(start, "processor", "embeddings"),
                "packages": texts(packages := table(start, "packages"), *packages),
                "devices": [
                    {"device": "", **texts(each, "name")}
                    for each in start.get("devices") or ()
                    if isinstance(each, dict)
                ],
            }
            for start in (starts if isinstance(starts, list) else ())
            if isinstance(start, dict) and isinstance(start.get("devices"), list)
        ],
    }


# Comparisons


def compared(
    what: str, pairs: Iterable[Pair], detail: str, allowed: Allowed | None = None
) -> Check:
    """Compare values that are numbers, arrays, or anything that JSON holds.

    Args:
        pairs: in the order in which the first difference is looked for.
        detail: what to say if they are equal.
        allowed: the differences of rounding; None where bytes should be equal.
    """
    broken, worst, largest = "", "", -1.0
    for where, mine, theirs in pairs:
        if same(mine, theirs):
            continue
        found = gap(mine, theirs)
        if found > largest:
            worst, largest = where, found
        if not broken and (allowed is None or not found <= allowed.get(where, 0.0)):
            limit = "" if allowed is None else f", {allowed.get(where, 0.0):.2g} allowed"
            broken = f"{where}{_by(found)}{limit}"
    if not worst:
        return Check(what, EQUAL, detail)
    if broken:
        more = f"; the most {worst}{_by(largest)}" if worst not in broken else ""
        return Check(what, DIFFERS, broken + more)
    limit = f"{(allowed or {}).get(worst, 0.0):.2g} allowed"
    return Check(what, ROUNDING, f"the most {worst}{_by(largest)}, {limit}")


def _by(difference: float) -> str:
    return f" by {difference:.3g}" if np.isfinite(difference) else " is another one"


def same(mine: Any, theirs: Any) -> bool:
    """Whether two values have the same bytes."""
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        alike = mine.dtype == theirs.dtype and mine.shape == theirs.shape
        return alike and mine.tobytes() == theirs.tobytes()
    return type(mine) is type(theirs) and bool(mine == theirs)


def gap(mine: Any, theirs: Any) -> float:
    """The largest difference of numbers; infinite for other values, unless they are the same."""
    if same(mine, theirs):
        return 0.0
    try:
        found = np.abs(np.asarray(mine, np.float64) - np.asarray(theirs, np.float64))
    except (TypeError, ValueError):
        return float("inf")
    if np.shape(mine) != np.shape(theirs) or not np.isfinite(found).all():
        return float("inf")
    return float(found.max(initial=0.0))


def tried(what: str, compare: Callable[[], Check]) -> Check:
    """A comparison; files that are broken differ."""
    try:
        return compare()
    except (NodeFault, Interrupted, MemoryError):
        raise
    except Exception as error:  # NumPy, zipfile, h5py and Keras raise many kinds for a broken file
        reason = one_line(str(error)) or type(error).__name__
        return Check(what, DIFFERS, f"it can't be read: {reason[:200]}")


# The audit


class Auditor:
    """Compares one run with what its job gives here."""

    def __init__(
        self,
        subject: Subject,
        scratch: Path,
        *,
        data: Path | None,
        devices: str | None,
        say: Callable[[str], None],
    ) -> None:
        """Plan how the run is computed again, and open its data.

        Raises:
            InputError: if these are not here, or the record is of no run.
        """
        self.subject, self.scratch, self.say = subject, scratch, say
        self.tolerance = ""
        job, record, result = subject.job, subject.record, subject.result
        replicas = result.get("num_replicas")
        if type(replicas) is not int or not 1 <= replicas <= MAX_DEVICES or not record["starts"]:
            raise InputError(f"run {subject.folder}: its record says neither devices nor replicas")
        kind = "gpu" if any("name" in each for each in record["starts"][0]["devices"]) else "cpu"
        self.devices = parse_devices(devices) if devices else Devices(kind, replicas)
        begun = record["plan"] or {"": ""} if self.devices.kind == kind else {}
        cpus = given_cpus(SlurmEnvironment.from_environment())
        self.plan = choose(job, self.devices.kind, cpus, begun=begun)
        self.options = ["--data", str(data.absolute())] if data and not job.data.source else []
        copy = self._begin("quick", self.devices, self.plan)
        self.dataset = dataset_of(copy, job, data if self.options else None)
        self.context = RunContext.open(copy, job, self.dataset)

    def _begin(self, name: str, devices: Devices, plan: ExecutionPlan) -> RunDirectory:
        """A run that has begun as the subject did, and has yet to train."""
        run = RunDirectory(self.scratch / name / "runs" / self.subject.folder.absolute().name)
        made = {"plan": asdict(plan), "devices_asked": str(devices)}
        run.folder.mkdir(parents=True)
        atomic_write(run.path("job.toml"), self.subject.job.to_toml())
        atomic_write(run.path(RECORD), to_json(stamped({**self.subject.record, **made})))
        return run

    def others(self, machine: Mapping[str, Any]) -> list[str]:
        """How a machine is not that of some start of the run, by its record."""
        starts = self.subject.record["starts"]
        changes = [change for start in starts for change in machine_changes(start, machine)]
        if not self.subject.job.train.deterministic:
            changes.append("train.deterministic = false")
        return [*dict.fromkeys(changes)]

    def code_changes(self) -> list[str]:
        """How the code is not that of the run, by its record."""
        return code_changes(self.subject.record, code_of(self.context.run))

    # Without training

    def quick(self) -> Iterator[Check]:
        """All that needs no training."""
        from harness.compute.strategy import describe_devices, one_device
        from harness.data.input_pipeline import test_reviews, training_reviews

        job, files = self.subject.job, self.subject.files
        self.machine = this_machine(describe_devices(one_device()))
        is_strict = not self.others(self.machine)
        training, validation, ratios = training_reviews(job, self.dataset)
        reviews = {VALIDATION_PREDICTIONS: validation} if VALIDATION_PREDICTIONS in files else {}
        self.sizes = {"training": len(training.labels), "validation": len(validation.labels)}
        if job.data.test:
            reviews[PREDICTIONS] = test_reviews(job, self.dataset, ratios)
        yield tried("files", self._files)
        yield tried("data", partial(self._data, training, validation))
        yield tried("inputs", partial(self._inputs, ratios))
        for name, each in reviews.items():
            yield tried(f"scores of {name}", partial(self._scores, name, each, is_strict))
            yield tried(f"model on {name}", partial(self._model, name, each, is_strict))
        yield tried("exported epoch", self._exported)

    def _files(self) -> Check:
        result, files = self.subject.result, self.subject.files
        pairs: list[Pair] = [
            ("result.json", to_json(result).encode(), files["result.json"]),
            ("job.toml", self.context.identity, result["identity"]),
        ]
        for name, key in CHECKSUMS.items():
            if name in files or key in result:
                found = hashlib.sha256(files[name]).hexdigest() if name in files else None
                pairs.append((name, found, result.get(key)))
        return compared("files", pairs, f"{len(pairs)} by their checksums")

    def _data(self, training: "Reviews", validation: "Reviews") -> Check:
        from harness.training.record import describe_data

        dataset = self.dataset
        content = content_checksum(
            dataset.train, dataset.test, dataset.vocab, num_validation=dataset.num_validation
        )
        found = describe_data(self.context, training, validation) | {"dataset_checksum": content}
        del found["data"]  # a name, which may be another one here
        return compared("data", self._pairs(found), f"checksum {content[:12]}")

    def _exported(self) -> Check:
        from harness.training.actions import BestWeights
        from harness.training.progress import Progress

        progress, best = Progress(), BestWeights(self.subject.job.train)
        no_model: Any = SimpleNamespace(get_weights=list)
        for line in self.subject.files["metrics.jsonl"].splitlines():
            progress.end_epoch(json.loads(line))
            best.after_epoch(progress, no_model)
        exported = progress.best if best.is_on else progress.history[-1]
        found = {
            "num_epochs": len(progress.history),
            "kept_epoch": exported["epoch"],
            "val_loss": exported.get("val_loss"),
            "val_accuracy": exported.get("val_accuracy"),
        }
        return compared("exported epoch", self._pairs(found), f"epoch {exported['epoch']}")

    def _inputs(self, ratios: NgramRatios | None) -> Check:
        files, found = self.subject.files, {}
        found["vocabulary.txt"] = vocab_to_bytes(known_words(self.subject.job, self.dataset))
        if ratios:
            found["ngram_ratios.npz"] = ratios.to_bytes()
        pairs = [(name, content, files.get(name)) for name, content in found.items()]
        return compared("inputs", pairs, ", ".join(found))

    def _scores(self, name: str, reviews: "Reviews", is_strict: bool) -> Check:
        from harness.training.metrics import loss_and_accuracy, test_scores

        arrays, truth = self.subject.predictions(name), reviews.labels
        if name == PREDICTIONS:
            found = {"num_test": len(truth), **test_scores(truth, arrays["probabilities"])}
        else:
            scores = loss_and_accuracy(truth, arrays["probabilities"])
            found = dict(zip(("val_loss", "val_accuracy"), scores, strict=True))
        pairs = [(f"the labels of {name}", truth, arrays["labels"]), *self._pairs(found)]
        # Sums of float64 in another order.
        allowed = None if is_strict else dict.fromkeys(found, 1e-9)
        return compared(f"scores of {name}", pairs, f"{len(found)} from the predictions", allowed)

    def _model(self, name: str, reviews: "Reviews", is_strict: bool) -> Check:
        from harness.compute.evaluator import Evaluator
        from harness.compute.strategy import one_device

        where, plans = f"the probabilities of {name}", [self.plan]
        if not is_strict:  # the same in another way, for the tolerance
            other = not self.plan.compiles_evaluation
            plans.append(replace(self.plan, compiles_evaluation=other))
        found = [
            Evaluator(self.model, one_device(), self.subject.job, plan).probabilities(reviews)
            for plan in plans
        ]
        measured = SPREAD * max(gap(found[0], found[-1]), EPSILON)
        allowed = None if is_strict else {where: measured}
        pairs = [(where, found[0], self.subject.predictions(name)["probabilities"])]
        return compared(f"model on {name}", pairs, f"{len(reviews.labels):,} reviews", allowed)

    def _pairs(self, found: Mapping[str, Any]) -> list[Pair]:
        return [(key, value, self.subject.result.get(key)) for key, value in found.items()]

    @cached_property
    def model(self) -> Any:
        """The run's trained model: the job's network with the weights of the file."""
        from harness.compute.network import load_network

        path = self.scratch / "model.keras"
        path.write_bytes(self.subject.files["model.keras"])
        return load_network(self.subject.job, path, self.dataset.num_outputs)

    # By training

    def trained(self, epochs: int | None) -> Iterator[Check]:
        """Train the job again: its first epochs, or all of it.

        Args:
            epochs: None trains to the end.

        Raises:
            InputError: if that is not possible here.
        """
        subject = self.subject
        if subject.record["weights_of"]:
            raise InputError(
                f"run {subject.folder}: began with the weights of another run, which its folder "
                "does not hold; audit it with --quick"
            )
        here = self._train("again", self.devices, self.plan, epochs)
        self.machine = last_start(here.certain_json(RECORD))
        mine, theirs = contents_of(here, epochs), cut(subject.files, epochs)
        num = mine["metrics.jsonl"].count(b"\n")
        details = {"metrics.jsonl": f"{num} of {subject.num_epochs} epochs trained again"}
        is_strict = not self.others(self.machine)
        allowed = None if is_strict else self._tolerance(mine, epochs)
        result = here.result() if epochs is None else {}
        kept = result.get("kept_epoch"), subject.result.get("kept_epoch")
        if not is_strict and kept[0] != kept[1] and epochs is None:
            mine = {"metrics.jsonl": mine["metrics.jsonl"]}
            detail = f"epoch {kept[0]} is exported here, {kept[1]} there: not compared"
            yield Check("model.keras", ROUNDING, detail)
        for name in mine:
            if name == VALIDATION_PREDICTIONS and name not in theirs:  # of a trial
                continue
            detail = details.get(name, f"{len(mine[name]):,} bytes")
            yield tried(name, partial(compared_file, name, mine, theirs, detail, allowed))
        if is_strict and result:
            pairs = [
                (key, value, subject.result[key])
                for key, value in untimed(result).items()
                if key in subject.result and key not in ("run", "data", "devices")
            ]
            yield compared("result.json", pairs, f"{len(pairs)} values")

    def _train(
        self, name: str, devices: Devices, plan: ExecutionPlan, epochs: int | None
    ) -> RunDirectory:
        """Train the job in a process of its own, to its end or until epochs are done."""
        what = "all" if epochs is None else f"the first {epochs}"
        self.say(f"training again, {what} of {self.subject.job.train.epochs} epochs on {devices}")
        run = self._begin(name, devices, plan)
        process = ManagedProcess("training", None, self.scratch / f"{name}.log")
        process.start(child_args("resume", str(run.folder), f"--devices={devices}", *self.options))
        try:
            while process.alive and not (
                epochs and len(read_json_lines(run.path("metrics.jsonl"))) >= epochs
            ):
                time.sleep(POLL_S)
        finally:
            process.send_signal(signal.SIGTERM)
            if process.popen:
                process.popen.wait()
        if not run.finished() and not (epochs and run.path("metrics.jsonl").exists()):
            raise InputError(
                f"run {self.subject.folder}: can't be trained here: {process.last_line()}"
            )
        return run

    def _tolerance(self, base: Mapping[str, bytes], epochs: int | None) -> dict[str, float]:
        """What rounding may change: other ways to train here, against the one that was taken."""
        devices, allowed = self.devices, dict[str, float]()
        way: Way = "xla" if self.plan.way == "keras" else "keras"
        ways = {f"{way} layers for {self.plan.way}": (devices, replace(self.plan, way=way))}
        other = 2 if devices.count == 1 else 1
        if devices.kind == "cpu" or other == 1:
            changed = replace(devices, count=other)
            ways[f"{other} replicas for {devices.count}"] = (changed, self.plan)
        for number, (changed, plan) in enumerate(ways.values()):
            found = contents_of(self._train(f"way {number}", changed, plan, epochs), epochs)
            for name in base:
                for where, mine, theirs in pairs_of(name, base[name], found[name], loosely=True):
                    measured = max(SPREAD * gap(mine, theirs), self._least(where, mine))
                    allowed[where] = max(allowed.get(where, 0.0), measured)
        greatest: dict[str, float] = {}
        for where, limit in allowed.items():
            name = where.rpartition(", ")[2] if where.startswith("epoch ") else where.split()[-1]
            greatest[name] = max(greatest.get(name, 0.0), limit)
        shown = ", ".join(f"{name} {limit:.2g}" for name, limit in greatest.items() if limit)
        self.tolerance = f"{SPREAD} times what changes with {' and '.join(ways)}: {shown}"
        return allowed

    def _least(self, where: str, value: Any) -> float:
        """A difference that is rounding wherever it is seen."""
        if where.endswith(", epoch") or not isinstance(value, int | float | np.ndarray):
            return 0.0
        is_count = where.startswith("epoch ") and not where.endswith(("loss", "rate"))
        if not is_count:
            return SPREAD * EPSILON * float(np.abs(value).max(initial=1.0))
        return MOVED / max(1, self.sizes["validation" if "val_" in where else "training"])


def contents_of(run: RunDirectory, epochs: int | None) -> dict[str, bytes]:
    """The files that a job decides, as far as they are compared."""
    found = {name: run.path(name) for name in CHECKSUMS}
    return cut({name: read_plain_file(e) for name, e in found.items() if e.exists()}, epochs)


def cut(files: Mapping[str, bytes], epochs: int | None) -> dict[str, bytes]:
    """All files, or of the metrics the first epochs."""
    if epochs is None:
        return {name: files[name] for name in CHECKSUMS if name in files}
    lines = files["metrics.jsonl"].splitlines(keepends=True)
    return {"metrics.jsonl": b"".join(lines[:epochs])}


def compared_file(
    name: str,
    mine: Mapping[str, bytes],
    theirs: Mapping[str, bytes],
    detail: str,
    allowed: Allowed | None,
) -> Check:
    """Compare a file that a job decides; bytes that change no value differ too."""
    pairs = pairs_of(name, mine[name], theirs[name], loosely=allowed is not None)
    check = compared(name, pairs, detail, allowed)
    if check.outcome == EQUAL and allowed is None and mine[name] != theirs[name]:
        return Check(name, DIFFERS, f"{name}, in bytes that change no value")
    return check


def pairs_of(name: str, mine: bytes, theirs: bytes, *, loosely: bool) -> Iterator[Pair]:
    """The values of two files of one name, in order.

    Args:
        loosely: without the checksums of weights, of which rounding leaves nothing.
    """
    if name == "metrics.jsonl":
        both = (map(json.loads, content.splitlines()) for content in (mine, theirs))
        for here, there in itertools.zip_longest(*both, fillvalue={}):
            epoch = f"epoch {here.get('epoch', there.get('epoch'))}"
            for key in dict.fromkeys([*here, *there]):
                if not (loosely and key == "checksum"):
                    yield f"{epoch}, {key}", here.get(key), there.get(key)
    elif name.endswith((".npz", ".keras")):
        read = weights_in if name == "model.keras" else arrays_of
        found, other = read(mine), read(theirs)
        for key in dict.fromkeys([*found, *other]):
            yield f"{key} of {name}", found.get(key), other.get(key)
    else:
        yield name, mine, theirs


def weights_in(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a `.keras` file by their paths; nothing of it is run."""
    import h5py

    found: dict[str, np.ndarray] = {}

    def take(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[path] = item[()]

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inner = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(inner, "r") as file:
        file.visititems(take)  # which follows no links to other files
    return found


def audit(
    folder: Path,
    *,
    epochs: int | None,
    data: Path | None = None,
    devices: str | None = None,
    say: Callable[[str], None],
) -> Audit:
    """Audit a finished run.

    Args:
        epochs: how many to train again; 0 for none, None for all and the files of the end.
        data: where IMDB is, or the texts of a job that has its own.
        devices: as `--devices` names them; by default of the kind and number of the run's.
        say: is called with a line for what takes long.

    Raises:
        InputError: if the run can't be audited here, and why.
        RunError: if its result is broken.
    """
    began_s = time.time()
    try:
        subject = read_subject(folder, data)
    except DiskError as error:
        raise InputError(str(error)) from None
    if epochs is not None:
        epochs = min(epochs, subject.num_epochs)
    try:
        with scratch_directory() as scratch:
            auditor = Auditor(subject, scratch, data=data, devices=devices, say=say)
            with computing(subject.job, auditor.plan.threads):
                checks = [*auditor.quick()]
            if epochs != 0:
                checks += auditor.trained(epochs)
    except RunError as error:  # of this machine or its disk, which says nothing of the run
        raise InputError(f"run {folder}: can't be audited here: {error}") from None
    depth = {None: "full", 0: "quick"}.get(epochs, f"{epochs} epoch{'s' if epochs != 1 else ''}")
    others = (*auditor.code_changes(), *auditor.others(auditor.machine))
    checksum = hashlib.sha256(subject.files["result.json"]).hexdigest()
    ended_s = time.time()
    return Audit(
        run=folder,
        result_sha256=checksum,
        depth=depth,
        checks=tuple(checks),
        others=others,
        tolerance=auditor.tolerance,
        ended_s=ended_s,
        took_s=round(ended_s - began_s, 1),
    )
