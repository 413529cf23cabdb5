"""An ensemble's folder: `ensemble.toml`, copies of its runs' models, and its linear model.

Each copy is a folder of a finished run with the files that classify texts, so that a run may go or
change after it is in an ensemble. A checksum of each file is in `ensemble.toml`.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from harness.ensembles.kept_ngrams import KeptNgrams
from harness.errors import InputError
from harness.files.lenient_json import number, table, text, whole
from harness.files.plain_file import open_plain_file, raise_unless_missing, read_plain_file
from harness.inference.kept_ratios import RATIOS_FILE
from harness.inputs.ngrams import MAX_BYTES
from harness.job import Job
from harness.own_code import mode_in
from harness.tracking.record_format import check_format, stamped
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import ENSEMBLE_FILE, MAKE_AGAIN

NGRAMS_FILE, NGRAMS = "ngrams.npz", "n-grams"
MODEL_FILES = ("model.keras", "job.toml", "result.json", "vocabulary.txt")
MAYBE = (RATIOS_FILE,)  # of runs that have it
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A member as `ensemble.toml` names it."""

    name: str  # the folder that a run was in, or n-grams
    weight: float
    sha256: Mapping[str, str]  # of its files
    about: Mapping[str, Any]  # what else is known of it

    @property
    def is_run(self) -> bool:
        """Whether it is a run, not the linear model."""
        return self.name != NGRAMS

    def as_toml(self) -> dict[str, Any]:
        """Its table in `ensemble.toml`."""
        return {"name": self.name, "weight": self.weight, **self.about, "sha256": {**self.sha256}}


@dataclass(frozen=True)
class Ensemble:
    """An ensemble whose `ensemble.toml` is whole; `check` says whether the files are its own."""

    folder: Path
    members: tuple[Member, ...]  # the linear model last
    checksum: str  # of the data
    limit: int
    classes: tuple[str, ...]
    weights_from: str  # the folder of the ensemble whose weights these are; empty if chosen here
    settings: Mapping[str, Any]  # that its runs share, by table

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
        tables = content.get("members")
        members = tuple(map(_member, tables if isinstance(tables, list) else ()))
        classes, checksum = content.get("classes"), text(content.get("dataset_checksum"))
        known = [each for each in members if each]
        if (
            not known
            or len(known) != len(members)
            or not all(each.is_run for each in (known[0], *known[:-1]))
            or not isinstance(classes, list)
            or not all(isinstance(name, str) for name in classes)
            or checksum is None
        ):
            raise InputError(f"{option} {folder}: {ENSEMBLE_FILE} is not complete; {MAKE_AGAIN}")
        return cls(
            folder,
            tuple(known),
            checksum,
            whole(content.get("limit")) or 0,
            tuple(classes),
            text(content.get("weights_from")) or "",
            table(content, "settings"),
        )

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
        num = len(self.members) - self.has_ngrams
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
                try:
                    is_same = sha256_of(path) == expected
                except OSError as error:
                    raise_unless_missing(error, path)
                    raise InputError(
                        f"ensemble {self.folder}: {path} can't be read ({error.strerror}); "
                        f"{MAKE_AGAIN}"
                    ) from None
                if not is_same:
                    raise InputError(
                        f"ensemble {self.folder}: {path} is not the file that it was made of; put "
                        f"it back from a copy, or {MAKE_AGAIN}"
                    )

    def ngrams(self) -> KeptNgrams | None:
        """The linear model, None if it is no member.

        Raises:
            InputError: if its file is broken.
            DiskError: if the disk fails.
        """
        if not self.has_ngrams:
            return None
        path = self.folder / NGRAMS_FILE
        try:
            return KeptNgrams.from_bytes(read_plain_file(path, MAX_BYTES))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                raise_unless_missing(error, path)
            raise InputError(
                f"ensemble {self.folder}: {NGRAMS_FILE} is broken ({error}); {MAKE_AGAIN}"
            ) from None

    def to_toml(self) -> str:
        """The content of `ensemble.toml`."""
        content = {
            "dataset_checksum": self.checksum,
            "limit": self.limit,
            "classes": [*self.classes],
            "weights_from": self.weights_from,
            "members": [each.as_toml() for each in self.members],
            "settings": {**self.settings},
        }
        return tomli_w.dumps(stamped(content))


def run_folder(index: int) -> str:
    """Where the copy of a run is in the folder, by the place of the member."""
    return f"members/{index + 1}"


def sha256_of(path: Path) -> str:
    """The checksum of a plain file.

    Raises:
        OSError: if it can't be read.
    """
    digest = hashlib.sha256()
    with open_plain_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def copied(run: Path, to: Path, code: Mapping[str, str]) -> dict[str, str]:
    """Copy a finished run's files that classify texts to a new folder; returns their checksums.

    Raises:
        InputError: if one is missing.
        DiskError: if the disk fails.
        OSError: if the disk refuses the copy.
    """
    to.mkdir(parents=True)
    mode, sums = mode_in(to, code), {}
    names = [*MODEL_FILES, *(name for name in MAYBE if os.path.lexists(run / name))]
    for name in names:
        try:
            source = open_plain_file(run / name)
        except OSError as error:
            raise_unless_missing(error, run / name)
            raise InputError(
                f"run {run}: {name} can't be read ({error.strerror}); train a new run"
            ) from None
        digest = hashlib.sha256()
        (to / name).touch(mode, exist_ok=False)
        with source, (to / name).open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        sums[name] = digest.hexdigest()
    return sums


def _member(content: object) -> Member | None:
    """A member from its table, None if that is none."""
    if not isinstance(content, dict):
        return None
    name, weight = text(content.get("name")), number(content.get("weight"))
    sums = content.get("sha256")
    if name is None or weight is None or not 0 <= weight <= 1 or not isinstance(sums, dict):
        return None
    needed = {NGRAMS_FILE} if name == NGRAMS else {*MODEL_FILES}
    names, maybe = sums.keys(), () if name == NGRAMS else MAYBE
    is_whole = needed <= names <= needed.union(maybe)
    if not is_whole or not all(isinstance(each, str) for each in sums.values()):
        return None
    about = {k: v for k, v in content.items() if k not in ("name", "weight", "sha256")}
    return Member(name, weight, sums, about)
