"""Reads tables of texts a few rows at a time: CSV, JSON lines, Parquet, Arrow streams.

pyarrow reads Parquet and Arrow, and unpacks. CSV and JSON lines are the standard library's, by
which the line of an error is known.

The rows are only data: nothing in them is run or unpickled.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import InputError, did_you_mean
from harness.files.lenient_json import parse_json
from harness.job import DataConfig
from harness.texts.stream import COMPRESSIONS, csv_rows, json_lines, open_text

if TYPE_CHECKING:
    import pyarrow as pa

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


class _Columns(NamedTuple):
    text: str
    label: str
    split: str | None


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
        columns = _columns(names, table, form)
        chosen = [names.index(name) for name in columns if name is not None]
        for number, row in enumerate(rows, 2):
            location = f"{table.location} row {number}".lstrip()
            if len(row) != len(names):
                raise InputError(
                    f"{table.where}{location} has {len(row)} fields, the header {len(names)}; put "
                    "a text that holds the delimiter into double quotes, and close them"
                )
            text, label, *splits = (row[index] for index in chosen)
            split = _checked_split(splits[0], location, table) if splits else table.split
            yield _text((text, label, split), location, table=table)


def _parquet_rows(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    from pyarrow import parquet

    # A group of rows may be the whole file, so it is read in pages.
    with parquet.ParquetFile(table.path, pre_buffer=False, buffer_size=1 << 20) as file:
        schema = file.schema_arrow
        columns = _columns(schema.names, table, form)
        chosen = [name for name in columns if name is not None]
        batches = file.iter_batches(ROWS_AT_ONCE, columns=chosen, use_threads=False)
        names = _class_names(schema, columns.label)
        yield from _batch_rows(batches, columns, table=table, names=names)


def _arrow_rows(table: SourceFile, form: SourceFormat) -> Iterator[Text]:
    import pyarrow as pa

    # Not mapped: a file that is cut while it is read would end the process.
    with pa.OSFile(str(table.path)) as file, pa.ipc.open_stream(file) as batches:
        columns = _columns(batches.schema.names, table, form)
        names = _class_names(batches.schema, columns.label)
        yield from _batch_rows(batches, columns, table=table, names=names)


def _batch_rows(
    batches: Any, columns: _Columns, *, table: SourceFile, names: Sequence[str] = ()
) -> Iterator[Text]:
    """The rows of Arrow's batches."""
    number = 1
    for batch in batches:
        batch.validate(full=True)  # a file may say anything of its own layout
        texts = batch.column(columns.text).to_pylist()
        labels = batch.column(columns.label).to_pylist()
        splits = [table.split] * len(texts)
        if columns.split is not None:
            splits = batch.column(columns.split).to_pylist()
        for text, label, split in zip(texts, labels, splits, strict=True):
            location = f"{table.location} row {number}".lstrip()
            if columns.split is not None:
                split = _checked_split(split, location, table)
            yield _text((text, label, split), location, table=table, names=names)
            number += 1


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
    columns: _Columns | None = None
    names: Collection[str] = ()
    with open_text(table.path, table.where, form.encoding) as file:
        for number, line in json_lines(file, table.where):
            if not isinstance(line, dict):
                raise InputError(
                    f"{table.where}line {number} is no object; write one such as "
                    '{"text": "…", "label": "…"} in each line'
                )
            if columns is None or line.keys() != names:
                # All of them: a line may have a split that the line before lacks.
                names = {*line}
                columns = _columns([*line], table, form, location=f"line {number} ")
            location = f"{table.location} line {number}".lstrip()
            split = table.split
            if columns.split is not None:
                split = _checked_split(line[columns.split], location, table)
            yield _text((line[columns.text], line[columns.label], split), location, table=table)
    if columns is None:
        raise InputError(f"{table.where}is empty; write an object in each line")


def _text(
    row: tuple[Any, Any, Any], location: str, *, table: SourceFile, names: Sequence[str] = ()
) -> Text:
    text, label, split = row
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
) -> _Columns:
    """Which columns hold text, label and split; without regard to case where no name is exact."""
    where = table.where + location
    if len(names) == 1 and (others := set(names[0]) & set(",;|\t")):
        raise InputError(
            f"{where}has one column, {names[0][:40]!r}; name what stands between its columns, such "
            f"as data.delimiter = {min(others)!r}"
        )
    text = _column(names, form.text_column, key="data.text_column", where=where)
    label = _column(names, form.label_column, key="data.label_column", where=where)
    if form.split_column:
        split: str | None = _column(names, form.split_column, key="data.split_column", where=where)
    else:
        split = next((name for name in names if name.strip().casefold() == "split"), None)
    if split is not None and table.split:
        raise InputError(
            f"{where}has a column {split}, though the file's name says the split; remove the column"
        )
    return _Columns(text, label, split)


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
