"""Makes an ensemble: checks its members, chooses the weights, scores it and writes its folder."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.ensembles.folder import NGRAMS, NGRAMS_FILE, Ensemble, Member, copied, run_folder
from harness.ensembles.members import Floats, Ints, RunMember, check_same_jobs, read_members
from harness.ensembles.predict import averaged
from harness.errors import DiskError, InputError
from harness.files.atomic_file import atomic_directory, atomic_write, write_refusal
from harness.files.leased_dir import to_json
from harness.files.lenient_json import number
from harness.report.baseline import NgramModel, fitted_ngrams
from harness.report.text_tables import Line
from harness.system.console import printable
from harness.tracking.provenance import code_of
from harness.tracking.record_format import RECORD, stamped
from harness.tracking.run_dir import PREDICTIONS, VALIDATION_PREDICTIONS, RunDirectory, check_id
from harness.tracking.run_folders import ENSEMBLE_FILE
from harness.training.launch import dataset_of
from harness.training.metrics import loss_and_accuracy, test_scores

ARCHITECTURE = "ensemble"  # in tables, and in names of folders
MAX_NAME = 100  # characters
LEAST = 1e-7  # of a probability, as in `harness.training.metrics.loss_and_accuracy`
DIGITS = 4  # of a weight


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
