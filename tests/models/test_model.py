import warnings

import pytest
import torch
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.edits.guard import Guard, Hooks
from efface.method import InferenceMethod
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.models.model import Model
from efface.query import Query

TOLERANCE = 1e-5  # between batches of different sizes: matrix products round differently


def test_the_text_matters(tiny: Model, tiny2: Model):
    """Without this the other tests would pass vacuously."""
    for model in (tiny, tiny2):
        church, dog = model.generate([Query("a church", 0, 4), Query("a dog", 0, 4)])
        assert (church - dog).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_image_bit_for_bit(tiny: Model):
    queries = [Query("a church", seed, 4) for seed in range(3)]
    images = tiny.generate(queries)
    assert torch.equal(images, tiny.generate(queries))
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert (images[0] - images[1]).abs().max() > 1e-2


def test_an_image_does_not_depend_on_its_batch_order_or_company(tiny: Model):
    queries = [
        Query(prompt, seed, steps, guidance)
        for seed, (prompt, steps, guidance) in enumerate(
            [("a church", 4, 7.5), ("a dog", 3, 7.5), ("", 4, 1.0), ("a red bus", 4, 2.0), ("a church", 3, 1.0)]
        )
    ]
    together = tiny.generate(queries)
    alone = torch.cat([tiny.generate([query]) for query in queries])
    backwards = tiny.generate(queries[::-1], batch=2).flip(0)
    assert (together - alone).abs().max() <= TOLERANCE
    assert (together - backwards).abs().max() <= TOLERANCE


def test_no_queries_give_no_images(tiny: Model):
    assert len(tiny.generate([])) == 0


def test_global_seeds_are_neither_used_nor_changed(tiny: Model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    images = tiny.generate([Query("a church", 0, 2, solver="euler-a")])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(tiny.generate([Query("a church", 0, 2, solver="euler-a")]), images)


def test_eps_is_epsilon_for_every_kind_of_model(tiny2: Model):
    x, c = torch.randn(2, 4, 8, 8), tiny2.encode(["a church", "a dog"])
    t = torch.tensor([300, 700])
    alpha, sigma = tiny2.levels(t)
    v = tiny2.denoiser(x, t, encoder_hidden_states=c.tokens).sample
    assert torch.allclose(tiny2.eps(x, t, c), alpha * v + sigma * x, atol=1e-6)
    assert alpha.shape == (2, 1, 1, 1)


def test_eps_takes_one_time_and_one_context_for_many(tiny: Model):
    x, c = torch.randn(3, 4, 8, 8), tiny.encode(["a church"])
    one = tiny.eps(x, 500, c)
    many = tiny.eps(x, torch.tensor([500, 500, 500]), c.expand(3))
    assert torch.allclose(one, many, atol=1e-6)


def test_shapes_are_checked_in_tests(tiny: Model):
    with pytest.raises(Exception, match="Type-check error"):
        tiny.eps(torch.randn(4, 8, 8), 500, tiny.encode(["a"]))


def test_denoise_without_guards_is_two_predictions(tiny: Model):
    x, c, null = torch.randn(2, 4, 8, 8), tiny.encode(["a church", "a dog"]), tiny.encode([""])
    cond, uncond = tiny.denoise(x, 400, c, null)
    assert torch.allclose(cond, tiny.eps(x, 400, c), atol=1e-6)
    assert torch.allclose(uncond, tiny.eps(x, 400, null), atol=1e-6)
    times = torch.tensor([100, 900])
    cond, uncond = tiny.denoise(x, times, c, null)
    assert torch.allclose(cond, tiny.eps(x, times, c), atol=1e-6)


CHURCH = (Concept("church"),)


@pytest.mark.parametrize("method", [NegativePrompt(), SLD(warmup=0), SLD.preset("max")], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("t", [500, torch.tensor([200, 800])], ids=["one time", "many"])
def test_denoise_is_differentiable_through_guards(tiny: Model, method: InferenceMethod, t):
    guarded = tiny.guarded(Guard(method, CHURCH))
    c = Context(tiny.encode(["a church", "a dog"]).tokens.detach().requires_grad_())
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cond, uncond = guarded.denoise(x, t, c, tiny.encode([""]))
    (uncond + 7.5 * (cond - uncond)).square().sum().backward()
    for leaf in (x, c.tokens):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def twice(c: Context, times: int) -> Context:
    return c.map(lambda value: value * 2**times)


def more(c: Context, by: int) -> Context:
    return c.map(lambda value: value + by)


class Double(InferenceMethod):
    """Guard with a visible effect in all four hooks."""

    def start(self, model: Model, erase) -> Hooks:
        def guide(eps, x, t, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
            return cond * 2, uncond + eps(x, t, model.encode(["a dog"]))

        return Hooks(
            embed=lambda c: twice(c, 1), null=lambda c: more(c, 1), guide=guide, filter=lambda images: images / 2
        )


def test_hooks_act_in_their_four_places_and_compose_in_order(tiny: Model):
    x, c, null = torch.randn(1, 4, 8, 8), tiny.encode(["a church"]), tiny.encode([""])
    one = tiny.guarded(Guard(Double(), ()))
    cond, uncond = one.denoise(x, 300, c, null)
    dog = tiny.eps(x, 300, tiny.encode(["a dog"]))
    assert torch.allclose(cond, 2 * tiny.eps(x, 300, twice(c, 1)), atol=1e-5)
    assert torch.allclose(uncond, tiny.eps(x, 300, more(null, 1)) + dog, atol=1e-5)
    two = one.guarded(Guard(Double(), ()))
    cond, uncond = two.denoise(x, 300, c, null)
    assert torch.allclose(cond, 4 * tiny.eps(x, 300, twice(c, 2)), atol=1e-4)
    assert torch.allclose(uncond, tiny.eps(x, 300, more(null, 2)) + 2 * dog, atol=1e-4)
    assert one.generate([Query("a church", 0, 2)]).max() <= 0.5
    assert len(two.guards) == 2
    assert not tiny.guards


def test_tokens_say_where_the_words_are(tiny: Model):
    tokens = tiny.tokens("a church")
    assert len(tokens.ids) == 16
    assert (tokens.subject, tokens.eos) == (2, 3)
    decode = tiny.part("tokenizer").convert_ids_to_tokens
    assert decode(tokens.ids[tokens.subject]) == "church</w>"
    assert decode(tokens.ids[tokens.eos]) == "<|endoftext|>"
    assert tiny.tokens("").subject == 0


def test_a_prompt_that_is_cut_off_is_warned_of(tiny: Model):
    long = " ".join(["church"] * 20)
    with pytest.warns(UserWarning, match="prompt cut off: 22 tokens, 16 fit: 'church church"):
        c = tiny.encode([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(c.tokens, tiny.encode([" ".join(["church"] * 14)]).tokens, atol=1e-5)


def test_encode_equals_that_of_diffusers(tiny: Model):
    theirs, _ = tiny.pipe.encode_prompt(["a church", "a dog"], "cpu", 1, False)
    assert torch.equal(tiny.encode(["a church", "a dog"]).tokens, theirs)


def test_text_weights_are_found_from_the_modules(tiny: Model):
    names = tiny.text_weights()
    assert len(names) == 8
    assert all(".attn2.to_" in name for name in names)
    assert [name for name in names if "down" in name] == names[:2]
    weights = tiny.weights()
    assert all(weights[name].shape[1] == tiny.width == 32 for name in names)


def test_weights_are_the_parameters_themselves(tiny: Model):
    unet = tiny.weights()
    assert all(name.startswith("unet.") for name in unet)
    assert unet["unet.conv_in.weight"] is tiny.denoiser.conv_in.weight
    everything = tiny.weights("")
    assert {name.partition(".")[0] for name in everything} == {"unet", "text_encoder", "vae"}
    assert set(tiny.weights("text_encoder.")) == {name for name in everything if name.startswith("text_encoder.")}
    assert set(tiny.weights("unet.mid_block")) == {name for name in unet if name.startswith("unet.mid_block")}
    assert not any(weight.requires_grad for weight in everything.values())


def test_encode_images_and_decode_are_the_autoencoders(tiny: Model):
    images = torch.rand(2, 3, 16, 16)
    latents = tiny.encode_images(images)
    assert latents.shape == (2, 4, 8, 8)
    mode = tiny.part("vae").encode(images * 2 - 1).latent_dist.mode() * tiny.part("vae").config.scaling_factor
    assert torch.equal(latents, mode)
    assert tiny.decode(latents).shape == (2, 3, 16, 16)


def test_the_autoencoder_takes_a_few_at_a_time(tiny: Model, monkeypatch):
    latents, images = torch.randn(3, 4, 8, 8), torch.rand(3, 3, 16, 16)
    whole, encoded, sizes = tiny.decode(latents), tiny.encode_images(images), []
    monkeypatch.setattr("efface.models.family.VAE_AREA", 128)  # two latents of 8 by 8
    hooks = [
        part.register_forward_hook(lambda _, given, out: sizes.append(len(given[0])))
        for part in (tiny.part("vae").encoder, tiny.part("vae").decoder)
    ]
    assert (tiny.decode(latents) - whole).abs().max() <= TOLERANCE
    assert (tiny.encode_images(images) - encoded).abs().max() <= TOLERANCE
    assert sizes == [2, 1, 2, 1]
    for hook in hooks:
        hook.remove()


def test_the_id_covers_weights_schedule_and_guards(tiny: Model, tiny2: Model, folder):
    assert tiny.id == Model.load(folder).id
    assert tiny.id == Model(tiny.pipe).id
    assert tiny.id != tiny2.id
    guarded = [tiny.guarded(Guard(NegativePrompt(prompt), CHURCH)).id for prompt in ("", "x")]
    assert len({tiny.id, *guarded}) == 3
    other = Model(tiny.pipe)
    other.pipe.scheduler = type(other.pipe.scheduler).from_config(other.pipe.scheduler.config, beta_end=0.013)
    assert other.id != tiny.id


def test_fingerprints_are_of_the_named_weights(tiny: Model, folder):
    names = tiny.text_weights()[:2]
    known = tiny.fingerprint(names)
    assert known == tiny.fingerprint(names[::-1])
    assert known != tiny.fingerprint(names[:1])
    assert known == Model.load(folder, dtype=torch.bfloat16).fingerprint(names)
    weight = tiny.weights()[names[0]]
    before = weight.clone()
    weight.mul_(1.01)
    assert tiny.fingerprint(names) != known
    weight.copy_(before)
    assert tiny.fingerprint(names) == known


def test_half_precision_draws_nearly_the_same(tiny: Model, folder):
    half = Model.load(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    queries = [Query("a church", seed, 4) for seed in range(3)]
    images = half.generate(queries)
    assert images.dtype == torch.float32
    assert (images - tiny.generate(queries)).abs().mean() < 0.02
    assert half.eps(torch.randn(1, 4, 8, 8), 500, half.encode(["a"])).dtype == torch.float32


def test_the_model_prints_shortly(tiny: Model):
    assert "StableDiffusionPipeline" not in repr(tiny)
    assert tiny.name in repr(tiny)
