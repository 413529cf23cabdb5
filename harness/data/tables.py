"""Reads tables of texts a few rows at a time: CSV, JSON lines, Parquet, Arrow streams.

pyarrow reads Parquet and Arrow, and decompresses files. The standard library reads CSV and JSON
lines, because pyarrow does not say which line contains an error.
"""

import codecs
import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from harness.data.dataset import SPLITS
from harness.errors import InputError, about, did_you_mean
from harness.job.keys import DataConfig
from harness.system.lenient_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
TEXT_TABLES = (*DELIMITERS, *JSON_LINES)
TABLES = (*TEXT_TABLES, ".parquet")
ENDINGS = (*TABLES, *(table + packed for table in TEXT_TABLES for packed in COMPRESSIONS))
VALIDATION = ("validation", "valid", "val", "dev")  # the allowed names of a validation split
LEFT_OUT = "unsupervised"  # the name of a split without labels; its reviews are not used
KNOWN_SPLITS = (*SPLITS, *VALIDATION, LEFT_OUT)
ROWS_AT_ONCE = 1000


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading bytes; decompress it if its name ends in .gz or .zst."""
    if not (compression := COMPRESSIONS.get(path.suffix.lower())):
        return path.open("rb")
    import pyarrow  # imported here, because the import takes 0.1 s

    stream: Any = pyarrow.input_stream(str(path), compression)
    return io.BufferedReader(stream)


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a text file, which may be compressed. Line ends are not translated."""
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # this encoding skips a byte order mark
    return io.TextIOWrapper(open_bytes(path), encoding, newline="")


def csv_rows(file: TextIO, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, except blank rows.

    Raises:
        InputError: if a stray double quote joins a row with the next lines.
    """
    lines: list[str] = []  # the lines that the current row consists of

    def recorded() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(recorded(), delimiter=delimiter)
    try:
        for row in rows:
            if len(lines) > 1:  # strict: raises an error if text follows a closing quote
                deque(csv.reader(lines, delimiter=delimiter, strict=True), 0)
            lines.clear()
            if row:
                yield row
    except csv.Error:
        raise InputError(
            f"line {rows.line_num - len(lines) + 1} has a double quote that joins it with the next "
            f'{len(lines) - 1:,} lines; write a text with double quotes as "He said ""no""."'
        ) from None


def json_value(line: str, where: str) -> Any:
    """Return the JSON value in a line; `where` is the text with which an error message begins.

    Raises:
        InputError: if the line is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); write one value in each line") from None


# Tables


class Text(NamedTuple):
    """A review from a source; the text or the label may be blank."""

    text: str
    label: str
    split: str  # one of KNOWN_SPLITS, or empty if the source states no split
    location: str  # the place in the source, such as `row 7`, for messages


class SourceFile(NamedTuple):
    """A file of a source: a table, or a text file that contains one review."""

    path: Path
    location: str  # the path inside the source; empty if the source is this file
    split: str  # the split in the name of the file or folder; empty if neither name has one
    label: str = ""  # the class of a review; empty for a table


def table_ending(name: str) -> str:
    """Return the ending of a table's name, such as .csv.gz; empty if the file is not a table."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")


def read_file(file: SourceFile, form: DataConfig) -> Iterator[Text]:
    """Yield the reviews in a file, one after another.

    Raises:
        InputError: if the file can't be used; the message says where the error is and
            how to fix it.
    """
    ending = table_ending(file.path.name)
    if file.label:
        rows = _whole_file(file, form)
    elif ending.startswith(JSON_LINES):
        rows = _json_rows(file, form)
    elif ending == ".parquet":
        rows = _parquet_rows(file, form)
    elif ending:
        rows = _csv_rows(file, form, form.delimiter or DELIMITERS[ending[:4]])
    else:
        rows = _arrow_rows(file, form)
    try:
        yield from rows
    except InputError:
        raise
    except UnicodeError as error:
        where = ""
        if isinstance(error, UnicodeDecodeError):
            before = error.object[max(0, error.start - 30) : error.start].decode(errors="replace")
            where = f" after {before!r}"
        raise InputError(
            f"is not {form.encoding.upper()}{where}; save the file as UTF-8, or set data.encoding "
            "to the encoding of the file"
        ) from None
    except (OSError, ValueError, KeyError, ArithmeticError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"can't be read ({said}); make the file again") from None


# Rows


def _whole_file(file: SourceFile, form: DataConfig) -> Iterator[Text]:
    with open_text(file.path, form.encoding) as content:
        yield Text(content.read(), file.label, file.split, file.location)


def _csv_rows(table: SourceFile, form: DataConfig, delimiter: str) -> Iterator[Text]:
    with open_text(table.path, form.encoding) as file:
        rows = csv_rows(file, delimiter)
        if (names := next(rows, None)) is None:
            raise InputError("is empty; begin it with the names of its columns")
        chosen = [names.index(name) for name in _columns(names, table, form)]
        for number, row in enumerate(rows, 2):
            if len(row) != len(names):
                raise InputError(
                    f"row {number} has {len(row)} fields, but the header has {len(names)}; put "
                    "double quotes around a text that contains the delimiter"
                )
            yield _text(table, f"row {number}", *(row[index] for index in chosen))


def _parquet_rows(table: SourceFile, form: DataConfig) -> Iterator[Text]:
    from pyarrow import parquet

    # Without pre_buffer, only some pages are in memory, not a whole row group, which may be the
    # whole file.
    with parquet.ParquetFile(table.path, pre_buffer=False, buffer_size=1 << 20) as file:
        columns = _columns(file.schema_arrow.names, table, form)
        batches = file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)
        yield from _batch_rows(batches, file.schema_arrow, columns, table=table)


def _arrow_rows(table: SourceFile, form: DataConfig) -> Iterator[Text]:
    import pyarrow as pa

    # The file is not memory-mapped: if another process shortened a mapped file, reading it would
    # kill this process.
    with pa.OSFile(str(table.path)) as file, pa.ipc.open_stream(file) as batches:
        columns = _columns(batches.schema.names, table, form)
        yield from _batch_rows(batches, batches.schema, columns, table=table)


def _batch_rows(
    batches: Any, schema: "pa.Schema", columns: Sequence[str], *, table: SourceFile
) -> Iterator[Text]:
    names, number = _class_names(schema, columns[1]), 0
    for batch in batches:
        batch.validate(full=True)  # with invalid offsets, pyarrow would read outside its buffers
        for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            number += 1
            yield _text(table, f"row {number}", *row, names=names)


def _class_names(schema: "pa.Schema", label: str) -> list[str]:
    """Return the class names that Hugging Face's `datasets` stored in a table's schema, if any."""
    metadata = parse_json((schema.metadata or {}).get(b"huggingface", b""))
    try:
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else []


def _json_rows(table: SourceFile, form: DataConfig) -> Iterator[Text]:
    with open_text(table.path, form.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json_value(line, f"line {number}")
            if not isinstance(row, dict):
                raise InputError(
                    f"line {number} is not a JSON object; write an object such as "
                    '{"text": "…", "label": "…"} in each line'
                )
            with about(f"line {number}"):
                columns = _columns([*row], table, form)
            yield _text(table, f"line {number}", *(row[name] for name in columns))


def _text(
    table: SourceFile,
    row: str,
    text: Any,
    label: Any,
    split: Any = None,
    *,
    names: Sequence[str] = (),
) -> Text:
    """Return a row as a `Text`; a row without a split gets the split of the table."""
    location = f"{table.location} {row}".lstrip()
    if split is None:
        split = table.split
    elif not isinstance(split, str) or (split := split.strip().casefold()) not in KNOWN_SPLITS:
        raise InputError(
            f"{row}: the split is {repr(split)[:40]}, but should be train, validation or test; "
            "correct it, or set data.split_column to another column"
        )
    if not (isinstance(text, str | None) and isinstance(label, str | bool | int | float | None)):
        raise InputError(
            f"{row}: the text {repr(text)[:40]} should be a string, and the label "
            f"{repr(label)[:40]} should be a string or a number; set "
            "data.text_column and data.label_column to other columns"
        )
    return Text(text or "", _label(label, names), split, location)


def _label(label: str | float | None, names: Sequence[str]) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int) and names:  # `datasets` writes -1 for a missing label
        return names[label] if 0 <= label < len(names) else ""
    if label is None or label != label:  # pandas writes NaN for a missing label
        return ""
    # If a label is missing in a column, pandas writes the other integers as floats.
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


# Columns


def _columns(names: Sequence[str], table: SourceFile, form: DataConfig) -> list[str]:
    """Return the names of the columns that contain texts, labels and, if present, splits."""
    if len(names) == 1 and (others := set(names[0]) & set(",;|\t")):
        raise InputError(
            f"was read as one column, {names[0][:40]!r}; set the delimiter of the table, "
            f"such as data.delimiter = {min(others)!r}"
        )
    keys = ["text_column", "label_column", *(["split_column"] if form.split_column else [])]
    found = [_column(names, getattr(form, key), f"data.{key}") for key in keys]
    if not form.split_column:
        found += [name for name in names if name.strip().casefold() == "split"][:1]
    if found[2:] and table.split:
        raise InputError(
            f"has a column {found[2]}, but the name of the file or of its folder states the split; "
            "remove the column"
        )
    return found


def _column(names: Sequence[str], name: str, key: str) -> str:
    exact = [each for each in names if each == name]
    found = exact or [each for each in names if each.strip().casefold() == name.casefold()]
    if len(found) != 1:
        raise InputError(
            f"has {len(found) or 'no'} columns named {name}, but should have one"
            f"{'' if found else did_you_mean(name, names)}; its columns are {listed(names)}; "
            f"set {key} to the right column"
        )
    return found[0]


def listed(names: Sequence[str]) -> str:
    """Return the first eight names as text for a message."""
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{shown}, …" if len(names) > 8 else shown
