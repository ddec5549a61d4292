"""The sampling loop gives the images of the diffusers pipeline."""

import pytest
import torch
from torch import Tensor

from efface.context import Context
from efface.edits.guard import Guard, Hooks
from efface.errors import BadInput
from efface.method import InferenceMethod
from efface.models import sampling, schedulers
from efface.models.model import Model
from efface.query import Query

PROMPTS = ["a church", "a dog in the style of neon", "a red bus"]
numpy_2 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers


def reference(model: Model, queries: list[Query], **options) -> Tensor:
    """Generate with the diffusers pipeline; the queries share steps, guidance and solver."""
    pipe, first = model.pipe, queries[0]
    pipe.scheduler = schedulers.make(pipe, first.solver)  # of this test's own copy of the pipeline
    return pipe(
        [query.prompt for query in queries],
        num_inference_steps=first.steps,
        guidance_scale=first.guidance,
        generator=[torch.Generator().manual_seed(query.seed) for query in queries],
        **{"output_type": "latent", **options},
    ).images


@numpy_2
@pytest.mark.parametrize("guidance", [7.5, 3.3, 1.0])
@pytest.mark.parametrize("name", ["", "ddim", "pndm", "dpm++", "euler", "euler-a", "heun", "unipc", "lms", "ddpm"])
def test_latents_equal_those_of_diffusers(tiny: Model, name: str, guidance: float):
    queries = [Query(prompt, seed, 5, guidance, solver=name) for seed, prompt in enumerate(PROMPTS)]
    ours = tiny.sample(queries)
    theirs = reference(tiny, queries)
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= 2e-6 * scale


@numpy_2
@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("name", ["", "ddim", "dpm++"])
def test_v_prediction_equals_that_of_diffusers(tiny2: Model, name: str, guidance: float):
    queries = [Query(prompt, seed, 5, guidance, solver=name) for seed, prompt in enumerate(PROMPTS)]
    assert tiny2.family.schedule.output == "v_prediction"
    ours = tiny2.sample(queries)
    theirs = reference(tiny2, queries)
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_images_equal_those_of_diffusers(tiny: Model):
    queries = [Query(prompt, seed, 5) for seed, prompt in enumerate(PROMPTS)]
    assert (tiny.generate(queries) - reference(tiny, queries, output_type="pt")).abs().max() <= 1e-6


class Passing(InferenceMethod):
    """Guidance hook that changes nothing, so that the loop converts to eps and back."""

    def start(self, model: Model, erase) -> Hooks:
        return Hooks(guide=lambda eps, x, t, cond, uncond: (cond + 0, uncond))


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler"])
def test_a_guide_sees_eps_whatever_the_model_predicts(tiny2: Model, name: str):
    queries = [Query("a church", 1, 6, solver=name)]
    plain = tiny2.sample(queries)
    passed = tiny2.guarded(Guard(Passing(), ())).sample(queries)
    assert (plain - passed).abs().max() <= 2e-5 * plain.abs().max()


def test_queries_of_one_batch_must_share_steps_and_solver(tiny: Model):
    with pytest.raises(BadInput, match="share"):
        tiny.sample([Query("a", steps=2), Query("a", steps=3)])
    with pytest.raises(BadInput, match="steps 0 to 9"):
        tiny.sample([Query("a", steps=2)], stop=9)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_stopping_half_way_and_going_on_is_going_all_the_way(tiny: Model, name: str):
    queries = [Query("a church", 1, 6, solver=name), Query("a dog", 2, 6, solver=name)]
    half = tiny.sample(queries, stop=3)
    whole = tiny.sample(queries, start=3, latents=half)
    assert (whole - tiny.sample(queries)).abs().max() <= 1e-5 * whole.abs().max()
    t = tiny.timesteps(6, name)[3]
    alpha, sigma = tiny.levels(t)
    assert float((alpha**2 + sigma**2).squeeze()) == pytest.approx(1)
    assert tiny.eps(half, t, tiny.encode(["a"])).isfinite().all()


def test_stopping_before_the_first_step_gives_the_noise(tiny: Model):
    generator = torch.Generator().manual_seed(5)
    noise = tiny.sample([Query("a church", 5, solver="ddim")], stop=0)
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=generator))
    euler = tiny.sample([Query("a church", 5, solver="euler")], stop=0)
    assert float(euler.std()) == pytest.approx(float(noise.std()), rel=1e-2)


def test_gradients_go_through_the_whole_loop(tiny: Model):
    tokens = tiny.encode(["a church"]).tokens.detach().requires_grad_()
    latents = tiny.sample([Query("", 0, 3, context=Context(tokens))], grad=True)
    latents.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0


def test_what_is_sampled_can_be_trained_on(tiny: Model):
    z = tiny.sample([Query("a church", 0, 4)], stop=2)
    assert not z.is_inference()
    weight = tiny.weights()[tiny.text_weights()[0]].requires_grad_()
    tiny.eps(z, 500, tiny.encode(["a church"])).sum().backward()
    assert weight.grad is not None


def test_a_context_stands_for_the_prompt_that_it_encodes(tiny: Model):
    context = tiny.encode(["a church"])
    by_text = tiny.generate([Query("a church", 1, 3)])
    assert (tiny.generate([Query("x", 1, 3, context=context)]) - by_text).abs().max() <= 1e-5
    with pytest.raises(BadInput, match="the context has shape"):
        tiny.generate([Query("x", context=Context(torch.zeros(1, 5, 32)))])
    with pytest.raises(BadInput, match="reads"):
        tiny.generate([Query("x", context=Context(torch.zeros(1, 16, 31)))])


class Counter:
    """Count the calls of a module and the images of each."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.sizes: list[int] = []
        self.handle = module.register_forward_hook(lambda _module, args, _out: self.sizes.append(len(args[0])))

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_error: object) -> None:
        self.handle.remove()


def test_the_unconditional_half_is_skipped_without_guidance(tiny: Model):
    with Counter(tiny.denoiser) as calls:
        tiny.sample([Query("a", 0, 3, 1.0, solver="ddim"), Query("a dog", 0, 3, 1.0, solver="ddim")])
        tiny.sample([Query("a", 0, 3, 2.0, solver="ddim"), Query("a dog", 0, 3, 1.0, solver="ddim")])
    assert calls.sizes == [2, 2, 2, 4, 4, 4]


def test_each_distinct_prompt_is_encoded_once(tiny: Model):
    with Counter(tiny.part("text_encoder")) as calls:
        tiny.generate([Query(prompt, seed, 2) for seed in range(3) for prompt in ("a", "a dog")], batch=2)
    assert sum(calls.sizes) == 3  # "a", "a dog" and ""


def test_groups_share_settings_and_keep_to_the_batch():
    queries = [Query("a", steps=steps, guidance=guidance) for steps in (2, 3) for guidance in (1.0, 2.0, 3.0)]
    groups = sampling.groups(queries, 1)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert sampling.groups(queries, 8) == [[0], [1, 2], [3], [4, 5]]
