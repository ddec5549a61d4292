"""A copy of a checkpoint with the edited weights: written in blocks, then compared with the original byte by byte."""

import json
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import BadEdit, BadInput
from efface.export import Export
from efface.exporting.base import Base, Values
from efface.exporting.outputs import ALLOWED, INPUTS, difference, outputs, silent
from efface.exporting.report import LARGEST, Compare, Verified, Written
from efface.models.files import stream
from efface.models.files.tensors import BLOCK, Place
from efface.models.files.tensors import read as read_places
from efface.util.files import check_safetensors


@dataclass(frozen=True)
class Copy(Export):
    """Copy the checkpoint that the edit was made on, with the edited weights in it."""

    def __post_init__(self) -> None:
        super().__post_init__()

    def check(self, edit: Edit, base: Base) -> None:
        """Refuse a model that is not a checkpoint on disk."""
        super().check(edit, base)
        if base.path is None or base.checkpoint is None:
            raise BadInput(f"{self.name} copies a checkpoint: name the folder or file as the model, not one in memory")
        if base.path.is_dir() != self.FOLDER:
            other = "single-file" if self.FOLDER else "diffusers-folder"
            kind = "a folder" if base.path.is_dir() else "a file"
            raise BadInput(f"{self.name} does not convert: {base.path} is {kind}, which {other} copies")

    def write(self, edit: Edit, base: Base, values: Values, out: Path) -> Written:
        """Copy the checkpoint in blocks; values are added in float32 and rounded once to the type in the file."""
        assert base.path is not None
        stream.write(edit, base.path, out, any_base=True)  # the weights are checked already
        return Written()

    def verify(self, edit: Edit, base: Base, values: Values, out: Path, written: Written, compare: Compare) -> Verified:
        """Compare the edited weights with what the edit gives, all other bytes with the original, and the outputs."""
        assert base.path is not None
        assert base.checkpoint is not None
        before = base.checkpoint.places(edit.names)
        after = {name: Place(out / place.file.relative_to(base.path), *place[1:]) for name, place in before.items()}
        old, new = dict(read_places(before)), dict(read_places(after))
        changes = edit.dense(Values(base.name, old))
        if all(torch.equal(old[name], new[name]) for name in old):
            raise BadEdit(f"the copy changes nothing: every difference is below the precision of {base.path}")
        errors = {}
        for name, change in changes.items():
            wanted = (old[name].to(change.dtype) + change).to(old[name].dtype)
            gap = float((new[name].float() - wanted.float()).abs().max())
            if gap > 2 * _step(wanted):
                raise BadEdit(f"the copy is not the edited model: {name} is {gap:.2g} away from its edited value")
            size = max(float(change.norm()), 1e-30)
            errors[name] = float((new[name].float() - old[name].float() - change.float()).norm()) / size
        count = _compare_rest(base.path, out, set(before.values()))
        size = sum(float(value.double().square().sum()) for value in changes.values()) ** 0.5
        total = sum((errors[name] * float(value.norm())) ** 2 for name, value in changes.items()) ** 0.5
        checks = (
            f"{len(new)} weights read again, and {count:,} bytes of all others compared with the original",
            self._outputs(base, out, new, compare),
        )
        return Verified(errors, total / max(size, 1e-30), checks)

    @abstractmethod
    def load(self, base: Base, out: Path, configs: Path) -> Any:
        """Return the copy's denoiser as diffusers loads it; configs: an empty folder for a configuration."""

    def _outputs(self, base: Base, out: Path, new: Mapping[str, Tensor], compare: Compare) -> str:
        reason = "only the weights were asked for" if compare == "weights" else ""
        if not reason and base.kind.__name__ not in INPUTS:
            reason = f"of a {base.kind.__name__} no inputs are known"
        if not reason and compare == "auto" and base.parameters > LARGEST:
            reason = f"the denoiser has {base.parameters / 1e9:.1f} billion values; --check outputs loads it"
        if reason:
            return f"outputs not compared: {reason}"
        with silent(), tempfile.TemporaryDirectory(prefix="efface-") as folder:
            after = outputs(self.load(base, out, Path(folder)))
        denoiser = getattr(base.pipeline(), base.part)
        before = outputs(denoiser)
        for name, value in new.items():
            if name.startswith(f"{base.part}."):
                denoiser.get_parameter(name.removeprefix(f"{base.part}.")).data = value.float()
        gap = difference(before, outputs(denoiser), after, "the copy, loaded by diffusers,", ALLOWED)
        return f"outputs of the denoiser, loaded by diffusers: {gap:.1g} of the edit's change away"


def _step(values: Tensor) -> float:
    """Return the distance between neighbours of the largest of some values, in their precision."""
    return float(values.float().abs().max()) * torch.finfo(values.dtype).eps


def _compare_rest(source: Path, copy: Path, edited: set[Place]) -> int:
    """Compare everything but the edited tensors, in blocks; return the bytes. Raises `BadEdit` where they differ."""
    if source.is_file():
        return _compare_file(source, copy, {place.key for place in edited})
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    if files != sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file()):
        raise BadEdit("the copy is not the edited model: it has other files than the original")
    count = 0
    for file in files:
        keys = {place.key for place in edited if place.file == source / file}
        whole = not keys
        count += _same(source / file, copy / file) if whole else _compare_file(source / file, copy / file, keys)
    return count


def _compare_file(source: Path, copy: Path, edited: set[str]) -> int:
    old, new = check_safetensors(source), check_safetensors(copy)
    if {k: (e["dtype"], e["shape"]) for k, e in old.items()} != {k: (e["dtype"], e["shape"]) for k, e in new.items()}:
        raise BadEdit(f"the copy is not the edited model: {copy.name} has other tensors than the original")
    count = 0
    with open(source, "rb") as one, open(copy, "rb") as two:
        starts = [8 + int.from_bytes(file.read(8), "little") for file in (one, two)]
        for key, entry in old.items():
            if key not in edited:
                begin, end = entry["data_offsets"]
                one.seek(starts[0] + begin)
                two.seek(starts[1] + new[key]["data_offsets"][0])
                for size in _blocks(end - begin):
                    if one.read(size) != two.read(size):
                        raise BadEdit(
                            f"the copy is not the edited model: {key} differs, which the edit does not change"
                        )
                count += end - begin
    return count


def _same(source: Path, copy: Path) -> int:
    size = source.stat().st_size
    same = size == copy.stat().st_size
    with open(source, "rb") as one, open(copy, "rb") as two:
        same = same and all(one.read(block) == two.read(block) for block in _blocks(size))
    if not same:
        raise BadEdit(f"the copy is not the edited model: {copy.name} differs, which the edit does not change")
    return size


def _blocks(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, BLOCK)
        size -= BLOCK


def write_config(base: Base, folder: Path) -> str:
    """Write the denoiser's configuration to a folder, for diffusers; return the folder."""
    config = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    (folder / base.part).mkdir()
    text = json.dumps({**config, "_class_name": base.kind.__name__})
    (folder / base.part / "config.json").write_text(text, encoding="utf-8")
    return str(folder)


__all__ = ["Copy", "write_config"]
