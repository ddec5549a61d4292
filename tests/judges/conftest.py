"""Judges that need files of the user, made with random weights."""

from pathlib import Path

import pytest
import torch

from efface.concept import Concept
from efface.judge import Judge
from efface.judges.clip_zero_shot import CLIPZeroShotJudge
from efface.judges.function import FunctionJudge
from efface.judges.resnet50 import ResNet50Judge
from efface.util.files import save_safetensors

CONCEPTS = (Concept("church"), Concept("dog"), Concept("neon", kind="style"), Concept("sketch", kind="style"))


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with random weights of a ResNet-50."""
    from torchvision.models import resnet50

    torch.manual_seed(0)  # of this process's own test models
    path = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    save_safetensors(path, {k: v.half() if v.is_floating_point() else v for k, v in resnet50().state_dict().items()})
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Return a folder with a small random CLIP, with the words of the tiny model."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=16, **sizes, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    path = tmp_path_factory.mktemp("clip") / "clip"
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def bright(images: torch.Tensor) -> torch.Tensor:
    """Say light or dark, by the mean."""
    light = images.mean((1, 2, 3))
    return torch.stack([light, 1 - light], 1)


@pytest.fixture
def concepts() -> tuple[Concept, ...]:
    """Return two objects and two styles."""
    return CONCEPTS


@pytest.fixture
def users(resnet: Path, clip: Path):
    """Return name of a file of judges/ -> its judge, with a file of the user."""
    make = {
        "resnet50": lambda: ResNet50Judge.load("any", str(resnet)),
        "clip_zero_shot": lambda: CLIPZeroShotJudge.load("any", str(clip), CONCEPTS),
        "function": lambda: FunctionJudge(bright, ["light", "dark"], "bright", differentiable=True),
    }

    def of(name: str) -> Judge:
        return make[name]()

    return of
