"""`harness audit`: check the results of a finished run by computing them again.

An audit does not trust the run's folder: whoever forges a score can also forge checksums and the
record. The audit computes the scores again from the predictions, the predictions from the model,
and the model by training the run's job. The audit may round differently from the run if the audit
uses other packages, devices or processors than the run, or if `train.deterministic` is false. In
these cases, differing results are no proof against the run. The audit then trains a second time,
with another implementation of the layers, another number of replicas, or both. The difference
between the audit's two training runs shows how large rounding differences are.

An audit never writes to the run's folder. An audit builds the network from the job and runs no code
from the model file. If the job contains custom code, the audit runs this code, but only if the
auditing user trusts the code.
"""

import hashlib
import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic.dataclasses import dataclass

from harness.compute.execution_plan import ExecutionPlan, choose
from harness.compute.strategy import MAX_DEVICES, Devices, parse_devices
from harness.data.dataset import content_checksum, vocab_to_bytes
from harness.data.ngrams import MAX_BYTES, NgramRatios
from harness.errors import InputError, Interrupted, RunError
from harness.job.keys import Job
from harness.job.own_code import is_trusting
from harness.slurm.environment import SlurmEnvironment, given_cpus
from harness.slurm.pool import ManagedProcess, child_args
from harness.system.console import echo
from harness.system.files import atomic_write, read_plain_file, scratch_directory
from harness.system.leased_dir import to_json
from harness.system.lenient_json import read_json_lines
from harness.tracking.audits import DIFFERS, EQUAL, ROUNDING
from harness.tracking.provenance import code_changes, code_of, machine_changes, this_machine
from harness.tracking.records import one_line
from harness.tracking.run_dir import (
    CHECKSUMS,
    PREDICTIONS,
    RATIOS_FILE,
    RECORD,
    RESULT,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    check_record,
    last_start,
    stamped,
    untimed,
    weights_of,
)
from harness.training.context import RunContext, known_words
from harness.training.launch import computing, dataset_of, moved_job
from harness.training.metrics import exported_epoch

if TYPE_CHECKING:
    from harness.data.input_pipeline import Reviews

# The largest allowed difference, as a multiple of the measured rounding difference. It is large
# because training amplifies rounding errors.
SPREAD = 10
SUM_ROUNDING = 1e-9  # the largest allowed difference between two float64 sums of equal numbers
EPSILON = float(np.finfo(np.float32).eps)
SMALLEST = float(np.finfo(np.float64).tiny)
MOVED = 2  # the number of reviews whose predicted class may change because of rounding
OTHER_ROWS = 128  # reviews per batch of the evaluation that measures rounding
POLL_S = 0.1
OMITTED = "not compared"  # the outcome of a comparison that is impossible where rounding differs


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison."""

    compared: str  # what was compared
    outcome: str  # `equal`, `within rounding`, `differs` or `not compared`
    # The first value that differs, the largest rounding difference, or why nothing was compared.
    detail: str = ""


@dataclass(frozen=True)
class Audit:
    """The result of an audit: the outcome of each comparison."""

    run: Path
    result_sha256: str
    job_sha256: str  # of the run's job.toml
    depth: str  # how much was checked: `quick`, `3 epochs` or `full`
    checks: tuple[Check, ...]
    others: tuple[str, ...]  # how code, packages and machine differ between the run and this audit
    tolerance: str  # how the tolerance was measured; empty if it was not measured
    ended_s: float  # when the audit ended, in seconds since 1970
    took_s: float

    @property
    def outcome(self) -> str:
        """The worst outcome of all comparisons; `not compared` counts as `within rounding`."""
        outcomes = {check.outcome for check in self.checks}
        worst = next(each for each in (DIFFERS, ROUNDING, OMITTED, EQUAL) if each in outcomes)
        return ROUNDING if worst == OMITTED else worst

    @property
    def sentence(self) -> str:
        """The result of the audit in one sentence."""
        why = f" ({'; '.join(self.others)})" if self.outcome != EQUAL and self.others else ""
        if self.outcome == DIFFERS:
            first = next(check for check in self.checks if check.outcome == DIFFERS)
            return one_line(f"run {self.run}: differs in {first.compared}: {first.detail}{why}")
        how = "to the byte" if self.outcome == EQUAL else "within rounding"
        found = "computed the same numbers as the run"
        if self.depth == "quick":
            found = "trained nothing; the run's files, scores and model agree with each other"
        elif self.depth != "full":
            found += f" in the first {self.depth.removeprefix('1 ')}"
        omitted = [each for each in self.checks if each.outcome == OMITTED]
        how = "; ".join([how, *(f"{each.compared} {OMITTED} {each.detail}" for each in omitted)])
        return one_line(
            f"run {self.run}: the audit ({self.depth}, {self.took_s:.0f} s) {found}, {how}{why}"
        )

    @property
    def rows(self) -> list[dict[str, str]]:
        """The comparisons as a table."""
        rows = [*self.checks, *(Check("record", "changed", line) for line in self.others)]
        if self.tolerance:
            rows.append(Check("tolerance", "measured here", self.tolerance))
        return [asdict(row) | {"detail": one_line(row.detail)} for row in rows]

    def record(self) -> dict[str, Any]:
        """The audit as a dictionary that JSON can represent."""
        return {**asdict(self), "run": str(self.run.absolute()), "outcome": self.outcome}


# Reading a run. The types below validate the record, because another user may have written it.


class Start(BaseModel):
    """What the record says about one start of the run."""

    devices: list[dict[str, str]]
    packages: dict[str, str | None] = {}
    libraries: dict[str, str | None] = {}
    variables: dict[str, str] | None = None
    processor: str | None = None


class Record(BaseModel):
    """The parts of a run's record that an audit needs.

    The class has no field for the parent, the run that `--from` named. An audit begins with
    untrained weights, even if the audited run continued the parent's checkpoint.
    """

    starts: Annotated[list[Start], Field(min_length=1)]
    num_replicas: Annotated[int, Field(ge=1, le=MAX_DEVICES, strict=True)]  # taken from result.json
    dataset: dict[str, Any]
    plan: dict[str, Any] = {}
    commit: str | None = None
    sources_sha256: str | None = None
    uncommitted_diff: str | None = None


class Subject(NamedTuple):
    """The content of the audited run's folder."""

    folder: Path
    job: Job
    record: Record
    result: dict[str, Any]
    files: dict[str, bytes]  # name -> content of result.json, job.toml, the files in `CHECKSUMS`


def read_subject(folder: Path, data: Path | None, *, trains: bool) -> Subject:
    """Read the folder of a finished run.

    Args:
        data: the folder that contains IMDB; for a job on the user's own texts, the table or folder
            that contains these texts.
        trains: whether the audit trains the job.

    Raises:
        InputError: if the run can't be audited.
        RunError, OSError: if the disk fails, or the run's result is broken.
    """
    run = RunDirectory.open(folder)
    check_record(run)
    run.model_file()  # refuses an unfinished run
    job, _ = moved_job(run, data)
    if job.code and not is_trusting():
        raise InputError(
            f"run {folder}: its job contains custom code ({', '.join(job.code)}), which an "
            "audit runs; read the code in job.toml, then add --trust-code"
        )
    names = [name for name in (RESULT, "job.toml", *CHECKSUMS) if run.path(name).exists()]
    files = {name: read_plain_file(run.path(name), MAX_BYTES) for name in names}
    if "metrics.jsonl" not in files:
        raise InputError(
            f"run {folder}: its metrics.jsonl is missing; train its job again, and audit the new "
            "run"
        )
    if not job.data.test and VALIDATION_PREDICTIONS not in files:
        raise InputError(
            f"run {folder}: is a trial of a search, and trials save no predictions; run "
            "`harness sweep retrain`, and audit the run that it trains"
        )
    result, record = run.result(), run.certain_json(RECORD)
    if trains and weights_of(record):
        raise InputError(
            f"run {folder}: began with the weights of another run, so the audit can't repeat its "
            "training; use --quick"
        )
    try:
        known = Record(**record | {"num_replicas": result.get("num_replicas")})
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"run {folder}: its record is broken ({key}); train its job again, and audit the "
            "new run"
        ) from None
    return Subject(folder, job, known, result, files)


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a NumPy archive without unpickling anything."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


# Comparisons

Values = dict[str, Any]  # the name of a value -> the value


class Sides(NamedTuple):
    """Values that the audit computed, and the values with the same names from the run's folder."""

    mine: Values
    theirs: Values
    # The largest allowed difference of a value; values without a limit should be bitwise equal.
    allowed: Mapping[str, float] = {}


def compared(what: str, read: Callable[..., Sides], *args: Any) -> Check:
    """Compare the audit's values with the run's values.

    `read(*args)` returns the audit's values, the run's values, and the allowed differences. The
    result names the first value whose difference between audit and run is larger than allowed. If
    values differ, but none by more than allowed, the result names the value with the largest
    difference. If `read` raises an error that is not listed under `Raises`, the run's file is
    broken, so the outcome is `differs`.

    Raises:
        RunError, MemoryError: if this machine failed, which says nothing about the run's file.
        Interrupted: after a signal.
    """
    from harness.compute.device_errors import explained_device_errors

    try:
        with explained_device_errors():
            mine, theirs, allowed = read(*args)
    except (RunError, Interrupted, MemoryError):
        raise
    except Exception as error:  # a broken file raises errors of many types
        reason = str(error) or type(error).__name__
        return Check(what, DIFFERS, f"the run's file can't be read: {reason[:200]}")
    largest, answer = 0.0, Check(what, EQUAL)
    for name in dict.fromkeys([*mine, *theirs]):
        found, limit = gap(mine.get(name), theirs.get(name)), allowed.get(name, 0.0)
        by = f"{name} by {found:.3g}" if np.isfinite(found) else f"{name} is not as recorded"
        by += f", {limit:.2g} allowed" if limit else ""
        if found > limit:
            return Check(what, DIFFERS, by)
        if found > largest:
            largest, answer = found, Check(what, ROUNDING, f"largest difference: {by}")
    return answer


def gap(mine: Any, theirs: Any) -> float:
    """Return the largest difference between the elements of two values.

    The result is 0 if the values are bitwise equal, and infinite if they can't be compared.
    """
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        alike = mine.dtype == theirs.dtype and mine.shape == theirs.shape
        is_same = alike and mine.tobytes() == theirs.tobytes()
    else:
        is_same = type(mine) is type(theirs) and bool(mine == theirs)
    if is_same:
        return 0.0
    try:
        found = np.abs(np.asarray(mine, np.float64) - np.asarray(theirs, np.float64))
    except (TypeError, ValueError):
        return float("inf")
    if np.shape(mine) != np.shape(theirs) or not np.isfinite(found).all():
        return float("inf")
    return max(float(found.max(initial=0.0)), SMALLEST)  # 0 and -0 differ bitwise


def decided(files: Mapping[str, bytes], epochs: int | None) -> dict[str, bytes]:
    """Return the files whose content the job determines.

    Args:
        epochs: if None, return all files whose content the job determines; else return only the
            first `epochs` lines of metrics.jsonl.
    """
    if epochs is None:
        return {name: files[name] for name in CHECKSUMS if name in files}
    lines = files["metrics.jsonl"].splitlines(keepends=True)
    return {"metrics.jsonl": b"".join(lines[:epochs])}


def lines_of(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the metrics of each epoch from the files of a run."""
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


def kind_of(where: str) -> str:
    """Return the metric or file with which a name begins, such as `loss` in `loss, epoch 2`."""
    return where.partition(", ")[0]


# The audit


def probabilities_of(
    model: Any, job: Job, plan: ExecutionPlan, reviews: "Reviews", num_rows: int = 0
) -> np.ndarray:
    """Return the probabilities that a model computes for reviews on one device."""
    from harness.compute.evaluator import Evaluator
    from harness.compute.strategy import one_device

    return Evaluator(model, one_device(), job, plan, num_rows=num_rows).probabilities(reviews)


class Auditor:
    """Computes a run again from its job, and compares the results with the run's files."""

    def __init__(
        self,
        subject: Subject,
        scratch: Path,
        *,
        data: Path | None,
        devices: str | None,
    ) -> None:
        """Choose the devices and the plan for this machine, and open the run's data.

        Raises:
            InputError: if the data are missing, or the plan in the record is broken.
        """
        self.subject, self.scratch = subject, scratch
        self.tolerance = ""
        job, record = subject.job, subject.record
        kind = "gpu" if any("name" in each for each in record.starts[0].devices) else "cpu"
        self.devices = parse_devices(devices) if devices else Devices(kind, record.num_replicas)
        begun = record.plan or {"": ""} if self.devices.kind == kind else {}
        cpus = given_cpus(SlurmEnvironment.from_environment())
        self.plan = choose(job, self.devices.kind, cpus, begun=begun)
        self.options = ["--data", str(data.absolute())] if data and not job.data.source else []
        copy = self._begin("quick", self.devices, self.plan)
        run = RunDirectory(subject.folder)  # refusals name this run, not its copy
        self.dataset = dataset_of(run, job, data if self.options else None)
        self.context = RunContext.open(copy, job, self.dataset)
        self.code_changes = code_changes(record.model_dump(exclude_none=True), code_of(copy))

    def _begin(self, name: str, devices: Devices, plan: ExecutionPlan) -> RunDirectory:
        """Create an untrained run from the job and the record of the audited run."""
        run = RunDirectory(self.scratch / name / "runs" / self.subject.folder.resolve().name)
        made = {"plan": asdict(plan), "devices_asked": str(devices)}
        run.folder.mkdir(parents=True)
        atomic_write(run.path("job.toml"), self.subject.job.to_toml())
        atomic_write(
            run.path(RECORD),
            to_json(stamped(self.subject.record.model_dump(exclude_none=True) | made)),
        )
        return run

    def others(self, machine: Mapping[str, Any]) -> list[str]:
        """Return why results on `machine` may differ from the run's results.

        For example, another version of a package or another processor may change the results.
        """
        starts = [start.model_dump(exclude_none=True) for start in self.subject.record.starts]
        changes = [change for start in starts for change in machine_changes(start, machine)]
        if not self.subject.job.train.deterministic:
            changes.append("train.deterministic = false")
        return [*dict.fromkeys(changes)]

    # Without training

    def quick(self) -> Iterator[Check]:
        """Yield all comparisons that don't need training."""
        from harness.compute.strategy import describe_devices, one_device
        from harness.data.input_pipeline import test_reviews, training_reviews

        job = self.subject.job
        # One device computes the probabilities. Several devices would compute bitwise equal ones,
        # except with `data.bucket`, which pads the larger batches of several devices to other
        # lengths.
        count, own = self.devices.count, describe_devices(one_device())
        self.machine = this_machine(own * count if self.devices.kind == "cpu" else own)
        is_strict = not self.others(self.machine) and (count == 1 or not job.data.bucket)
        training, validation, ratios = training_reviews(job, self.dataset)
        reviews = {VALIDATION_PREDICTIONS: validation} if len(validation.labels) else {}
        self.num_scored = len(validation.labels) or len(training.labels)
        sizes = np.unique(validation.labels, return_counts=True)[1]
        self.smallest_class = int(sizes.min(initial=self.num_scored))
        if job.data.test:
            reviews[PREDICTIONS] = test_reviews(job, self.dataset, ratios)
        yield compared("files", self._files)
        yield compared("data", self._data, training, validation)
        yield compared("inputs", self._inputs, ratios)
        for name, each in reviews.items():
            yield compared(f"scores of {name}", self._scores, name, each, is_strict)
            yield compared(f"model on {name}", self._model, name, each, is_strict)
        yield compared("job", self._job)
        yield compared("exported epoch", self._exported)

    def _files(self) -> Sides:
        result, files = self.subject.result, self.subject.files
        mine: Values = {RESULT: to_json(result).encode(), "job.toml": self.context.identity}
        theirs = {RESULT: files[RESULT], "job.toml": result.get("identity")}
        for name, key in CHECKSUMS.items():
            mine[name] = hashlib.sha256(files[name]).hexdigest() if name in files else None
            theirs[name] = result.get(key)
        return Sides(mine, theirs)

    def _job(self) -> Sides:
        from harness.compute.recurrent import count_parameters

        job = self.subject.job
        found = {"job": job.name, "architecture": job.model.architecture, "seed": job.train.seed}
        return self._in_result(found | count_parameters(self.model))

    def _data(self, training: "Reviews", validation: "Reviews") -> Sides:
        from harness.training.record import describe_data

        dataset = self.dataset
        content = content_checksum(
            dataset.train, dataset.test, dataset.vocab, num_validation=dataset.num_validation
        )
        found = describe_data(self.context, training, validation) | {"dataset_checksum": content}
        if dataset.is_own:  # the texts may have another name on this machine
            del found["data"]
        return self._in_result(found)

    def _inputs(self, ratios: NgramRatios | None) -> Sides:
        mine = {"vocabulary.txt": vocab_to_bytes(known_words(self.subject.job, self.dataset))}
        mine |= {RATIOS_FILE: ratios.to_bytes()} if ratios else {}
        return Sides(mine, {name: self.subject.files.get(name) for name in mine})

    def _scores(self, name: str, reviews: "Reviews", is_strict: bool) -> Sides:
        from harness.training.metrics import loss_and_accuracy, test_scores

        arrays, truth = arrays_of(self.subject.files[name]), reviews.labels
        if not np.isfinite(arrays["probabilities"]).all():
            raise ValueError("probabilities are not finite")
        if name == PREDICTIONS:
            found = {"num_test": len(truth), **test_scores(truth, arrays["probabilities"])}
        else:
            scores = loss_and_accuracy(truth, arrays["probabilities"])
            found = dict(zip(("val_loss", "val_accuracy"), scores, strict=True))
        mine, theirs, allowed = self._in_result(found, 0.0 if is_strict else SUM_ROUNDING)
        labels = f"the labels of {name}"
        return Sides({labels: truth, **mine}, {labels: arrays["labels"], **theirs}, allowed)

    def _model(self, name: str, reviews: "Reviews", is_strict: bool) -> Sides:
        import tensorflow as tf

        from harness.compute.recurrent import turn_cudnn_off

        job, theirs = self.subject.job, arrays_of(self.subject.files[name])["probabilities"]
        what, allowed = f"the probabilities of {name}", dict[str, float]()
        mine = probabilities_of(self.model, job, self.plan, reviews)
        if not is_strict and gap(mine, theirs):
            model = self._model_in(self.subject.files["model.keras"])
            turn_cudnn_off(model)
            compiles = not self.plan.compiles_evaluation
            plan = replace(self.plan, way="keras", compiles_evaluation=compiles)
            try:
                other = probabilities_of(model, job, plan, reviews, OTHER_ROWS)
            except tf.errors.OpError:  # XLA can't compile every custom network
                plan = replace(plan, compiles_evaluation=False)
                other = probabilities_of(model, job, plan, reviews, OTHER_ROWS)
            allowed[what] = SPREAD * max(gap(mine, other), EPSILON)
        return Sides({what: mine}, {what: theirs}, allowed)

    def _exported(self) -> Sides:
        history = lines_of(self.subject.files)
        exported = exported_epoch(history, self.subject.job.train)
        found = {"num_epochs": len(history), "kept_epoch": exported["epoch"]}
        scores = {name: exported.get(name) for name in ("val_loss", "val_accuracy")}
        return self._in_result(found | scores)

    def _in_result(self, found: Values, allowed: float = 0.0) -> Sides:
        """Return the computed values, and the values with the same names in `result.json`."""
        result = self.subject.result
        # Newer code may compute scores that the run's code did not compute.
        mine = {name: found[name] for name in found if name in result or not self.code_changes}
        return Sides(mine, {name: result.get(name) for name in mine}, dict.fromkeys(mine, allowed))

    @cached_property
    def model(self) -> Any:
        """The run's trained model."""
        return self._model_in(self.subject.files["model.keras"])

    def _model_in(self, content: bytes) -> Any:
        """Build the job's network, and load the weights from a `.keras` file with this content."""
        from harness.compute.network import load_network

        path = self.scratch / "model.keras"
        atomic_write(path, content, remedy="free up space, or set TMPDIR to another folder")
        return load_network(self.subject.job, path, self.dataset.num_outputs)

    # By training

    def trained(self, epochs: int | None) -> Iterator[Check]:
        """Train the job again, and yield comparisons of the new run's files with the audited run's.

        Args:
            epochs: the number of epochs to train; None = train and compare the whole run.

        Raises:
            InputError: if the job can't be trained here.
        """
        run = self._train("again", self.devices, self.plan, epochs)
        self.machine = last_start(run.certain_json(RECORD))
        is_strict = not self.others(self.machine)
        mine, theirs = self._decided(run, epochs), decided(self.subject.files, epochs)
        limits = {} if is_strict or mine == theirs else self._tolerance(mine, epochs)
        result = run.result() if epochs is None else {}
        if limits:  # training that rounds differently may end at, or export, another epoch
            train, nums = self.subject.job.train, [len(lines_of(files)) for files in (mine, theirs)]
            num = min(nums)
            if num < max(nums) and (train.early_stopping_patience or train.callbacks):
                mine, theirs = mine | decided(mine, num), theirs | decided(theirs, num)
                why = f"after epoch {num}, where the shorter of the two training runs ended"
                yield Check("metrics.jsonl", OMITTED, why)
            kept = [each.get("kept_epoch") for each in (result, self.subject.result)]
            if result and kept[0] != kept[1]:
                mine = {"metrics.jsonl": mine["metrics.jsonl"]}
                why = (
                    f"because the audit exported epoch {kept[0]}, "
                    f"and the run exported epoch {kept[1]}"
                )
                yield Check("model.keras", OMITTED, why)
        for name in mine:
            yield compared(name, self._file, name, mine, theirs, limits)
        if result and is_strict:
            names = {*result} & {*self.subject.result} - {"run", "data", "devices"}
            found = {name: value for name, value in untimed(result).items() if name in names}
            yield compared(RESULT, self._in_result, found)

    def _file(
        self,
        name: str,
        mine: Mapping[str, bytes],
        theirs: Mapping[str, bytes],
        limits: Mapping[str, float],
    ) -> Sides:
        sides = [self._values(files, name, is_exact=not limits) for files in (mine, theirs)]
        allowed = {where: limits.get(kind_of(where), 0.0) for where in sides[0]}
        return Sides(sides[0], sides[1], allowed)

    def _values(self, files: Mapping[str, bytes], name: str, *, is_exact: bool) -> Values:
        """Return the values in a file, each with a name such as `loss, epoch 1`.

        Args:
            is_exact: whether to include the file's bytes and the checksums of the weights, which
                any rounding changes.
        """
        values: Values = {}
        if name == "metrics.jsonl":
            for number, line in enumerate(lines_of(files), 1):
                values |= {f"{key}, epoch {number}": value for key, value in line.items()}
        elif name == "model.keras":
            for weights in self._model_in(files[name]).weights:
                values[f"{name}, {weights.path}"] = weights.numpy()
        elif name.endswith(".npz"):
            arrays = arrays_of(files[name])
            values = {f"{name}, {key}": array for key, array in arrays.items()}
        if is_exact or not values:
            return values | {f"{name}, bytes": files[name]}
        return {where: value for where, value in values.items() if kind_of(where) != "checksum"}

    def _train(
        self, name: str, devices: Devices, plan: ExecutionPlan, epochs: int | None
    ) -> RunDirectory:
        """Train the job in a new process, to its end or for `epochs` epochs."""
        what = "all" if epochs is None else f"the first {epochs}"
        num_epochs = self.subject.job.train.epochs
        echo(f"training again, {what} of {num_epochs} epochs on {devices}", err=True)
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
        num_trained = len(read_json_lines(run.path("metrics.jsonl")))
        if not run.finished() and num_trained < (epochs or math.inf):
            raise InputError(
                f"run {self.subject.folder}: can't be trained here: {process.last_line()}"
            )
        return run

    @staticmethod
    def _decided(run: RunDirectory, epochs: int | None) -> dict[str, bytes]:
        paths = {name: run.path(name) for name in CHECKSUMS}
        files = {n: read_plain_file(path, MAX_BYTES) for n, path in paths.items() if path.exists()}
        return decided(files, epochs)

    def _tolerance(self, base: Mapping[str, bytes], epochs: int | None) -> dict[str, float]:
        """Measure rounding differences by training with the devices and plan of `_other_training`.

        Returns:
            How far the values of each metric and of each file may differ from `base`, the files of
            the audit's first training run.

        Raises:
            InputError: if the job can't be trained with these devices and this plan.
        """
        devices, plan = self._other_training()
        other = self._decided(self._train("another way", devices, plan, epochs), epochs)
        limits = dict[str, float]()
        for name in base:
            mine, theirs = (self._values(files, name, is_exact=False) for files in (base, other))
            for where in [each for each in mine if each in theirs]:
                kind, difference = kind_of(where), gap(mine[where], theirs[where])
                measured = max(SPREAD * difference, self._least(kind, mine[where]))
                limits[kind] = max(limits.get(kind, 0.0), measured)
        shown = ", ".join(f"{kind} {limit:.2g}" for kind, limit in limits.items() if limit)
        self.tolerance = (
            f"{SPREAD} times the rounding difference between {self.plan.way} on {self.devices} and "
            f"{plan.way} on {devices}: {shown}"
        )
        return limits

    def _other_training(self) -> tuple[Devices, ExecutionPlan]:
        """Choose devices and a plan for a second training with other rounding than the first."""
        devices, way = self.devices, self.plan.way
        # Use at most one GPU, because this machine may have only one.
        count = 2 if devices.count == 1 and devices.kind == "cpu" else 1
        # A custom network keeps its implementation if the number of devices changes, because XLA
        # can't compile every custom network.
        if count == devices.count or not self.subject.job.model.is_own:
            # Not from `cudnn` to `keras`: on a GPU, Keras computes its layers with cuDNN too.
            way = "keras" if way in ("xla", "block") else "xla"
        return replace(devices, count=count), replace(self.plan, way=way)

    def _least(self, kind: str, value: Any) -> float:
        """Return the difference that an audit always accepts for a value.

        Args:
            kind: the metric or the file that contains the value.
            value: the value.
        """
        if kind == "epoch" or not isinstance(value, int | float | np.ndarray):
            return 0.0
        if kind.endswith(("loss", "rate", ".keras", ".npz")):
            return SPREAD * EPSILON * float(np.abs(value).max(initial=1.0))
        if kind == "val_precision":  # if few reviews are predicted positive, each changes it a lot
            return 1.0
        # A score such as the accuracy. If the predicted class of one of n reviews of a class
        # changes, the F1 score of this class changes by up to 2 / n.
        is_accuracy = kind in ("accuracy", "val_accuracy")
        size = self.num_scored if is_accuracy else max(1, self.smallest_class)
        return SUM_ROUNDING + MOVED * 2 / size


def audit(
    folder: Path,
    *,
    epochs: int | None,
    data: Path | None = None,
    devices: str | None = None,
) -> Audit:
    """Audit a finished run.

    Args:
        epochs: the number of epochs to train again, which may be 0. If None, all epochs are trained
            again, and the new `result.json` is compared too.
        data: the folder that contains IMDB; for a job on the user's own texts, the table or folder
            that contains these texts.
        devices: the value of `--devices`; by default devices like those in the run's record.

    Raises:
        InputError: if the run can't be audited here.
    """
    began_s = time.time()
    try:
        subject = read_subject(folder, data, trains=epochs != 0)
        if epochs is not None:
            epochs = min(epochs, subject.files["metrics.jsonl"].count(b"\n"))
        with scratch_directory() as scratch:
            auditor = Auditor(subject, scratch, data=data, devices=devices)
            with computing(subject.job, auditor.plan.threads, str(auditor.devices)):
                checks = [*auditor.quick()]
                if epochs != 0:
                    checks += auditor.trained(epochs)
    except (RunError, OSError, MemoryError) as error:  # this machine failed; the run may be fine
        why = str(error) or "out of memory"
        raise InputError(f"run {folder}: can't be audited here: {why}") from None
    depth = {None: "full", 0: "quick"}.get(epochs, f"{epochs} epoch{'s' if epochs != 1 else ''}")
    ended_s = time.time()
    return Audit(
        run=folder,
        result_sha256=hashlib.sha256(subject.files[RESULT]).hexdigest(),
        job_sha256=hashlib.sha256(subject.files["job.toml"]).hexdigest(),
        depth=depth,
        checks=tuple(checks),
        others=(*auditor.code_changes, *auditor.others(auditor.machine)),
        tolerance=auditor.tolerance,
        ended_s=ended_s,
        took_s=round(ended_s - began_s, 1),
    )
