"""Noise schedules: eps and output are inverse, and values agree with diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from efface.errors import BadInput, BadModel
from efface.models import schedulers
from efface.models.model import Model
from efface.models.schedules import OUTPUTS, Diffusion, Flow
from efface.training.loop import generator


def diffusion(output: str = "epsilon") -> Diffusion:
    return Diffusion.of(DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type=output))


SCHEDULES = {**{name: diffusion(name) for name in ("epsilon", "v_prediction", "sample")}, "flow": Flow()}
TIMES = torch.tensor([3, 500, 900])


def latents(seed: int) -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_eps_and_output_are_each_others_inverse(name: str):
    schedule, clean, noise = SCHEDULES[name], latents(0), latents(1)
    x = schedule.noised(clean, noise, TIMES)
    alpha, sigma = (level.double().view(3, 1, 1, 1) for level in schedule.levels(TIMES))
    out = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean, "flow": noise - clean}
    eps = noise - clean if name == "flow" else noise  # the velocity takes the place of eps
    close = {"atol": 1e-4, "rtol": 1e-4}  # levels are fp32
    torch.testing.assert_close(schedule.target(clean, noise), eps)
    torch.testing.assert_close(schedule.eps(out[name], x, TIMES), eps, **close)
    torch.testing.assert_close(schedule.out(eps, x, TIMES), out[name], **close)
    torch.testing.assert_close(schedule.clean(eps, x, TIMES), clean, **close)
    torch.testing.assert_close(schedule.noise(eps, x, TIMES), noise, **close)
    assert set(OUTPUTS) == set(out)


def test_levels_at_whole_timesteps_are_those_of_the_scheduler(tiny: Model):
    products, t = tiny.part("scheduler").alphas_cumprod, torch.tensor([0, 10, 500, 999])
    alpha, sigma = tiny.family.schedule.levels(t)
    assert torch.allclose(alpha, products[t].sqrt(), atol=1e-6)
    assert torch.allclose(sigma, (1 - products[t]).sqrt(), atol=1e-6)


def test_levels_between_timesteps_are_those_of_euler(tiny: Model):
    scheduler = schedulers.ready(tiny.pipe, "euler", 7, tiny.device)
    alpha, sigma = tiny.family.schedule.levels(scheduler.timesteps.double())
    assert torch.allclose((sigma / alpha).float(), scheduler.sigmas[:-1], rtol=1e-4)


def test_times_are_those_of_diffusers():
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert diffusion().times(50).flip(0).tolist() == scheduler.timesteps.tolist()
    with pytest.raises(BadInput, match="between 1 and 1000"):
        diffusion().times(0)


def test_a_step_is_that_of_diffusers():
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(50)
    schedule, z, e = diffusion(), latents(0).float(), latents(1).float()
    torch.testing.assert_close(schedule.step(z, e, 501, 481), scheduler.step(e, 501, z).prev_sample)
    torch.testing.assert_close(schedule.step(schedule.step(z, e, 481, 501), e, 501, 481), z)
    torch.testing.assert_close(
        schedule.step(schedule.noised(z, e, torch.full((3,), 500)), e, 500, None), z, atol=1e-4, rtol=1e-4
    )


def test_a_step_of_a_flow_is_that_of_euler():
    scheduler, flow, x, v = FlowMatchEulerDiscreteScheduler(shift=3.0), Flow(), latents(0).float(), latents(1).float()
    scheduler.set_timesteps(4)
    times = scheduler.timesteps.tolist()
    assert [high for _, high in flow.solver_steps(scheduler)] == times[::-1]
    assert [low for low, _ in flow.solver_steps(scheduler)] == [None, *times[:0:-1]]
    for t, t_to in zip(scheduler.timesteps, [*times[1:], None], strict=True):  # the first has no image left: s = 1
        theirs = scheduler.step(v, t, x).prev_sample
        torch.testing.assert_close(flow.step(x, flow.eps(v, x, t), float(t), t_to), theirs)
        torch.testing.assert_close(flow.levels(t)[1], scheduler.sigmas[scheduler.step_index - 1])
        torch.testing.assert_close(flow.step(theirs, v, t_to, float(t)), x)
        x = theirs


def test_a_flow_begins_with_pure_noise():
    flow = Flow()
    assert flow.times(50).tolist() == list(range(20, 1001, 20))
    assert flow.times(1000).tolist() == list(range(1, 1001))
    alpha, sigma = flow.levels(flow.times(50))
    assert (float(alpha[-1]), float(sigma[-1])) == (0.0, 1.0)
    drawn = flow.random_times(4000, generator(1))
    assert (int(drawn.min()) >= 1, int(drawn.max()) <= 1000, int(drawn.max()) > 995) == (True, True, True)
    with pytest.raises(BadInput, match="between 1 and 1000"):
        flow.times(1001)


def test_random_times_are_whole_and_of_their_generator():
    drawn = diffusion().random_times(4000, generator(1))
    assert torch.equal(drawn, diffusion().random_times(4000, generator(1)))
    assert (int(drawn.min()) < 5, int(drawn.max()) > 994, drawn.dtype) == (True, True, torch.int64)


def test_what_is_not_known_is_refused():
    with pytest.raises(BadModel, match="unknown output of the denoiser 'noise'; known: epsilon"):
        Flow("noise")
    with pytest.raises(BadModel, match="has no alphas_cumprod"):
        Diffusion.of(FlowMatchEulerDiscreteScheduler())
