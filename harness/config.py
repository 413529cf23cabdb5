"""What every table of a job file shares: a closed set of typed keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class ConfigSection(BaseModel):
    """A table of a job file: no key beside the known ones, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
