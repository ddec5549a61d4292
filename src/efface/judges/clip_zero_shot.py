"""CLIP zero-shot: which of some names an image is most like, by a CLIP in a folder of yours; for images of any model.

Radford et al. 2021, https://arxiv.org/abs/2103.00020. "clip_zero_shot:FOLDER" reads a folder that transformers saved
(config, safetensors, tokenizer). Its names are those of the model's concept table, or of the concepts in question.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from efface.concept import Concept, table
from efface.errors import BadFile, BadInput
from efface.judge import Judge, Profile
from efface.util.weights import sha256_file

Images = Float[Tensor, "n 3 h w"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
BATCH = 32


class CLIPZeroShotJudge(Judge):
    """Judge images by the softmax of their similarities with one prompt for each name.

    concepts: what it tells apart, by their first prompts; styles apart from all others.
    """

    ANY_MODEL: ClassVar[bool] = True
    TAKES_FILE: ClassVar[bool] = True
    TAKES_CONCEPTS: ClassVar[bool] = True
    NAMES: ClassVar[tuple[str, ...]] = ("FOLDER",)
    reads_text = True

    def __init__(self, folder: Path, concepts: Sequence[Concept]):
        """Load the CLIP. Raises `BadInput` for fewer than two names, `BadFile` for a folder that is none of a CLIP."""
        if len(concepts) < 2:
            raise BadInput(f"the judge clip_zero_shot chooses between names: give two or more, got {len(concepts)}")
        self.folder, self._clip, self._words = folder, *_load(folder)
        self.size: int = self._clip.config.vision_config.image_size
        styles = [one for one in concepts if one.kind == "style"]
        objects = [one for one in concepts if one.kind != "style"]
        self.classes, self.styles = (tuple(one.name for one in group) for group in (objects, styles))
        with torch.no_grad():
            self._objects, self._styles = (self._texts([c.texts[0] for c in group]) for group in (objects, styles))

    @classmethod
    def load(cls, model: str, name: str = "", concepts: Sequence[Concept] = ()) -> "CLIPZeroShotJudge":
        """Load the CLIP in the folder `name`; its names are the concepts', or else the model's table's."""
        if not name or name == cls.NAMES[0]:
            raise BadInput("the judge clip_zero_shot needs a folder with a CLIP: name it as clip_zero_shot:FOLDER")
        return cls(Path(name), tuple(concepts) or tuple(table(model).values()))

    def objects(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the probability of every object for images in [0, 1]."""
        return self._softmax(images, self._objects)

    def style_probs(self, images: Images) -> Float[Tensor, "n styles"]:
        """Return the probability of every style for images in [0, 1]."""
        return self._softmax(images, self._styles)

    def clip_score(self, images: Images, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the cosine of each image with its text, -1 to 1."""
        if len(images) != len(texts):
            raise BadInput(f"as many texts as images, got {len(texts)} for {len(images)}")
        return (self.image_features(images) * self._texts(list(texts))).sum(-1)

    def image_features(self, images: Images) -> Float[Tensor, "n dim"]:
        """Return the CLIP's unit vector of each image, brought to its size."""
        found = []
        for part in images.split(BATCH):
            sized = interpolate(part, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
            mean, std = (sized.new_tensor(values)[:, None, None] for values in (MEAN, STD))
            found.append(_plain(self._clip.get_image_features(pixel_values=(sized - mean) / std)))
        return normalize(torch.cat(found), dim=-1)

    @property
    def profile(self) -> Profile:
        """Return the profile; two lists of names are two profiles, since the softmax is over them."""
        return Profile(
            evaluator="clip zero-shot", sha256={"clip": sha256_file(self.folder)[:16]}, input=self.size,
            classes=len(self.classes),
            statistic=f"top-k of the softmax of similarities with {', '.join((*self.classes, *self.styles))}",
        )  # fmt: skip

    def _texts(self, texts: list[str]) -> Float[Tensor, "n dim"]:
        if not texts:
            return torch.zeros(0, self._clip.config.projection_dim)
        read = self._words(texts, padding=True, truncation=True, return_tensors="pt")
        return normalize(_plain(self._clip.get_text_features(**read)), dim=-1)

    def _softmax(self, images: Images, texts: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        return (self._clip.logit_scale.exp() * self.image_features(images) @ texts.mT).softmax(-1)


def _plain(features: Any) -> Tensor:
    """Return the vectors, which newer transformers wrap."""
    return (features if isinstance(features, Tensor) else features.pooler_output).float()


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    if not (folder / "config.json").is_file():
        raise BadFile(f"{folder} holds no config.json, so it is no folder of a CLIP that transformers saved")
    try:
        with torch.inference_mode(False):
            clip = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # OSError, ValueError and errors of the readers below
        raise BadFile(f"{folder} cannot be read as a CLIP: {' '.join(str(error).split())[:200]}") from error
    return clip.eval().requires_grad_(False), words
