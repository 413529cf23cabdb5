"""The base class of all tables of a job file, the facts of a key, and TOML output.

A key is declared once, as a field of its table, with type, bounds, default, meaning and `Facts`.
All lists of keys in the package are derived from these declarations.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

# A function of the user, see `harness.job.own_code`.
REFERENCE = re.compile(
    r"(?P<file>[^:\x00-\x1f\x7f]+\.py):(?P<in_file>[^\W\d]\w*)"
    r"|(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<in_module>[^\W\d]\w*)"
)
FORM = "file.py:function or package.module:function"
Share = Annotated[float, Field(ge=0, lt=1)]
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of the command line, is not text
OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def is_reference(text: str) -> bool:
    """Whether a text names a function by its file or module."""
    return REFERENCE.fullmatch(text) is not None


def _check_options(options: Any) -> Any:
    if not isinstance(options, dict):
        raise PydanticCustomError("options", "Input should be a table of settings")
    for name, value in options.items():
        if not isinstance(name, str) or not OPTION.fullmatch(name):
            raise PydanticCustomError(
                "options", f"Input should have names of letters, digits and _, not {str(name)!r}"
            )
        for each in value if isinstance(value, list) else [value]:
            if (
                not isinstance(each, bool | int | float | str)
                or (isinstance(each, float) and not math.isfinite(each))
                or (isinstance(each, str) and SURROGATE.search(each))
            ):
                raise PydanticCustomError(
                    "options",
                    "Input should hold numbers, texts in UTF-8, true, false and lists of them; "
                    f"{name} is {str(each)[:40]!r}",
                )
    return dict(sorted(options.items()))  # the order has no meaning


# A free table within a table: any names with plain values.
Options = Annotated[dict[str, Any], BeforeValidator(_check_options)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a key besides type, bounds, default and meaning.

    By default a key changes the result, may be searched, and always has an effect.

    Attributes:
        choices: its allowed names.
        is_function: whether it may name functions of the user. The job keeps their source.
        is_path: whether it names a file, relative to the job file.
        allowed: its range in words, if type, bounds and choices do not show it.
        changes: `result`; `digits`, only the last digits of the result; or `nothing`, for example a
            path, because the content has a checksum.
        not_searched: the reason why no search may vary it.
        only_with: other keys with values. This key has an effect only if one of them has one of its
            values or, if no values are listed, differs from its default.
        check: returns the rule that this key breaks in combination with others, or an empty text.
            The manual shows its docstring.
        unvalidated: its only value without validation reviews.
        for_all_reviews: whether it may differ between a run with validation reviews and a later
            run on all reviews.
        is_decided: whether 0 means that the search chooses a value at its start.
    """

    choices: tuple[str, ...] = ()
    is_function: bool = False
    is_path: bool = False
    allowed: str = ""
    changes: Literal["result", "digits", "nothing"] = "result"
    not_searched: str = ""
    only_with: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    check: Callable[[Any], str] | None = None
    unvalidated: object = None
    for_all_reviews: bool = False
    is_decided: bool = False


def facts_of(info: FieldInfo) -> Facts:
    """The facts of a key, from its declaration."""
    return next((each for each in info.metadata if isinstance(each, Facts)), Facts())


class ConfigSection(BaseModel):
    """A table of a job file. Refuses unknown keys and values of a wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_choice(cls, value: Any, info: ValidationInfo) -> Any:
        facts = facts_of(cls.model_fields[str(info.field_name)])
        if not facts.choices and not facts.is_function:
            return value
        for name in value if isinstance(value, list) else [value]:
            if name in facts.choices or (facts.is_function and is_reference(name)):
                continue
            known = [*map(repr, facts.choices), *([FORM] if facts.is_function else [])]
            wanted = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
            raise PydanticCustomError("choice", f"Input should be {wanted}")
        return value


Tables = Mapping[str, type[ConfigSection]]  # of a job file, by their names


def keys_of(tables: Tables) -> dict[str, FieldInfo]:
    """The declarations of keys by dotted names such as `train.epochs`."""
    return {
        f"{table}.{name}": info
        for table, section in tables.items()
        for name, info in section.model_fields.items()
    }


def is_free(info: FieldInfo) -> bool:
    """Whether a key is a free table. `--set` and a search can set names in it."""
    return info.annotation == dict[str, Any]


def without_effect(tables: Tables, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys that are set and have no effect, with the conditions of an effect.

    Args:
        tables: the tables of the job file.
        values: the values of all keys, by dotted name.
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
    """An item of `Facts.only_with` in words."""
    shown = (str(value) or '""' for value in values)
    return f"{key} = {' or '.join(shown)}" if values else key


def _check_weights(weights: Any) -> Any:
    if isinstance(weights, str) and weights in ("", "balanced"):
        return weights
    if not isinstance(weights, dict) or not weights:
        raise PydanticCustomError(
            "weights", 'Input should be "", "balanced", or a table such as { neg = 1.0, pos = 2.5 }'
        )
    for name, value in weights.items():
        if type(value) not in (int, float) or not 0 <= value <= 1e6:
            raise PydanticCustomError(
                "weights", f"Input should have weights of 0 to 1,000,000; {name} has {value!r}"
            )
    return {name: float(value) for name, value in sorted(weights.items())}


# Weights of classes by name, or the method that computes them.
ClassWeights = Annotated[str | dict[str, float], BeforeValidator(_check_weights)]


def flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A setting by its dotted key, or the settings of a table."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from flat(f"{key}.{name}", inner)


def toml_value(value: object) -> str:
    """A value as TOML on one line. A value of a type that TOML lacks becomes plain text."""
    if isinstance(value, Mapping):
        items = (f"{tomli_w.dumps({str(k): 0})[:-5]} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    try:
        return tomli_w.dumps({"v": value})[4:].strip()
    except (TypeError, ValueError):
        return str(value)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def dump_toml(content: Mapping[str, Any]) -> str:
    """The text of a job file; sources of functions come last, as readable text."""
    tables = {name: table for name, table in content.items() if name != "code"}
    for name, table in tables.items():
        if isinstance(table, dict):  # leaves out empty free tables
            tables[name] = {key: value for key, value in table.items() if value != {}}
    text = tomli_w.dumps(tables)
    if code := content.get("code"):
        text += "\n[code]\n"
    for path, source in (code or {}).items():
        # TOML's literal text has no escapes, so it can't contain ''' or a control character.
        plain = "'''" not in source and not CONTROL.search(source)
        value = f"'''\n{source}'''" if plain else tomli_w.dumps({"v": source})[4:].rstrip("\n")
        text += f'"{path}" = {value}\n'
    return text
