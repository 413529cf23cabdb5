"""Makes a dataset from a user's texts: a table, a folder of tables, or folders of text files.

`jobs/README.md` explains how files, classes and splits are recognized. The harness
ignores hidden files; in a folder of tables it also ignores all files that are not tables, and in a
folder of text files all files that do not end in .txt.

The dataset is made once, in the user's cache, as the folder
`texts-<checksum of the source>-<FORMAT>/`. Users can remove the dataset's folder at any time.

The reviews of a split are sorted by the hash of their words, so the order of the source's rows and
files does not affect the dataset. If the source does not state which reviews are test reviews, the
hash of a review's words decides whether the review is a test review. If a review is added to the
source, the other reviews keep their splits and their order. The last training reviews, which may be
used for validation, are a mix of all classes.

Words are ranked by their frequency in the training split; words of equal frequency are in
alphabetical order. Words that do not occur in the training split have no rank.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.config import SURROGATE
from harness.data.dataset import MAX_CLASSES, SHOWN, SPLITS, Dataset, Split, content_checksum
from harness.data.dataset_folder import cached_dataset, fill_folder
from harness.data.tables import (
    KNOWN_SPLITS,
    LEFT_OUT,
    TABLES,
    VALIDATION,
    SourceFile,
    Text,
    listed,
    read_file,
    table_ending,
)
from harness.data.vocabulary import MAX_CHARACTERS, UNRANKED, tokenize
from harness.errors import InputError, about
from harness.job.keys import FORMAT_KEYS, LARGEST_VOCAB, DataConfig
from harness.system.files import read_plain_file, sha256_of
from harness.system.lenient_json import parse_json

REMEDY = (
    "name a table (.csv, .tsv, .jsonl, .parquet), a folder of tables, a folder that Hugging Face's "
    "save_to_disk wrote, or a folder that contains a folder of .txt files for each class"
)
# Matches the name of a split in a table's file name, such as `test` in imdb_test1.csv, but not
# inside another word, such as `latest`.
SPLIT_NAME = re.compile(r"(?<![^\W\d_])({})(?:ing|set)?(?![^\W\d_])".format("|".join(KNOWN_SPLITS)))
# Files that `save_to_disk` of Hugging Face's `datasets` writes: for one split, and for all splits.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"

DEFAULT_FORM = DataConfig()
FORMAT = 6  # part of the cache folder's name; increase it when `make_dataset` gives new results
READ_SPLITS = (*SPLITS, "validation")
TEST_SHARE = 0.2
MIN_REVIEWS = 10  # the smallest number of reviews in a split
MAX_CLASS_CHARACTERS = 60
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
HASH_BYTES = 16  # the length of a review's hash, the beginning of a sha256


def read_texts(source: Path, form: DataConfig = DEFAULT_FORM) -> Iterator[Text]:
    """Yield the reviews of a source, one after another.

    Args:
        form: the job's `[data]` table; its keys in `FORMAT_KEYS` describe the format of the files.

    Raises:
        InputError: if the source can't be used; the message says where the error is, and how to
            correct it.
    """
    for part in _parts(source):
        with about(part.location) if part.location else contextlib.nullcontext():
            yield from read_file(part, form)


def source_checksum(source: Path, form: DataConfig = DEFAULT_FORM) -> str:
    """Return the sha256 of the source's files, of their names, and of the `FORMAT_KEYS` in `form`.

    Raises:
        InputError: if the source can't be used.
        OSError: if the source can't be read.
    """
    digest = hashlib.sha256()
    for part in _parts(source):
        # The names of files and folders in a folder determine the classes and splits. For a single
        # file, only the ending of its name matters.
        name = part.location or table_ending(part.path.name)
        content = bytes.fromhex(sha256_of(part.path))
        digest.update(hashlib.sha256(os.fsencode(name)).digest() + content)
    digest.update(repr([getattr(form, key) for key in FORMAT_KEYS]).encode())
    return digest.hexdigest()


# The files of a source


def _parts(source: Path) -> Iterator[SourceFile]:
    if not source.exists():
        raise InputError(f"no such file or folder; {REMEDY}")
    if source.is_dir():
        yield from _folder_parts(source)
    elif not table_ending(source.name):
        raise InputError(
            f"the file's name should end in {', '.join(TABLES)}; .gz or .zst may follow, except "
            f"after .parquet; {REMEDY}"
        )
    else:
        yield SourceFile(source, "", "")


def _folder_parts(source: Path) -> Iterator[SourceFile]:
    entries = _entries(source)
    folders = _folders(entries)
    if SAVED_SPLITS in entries:
        if unknown := {*folders} - {*KNOWN_SPLITS}:
            raise InputError(
                f"contains the folder {min(unknown)}, but should contain only folders for the "
                "splits train, validation and test; remove or rename this folder"
            )
        for name in folders:
            yield from _saved_parts(source, name)
    elif SAVED in entries:
        yield from _saved_parts(source, "")
    elif tables := _tables(entries):
        for name, split in tables.items():
            yield SourceFile(source / name, name, split)
    elif {*SPLITS} <= {*folders}:
        splits = [*SPLITS, *(name for name in VALIDATION if name in folders)]
        first, *others = [_folders(_entries(source / split)) for split in splits]
        for split, classes in zip(splits[1:], others, strict=True):
            if alone := {*classes} ^ {*first}:
                raise InputError(
                    f"train/ and {split}/ should contain the same folders, one for each class, but "
                    f"only one of the two contains {min(alone)!r}; add or remove that folder"
                )
        for split in splits:
            yield from _class_parts(source, split)
    else:
        yield from _class_parts(source, "")


def _tables(entries: Mapping[str, "os.DirEntry[str]"]) -> dict[str, str]:
    """Return the name of each table in a folder, with the split that occurs in this name.

    If no table's name contains the name of a split, the split of each table is "". But if the
    folder also has subfolders, the tables are ignored, and the result is empty.

    Raises:
        InputError: if one table has a split in its name, and another table has none or several.
            Files that end in .json can't cause this error.
    """
    names = [name for name, entry in entries.items() if table_ending(name) and not entry.is_dir()]
    named = {name: {*SPLIT_NAME.findall(name.casefold())} for name in names}
    by_split = {name: split for split in KNOWN_SPLITS for name in names if named[name] == {split}}
    if not by_split:
        return {} if _folders(entries) else dict.fromkeys(names, "")
    # Ignore a .json file without a split in its name: it is probably metadata, such as
    # dataset_infos.json.
    unclear = [each for each in names if each not in by_split and table_ending(each) != ".json"]
    if unclear:
        raise InputError(
            f"the name of {unclear[0]} should contain the name of one split, as {min(by_split)} "
            "does; rename the file, for example to test_a.csv, or remove it"
        )
    return by_split


def _saved_parts(source: Path, split: str) -> Iterator[SourceFile]:
    """Yield the files of a folder from `save_to_disk`, in the order of the list in state.json."""
    folder = source / split
    state = parse_json(read_plain_file(folder / SAVED))
    if state.get("_indices_data_files"):
        raise InputError(
            f"{(folder / SAVED).relative_to(source)} selects rows by an index; call "
            "flatten_indices() and save the dataset again"
        )
    files = state.get("_data_files")
    files = files if isinstance(files, list) else []
    names = [str(each.get("filename")) for each in files if isinstance(each, Mapping)]
    # Only names of files in this folder are allowed: a path could lead out of the source.
    if not names or not {*names} <= {*_entries(folder)}:
        raise InputError(
            f"{(folder / SAVED).relative_to(source)} should name files in its folder; save the "
            "dataset again with save_to_disk"
        )
    for name in names:
        yield SourceFile(folder / name, str(Path(split, name)), split)


def _class_parts(source: Path, split: str) -> Iterator[SourceFile]:
    """Yield the texts in a folder that contains a folder for each class."""
    classes = _folders(_entries(source / split))
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(
            f"{(source / split).name}/ contains {len(classes):,} folders, but should contain 2 to "
            f"{MAX_CLASSES:,}, one for each class; {REMEDY}"
        )
    for name in classes:
        inside = Path(split, name)
        files = [
            file
            for file, entry in _entries(source / inside).items()
            if file.lower().endswith(".txt") and not entry.is_dir()
        ]
        if not files:
            raise InputError(f"{inside}/ contains no .txt file; add one, or remove the folder")
        for file in files:
            yield SourceFile(source / inside / file, str(inside / file), split, name)


def _entries(folder: Path) -> dict[str, "os.DirEntry[str]"]:
    """Return a folder's entries with their names as keys, sorted, without hidden entries."""
    with os.scandir(folder) as found:
        entries = {entry.name: entry for entry in found if not entry.name.startswith(".")}
    return dict(sorted(entries.items()))


def _folders(entries: Mapping[str, "os.DirEntry[str]"]) -> list[str]:
    return [name for name, entry in entries.items() if entry.is_dir()]


# The dataset of a source


def open_source(source: Path, form: DataConfig = DEFAULT_FORM) -> Dataset:
    """Open the dataset of a source in the user's cache; make the dataset first if it is missing.

    Args:
        source: a file or folder.
        form: as for `read_texts`.

    Raises:
        InputError: if the source can't be used; the message says where the error is and
            how to fix it.
        RunError: if the cache can't be read or written.
    """

    def fill(folder: Path) -> None:
        try:
            make_dataset(source, folder, form)
            is_same = source_checksum(source, form) == checksum
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise InputError("changed while it was read; start again when nothing writes to it")

    with about(f"data.source {source}"):
        try:
            checksum = source_checksum(source, form)
        except OSError as error:
            raise InputError(
                f"{error.filename} can't be read ({error.strerror}); check its name and permissions"
            ) from None
        name = f"texts-{checksum[:32]}-{FORMAT}"
        dataset = cached_dataset(name, fill)
    return dataclasses.replace(dataset, folder=source, is_own=True)


@dataclass
class _Gathered:
    """The reviews of a source, in the source's order.

    Words and classes are numbered in the order of their first appearance.
    """

    # These are arrays, because lists would take ten times the memory.
    tokens: "array[int]" = field(default_factory=lambda: array("i"))  # the number of each word
    lengths: "array[int]" = field(default_factory=lambda: array("i"))  # words per review
    labels: "array[int]" = field(default_factory=lambda: array("i"))  # class of each review
    splits: "array[int]" = field(default_factory=lambda: array("b"))  # index in READ_SPLITS, or -1
    hashes: bytearray = field(default_factory=bytearray)  # HASH_BYTES per review
    words: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    num_cut: int = 0  # the number of reviews cut to MAX_CHARACTERS


def make_dataset(source: Path, folder: Path, form: DataConfig = DEFAULT_FORM) -> None:
    """Read a source, and write its dataset into an empty folder.

    The function needs about 200 bytes of memory for each review, 10 bytes for each word of the
    reviews, and memory for the vocabulary.

    Raises:
        InputError: if the source can't be used; the message says where the error is and
            how to fix it.
        OSError: if the folder can't be written.
    """
    gathered = _gather(read_texts(source, form))
    classes = _classes([*gathered.classes])
    label_of = np.empty(len(classes), np.int32)  # the label of each class number
    label_of[[gathered.classes[name] for name in classes]] = np.arange(len(classes))
    labels = label_of[np.frombuffer(gathered.labels, np.int32)]
    hashes = np.frombuffer(gathered.hashes, ">u8").reshape(-1, 2)
    split_of: np.ndarray = np.frombuffer(gathered.splits, np.int8)
    has_splits = split_of[0] >= 0
    if not has_splits:
        split_of = hashes[:, 0] < TEST_SHARE * 2.0**64
    # Sort by the hash of the words (two integers), then by the label, so that the order of reviews
    # with the same words is fixed too.
    order = np.lexsort((labels, hashes[:, 1], hashes[:, 0]))
    parts = {name: order[split_of[order] == i] for i, name in enumerate(READ_SPLITS)}
    for name, chosen in parts.items():
        if len(chosen) < MIN_REVIEWS and (name in SPLITS or len(chosen)):
            raise InputError(
                f"contains {len(chosen)} {name} reviews, but should contain at least "
                f"{MIN_REVIEWS}; add reviews"
            )
    vocab, reviews = _ranked(gathered, labels, chosen=split_of == 0)
    notes = [f"split by the hash of their words, with {TEST_SHARE:.0%} test reviews"]
    if has_splits:
        notes = ["split as stated in the source"]
        for name in ("test", "validation"):
            if num := np.isin(hashes[parts[name], 0], hashes[parts["train"], 0]).sum():
                notes.append(f"{num:,} {name} reviews have the same words as a training review")
    if gathered.num_cut:
        notes.append(f"{gathered.num_cut:,} reviews cut to the last {MAX_CHARACTERS:,} characters")
    train = reviews.arranged(np.concatenate([parts["train"], parts["validation"]]))
    test, num_validation = reviews.arranged(parts["test"]), len(parts["validation"])
    checksum = content_checksum(train, test, vocab, num_validation=num_validation)
    dataset = Dataset(
        train, test, vocab=vocab, checksum=checksum, folder=source, note="; ".join(notes),
        classes=classes, is_own=True, num_validation=num_validation,
    )  # fmt: skip
    fill_folder(dataset, folder)


def _gather(texts: Iterable[Text]) -> _Gathered:
    gathered, first = _Gathered(), None
    gathered.words = defaultdict(lambda: len(gathered.words))
    for each in texts:
        first = first or each
        # If only some reviews state their split, splitting all reviews by the hash could put a
        # test review into the training split.
        if bool(each.split) != bool(first.split):
            raise InputError(
                f"{each.location} and {first.location}: only one of these reviews states its "
                "split; state the split of all reviews, or of none"
            )
        if each.split == LEFT_OUT:
            continue
        text, label = each.text, each.label.strip()
        if len(text) > MAX_CHARACTERS:
            text = text[-MAX_CHARACTERS:]
            gathered.num_cut += 1
        words = tokenize(text)
        joined = " ".join(words)
        if not words or not label:
            missing = "word in its text" if label else "label"
            raise InputError(
                f"{each.location} has no {missing}; complete or remove all reviews without a "
                f"{missing}"
            )
        if "\0" in joined or SURROGATE.search(joined):
            raise InputError(
                f"{each.location} contains a NUL byte or an unpaired surrogate; save the text as "
                "UTF-8"
            )
        gathered.labels.append(gathered.classes.setdefault(label, len(gathered.classes)))
        if len(gathered.classes) > MAX_CLASSES:
            # Stop reading: the user probably named the wrong column as the label column. `_classes`
            # raises the error for too many classes.
            break
        # The hash decides the review's position in its split and, if the source states no splits,
        # the split itself.
        gathered.hashes += hashlib.sha256(joined.encode()).digest()[:HASH_BYTES]
        gathered.tokens.extend(map(gathered.words.__getitem__, words))
        gathered.lengths.append(len(words))
        split = "validation" if each.split in VALIDATION else each.split
        gathered.splits.append(READ_SPLITS.index(split) if split else -1)
    return gathered


def _classes(names: list[str]) -> tuple[str, ...]:
    """Check the names of classes, and return them in the order of their labels."""
    if not names:
        raise InputError("has no rows with a label; add reviews")
    for name in names:
        if len(name) > MAX_CLASS_CHARACTERS or not name.isprintable():
            raise InputError(
                f"the label {name[:MAX_CLASS_CHARACTERS]!r} should have at most "
                f"{MAX_CLASS_CHARACTERS} characters, all printable; set data.label_column "
                "to another column, or correct the label"
            )
    if not 2 <= len(names) <= MAX_CLASSES:
        number = f"over {MAX_CLASSES:,}" if names[MAX_CLASSES:] else len(names)
        raise InputError(
            f"contains {number} classes ({listed(names)}), but should contain 2 to "
            f"{MAX_CLASSES:,}; set data.label_column to the column of the classes"
        )
    if all(NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names, key=lambda name: (name.casefold(), name)))


def _ranked(
    gathered: _Gathered, labels: np.ndarray, *, chosen: np.ndarray
) -> tuple[list[str], Split]:
    """Rank words by their frequency in the chosen reviews.

    Args:
        gathered: all reviews.
        labels: the label of each review, `[num_reviews] int32`.
        chosen: for each review, whether its words are counted, `[num_reviews] bool`.

    Returns:
        The words in the order of their ranks, most frequent first; and all reviews, in which each
        word is replaced by its rank.
    """
    lengths, words = np.frombuffer(gathered.lengths, np.int32), [*gathered.words]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = np.frombuffer(gathered.tokens, np.int32)
    counts = np.bincount(tokens[np.repeat(chosen, lengths)], minlength=len(words))
    known, frequency = np.flatnonzero(counts).tolist(), counts.tolist()
    order = sorted(known, key=lambda number: (-frequency[number], words[number]))
    ranks = np.full(len(words), UNRANKED, np.int32)
    ranks[order] = np.arange(1, len(order) + 1)
    return [words[number] for number in order], Split(ranks[tokens], offsets, labels)


# The description of a dataset for the user


def describe(dataset: Dataset) -> Iterator[str]:
    """Yield lines about a dataset, which help to choose `data.vocab_size` and `data.maxlen`."""
    yield dataset.introduction or dataset.title
    parts = dataset.parts()
    train = parts["train"]
    for name, split in parts.items():
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        first = zip(counts[:SHOWN], dataset.classes, strict=False)
        shares = [f"{count / len(split):.1%} {name}" for count, name in first]
        shares.append(f"the rarest of {len(counts)} classes has {counts.min():,} reviews")
        yield f"{name + ' ':8}{len(split):,} reviews: {', '.join(shares)}"
    counts = np.bincount(train.tokens, minlength=len(dataset.vocab) + 1)
    shares = np.cumsum(counts) / counts.sum()  # shares[i]: words of rank i or less
    sizes = [size for size in (2000, 8000, 20000, 40000) if size - 4 < len(dataset.vocab)]
    coverage = [f"{size:,} covers {shares[size - 4]:.1%}" for size in sizes]
    if len(dataset.vocab) + 4 <= LARGEST_VOCAB:
        coverage.append(f"{len(dataset.vocab) + 4:,} covers all")
    yield (
        f"words   {len(dataset.vocab):,} different words in the training reviews; data.vocab_size: "
        + ", ".join(coverage)
    )
    lengths = np.diff(train.offsets)
    shown = [f"{share}% {np.percentile(lengths, share):,.0f}" for share in (50, 75, 90, 95, 99)]
    yield (
        f"length  words per training review, percentiles: {', '.join(shown)}; the longest review "
        f"has {lengths.max():,} words; data.maxlen also counts the start token"
    )
    yield f"sha256  {dataset.checksum}"
