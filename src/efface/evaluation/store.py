"""Store: images under the hash of what they depend on, so that none is generated twice.

One PNG per image under a root folder, named by sha256(model id, edit id, query, sampler version). Files are written
whole or not at all, so several processes can share a store and a stopped run can resume. A damaged file is replaced.

An image varies by rounding with the batch that it is generated in. So a batch is kept whole or not at all too: first as
one file, from which the images are written. A run that is killed and started again has the same batches.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from efface.errors import BadFile, BadInput, WriteError
from efface.models import sampling
from efface.query import Query
from efface.util import image_file
from efface.util.files import cache_folder, load_safetensors, save_safetensors, writing
from efface.util.progress import progress

if TYPE_CHECKING:
    from efface.models.model import Model

HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Store:
    """Store images in a folder, by default in `cache_folder()`."""

    root: Path

    @classmethod
    def default(cls) -> "Store":
        """Return the store in `cache_folder()`."""
        return cls(cache_folder())

    def key(self, model: "Model", edit_id: str, query: Query) -> str:
        """Return the sha256 of everything an image depends on."""
        parts = [model.id, edit_id, query.key, sampling.VERSION]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Return the file of an image."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def images(
        self, model: "Model", edit_id: str, queries: Sequence[Query], batch: int = 32
    ) -> Float[Tensor, "b 3 h w"]:
        """Return one image per query in [0, 1], in steps of 1/255, generating only those that the store lacks.

        model: the model that generates (edited, if there is an edit). edit_id: of that edit, "" for none.
        Raises `WriteError` when the folder cannot be written.
        """
        self._unpack()
        keys = [self.key(model, edit_id, query) for query in queries]
        found: dict[str, Tensor] = {}
        size = model.family.image_size
        for key, query in dict(zip(keys, queries, strict=True)).items():
            image = self._read(key, query)
            if image is not None and image.shape[1:] == (size, size):
                found[key] = image
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in found}
        wanted = list(missing.items())
        groups = sampling.groups([query for _, query in wanted], batch)
        for group in progress(groups, "images"):
            made = model.generate([wanted[i][1] for i in group], batch)
            images = (made * 255).round().to("cpu", torch.uint8)
            found |= self._keep({wanted[i][0]: image for i, image in zip(group, images, strict=True)}, missing)
        if not queries:
            return torch.empty(0, 3, 0, 0)
        return torch.stack([found[key] for key in keys]).float() / 255

    def image(self, key: str) -> Float[Tensor, "3 h w"] | None:
        """Return the image of a record's row in [0, 1], or None when the store no longer has it."""
        found = self._read(key)
        return None if found is None else found.float() / 255

    def _read(self, key: str, query: Query | None = None) -> UInt8[Tensor, "3 h w"] | None:
        """Return an image, None for one that is missing, damaged, or of another query."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            image = image_file.read(path, formats=("PNG",))
        except BadInput:
            return None
        pixels = np.array(image)
        if image.info.get("sha256") != _digest(pixels):  # PIL does not check the pixels' checksum
            return None
        if query is not None and image.info.get("efface") != query.key:
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _keep(self, images: dict[str, Tensor], queries: Mapping[str, Query]) -> dict[str, Tensor]:
        """Write the images of a batch, all or none of them; return them."""
        asked = {key: queries[key].key for key in images}
        whole = self.root / "batches" / f"{hashlib.sha256(' '.join(images).encode()).hexdigest()}.safetensors"
        if len(images) > 1:
            self._make(whole.parent)
            save_safetensors(whole, images, asked)
        for key, image in images.items():
            self._write(key, image, asked[key])
        whole.unlink(missing_ok=True)
        return images

    def _unpack(self) -> None:
        """Write the images of batches whose process was killed after it had kept them."""
        for whole in sorted((self.root / "batches").glob("*.safetensors")):
            try:
                images, asked = load_safetensors(whole)
            except BadFile:  # its own process has just written them all, or it is damaged
                images, asked = {}, {}
            for key, image in images.items():
                if HASH.fullmatch(key) and image.dtype == torch.uint8 and image.dim() == 3 and key in asked:
                    self._write(key, image, asked[key])
            whole.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot write to the store in {self.root}: {error.strerror or error}") from error

    def _write(self, key: str, image: UInt8[Tensor, "3 h w"], asked: str) -> None:
        """Write one image. asked: its query's key."""
        path = self.path(key)
        self._make(path.parent)
        info = PngImagePlugin.PngInfo()
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        info.add_text("efface", asked)
        info.add_text("sha256", _digest(pixels))
        with writing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
