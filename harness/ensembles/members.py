"""The runs that an ensemble is made of: read, and refused in one line where they don't fit."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.ensembles.folder import Ensemble, sha256_of
from harness.errors import InputError
from harness.job import FACTS, Job
from harness.report.collect import WITHOUT_RESULT, LeftOut, ScoredRun, read_run, vectors_of
from harness.report.predictions import BROKEN, read_arrays, read_own
from harness.tracking.run_dir import VALIDATION_PREDICTIONS, RunDirectory

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# In which a run on all training reviews may differ from the one whose weights it takes.
FOR_ALL_REVIEWS = {
    key for key, facts in FACTS.items() if facts.for_all_reviews or facts.changes == "digits"
}


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
    def result(self) -> Mapping[str, Any]:
        """Its `result.json`."""
        return self.scored.result

    @property
    def limit(self) -> int:
        """Reviews of each split that it used, 0 for all."""
        return self.job.data.limit

    @property
    def classes(self) -> list[str]:
        """The names of the labels."""
        return [*self.result["classes"]]


def read_members(folders: Sequence[Path]) -> list[RunMember]:
    """Read the runs, in the order given.

    Raises:
        InputError: for the first run that can't be a member, or does not fit the others.
    """
    members = [read_member(folder) for folder in folders]
    first = members[0]
    for index, each in enumerate(members):
        for other in members[:index]:
            if each.model_checksum == other.model_checksum:
                raise InputError(
                    f"run {each.run.folder}: has the same model as {other.run.folder}; name each "
                    "run once"
                )
        what = [
            ("data", each.result["dataset_checksum"], first.result["dataset_checksum"]),
            ("data.limit", each.limit, first.limit),
            ("classes", each.classes, first.classes),
            ("data.validation_split", _validation_of(each), _validation_of(first)),
        ]
        for name, mine, others in what:
            if mine != others:
                shown = [str(value)[:12] for value in (mine, others)]
                raise InputError(
                    f"run {each.run.folder}: its {name} is {shown[0]}, that of {first.run.folder} "
                    f"{shown[1]}; an ensemble's runs should have the same"
                )
        for mine, others in (
            (each.labels, first.labels),
            (each.validation_labels, first.validation_labels),
        ):
            if not np.array_equal(mine, others):
                raise InputError(
                    f"run {each.run.folder}: its predictions are of other reviews than those of "
                    f"{first.run.folder}; train it again"
                )
    return members


def _validation_of(member: RunMember) -> float | str:
    """What decides its validation reviews; their own split is the same whatever the share."""
    return "given" if member.result.get("validation_is_given") else member.job.data.validation_split


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
    if ngrams != ensemble.has_ngrams:
        has, remedy = ("no ", "leave") if ngrams else ("", "give")
        word = "out" if ngrams else "too"
        raise InputError(f"{of}: has {has}n-grams as a member; {remedy} --with ngrams {word}")
    if len(ensemble.runs) != len(members):
        raise InputError(
            f"{of}: has {len(ensemble.runs)} runs, here are {len(members)}; give runs of the same "
            "jobs in the same order"
        )
    first = members[0]
    if (ensemble.checksum, ensemble.limit) != (first.result["dataset_checksum"], first.limit):
        raise InputError(f"{of}: is of other data than run {first.run.folder}; give one of these")
    for theirs, member in zip(ensemble.runs, members, strict=True):
        expected = _deciding(theirs.job(), theirs.certain_json("result.json"))
        found = _deciding(member.job, member.result)
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
