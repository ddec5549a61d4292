import pytest
import torch

from efface.concept import Concept
from efface.errors import BadInput
from efface.methods.finetune.method import Run
from efface.methods.surgical import Surgical, _signed
from efface.models.attention import positions, scaled_maps
from efface.training.loop import generator


def fast(**fields):
    quick = {"steps": 3, "ddim_steps": 4, "batch": 2, "lr": 1e-3, "warmup": 0, "start": 0.0, "weight_decay": 0.0}
    return Surgical(**{**quick, **fields})


CHURCH = Concept("church", anchor="dog")
UNLIKE = {"gamma1": 5.0, "gamma2": 7.0, "penalty": 0.7, "start": 0.25, "batch": 1}  # every number can be told apart


def signal(base, z, t, e_0, *signed):
    """Return Σ g β Δ for (g, text), κ = 0.95, written from the paper."""
    total = torch.zeros_like(z)
    for g, text in signed:
        difference = base.eps(z, t, base.encode([text])) - e_0
        for image, out in zip(difference, total, strict=True):
            for channel, into in zip(image, out, strict=True):
                cut = channel.abs().flatten().quantile(0.95)
                into += g * channel * (channel.abs() >= cut)
    return total


def loss_by_hand(base, student, rng):
    """Return algorithm 1's loss of one latent with the numbers of UNLIKE and T = 4, written from the paper."""
    c, null, alphas = base.encode(["church"]), base.encode([""]), base.pipe.scheduler.alphas_cumprod
    torch.randint(1, (1,), generator=rng)  # which concept
    z = torch.randn(1, *base.latent_shape, generator=rng)
    stop = int(torch.randint(4, (1, 1), generator=rng))
    for i in (3, 2, 1, 0):
        t = torch.tensor([250 * i + 1])
        with torch.no_grad():
            e_c, e_0 = base.eps(z, t, c), base.eps(z, t, null)
            goal = 5.0 * (e_c - e_0)
            if i < 3:  # t_high = ⌊0.25 T⌋ = 1 step from noise
                goal = goal + signal(base, z, t, e_0, (-7.5, "church"), (6.5, "dog"))
        if i == stop:
            break
        now, then, e = alphas[250 * i + 1], alphas[250 * i - 249], e_0 + goal
        z = then.sqrt() * (z - (1 - now).sqrt() * e) / now.sqrt() + (1 - then).sqrt() * e
    s_c, s_0 = student.eps(z, t, c), student.eps(z, t, null)
    return (7.0 * (s_c - s_0.detach()) - goal).square().mean() + 0.7 * (s_0 - e_0).square().mean()


def perturb(run, size=0.1):
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in run.weights.values():
            p.add_(size * torch.randn(p.shape, generator=rng))


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_by_hand_after_the_student_has_moved(tiny, seed):
    run = Run(fast(**UNLIKE), tiny, (CHURCH,), (), 0)
    perturb(run)
    loss = run.method.objective(run)
    run.rng = generator(seed)
    value, wanted = loss(0), loss_by_hand(tiny, run.student, generator(seed))
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=0)
    weights = list(run.weights.values())
    for got, hand in zip(torch.autograd.grad(value, weights), torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(got, hand, rtol=1e-3, atol=1e-4 * float(hand.abs().max()))


def test_a_step_of_sgd_by_hand(tiny):
    """The third step leads from W2 to W2 − η ∇L(W2)."""
    two, three = (fast(**UNLIKE, steps=n, optimizer="sgd", lr=1e-2)(tiny, [CHURCH]).delta for n in (2, 3))
    run = Run(fast(**UNLIKE), tiny, (CHURCH,), (), 0)
    with torch.no_grad():
        for name, p in run.weights.items():
            p.add_(two[name])
    gradient = torch.autograd.grad(loss_by_hand(tiny, run.student, generator(0, 2, 0)), list(run.weights.values()))
    for name, slope in zip(run.weights, gradient, strict=True):
        step = three[name] - two[name]
        torch.testing.assert_close(step, -1e-2 * slope, rtol=1e-3, atol=1e-4 * float(step.abs().max()) + 1e-8)


def test_the_concept_moves_against_itself_and_towards_its_anchor(tiny):
    rng = torch.Generator().manual_seed(0)
    z, t = torch.randn(6, *tiny.latent_shape, generator=rng), torch.arange(6) * 150 + 1
    edit = fast(steps=10, batch=2, lr=3e-4)(tiny, [CHURCH])
    with edit.applied(tiny) as edited, torch.no_grad():
        c, null = tiny.encode(["church"]), tiny.encode([""])
        e_c, e_0, e_a = tiny.eps(z, t, c), tiny.eps(z, t, null), tiny.eps(z, t, tiny.encode(["dog"]))
        moved = edited.eps(z, t, c) - e_c

        def alignment(direction):
            return float(torch.nn.functional.cosine_similarity(moved.flatten(), direction.flatten(), dim=0))

        assert alignment(e_c - e_0) < -0.1
        assert alignment(e_a - e_c) > 0.1


def null_gradient(model, penalty: float, moved: bool) -> float:
    """Return the norm of the loss's gradient with respect to the empty prompt's context."""
    method = fast(penalty=penalty)
    run = Run(method, model, (Concept("church"),), (), 0)
    loss = method.objective(run)
    run.null.tokens.requires_grad_()
    if moved:
        with torch.no_grad():
            for p in run.weights.values():
                p.add_(0.1 * torch.randn(p.shape, generator=run.rng))
    loss(0).backward()
    assert all(p.grad is not None for p in run.weights.values())
    return 0.0 if run.null.tokens.grad is None else float(run.null.tokens.grad.norm())


def test_the_first_term_does_not_reach_the_unconditional_branch(tiny):
    assert null_gradient(tiny, penalty=0.0, moved=True) == 0
    assert null_gradient(tiny, penalty=1.0, moved=True) > 0


def test_penalty_pulls_the_unconditional_noise_back(tiny):
    z, t, null = torch.randn(8, *tiny.latent_shape), torch.full((8,), 500), tiny.encode([""])
    moves = []
    for penalty in (0.0, 1000.0):
        with fast(penalty=penalty, steps=8, ddim_steps=2)(tiny, ["church"]).applied(tiny) as edited, torch.no_grad():
            moves.append(float((edited.eps(z, t, null) - tiny.eps(z, t, null)).norm()))
    assert moves[1] < 0.5 * moves[0]


def test_without_a_signal_nothing_moves(tiny):
    """δ = 0 makes the student's goal its own start (up to rounding, so with sgd, which does not blow it up)."""
    still = fast(start=1.0, optimizer="sgd")(tiny, ["church"])
    moved = fast(optimizer="sgd")(tiny, ["church"])
    assert still.meta["training"]["loss"][0] < 1e-9 < moved.meta["training"]["loss"][0]
    largest = [max(float(d.abs().max()) for d in edit.delta.values()) for edit in (still, moved)]
    assert largest[0] < 1e-3 * largest[1]


def test_signals(tiny):
    """At the first step the loss is the mean square of δ."""
    losses = {
        instruct: fast(steps=1, instruct=instruct)(tiny, ["church"]).meta["training"]["loss"][0]
        for instruct in [(), ("-7.5:church",), ("-15:church",), ("-7.5:dog",), ("-7.5:church", "7.5:church")]
    }
    assert losses[()] == losses[("-7.5:church",)]
    assert losses[("-7.5:dog",)] != losses[()]
    assert losses[("-7.5:church", "7.5:church")] < 1e-9
    anchored = fast(steps=1)(tiny, [CHURCH])
    assert anchored == fast(steps=1, instruct=("-7.5:church", "6.5:dog"))(tiny, [Concept("church")])
    assert fast(steps=1, signal="implicit")(tiny, ["church"]) != fast(steps=1)(tiny, ["church"])


def deltas(model, method, concepts, rows, t):
    """Return δ of some rows of the run's prompts at timesteps, with the inputs that it was made from."""
    run = Run(method, model, tuple(concepts), (), 0)
    prompts = method._prompts(run)
    run.rng = generator(7)
    z, row, t = run.noise(1).expand(len(rows), -1, -1, -1), torch.tensor(rows), torch.tensor(t)
    with torch.no_grad():
        cond, uncond = run.base.denoise(z, t, prompts.contexts[row], run.null)
        return method._delta(run, prompts, z, t, row, cond, uncond), z, t, cond, uncond


def test_kappa_keeps_the_largest_values(tiny):
    delta, _, _, cond, uncond = deltas(tiny, fast(kappa=0.95), [Concept("church")], [0, 0], [1, 751])
    assert (delta != 0).flatten(2).sum(2).tolist() == [[4] * 4] * 2  # 5 % of 64, rounded up
    nonzero = delta != 0
    torch.testing.assert_close(delta[nonzero], -7.5 * (cond - uncond)[nonzero], rtol=1e-3, atol=1e-6)


def test_a_concept_without_an_anchor_is_erased_beside_one_that_has_one(tiny):
    """Each row's δ is that of its concept erased alone: a missing anchor is no anchor, not the concept itself."""
    house = Concept("house")
    both = deltas(tiny, fast(), [CHURCH, house], [0, 1], [501, 501])[0]
    for row, concept in enumerate((CHURCH, house)):
        alone = deltas(tiny, fast(), [concept], [0], [501])[0]
        torch.testing.assert_close(both[row], alone[0], rtol=1e-4, atol=1e-5)
    assert float((both[0] - both[1]).abs().max()) > 0.1


def test_prompts_of_a_concept_get_the_signal_of_its_name(tiny):
    concepts = [Concept("church", prompts=("a red church",), anchor="dog"), Concept("cat", prompts=("a blue cat",))]
    method = fast(prompts="all", suppress=0.5)
    run = Run(method, tiny, tuple(concepts), (), 0)
    prompts = method._prompts(run)
    texts = ["church", "a red church", "cat", "a blue cat"]
    torch.testing.assert_close(prompts.contexts.tokens, tiny.encode(texts).tokens)
    found, z, t, _, uncond = deltas(tiny, method, concepts, [0, 1, 2, 3], [501] * 4)
    for row, signed in enumerate([[(-7.5, "church"), (6.5, "dog")]] * 2 + [[(-7.5, "cat")]] * 2):
        wanted = signal(tiny, z[:1], t[:1], uncond[:1], *signed)
        torch.testing.assert_close(found[row], wanted[0], rtol=1e-3, atol=1e-4)
    for row, (text, name) in enumerate(zip(texts, ("church", "church", "cat", "cat"), strict=True)):
        assert (prompts.scales[row] == 0.5).nonzero().flatten().tolist() == positions(tiny, text, name) != []
    assert fast(steps=1, prompts="all")(tiny, [CHURCH]) != fast(steps=1)(tiny, [CHURCH])


def test_instructions_act_on_every_prompt(tiny):
    method = fast(instruct=("-7.5:cat", "6.5:dog"))
    found, z, t, _, uncond = deltas(tiny, method, [CHURCH, Concept("house")], [0, 1], [501, 501])
    wanted = signal(tiny, z[:1], t[:1], uncond[:1], (-7.5, "cat"), (6.5, "dog"))
    torch.testing.assert_close(found, wanted.expand(2, -1, -1, -1), rtol=1e-3, atol=1e-4)


def test_the_implicit_signal_is_guidance_without_attention_to_the_concept(tiny):
    found, z, t, cond, _ = deltas(tiny, fast(signal="implicit", gamma1=5.0), [CHURCH], [0], [501])
    scale = torch.ones(1, 16)
    scale[0, positions(tiny, "church", "church")] = 0
    with scaled_maps(tiny, scale), torch.no_grad():
        less = tiny.eps(z, t, tiny.encode(["church"]))
    torch.testing.assert_close(found, 5.0 * (less - cond), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("counted", "first", "last"), [("steps", 1, 617), ("levels", 309, 953)])
def test_both_readings_of_the_window(counted, first, last):
    """T = 35 and t_high = 12, counted from noise or from the image; the warm-up of 5 changes neither."""
    t = torch.arange(35) * 28 + 1
    for warmup in (0, 5):
        on = t[Surgical.preset(f"count-{counted}", warmup=warmup)._window(t, 1000)].tolist()
        assert (on[0], on[-1], len(on)) == (first, last, (last - first) // 28 + 1)
    assert Surgical()._window(t, 1000).equal(Surgical(counted="steps")._window(t, 1000))
    fine = Surgical(counted="levels", ddim_steps=1000)  # every timestep is a level of its own
    assert fine._window(torch.tensor([349, 350]), 1000).tolist() == [False, True]
    late = Surgical(counted="levels", warmup=20, end=0.9)  # ⌊0.9 T⌋ = 31
    assert t[late._window(t, 1000)].tolist() == [28 * (level - 1) + 1 for level in range(20, 32)]


def test_window_of_steps(tiny):
    method = fast(ddim_steps=10, warmup=2, start=0.35, kappa=0.0)
    delta = deltas(tiny, method, [Concept("church")], [0] * 10, [100 * i + 1 for i in range(10)])[0]
    assert delta.flatten(1).any(1).tolist() == [True] * 7 + [False] * 3  # the three noisiest levels are left alone


def test_scaled_maps(tiny):
    z, t, c = torch.randn(2, *tiny.latent_shape), torch.tensor([500, 500]), tiny.encode(["church", "church"])
    plain = tiny.eps(z, t, c)
    before = dict(tiny.denoiser.attn_processors)
    scale = torch.ones(2, 16)
    scale[1, positions(tiny, "church", "church")] = 0
    with scaled_maps(tiny, scale):
        changed = tiny.eps(z, t, c)
    torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-4)
    assert (changed[1] - plain[1]).abs().max() > 1e-4
    assert tiny.denoiser.attn_processors == before
    torch.testing.assert_close(tiny.eps(z, t, c), plain, atol=0, rtol=0)


def test_positions(tiny):
    assert positions(tiny, "a red church", "church") == [3]
    assert (
        positions(tiny, "red car and a red car", "red car")
        == [1, 2, 5, 6][: len(positions(tiny, "red car", "red car")) * 2]
    )
    assert positions(tiny, "a dog", "church") == []


def test_seed_presets_and_bad_input(tiny):
    edit = fast(steps=1)(tiny, ["church"])
    assert fast(steps=1)(tiny, ["church"]) == edit != fast(steps=1)(tiny, ["church"], seed=1)
    assert Surgical.preset("paper") == Surgical()
    assert (Surgical().gamma1, Surgical().gamma2, Surgical().ddim_steps, Surgical().penalty) == (7.5, 7.5, 35, 1.0)
    assert _signed("-7.5: gun") == (-7.5, "gun")
    for text in ("gun", "nan:gun", "-7.5:", "-7.5: "):
        with pytest.raises(BadInput, match="an instruction looks like"):
            fast(instruct=(text,))
    for name, value in {
        "gamma1": 0.0, "gamma2": -1.0, "penalty": -1.0, "warmup": -1, "kappa": 1.5, "start": -0.1, "end": 2.0,
        "ddim_steps": 0, "suppress": float("nan"),
    }.items():  # fmt: skip
        with pytest.raises(BadInput, match=f"{name} must be"):
            fast(**{name: value})
