"""Relearning: how much of the concept comes back when the edited model is trained on a few pictures of it.

Liu and Zhang 2025, Erased or Dormant?, https://arxiv.org/abs/2505.16174, ask the same. The defaults are those of
DreamBooth (Ruiz et al. 2023, https://arxiv.org/abs/2208.12242) in diffusers, without its rare word.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from efface.attack import Finding, Target
from efface.attacks.search.finetuning import Tuning, tune, with_pictures
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.errors import BadInput
from efface.query import Query


@dataclass(frozen=True)
class Relearning(Tuning):
    """Fine-tune the edited model on pictures of the concept, with its own prompts as captions.

    Args:
        folder: pictures of the concept to train on instead, cropped to a square and resized
    """

    steps: int = 400  # of diffusers' example
    lr: float = 5e-6
    batch: int = 1
    images: int = 5  # "typically 3-5 images"
    folder: str = ""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "lora": {"rank": 4, "params": "attn", "lr": 1e-4, "steps": 500},  # diffusers' example with LoRA
        "mini": {"steps": 30, "lr": 4e-4, "batch": 8, "images": 8},
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "images": 2}

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that there are pictures to train on."""
        super().check(target, concept, queries)
        if not self.folder and target.original is None:
            raise BadInput("relearning needs pictures of the concept: give the original model, or a folder")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return the edit, and the given queries, to be generated under both edits."""
        like = queries[0]
        latents = pictures(target, concept.texts, self.images, like, seed, self.folder).to(target.edited.device)
        captions = [concept.texts[i % len(concept.texts)] for i in range(len(latents))]
        found = tune(self, target, concept, queries, latents, captions, seed)
        if self.folder:
            return found
        return replace(found, cost=with_pictures(found.cost, target.source, concept.texts, self.images, like))


__all__ = ["Relearning"]
