"""Base class of values that are stored as JSON."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Frozen value with typed fields; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
