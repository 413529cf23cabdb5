"""The base of every table of a job file: a closed set of typed keys."""

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
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
            if not isinstance(each, bool | int | float | str) or (
                isinstance(each, float) and not math.isfinite(each)
            ):
                raise PydanticCustomError(
                    "options",
                    f"Input should hold numbers, texts, true, false and lists of them; {name} is "
                    f"{str(each)[:40]!r}",
                )
    return dict(sorted(options.items()))  # the order says nothing


# A free table inside of a table: any names, with plain values.
Options = Annotated[dict[str, Any], BeforeValidator(_check_options)]


class ConfigSection(BaseModel):
    """A table of a job file: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
