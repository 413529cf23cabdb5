"""The bytes of a user's texts as a stream: unpacked, and in UTF-8."""

import codecs
import collections
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_ROW_BYTES = 16_000_000


def open_bytes(path: Path, where: str, encoding: str = "utf-8") -> BinaryIO:
    """The bytes of a file in UTF-8, unpacked where its name ends in .gz or .zst, as a stream.

    Args:
        where: begins the message of an error.

    Raises:
        InputError: if it can't be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{where}can't be read ({error.strerror}); check its mode") from None
    packed = COMPRESSIONS.get(path.suffix.lower())
    is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    if not packed and is_utf8:
        return file
    pa = import_pyarrow(where)
    stream: Any = pa.PythonFile(file, mode="r")
    if packed:
        stream = pa.CompressedInputStream(stream, packed)
    if not is_utf8:
        stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
    return io.BufferedReader(stream)


def import_pyarrow(where: str) -> Any:
    """Import pyarrow, late: it takes a tenth of a second, and most commands read no own texts.

    Raises:
        InputError: if the environment is older than the code and lacks it.
    """
    try:
        import pyarrow
    except ImportError:
        raise InputError(
            f"{where}needs the package pyarrow, which this environment lacks; install "
            "requirements.lock again (bash slurm/common.sh --setup)"
        ) from None
    return pyarrow


def check_quotes(file: BinaryIO, where: str, *, delimiter: str) -> None:
    """Refuse a row of CSV that a text's own double quote joined with the lines behind it.

    Raises:
        InputError: with the line at which the row begins.
    """
    lines: list[str] = []

    def seen() -> Iterator[str]:
        # What separates texts is the same in Latin-1, which any bytes are.
        for line in io.TextIOWrapper(file, "latin-1", newline=""):
            lines.append(line)
            yield line

    csv.field_size_limit(2 * MAX_ROW_BYTES)  # pyarrow takes a row that is in two blocks
    rows = csv.reader(seen(), delimiter=delimiter)
    for _ in rows:
        if len(lines) > 1:
            try:
                collections.deque(csv.reader(lines, delimiter=delimiter, strict=True), 0)
            except csv.Error:
                raise InputError(
                    f"{where}the row of line {rows.line_num - len(lines) + 1} has a double quote "
                    f"that joins it with the next {len(lines) - 1:,} lines; put a text that begins "
                    "with a double quote into double quotes, and double those in it"
                ) from None
        lines.clear()


def json_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of each line that is not blank, with the number of the line.

    Raises:
        InputError: for a line that is not JSON, and its number.
    """
    number = 0
    while raw := file.readline(MAX_ROW_BYTES):
        number += 1
        if len(raw) == MAX_ROW_BYTES:
            raise InputError(
                f"{where}line {number} has over {MAX_ROW_BYTES:,} bytes; write one value in each "
                "line"
            )
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode())
        except UnicodeDecodeError:
            raise InputError(
                f"{where}line {number} is not UTF-8; save it as UTF-8, or name its encoding in "
                "data.encoding"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}line {number} is no JSON ({error}); write one value in each line"
            ) from None
        yield number, value
