"""Reads JSON and TOML records that may be missing, broken or half-written.

For unexpected content, the functions return empty values or None, so that no report fails because
of a broken record.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from harness.system.files import read_plain_file

BROKEN = (OSError, ValueError, RecursionError)
MAX_NUMBER = 1e15  # larger numbers count as broken


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty dictionary if the file is missing or broken."""
    try:
        return parse_json(read_plain_file(path))
    except OSError:
        return {}


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty dictionary for any other text."""
    try:
        content = json.loads(text)
    except BROKEN:
        return {}
    return content if isinstance(content, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file that has one JSON value per line.

    The list is empty if the file is missing or broken.
    """
    try:
        lines = [json.loads(line) for line in read_plain_file(path).splitlines()]
    except BROKEN:
        return []
    return [line for line in lines if isinstance(line, dict)]


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file; an empty dictionary if the file is missing or broken."""
    try:
        return parse_toml(read_plain_file(path))
    except OSError:
        return {}


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse a TOML document; return an empty dictionary for any other bytes."""
    try:
        return tomllib.loads(content.decode())
    except BROKEN:
        return {}


def table(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a table of a TOML file; an empty dictionary if there is no such table."""
    table = content.get(name)
    return table if isinstance(table, dict) else {}


def text(value: object) -> str | None:
    """Return the value if it is a non-empty string, else None."""
    return value if isinstance(value, str) and value else None


def number(value: object) -> float | None:
    """Return the value if it is a number whose absolute value is below MAX_NUMBER, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < MAX_NUMBER else None


def numbers(content: object) -> dict[str, float]:
    """Return a JSON object without the values that `number` rejects."""
    items = content.items() if isinstance(content, dict) else ()
    return {str(name): value for name, each in items if (value := number(each)) is not None}


def whole(value: object) -> int | None:
    """Return the value if it is an integer whose absolute value is below MAX_NUMBER, else None."""
    return value if isinstance(value, int) and number(value) is not None else None
