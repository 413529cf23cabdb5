"""Makes an ensemble: checks its runs, chooses the weights, scores it and writes its folder."""

import contextlib
import hashlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import DiskError, InputError
from harness.job.keys import FACTS, Job
from harness.report.baseline import NgramModel, fitted_ngrams
from harness.report.collect import WITHOUT_RESULT, LeftOut, ScoredRun, read_run, vectors_of
from harness.report.ensemble_folder import (
    NGRAMS,
    NGRAMS_FILE,
    Ensemble,
    Member,
    averaged,
    copied,
    run_folder,
    sha256_of,
)
from harness.report.statistics import BROKEN, read_arrays, read_own
from harness.report.text_tables import Line
from harness.system.console import printable
from harness.system.files import atomic_directory, atomic_write, write_refusal
from harness.system.leased_dir import to_json
from harness.system.lenient_json import number
from harness.tracking.provenance import code_of
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    PREDICTIONS,
    RECORD,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    check_id,
    stamped,
)
from harness.training.launch import dataset_of
from harness.training.metrics import loss_and_accuracy, test_scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# In which a run on all training reviews may differ from the one whose weights it takes.
FOR_ALL_REVIEWS = {
    key for key, facts in FACTS.items() if facts.for_all_reviews or facts.changes == "digits"
}

ARCHITECTURE = "ensemble"  # in tables, and in names of folders
MAX_NAME = 100  # characters
LEAST = 1e-7  # of a probability, as in `harness.training.metrics.loss_and_accuracy`
DIGITS = 4  # of a weight


@dataclass(frozen=True)
class RunMember:
    """A finished run and its predictions."""

    run: RunDirectory
    job: Job
    scored: ScoredRun
    model_checksum: str
    labels: Ints  # of the test reviews
    test: Floats  # [num_test, num_classes]
    validation_labels: Ints  # none if it was trained on all training reviews
    validation: Floats  # [num_validation, num_classes]

    @property
    def shared(self) -> dict[str, Any]:
        """What is the same for all runs of an ensemble, by the names of messages."""
        result = self.scored.result
        share: object = self.job.data.validation_split
        return {
            "data": result["dataset_checksum"],
            "data.limit": self.job.data.limit,
            "classes": result["classes"],
            # Their own validation split is the same whatever the share.
            "data.validation_split": "given" if result.get("validation_is_given") else share,
        }


def read_members(folders: Sequence[Path]) -> list[RunMember]:
    """Read the runs, in the order given.

    Raises:
        InputError: for the first run that can't be a member, or does not fit the others.
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
        for name, mine in each.shared.items():
            if mine != (others := first.shared[name]):
                raise InputError(
                    f"run {folder}: its {name} is {str(mine)[:12]}, that of {first.run.folder} "
                    f"{str(others)[:12]}; an ensemble's runs should have the same"
                )
        if not (
            np.array_equal(each.labels, first.labels)
            and np.array_equal(each.validation_labels, first.validation_labels)
        ):
            raise InputError(
                f"run {folder}: its predictions are of other reviews than those of "
                f"{first.run.folder}; train it again"
            )
        members.append(each)
    return members


def read_member(folder: Path) -> RunMember:
    """Read a finished run with its predictions.

    Raises:
        InputError: if it is unfinished, not tested, of another version, or can't be read.
        RunError: if its result is broken.
    """
    run = RunDirectory.open(folder)
    job = run.job()  # refuses another version's, and others' code
    if not run.finished():
        raise InputError(f"run {folder}: is unfinished; harness resume {folder} first")
    if not job.data.test:
        raise InputError(
            f"run {folder}: leaves the test set unread (data.test = false); train a run of it with "
            "--set data.test=true"
        )
    run.result()  # refuses a broken one
    scored = read_run(folder)
    if isinstance(scored, LeftOut):
        raise InputError(f"run {folder}: {scored.why}")
    again = f"train it again by: harness train {shlex.quote(str(folder / 'job.toml'))}"
    with _refused_if_broken(f"run {folder}: its predictions", again):
        labels, test = read_own(scored)
        if (num := len(scored.result["classes"])) != test.shape[1]:
            raise ValueError(f"they tell {test.shape[1]} classes apart, result.json {num}")
    validation_labels, validation = labels[:0], test[:0]
    if job.data.validation_split > 0:
        path = folder / VALIDATION_PREDICTIONS
        with _refused_if_broken(f"run {folder}: {path.name}", again):
            validation_labels, validation = read_arrays(path)
            if validation.shape[1] != test.shape[1]:
                raise ValueError("they are of other classes")
    with _refused_if_broken(f"run {folder}: its model", again):
        checksum = sha256_of(folder / "model.keras")
    return RunMember(run, job, scored, checksum, labels, test, validation_labels, validation)


@contextlib.contextmanager
def _refused_if_broken(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} can't be read: {reason}; {remedy}") from None


def check_same_jobs(members: Sequence[RunMember], ensemble: Ensemble, *, ngrams: bool) -> None:
    """Refuse the weights of an ensemble of other jobs, or in another order.

    Args:
        members: runs on all training reviews.
        ensemble: of runs with validation reviews.
        ngrams: whether the linear model is to be a member.

    Raises:
        InputError: with the first difference.
    """
    of = f"--weights-from {ensemble.folder}"
    if ensemble.weights_from:
        raise InputError(f"{of}: has the weights of {ensemble.weights_from}; give that one")
    same = members[0].shared
    for what, theirs, mine in (
        ("{}n-grams as a member", "" if ensemble.has_ngrams else "no ", "" if ngrams else "no "),
        ("{} runs", len(ensemble.runs), len(members)),
        ("data = {:.12}", ensemble.dataset_checksum, same["data"]),
        ("data.limit = {}", ensemble.limit, same["data.limit"]),
    ):
        if theirs != mine:
            has, here = what.format(theirs), what.format(mine)
            raise InputError(f"{of}: has {has}, here are {here}; give an ensemble of the same jobs")
    for run, member in zip(ensemble.runs, members, strict=True):
        expected = _deciding(run.job(), run.certain_json("result.json"))
        found = _deciding(member.job, member.scored.result)
        for key in sorted({*expected, *found}):
            if expected.get(key) != found.get(key):
                raise InputError(
                    f"{of}: a run of it has {key} = {expected.get(key)!r}, {member.run.folder} has "
                    f"{found.get(key)!r}; give runs of the same jobs in the same order"
                )


def _deciding(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that should be the same in both."""
    left_out = {*WITHOUT_RESULT, *FOR_ALL_REVIEWS}
    settings = {key: value for key, value in job.settings().items() if key not in left_out}
    return settings | vectors_of(result) | {"code": dict(job.code)}


# Made of them


@dataclass(frozen=True)
class Request:
    """What is to be made."""

    folders: Sequence[Path]  # of the runs
    ngrams: bool  # whether the linear model is a member
    weights_from: Path | None
    data: Path | None  # folder of the dataset, if it has moved
    name: str | None  # instead of one of the jobs' names
    run_id: str | None


@dataclass(frozen=True)
class Part:
    """What the members and the ensemble say of the reviews of a part of the data."""

    labels: Ints  # [num_reviews], none of a part that is empty
    members: Sequence[Floats]  # each [num_reviews, num_classes]
    weights: Sequence[float]

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays of a file of predictions, as a run has them."""
        found = averaged(self.weights, self.members)
        shown = found[:, 1] if found.shape[1] == 2 else found
        return {"probabilities": shown.astype(np.float32), "labels": self.labels.astype(np.int32)}

    @property
    def scores(self) -> list[tuple[float, float]]:
        """Loss in nats and accuracy of each member, the ensemble last."""
        found = [loss_and_accuracy(self.labels, each) for each in self.members]
        return [*found, loss_and_accuracy(**self.arrays)]


@dataclass(frozen=True)
class Made:
    """A new ensemble."""

    folder: Path
    result: Mapping[str, Any]  # `result.json`
    lines: Sequence[Line]  # a row for each member, the ensemble last


def make_ensemble(request: Request, runs: Path, say: Callable[[str], None]) -> Made:
    """Make the ensemble `<runs>/<name>/<run-id>`; `say` is called before a linear model is fit.

    Without `weights_from` the weights are those of least log loss on the validation reviews, and
    the linear model is fit to the same training reviews as the runs. With it, runs and linear
    model are trained on all training reviews. The test set is only scored.

    Raises:
        InputError: if the runs don't make one, or the folder is taken.
        DiskError: if the disk refuses.
    """
    folders = request.folders
    if len(folders) == 1 and not request.ngrams:
        raise InputError(
            f"run {folders[0]}: is one run, no ensemble; name more, or give --with ngrams"
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
    made = Made(folder, _result(folder, members, kept, parts), _lines(folders, weights, parts))
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
            atomic_write(temporary / "result.json", to_json(dict(made.result)))
    except OSError as error:
        if folder.exists():
            raise InputError(_taken(folder)) from None
        raise DiskError(write_refusal(folder, error)) from None
    return made


# The weights


def best_weights(labels: Ints, members: Sequence[Floats]) -> list[float]:
    """The weights, from 0 on, of sum 1, by which the mean of the members has the least log loss.

    The loss is convex in the weights, so there is one least value and no start to choose. Four
    digits are kept: a review of 5,000 hardly moves them, and rounding in the last bits doesn't.

    Args:
        labels: `[num_reviews]`, from 0.
        members: the probability of each class by each member, `[num_reviews, num_classes]`.
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
    """The weights of the ensemble that was named; none if they are to be chosen."""
    first = members[0].run.folder
    if not request.weights_from:
        if not len(members[0].validation_labels):
            raise InputError(
                f"run {first}: was trained on all training reviews (data.validation_split = 0), so "
                "no reviews are left to choose weights by; give --weights-from ENSEMBLE, an "
                "ensemble of runs of the same jobs with validation reviews"
            )
        return []
    if len(members[0].validation_labels):
        raise InputError(
            f"--weights-from {request.weights_from}: run {first} has validation reviews, which "
            "choose the weights; leave --weights-from out"
        )
    ensemble = Ensemble.open(request.weights_from, option="--weights-from")
    check_same_jobs(members, ensemble, ngrams=request.ngrams)
    return ensemble.weights


def _linear_model(
    request: Request, member: RunMember, say: Callable[[str], None]
) -> tuple[NgramModel, Floats, Floats]:
    """The linear model, fit to the training reviews of a run.

    Returns:
        The model, and what it says of the validation and the test reviews.
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
                f"run {member.run.folder}: its predictions are of other reviews than those of "
                f"{dataset.title}; train it again"
            )
    kept = fitted_ngrams(dataset, share, say, limit=limit, option="--with")
    found = kept.probabilities(test)
    return kept, kept.probabilities(rest) if len(rest) else found[:0], found


# What is written


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
        raise InputError(_taken(folder))
    return folder


def _taken(folder: Path) -> str:
    return f"ensemble {folder}: exists already; choose another --run-id"


def _result(
    folder: Path,
    members: Sequence[RunMember],
    kept: NgramModel | None,
    parts: Mapping[str, Part],
) -> dict[str, Any]:
    """`result.json`, with the keys of a run's."""
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
    """The sum of a number of some models, None if one lacks it."""
    values = [number(each.get(key)) for each in models]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    total = sum(known)
    return int(total) if total == int(total) else round(total, 3)


def _lines(
    folders: Sequence[Path], weights: Sequence[float], parts: Mapping[str, Part]
) -> list[Line]:
    """A row for each member, the ensemble last: losses in nats, accuracies in per cent."""
    names = [*map(str, folders), NGRAMS][: len(weights)]
    lines = [
        {"member": name, "weight": f"{weight:.4f}"}
        for name, weight in zip(names, weights, strict=True)
    ]
    lines.append({"member": ARCHITECTURE, "weight": ""})
    for of, name in (("validation", VALIDATION_PREDICTIONS), ("test", PREDICTIONS)):
        if part := parts.get(name):
            for line, (loss, accuracy) in zip(lines, part.scores, strict=True):
                line |= {f"{of} %": f"{100 * accuracy:.2f}", f"{of} log loss": f"{loss:.4f}"}
    return [*lines]


def _copy_members(
    folder: Path,
    runs: Sequence[RunMember],
    kept: NgramModel | None,
    weights: Sequence[float],
    weights_from: str,
) -> Ensemble:
    """Copy what the members say texts are; returns what the folder holds."""
    members = []
    for index, (each, weight) in enumerate(zip(runs, weights, strict=False)):
        sums = copied(each.run.folder, folder / run_folder(index), each.job.code)
        about = {"job": each.job.name, "seed": each.job.train.seed}
        name = printable(str(each.run.folder.absolute()))  # TOML is UTF-8
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
    """The settings that all runs have, by table, and what tells ensembles of one name apart.

    Ensembles with the same ones are of the same jobs, and differ in seeds alone.
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
