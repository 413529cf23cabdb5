"""An ensemble's folder: `ensemble.toml`, copies of its runs' models, and its linear model.

Each copy is a folder of a finished run with the files that classify texts, so that a run may go or
change after it is in an ensemble. A checksum of each file is in `ensemble.toml`.
"""

import contextlib
import hashlib
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from harness.data.ngrams import MAX_BYTES
from harness.errors import InputError
from harness.inference.predict import RATIOS_FILE, Classifier, Prediction
from harness.job.keys import Job
from harness.own_code import mode_in
from harness.report.baseline import NgramModel
from harness.system.files import open_plain_file, raise_unless_missing, read_plain_file
from harness.tracking.run_dir import (
    ENSEMBLE_FILE,
    MAKE_AGAIN,
    RunDirectory,
    check_format,
    is_ensemble,
    stamped,
)

NGRAMS_FILE, NGRAMS = "ngrams.npz", "n-grams"
MODEL_FILES = ("model.keras", "job.toml", "result.json", "vocabulary.txt")
MAYBE = (RATIOS_FILE,)  # of runs that have it


class Member(BaseModel, frozen=True, extra="allow"):
    """A member as `ensemble.toml` names it, with what else is known of it."""

    name: str  # the folder that a run was in, or n-grams
    weight: Annotated[float, Field(ge=0, le=1)]
    sha256: dict[str, str]  # of its files

    @property
    def is_run(self) -> bool:
        """Whether it is a run, not the linear model."""
        return self.name != NGRAMS

    @model_validator(mode="after")
    def _check_files(self) -> "Member":
        needed, maybe = ({*MODEL_FILES}, {*MAYBE}) if self.is_run else ({NGRAMS_FILE}, set())
        if not needed <= self.sha256.keys() <= needed | maybe:
            raise ValueError("its files are not those of a member")
        return self


class Ensemble(BaseModel, frozen=True):
    """An ensemble whose `ensemble.toml` is whole; `check` says whether the files are its own."""

    folder: Annotated[Path, Field(exclude=True)]
    dataset_checksum: str
    limit: int  # reviews of each split, 0 for all
    classes: tuple[str, ...]
    weights_from: str  # the folder of the ensemble whose weights these are; empty if chosen here
    members: tuple[Member, ...]  # the linear model last
    settings: dict[str, Any]  # that its runs share, by table

    @model_validator(mode="after")
    def _check_members(self) -> "Ensemble":
        if not self.runs or not all(each.is_run for each in self.members[:-1]):
            raise ValueError("its members are not runs, and n-grams after them")
        return self

    @classmethod
    def open(cls, folder: Path, *, option: str = "ensemble") -> "Ensemble":
        """Read the `ensemble.toml` of a folder; messages say which option named it.

        Raises:
            InputError: if there is none, another version wrote it, or it is broken.
        """
        try:
            content = tomllib.loads(read_plain_file(folder / ENSEMBLE_FILE).decode())
        except OSError as error:
            raise InputError(
                f"{option} {folder}: holds no {ENSEMBLE_FILE} that can be read ({error.strerror}); "
                "give the folder of an ensemble"
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
        """The weight of each member."""
        return [each.weight for each in self.members]

    @property
    def has_ngrams(self) -> bool:
        """Whether the linear model is a member."""
        return not self.members[-1].is_run

    @property
    def runs(self) -> list[RunDirectory]:
        """The copies of its runs, in the order of the members."""
        num = sum(each.is_run for each in self.members)
        return [RunDirectory(self.folder / run_folder(index)) for index in range(num)]

    def job(self) -> Job:
        """The job of its first run.

        Raises:
            InputError: if its file is broken.
        """
        return self.runs[0].job()

    def check(self) -> None:
        """Refuse files that are not those that the ensemble was made of.

        Raises:
            InputError: with the first such file.
            DiskError: if the disk fails.
        """
        for index, member in enumerate(self.members):
            for name, expected in member.sha256.items():
                path = self.folder / (f"{run_folder(index)}/{name}" if member.is_run else name)
                with _readable(f"ensemble {self.folder}", path, MAKE_AGAIN):
                    is_same = sha256_of(path) == expected
                if not is_same:
                    raise InputError(
                        f"ensemble {self.folder}: {path} is not the file that it was made of; put "
                        f"it back from a copy, or {MAKE_AGAIN}"
                    )

    def ngrams(self) -> NgramModel | None:
        """The linear model, None if it is no member.

        Raises:
            InputError: if its file is broken.
            DiskError: if the disk fails.
        """
        if not self.has_ngrams:
            return None
        path = self.folder / NGRAMS_FILE
        with _readable(f"ensemble {self.folder}", path, MAKE_AGAIN):
            content = read_plain_file(path, MAX_BYTES)
        try:
            return NgramModel.from_bytes(content)
        except ValueError as error:
            raise InputError(
                f"ensemble {self.folder}: {NGRAMS_FILE} is broken ({error}); {MAKE_AGAIN}"
            ) from None

    def to_toml(self) -> str:
        """The content of `ensemble.toml`."""
        return tomli_w.dumps(stamped(self.model_dump()))


@contextlib.contextmanager
def _readable(whose: str, path: Path, remedy: str) -> Iterator[None]:
    """Say in one line what is wrong with a file that can't be read inside."""
    try:
        yield
    except OSError as error:
        raise_unless_missing(error, path)
        raise InputError(f"{whose}: {path} can't be read ({error.strerror}); {remedy}") from None


def run_folder(index: int) -> str:
    """Where the copy of a run is in the folder, by the place of the member."""
    return f"members/{index + 1}"


def sha256_of(path: Path) -> str:
    """The checksum of a plain file.

    Raises:
        OSError: if it can't be read.
    """
    with open_plain_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # it can


def copied(run: Path, to: Path, code: Mapping[str, str]) -> dict[str, str]:
    """Copy a finished run's files that classify texts to a new folder; returns their checksums.

    Raises:
        InputError: if one is missing.
        DiskError: if the disk fails.
        OSError: if the disk refuses the copy.
    """
    to.mkdir(parents=True)
    mode, sums = mode_in(to, code), {}
    for name in (*MODEL_FILES, *(name for name in MAYBE if os.path.lexists(run / name))):
        with _readable(f"run {run}", run / name, "train a new run"):
            source = open_plain_file(run / name)
        (to / name).touch(mode, exist_ok=False)
        with source, (to / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        sums[name] = sha256_of(to / name)
    return sums


# Raw text to classes


def open_model(folder: Path) -> RunDirectory | Ensemble:
    """The run or the ensemble in a folder.

    Raises:
        InputError: if it is neither.
    """
    return Ensemble.open(folder) if is_ensemble(folder) else RunDirectory.open(folder)


def classifier_of(model: RunDirectory | Ensemble) -> "Classifier | EnsembleClassifier":
    """What classifies texts by a run or an ensemble.

    Raises:
        InputError: if the run is unfinished, or a file is broken.
    """
    return EnsembleClassifier(model) if isinstance(model, Ensemble) else Classifier(model)


class EnsembleClassifier:
    """The models of an ensemble, ready to classify texts that hold words.

    Raises:
        InputError: if a file of the ensemble is broken, or is not its own.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        ensemble.check()
        self.classes, self.weights = ensemble.classes, ensemble.weights
        self.ngrams = ensemble.ngrams()
        self.runs = [Classifier(run) for run in ensemble.runs]
        for run, classifier in zip(ensemble.runs, self.runs, strict=True):
            if tuple(classifier.classes) != self.classes:
                raise InputError(
                    f"ensemble {ensemble.folder}: {run.folder} has other classes; {MAKE_AGAIN}"
                )

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """The class of each text; unknown words are those of the first run."""
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
    """The weighted mean of the members' probabilities, `[num_reviews, num_classes]`."""
    return np.asarray(sum(w * each for w, each in zip(weights, members, strict=True)), np.float64)
