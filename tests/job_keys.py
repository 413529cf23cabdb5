"""The table of job keys in `jobs/README.md`, generated from the schema.

`python -m tests.job_keys` updates the table; `tests/test_papers.py` fails if it is out of date.
"""

import json
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from harness.config import Facts, condition, facts_of, is_free
from harness.job.search import SEARCH_TABLES
from tests.conftest import PROJECT

README = PROJECT / "jobs" / "README.md"
BEGIN, END = "<!-- job keys: python -m tests.job_keys -->\n", "<!-- end of job keys -->\n"
TYPES: dict[object, str] = {
    bool: "boolean",
    int: "integer",
    float: "float",
    dict[str, Any]: "table",
    str | dict[str, float]: "string or table",
}  # TOML's names of the types; all other types are strings in TOML


def table() -> str:
    """Return a Markdown table of all keys of a job file."""
    lines = ["| key | type | range | default | meaning |", "| --- " * 5 + "|"]
    for name, section in SEARCH_TABLES.items():
        for key, field in section.model_fields.items():
            default = "none" if field.is_required() else f"`{json.dumps(field.default)}`"
            facts = facts_of(field)
            is_list = get_origin(field.annotation) is list
            kind = "list" if is_list else TYPES.get(field.annotation, "string")
            meaning = "; ".join([str(field.description), *_limits(facts, f"{name}.")])
            range_ = _range(field, facts)
            lines.append(f"| `{name}.{key}` | {kind} | {range_} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _limits(facts: Facts, table: str) -> list[str]:
    """Return the rules that connect a key with others, and whether a search may vary the key."""
    limits = []
    if facts.unvalidated is not None:
        limits.append(f"must be `{json.dumps(facts.unvalidated)}` if `validation_split` is 0")
    if rule := facts.check and str(facts.check.__doc__).rstrip("."):
        limits.append(rule[0].lower() + rule[1:])
    if facts.only_with:
        needed = (condition(key.removeprefix(table), vs) for key, vs in facts.only_with.items())
        limits.append("only with " + " or ".join(f"`{each}`" for each in needed))
    return limits + ["a search can't vary this key"] * bool(facts.not_searched)


def _range(field: FieldInfo, facts: Facts) -> str:
    if facts.allowed:
        return facts.allowed
    if facts.choices:
        custom = ["custom"] if facts.is_function else []
        return ", ".join([*(f"`{name}`" for name in facts.choices if name), *custom])
    if is_free(field):
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
    return f"{low} {high}".strip() or ("a path" if facts.is_path else "text")


def with_table(text: str) -> str:
    """Return the text of the README with a new table between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
