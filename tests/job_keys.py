"""The tables of job keys in `jobs/README.md`, made from the schema.

`python -m tests.job_keys` writes them in place; `tests/test_papers.py` compares them.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from harness.architectures import BUILDERS
from harness.config import ConfigSection
from harness.job import OPTIMIZERS, SCORES
from harness.search_space import SEARCH_TABLES
from tests.conftest import PROJECT

CHOICES: dict[str, Iterable[str]] = {
    "train.monitor": SCORES,
    "train.keep": ["best", "last", *SCORES],
}
OF_OWN: dict[str, Iterable[str]] = {
    "model.architecture": BUILDERS,
    "train.optimizer": OPTIMIZERS,
    "train.loss": (),
}
OTHER_RANGES = {
    "train.class_weights": "0 to 1,000,000",
    "train.callbacks": "20 at most",
    "train.schedule_drops": "above 0 to 1,000, rising",
}
README = PROJECT / "jobs" / "README.md"
BEGIN, END = "<!-- job keys: python -m tests.job_keys -->\n", "<!-- end of job keys -->\n"
PATHS = ("data.source", "model.embeddings")
TYPES: dict[object, str] = {
    bool: "boolean",
    int: "integer",
    float: "float",
    dict[str, Any]: "table",
    str | dict[str, float]: "string or table",
}  # as TOML says; else a string


def tables() -> str:
    """A Markdown table for each section of a job file."""
    return "\n".join(_table(name, section) for name, section in SEARCH_TABLES.items())


def _table(name: str, section: type[ConfigSection]) -> str:
    lines = [
        f"### `[{name}]`",
        "",
        "| key | type | range | default | meaning |",
        "| --- " * 5 + "|",
    ]
    for key, field in section.model_fields.items():
        default = "none" if field.is_required() else f"`{json.dumps(field.default)}`"
        is_list = get_origin(field.annotation) is list
        kind = "list" if is_list else TYPES.get(field.annotation, "string")
        allowed = _range(f"{name}.{key}", field)
        lines.append(f"| `{key}` | {kind} | {allowed} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _range(key: str, field: FieldInfo) -> str:
    if key in OF_OWN:
        return ", ".join([*(f"`{name}`" for name in OF_OWN[key]), "your own"])
    if key in CHOICES:
        return ", ".join(f"`{name}`" for name in CHOICES[key])
    if key in OTHER_RANGES:
        return OTHER_RANGES[key]
    if field.annotation == dict[str, Any]:
        return "any names"
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation) if choice)
    if field.annotation is bool:
        return "`true`, `false`"
    low = high = ""
    for rule in field.metadata:
        match rule:
            case Ge(ge=value):
                low = f"{value:,}"
            case Gt(gt=value):
                low = f"above {value:,}"
            case Le(le=value):
                high = f"to {value:,.10g}"
            case Lt(lt=value):
                high = f"to below {value:,}"
    return f"{low} {high}".strip() or (
        "a path" if key in ("data.source", "model.embeddings") else "text"
    )


def with_tables(text: str) -> str:
    """The README with what stands between its two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
