import pytest
import torch

from efface.errors import UnknownName
from efface.models import schedulers
from efface.models.model import Model


def test_levels_at_whole_timesteps_are_those_of_the_schedule(tiny: Model):
    products = tiny.part("scheduler").alphas_cumprod
    t = torch.tensor([0, 10, 500, 999])
    alpha, sigma = schedulers.levels(products, t)
    assert torch.allclose(alpha, products[t].sqrt(), atol=1e-6)
    assert torch.allclose(sigma, (1 - products[t]).sqrt(), atol=1e-6)


def test_levels_between_timesteps_are_those_of_euler(tiny: Model):
    scheduler = schedulers.ready(tiny.pipe, "euler", 7, tiny.device)
    alpha, sigma = schedulers.levels(tiny.part("scheduler").alphas_cumprod, scheduler.timesteps.double())
    assert torch.allclose((sigma / alpha).float(), scheduler.sigmas[:-1], rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_to_eps_is_right_and_from_eps_is_its_inverse(kind: str):
    x0, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    x = alpha * x0 + sigma * eps
    raw = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[kind]
    assert torch.allclose(schedulers.to_eps(raw, x, alpha, sigma, kind), eps)
    assert torch.allclose(schedulers.from_eps(eps, x, alpha, sigma, kind), raw)


@pytest.mark.parametrize("name", sorted(schedulers.SOLVERS))
def test_every_solver_samples(tiny: Model, name: str):
    from efface.query import Query

    latents = tiny.sample([Query("a church", steps=4, solver=name)])
    assert latents.shape == (1, 4, 8, 8)
    assert latents.isfinite().all()


def test_an_unknown_solver_gives_the_nearest_match(tiny: Model):
    with pytest.raises(UnknownName, match="did you mean 'ddim'"):
        schedulers.make(tiny.pipe, "dim")


def test_the_pipelines_own_scheduler_is_left_alone(tiny: Model):
    own = tiny.part("scheduler")
    mine = schedulers.make(tiny.pipe)
    mine.set_timesteps(3)
    assert mine is not own
    assert type(mine) is type(own)
    assert own.num_inference_steps != 3


def test_noise_is_of_its_own_seed():
    make = lambda *seeds: schedulers.noise((4, 2, 2), [torch.Generator().manual_seed(seed) for seed in seeds])  # noqa: E731
    both = make(1, 2)
    assert torch.equal(both[0], make(1)[0])
    assert torch.equal(both[1], make(2)[0])
