from dataclasses import dataclass

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Run, prompts_of
from efface.methods.finetune.parameters import select
from efface.models.model import Model


@dataclass(frozen=True)
class Pull(FineTune):
    """Pull the noise under the concept towards that under the empty prompt; keep an average."""

    decay: float = 0.0

    def objective(self, run: Run):
        c = run.contexts([concept.name for concept in run.erase])
        if self.decay:
            run.track_average(self.decay)

        def loss(step):
            z, t = run.noise(self.batch), run.pick(1000, self.batch)
            self_test(run)
            target = run.base.eps(z, t, run.null)
            return ((run.student.eps(z, t, c) - target) ** 2).mean()

        return loss


seen: list[Run] = []


def self_test(run):
    seen[:] = [run]


def train(model, **fields):
    return Pull(**{"steps": 3, "lr": 1e-3, **fields})(model, ["church"])


def test_one_network_in_memory(tiny):
    edit = train(tiny, params="x-strict")
    run, trained = seen[0], set(edit.delta)
    for name, weight in tiny.weights("").items():
        assert run.base.weights("")[name].data_ptr() == weight.data_ptr()
        assert (run.student.weights("")[name].data_ptr() == weight.data_ptr()) == (name not in trained)
    assert edit.meta["training"]["parameters"] == sum(d.numel() for d in edit.delta.values())
    assert all(delta.any() for delta in edit.delta.values())


def test_the_edit_is_the_trained_student(tiny):
    edit = train(tiny)
    z, t, c = torch.randn(1, *tiny.latent_shape), torch.tensor([500]), tiny.encode(["church"])
    with edit.applied(tiny) as edited, torch.no_grad():
        # tiny's own attention is the fused one, so equal up to rounding
        torch.testing.assert_close(edited.eps(z, t, c), seen[0].student.eps(z, t, c), atol=1e-5, rtol=1e-4)


def test_the_model_keeps_flags_and_processors(tiny):
    flags = {name: p.requires_grad for name, p in tiny.weights("").items()}
    train(tiny, gradient_checkpointing=True)
    assert {name: p.requires_grad for name, p in tiny.weights("").items()} == flags
    assert all(p.grad is None for p in tiny.weights("").values())
    assert {type(p) for p in tiny.denoiser.attn_processors.values()} == {AttnProcessor2_0}
    assert {type(p) for p in seen[0].student.denoiser.attn_processors.values()} == {AttnProcessor}
    assert not tiny.denoiser.is_gradient_checkpointing
    assert seen[0].student.denoiser.is_gradient_checkpointing


def test_gradient_checkpointing_changes_nothing(tiny):
    plain, spare = train(tiny), train(tiny, gradient_checkpointing=True)
    for name, delta in plain.delta.items():
        torch.testing.assert_close(spare.delta[name], delta, atol=1e-5, rtol=1e-3)


def test_half_precision_trains_a_float32_master(folder):
    """Ten steps of 1e-6 are lost in bfloat16 weights of 0.1, and are there in the edit."""
    half = Model.load(folder, dtype=torch.bfloat16)
    edit = train(half, steps=10, lr=1e-6)
    assert all(d.dtype == torch.float32 for d in edit.delta.values())
    largest = max(float(d.abs().max()) for d in edit.delta.values())
    assert 5e-6 < largest < 2e-5


def test_autocast_is_close(tiny):
    fp32, bf16 = train(tiny), train(tiny, bf16=True)
    a, b = (torch.cat([d.flatten() for d in edit.delta.values()]) for edit in (fp32, bf16))
    assert 0.5 < float(torch.cosine_similarity(a, b, dim=0)) < 1


def test_float16_is_refused_and_bf16_named(folder):
    with pytest.raises(BadInput, match=r"float16 loses small gradients.*bf16"):
        train(Model.load(folder, dtype=torch.float16))


def test_preparation_computes_as_training_does(tiny):
    """Images and Fisher information are computed inside the same autocast as the loss."""
    found = []

    @dataclass(frozen=True)
    class Prepares(Pull):
        def objective(self, run):
            with torch.no_grad():
                found.append(run.base.denoiser(run.noise(1), 500, run.null.tokens).sample.dtype)
            return super().objective(run)

    for bf16 in (False, True):
        Prepares(steps=1, lr=1e-3, bf16=bf16)(tiny, ["church"])
    assert found == [torch.float32, torch.bfloat16]


def test_accumulated_batches_are_averaged(tiny):
    """Four draws of one latent make a step that no single draw makes; each is drawn anew."""
    accumulated, plain = train(tiny, accumulate=4, optimizer="sgd", lr=1.0), train(tiny, optimizer="sgd", lr=1.0)
    assert accumulated.id != plain.id
    assert len(accumulated.meta["training"]["loss"]) == 3


def test_average_follows_the_student(tiny):
    train(tiny, decay=0.9, steps=2)
    run = seen[0]
    (name, start), final = next(iter(run.base.weights().items())), run.state.history
    name = next(iter(run.weights))
    start = run.base.weights()[name].detach()
    student, mean = run.weights[name].detach(), run.means[name]
    assert torch.equal(run.average.weights()[name].detach(), mean)
    assert float((mean - start).norm()) < 0.3 * float((student - start).norm())
    assert len(final["loss"]) == 2


def test_inside_inference_mode(tiny):
    plain = train(tiny)
    with torch.inference_mode():
        assert train(tiny).id == plain.id


def test_parameter_sets(tiny):
    sizes = {params: len(select(tiny, params)) for params in tiny.family.SETS if "layer" not in params}
    assert sizes["x"] + sizes["u"] + 8 == sizes["full"] == len(tiny.weights())  # time embedding, output
    assert sizes["x-strict"] == len(tiny.text_weights())
    assert sizes["attn"] == sizes["x"] + sizes["selfattn"]
    assert all(name.startswith("unet.mid_block") for name in select(tiny, "unet.mid_block*"))
    with pytest.raises(BadInput, match="matches no weight"):
        train(tiny, params="no_such_layer")


def test_prompts_of_a_concept():
    from efface.concept import Concept

    assert prompts_of(Concept("church"), "name") == ("church",)
    assert prompts_of(Concept("church"), "all") == ("church", "a picture of a church")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be from 1 to 1000000, got 0"),
        ({"batch": 0}, "batch must be from 1 to 4096, got 0"),
        ({"accumulate": 0}, "accumulate must be from 1 to 1000000, got 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"clip": -1.0}, "clip must be from 0 to .*, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be from 0 to 100, got nan"),
    ],
)
def test_bad_input(tiny, fields, message):
    with pytest.raises(BadInput, match=message):
        train(tiny, **fields)
