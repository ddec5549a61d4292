"""The judge of mini: a network that says what is where in a scene, and a CLIP; used by no erasure method."""

import json
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from efface.concept import table
from efface.errors import BadFile, BadInput
from efface.judge import Judge, Judged, Profile
from efface.util.files import load_safetensors, sha256_tensors

if TYPE_CHECKING:
    from efface.mini.nets import Scene

Images = Float[Tensor, "n 3 h w"]
FOLDER = Path(__file__).parents[1] / "mini" / "judges"
BATCH = 256
STATISTIC = "top-k of the area that objects cover"
M = TypeVar("M", bound=torch.nn.Module)


class MiniJudge(Judge):
    """Judge images of mini: what is where in them, their style and ground, and, by a CLIP, how a text fits.

    classes: object names, in the order of `objects`.
    styles: style names, "plain" first, in the order of `style_probs`.
    grounds: names of grounds, "paper" first (white or a pale tint), in the order of `ground_probs`.
    """

    MODELS: ClassVar[tuple[str, ...]] = ("mini",)
    NAMES: ClassVar[tuple[str, ...]] = ("judge", "clip")
    ASKED: ClassVar[str] = "clip"
    reads_text = True

    def __init__(self, folder: Path = FOLDER):
        """Load the networks from `folder`; raises `BadFile`."""
        from efface.mini.nets import JudgeCLIP, SceneNet, Words

        try:
            about = json.loads((folder / "judges.json").read_text(encoding="utf-8"))
            self.words = Words.load(folder / "words.json")
        except (OSError, ValueError) as error:
            raise BadFile(f"no judges in {folder}: {error}") from error
        self.classes = tuple(about["objects"])
        self.styles = tuple(about["styles"])
        self.grounds = tuple(about["grounds"])
        self.size: int = about["input"]
        with torch.inference_mode(False):  # weights made in inference mode would not be differentiable
            net = SceneNet(len(self.classes), len(self.styles), len(self.grounds))
            self._scenes = _load(net, folder / "scenes.safetensors")
            self._clip = _load(JudgeCLIP(len(self.words.words)), folder / "clip.safetensors")

    @classmethod
    def load(cls, model: str, name: str = "") -> Judge:
        """Return mini's judge, or "clip", which names what its CLIP finds most similar; loaded once per process."""
        return _zero_shot(model) if name == "clip" else judge(model)

    def objects(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return each object's share of what objects cover in images in [0, 1]; rows sum to 1."""
        return torch.cat([_objects_in(part.cells) for part in self._seen(images)])

    def cells(self, images: Images) -> Float[Tensor, "n classes+1 8 8"]:
        """Return the probability of what covers each cell of an 8 × 8 map of images in [0, 1]; 0 is the ground."""
        return torch.cat([part.cells.softmax(1) for part in self._seen(images)])

    def present(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the largest probability of each object in any cell: several objects may be present."""
        return self.cells(images)[:, 1:].amax((2, 3))

    def style_probs(self, images: Images) -> Float[Tensor, "n styles"]:
        """Return the probability of every style for images in [0, 1]."""
        return torch.cat([part.styles.softmax(-1) for part in self._seen(images)])

    def ground_probs(self, images: Images) -> Float[Tensor, "n grounds"]:
        """Return the probability of every ground for images in [0, 1]."""
        return torch.cat([part.grounds.softmax(-1) for part in self._seen(images)])

    def _seen(self, images: Images) -> Iterator["Scene"]:
        return (self._scenes(part) for part in images.split(BATCH))

    def clip_score(self, images: Images, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the cosine of each image with its text, -1 to 1, by a CLIP of the judge's own."""
        if len(images) != len(texts):
            raise BadInput(f"as many texts as images, got {len(texts)} for {len(images)}")
        return (self.image_features(images) * self._clip.text(self.words(list(texts)))).sum(-1)

    def zero_shot(self, images: Images, texts: Sequence[str]) -> Float[Tensor, "n texts"]:
        """Return the cosine of each image with every text, -1 to 1, by the same CLIP."""
        return self.image_features(images) @ self._clip.text(self.words(list(texts))).mT

    def texts(self, kind: Judged) -> list[str]:
        """Return the prompt of every name of a kind, "a picture" for the plain style, to compare images with."""
        known = table("mini")
        return [known[name].texts[0] if name in known else "a picture" for name in self.names(kind)]

    def image_features(self, images: Images) -> Float[Tensor, "n dim"]:
        """Return the CLIP's unit vector of each image."""
        return torch.cat([self._clip.image(part) for part in images.split(BATCH)])

    @property
    def temperature(self) -> Tensor:
        """Return the factor of cosines that the CLIP was trained with."""
        return self._clip.scale.exp().clamp(max=50)

    @property
    def profile(self) -> Profile:
        """Return the profile that its scores are reported with."""
        return self._profile

    @cached_property
    def _profile(self) -> Profile:
        nets = {"scenes": self._scenes, "clip": self._clip}
        hashes = {name: sha256_tensors(dict(net.state_dict()))[:16] for name, net in nets.items()}
        return Profile(
            evaluator="mini-judges", sha256=hashes, input=self.size, classes=len(self.classes), statistic=STATISTIC
        )


def _objects_in(cells: Tensor) -> Tensor:
    from efface.mini.nets import objects_in

    return objects_in(cells)


class _ZeroShot(Judge):
    """Judge images by the CLIP of mini's judge alone: the softmax over how like each name's prompt an image is."""

    reads_text = True

    def __init__(self, judge: MiniJudge):
        self._judge, self.classes, self.styles = judge, judge.classes, judge.styles
        self._texts, self._styled = judge.texts("object"), judge.texts("style")

    def objects(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the probability of every object for images in [0, 1]."""
        return (self._judge.temperature * self._judge.zero_shot(images, self._texts)).softmax(-1)

    def style_probs(self, images: Images) -> Float[Tensor, "n styles"]:
        """Return the probability of every style for images in [0, 1]."""
        return (self._judge.temperature * self._judge.zero_shot(images, self._styled)).softmax(-1)

    def clip_score(self, images: Images, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the cosine of each image with its text, -1 to 1."""
        return self._judge.clip_score(images, texts)

    def image_features(self, images: Images) -> Float[Tensor, "n dim"]:
        """Return the CLIP's unit vector of each image."""
        return self._judge.image_features(images)

    @property
    def profile(self) -> Profile:
        """Return the profile of the CLIP."""
        own = self._judge.profile
        return own.model_copy(
            update={
                "evaluator": "mini-clip",
                "sha256": {"clip": own.sha256["clip"]},
                "statistic": "top-k of the softmax of similarities",
            }
        )


def _load(net: M, path: Path) -> M:
    tensors, _ = load_safetensors(path)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return net.eval().requires_grad_(False)


@cache
def judge(model: str = "mini") -> MiniJudge:
    """Return mini's judge, loaded once. Raises `BadInput` for another model: see `efface.judge.judge_of`."""
    if model not in MiniJudge.MODELS:
        raise BadInput(f"no judge for {model}: only mini ships with classifiers of its objects and styles")
    return MiniJudge()


@cache
def _zero_shot(model: str) -> _ZeroShot:
    return _ZeroShot(judge(model))


__all__ = ["MiniJudge", "judge"]
