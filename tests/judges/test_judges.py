"""Every judge of the folder: one declaration, found by the model it judges, differentiable when gradients are on."""

import pytest
import torch

from efface import registry
from efface.errors import BadInput, BadModel, UnknownName
from efface.judge import Judge, Profile, judge_of
from efface.judges.digits import DigitJudge
from efface.judges.mini import MiniJudge
from efface.judges.mini import judge as mini_judge

EVERY = [
    (model, name)
    for file in registry.names("judges")
    for model in registry.get("judges", file).MODELS
    for name in registry.get("judges", file).NAMES
]
USERS = [("", name) for name in ("resnet50", "clip_zero_shot", "function")]  # with files of the user: conftest


@pytest.fixture
def built(users):
    """Return (model, name) -> a judge that is found by its model, or that is made from the user's files."""
    return lambda model, name: judge_of(model, name) if model else users(name)


def test_the_contract_covers_every_file() -> None:
    """NudeNet's judge gives verdicts and has no gradients; it has tests of its own."""
    with_models = {name for name in registry.names("judges") if registry.get("judges", name).MODELS}
    assert with_models | {name for _, name in USERS} | {"nudenet"} == set(registry.names("judges"))


def images(judge: Judge, n: int = 3) -> torch.Tensor:
    side = judge.profile.input or 32
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "name"), EVERY + USERS)
def test_every_judge_keeps_the_contract(model: str, name: str, built) -> None:
    judge = built(model, name)
    assert isinstance(judge, Judge)
    assert isinstance(judge.profile, Profile)
    assert judge.profile.sha256
    assert judge.profile.classes == len(judge.classes)
    for kind in ("object", "style"):
        probabilities = judge.probabilities(images(judge), kind)
        assert probabilities.shape == (3, len(judge.names(kind)))
        assert probabilities.dtype == torch.float32
        if judge.names(kind):
            torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
            assert judge.index(judge.names(kind)[-1], kind) == len(judge.names(kind)) - 1
    assert hash(judge.profile.model_dump_json())
    assert Profile.model_validate_json(judge.profile.model_dump_json()) == judge.profile


@pytest.mark.parametrize(("model", "name"), EVERY + USERS)
def test_every_judge_is_differentiable_and_the_same_without(model: str, name: str, built) -> None:
    judge = built(model, name)
    assert judge.differentiable
    x = images(judge).requires_grad_()
    with_grad = judge.objects(x)
    with_grad[:, 0].log().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    with torch.no_grad():
        plain = judge.objects(x)
    with torch.inference_mode():
        inference = judge.objects(images(judge))
    assert not plain.requires_grad
    assert torch.equal(plain, with_grad)
    assert torch.equal(inference, plain)


def test_a_judge_loaded_in_inference_mode_is_differentiable_too() -> None:
    mini_judge.cache_clear()
    with torch.inference_mode():
        judge_of("mini").objects(torch.rand(1, 3, 64, 64))
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    judge_of("mini").objects(x)[:, 0].sum().backward()
    assert x.grad is not None


def test_judges_are_found_by_the_model() -> None:
    assert isinstance(judge_of("mini"), MiniJudge)
    first, second = judge_of("digits:mnist"), judge_of("digits:mnist", "judge2")
    assert first.profile.evaluator == "digits-mnist-judge"
    assert second.profile.evaluator == "digits-mnist-judge2"
    assert first.profile.sha256 != second.profile.sha256
    assert isinstance(first, DigitJudge)
    assert first.accuracy is not None
    right, count = first.accuracy
    assert count == 1000
    assert right > 980


def test_a_model_without_a_judge_gets_the_list_of_models_with_one(tmp_path) -> None:
    with pytest.raises(BadInput, match=r"no judge for somewhere/else: .*digits:mnist.*mini"):
        judge_of("somewhere/else")
    with pytest.raises(UnknownName, match="did you mean 'judge'"):
        judge_of("digits:mnist", "judge3")
    with pytest.raises(UnknownName, match="class of the judge 'churhc'"):
        judge_of("mini").index("churhc")
    with pytest.raises(BadModel, match="no weights"):
        DigitJudge.load("digits:mnist", "judge", tmp_path)
    with pytest.raises(BadInput, match="has no CLIP"):
        judge_of("digits:mnist").clip_score(torch.rand(1, 3, 28, 28), ["0"])
