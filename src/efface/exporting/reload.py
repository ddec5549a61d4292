"""Read an exported file as the tools do, and compare it with the edit: its weights, and the denoiser's outputs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput
from efface.exporting.base import Base, Values
from efface.exporting.outputs import ALLOWED, INPUTS, difference, outputs, silent, with_values
from efface.exporting.precision import Precision
from efface.exporting.report import LARGEST, Compare, Verified, Written
from efface.exporting.tools import TOOLS, Use, reads
from efface.util.files import load_safetensors
from efface.util.untrusted import some


def verify(
    edit: Edit, base: Base, values: Values, path: Path, written: Written, compare: Compare, tools: Sequence[str]
) -> Verified:
    """Compare the differences in a file with an edit's, as each tool reads them.

    written: the errors to expect. Raises `BadEdit` when a tool would pass over a key, when a weight is missing or
    changed otherwise, and when the denoiser's outputs, loaded by diffusers, are not those of the edited model.
    """
    stored, _ = load_safetensors(path)
    exact = edit.dense(values)
    checks = [f"{len(stored)} keys and the weights they make, as {_listed(tools)} read them"]
    found: dict[str, float] = {}
    differences: dict[str, Tensor] = {}
    before: dict[str, Use] = {}
    for tool in tools:
        uses = used(tool, base, stored)
        if uses != before:  # most tools make the same of a file
            differences, before = rebuild(stored, uses, base), uses
            found = compared(differences, exact, written)
    size = sum(float(value.double().square().sum()) for value in exact.values()) ** 0.5
    gaps = {name: found.get(name, 0.0) * float(value.norm()) for name, value in exact.items()}
    total = sum(gap**2 for gap in gaps.values()) ** 0.5 / max(size, 1e-30)
    reason = _why_not(base, compare, "diffusers" in tools)
    if reason and compare == "outputs":
        raise BadInput(f"outputs cannot be compared: {reason}")
    checks.append(f"outputs not compared: {reason}" if reason else _outputs(base, values, path, exact, differences))
    return Verified(found, total, tuple(checks))


def used(tool: str, base: Base, stored: Mapping[str, Tensor]) -> dict[str, Use]:
    """Return the uses of a file's keys by a tool; raises `BadEdit` unless it uses all of them."""
    reading = reads(tool, base.architecture, stored, base.modules, base.config)
    title = TOOLS[tool].title
    if reading.refuses:
        raise BadEdit(f"{title} does not read this file: {reading.refuses}")
    if reading.ignored:
        raise BadEdit(f"{title} would pass over {len(reading.ignored)} of {len(stored)} keys: {some(reading.ignored)}")
    return reading.used


def rebuild(stored: Mapping[str, Tensor], uses: Mapping[str, Use], base: Base) -> dict[str, Tensor]:
    """Return the differences that the keys of a file make, by weight, in float32: alpha / rank · up @ down, or diff."""
    roles: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, use in uses.items():
        roles[use.module][use.role] = stored[key].float()
    found: dict[str, Tensor] = {}
    for module, has in roles.items():
        weight, bias = f"{base.part}.{module}.weight", f"{base.part}.{module}.bias"
        if len({"down", "up"} & has.keys()) == 1:
            raise BadEdit(f"the file is not the edit: {module} has one factor only")
        if "down" in has:
            found[weight] = _product(module, has, base.shapes[weight])
        found |= {name: has[role] for role, name in (("diff", weight), ("diff_b", bias)) if role in has}
    for name, value in found.items():
        if tuple(value.shape) != base.shapes[name]:
            raise BadEdit(f"the file is not the edit: {name} is {list(value.shape)}, not {list(base.shapes[name])}")
    return found


def _product(module: str, has: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return alpha / rank · up @ down in a weight's shape; raises `BadEdit` for factors of another."""
    up, down = has["up"].flatten(1), has["down"].flatten(1)
    if (up.shape[1], up.shape[0], down.shape[1]) != (len(down), shape[0], torch.Size(shape[1:]).numel()):
        raise BadEdit(f"the file is not the edit: {module} has factors {list(up.shape)} and {list(down.shape)}")
    scale = float(has["alpha"]) / len(down) if "alpha" in has else 1.0
    return (scale * (up @ down)).reshape(shape)


def compared(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], written: Written) -> dict[str, float]:
    """Return the relative error of each difference; raises `BadEdit` for one that is missing, extra or wrong."""
    if not any(bool(value.any()) for value in found.values()):
        raise BadEdit("the file changes nothing: all differences in it are zero")
    extra = [name for name, value in found.items() if name not in exact and bool(value.any())]
    if extra:
        raise BadEdit(f"the file changes {some(extra)}, which the edit does not change")
    errors = {}
    for name, wanted in exact.items():
        if not bool(wanted.any()) and name not in found:
            continue
        if name not in found:
            raise BadEdit(f"the file is not the edit: it has no difference of {name}")
        size = max(float(wanted.norm()), 1e-30)
        errors[name] = float((found[name] - wanted.float()).norm()) / size
        allowed = 1.01 * written.planned.get(name, 0.0) + Precision[written.dtype].error
        if not errors[name] <= allowed:
            raise BadEdit(
                f"the file is not the edit: its difference of {name} is {errors[name]:.2g} away (relative), at most "
                f"{allowed:.2g} is rounding and what its rank leaves out"
            )
    return errors


def _outputs(base: Base, values: Values, path: Path, exact: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> str:
    """Compare the outputs of the denoiser as diffusers loads the file; return what was done.

    exact, held: the differences of the edit, and those that the file holds. Raises `BadEdit`.
    """
    with silent():
        pipe = base.pipeline()
        denoiser: Any = getattr(pipe, base.part)
        before = outputs(denoiser)
        edited, expected = (_with(denoiser, values, changes) for changes in (exact, held))
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        after = outputs(getattr(pipe, base.part))
    difference(before, expected, after, "the file, loaded by diffusers,", ALLOWED)
    gap = float((after - edited).norm()) / max(float((edited - before).norm()), 1e-30)
    return f"outputs of the denoiser, loaded by diffusers: {gap:.1g} of the edit's change away"


def _with(denoiser: Any, values: Values, changes: Mapping[str, Tensor]) -> Tensor:
    """Return a denoiser's outputs with weights changed."""
    plain = {name.partition(".")[2]: values.values[name] + change for name, change in changes.items()}
    with with_values(denoiser, plain):
        return outputs(denoiser)


def _why_not(base: Base, compare: Compare, loads: bool) -> str:
    """Return why the outputs are not compared, "" if they are."""
    if compare == "weights":
        return "only the weights were asked for"
    if not loads:
        return "diffusers does not load this format"
    if find_spec("peft") is None:
        return "diffusers loads LoRA with the package peft, which is not installed (pip install peft)"
    if base.kind.__name__ not in INPUTS:
        return f"of a {base.kind.__name__} no inputs are known"
    if compare == "auto" and base.parameters > LARGEST:
        size = base.parameters / 1e9
        return f"the denoiser has {size:.1f} billion values; --check outputs loads it ({4 * size:.0f} GB)"
    return ""


def _listed(tools: Sequence[str]) -> str:
    titles = [TOOLS[tool].title for tool in tools]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
