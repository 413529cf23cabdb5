"""Reads tables of texts a few rows at a time: CSV, JSON lines, Parquet, Arrow streams.

pyarrow reads Parquet and Arrow, and unpacks. CSV and JSON lines are the standard library's, by
which the line of an error is known.

The rows are only data: nothing in them is run or unpickled.
"""

import codecs
import csv
import io
import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from harness.errors import InputError, did_you_mean
from harness.job.keys import DataConfig
from harness.system.lenient_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_ROW = 16_000_000  # bytes or characters of a text

SPLITS = ("train", "test")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLES = (*DELIMITERS, *JSON_LINES, ".parquet")
# Names of a split that validates.
VALIDATION = ("validation", "valid", "val", "dev")
# Splits that people have and that are not read.
LEFT_OUT = ("unsupervised",)
KNOWN_SPLITS = (*SPLITS, *VALIDATION, *LEFT_OUT)
ROWS_AT_ONCE = 1000


def open_bytes(path: Path, where: str) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz or .zst, as a stream.

    Args:
        where: begins the message of an error.

    Raises:
        InputError: if it can't be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{where}can't be read ({error.strerror}); check its mode") from None
    if not (packed := COMPRESSIONS.get(path.suffix.lower())):
        return file
    import pyarrow  # late: it takes a tenth of a second, and most commands read no own texts

    stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), packed)
    return io.BufferedReader(stream)


def open_text(path: Path, where: str, encoding: str) -> TextIO:
    """The decoded content of `open_bytes`, with unchanged line ends.

    Raises:
        InputError: as `open_bytes`.
    """
    is_utf8 = codecs.lookup(encoding).name == "utf-8"  # a byte order mark is no character
    return io.TextIOWrapper(
        open_bytes(path, where), "utf-8-sig" if is_utf8 else encoding, newline=""
    )


def numbered_lines(file: TextIO, where: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, also those that a carriage return alone ends.

    Raises:
        InputError: for a line that is too long or can't be decoded, and where it is.
    """
    number = 0
    lines = iter(partial(file.readline, MAX_ROW + 1), "")
    try:
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_ROW:
                raise InputError(
                    f"{where}line {number} has over {MAX_ROW:,} characters; end each row by "
                    "a newline"
                )
            yield number, line
    except UnicodeError:
        # Several lines are decoded at a time.
        raise InputError(
            f"{where}line {number + 1}, or one soon after it, {undecoded(file)}"
        ) from None


def undecoded(file: TextIO) -> str:
    """What is wrong with characters that can't be decoded, and the remedy."""
    encoding = file.encoding.removesuffix("-sig").upper()
    return f"is not {encoding}; save it as UTF-8, or name its encoding in data.encoding"


def csv_rows(file: TextIO, where: str, *, delimiter: str) -> Iterator[list[str]]:
    """The rows of CSV that are not blank.

    Raises:
        InputError: for a row that a stray double quote joined with the lines behind it, with
            the line at which it begins; as `numbered_lines`.
    """
    lines: list[str] = []  # of the row

    def seen() -> Iterator[str]:
        for _, line in numbered_lines(file, where):
            lines.append(line)
            yield line

    csv.field_size_limit(MAX_ROW)
    rows = csv.reader(seen(), delimiter=delimiter)
    try:
        for row in rows:
            if row:
                yield row
            if len(lines) > 1:
                deque(csv.reader(lines, delimiter=delimiter, strict=True), 0)
            lines.clear()
    except csv.Error:
        raise InputError(
            f"{where}the row of line {rows.line_num - len(lines) + 1} has a double quote that "
            f"joins it with the next {len(lines) - 1:,} lines; put a text that begins with a "
            "double quote into double quotes, and double those in it"
        ) from None


def json_value(line: str, where: str) -> Any:
    """The value of a line.

    Raises:
        InputError: if it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON ({error}); write one value in each line") from None


# Tables


@dataclass(frozen=True)
class SourceFormat:
    """How the tables of a source are to be read: keys of `[data]`."""

    text_column: str = "text"
    label_column: str = "label"
    split_column: str = ""  # empty = split, where there is one
    delimiter: str = ""  # empty = by the file's name
    encoding: str = "utf-8"

    @classmethod
    def of(cls, data: DataConfig) -> "SourceFormat":
        """The format that a job names."""
        return cls(**{name: getattr(data, name) for name in cls.__dataclass_fields__})


class Text(NamedTuple):
    """A review as it is in the source; text or label may be blank."""

    text: str
    label: str
    split: str  # one of KNOWN_SPLITS, or empty if the source does not say
    location: str  # such as row 7, for messages


class SourceFile(NamedTuple):
    """A file of a source: a table, or a review."""

    path: Path
    location: str  # inside the source; empty for the source itself
    where: str  # for messages
    split: str  # that its name or its folder says, else empty
    label: str = ""  # of a review; empty for a table


def table_ending(name: str) -> str:
    """The ending of a table's name, with that of its compression; empty for another file."""
    name = name.lower()
    packed = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    plain = name.removesuffix(packed)
    ending = next((ending for ending in TABLES if plain.endswith(ending)), "")
    return "" if not ending or (packed and ending == ".parquet") else ending + packed


def read_table(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    """The rows of a table, one after another, with a few in memory at a time.

    Raises:
        InputError: one line that names the source, the location in it, the rule and the remedy.
    """
    ending = table_ending(table.path.name)
    if ending.startswith(JSON_LINES):
        rows = _json_rows(table, form)
    elif ending == ".parquet":
        rows = _parquet_rows(table, form)
    elif ending:
        rows = _csv_rows(table, form, form.delimiter or DELIMITERS[ending[:4]])
    else:
        rows = _arrow_rows(table, form)
    try:
        yield from rows
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ArithmeticError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{table.where}can't be read ({said}); make the file again") from None


# Rows


def _csv_rows(table: SourceFile, form: SourceFormat, delimiter: str) -> Iterator[Text]:
    with open_text(table.path, table.where, form.encoding) as file:
        rows = csv_rows(file, table.where, delimiter=delimiter)
        if (names := next(rows, None)) is None:
            raise InputError(
                f"{table.where}is empty; it needs a header with the names of its columns"
            )
        chosen = [names.index(name) for name in _columns(names, table, form)]
        for number, row in enumerate(rows, 2):
            if len(row) != len(names):
                raise InputError(
                    f"{table.where}{_location(table, 'row', number)} has {len(row)} fields, the "
                    f"header {len(names)}; put a text that holds the delimiter into double quotes, "
                    "and close them"
                )
            yield _text(table, "row", number, *(row[index] for index in chosen))


def _parquet_rows(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    from pyarrow import parquet

    # A group of rows may be the whole file, so it is read in pages.
    with parquet.ParquetFile(table.path, pre_buffer=False, buffer_size=1 << 20) as file:
        columns = _columns(file.schema_arrow.names, table, form)
        batches = file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)
        yield from _batch_rows(batches, file.schema_arrow, columns, table=table)


def _arrow_rows(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    import pyarrow as pa

    # Not mapped: a file that is cut while it is read would end the process.
    with pa.OSFile(str(table.path)) as file, pa.ipc.open_stream(file) as batches:
        columns = _columns(batches.schema.names, table, form)
        yield from _batch_rows(batches, batches.schema, columns, table=table)


def _batch_rows(
    batches: Any, schema: "pa.Schema", columns: Sequence[str], *, table: SourceFile
) -> Iterator[Text]:
    """The rows of Arrow's batches."""
    names, number = _class_names(schema, columns[1]), 0
    for batch in batches:
        batch.validate(full=True)  # a file may say anything of its own layout
        for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            number += 1
            yield _text(table, "row", number, *row, names=names)


def _class_names(schema: "pa.Schema", label: str) -> list[str]:
    """The names behind numbers of classes, as Hugging Face's `datasets` writes them."""
    metadata = parse_json((schema.metadata or {}).get(b"huggingface", b""))
    try:
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else []


def _json_rows(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    columns: list[str] = []
    names: Collection[str] = ()
    with open_text(table.path, table.where, form.encoding) as file:
        for number, line in numbered_lines(file, table.where):
            if not line.strip():
                continue
            row = json_value(line, f"{table.where}line {number}")
            if not isinstance(row, dict):
                raise InputError(
                    f"{table.where}line {number} is no object; write one such as "
                    '{"text": "…", "label": "…"} in each line'
                )
            if not columns or row.keys() != names:
                # All of them: a line may have a split that the line before lacks.
                names = {*row}
                columns = _columns([*row], table, form, location=f"line {number} ")
            yield _text(table, "line", number, *(row[name] for name in columns))
    if not columns:
        raise InputError(f"{table.where}is empty; write an object in each line")


def _location(table: SourceFile, unit: str, number: int) -> str:
    return f"{table.location} {unit} {number}".lstrip()


def _text(
    table: SourceFile,
    unit: str,
    number: int,
    text: Any,
    label: Any,
    *splits: Any,
    names: Sequence[str] = (),
) -> Text:
    """A row: its text, label, and split if the table has a column of splits."""
    location = _location(table, unit, number)
    split = _checked_split(splits[0], location, table) if splits else table.split
    if split in LEFT_OUT:
        return Text("", "", split, location)
    if not isinstance(text, str | None):
        raise InputError(
            f"{table.where}{location}: its text is {_short(text)}, should be a string; name its "
            "column in data.text_column"
        )
    return Text(text or "", _label(label, location, table=table, names=names), split, location)


def _label(label: Any, location: str, *, table: SourceFile, names: Sequence[str]) -> str:
    if isinstance(label, str):
        return label
    if label is None:
        return ""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int) and names:  # of which `datasets` gives -1 to a row without one
        return names[label] if 0 <= label < len(names) else ""
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float) and label == label:
        return str(int(label)) if label.is_integer() else str(label)
    if isinstance(label, float):
        return ""  # not a number, which pandas writes for none
    raise InputError(
        f"{table.where}{location}: its label is {_short(label)}, should be a word or a number; "
        "name its column in data.label_column"
    )


def _checked_split(value: Any, location: str, table: SourceFile) -> str:
    split = value.strip().casefold() if isinstance(value, str) else None
    if split is None or split not in KNOWN_SPLITS:
        raise InputError(
            f"{table.where}{location}: its split is {_short(value)}, should be train, validation "
            "or test"
        )
    return split


def _short(value: Any) -> str:
    return repr(value)[:40]


# Columns


def _columns(
    names: Sequence[str], table: SourceFile, form: SourceFormat, *, location: str = ""
) -> list[str]:
    """The columns of text, label and, if there is one, split.

    Without regard to case where no name is exact.
    """
    where = table.where + location
    if len(names) == 1 and (others := set(names[0]) & set(",;|\t")):
        raise InputError(
            f"{where}has one column, {names[0][:40]!r}; name what stands between its columns, such "
            f"as data.delimiter = {min(others)!r}"
        )
    keys = ["text_column", "label_column", *(["split_column"] if form.split_column else [])]
    found = [_column(names, getattr(form, key), key=f"data.{key}", where=where) for key in keys]
    if not form.split_column:
        found += [name for name in names if name.strip().casefold() == "split"][:1]
    if found[2:] and table.split:
        raise InputError(
            f"{where}has a column {found[2]}, though the file's name says the split; remove the "
            "column"
        )
    return found


def _column(names: Sequence[str], name: str, *, key: str, where: str) -> str:
    found = [each for each in names if each == name]
    found = found or [each for each in names if each.strip().casefold() == name.casefold()]
    if len(found) > 1:
        raise InputError(f"{where}has {len(found)} columns {name}; leave one")
    if not found:
        raise InputError(
            f"{where}has no column {name}; its columns are {listed(names)}"
            f"{did_you_mean(name, names)}; name yours in {key}"
        )
    return found[0]


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first eight of them."""
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{shown}, …" if len(names) > 8 else shown
