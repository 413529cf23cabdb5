"""The base of every table of a job file, a closed set of typed keys, and how it is written."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, lt=1)]
HALF = re.compile("[\ud800-\udfff]")  # of a character: no text; a byte of the command line
OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


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


# The free tables inside of the others: any names, which `--set` and a search reach too.
OPEN_TABLES = (("model", "options"), ("train", "optimizer_options"))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# A free table inside of a table: any names, with plain values.
Options = Annotated[dict[str, Any], BeforeValidator(_check_options)]


class ConfigSection(BaseModel):
    """A table of a job file: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def one_of(*known: str) -> AfterValidator:
    """The check of a key that has one of some names."""

    def check(name: str) -> str:
        if name not in known:
            *most, last = map(repr, known)
            raise PydanticCustomError("choice", f"Input should be {', '.join(most)} or {last}")
        return name

    return AfterValidator(check)


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
    for table, name in OPEN_TABLES:
        if not tables[table].get(name, True):  # an empty one says nothing
            tables[table] = {k: v for k, v in tables[table].items() if k != name}
    text = tomli_w.dumps(tables)
    if code := content.get("code"):
        text += "\n[code]\n"
    for path, source in (code or {}).items():
        # TOML's literal text has no escapes, and can't hold its own end or a control character.
        plain = "'''" not in source and not CONTROL.search(source)
        value = f"'''\n{source}'''" if plain else tomli_w.dumps({"v": source})[4:].rstrip("\n")
        text += f'"{path}" = {value}\n'
    return text
