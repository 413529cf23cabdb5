"""Reads a user's own texts from the disk: a CSV or TSV file, two of them, or folders.

| source | content |
| --- | --- |
| `reviews.csv`, `reviews.tsv` | columns `text` and `label`, optionally `split` (train or test) |
| a folder with `train.csv` and `test.csv`, or both `.tsv` | the same, without a column `split` |
| a folder of folders | one folder a class, with one UTF-8 `.txt` file a review |
| a folder with `train/` and `test/` | each a folder of folders |

The texts are only data: nothing in them is run, unpickled or followed. A link is refused, so that
nothing outside the source is read. Hidden files and files with another suffix are ignored.
"""

import csv
import difflib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from harness.data.dataset import SPLITS
from harness.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "comma", "\t": "tab"}
REMEDY = (
    "give a .csv or .tsv file with the columns text and label, a folder with train.csv and "
    "test.csv, or a folder that holds one of .txt files for each class"
)
MAX_LINE_BYTES = 16_000_000


class Text(NamedTuple):
    """A review as it is in the source; text or label may be blank."""

    text: str
    label: str
    split: str  # train, test, or empty if the source does not say
    location: str  # such as line 7, for messages


class _Part(NamedTuple):
    """A file of a source: a table, or a review."""

    path: Path
    name: str  # inside the source
    label: str  # empty for a table
    split: str


def read_texts(source: Path) -> Iterator[Text]:
    """The reviews of a source, one after another.

    Raises:
        InputError: one line that names the source, the location in it, the rule and the remedy.
    """
    for part in _parts(source):
        if part.label:
            yield Text(_read_review(source, part), part.label, part.split, part.name)
        else:
            yield from _read_table(source, part)


def source_checksum(source: Path) -> str:
    """The sha256 of all that `read_texts` reads: the bytes, and names that carry meaning.

    Raises:
        InputError: if it can't be read or is not a source.
    """
    digest = hashlib.sha256()
    for part in _parts(source):
        with _opened(source, part) as file:
            content = hashlib.file_digest(file, "sha256").digest()
        # A single file may be renamed; in a folder the names are classes and splits.
        name = part.path.suffix.lower() if part.path == source else part.name
        digest.update(hashlib.sha256(os.fsencode(name)).digest() + content)
    return digest.hexdigest()


# Which files


def _parts(source: Path) -> Iterator[_Part]:
    try:
        if not source.exists():
            near = _near(source.name, [path.name for path in source.parent.glob("[!.]*")])
            raise InputError(f"data.source {source}: no such file or folder{near or f'; {REMEDY}'}")
        if source.is_dir():
            yield from _folder_parts(source)
        elif not source.is_file():
            raise InputError(f"data.source {source}: is no plain file; {REMEDY}")
        elif source.suffix.lower() not in DELIMITERS:
            raise InputError(
                f"data.source {source}: ends in {source.suffix or 'no ending'!r}, known are "
                f"{' and '.join(DELIMITERS)}; {REMEDY}"
            )
        else:
            yield _Part(source, "", "", "")
    except OSError as error:
        raise InputError(
            f"data.source {source}: can't be read ({error.strerror}); check its name and mode"
        ) from None


def _folder_parts(source: Path) -> Iterator[_Part]:
    entries = _entries(source, source)
    for suffix in DELIMITERS:
        tables = [f"{split}{suffix}" for split in SPLITS]
        if all(name in entries and entries[name].is_file() for name in tables):
            for split, name in zip(SPLITS, tables, strict=True):
                yield _Part(source / name, name, "", split)
            return
    if all(name in entries and entries[name].is_dir() for name in SPLITS):
        for split in SPLITS:
            yield from _class_parts(source, source / split, split)
        return
    yield from _class_parts(source, source, "")


def _class_parts(source: Path, folder: Path, split: str) -> Iterator[_Part]:
    classes = [name for name, entry in _entries(source, folder).items() if entry.is_dir()]
    if len(classes) != 2:
        found = f"{len(classes)} folders ({_listed(classes)})" if classes else "no folders"
        raise InputError(
            f"data.source {source}: {folder.name}/ holds {found}, should hold two, one for each "
            f"class; {REMEDY}"
        )
    for name in classes:
        files = [
            file
            for file, entry in _entries(source, folder / name).items()
            if file.lower().endswith(".txt") and entry.is_file()
        ]
        inside = f"{split}/{name}" if split else name
        if not files:
            raise InputError(
                f"data.source {source}: {inside}/ holds no .txt file, each class needs some; fill "
                "it or remove it"
            )
        for file in files:
            yield _Part(folder / name / file, f"{inside}/{file}", name, split)


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


def _opened(source: Path, part: _Part) -> BufferedReader:
    try:
        return part.path.open("rb")
    except OSError as error:
        raise InputError(
            f"data.source {source}: {part.name or 'it'} can't be read ({error.strerror}); check "
            "its mode"
        ) from None


# A review in a file


def _read_review(source: Path, part: _Part) -> str:
    limit = csv.field_size_limit()
    with _opened(source, part) as file:
        raw = file.read(4 * limit + 4)  # UTF-8 takes at most 4 bytes a character
    text = _decoded(raw, f"data.source {source}: {part.name}")
    if len(text) > limit:
        raise InputError(
            f"data.source {source}: {part.name} has more than {limit:,} characters; a file should "
            "be one review"
        )
    return text


def _decoded(raw: bytes, where: str, encoding: str = "utf-8-sig") -> str:
    if b"\0" in raw:
        raise InputError(f"{where}: holds a NUL byte, which no text does; save it as UTF-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: is not UTF-8 (byte {raw[error.start]:#04x}); save it as UTF-8"
        ) from None


# A table


def _read_table(source: Path, part: _Part) -> Iterator[Text]:
    where = f"data.source {source}: {f'{part.name}, ' if part.name else ''}"
    delimiter = DELIMITERS[part.path.suffix.lower()]
    with _opened(source, part) as file:
        # Strict: otherwise a lone quote would swallow the rows after it.
        rows = csv.reader(_lines(file, where), delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                raise InputError(f"{where}{_explained(error, line, rows.line_num)}") from None
            if not row:
                continue
            if not header:
                header = _checked_header(row, where, is_split=bool(part.split))
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where}line {line}: has {len(row)} fields, the header {len(header)}; put a "
                    f"text that holds a {NAMES[delimiter]} into double quotes"
                )
            named = dict(zip(header, row, strict=True))
            split = part.split or _checked_split(named, f"{where}line {line}")
            location = f"{part.name} line {line}".lstrip()
            yield Text(named["text"], named["label"], split, location)
    if not header:
        raise InputError(f"{where}is empty; it needs a header with the columns text and label")


def _lines(file: BufferedReader, where: str) -> Iterator[str]:
    encoding = "utf-8-sig"  # removes the byte order mark that a file may begin with
    for number in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
            return
        if len(raw) == MAX_LINE_BYTES:
            raise InputError(
                f"{where}line {number}: has {MAX_LINE_BYTES:,} bytes or more and is no row; end "
                "each row by a newline"
            )
        yield _decoded(raw, f"{where}line {number}", encoding)
        encoding = "utf-8"


def _explained(error: csv.Error, first: int, last: int) -> str:
    lines = f"line {first}" if first >= last else f"line {first} to {last}"
    if "field limit" in str(error):
        return (
            f"{lines}: a field has more than {csv.field_size_limit():,} characters; close its "
            "double quotes, or cut the text"
        )
    if "unexpected end" in str(error):
        return f"line {first}: the double quotes that begin here are never closed; close them"
    return f"{lines}: is no row ({error}); write a double quote inside a text as two"


def _checked_header(row: Sequence[str], where: str, *, is_split: bool) -> list[str]:
    header = [name.strip().casefold() for name in row]
    for name in ("text", "label"):
        if name not in header:
            if len(row) == 1 and (others := set(row[0]) & set(",;|\t")):
                raise InputError(
                    f"{where}has one column, {row[0][:40]!r}; a .csv has commas between columns "
                    f"and a .tsv tabs, not {min(others)!r}"
                )
            raise InputError(
                f"{where}has no column {name}; its columns are {_listed(row)}"
                f"{_near(name, row)}; rename it in the first line"
            )
    for name in ("text", "label", "split"):
        if header.count(name) > 1:
            raise InputError(f"{where}has {header.count(name)} columns {name}; leave one")
    if is_split and "split" in header:
        raise InputError(
            f"{where}has a column split, though the file's name says the split; remove the column"
        )
    return header


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{shown}, …" if len(names) > 8 else shown


def _checked_split(named: dict[str, str], where: str) -> str:
    if "split" not in named:
        return ""
    split = named["split"].strip().casefold()
    if split not in SPLITS:
        raise InputError(
            f"{where}: split is {named['split'][:40]!r}, should be train or test; of the training "
            "reviews data.validation_split takes a share to validate"
        )
    return split
