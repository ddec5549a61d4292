"""Values that are written as JSON and checked when they are read."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value of typed fields; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
