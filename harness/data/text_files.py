"""Finds a user's own texts on the disk: a table, several of them, or folders of text files.

| source | content |
| --- | --- |
| `reviews.csv`, `.tsv`, `.jsonl`, `.parquet` | columns of texts, labels, perhaps splits |
| a folder of such tables | all together, or those of a split: `train.csv`, `Test-2.csv` |
| a folder of `save_to_disk` | a data set of Hugging Face's `datasets`, with or without splits |
| a folder of folders | one folder a class, with one `.txt` file a review |
| a folder with `train/` and `test/` | each a folder of folders, and perhaps `validation/` |

Tables and text files may be packed as `.gz` or `.zst`. A link is refused, so that nothing outside
the source is read. Hidden files and files with another suffix are ignored.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from harness.data.dataset import MAX_CLASSES, SPLITS
from harness.errors import InputError, did_you_mean
from harness.files.lenient_json import parse_json
from harness.files.plain_file import read_plain_file
from harness.texts.stream import COMPRESSIONS, MAX_ROW, open_text, undecoded
from harness.texts.tables import (
    KNOWN_SPLITS,
    TABLES,
    VALIDATION,
    SourceFile,
    SourceFormat,
    Text,
    listed,
    read_table,
    table_ending,
)

REMEDY = (
    "give a table (.csv, .tsv, .jsonl, .parquet), a folder of them, a folder of save_to_disk, or a "
    "folder that holds one of .txt files for each class"
)
# In the name of a table, in small letters: a word beside no letter, as in imdb_test1.csv.
SPLIT_NAME = re.compile(r"(?<![^\W\d_])({})(?:ing|set)?(?![^\W\d_])".format("|".join(KNOWN_SPLITS)))
TEXT_ENDINGS = (".txt", *(f".txt{ending}" for ending in COMPRESSIONS))
# Files of `datasets.Dataset.save_to_disk`: of one data set, and of several splits.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"


def read_texts(source: Path, form: SourceFormat | None = None) -> Iterator[Text]:
    """The reviews of a source, one after another.

    Args:
        form: how tables are to be read, by default as a job without such keys.

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
    # A lone .json is rather a note about the others, such as dataset_infos.json.
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
    # Only names of the folder's own files: a path could lead elsewhere.
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
