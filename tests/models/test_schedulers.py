import pytest
import torch

from efface.errors import UnknownName
from efface.models import schedulers
from efface.models.model import Model


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
