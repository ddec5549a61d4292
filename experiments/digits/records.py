"""The records of the experiment: where they are, how they are read and written, and what a share is in them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.errors import BadFile
from efface.evaluation.stats import wilson
from efface.util.files import writing

Line = Mapping[str, Any]  # what was measured at once: one search of one model
SEARCHES = ("grid", "gradient", "control")


@dataclass(frozen=True)
class Records:
    """What is stored of one experiment; every file's name begins with its data set and its target.

    folder: where the files are, made when first written to.
    """

    folder: Path
    dataset: str
    target: str

    def path(self, what: str, suffix: str = ".json") -> Path:
        """Return the path of a file; makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self.dataset}-{self.target}-{what}{suffix}"

    def table1(self) -> dict[str, Any]:
        """Return table 1, {} before it was measured."""
        return self._read("table1")

    def search(self) -> dict[str, Any]:
        """Return the searches: {kind of search: {where: line}}, and "l_uncond"."""
        return {kind: {} for kind in SEARCHES} | {"l_uncond": {}} | self._read("search")

    def inversion(self) -> dict[str, Any]:
        """Return the inversions: {where: line}."""
        return self._read("inversion")

    def write(self, what: str, record: Line) -> None:
        """Write a record, whole or not at all."""
        with writing(self.path(what)) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _read(self, what: str) -> dict[str, Any]:
        path = self.path(what)
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise BadFile(f"{path} is not a record: {error}") from error


def share(right: Tensor) -> dict[str, Any]:
    """Return a share with its count and its 95 % interval (Wilson)."""
    hits, n = int(right.sum()), right.numel()
    return {"share": hits / n, "hits": hits, "n": n, "ci95": [round(end, 5) for end in wilson(hits, n)]}
