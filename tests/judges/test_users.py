"""Judges of the user's own files and functions: the same answers as their libraries give, and clear refusals."""

import hashlib
from pathlib import Path

import pytest
import torch

from efface.errors import BadFile, BadInput, UnknownName
from efface.judge import find_judge, judge_of
from efface.judges.function import FunctionJudge
from efface.judges.resnet50 import IMAGENETTE, ResNet50Judge
from efface.util.files import save_safetensors

X = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))


def bright(images: torch.Tensor) -> torch.Tensor:
    """Say light or dark, by the mean."""
    light = images.mean((1, 2, 3))
    return torch.stack([light, 1 - light], 1)


def test_resnet_is_torchvisions(resnet: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.models import ResNet50_Weights, resnet50

    net = resnet50()
    net.load_state_dict(load_file(resnet))
    known = net.eval()(ResNet50_Weights.IMAGENET1K_V2.transforms(antialias=True)(X)).softmax(1)
    judge = judge_of("any/model", f"resnet50:{resnet}")
    torch.testing.assert_close(judge.objects(X), known.detach())
    assert [judge.index(name) for name in IMAGENETTE] == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert judge.index("Cassette Player") == 482
    assert judge.profile.classes == 1000
    assert judge.profile.sha256["net"] == hashlib.sha256(resnet.read_bytes()).hexdigest()[:16]
    with pytest.raises(UnknownName, match="class of the judge 'van gogh'"):
        judge.index("van gogh")


def test_resnet_without_weights_is_refused_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadFile, match=r"resnet50-11ad3fa6\.pth is not in .*nothing is downloaded"):
        judge_of("any/model", "resnet50")
    with pytest.raises(BadFile, match=r"resnet50-0676ba61\.pth is not in"):
        judge_of("any/model", "resnet50:v1")
    with pytest.raises(BadFile, match=r"no file nosuch\.safetensors for the judge resnet50"):
        judge_of("any/model", "resnet50:nosuch.safetensors")
    save_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(BadFile, match="no weights of a ResNet-50"):
        ResNet50Judge(tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("hub/**/*.pth"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet50-11ad3fa6.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(BadFile, match="not the file that torchvision publishes"):
        judge_of("any/model", "resnet50")


def test_clip_is_transformers(clip: Path, concepts) -> None:
    """The judge's probabilities are the library's own `logits_per_image`, softmaxed over the prompts of each kind."""
    from transformers import CLIPModel, CLIPTokenizer

    model, words = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    judge = judge_of("any/model", f"clip_zero_shot:{clip}", concepts)
    square = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    texts = ["a picture of a church", "a picture of a dog"]
    read = words(texts, padding=True, return_tensors="pt")
    known = model(pixel_values=(square - mean[:, None, None]) / std[:, None, None], **read)
    torch.testing.assert_close(judge.objects(square), known.logits_per_image.softmax(1).detach(), atol=1e-5, rtol=1e-4)
    cosines = (known.image_embeds * known.text_embeds).sum(1)
    torch.testing.assert_close(judge.clip_score(square, texts), cosines.detach(), atol=1e-5, rtol=1e-4)
    assert judge.styles == ("neon", "sketch")
    assert judge.profile != judge_of("any/model", f"clip_zero_shot:{clip}", concepts[:2]).profile


def test_a_clip_that_is_none_is_refused(tmp_path: Path, clip: Path, concepts) -> None:
    with pytest.raises(BadInput, match="name it as clip_zero_shot:FOLDER"):
        judge_of("mini", "clip_zero_shot")
    with pytest.raises(BadFile, match=r"holds no config\.json"):
        judge_of("mini", f"clip_zero_shot:{tmp_path}")
    with pytest.raises(BadInput, match="give two or more, got 1"):
        judge_of("any/model", f"clip_zero_shot:{clip}", concepts[:1])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadFile, match="cannot be read as a CLIP"):
        judge_of("mini", f"clip_zero_shot:{tmp_path}")


def test_a_function_is_a_judge() -> None:
    judge = FunctionJudge(bright, ["light", "dark"], "bright", 3)
    assert judge.objects(torch.ones(1, 3, 2, 2)).tolist() == [[1, 0]]
    assert judge.profile.evaluator == "bright"
    assert judge.profile.version == 3
    other = FunctionJudge(lambda x: bright(x) * 0.5, ["light", "dark"], "bright", 3)
    assert other.profile != judge.profile  # other code
    wrong = FunctionJudge(lambda x: x.mean((2, 3)), ["light", "dark"], "three")
    with pytest.raises(BadInput, match=r"the judge three should give \(2, 2\) probabilities, gave \(2, 3\)"):
        wrong.objects(X)
    with pytest.raises(BadInput, match="probabilities from 0 to 1"):
        FunctionJudge(lambda x: bright(x) + 1, ["light", "dark"], "large").objects(X)
    with pytest.raises(BadInput, match="has no source"):
        FunctionJudge(torch.sigmoid, ["light", "dark"], "sigmoid")
    for values, says in (
        ([[], "x"], "a judge needs names"),
        ([["a", "a"], "x"], "each once"),
        ([["a"], " "], "a name"),
    ):
        with pytest.raises(BadInput, match=says):
            FunctionJudge(bright, *values)
    with pytest.raises(BadInput, match="give both or neither"):
        FunctionJudge(bright, ["a"], "x", styles=["b"])


def test_a_judge_is_found_without_being_loaded() -> None:
    cls, own = find_judge("any/model", "resnet50:nosuch")
    assert (cls, own) == (ResNet50Judge, "nosuch")
    with pytest.raises(UnknownName, match="did you mean 'unlearndiff'"):
        find_judge("any/model", "nudenet:unlearndif")
