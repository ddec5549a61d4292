"""Concept Inversion: its loss by hand, its gradients through guards, and independent rows."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from efface.attack import Target
from efface.attacks.inversion import Inversion
from efface.attacks.search import inverting
from efface.attacks.search.inverting import TEMPLATES, Words, invert
from efface.attacks.search.objective import Objective, draw
from efface.attacks.search.phrases import phrase, queries_with
from efface.attacks.search.pictures import pictures
from efface.concept import Concept
from efface.edits.guard import Guard, Hooks, MapGuard
from efface.errors import BadInput, UnknownName
from efface.method import InferenceMethod
from efface.methods.negative import NegativePrompt
from efface.methods.sld import SLD
from efface.models.token_vectors import encode, ids_of, slots, table
from efface.query import Query
from efface.training.checkpoints import checkpoints
from efface.training.loop import generator

CHURCH = Concept("church")
LIKE = Query("a photo of a church", steps=2, guidance=2.0)


def moved(model, scale=0.05):
    """Return the model with other weights in its denoiser."""
    rng = torch.Generator().manual_seed(0)
    news = {n: w.detach() + scale * torch.randn(w.shape, generator=rng) for n, w in model.weights().items()}
    return model.edited(news, id=f"moved by {scale}")


def guard(kind, model):
    if kind == "map":
        rng = torch.Generator().manual_seed(5)
        left, right = 0.3 * torch.randn(32, 2, generator=rng), torch.randn(2, 32, generator=rng)
        return MapGuard(left.to(model.dtype), right.to(model.dtype))
    method = {"negative": NegativePrompt(), "sld": SLD.preset("max"), "sld-legacy": SLD(warmup=7, legacy=True)}[kind]
    return Guard(method, (CHURCH,))


class Placeholder:
    """A word of the vocabulary, "wolf", whose row in a copy of the text encoder's table is learned."""

    def __init__(self, model, vector):
        self.pipe = copy.copy(model.pipe)
        self.pipe.text_encoder = copy.deepcopy(model.pipe.text_encoder)
        self.table = self.pipe.text_encoder.get_input_embeddings().weight
        self.row = ids_of(model, "wolf")[0]
        with torch.no_grad():
            self.table[self.row] = vector
        self.table.requires_grad_(True)

    def context(self, template):
        ids = self.pipe.tokenizer(
            template.format("wolf"), padding="max_length", max_length=16, return_tensors="pt"
        ).input_ids
        return self.pipe.text_encoder(ids)[0]


def drawn(model, latents, seed, row, step, i, texts, window=0):
    """Draw one row's caption, picture, times and noise by hand."""
    rng = generator(seed, "row", row, step, i)
    text = texts[int(torch.randint(len(texts), (1,), generator=rng))]
    picture = int(torch.randint(len(latents), (1,), generator=rng))
    if window:
        first = int(torch.randint(1000 - 90 + 1, (1,), generator=rng))
        times = sorted((first + torch.randperm(90, generator=rng)[:window]).tolist(), reverse=True)
    else:
        times = [int(torch.randint(1000, (1,), generator=rng))]
    return text, latents[picture : picture + 1], torch.randn(1, 4, 8, 8, generator=rng), times


def by_hand(kind, edited, original, attack, latents, starts, seed):
    """Train every row with torch's AdamW on a table whose other rows stay, and return vectors and losses."""
    texts, found, losses = TEMPLATES["object"], [], []
    alphas = edited.pipe.scheduler.alphas_cumprod
    unet, base = edited.pipe.unet, original.pipe.unet
    null, name, wanted = (original.encode([text]).tokens for text in ("", "church", CHURCH.texts[0]))

    def noised(x, noise, t):
        return alphas[t].sqrt() * x + (1 - alphas[t]).sqrt() * noise

    def error(c, x, noise, times):
        t = times[-1]
        x_t = noised(x, noise, t)
        if kind in ("edit", "map"):
            return unet(x_t, t, c)[0] - noise
        target = base(x_t, t, null)[0] + 7.5 * (base(x_t, t, wanted)[0] - base(x_t, t, null)[0])
        if kind == "negative":
            uncond = unet(x_t, t, name)[0]
            return uncond + 7.5 * (unet(x_t, t, c)[0] - uncond) - target
        momentum, out = torch.zeros_like(x), None
        for t in times:
            x_t = noised(x, noise, t)
            uncond, cond, unsafe = (unet(x_t, t, one)[0] for one in (null, c, name))
            scale = (5000 * (cond - unsafe).abs()).clamp(max=1)
            scale = torch.where(cond - unsafe >= 1.0, torch.zeros_like(scale), scale)
            safety = scale * (unsafe - uncond) + 0.5 * momentum
            momentum = 0.7 * momentum + 0.3 * safety
            out = uncond + 7.5 * (cond - uncond - safety)
        return out - target

    for row, start in enumerate(starts):
        word = Placeholder(edited, start)
        adam = torch.optim.AdamW([word.table], lr=attack.lr, weight_decay=attack.weight_decay)
        kept = word.table.detach().clone()
        mask = torch.arange(len(kept)) != word.row
        for step in range(attack.steps):
            adam.zero_grad()
            parts = []
            for i in range(attack.batch):
                window = attack.window if kind == "sld" else 0
                text, x, noise, times = drawn(edited, latents, seed, row, step, i, texts, window)
                c = word.context(text)
                if kind == "map":
                    g = edited.guards[0]
                    c = c @ (torch.eye(32) + g.left @ g.right).T
                parts.append(error(c, x, noise, times).square().mean())
            loss = torch.stack(parts).mean()
            loss.backward()
            adam.step()
            with torch.no_grad():
                word.table[mask] = kept[mask]
        found.append(word.table[word.row].detach())
        losses.append(float(loss.detach()))
    return torch.stack(found), torch.tensor(losses)


@pytest.mark.parametrize("kind", ["edit", "negative", "sld", "map"])
def test_steps_by_hand(tiny, kind):
    """Steps of AdamW on the loss of the un-erased pictures, for weights that have moved and through each guard."""
    edited = moved(tiny)
    if kind != "edit":
        edited = edited.guarded(guard(kind, tiny))
    steps = 1 if kind == "sld" else 2
    attack = Inversion(attempts=2, steps=steps, batch=2, images=3, window=3, lr=0.1, weight_decay=0.3)
    found = attack(Target(edited, original=tiny), CHURCH, LIKE, seed=7)

    seeds = [generator(7, "pictures", i).initial_seed() for i in range(3)]
    latents = tiny.sample([Query(CHURCH.texts[0], seed=seed, steps=2, guidance=2.0) for seed in seeds])
    first = table(tiny)[ids_of(tiny, "church")]
    noise = torch.randn(1, 32, generator=generator(7, "start", 1))
    starts = torch.cat([first[:1], first[:1] + 0.5 * table(tiny).std() * noise])
    vectors, losses = by_hand(kind, edited, tiny, attack, latents, starts, 7)

    order = found.tensors["order"]
    torch.testing.assert_close(found.tensors["vectors"][:, 0], vectors[order], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(-torch.tensor(found.scores), losses[order], atol=1e-5, rtol=1e-4)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    # what is returned is the learned vector in the name's place of the query's own prompt, in the edited model
    context = Placeholder(edited, found.tensors["vectors"][0, 0]).context("a photo of a {}")
    torch.testing.assert_close(found.queries[0].context.tokens, context.detach(), atol=1e-4, rtol=1e-4)
    assert found.queries[0].prompt == "a photo of a <*>"


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("kind", ["negative", "sld", "sld-legacy", "map"])
@pytest.mark.parametrize("loss", ["noise", "score"])
def test_gradients_through_guards_agree_with_finite_differences(tiny, kind, loss, through):
    """In float64, along a random direction; with the momentum held, its value does not follow the vectors."""
    if not through and not (kind == "sld" and loss == "score"):
        pytest.skip("only a guard with momentum has any to hold")
    pipe = copy.copy(tiny.pipe)
    pipe.unet, pipe.text_encoder = (copy.deepcopy(part).double() for part in (pipe.unet, pipe.text_encoder))
    model = replace(tiny, pipe=pipe)
    edited = moved(model).guarded(guard(kind, model))
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=rng).double()
    wanted = model.encode([CHURCH.texts[0]])
    objective = Objective(Target(edited, original=model), latents, loss, wanted, 3.0, 3, through)
    at = objective.draw([generator("fd", i) for i in range(2)])
    captions = slots(model, TEMPLATES["object"][:2], 2)
    vectors = torch.randn(2, 2, 32, generator=rng).double() * 0.5
    direction = torch.randn(2, 2, 32, generator=rng).double()

    def value(step):
        return objective(encode(edited, captions, vectors + step * direction), at)

    steps = torch.zeros(2, 1, 1, dtype=torch.float64, requires_grad=True)  # rows are independent
    (slopes,) = torch.autograd.grad(value(steps).sum(), steps)
    with torch.no_grad():
        measured = (value(1e-6) - value(-1e-6)) / 2e-6
    close = torch.isclose(slopes.flatten(), measured, rtol=1e-5, atol=1e-9)
    assert bool(close.all()) == through
    assert measured.abs().min() > 1e-4


def test_auto_is_score_where_the_guided_prediction_is_changed(tiny):
    def matches(*guards, loss="auto"):
        return Objective(Target(tiny.guarded(*guards), original=tiny), torch.zeros(1, 4, 8, 8), loss).matches_score

    church = (CHURCH,)
    assert not matches()
    assert not matches(guard("map", tiny))  # the same model as its weight edit, so the same attack
    assert matches(Guard(NegativePrompt(), church))
    assert matches(guard("map", tiny), Guard(SLD(), church))
    assert not matches(Guard(NegativePrompt(), church), loss="noise")
    assert matches(loss="score")


def test_a_map_of_the_text_is_attacked_as_its_weight_edit(tiny):
    g = guard("map", tiny)
    change = torch.eye(32) + g.left @ g.right
    weights = {name: tiny.weights()[name].detach() @ change for name in tiny.text_weights()}
    attack = Inversion(steps=2, batch=2, images=2)
    ends = [
        attack(Target(model, original=tiny), CHURCH, LIKE).tensors["vectors"]
        for model in (tiny.edited(weights), tiny.guarded(g))
    ]
    torch.testing.assert_close(*ends, atol=1e-3, rtol=1e-3)


def test_window(tiny):
    """35 distinct timesteps of 90, noisiest first; the last is the row's own; every start is drawn."""
    at = draw(tiny, torch.zeros(3, 4, 8, 8), [generator("w", i) for i in range(200)], 35)
    times = torch.cat([at.before, at.t[:, None]], 1)
    assert times.shape == (200, 35)
    assert bool((times.diff(dim=1) < 0).all())
    assert int((times[:, 0] - times[:, -1]).max()) < 90
    assert int(times.min()) >= 0
    assert int(times.max()) <= 999
    assert int(times[:, 0].max()) > 985
    assert int(times[:, -1].min()) < 20
    plain = draw(tiny, torch.zeros(3, 4, 8, 8), [generator("w", i) for i in range(50)])
    assert plain.before.shape == (50, 0)
    assert int(plain.t.max()) > 900
    assert int(plain.t.min()) < 100


def test_calls_are_those_made(tiny):
    for kind, loss, guidance in [("edit", "noise", 7.5), ("negative", "score", 7.5), ("negative", "score", 1.0),
                                 ("sld", "score", 7.5), ("sld", "noise", 7.5), ("edit", "score", 7.5)]:  # fmt: skip
        model = copy.deepcopy(tiny.pipe.unet)
        pipe = copy.copy(tiny.pipe)
        pipe.unet = model
        bare, made = replace(tiny, pipe=pipe), []
        model.register_forward_hook(lambda module, inputs, out, made=made: made.append(len(inputs[0])))
        edited = bare if kind == "edit" else bare.guarded(guard(kind, tiny))
        objective = Objective(
            Target(edited, original=bare), torch.zeros(1, 4, 8, 8), loss, bare.encode(["a church"]), guidance, 5
        )
        objective(bare.encode(["a dog", "a dog"]), objective.draw([generator(0), generator(1)]))
        assert sum(made) == 2 * objective.calls, (kind, loss)


@pytest.mark.slow
def test_rows_do_not_depend_on_others(tiny):
    """Attempts in one batch, in parts, fewer of them, and one alone end at the same vectors."""
    edited = moved(tiny).guarded(guard("negative", tiny))
    target = Target(edited, original=tiny)
    attack = Inversion(attempts=3, steps=1, batch=2, images=2, lr=0.05)

    def run(attack, words=None):
        words = words or Words.beside(edited, "church", 1, attack.attempts, 3)
        return invert(attack, target, CHURCH, [LIKE], words, 3)

    every = run(attack)
    for other, rows in [(replace(attack, at_once=5), 3), (replace(attack, at_once=1, attempts=1), 1)]:
        torch.testing.assert_close(run(other).vectors, every.vectors[:rows], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(run(other).losses, every.losses[:rows], atol=1e-5, rtol=1e-4)
    parts = run(replace(attack, at_once=5))
    assert parts.history == pytest.approx(every.history, rel=1e-4)  # the rows' mean, whatever a step is made in
    words = Words.beside(edited, "church", 1, 3, 3)
    alone = run(attack, Words(words.vectors[2:], (2,)))
    torch.testing.assert_close(alone.vectors, every.vectors[2:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(every.vectors[0], every.vectors[1], atol=1e-2)


def test_scores_are_the_mean_of_the_last_tenth(tiny):
    attack = Inversion(steps=20, batch=1, images=1, lr=0.1)
    found = attack(Target(tiny, original=tiny), CHURCH, LIKE)
    assert -found.scores[0] == pytest.approx(sum(found.about["loss"][-2:]) / 2, rel=1e-5)
    assert len(found.about["loss"]) == 20


def test_it_resumes_bit_for_bit(tiny, tmp_path, monkeypatch):
    edited, attack = moved(tiny), Inversion(attempts=2, steps=5, batch=1, images=2)
    target = Target(edited, original=tiny)
    whole = attack(target, CHURCH, LIKE)
    made, real = [], inverting.encode

    def stops(*args):
        made.append(1)
        if len(made) > 3:
            raise KeyboardInterrupt
        return real(*args)

    with checkpoints(tmp_path, every=1):
        with monkeypatch.context() as patch:
            patch.setattr(inverting, "encode", stops)
            with pytest.raises(KeyboardInterrupt):
                attack(target, CHURCH, LIKE)
        resumed = attack(target, CHURCH, LIKE)
        with pytest.raises(BadInput, match="another run"):
            attack(Target(moved(tiny, 0.1), original=tiny), CHURCH, LIKE)
        with pytest.raises(BadInput, match="another run"):
            attack(target, CHURCH, replace(LIKE, steps=3))
    assert torch.equal(resumed.tensors["vectors"], whole.tensors["vectors"])
    assert resumed.scores == whole.scores
    assert resumed.about == whole.about


def test_sdxl(tiny_xl):
    """Both encoders' vectors are learned side by side, and so is the pooled one."""
    attack = Inversion(vectors=2, attempts=2, steps=2, batch=1, images=2)
    found = attack(Target(tiny_xl.guarded(Guard(NegativePrompt(), (CHURCH,))), original=tiny_xl), CHURCH, LIKE)
    assert found.tensors["vectors"].shape == (2, 2, 96)
    start = table(tiny_xl)[ids_of(tiny_xl, "church")[0]]
    moved_by = (found.tensors["vectors"][found.tensors["order"].argsort()][0, 0] - start).abs()
    assert float(moved_by[:32].max()) > 1e-3
    assert float(moved_by[32:].max()) > 1e-3
    assert found.queries[0].context.pooled.shape == (1, 48)
    assert found.replay(tiny_xl).shape == (2, 3, 16, 16)


def test_it_learns_from_a_folder(tiny, tmp_path):
    from PIL import Image

    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{i}.png")
    target = Target(tiny, original=tiny)
    latents = pictures(target, ("a church",), 5, LIKE, 0, str(tmp_path))
    assert latents.shape == (2, 4, 8, 8)
    found = Inversion(steps=2, batch=1, folder=str(tmp_path))(target, CHURCH, LIKE)
    assert found.cost["images"] == 0
    other = Inversion(steps=2, batch=1, images=2)(target, CHURCH, LIKE)
    assert not torch.equal(found.tensors["vectors"], other.tensors["vectors"])
    with pytest.raises(BadInput, match="no images in"):
        Inversion(folder=str(tmp_path / "none"))(target, CHURCH, LIKE)


def test_pictures_are_of_each_text_in_turn(tiny):
    texts = ("a church", "art", "a dog")
    made = pictures(Target(tiny, original=tiny), texts, 5, LIKE, 1, batch=2)
    seeds = [generator(1, "pictures", i).initial_seed() for i in range(5)]
    each = [tiny.sample([replace(LIKE, prompt=texts[i % 3], seed=seeds[i])]) for i in range(5)]
    torch.testing.assert_close(made, torch.cat(each), atol=1e-4, rtol=1e-4)


def test_captions_from_queries(tiny):
    """As for I2P: the vectors stand before each prompt, and each picture is compared with its own prompt's score."""
    asked = (replace(LIKE, prompt="a red moon"), replace(LIKE, prompt="a dog", seed=4), replace(LIKE, prompt="a dog"))
    attack = Inversion(steps=1, batch=4, images=4, captions="queries", loss="score", guidance=1.0, lr=1e-9)
    assert attack.texts(CHURCH, asked) == ("{} a red moon", "{} a dog")
    found = attack(Target(moved(tiny), original=tiny), CHURCH, asked)
    assert [query.prompt for query in found.queries] == ["<*> a red moon", "<*> a dog", "<*> a dog"]
    assert [query.seed for query in found.queries] == [0, 4, 0]

    prompts = ("a red moon", "a dog")
    latents = pictures(Target(tiny, original=tiny), prompts, 4, asked[0], 0)
    word, losses = Placeholder(tiny, table(tiny)[ids_of(tiny, "church")[0]]), []
    edited = moved(tiny)
    for i in range(4):
        rng = generator(0, "row", 0, 0, i)
        torch.randint(2, (1,), generator=rng)
        picture = int(torch.randint(4, (1,), generator=rng))
        t = int(torch.randint(1000, (1,), generator=rng))
        noise = torch.randn(1, 4, 8, 8, generator=rng)
        x = tiny.family.schedule.noised(latents[picture][None], noise, torch.tensor([t]))
        prompt = prompts[picture % 2]
        guess = edited.pipe.unet(x, t, word.context("{} " + prompt))[0]
        losses.append((guess - tiny.eps(x, t, tiny.encode([prompt]))).square().mean())
    assert -found.scores[0] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-4)
    with pytest.raises(BadInput, match="captions from queries need a prompt"):
        attack(Target(tiny, original=tiny), CHURCH, replace(LIKE, prompt=" "))


def test_phrases(tiny):
    assert phrase(CHURCH, "a Church by a house") == "a {} by a house"
    assert phrase(CHURCH, "churches") == "a picture of a {}"
    assert phrase(Concept("neon", kind="style"), "a dog {}") == "art in the style of {}"
    assert phrase(CHURCH, "{} a church, a church") == " a {}, a church"
    vectors = table(tiny)[ids_of(tiny, "church")][None]
    asked = [replace(LIKE, seed=3), replace(LIKE, prompt="a church"), LIKE]
    found = queries_with(tiny, CHURCH, torch.cat([vectors, vectors * 2]), asked)
    assert [query.seed for query in found] == [3, 0, 0, 3, 0, 0]
    for query, own in zip(found[:3], asked, strict=True):
        torch.testing.assert_close(query.context.tokens, tiny.encode([own.prompt]).tokens, atol=1e-5, rtol=1e-5)


def test_starts(tiny):
    """The first attempt starts at the words, a style at "art" as in the code, the others beside them."""
    known = table(tiny)
    words = Words.beside(tiny, "church dog", 3, 3, 0)
    first = known[ids_of(tiny, "church dog church")]
    torch.testing.assert_close(words.vectors[0], first)
    spread = (words.vectors[1:] - first).std() / known.std()
    assert 0.35 < float(spread) < 0.65
    slow = {"steps": 1, "batch": 1, "images": 1, "lr": 1e-9}
    target = Target(tiny, original=tiny)
    style = Inversion(**slow)(target, Concept("neon", kind="style"), LIKE)
    torch.testing.assert_close(style.tensors["vectors"][0], known[ids_of(tiny, "art")])
    other = Inversion(**slow, start="dog")(target, CHURCH, LIKE)
    torch.testing.assert_close(other.tensors["vectors"][0], known[ids_of(tiny, "dog")])


def test_presets():
    repo = Inversion.preset("repo")
    assert (repo.steps, repo.lr, repo.batch, repo.weight_decay) == (5000, 4 * 4 * 5e-3, 16, 1e-2)
    sld = Inversion.preset("repo-sld")
    assert (sld.steps, sld.lr, sld.batch, sld.window, sld.momentum) == (1000, 4 * 5e-3, 4, 35, "differentiated")
    paper = Inversion.preset("paper")
    assert (paper.steps, paper.lr, paper.images, paper.guidance) == (1000, 5e-3, 25, 7.5)


@dataclass(frozen=True)
class Deaf(InferenceMethod):
    """A method whose guard does not read the prompt."""

    def start(self, model, erase):
        context = model.encode(["a dog"])
        return Hooks(embed=lambda c: context.expand(len(c)))


def test_bad_inputs(tiny, tiny2, lamp):
    target = Target(tiny, original=tiny)
    quick = Inversion(**Inversion.QUICK)
    with pytest.raises(BadInput, match="no text encoder"):
        quick(Target(lamp.model, original=lamp.model), "0", Query("0", steps=2))
    with pytest.raises(BadInput, match="with the original model: give it"):
        quick(Target(tiny), CHURCH, LIKE)
    with pytest.raises(BadInput, match="20 vectors do not fit"):
        replace(quick, vectors=20)(target, CHURCH, LIKE)
    with pytest.raises(BadInput, match="has no words"):
        replace(quick, start="  ")(target, CHURCH, LIKE)
    with pytest.raises(BadInput, match="no gradient reaches the token vectors"):
        quick(Target(tiny.guarded(Guard(Deaf(), ())), original=tiny), CHURCH, LIKE)
    small = copy.copy(tiny.pipe)
    small.unet = copy.deepcopy(tiny.pipe.unet)
    small.unet.register_to_config(sample_size=4)
    with pytest.raises(BadInput, match="latents have shape"):
        quick(Target(tiny, original=replace(tiny, pipe=small)), CHURCH, LIKE)
    for fields, error, message in [
        ({"window": 0}, BadInput, "window must be from 1 to 90"),
        ({"attempts": 0}, BadInput, "attempts must be from 1"),
        ({"momentum": "differentiated", "window": 91}, BadInput, "window must be from 1 to 90"),
    ]:
        with pytest.raises(error, match=message):
            Inversion(**fields)
    with pytest.raises(UnknownName, match="preset of inversion"):
        Inversion.preset("repository")
