"""Defines the base class of the tables in a job file, and functions that write TOML.

A key is declared once, as a field of its table: the field has the key's type, bounds, default and
description, and may have a `Facts` with further properties of the key. All lists of keys are
derived from the declarations of the keys.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

# The form in which a job file names a user's function; `harness.job.own_code` loads the function.
REFERENCE = re.compile(r"([^:\x00-\x1f\x7f]+\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):[^\W\d]\w*")
FORM = "file.py:function or package.module:function"
Share = Annotated[float, Field(ge=0, lt=1)]
# Matches unpaired surrogates. Python uses them for bytes that are not UTF-8, and UTF-8 can't encode
# them.
SURROGATE = re.compile("[\ud800-\udfff]")


def is_reference(text: str) -> bool:
    """Whether a text is a reference to a function, such as `file.py:function`."""
    return REFERENCE.fullmatch(text) is not None


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(options, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise PydanticCustomError(
            "options",
            "Input should contain only numbers, UTF-8 strings, true, false and lists: {reason}",
            {"reason": str(error)},
        ) from None
    return options


# The type of a key whose value is a table of settings for a function or an optimizer. The
# function or the optimizer determines the names of the settings. The values are numbers, strings,
# true, false, or lists of these values.
Options = Annotated[dict[str, Any], AfterValidator(_check_options)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a key besides its type, bounds, default and description.

    Attributes:
        choices: the allowed values of the key.
        is_function: whether a value may be a reference to a user's function. The job stores the
            function's source.
        is_path: whether the key's value is the path of a file, relative to the job file.
        allowed: the allowed values in words, if type, bounds and choices do not show them.
        changes: `result` if the key changes the result of a run, else `nothing`. For example, only
            the content of a file changes the result, not the file's path.
        not_searched: the reason why a search may not vary the key.
        only_with: the condition under which the key has an effect. For example, a key with
            `{"train.schedule": ("cosine", "linear")}` has an effect only with these two schedules.
            If several keys are listed, one of them suffices. An empty tuple of values stands for
            all values except the default.
        check: a function of the job; it describes how the key conflicts with other keys, or returns
            "" if there is no conflict. In the table of keys in jobs/README.md, the key's row shows
            the docstring of `check`.
        unvalidated: the only value that a job without validation reviews may give the key; if
            `unvalidated` is None, the job may give the key any value.
    """

    choices: tuple[str, ...] = ()
    is_function: bool = False
    is_path: bool = False
    allowed: str = ""
    changes: Literal["result", "nothing"] = "result"
    not_searched: str = ""
    only_with: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    check: Callable[[Any], str] | None = None
    unvalidated: object = None


def facts_of(info: FieldInfo) -> Facts:
    """Return the `Facts` in a key's declaration, or the default `Facts`."""
    return next((each for each in info.metadata if isinstance(each, Facts)), Facts())


class ConfigSection(BaseModel):
    """A table of a job file, which refuses unknown keys and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_choice(cls, value: Any, info: ValidationInfo) -> Any:
        facts = facts_of(cls.model_fields[str(info.field_name)])
        if isinstance(value, str) and SURROGATE.search(value):
            raise PydanticCustomError(
                "utf8", "Input should be UTF-8; in a path, each folder's name should be UTF-8"
            )
        if not facts.choices and not facts.is_function:
            return value
        for name in value if isinstance(value, list) else [value]:
            if name in facts.choices or (facts.is_function and is_reference(name)):
                continue
            known = [*map(repr, facts.choices), *([FORM] if facts.is_function else [])]
            wanted = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
            raise PydanticCustomError("choice", f"Input should be {wanted}")
        return value


Tables = Mapping[str, type[ConfigSection]]  # the names of a job file's tables, and their classes


def keys_of(tables: Tables) -> dict[str, FieldInfo]:
    """Return the declaration of each key, by a dotted name such as `train.epochs`."""
    return {
        f"{table}.{name}": info
        for table, section in tables.items()
        for name, info in section.model_fields.items()
    }


def is_free(info: FieldInfo) -> bool:
    """Whether a key is a free table, in which `--set` and a search can set keys of any name."""
    return info.annotation == dict[str, Any]


def without_effect(tables: Tables, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key that is set but has no effect, and the settings that would give it an effect.

    Args:
        tables: the tables of the job file.
        values: the value of each key, by its dotted name.
    """
    keys = keys_of(tables)

    def is_set(key: str) -> bool:
        return bool(values[key] != keys[key].default)

    for key, info in keys.items():
        needed = facts_of(info).only_with
        if not needed or not is_set(key):
            continue
        if not any(values[k] in found if found else is_set(k) for k, found in needed.items()):
            yield key, " or ".join(map(condition, needed, needed.values()))


def condition(key: str, values: tuple[object, ...]) -> str:
    """Describe an item of `Facts.only_with` in words."""
    shown = (str(value) or '""' for value in values)
    return f"{key} = {' or '.join(shown)}" if values else key


def _check_weights(weights: Any) -> Any:
    if weights in ("", "balanced"):
        return weights
    values = weights.values() if isinstance(weights, dict) else ()
    if values and all(type(each) in (int, float) and 0 <= each <= 1e6 for each in values):
        return {name: float(value) for name, value in weights.items()}
    raise PydanticCustomError(
        "weights",
        'Input should be "", "balanced", or a table of weights of 0 to 1,000,000, such as '
        "{ neg = 1.0, pos = 2.5 }",
    )


# The weight of each class, by name; or the method that computes the weights.
ClassWeights = Annotated[str | dict[str, float], BeforeValidator(_check_weights)]


def flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a dotted key with its value; for a table, yield each setting with its dotted key."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from flat(f"{key}.{name}", inner)


def toml_value(value: object) -> str:
    """Return a value as TOML on one line, or as plain text if TOML does not have its type."""
    if isinstance(value, Mapping):
        items = (f"{tomli_w.dumps({str(k): 0})[:-5]} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    try:
        return tomli_w.dumps({"v": value})[4:].strip()
    except (TypeError, ValueError):
        return str(value)


def dump_toml(content: Mapping[str, Any]) -> str:
    """Return the text of a job file, without empty tables.

    A string with line breaks is written as a multi-line string.
    """
    tables = {
        name: {key: value for key, value in table.items() if value != {}}
        if isinstance(table, dict)
        else table
        for name, table in content.items()
        if table != {}
    }
    return tomli_w.dumps(tables, multiline_strings=True)
