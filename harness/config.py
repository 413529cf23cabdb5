"""The base of every table of a job file, a closed set of typed keys, and how it is written.

A key is declared once, as a field of its table: its type, its bounds, its default, its meaning, and
in `Facts` what else is to know of it. Every list of keys in the package is made from these.
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

# A user's own function: see `harness.job.own_code`.
REFERENCE = re.compile(
    r"(?P<file>[^:\x00-\x1f\x7f]+\.py):(?P<in_file>[^\W\d]\w*)"
    r"|(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<in_module>[^\W\d]\w*)"
)
FORM = "file.py:function or package.module:function"
Share = Annotated[float, Field(ge=0, lt=1)]
HALF = re.compile("[\ud800-\udfff]")  # of a character: no text; a byte of the command line
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
                or (isinstance(each, str) and HALF.search(each))
            ):
                raise PydanticCustomError(
                    "options",
                    "Input should hold numbers, texts in UTF-8, true, false and lists of them; "
                    f"{name} is {str(each)[:40]!r}",
                )
    return dict(sorted(options.items()))  # the order says nothing


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# A free table inside of a table: any names, with plain values.
Options = Annotated[dict[str, Any], BeforeValidator(_check_options)]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a key says of itself where it is declared, beside type, bounds, default and meaning.

    A key that says nothing changes the result, may be searched, and always has an effect.

    Attributes:
        choices: the names that it may have.
        is_function: it names functions of the user's own, whose sources the job keeps.
        is_path: it names a file, relative to the file of the job.
        allowed: its range in words, where type, bounds and choices don't say it.
        changes: the result; or its last digits alone; or nothing, like a path, since the checksum
            of the content decides.
        not_searched: why a search can't vary it.
        only_with: other keys. It has an effect if one of them has one of these values, or, where
            none are listed, another value than its default.
        check: gives the rule that the job breaks by this key beside its others; empty if none. Its
            docstring says the rule in the manual.
        unvalidated: the value that it must have where no reviews are left to validate on.
        for_all_reviews: it may differ between a run with validation reviews and the one on all
            reviews that is trained after it.
        is_decided: where it is 0, its value is decided when a search begins.
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
    """The facts in the declaration of a key; the usual ones where it has none."""
    return next((each for each in info.metadata if isinstance(each, Facts)), Facts())


class ConfigSection(BaseModel):
    """A table of a job file: unknown keys and values of another type are refused."""

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
    """Each key's declaration, by its dotted name such as `train.epochs`."""
    return {
        f"{table}.{name}": info
        for table, section in tables.items()
        for name, info in section.model_fields.items()
    }


def is_free(info: FieldInfo) -> bool:
    """Whether a key is a free table: any names, which `--set` and a search reach too."""
    return info.annotation == dict[str, Any]


def without_effect(tables: Tables, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys that are set and do nothing, each with what it would have an effect with.

    Args:
        tables: of the job file.
        values: of all keys, by dotted name.
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
    """One of `Facts.only_with` in words."""
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


# Weights of classes by their names, or how to find them.
ClassWeights = Annotated[str | dict[str, float], BeforeValidator(_check_weights)]


def flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A setting by its dotted key, or those of a table."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from flat(f"{key}.{name}", inner)


def toml_value(value: object) -> str:
    """A value as TOML writes it, on one line; what TOML lacks as text, which no key allows."""
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
    """A job or a search as a file; its sources come last, as they are in their own files."""
    tables = {name: table for name, table in content.items() if name != "code"}
    for name, table in tables.items():
        if isinstance(table, dict):  # an empty free table says nothing
            tables[name] = {key: value for key, value in table.items() if value != {}}
    text = tomli_w.dumps(tables)
    if code := content.get("code"):
        text += "\n[code]\n"
    for path, source in (code or {}).items():
        # TOML's literal text has no escapes, and can't hold its own end or a control character.
        plain = "'''" not in source and not CONTROL.search(source)
        value = f"'''\n{source}'''" if plain else tomli_w.dumps({"v": source})[4:].rstrip("\n")
        text += f'"{path}" = {value}\n'
    return text
