"""Opens the data of a job.

The data are a user's texts, IMDB from a folder or a download, or the packaged sample of IMDB.
"""

import dataclasses
import hashlib
import http.client
import io
import os
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import SPLITS, Dataset, Split, content_checksum, make_split
from harness.data.dataset_folder import (
    cached_dataset,
    check_owners,
    fill_folder,
    open_folder,
    open_if_whole,
    save_folder,
)
from harness.data.locations import (
    NPZ,
    fetched_folder,
    holds_dataset,
    is_dataset_folder,
    named_folder,
    unnamed_folders,
)
from harness.data.own_texts import open_source
from harness.data.vocabulary import tokenize
from harness.errors import DiskError, InputError, RunError
from harness.job.keys import Job
from harness.system.files import is_file, turn_at

SAMPLE = Path(__file__).parent / "sample" / "imdb_sample.npz"

# From keras/src/datasets/imdb.py.
ORIGIN = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
NPZ_SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"
# The sha256 of each array in an imdb.npz that a user saved again with `np.savez` of NumPy 2. The
# sha256 of the whole file is not known, because the archive contains the time of saving.
_LABELS = "152efe27affa17257b61acac03069e0a5f18188bb285fb43fe9c396eab27d4fd"
SAVED_ANEW = {
    "x_train": "158fdec97d052efa99e3f552b4efebb7b5dd116da86d2405fa6dfd9c27a26297",
    "y_train": _LABELS,
    "x_test": "93e05c889711d26b4c07c1534a7712385c39309722de002ab9231423d789fa7a",
    "y_test": _LABELS,
}
CONNECT_S = 5
ELSEWHERE = "run harness data fetch on a machine with a network"


def open_dataset(data: Path | None = None, *, full: bool = False, download: bool = True) -> Dataset:
    """Open IMDB from a named folder, a cache or a download; otherwise open the packaged sample.

    Args:
        data: the folder to open instead of the folder that HARNESS_DATA names. If `data` or
            HARNESS_DATA is set, no other folder is searched.
        full: whether to raise an error, instead of opening the packaged sample, if IMDB is missing.
        download: whether a download is allowed; HARNESS_OFFLINE forbids it in any case.

    Raises:
        InputError: if a named folder contains no dataset, if imdb.npz is not Keras's, if an
            untrusted user could have changed a dataset, or if `full` is set and IMDB is missing.
        RunError: if a dataset is broken, or if the disk fails.
    """
    if named := data or named_folder():
        return _open_named(named, "--data" if data else "HARNESS_DATA")
    searched = unnamed_folders()
    for folder in searched:
        if holds_dataset(folder):
            return _open_named(folder, "")
    if not download or os.environ.get("HARNESS_OFFLINE"):
        reason = f"no download was tried; {ELSEWHERE}"
    else:
        try:
            return fetch()
        except RunError as error:
            reason = str(error)
    where = ", ".join(map(str, searched))
    if full:
        raise InputError(f"HARNESS_DATA is not set, and the full data is not in {where}; {reason}")
    return open_sample(note=f"the full data is not in {where}; {reason}")


def fetch(source: Path | None = None) -> Dataset:
    """Copy IMDB from a folder, or download IMDB, into the user's cache; open it there.

    Args:
        source: a folder that contains the raw reviews (`aclImdb/`), imdb.npz, or a stored dataset;
            None = download IMDB, unless the folder HARNESS_DATA or the cache already contains it.

    Raises:
        InputError: if the source contains no reviews; if the source's imdb.npz is not Keras's; if
            an untrusted user could have changed the dataset; or if the folder for IMDB in the cache
            contains files, but no dataset.
        RunError: if the download fails, or the cache can't be written.
    """
    folder = fetched_folder()
    if source is None:
        if (named := named_folder()) and holds_dataset(named):
            return _open_named(named, "HARNESS_DATA")
        if is_file(folder / NPZ):  # the user's copy of Keras's file
            return _convert(folder)
        with turn_at(folder):  # only one of several processes downloads
            if not open_if_whole(folder):
                save_folder(_download(), folder)
            return open_folder(folder)
    if os.path.isdir(source / "train" / "pos"):  # noqa: PTH112 - `Path.is_dir` may raise an error
        dataset = read_raw_reviews(source)
    else:
        dataset = _open_named(source, "--from")
    save_folder(dataset, folder)
    return open_folder(folder)


def _open_named(folder: Path, name: str) -> Dataset:
    if is_dataset_folder(folder):
        return open_folder(folder)
    if is_file(folder / NPZ):
        return _convert(folder)
    lacks = f"contains neither {NPZ} nor a stored dataset that you can read"
    if not os.path.isdir(folder):  # noqa: PTH112 - `Path.is_dir` may raise an error
        lacks = "is no folder that you can read"
    raise InputError(
        f"{name} {folder}: {lacks}; choose another folder, or unset HARNESS_DATA and run harness "
        "data fetch (with --from aclImdb/ for the raw reviews)"
    )


# imdb.npz


def _convert(folder: Path) -> Dataset:
    """Open a folder that contains imdb.npz; if needed, unpack it, if possible into the cache."""
    path = folder / NPZ
    check_owners(folder, [folder, path])
    content = _read(path)
    try:
        dataset = cached_dataset(
            f"imdb-{hashlib.sha256(content).hexdigest()[:16]}",
            lambda target: fill_folder(read_npz(content, path), target),
        )
    except DiskError:  # the user's cache can't be written, so unpack imdb.npz into memory
        dataset = read_npz(content, path)
    return dataclasses.replace(dataset, folder=folder)


def read_npz(content: bytes, path: Path) -> Dataset:
    """Read Keras's imdb.npz, and take the vocabulary from the packaged sample.

    Args:
        content: the content of the file.
        path: the path of the file, with which error messages begin.

    Raises:
        InputError: if the content differs from Keras's file; other content is never unpickled.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(f"{name}.npy") for name in SAVED_ANEW}
    except Exception:  # zipfile raises many kinds of errors for a broken file
        members = {}
    digests = {name: hashlib.sha256(member).hexdigest() for name, member in members.items()}
    if digests != SAVED_ANEW and hashlib.sha256(content).hexdigest() != NPZ_SHA256:
        raise InputError(
            f"{path}: is not Keras's {NPZ} (its checksum is wrong); to get Keras's data, move this "
            "file away, unset HARNESS_DATA and run harness data fetch; to use your own texts, set "
            "data.source"
        )
    # Only these verified members are loaded: in the whole archive, `np.load` could unpickle other
    # data.
    arrays = {
        name: np.load(io.BytesIO(member), allow_pickle=True) for name, member in members.items()
    }
    train, test = (make_split(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in SPLITS)
    return make_dataset(train, test, open_sample().vocab)


def make_dataset(train: Split, test: Split, vocab: Sequence[str]) -> Dataset:
    """Return IMDB with its reviews in the order of `keras.datasets.imdb.load_data`.

    Args:
        train, test: the splits in the order of imdb.npz: positive reviews first, and the reviews of
            each class sorted by the names of their files.
    """
    # load_data shuffles both splits with one random generator, the training split first.
    generator = np.random.RandomState(113)
    orders = np.arange(len(train)), np.arange(len(test))
    for order in orders:
        generator.shuffle(order)
    train, test = train.arranged(orders[0]), test.arranged(orders[1])
    return Dataset(train, test, vocab, content_checksum(train, test, vocab))


# The raw reviews


def read_raw_reviews(folder: Path) -> Dataset:
    """Read the raw reviews, `aclImdb/{train,test}/{pos,neg}/*.txt`.

    Raises:
        InputError: if one of the four folders contains no review.
    """
    words = open_sample().vocab  # the sample's file contains the words of the full IMDB
    ranks = {word: rank for rank, word in enumerate(words, 1)}
    splits = {}
    for name in SPLITS:
        reviews, labels = [], []
        for label, kind in ((1, "pos"), (0, "neg")):
            paths = sorted((folder / name / kind).glob("[!.]*.txt"))
            if not paths:
                raise InputError(
                    f"--from {folder}: contains no {name}/{kind}/*.txt; pass the path of aclImdb"
                )
            for path in paths:
                text = _read(path).decode(errors="replace")
                reviews.append([ranks[word] for word in tokenize(text) if word in ranks])
                labels.append(label)
        splits[name] = make_split(reviews, labels)
    return make_dataset(splits["train"], splits["test"], words)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: can't be read: {error.strerror or error}") from None


# The download


def _download() -> Dataset:
    url = ORIGIN + NPZ
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_S) as source:  # noqa: S310 - a constant
            content = source.read()
    except (OSError, http.client.HTTPException) as error:  # a proxy may send a malformed answer
        reason = getattr(error, "reason", error)
        raise RunError(
            f"the download of {url} failed ({reason}); {ELSEWHERE}, then copy "
            f"~/.cache/harness/imdb from that machine to {fetched_folder()} on this machine"
        ) from None
    if hashlib.sha256(content).hexdigest() != NPZ_SHA256:
        raise RunError(f"the download of {url} has an unexpected sha256; {ELSEWHERE}")
    return read_npz(content, Path(NPZ))


# The sample


def open_sample(note: str = "") -> Dataset:
    """Open the packaged sample: the first 5,000 training and 2,000 test reviews of `load_data`.

    Raises:
        RunError: if the sample's content does not match its checksum.
    """
    with np.load(SAMPLE, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    splits = {}
    for name in SPLITS:
        planes = arrays[f"{name}_planes"]
        tokens = np.zeros([planes.shape[1], 4], np.uint8)
        tokens[:, :3] = planes.T
        offsets = np.concatenate([[0], np.cumsum(arrays[f"{name}_lengths"], dtype=np.int64)])
        labels = arrays[f"{name}_labels"].astype(np.int32)
        splits[name] = Split(tokens.view("<i4")[:, 0].astype(np.int32), offsets, labels)
    train, test = splits["train"], splits["test"]
    words = arrays["words"].tobytes().decode().split("\n")
    checksum = content_checksum(train, test, words)
    if checksum != arrays["checksum"].tobytes().hex():
        raise RunError(f"{SAMPLE}: is broken (its checksum is wrong); install the harness again")
    return Dataset(train, test, words, checksum, is_sample=True, note=note)


# The data of a job


def open_data(job: Job, data: Path | None, *, full: bool = False) -> Dataset:
    """Open the data for a new run of a job.

    Args:
        job: the job; its `data.source` is an absolute path, or empty for IMDB.
        data: the value of `--data`, a folder with IMDB.
        full: whether to raise an error instead of opening the sample.

    Raises:
        InputError: if the data are missing, unreadable, or unsuitable for the job.
        RunError: if a dataset is broken, or if the disk fails.
    """
    if not job.data.source:
        dataset = open_dataset(data, full=full)
        if full and dataset.is_sample:
            raise InputError(
                f"--full: {dataset.folder} contains the SAMPLE of IMDB; choose another folder by "
                "--data, or leave --full out"
            )
        return dataset
    if data:
        raise InputError(
            f"--data {data}: names a folder of IMDB, but data.source = {job.data.source}; leave "
            "--data out, or set data.source to ''"
        )
    dataset = open_source(Path(job.data.source), job.data)
    _check_classes(job, dataset)
    return dataset


def reopen_data(record: Mapping[str, Any], job: Job, data: Path | None, *, whose: str) -> Dataset:
    """Open the data with which a run or sweep began.

    Args:
        record: what `Dataset.record` returned when the run or sweep began.
        data: the value of `--data`, a folder with IMDB.
        whose: the name of the run or sweep, with which error messages begin.

    Raises:
        InputError: if the data have changed or are missing.
        RunError: if a dataset is broken, or if the disk fails.
    """
    if job.data.source:
        if not os.path.exists(job.data.source):  # noqa: PTH110 - `Path.exists` may raise an error
            raise InputError(
                f"{whose}: its texts {job.data.source} are missing; if they have moved, pass their "
                "new path by --data"
            )
        dataset = open_data(job, data)
    elif record.get("is_sample") and data is None:
        dataset = open_sample()
    else:
        folder = Path(record["folder"]) if record.get("folder") else None
        if not folder or not holds_dataset(folder):  # search for the data, which may have moved
            folder = None
        dataset = open_dataset(data or folder, full=True)
    check_same(dataset, str(record.get("checksum")), whose)
    return dataset


def check_same(dataset: Dataset, checksum: str, whose: str) -> None:
    """Check that a dataset is the one with which a run or sweep began.

    Raises:
        InputError: if the dataset's checksum is not `checksum`.
    """
    if dataset.checksum == checksum:
        return
    which = f"checksum then {checksum[:12]}, now {dataset.checksum[:12]}"
    if dataset.is_own:
        raise InputError(
            f"{whose}: data.source {dataset.folder} has changed since the start ({which}); restore "
            "the texts, or start a new run"
        )
    raise InputError(
        f"{whose}: began with other data ({which}); leave --data out, or pass the folder with the "
        "original data by --data"
    )


def _check_classes(job: Job, dataset: Dataset) -> None:
    """Check that a user's training reviews include all classes; other splits may lack a class."""
    limit, share = job.data.limit, job.data.validation_split
    train, cut = dataset.used(limit, share)
    labels = train.labels[:cut]
    if missing := {*range(len(dataset.classes))} - {*labels.tolist()}:
        raise InputError(
            f"data.source {dataset.folder}: none of the {len(labels)} training reviews has the "
            f"label {dataset.classes[min(missing)]!r}; use another "
            f"data.limit than {limit}, another data.validation_split than {share}, or add reviews"
        )
