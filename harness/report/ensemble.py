"""Makes ensembles, which average the probabilities of runs and of the linear model over n-grams.

The folder of an ensemble contains `ensemble.toml` and the linear model, if it is a member.
`ensemble.toml` contains the paths of the runs' folders and the checksums of the runs' models. The
folders of the runs must remain, because an ensemble computes with the runs' models.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from harness.data.ngrams import MAX_BYTES
from harness.errors import DiskError, InputError
from harness.inference.predict import Classifier, Prediction
from harness.job.keys import Job
from harness.report.baseline import NgramModel, fitted_ngrams
from harness.report.collect import LeftOut, ScoredRun, as_text, read_run
from harness.report.statistics import BROKEN, read_arrays
from harness.system.console import printable
from harness.system.files import (
    atomic_directory,
    atomic_write,
    raise_unless_missing,
    read_plain_file,
    sha256_of,
    write_refusal,
)
from harness.system.leased_dir import to_json
from harness.system.lenient_json import number
from harness.tracking.provenance import code_of
from harness.tracking.run_dir import (
    CHECKSUMS,
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    PREDICTIONS,
    RECORD,
    RESULT,
    TIME,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    check_format,
    check_id,
    is_ensemble,
    stamped,
)
from harness.training.launch import dataset_of, moved_job
from harness.training.metrics import loss_and_accuracy, test_scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NGRAMS_FILE = "ngrams.npz"

ARCHITECTURE = "ensemble"  # the architecture in tables and in names of folders
MAX_NAME = 100  # largest number of characters of a default name
LEAST = 1e-7  # smallest probability, as in `harness.training.metrics.loss_and_accuracy`
DIGITS = 4  # decimal digits of a weight


Weight = Annotated[float, Field(ge=0, le=1)]


class MemberRun(BaseModel, frozen=True):
    """A run in an ensemble."""

    weight: Weight
    folder: str  # the run's path relative to the ensemble's folder, so both can be moved together
    job: str  # the name of the run's job
    model_checksum: str  # the sha256 of `model.keras`


class Ensemble(BaseModel, frozen=True):
    """An ensemble with a valid `ensemble.toml`; `EnsembleClassifier` verifies the models' files."""

    folder: Path
    dataset_checksum: str
    runs: Annotated[tuple[MemberRun, ...], Field(min_length=1)]
    ngrams_weight: Weight | None = None  # the weight of the linear model, if it is a member
    weights_from: str = ""  # the ensemble that supplied the averaging weights; harness ignores it
    settings: dict[str, Any]  # the settings of the runs (see `settings_of`)

    @classmethod
    def open(cls, folder: Path, *, option: str = "ensemble") -> "Ensemble":
        """Read the ensemble in a folder; error messages begin with `option` and the folder.

        Raises:
            InputError: if the folder contains no ensemble, if the ensemble is broken, or if another
                version of the harness made the ensemble.
            DiskError: if the disk fails.
        """
        content = RunDirectory(folder).certain_toml(ENSEMBLE_FILE)
        check_format(f"{option} {folder}", content)
        try:
            return cls.model_validate(content | {"folder": folder})
        except ValidationError:
            raise InputError(
                f"{option} {folder}: {ENSEMBLE_FILE} is missing or broken; give the folder of an "
                f"ensemble, or {MAKE_AGAIN}"
            ) from None

    @property
    def weights(self) -> list[float]:
        """The averaging weights of the runs, then that of the linear model if it is a member."""
        of_model = [] if self.ngrams_weight is None else [self.ngrams_weight]
        return [*(each.weight for each in self.runs), *of_model]

    def members(self) -> list[RunDirectory]:
        """Return the runs of the ensemble, in the order of `runs`.

        Raises:
            InputError: if a run is missing.
        """
        return [RunDirectory.open((self.folder / each.folder).resolve()) for each in self.runs]

    def job(self) -> Job:
        """Return the job of the first run.

        Raises:
            InputError: if the run is missing, or its job file is broken.
        """
        return self.members()[0].job()


@contextlib.contextmanager
def _readable(whose: str, path: Path, remedy: str) -> Iterator[None]:
    """Raise a one-line `InputError` or `DiskError` if the `with` block can't use a file."""
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError):
            raise_unless_missing(error, path)
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{whose}: {path} can't be used: {reason}; {remedy}") from None


# Classify texts with a run or an ensemble


def open_model(folder: Path) -> RunDirectory | Ensemble:
    """Open the run or the ensemble in a folder.

    Raises:
        InputError: if the folder is neither a run nor an ensemble, or if the run has no model.
        DiskError: if the disk fails.
    """
    if is_ensemble(folder):
        return Ensemble.open(folder)
    run = RunDirectory.open(folder)
    run.model_file()
    return run


def classifier_of(model: RunDirectory | Ensemble) -> "Classifier | EnsembleClassifier":
    """Return an object that classifies texts with a run or an ensemble.

    Raises:
        InputError: if the run is unfinished, or a file is broken.
        DiskError: if the disk fails.
    """
    return EnsembleClassifier(model) if isinstance(model, Ensemble) else Classifier(model)


class EnsembleClassifier:
    """Classifies texts with the models of an ensemble; each text needs at least one word.

    Raises:
        InputError: if a file of the ensemble is missing, or the model of a run has changed.
        DiskError: if the disk fails.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        whose, members = f"ensemble {ensemble.folder}", ensemble.members()
        for run, member in zip(members, ensemble.runs, strict=True):
            path = run.model_file()
            with _readable(whose, path, MAKE_AGAIN):
                is_same = sha256_of(path) == member.model_checksum
            if not is_same:
                raise InputError(f"{whose}: {path} has changed; {MAKE_AGAIN}")
        self.weights, self.ngrams = ensemble.weights, None
        if ensemble.ngrams_weight is not None:
            path = ensemble.folder / NGRAMS_FILE
            with _readable(whose, path, MAKE_AGAIN):
                self.ngrams = NgramModel.from_bytes(read_plain_file(path, MAX_BYTES))
        self.runs = [Classifier(run) for run in members]
        self.classes = self.runs[0].classes

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts.

        The field `num_unknown` of a prediction counts the words that are not in the vocabulary of
        the ensemble's first run.
        """
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


def averaged(weights: Sequence[float], members: Sequence[Floats]) -> Floats:
    """Return the weighted mean of the members' probabilities, `[num_reviews, num_classes]`."""
    return np.asarray(sum(w * each for w, each in zip(weights, members, strict=True)), np.float64)


# The runs of a new ensemble


@dataclass(frozen=True)
class RunMember:
    """A finished run and its predictions."""

    run: ScoredRun
    job: Job
    # Maps the name of each file with predictions to the file's labels, `[num_reviews]`, and
    # probabilities, `[num_reviews, num_classes]`. A run on all training reviews has no
    # VALIDATION_PREDICTIONS.
    predictions: Mapping[str, tuple[Ints, Floats]]

    @property
    def shared(self) -> dict[str, Any]:
        """The properties that all runs of an ensemble must share.

        Error messages name a property by its key in the returned dictionary.
        """
        labels, _ = self.predictions.get(VALIDATION_PREDICTIONS, ((), None))
        return {
            "data": self.run.result["dataset_checksum"],
            "data.limit": self.job.data.limit,
            "validation reviews": len(labels),
        }


def read_members(folders: Sequence[Path]) -> list[RunMember]:
    """Read the runs in some folders, in the order of the folders.

    Raises:
        InputError: if a run can't be a member, or does not match the first run.
    """
    first, *others = members = [read_member(folder) for folder in folders]
    for each in others:
        for key, expected in first.shared.items():
            if each.shared[key] != expected:
                raise InputError(
                    f"run {each.run.folder}: has {key} = {each.shared[key]}, but "
                    f"{first.run.folder} has {expected}; give runs with the same value"
                )
    return members


def read_member(folder: Path) -> RunMember:
    """Read a finished run with its predictions.

    Raises:
        InputError: if the run is unfinished, untested, unreadable or changed, or if another version
            of the harness made the run.
    """
    # `job` refuses a run that another version made, and a run that needs another user's code.
    job = RunDirectory.open(folder).job()
    run = read_run(folder)
    if isinstance(run, LeftOut):
        raise InputError(
            f"run {folder}: {run.kind}: {run.why}; give finished runs with test scores"
        )
    again = (
        "restore the file from a copy, or train the run again: harness train "
        f"{shlex.quote(f'{folder}/job.toml')}"
    )
    has_validation = job.data.validation_split > 0
    num_classes, predictions = len(run.result["classes"]), {}
    for name in [PREDICTIONS, *([VALIDATION_PREDICTIONS] if has_validation else [])]:
        path, checksum = folder / name, run.result.get(CHECKSUMS[name])
        with _readable(f"run {folder}", path, again):
            predictions[name] = read_arrays(path, num_classes, checksum)
    return RunMember(run, job, predictions)


# The new ensemble


def make_ensemble(
    folders: Sequence[Path],
    runs: Path,
    *,
    ngrams: bool = False,
    weights_from: Path | None = None,
    data: Path | None = None,
    run_id: str | None = None,
) -> tuple[Path, dict[str, Any], list[float]]:
    """Make an ensemble in the folder `<runs>/ensemble_<jobs>[_ngrams]/<run-id>`.

    A member's averaging weight is its share in the average of the members' probabilities. Without
    `weights_from`, the averaging weights minimize the log loss on the validation reviews. With
    `weights_from`, the averaging weights are copied from an older ensemble. The averaging weights
    do not depend on the test reviews. The linear model over n-grams is fit to the same training
    reviews as the runs.

    Args:
        folders: the folders of the runs.
        runs: the folder that contains the runs and ensembles of all jobs.
        ngrams: whether the linear model becomes a member.
        weights_from: the folder of an older ensemble, from which the weights of the average are
            copied.
        data: the new path of the data (the folder of IMDB, or the user's texts); None = not moved.
        run_id: the ensemble's id; by default made from the time and the seeds.

    Returns:
        The ensemble's folder, the content of its `result.json`, and the members' averaging
        weights. If the linear model is a member, its averaging weight is the last.

    Raises:
        InputError: if the runs can't be combined, or the folder exists.
        DiskError: if the folder can't be written.
    """
    if len(folders) == 1 and not ngrams:
        raise InputError(
            f"run {folders[0]}: a single run is not an ensemble; name more runs, or add "
            "--with ngrams"
        )
    resolved = [folder.resolve() for folder in folders]
    if twice := [folder for folder in folders if resolved.count(folder.resolve()) > 1]:
        raise InputError(f"run {twice[-1]}: is named twice; name each run once")
    members = read_members(folders)
    first = members[0]
    weights = _given_weights(members, weights_from, ngrams=ngrams)
    folder = _new_folder(runs, members, run_id, ngrams=ngrams)
    labels = {file: of_first for file, (of_first, _) in first.predictions.items()}
    found = {file: [each.predictions[file][1] for each in members] for file in labels}
    model = None
    if ngrams:
        model, of_model = _linear_model(first, data)
        found = {file: [*found[file], of_model[file]] for file in found}
    weights = weights or best_weights(labels[VALIDATION_PREDICTIONS], found[VALIDATION_PREDICTIONS])
    arrays = {file: _arrays(labels[file], averaged(weights, found[file])) for file in found}
    result = _result(folder, members, model, arrays)
    try:
        with atomic_directory(folder) as temporary:
            if model:
                atomic_write(temporary / NGRAMS_FILE, model.to_bytes())
            content = content_of(folder, members, model, weights, weights_from)
            atomic_write(temporary / ENSEMBLE_FILE, tomli_w.dumps(stamped(content)))
            for file, each_array in arrays.items():
                atomic_write(temporary / file, partial(np.savez, **each_array))
                result[CHECKSUMS[file]] = sha256_of(temporary / file)
            starts = [{"at": time.strftime(TIME)}]
            record = stamped({**code_of(RunDirectory(folder)), "starts": starts})
            atomic_write(temporary / RECORD, to_json(record), 0o600)
            atomic_write(temporary / RESULT, to_json(result))
    except OSError as error:
        raise DiskError(write_refusal(folder, error)) from None
    return folder, result, weights


def _new_folder(
    runs: Path, members: Sequence[RunMember], run_id: str | None, *, ngrams: bool
) -> Path:
    if run_id is not None:
        check_id("--run-id", run_id)
    jobs = dict.fromkeys(each.job.name for each in members)
    name = "_".join([ARCHITECTURE, *jobs, *(["ngrams"] if ngrams else [])])
    seeds = "-".join(dict.fromkeys(str(each.job.train.seed) for each in members))
    begun = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seeds}"
    folder = runs / name[:MAX_NAME] / (run_id or begun[:MAX_NAME])
    if folder.exists():
        raise InputError(f"ensemble {folder}: exists already; choose another --run-id")
    return folder


def _linear_model(member: RunMember, data: Path | None) -> tuple[NgramModel, dict[str, Floats]]:
    """Fit the linear model to the training reviews of a run.

    Returns:
        The model, and a dictionary that maps the name of each of the run's prediction files to the
        model's probabilities for the reviews in the file.
    """
    run = RunDirectory(member.run.folder)
    dataset = dataset_of(run, *moved_job(run, data))
    limit, share = member.job.data.limit, member.job.data.validation_split
    train, cut = dataset.used(limit, share)
    splits = {
        PREDICTIONS: dataset.test.take(limit or len(dataset.test)),
        VALIDATION_PREDICTIONS: train.between(cut, len(train)),
    }
    model = fitted_ngrams(dataset, share, limit=limit)
    return model, {file: model.probabilities(splits[file]) for file in member.predictions}


def _arrays(labels: Ints, probabilities: Floats) -> dict[str, Any]:
    """Return the arrays of `predictions.npz`.

    If there are two classes, the returned `probabilities` are only those of label 1.
    """
    shown = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return {"probabilities": shown.astype(np.float32), "labels": labels.astype(np.int32)}


# The weights


def best_weights(labels: Ints, members: Sequence[Floats]) -> list[float]:
    """Return the averaging weights that minimize the log loss of the members' weighted mean.

    No weight is negative, and the sum of the weights is 1. The loss is convex in the weights, so
    the minimization finds the minimum from any starting point. The weights are rounded to four
    digits, which hides the rounding errors of the minimization.

    Args:
        labels: the index of each review's class, `[num_reviews]`.
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


def _given_weights(
    members: Sequence[RunMember], weights_from: Path | None, *, ngrams: bool
) -> list[float]:
    """Return the averaging weights of the ensemble `weights_from`; empty if it is None.

    The runs of `weights_from` must have the same networks as `members`, in the same order. Their
    training may differ: the runs in `members` may have used the validation reviews too.

    Raises:
        InputError: if the members or the data of `weights_from` differ from those of the new
            ensemble; or if `weights_from` is None and `members` have no validation reviews.
    """
    if not weights_from:
        if VALIDATION_PREDICTIONS in members[0].predictions:
            return []
        raise InputError(
            f"run {members[0].run.folder}: was trained on all training reviews "
            "(data.validation_split = 0), so no reviews are left to choose the ensemble's weights; "
            "give --weights-from ENSEMBLE, where ENSEMBLE is an ensemble of the same jobs with "
            "data.validation_split above 0"
        )
    ensemble = Ensemble.open(weights_from, option="--weights-from")
    mine = {"data": members[0].shared["data"], **settings_of(members, ngrams=ngrams)}
    theirs = {"data": ensemble.dataset_checksum, **ensemble.settings}
    for key, value in mine.items():
        is_shared = key in ("data", "data.limit") or key.startswith(("ensemble.", "model."))
        if is_shared and as_text(value) != as_text(theirs.get(key)):
            raise InputError(
                f"--weights-from {weights_from}: has {key} = {theirs.get(key)}, but the new "
                f"ensemble has {value}; give an ensemble of the same data and the same jobs, in "
                "the same order"
            )
    return ensemble.weights


# The files of the new ensemble


def content_of(
    folder: Path,
    members: Sequence[RunMember],
    model: NgramModel | None,
    weights: Sequence[float],
    weights_from: Path | None,
) -> dict[str, Any]:
    """Return the content of `ensemble.toml` for an ensemble in `folder`."""
    runs = tuple(
        MemberRun(
            weight=weight,
            folder=printable(os.path.relpath(each.run.folder.resolve(), folder.resolve())),
            job=each.run.job,
            model_checksum=sha256_of(RunDirectory(each.run.folder).model_file()),
        )
        for each, weight in zip(members, weights, strict=False)
    )
    ensemble = Ensemble(
        folder=folder,
        dataset_checksum=members[0].run.result["dataset_checksum"],
        runs=runs,
        ngrams_weight=weights[-1] if model else None,
        weights_from=printable(str(weights_from.absolute())) if weights_from else "",
        settings=settings_of(members, ngrams=model is not None),
    )
    return ensemble.model_dump(exclude={"folder"}, exclude_none=True)


def settings_of(members: Sequence[RunMember], *, ngrams: bool) -> dict[str, Any]:
    """Return the settings of an ensemble's runs, with `table.key` as keys.

    If the runs have different values of a key, the setting lists all runs' values: `16 + 32`.
    Ensembles with equal settings combine the same jobs; the seeds may differ.
    """
    of_runs = [each.run.settings for each in members]
    settings = {
        "ensemble.runs": " + ".join(each.run.job for each in members),
        "ensemble.ngrams": ngrams,
    }
    for key in {key: None for each in of_runs for key in each}:
        texts = [as_text(each.get(key)) for each in of_runs]
        is_shared = len({*texts}) == 1
        settings[key] = of_runs[0][key] if is_shared else " + ".join(texts)
    return settings


def _result(
    folder: Path,
    members: Sequence[RunMember],
    model: NgramModel | None,
    arrays: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of the ensemble's `result.json`.

    The `result.json` of an ensemble lacks some keys that the `result.json` of a run has.
    """
    results = [each.run.result for each in members]
    models: list[Mapping[str, Any]] = [*results]
    if model:
        models.append({"parameters": model.parameters, "training_s": model.training_s})
    validation = arrays.get(VALIDATION_PREDICTIONS)
    loss, accuracy = loss_and_accuracy(**validation) if validation else (None, None)
    of_data = ("data", "dataset_checksum", "classes", "num_training")
    return {
        "job": folder.parent.name,
        "run": folder.name,
        "architecture": ARCHITECTURE,
        "seed": members[0].job.train.seed,
        **{key: results[0].get(key) for key in of_data},
        "is_sample": results[0].get("is_sample", False),
        "limit": members[0].job.data.limit,
        "num_validation": members[0].shared["validation reviews"],
        "val_loss": loss,
        "val_accuracy": accuracy,
        "training_s": _sum(models, "training_s"),
        "parameters": _sum(models, "parameters"),
        "recurrent_parameters": _sum(results, "recurrent_parameters"),
        "num_test": len(arrays[PREDICTIONS]["labels"]),
        **test_scores(**arrays[PREDICTIONS]),
    }


def _sum(models: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the sum of the values of `key` over all models; an unknown value counts as 0."""
    return round(sum(number(each.get(key)) or 0 for each in models), 3)
