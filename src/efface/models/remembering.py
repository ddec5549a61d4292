"""A model that remembers the images it generated, for work that asks for the same ones again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from efface.models.model import Model
from efface.query import Query

LIMIT = 1 << 28  # bytes of images; those after are generated each time


@dataclass(frozen=True, eq=False)
class Remembering(Model):
    """Generate each image once. Its weights and guards must not change meanwhile; models made from it forget.

    images: by the key of their query, on the CPU.
    """

    images: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Model) -> "Remembering":
        """Return the same model with an empty memory."""
        return cls(model.pipe, model.guards, model.name, model.origin)

    def generate(self, queries: Sequence[Query], batch: int = 32) -> Float[Tensor, "b 3 h w"]:
        """Return one image per query, in order, as `Model.generate` does."""
        missing = {query.key: query for query in queries if query.key not in self.images}
        made = dict(zip(missing, super().generate(tuple(missing.values()), batch), strict=True))
        room = LIMIT - sum(image.nbytes for image in self.images.values())
        for key, image in made.items():
            room -= image.nbytes
            if room >= 0:
                self.images[key] = image.cpu()
        if not queries:
            return torch.empty(0, 3, 0, 0)
        known = (made.get(query.key, self.images.get(query.key)) for query in queries)
        return torch.stack([image.to(self.device) for image in known if image is not None])


__all__ = ["Remembering"]
