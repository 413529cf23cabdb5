"""Makes ensembles, which average the probabilities of runs and of the linear model over n-grams.

The folder of an ensemble contains `ensemble.toml`, copies of the files that the runs need to
classify texts, and the linear model. So the original runs may be changed or removed later.
`ensemble.toml` lists a checksum for each file.
"""

import contextlib
import hashlib
import os
import reprlib
import shlex
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from harness.data.ngrams import MAX_BYTES
from harness.errors import DiskError, InputError
from harness.inference.predict import RATIOS_FILE, Classifier, Prediction
from harness.job.keys import FACTS, Job
from harness.job.own_code import mode_in
from harness.report.baseline import NGRAMS, NgramModel, fitted_ngrams
from harness.report.collect import WITHOUT_RESULT, LeftOut, ScoredRun, read_run, vectors_of
from harness.report.statistics import BROKEN, read_arrays, read_own
from harness.system.console import printable
from harness.system.files import (
    atomic_directory,
    atomic_write,
    open_plain_file,
    raise_unless_missing,
    read_plain_file,
    sha256_of,
    write_refusal,
)
from harness.system.leased_dir import to_json
from harness.system.lenient_json import number
from harness.tracking.provenance import code_of
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    PREDICTIONS,
    RECORD,
    RESULT,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    check_format,
    check_id,
    is_ensemble,
    stamped,
)
from harness.training.launch import dataset_of
from harness.training.metrics import loss_and_accuracy, test_scores

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NGRAMS_FILE = "ngrams.npz"
MODEL_FILES = ("model.keras", "job.toml", RESULT, "vocabulary.txt")
MAYBE = (RATIOS_FILE,)  # files that only some runs have
# With `--weights-from`, a new run takes over the weight of a run in another ensemble. The two runs
# may differ in these keys.
FOR_ALL_REVIEWS = {
    key for key, facts in FACTS.items() if facts.for_all_reviews or facts.changes == "digits"
}

ARCHITECTURE = "ensemble"  # the architecture in tables and in names of folders
MAX_NAME = 100  # largest number of characters of a default name
LEAST = 1e-7  # smallest probability, as in `harness.training.metrics.loss_and_accuracy`
DIGITS = 4  # decimal digits of a weight


class Member(BaseModel, frozen=True, extra="allow"):
    """A member of an ensemble, as listed in `ensemble.toml`."""

    name: str  # `n-grams`, or the original folder of the run
    weight: Annotated[float, Field(ge=0, le=1)]
    sha256: dict[str, str]  # the checksum of each file, by the file's name

    @property
    def is_run(self) -> bool:
        """Whether the member is a run, not the linear model."""
        return self.name != NGRAMS

    @model_validator(mode="after")
    def _check_files(self) -> "Member":
        needed, maybe = ({*MODEL_FILES}, {*MAYBE}) if self.is_run else ({NGRAMS_FILE}, set())
        if not needed <= self.sha256.keys() <= needed | maybe:
            raise ValueError("a member should have the files of a run or of the linear model")
        return self


class Ensemble(BaseModel, frozen=True):
    """An ensemble with a valid `ensemble.toml`; `check` also verifies the checksums."""

    folder: Annotated[Path, Field(exclude=True)]
    dataset_checksum: str
    limit: int  # how many reviews of each split are used, 0 for all
    classes: tuple[str, ...]
    weights_from: str  # folder of the ensemble that provided the weights; empty if none did
    members: tuple[Member, ...]  # the runs, then the linear model if there is one
    settings: dict[str, Any]  # settings that all runs share, by table

    @model_validator(mode="after")
    def _check_members(self) -> "Ensemble":
        if not self.runs or not all(each.is_run for each in self.members[:-1]):
            raise ValueError("the members should be runs, then at most one linear model")
        return self

    @classmethod
    def open(cls, folder: Path, *, option: str = "ensemble") -> "Ensemble":
        """Read the ensemble in a folder; error messages begin with `option` and the folder.

        Raises:
            InputError: if the folder contains no ensemble, or a broken one, or another version's.
        """
        try:
            content = tomllib.loads(read_plain_file(folder / ENSEMBLE_FILE).decode())
        except OSError as error:
            raise InputError(
                f"{option} {folder}: contains no {ENSEMBLE_FILE} that can be read "
                f"({error.strerror}); give the folder of an ensemble"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{option} {folder}: {ENSEMBLE_FILE} is broken: {error}") from None
        check_format(f"{option} {folder}", content)
        try:
            return cls.model_validate(content | {"folder": folder})
        except ValidationError:
            raise InputError(
                f"{option} {folder}: {ENSEMBLE_FILE} is not complete; {MAKE_AGAIN}"
            ) from None

    @property
    def weights(self) -> list[float]:
        """The weights of the members."""
        return [each.weight for each in self.members]

    @property
    def has_ngrams(self) -> bool:
        """Whether the linear model is a member."""
        return not self.members[-1].is_run

    @property
    def runs(self) -> list[RunDirectory]:
        """The copied runs, in the order of the members."""
        num = sum(each.is_run for each in self.members)
        return [RunDirectory(self.folder / run_folder(index)) for index in range(num)]

    def job(self) -> Job:
        """Return the job of the first run.

        Raises:
            InputError: if the job file is broken.
        """
        return self.runs[0].job()

    def check(self) -> None:
        """Refuse the ensemble if the checksum of a file differs from `ensemble.toml`.

        Raises:
            InputError: if a checksum differs; the message names the first such file.
            DiskError: if the disk fails.
        """
        for index, member in enumerate(self.members):
            for name, expected in member.sha256.items():
                path = self.folder / (f"{run_folder(index)}/{name}" if member.is_run else name)
                with _readable(f"ensemble {self.folder}: {path}", path, MAKE_AGAIN):
                    is_same = sha256_of(path) == expected
                if not is_same:
                    raise InputError(
                        f"ensemble {self.folder}: {path} has changed; restore it from a copy, or "
                        f"{MAKE_AGAIN}"
                    )

    def ngrams(self) -> NgramModel | None:
        """Return the linear model; None if the ensemble has none.

        Raises:
            InputError: if the model's file is broken.
            DiskError: if the disk fails.
        """
        if not self.has_ngrams:
            return None
        path = self.folder / NGRAMS_FILE
        with _readable(f"ensemble {self.folder}: {path}", path, MAKE_AGAIN):
            return NgramModel.from_bytes(read_plain_file(path, MAX_BYTES))

    def to_toml(self) -> str:
        """Return the content of `ensemble.toml`."""
        return tomli_w.dumps(stamped(self.model_dump()))


@contextlib.contextmanager
def _readable(what: str, path: Path, remedy: str) -> Iterator[None]:
    """Replace a reading error in the `with` block by a one-line `InputError` or `DiskError`."""
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError):
            raise_unless_missing(error, path)
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} can't be read: {reason}; {remedy}") from None


def run_folder(index: int) -> str:
    """Return the folder of a copied run, relative to the ensemble's folder."""
    return f"members/{index + 1}"


def copied(run: Path, to: Path, code: Mapping[str, str]) -> dict[str, str]:
    """Copy into a new folder the files with which a finished run classifies texts.

    Returns:
        The checksum of each copied file, by the file's name.

    Raises:
        InputError: if a file is missing.
        DiskError: if the disk fails.
        OSError: if the copy can't be written.
    """
    to.mkdir(parents=True)
    mode, sums = mode_in(to, code), {}
    for name in (*MODEL_FILES, *(name for name in MAYBE if os.path.lexists(run / name))):
        with _readable(f"run {run}: {run / name}", run / name, "train a new run"):
            source = open_plain_file(run / name)
        (to / name).touch(mode, exist_ok=False)
        with source, (to / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        sums[name] = sha256_of(to / name)
    return sums


# Classify texts with a run or an ensemble


def open_model(folder: Path) -> RunDirectory | Ensemble:
    """Open the run or the ensemble in a folder.

    Raises:
        InputError: if the folder is neither.
    """
    return Ensemble.open(folder) if is_ensemble(folder) else RunDirectory.open(folder)


def classifier_of(model: RunDirectory | Ensemble) -> "Classifier | EnsembleClassifier":
    """Return an object that classifies texts with a run or an ensemble.

    Raises:
        InputError: if the run is unfinished, or a file is broken.
    """
    return EnsembleClassifier(model) if isinstance(model, Ensemble) else Classifier(model)


class EnsembleClassifier:
    """Classifies texts with the models of an ensemble; each text needs at least one word.

    Raises:
        InputError: if a file of the ensemble is broken or has changed.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        ensemble.check()
        self.classes, self.weights = ensemble.classes, ensemble.weights
        self.ngrams = ensemble.ngrams()
        self.runs = [Classifier(run) for run in ensemble.runs]

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts; `num_unknown` counts the words that the first run does not know."""
        of_runs = [classifier.classify(texts) for classifier in self.runs]
        members = [np.array([[*each.probabilities.values()] for each in one]) for one in of_runs]
        if self.ngrams:
            members.append(self.ngrams.of_texts(texts))
        return [
            replace(
                first,
                predicted=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
            )
            for first, row in zip(of_runs[0], averaged(self.weights, members), strict=True)
        ]


def averaged(
    weights: Sequence[float], members: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the weighted mean of the members' probabilities, `[num_reviews, num_classes]`."""
    return np.asarray(sum(w * each for w, each in zip(weights, members, strict=True)), np.float64)


# The runs of a new ensemble


@dataclass(frozen=True)
class RunMember:
    """A finished run and its predictions."""

    run: RunDirectory
    job: Job
    scored: ScoredRun
    model_checksum: str
    labels: Ints  # [num_test]
    test: Floats  # [num_test, num_classes]
    validation_labels: Ints  # [num_validation]; empty if the run trained on all reviews
    validation: Floats  # [num_validation, num_classes]

    @property
    def shared(self) -> dict[str, Any]:
        """The properties that all runs of an ensemble must share, by their names for messages."""
        result = self.scored.result
        share: object = self.job.data.validation_split
        labels = np.concatenate([self.labels, self.validation_labels])
        return {
            "data": result["dataset_checksum"],
            "data.limit": self.job.data.limit,
            "classes": result["classes"],
            # If the dataset has its own validation split, every share above 0 selects this split.
            "data.validation_split": "given" if result.get("validation_is_given") else share,
            "labels of predictions": hashlib.sha256(labels.tobytes()).hexdigest(),
        }


def read_members(folders: Sequence[Path]) -> list[RunMember]:
    """Read the runs in some folders, in the order of the folders.

    Raises:
        InputError: if a run can't be a member, is given twice, or does not match the first run.
    """
    members: list[RunMember] = []
    for folder in folders:
        each = read_member(folder)
        for other in members:
            if each.model_checksum == other.model_checksum:
                raise InputError(
                    f"run {folder}: has the same model as {other.run.folder}; name each run once"
                )
        first = members[0] if members else each
        remedy = "give runs with the same value"
        check_equal(f"run {folder}", each.shared, f"{first.run.folder}", first.shared, remedy)
        members.append(each)
    return members


def check_equal(
    whose: str, mine: Mapping[str, Any], other: str, theirs: Mapping[str, Any], remedy: str
) -> None:
    """Raise an error if two sets of properties or settings differ.

    Raises:
        InputError: if a value differs; the message shows the first difference.
    """
    for key in sorted({*mine, *theirs}):
        if mine.get(key) != theirs.get(key):
            values = reprlib.repr(mine.get(key)), reprlib.repr(theirs.get(key))
            raise InputError(f"{whose}: has {key} = {values[0]}, {other} has {values[1]}; {remedy}")


def read_member(folder: Path) -> RunMember:
    """Read a finished run with its predictions.

    Raises:
        InputError: if the run is unfinished, untested or unreadable, or from another version.
    """
    run = RunDirectory.open(folder)
    job = run.job()  # refuses runs of other versions and code of other users
    scored = read_run(folder)
    if isinstance(scored, LeftOut):
        raise InputError(
            f"run {folder}: {scored.kind}: {scored.why}; give finished runs with test scores"
        )
    again = f"train it again: harness train {shlex.quote(str(folder / 'job.toml'))}"
    with _readable(f"run {folder}: its predictions", folder / PREDICTIONS, again):
        labels, test = read_own(scored, len(scored.result["classes"]))
    validation_labels, validation = labels[:0], test[:0]
    if job.data.validation_split > 0:
        path = folder / VALIDATION_PREDICTIONS
        with _readable(f"run {folder}: {path.name}", path, again):
            validation_labels, validation = read_arrays(path)
            if validation.shape[1] != test.shape[1]:
                raise ValueError("its classes are not those of the test predictions")
    model = folder / "model.keras"
    with _readable(f"run {folder}: its model", model, again):
        checksum = sha256_of(model)
    return RunMember(run, job, scored, checksum, labels, test, validation_labels, validation)


def check_same_jobs(members: Sequence[RunMember], ensemble: Ensemble, *, ngrams: bool) -> None:
    """Check that new runs have the jobs of an ensemble's runs, in the same order.

    Args:
        members: the new runs, trained on all training reviews.
        ensemble: the older ensemble that provides the weights. These weights were chosen on
            validation reviews, on which the older ensemble's runs were not trained.
        ngrams: whether the linear model will be a member of the new ensemble.

    Raises:
        InputError: if the jobs differ; the message shows the first difference.
    """
    of, remedy = f"--weights-from {ensemble.folder}", "give an ensemble of the same jobs"
    if ensemble.weights_from:
        raise InputError(
            f"{of}: this ensemble took its weights from ensemble {ensemble.weights_from}; "
            f"give --weights-from {ensemble.weights_from}"
        )
    data = members[0].shared["data"]
    theirs = {"runs": len(ensemble.runs), "n-grams": ensemble.has_ngrams}
    mine = {"runs": len(members), "n-grams": ngrams, "data": data}
    check_equal(of, theirs | {"data": ensemble.dataset_checksum}, "the new one", mine, remedy)
    for run, member in zip(ensemble.runs, members, strict=True):
        expected = _deciding(run.job(), run.certain_json(RESULT))
        found = _deciding(member.job, member.scored.result)
        remedy = "give runs of the same jobs in the same order"
        check_equal(f"{of}: {run.folder}", expected, f"{member.run.folder}", found, remedy)


def _deciding(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must agree before a run gets the ensemble weight of another run."""
    ignored = {*WITHOUT_RESULT, *FOR_ALL_REVIEWS}
    settings = {key: value for key, value in job.settings().items() if key not in ignored}
    return settings | vectors_of(result) | {"code": dict(job.code)}


# The new ensemble


@dataclass(frozen=True)
class Request:
    """The arguments of `harness ensemble`."""

    folders: Sequence[Path]  # the folders of the runs
    ngrams: bool  # whether the linear model becomes a member
    weights_from: Path | None
    data: Path | None  # folder of the dataset, if the dataset has moved
    name: str | None  # the ensemble's name; by default made from the names of the jobs
    run_id: str | None


@dataclass(frozen=True)
class Part:
    """The predictions of the members and of the ensemble for the validation or test reviews."""

    labels: Ints  # [num_reviews]
    members: Sequence[Floats]  # [num_reviews, num_classes] of each member
    weights: Sequence[float]

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays of `predictions.npz`."""
        found = averaged(self.weights, self.members)
        shown = found[:, 1] if found.shape[1] == 2 else found
        return {"probabilities": shown.astype(np.float32), "labels": self.labels.astype(np.int32)}

    @property
    def scores(self) -> list[tuple[float, float]]:
        """The loss (in nats) and the accuracy of each member, then of the ensemble."""
        found = [loss_and_accuracy(self.labels, each) for each in self.members]
        return [*found, loss_and_accuracy(**self.arrays)]


@dataclass(frozen=True)
class Made:
    """A new ensemble."""

    folder: Path
    result: Mapping[str, Any]  # the content of `result.json`
    cells: "pandas.DataFrame"  # a table of texts: a row per member, then one for the ensemble


def make_ensemble(request: Request, runs: Path, say: Callable[[str], None]) -> Made:
    """Make an ensemble in the folder `<runs>/<name>/<run-id>`.

    Without `request.weights_from`, the weights of the ensemble's members minimize the log loss on
    the validation reviews. With `request.weights_from`, the folder of an older ensemble, the
    members get the older ensemble's weights, and the runs must be trained on all training reviews.
    The linear model over n-grams is fit to the same training reviews as the runs. Nothing is
    chosen on the test set.

    Args:
        request: the arguments of `harness ensemble`.
        runs: the folder that contains the runs and ensembles of all jobs.
        say: a function that prints a line; called before the linear model is fit.

    Raises:
        InputError: if the runs can't be combined, or the folder exists.
        DiskError: if the folder can't be written.
    """
    folders = request.folders
    if len(folders) == 1 and not request.ngrams:
        raise InputError(
            f"run {folders[0]}: a single run is not an ensemble; name more, or add --with ngrams"
        )
    members = read_members(folders)
    first = members[0]
    weights = _given_weights(request, members)
    folder = _new_folder(request, members, runs)
    validation, test = [each.validation for each in members], [each.test for each in members]
    kept = None
    if request.ngrams:
        kept, *found = _linear_model(request, first, say)
        validation, test = [*validation, found[0]], [*test, found[1]]
    weights = weights or best_weights(first.validation_labels, validation)
    parts = {PREDICTIONS: Part(first.labels, test, weights)}
    if len(first.validation_labels):
        parts[VALIDATION_PREDICTIONS] = Part(first.validation_labels, validation, weights)
    made = Made(folder, _result(folder, members, kept, parts), _cells(folders, weights, parts))
    origin = printable(str(request.weights_from.absolute())) if request.weights_from else ""
    try:
        with atomic_directory(folder) as temporary:
            ensemble = _copy_members(temporary, members, kept, weights, origin)
            for name, part in parts.items():
                atomic_write(temporary / name, partial(np.savez, **part.arrays))
            atomic_write(temporary / ENSEMBLE_FILE, ensemble.to_toml())
            dataset = first.run.read_json(RECORD).get("dataset")
            record = stamped({**code_of(RunDirectory(folder)), "dataset": dataset})
            atomic_write(temporary / RECORD, to_json(record), 0o600)
            atomic_write(temporary / RESULT, to_json(dict(made.result)))
    except OSError as error:
        raise DiskError(write_refusal(folder, error)) from None
    return made


# The weights


def best_weights(labels: Ints, members: Sequence[Floats]) -> list[float]:
    """Return the weights that minimize the log loss of the members' weighted mean.

    No weight is negative, and the sum of the weights is 1. The loss is convex in the weights, so
    the search finds the minimum from every start. The weights are rounded to four digits, so that
    rounding errors of the search don't show.

    Args:
        labels: the labels from 0, `[num_reviews]`.
        members: the probabilities `[num_reviews, num_classes]` of each member.
    """
    from scipy.optimize import minimize

    reviews = np.arange(len(labels))
    of_truth = np.stack([np.clip(each[reviews, labels], LEAST, 1) for each in members])

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(weights @ of_truth, LEAST)
        return -float(np.log(mixed).mean()), -(of_truth / mixed).mean(axis=1)

    num = len(members)
    found = minimize(
        loss,
        np.full(num, 1 / num),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(num)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.round(np.clip(found.x, 0, 1), DIGITS)
    weights[weights.argmax()] += 1 - weights.sum()
    return [round(float(weight), DIGITS) for weight in weights]


def _given_weights(request: Request, members: Sequence[RunMember]) -> list[float]:
    """Return the weights of the ensemble `weights_from`; empty without this option."""
    first = members[0].run.folder
    if not request.weights_from:
        if not len(members[0].validation_labels):
            raise InputError(
                f"run {first}: was trained on all training reviews (data.validation_split = 0), so "
                "no reviews are left to choose weights; give --weights-from ENSEMBLE, an ensemble "
                "of runs of the same jobs with validation reviews"
            )
        return []
    if len(members[0].validation_labels):
        raise InputError(
            f"--weights-from {request.weights_from}: run {first} has validation reviews, on which "
            "the weights are chosen; leave --weights-from out"
        )
    ensemble = Ensemble.open(request.weights_from, option="--weights-from")
    check_same_jobs(members, ensemble, ngrams=request.ngrams)
    return ensemble.weights


def _linear_model(
    request: Request, member: RunMember, say: Callable[[str], None]
) -> tuple[NgramModel, Floats, Floats]:
    """Return the linear model for the training reviews of a run.

    Returns:
        The model, and its probabilities for the validation reviews and for the test reviews.
    """
    dataset = dataset_of(member.run, member.job, request.data)
    limit, share = member.job.data.limit, member.job.data.validation_split
    test = dataset.test.take(limit) if limit else dataset.test
    train, cut = dataset.used(limit, share)
    rest = train.between(cut, len(train))
    for split, labels in ((test, member.labels), (rest, member.validation_labels)):
        is_same = [*dataset.classes] == member.scored.result["classes"]
        if not is_same or not np.array_equal(split.labels, labels):
            raise InputError(
                f"run {member.run.folder}: its predictions are not for the reviews of "
                f"{dataset.title}; train it again"
            )
    kept = fitted_ngrams(dataset, share, say, limit=limit, option="--with")
    found = kept.probabilities(test)
    return kept, kept.probabilities(rest) if len(rest) else found[:0], found


# The files of the new ensemble


def _new_folder(request: Request, members: Sequence[RunMember], runs: Path) -> Path:
    jobs = dict.fromkeys(each.job.name for each in members)
    name = "_".join([ARCHITECTURE, *jobs, *(["ngrams"] if request.ngrams else [])])[:MAX_NAME]
    if request.name is not None:
        check_id("--name", name := request.name)
    seeds = "-".join(dict.fromkeys(str(each.job.train.seed) for each in members))
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seeds}"[:MAX_NAME]
    if request.run_id is not None:
        check_id("--run-id", run_id := request.run_id)
    folder = runs / name / run_id
    if folder.exists():
        raise InputError(f"ensemble {folder}: exists already; choose another --run-id")
    return folder


def _result(
    folder: Path,
    members: Sequence[RunMember],
    kept: NgramModel | None,
    parts: Mapping[str, Part],
) -> dict[str, Any]:
    """Return the content of the ensemble's `result.json`, with the same keys as a run's."""
    results = [each.scored.result for each in members]
    models: list[Mapping[str, Any]] = [*results]
    if kept:
        models.append({"parameters": kept.parameters, "training_s": kept.training_s})
    validation, test = parts.get(VALIDATION_PREDICTIONS), parts[PREDICTIONS].arrays
    loss, accuracy = validation.scores[-1] if validation else (None, None)
    of_data = ("data", "dataset_checksum", "classes", "num_training")
    return {
        "job": folder.parent.name,
        "run": folder.name,
        "architecture": ARCHITECTURE,
        "seed": members[0].job.train.seed,
        **{key: results[0].get(key) for key in of_data},
        "is_sample": results[0].get("is_sample", False),
        "limit": members[0].job.data.limit,
        "num_validation": len(validation.labels) if validation else 0,
        "val_loss": loss,
        "val_accuracy": accuracy,
        "training_s": _sum(models, "training_s"),
        "parameters": _sum(models, "parameters"),
        "recurrent_parameters": _sum(results, "recurrent_parameters"),
        "num_test": len(test["labels"]),
        **test_scores(test["labels"], test["probabilities"]),
    }


def _sum(models: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the sum of the values of `key` over all models; None if a value is unknown."""
    values: list[Any] = [each.get(key) for each in models]
    return None if None in map(number, values) else round(sum(values), 3)


def _cells(
    folders: Sequence[Path], weights: Sequence[float], parts: Mapping[str, Part]
) -> "pandas.DataFrame":
    """Return a row per member, then one for the ensemble: losses in nats, accuracies in %."""
    import pandas

    names = [*(printable(str(folder)) for folder in folders), NGRAMS][: len(weights)]
    texts = [f"{weight:.4f}" for weight in weights]
    cells = pandas.DataFrame({"member": [*names, ARCHITECTURE], "weight": [*texts, ""]})
    for of, name in (("validation", VALIDATION_PREDICTIONS), ("test", PREDICTIONS)):
        if part := parts.get(name):
            cells[f"{of} %"] = [f"{100 * accuracy:.2f}" for _, accuracy in part.scores]
            cells[f"{of} log loss"] = [f"{loss:.4f}" for loss, _ in part.scores]
    return cells


def _copy_members(
    folder: Path,
    runs: Sequence[RunMember],
    kept: NgramModel | None,
    weights: Sequence[float],
    weights_from: str,
) -> Ensemble:
    """Copy the models of the members into a folder; return the ensemble."""
    members = []
    for index, (each, weight) in enumerate(zip(runs, weights, strict=False)):
        sums = copied(each.run.folder, folder / run_folder(index), each.job.code)
        about = {"job": each.job.name, "seed": each.job.train.seed}
        name = printable(str(each.run.folder.absolute()))  # TOML is UTF-8; a path may not be
        members.append(Member(name=name, weight=weight, sha256=sums, **about))
    if kept:
        content = kept.to_bytes()
        atomic_write(folder / NGRAMS_FILE, content)
        sums = {NGRAMS_FILE: hashlib.sha256(content).hexdigest()}
        about = {"num_training": kept.num_training, "C": kept.strength}
        members.append(Member(name=NGRAMS, weight=weights[-1], sha256=sums, **about))
    result = runs[0].scored.result
    return Ensemble(
        folder=folder,
        dataset_checksum=result["dataset_checksum"],
        limit=runs[0].job.data.limit,
        classes=result["classes"],
        weights_from=weights_from,
        members=members,
        settings=shared_settings(runs, ngrams=kept is not None),
    )


def shared_settings(members: Sequence[RunMember], *, ngrams: bool) -> dict[str, Any]:
    """Return the settings that all runs share, by table, and a checksum of the other settings.

    If two ensembles have equal results, the ensembles combine the same jobs and differ only in
    seeds.
    """
    each_has = [dict(each.scored.settings) for each in members]
    first = each_has[0]
    shared = {k: v for k, v in first.items() if all(k in e and e[k] == v for e in each_has)}
    tables: dict[str, Any] = {}
    for key, value in shared.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    own = [{k: v for k, v in each.items() if k not in shared} for each in each_has]
    tables["ensemble"] = {"runs": " + ".join(each.job.name for each in members), "ngrams": ngrams}
    if any(own):
        tables["ensemble"]["differing"] = hashlib.sha256(to_json({"of": own}).encode()).hexdigest()
    return tables
