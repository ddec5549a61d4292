"""Base class of values that are stored as JSON."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from efface.util.files import writing


class Value(BaseModel):
    """Frozen value with typed fields; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def save(self, path: Path) -> None:
        """Write the value as one JSON file, whole or not at all. Raises `WriteError`."""
        with writing(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
