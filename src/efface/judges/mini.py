"""Judges: "is the concept in this picture?". Classifiers that no eraser has seen, and what is needed to quote them.

Every judge carries a profile (name, version, sha256 of its weights, input size, classes): scores with different
profiles do not belong in one table.
"""

import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.errors import BadFile, BadInput
from efface.util.files import load_safetensors, sha256_tensors

Images = Float[Tensor, "n 3 h w"]
BATCH = 256
M = TypeVar("M", bound=torch.nn.Module)


class Judge:
    """Judge pictures of mini: an object classifier, a style classifier, and a CLIP.

    classes: object names, in the order of `objects`.
    styles: style names, "plain" first, in the order of `style_probs`.
    """

    def __init__(self, folder: Path):
        """Load the judges written into `folder`; raises `BadFile`."""
        from efface.mini.nets import Classifier, JudgeCLIP, Words

        try:
            about = json.loads((folder / "judges.json").read_text(encoding="utf-8"))
            self.words = Words.load(folder / "words.json")
        except (OSError, ValueError) as error:
            raise BadFile(f"no judges in {folder}: {error}") from error
        self.classes: tuple[str, ...] = tuple(about["objects"])
        self.styles: tuple[str, ...] = tuple(about["styles"])
        self.size: int = about["input"]
        self._objects = _load(Classifier(len(self.classes)), folder / "objects.safetensors")
        self._styles = _load(Classifier(len(self.styles), 16), folder / "styles.safetensors")
        self._clip = _load(JudgeCLIP(len(self.words.words)), folder / "clip.safetensors")

    @torch.inference_mode()
    def objects(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the probability of every object for pictures in [0, 1]."""
        return torch.cat([self._objects(part).softmax(-1) for part in images.split(BATCH)]).clone()

    @torch.inference_mode()
    def style_probs(self, images: Images) -> Float[Tensor, "n styles"]:
        """Return the probability of every style for pictures in [0, 1]."""
        return torch.cat([self._styles(part).softmax(-1) for part in images.split(BATCH)]).clone()

    @torch.inference_mode()
    def clip_score(self, images: Images, texts: list[str]) -> Float[Tensor, " n"]:
        """Return the cosine of each picture with its text, -1 to 1, by a CLIP trained apart from the model's own."""
        if len(images) != len(texts):
            raise BadInput(f"as many texts as images, got {len(texts)} for {len(images)}")
        image = torch.cat([self._clip.image(part) for part in images.split(BATCH)])
        return (image * self._clip.text(self.words(texts))).sum(-1).clone()

    @torch.inference_mode()
    def zero_shot(self, images: Images, texts: list[str]) -> Float[Tensor, "n texts"]:
        """Return the cosine of each picture with every text, -1 to 1, by the same CLIP."""
        image = torch.cat([self._clip.image(part) for part in images.split(BATCH)])
        return (image @ self._clip.text(self.words(texts)).mT).clone()

    @cached_property
    def profile(self) -> dict[str, Any]:
        """Return what a score must be quoted with."""
        nets = {"objects": self._objects, "styles": self._styles, "clip": self._clip}
        hashes = {name: sha256_tensors(dict(net.state_dict()))[:16] for name, net in nets.items()}
        return {
            "evaluator": "mini-judges", "version": 1, "sha256": hashes, "input": self.size,
            "classes": len(self.classes), "statistic": "top-k of the softmax",
        }  # fmt: skip


def _load(net: M, path: Path) -> M:
    tensors, _ = load_safetensors(path)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return net.eval().requires_grad_(False)


@cache
def judge(model: str = "mini") -> Judge:
    """Return the judge of a model: mini's own. Raises `BadInput` for a model that has none."""
    if model != "mini":
        raise BadInput(f"no judge for {model}: only mini ships with classifiers of its objects and styles")
    return Judge(Path(__file__).parents[1] / "mini" / "judges")


__all__ = ["Judge", "judge"]
