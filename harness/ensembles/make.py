"""Makes an ensemble: checks its members, chooses the weights, scores it and writes its folder."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import Split
from harness.ensembles.folder import NGRAMS, NGRAMS_FILE, Ensemble, Member, copied, run_folder
from harness.ensembles.kept_ngrams import KeptNgrams, fitted_ngrams
from harness.ensembles.members import Floats, Ints, RunMember, check_same_jobs, read_members
from harness.ensembles.weights import averaged, best_weights
from harness.errors import DiskError, InputError
from harness.files.atomic_file import atomic_directory, atomic_write, write_refusal
from harness.files.leased_dir import to_json
from harness.files.lenient_json import number
from harness.report.text_tables import Line
from harness.system.console import printable
from harness.tracking.provenance import code_of
from harness.tracking.record_format import RECORD, stamped
from harness.tracking.run_dir import (
    PREDICTIONS,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    check_id,
)
from harness.tracking.run_folders import ENSEMBLE_FILE
from harness.training.launch import dataset_of
from harness.training.metrics import loss_and_accuracy, test_scores

ARCHITECTURE = "ensemble"  # in tables, and in names of folders
MAX_NAME = 100  # characters


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
    """The members' probabilities for the reviews of a part of the data."""

    labels: Ints  # [num_reviews], none of a part that is empty
    members: Sequence[Floats]  # each [num_reviews, num_classes]

    def mean(self, weights: Sequence[float]) -> dict[str, Any]:
        """The arrays of a file of predictions, as a run has them."""
        found = averaged(weights, self.members)
        shown = found[:, 1] if found.shape[1] == 2 else found
        return {"probabilities": shown.astype(np.float32), "labels": self.labels.astype(np.int32)}


@dataclass(frozen=True)
class Draft:
    """An ensemble that has yet to be written."""

    folder: Path
    runs: Sequence[RunMember]
    kept: KeptNgrams | None
    weights: Sequence[float]
    weights_from: str
    test: Part
    validation: Part

    @cached_property
    def predictions(self) -> dict[str, dict[str, Any]]:
        """The arrays of each file of predictions."""
        found = {PREDICTIONS: self.test.mean(self.weights)}
        if len(self.validation.labels):
            found[VALIDATION_PREDICTIONS] = self.validation.mean(self.weights)
        return found

    @cached_property
    def result(self) -> dict[str, Any]:
        """`result.json`, with the keys of a run's."""
        first = self.runs[0].result
        models = [each.result for each in self.runs]
        models += [vars(self.kept) | {"parameters": self.kept.parameters}] if self.kept else []
        validation = self.predictions.get(VALIDATION_PREDICTIONS)
        val_loss, val_accuracy = loss_and_accuracy(**validation) if validation else (None, None)
        test = self.predictions[PREDICTIONS]
        return {
            "job": self.folder.parent.name,
            "run": self.folder.name,
            "architecture": ARCHITECTURE,
            "seed": self.runs[0].job.train.seed,
            "data": first["data"],
            "dataset_checksum": first["dataset_checksum"],
            "is_sample": first.get("is_sample", False),
            "classes": self.runs[0].classes,
            "limit": self.runs[0].limit,
            "num_training": first.get("num_training"),
            "num_validation": len(self.validation.labels),
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "training_s": _sum(models, "training_s"),
            "parameters": _sum(models, "parameters"),
            "recurrent_parameters": _sum(models[: len(self.runs)], "recurrent_parameters"),
            "num_test": len(self.test.labels),
            **test_scores(test["labels"], test["probabilities"]),
        }

    def lines(self) -> list[Line]:
        """A row for each member, the ensemble last: losses in nats, accuracies in per cent."""
        names = [str(each.run.folder) for each in self.runs] + [NGRAMS] * (self.kept is not None)
        rows = [*zip(names, map("{:.4f}".format, self.weights), strict=True), (ARCHITECTURE, "")]
        lines: list[Line] = []
        for index, (name, weight) in enumerate(rows):
            row = {"member": name, "weight": weight}
            for of, part in (("validation", self.validation), ("test", self.test)):
                if len(part.labels):
                    arrays = part.mean(self.weights)
                    if index < len(part.members):
                        arrays["probabilities"] = part.members[index]
                    loss, accuracy = loss_and_accuracy(**arrays)
                    row |= {f"{of} %": f"{100 * accuracy:.2f}", f"{of} log loss": f"{loss:.4f}"}
            lines.append(row)
        return lines

    def write(self) -> None:
        """Write the folder, whole or not at all.

        Raises:
            InputError: if the folder is taken, or a run has lost a file.
            DiskError: if the disk refuses.
        """
        try:
            with atomic_directory(self.folder) as temporary:
                self._write(temporary)
        except OSError as error:
            if self.folder.exists():
                raise InputError(_taken(self.folder)) from None
            raise DiskError(write_refusal(self.folder, error)) from None

    def _write(self, folder: Path) -> None:
        members = []
        for index, (each, weight) in enumerate(zip(self.runs, self.weights, strict=False)):
            sums = copied(each.run.folder, folder / run_folder(index), each.job.code)
            about = {"job": each.job.name, "seed": each.job.train.seed}
            name = printable(str(each.run.folder.absolute()))  # TOML is UTF-8
            members.append(Member(name, weight, sums, about))
        if self.kept:
            content = self.kept.to_bytes()
            atomic_write(folder / NGRAMS_FILE, content)
            sums = {NGRAMS_FILE: hashlib.sha256(content).hexdigest()}
            about = {"num_training": self.kept.num_training, "C": self.kept.model.strength}
            members.append(Member(NGRAMS, self.weights[-1], sums, about))
        for name, arrays in self.predictions.items():
            atomic_write(folder / name, partial(np.savez, **arrays))
        first = self.runs[0]
        ensemble = Ensemble(
            folder,
            tuple(members),
            first.result["dataset_checksum"],
            first.limit,
            tuple(first.classes),
            self.weights_from,
            shared_settings(self.runs, ngrams=self.kept is not None),
        )
        atomic_write(folder / ENSEMBLE_FILE, ensemble.to_toml())
        run = RunDirectory(self.folder)
        dataset = first.run.read_json(RECORD).get("dataset")
        record = stamped({**code_of(run), "dataset": dataset})
        atomic_write(folder / RECORD, to_json(record), 0o600)
        atomic_write(folder / "result.json", to_json(self.result))


def make_ensemble(request: Request, runs: Path, say: Callable[[str], None]) -> Draft:
    """Make the ensemble `<runs>/<name>/<run-id>`; `say` is called before a linear model is fit.

    Without `weights_from` the weights are those of least log loss on the validation reviews, and
    the linear model is fit to the same training reviews as the runs. With it, runs and linear
    model are trained on all training reviews. The test set is only scored.

    Raises:
        InputError: if the runs don't make one, or the folder is taken.
        DiskError: if the disk refuses.
    """
    first = request.folders[0]
    if len(request.folders) == 1 and not request.ngrams:
        raise InputError(f"run {first}: is one run, no ensemble; name more, or give --with ngrams")
    members = read_members(request.folders)
    weights = _given_weights(request, members)
    folder = _new_folder(request, members, runs)
    test = Part(members[0].labels, [each.test for each in members])
    validation = Part(members[0].validation_labels, [each.validation for each in members])
    kept = None
    if request.ngrams:
        kept, of_test, of_validation = _linear_model(request, members[0], say)
        test = Part(test.labels, [*test.members, of_test])
        validation = Part(validation.labels, [*validation.members, of_validation])
    weights = weights or best_weights(validation.labels, validation.members)
    origin = printable(str(request.weights_from.absolute())) if request.weights_from else ""
    draft = Draft(folder, members, kept, weights, origin, test, validation)
    draft.write()
    return draft


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


def _linear_model(
    request: Request, member: RunMember, say: Callable[[str], None]
) -> tuple[KeptNgrams, Floats, Floats]:
    """The linear model, fit to the training reviews of a run, and its probabilities.

    Returns:
        The model, and what it says of the test and the validation reviews.
    """
    dataset = dataset_of(member.run, member.job, request.data)
    limit = member.limit
    test = dataset.test.take(limit) if limit else dataset.test
    share = member.job.data.validation_split
    train, cut = dataset.used(limit, share)
    rest = train.between(cut, len(train))
    for split, labels in ((test, member.labels), (rest, member.validation_labels)):
        if not np.array_equal(split.labels, labels) or [*dataset.classes] != member.classes:
            raise InputError(
                f"run {member.run.folder}: its predictions are of other reviews than those of "
                f"{dataset.title}; train it again"
            )
    kept = fitted_ngrams(dataset, share, say, limit=limit)
    return kept, kept.model.probabilities(test), _probabilities(kept, rest)


def _probabilities(kept: KeptNgrams, split: Split) -> Floats:
    if len(split):
        return kept.model.probabilities(split)
    return np.empty((0, max(2, len(kept.model.linear.biases))))


def shared_settings(members: Sequence[RunMember], *, ngrams: bool) -> dict[str, Any]:
    """The settings that all runs have, by table, and what tells ensembles of one name apart.

    Ensembles with the same ones are of the same jobs, and differ in seeds alone.
    """
    first, *others = [dict(each.scored.settings) for each in members]
    shared = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    tables: dict[str, Any] = {}
    for key, value in shared.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    own = [{k: v for k, v in s.items() if k not in shared} for s in (first, *others)]
    jobs = " + ".join(each.job.name for each in members)
    tables["ensemble"] = {"runs": jobs, "ngrams": ngrams}
    if any(own):
        tables["ensemble"]["differing"] = hashlib.sha256(to_json({"of": own}).encode()).hexdigest()
    return tables


def _sum(models: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The sum of a number of some models, None if one lacks it."""
    values = [number(each.get(key)) for each in models]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    total = sum(known)
    return int(total) if total == int(total) else round(total, 3)
