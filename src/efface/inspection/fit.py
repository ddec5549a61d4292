"""Whether an edit, a LoRA or a file of full differences fits a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.errors import BadEdit
from efface.exporting.base import Base, open_base
from efface.exporting.tools import TOOLS, Use, reads
from efface.inspection.summary import Summary
from efface.util.files import check_safetensors
from efface.util.untrusted import some


def fit(path: Path, found: Summary, model: Any) -> tuple[bool, list[str]]:
    """Return whether a file fits a model, and why. Raises `BadModel` for a model that cannot be opened."""
    base = open_base(model)
    if found.kind == "edit":
        return _edit(path, base)
    shapes = {key: entry["shape"] for key, entry in check_safetensors(path).items()}
    verdicts, notes = [], []
    for tool in TOOLS:
        reading = reads(tool, base.architecture, shapes, base.modules, base.config) if base.architecture else None
        used = reading.used if reading else {}
        wrong = _wrong_shapes(shapes, used, base)
        refused = f", but {reading.refuses}" if reading and reading.refuses else ""
        passed = f", passes over {some(list(reading.ignored))}" if reading and reading.ignored else ""
        note = (
            f"{TOOLS[tool].title} uses {len(used)} of {len(shapes)} keys on {base.name} ({base.title}){passed}{refused}"
        )
        notes.append(f"{note}; of another shape: {some(wrong)}" if wrong else note)
        verdicts.append(len(used) == len(shapes) and not wrong and not refused)
    return any(verdicts), notes


def _edit(path: Path, base: Base) -> tuple[bool, list[str]]:
    edit = Edit.load(path)
    try:
        base.of(edit)
    except BadEdit as error:
        return False, [str(error)]
    share = sum(1 for name in edit.names if name in base.shapes) / max(len(base.shapes), 1)
    values = sum(_count(base.shapes[name]) for name in edit.names) / max(base.parameters, 1)
    return True, [f"changes {share:.1%} of the weights of {base.name}, {values:.1%} of its denoiser's values"]


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _wrong_shapes(shapes: Mapping[str, list[int]], used: Mapping[str, Use], base: Base) -> list[str]:
    """Return the keys whose tensors do not have the shape of the weight they change."""
    wrong = []
    for key, use in used.items():
        shape, weight = shapes[key], base.shapes[f"{base.part}.{use.module}.weight"]
        expected = {
            "down": shape[1:] == list(weight[1:]),
            "up": shape[:1] == list(weight[:1]),
            "diff": shape == list(weight),
            "diff_b": shape == list(weight[:1]),
        }
        wrong += [] if expected.get(use.role, True) else [key]
    return wrong
