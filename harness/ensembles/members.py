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
from harness.report.statistics import BROKEN, read_arrays, read_own
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
