import torch

from efface.concept import Concept
from efface.methods.negative import NegativePrompt
from efface.models.model import Model
from efface.query import Query

QUERIES = [Query("a red bus", seed, 4) for seed in range(2)]


def reference(model: Model, negative: str) -> torch.Tensor:
    """Generate with diffusers' own negative prompt."""
    return model.pipe(
        [query.prompt for query in QUERIES],
        negative_prompt=[negative] * len(QUERIES),
        num_inference_steps=4,
        generator=[torch.Generator().manual_seed(query.seed) for query in QUERIES],
        output_type="pt",
    ).images


def test_it_equals_the_negative_prompt_of_diffusers(tiny: Model):
    with NegativePrompt()(tiny, ["church", "dog"]).applied(tiny) as guarded:
        assert (guarded.generate(QUERIES) - reference(tiny, "church, dog")).abs().max() <= 1e-6
    with NegativePrompt("the neon house")(tiny, "church").applied(tiny) as guarded:
        assert (guarded.generate(QUERIES) - reference(tiny, "the neon house")).abs().max() <= 1e-6


def test_the_text_names_the_concepts(tiny: Model):
    concepts = [Concept("church"), Concept("neon", kind="style")]
    assert NegativePrompt().text(concepts) == "church, neon"
    assert NegativePrompt("x").text(concepts) == "x"


def test_it_costs_no_third_pass(tiny: Model):
    sizes = []
    handle = tiny.denoiser.register_forward_hook(lambda _module, args, _out: sizes.append(len(args[0])))
    with NegativePrompt()(tiny, "church").applied(tiny) as guarded:
        guarded.sample([Query("a", steps=3, solver="ddim")])
    handle.remove()
    assert sizes == [2, 2, 2]


def test_without_guidance_it_does_nothing(tiny: Model):
    queries = [Query("a red bus", 0, 3, 1.0)]
    with NegativePrompt()(tiny, "church").applied(tiny) as guarded:
        assert torch.equal(guarded.generate(queries), tiny.generate(queries))
