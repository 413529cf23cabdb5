"""A user's own texts: a table, several of them, or folders of text files become a dataset.

`jobs/README.md` says which files are read, and what the names of classes and splits may be. A link
is refused, so that nothing outside the source is read. Hidden files and files with another suffix
are ignored.

The dataset has the form of IMDB's. It is made once and stored in the user's cache, as
`texts-<checksum of the source>/`, which may be removed at any time; a source that has changed gets
a new one. A validation split is the end of the training split there.

If the source says no split, that of a review follows from the hash of its words, so adding reviews
moves no other. The order within a split is that of the same hash: the last share of the training
reviews holds all classes, and the order of rows and the names of files do not affect a result.

Words are split as `harness.data.vocabulary` does, and ranked by frequency in the training split,
equal ones by the alphabet; words of the other splits alone have no rank.
"""

import dataclasses
import hashlib
import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from harness.data.dataset import MAX_CLASSES, SPLITS, Dataset, Split, content_checksum, parts_of
from harness.data.dataset_folder import cached_dataset, fill_folder
from harness.data.tables import (
    COMPRESSIONS,
    KNOWN_SPLITS,
    LEFT_OUT,
    MAX_ROW,
    TABLES,
    VALIDATION,
    SourceFile,
    SourceFormat,
    Text,
    listed,
    open_text,
    read_table,
    table_ending,
    undecoded,
)
from harness.data.vocabulary import MAX_CHARACTERS, UNRANKED, tokenize
from harness.errors import InputError, did_you_mean
from harness.system.files import read_plain_file
from harness.system.lenient_json import parse_json

REMEDY = (
    "give a table (.csv, .tsv, .jsonl, .parquet), a folder of them, a folder of save_to_disk, or a "
    "folder that holds one of .txt files for each class"
)
# In the name of a table, in small letters: a word beside no letter, as in imdb_test1.csv.
SPLIT_NAME = re.compile(r"(?<![^\W\d_])({})(?:ing|set)?(?![^\W\d_])".format("|".join(KNOWN_SPLITS)))
TEXT_ENDINGS = (".txt", *(f".txt{ending}" for ending in COMPRESSIONS))
# Files of `datasets.Dataset.save_to_disk`: of one data set, and of several splits.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"

# Of the cached dataset; each format has separate caches. 2: splits and numbers that 1 mistook;
# 3: numbers that stand for no class; 4: validation splits; 5: splits anywhere in a table's name.
FORMAT = 5
GIVEN = (*SPLITS, "validation")  # splits of reviews that are read
TEST_SHARE = 0.2
MIN_REVIEWS = 10  # of each split
MAX_CLASS_CHARACTERS = 60
DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d+")
SHOWN = 3  # locations and classes in a message
CLASSES_SHOWN = 10  # in a description
HASH_BYTES = 16

# Names that say what they mean, for labels 0 and 1.
NEGATIVE = {"0", "-1", "-", "neg", "negative", "false", "f", "no", "n", "bad", "sad", "rotten"}
POSITIVE = {"1", "+1", "+", "pos", "positive", "true", "t", "yes", "y", "good", "happy", "fresh"}


def read_texts(source: Path, form: SourceFormat | None = None) -> Iterator[Text]:
    """The reviews of a source, one after another.

    Args:
        form: how to read tables, by default as a job without such keys.

    Raises:
        InputError: one line that names the source, the location in it, the rule and the remedy.
    """
    form = form or SourceFormat()
    for part in _parts(source):
        if part.label:
            text = _read_review(part, form.encoding)
            yield Text(text, part.label, part.split, part.location)
        else:
            yield from read_table(part, form)


def source_checksum(source: Path, form: SourceFormat | None = None) -> str:
    """The sha256 of all that `read_texts` reads: the bytes, and names that carry meaning.

    Raises:
        InputError: if it can't be read or is not a source.
    """
    digest = hashlib.sha256()
    for part in _parts(source):
        try:
            with part.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise InputError(
                f"{part.where}can't be read ({error.strerror}); check its mode"
            ) from None
        # A single file may be renamed; in a folder the names are classes and splits.
        name = table_ending(part.path.name) if part.path == source else part.location
        digest.update(hashlib.sha256(os.fsencode(name)).digest() + content)
    if form and form != SourceFormat():  # the default adds nothing: earlier caches stay valid
        digest.update(repr(sorted(asdict(form).items())).encode())
    return digest.hexdigest()


def _file(source: Path, path: Path, *, split: str, label: str = "") -> SourceFile:
    inside = path.relative_to(source).as_posix()
    return SourceFile(path, inside, f"data.source {source}: {inside}, ", split, label)


# Which files


def _parts(source: Path) -> Iterator[SourceFile]:
    try:
        if not source.exists():
            near = did_you_mean(source.name, [path.name for path in source.parent.glob("[!.]*")])
            raise InputError(f"data.source {source}: no such file or folder{near or f'; {REMEDY}'}")
        if source.is_dir():
            yield from _folder_parts(source)
        elif not source.is_file():
            raise InputError(f"data.source {source}: is no plain file; {REMEDY}")
        elif not table_ending(source.name):
            raise InputError(
                f"data.source {source}: ends in {source.suffix or 'no ending'!r}, known are "
                f"{', '.join(TABLES)}, and .gz and .zst of the texts among them; {REMEDY}"
            )
        else:
            yield SourceFile(source, "", f"data.source {source}: ", "")
    except OSError as error:
        raise InputError(
            f"data.source {source}: can't be read ({error.strerror}); check its name and mode"
        ) from None


def _folder_parts(source: Path) -> Iterator[SourceFile]:
    entries = _entries(source, source)
    if SAVED_SPLITS in entries:
        splits = parse_json(read_plain_file(source / SAVED_SPLITS)).get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        for name in names:
            if name not in KNOWN_SPLITS or name not in entries:
                raise InputError(
                    f"data.source {source}: {SAVED_SPLITS} names a split {name[:40]!r}, should "
                    "name train, validation and test, each a folder there"
                )
            yield from _saved_parts(source, source / name, name)
    elif SAVED in entries:
        yield from _saved_parts(source, source, "")
    elif tables := _tables(source, entries):
        for name, split in tables.items():
            yield _file(source, source / name, split=split)
    elif all(name in entries and entries[name].is_dir() for name in SPLITS):
        splits = [*SPLITS, *(n for n in VALIDATION if n in entries and entries[n].is_dir())]
        first, *others = [_class_names(source, source / split) for split in splits]
        for split, folders in zip(splits[1:], others, strict=True):
            if alone := {*folders} ^ {*first}:
                raise InputError(
                    f"data.source {source}: train/ and {split}/ should hold the same folders, one "
                    f"for each class, and {min(alone)!r} is in one of them only; add it, or move "
                    "it out"
                )
        for split in splits:
            yield from _class_parts(source, source / split, split)
    else:
        yield from _class_parts(source, source, "")


def _tables(source: Path, entries: Mapping[str, "os.DirEntry[str]"]) -> dict[str, str]:
    """The tables of a folder with the split of each: those that name one, else all there are.

    Raises:
        InputError: if one does not name one split, though another does.
    """
    names = [name for name, entry in entries.items() if table_ending(name) and entry.is_file()]
    named = {name: {*SPLIT_NAME.findall(name.casefold())} for name in names}
    by_split = {name: split for split in KNOWN_SPLITS for name in names if named[name] == {split}}
    if not by_split:
        return {} if any(entry.is_dir() for entry in entries.values()) else dict.fromkeys(names, "")
    # A .json without a split is probably a note about the others, such as dataset_infos.json.
    unclear = [each for each in names if each not in by_split and table_ending(each) != ".json"]
    if unclear:
        raise InputError(
            f"data.source {source}: {unclear[0]} does not name one split, though {min(by_split)} "
            "does; put train or test into its name, as in test_a.csv, or move it out"
        )
    return by_split


def _saved_parts(source: Path, folder: Path, split: str) -> Iterator[SourceFile]:
    """The files of a data set that `save_to_disk` wrote, in the order that its state says."""
    entries = _entries(source, folder)
    state = parse_json(read_plain_file(folder / SAVED))
    files = state.get("_data_files")
    files = files if isinstance(files, list) else []
    names = [str(each.get("filename")) for each in files if isinstance(each, Mapping)]
    # Only names of files in the folder: a path could lead elsewhere.
    if not names or not all(name in entries and entries[name].is_file() for name in names):
        raise InputError(
            f"data.source {source}: {(folder / SAVED).relative_to(source)} does not name files of "
            "its folder; save the data set again by save_to_disk"
        )
    if state.get("_indices_data_files"):
        raise InputError(
            f"data.source {source}: {(folder / SAVED).relative_to(source)} selects rows by an "
            "index; save the data set again after flatten_indices()"
        )
    for name in names:
        yield _file(source, folder / name, split=split)


def _class_names(source: Path, folder: Path) -> list[str]:
    return [name for name, entry in _entries(source, folder).items() if entry.is_dir()]


def _class_parts(source: Path, folder: Path, split: str) -> Iterator[SourceFile]:
    classes = _class_names(source, folder)
    if not 2 <= len(classes) <= MAX_CLASSES:
        found = f"{len(classes):,} folders ({listed(classes)})" if classes else "no folders"
        raise InputError(
            f"data.source {source}: {folder.name}/ holds {found}, should hold 2 to "
            f"{MAX_CLASSES:,}, one for each class; {REMEDY}"
        )
    for name in classes:
        files = [
            file
            for file, entry in _entries(source, folder / name).items()
            if file.lower().endswith(TEXT_ENDINGS) and entry.is_file()
        ]
        inside = f"{split}/{name}" if split else name
        if not files:
            raise InputError(
                f"data.source {source}: {inside}/ holds no .txt file, each class needs some; fill "
                "it or remove it"
            )
        for file in files:
            yield _file(source, folder / name / file, split=split, label=name)


def _entries(source: Path, folder: Path) -> dict[str, "os.DirEntry[str]"]:
    """The entries of a folder by name, sorted, without hidden ones.

    Raises:
        InputError: for a link.
    """
    with os.scandir(folder) as found:
        entries = {entry.name: entry for entry in found if not entry.name.startswith(".")}
    for name, entry in entries.items():
        if entry.is_symlink():
            raise InputError(
                f"data.source {source}: {(folder / name).relative_to(source)} is a link, which is "
                "not followed; put the file or folder itself there"
            )
    return dict(sorted(entries.items()))


# A review in a file


def _read_review(part: SourceFile, encoding: str) -> str:
    where = part.where
    try:
        with open_text(part.path, where, encoding) as file:
            text = file.read(MAX_ROW + 1)
    except UnicodeError:
        raise InputError(f"{where}{undecoded(file)}") from None
    except OSError as error:
        raise InputError(f"{where}can't be read ({error}); make the file again") from None
    if len(text) > MAX_ROW:
        raise InputError(
            f"{where}has more than {MAX_ROW:,} characters; a file should be one review"
        )
    return text


# The dataset of a source


def open_source(source: Path, form: SourceFormat | None = None) -> Dataset:
    """The dataset of a source, from the cache or made now.

    Args:
        source: a file or folder as `harness.data.own_texts` reads it.
        form: how to read its tables, by default as a job without such keys.

    Raises:
        InputError: one line that names the source, the location in it, the rule and the remedy.
    """
    checksum = source_checksum(source, form)

    def fill(folder: Path) -> None:
        make_dataset(source, folder, form)
        if source_checksum(source, form) != checksum:
            raise InputError(f"data.source {source}: changed while it was read; run it again")

    dataset = cached_dataset(f"texts-{checksum[:32]}-{FORMAT}", fill)
    return dataclasses.replace(dataset, folder=source, is_own=True)


@dataclass
class _Gathered:
    """The reviews of a source in its order, and counts for messages."""

    # Plain arrays: lists would take ten times the memory.
    tokens: "array[int]" = field(default_factory=lambda: array("i"))  # numbers of words
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))  # numbers of classes
    splits: "array[int]" = field(default_factory=lambda: array("b"))  # of GIVEN, -1 for none
    hashes: bytearray = field(default_factory=bytearray)
    words: dict[str, int] = field(default_factory=dict)  # their numbers, in order of appearance
    classes: dict[str, int] = field(default_factory=dict)
    blanks: list[str] = field(default_factory=list)  # the first of them
    num_blanks: int = 0
    num_cut: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reviews, by the name of their split

    def notes(self) -> Iterator[str]:
        """What was not read."""
        if self.num_cut:
            yield f"{self.num_cut:,} cut to their last {MAX_CHARACTERS:,} characters"
        for split, count in sorted(self.left_out.items()):
            yield f"{count:,} of the split {split} left out"


def make_dataset(source: Path, folder: Path, form: SourceFormat | None = None) -> None:
    """Read a source, and write its dataset, as this module's docstring says, into an empty folder.

    Memory holds about 40 bytes for each review, 8 for each of its words, and the vocabulary.

    Raises:
        InputError: one line that names the source, the location in it, the rule and the remedy.
        OSError: if the disk refuses.
    """
    gathered = _gather(read_texts(source, form), source)
    classes = _classes(source, gathered)
    label_of = np.empty(len(classes), np.int32)  # by the number of the class
    label_of[[gathered.classes[name] for name in classes]] = np.arange(len(classes))
    labels = label_of[np.frombuffer(gathered.labels, np.int32)]
    hashes = np.frombuffer(gathered.hashes, ">u8").reshape(-1, 2)
    given = np.frombuffer(gathered.splits, np.int8)
    part_of = np.where(given < 0, hashes[:, 0] < TEST_SHARE * 2.0**64, given)
    # By the label last, so that reviews of the same words have one order too.
    order = np.lexsort((labels, hashes[:, 1], hashes[:, 0]))
    parts = {name: order[part_of[order] == index] for index, name in enumerate(GIVEN)}
    for name, chosen in parts.items():
        if name in SPLITS or len(chosen):
            _check_split(source, name, labels[chosen], classes=classes)
    vocab, reviews = _ranked(gathered, labels, chosen=part_of == GIVEN.index("train"))
    if given[0] < 0:
        note = f"split by the hash of their words, {TEST_SHARE:.0%} to test"
    else:
        note = "split as the source says"
        twice = {
            name: int(np.isin(hashes[chosen, 0], hashes[parts["train"], 0]).sum())
            for name, chosen in parts.items()
            if name != "train"
        }
        if told := [f"{count:,} of the {name}" for name, count in twice.items() if count]:
            note += f" ({' and '.join(told)} reviews have the words of a training review)"
    train = reviews.arranged(np.concatenate([parts["train"], parts["validation"]]))
    test, num_validation = reviews.arranged(parts["test"]), len(parts["validation"])
    checksum = content_checksum(train, test, vocab, num_validation=num_validation)
    dataset = Dataset(
        train, test, vocab=vocab, checksum=checksum, folder=source,
        note="; ".join([note, *gathered.notes()]), classes=classes, is_own=True,
        num_validation=num_validation,
    )  # fmt: skip
    fill_folder(dataset, folder)


def _gather(texts: Iterable[Text], source: Path) -> _Gathered:
    """Read all reviews."""
    gathered = _Gathered()
    gathered.words = defaultdict(lambda: len(gathered.words))
    said: dict[bool, str] = {}  # the first location that says its split, and that does not
    for each in texts:
        said.setdefault(each.split != "", each.location)
        if len(said) > 1:  # else test reviews could be trained on
            raise InputError(
                f"data.source {source}: {said[True]} says its split and {said[False]} does not; "
                "give the split of all, or of none"
            )
        if each.split in LEFT_OUT:
            gathered.left_out[each.split] += 1
            continue
        text, label = each.text, each.label.strip()
        if len(text) > MAX_CHARACTERS:
            text = text[-MAX_CHARACTERS:]
            gathered.num_cut += 1
        words = tokenize(text)
        if not words or not label:
            what = "label" if not label else "word in its text" if text.strip() else "text"
            gathered.num_blanks += 1
            if gathered.num_blanks <= SHOWN:
                gathered.blanks.append(f"{each.location} has no {what}")
            continue
        gathered.labels.append(gathered.classes.setdefault(label, len(gathered.classes)))
        if len(gathered.classes) > MAX_CLASSES:
            break  # the column seems to hold no labels
        gathered.hashes += _hash(" ".join(words), f"data.source {source}: {each.location}")
        gathered.tokens.extend(map(gathered.words.__getitem__, words))
        gathered.lengths.append(len(words))
        split = "validation" if each.split in VALIDATION else each.split
        gathered.splits.append(GIVEN.index(split) if split else -1)
    if gathered.num_blanks:
        more = gathered.num_blanks - len(gathered.blanks)
        locations = ", ".join(gathered.blanks) + (f", and {more:,} more" if more else "")
        raise InputError(f"data.source {source}: {locations}; complete them or take them out")
    return gathered


def _hash(words: str, where: str) -> bytes:
    """What decides the split and the order of a review."""
    if "\0" in words:
        raise InputError(f"{where} holds a NUL byte, which no text does; save it as UTF-8")
    try:
        return hashlib.sha256(words.encode()).digest()[:HASH_BYTES]
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half of a character; save it as UTF-8") from None


def _classes(source: Path, gathered: _Gathered) -> tuple[str, ...]:
    names = list(gathered.classes)
    for name in names:
        if len(name) > MAX_CLASS_CHARACTERS or not name.isprintable():
            raise InputError(
                f"data.source {source}: the label {name[:MAX_CLASS_CHARACTERS]!r} is no name of a "
                f"class, which has up to {MAX_CLASS_CHARACTERS} printable characters; put the "
                "class into the column of labels"
            )
        if DECIMAL.fullmatch(name):
            raise InputError(
                f"data.source {source}: the label {name!r} is a decimal number, and a class is a "
                "word or a whole number; round the labels, or give classes in their place"
            )
    shown = ", ".join(map(repr, names[: SHOWN + 2])) + (", …" if len(names) > SHOWN + 2 else "")
    if len(names) < 2:
        raise InputError(
            f"data.source {source}: holds {f'one class, {shown}' if names else 'no review'}; give "
            "each review one of two labels or more"
        )
    if len(names) > MAX_CLASSES:
        raise InputError(
            f"data.source {source}: holds more than {MAX_CLASSES:,} classes: {shown}; name the "
            "column that holds the classes, or put rare ones together"
        )
    if all(WHOLE.fullmatch(name) for name in names):
        names.sort(key=lambda name: (int(name), name))
    else:
        names.sort(key=lambda name: (name.casefold(), name))
    if len(names) == 2:
        first, second = names
        swap = first.casefold() in POSITIVE and second.casefold() in NEGATIVE
        return (second, first) if swap else (first, second)
    counts = np.bincount(np.frombuffer(gathered.labels, np.int32))
    if once := [name for name, number in gathered.classes.items() if counts[number] == 1]:
        several = f"{len(once):,} labels occur once, such as {once[0]!r}"
        raise InputError(
            f"data.source {source}: {several if once[1:] else f'the label {once[0]!r} occurs once'}"
            "; a class needs reviews to train on and to test, so add some, or take it out"
        )
    return tuple(names)


def _check_split(source: Path, name: str, labels: np.ndarray, *, classes: Sequence[str]) -> None:
    what = "training" if name == "train" else name
    remedy = "add reviews, or give the split in a column named split"
    if len(labels) < MIN_REVIEWS:
        raise InputError(
            f"data.source {source}: {len(labels)} {what} reviews, should be at least "
            f"{MIN_REVIEWS}; {remedy}"
        )
    if name != "train" and len(classes) > 2:  # it may lack a rare class, whose score is left out
        return
    check_has_all(source, what, labels, classes=classes, remedy=f"; {remedy}")


def check_has_all(
    source: Path | None, part: str, labels: np.ndarray, *, classes: Sequence[str], remedy: str
) -> None:
    """Refuse a part of own texts that lacks a class.

    Raises:
        InputError: for the first class.
    """
    counts = np.bincount(labels, minlength=len(classes))
    for label, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(
                f"data.source {source}: none of the {len(labels)} {part} reviews is {label!r}"
                f"{remedy}"
            )


def _ranked(
    gathered: _Gathered, labels: np.ndarray, *, chosen: np.ndarray
) -> tuple[list[str], Split]:
    """The words of some reviews by their frequency, and all reviews with the ranks of their words.

    Args:
        labels: `[num_reviews] int32`.
        chosen: `[num_reviews] bool`, the reviews whose words have a rank.
    """
    lengths = np.frombuffer(gathered.lengths, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens, words = np.frombuffer(gathered.tokens, np.int32), list(gathered.words)
    counts = np.zeros(len(words), np.int64)
    for part in parts_of(offsets):
        numbers = tokens[offsets[part.start] : offsets[part.stop]]
        np.add.at(counts, numbers[np.repeat(chosen[part], lengths[part])], 1)
    known, frequency = np.flatnonzero(counts).tolist(), counts.tolist()
    order = sorted(known, key=lambda number: (-frequency[number], words[number]))
    ranks = np.full(len(words), UNRANKED, np.int32)
    ranks[order] = np.arange(1, len(order) + 1)
    for part in parts_of(offsets):  # in their place
        numbers = tokens[offsets[part.start] : offsets[part.stop]]
        numbers[:] = ranks[numbers]
    return [words[number] for number in order], Split(tokens, offsets, labels)


# For the user, before training


def describe(dataset: Dataset) -> Iterator[str]:
    """Describe a dataset in lines that help to choose `data.vocab_size` and `data.maxlen`."""
    yield dataset.introduction or dataset.title
    parts = dataset.parts()
    train = parts["train"]
    for name, split in parts.items():
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        # The most frequent of many; of few in the order of their labels.
        chosen = sorted(np.argsort(-counts, kind="stable")[:CLASSES_SHOWN])
        shares = [f"{counts[label] / len(split):.1%} {dataset.classes[label]}" for label in chosen]
        if more := len(dataset.classes) - len(chosen):
            shares.append(f"and {more:,} more, the rarest {counts.min():,} reviews")
        yield f"{name + ' ':8}{len(split):,} reviews: {', '.join(shares)}"
    counts = np.bincount(train.tokens, minlength=len(dataset.vocab) + 1)
    shares = np.cumsum(counts) / counts.sum()  # of the words read, by rank
    known = [size for size in (2000, 8000, 20000, 40000) if size - 4 < len(dataset.vocab)]
    coverage = [f"{size:,} knows {shares[size - 4]:.1%} of all read" for size in known]
    yield f"words   {len(dataset.vocab):,} different in training; data.vocab_size " + (
        ", ".join(coverage) or f"{len(dataset.vocab) + 4:,} knows all"
    )
    lengths = np.diff(train.offsets)
    shown = [f"{share}% {np.percentile(lengths, share):,.0f}" for share in (50, 75, 90, 95, 99)]
    yield (
        f"length  words of a training review: {', '.join(shown)}, longest {lengths.max():,}; "
        "data.maxlen keeps the last ones, and a mark for the start"
    )
    yield f"sha256  {dataset.checksum}"
