from itertools import combinations

import pytest
import torch

from efface.errors import BadFile, BadInput
from efface.methods.finetune.fisher import add_squared_sum, places, read
from efface.util.files import save_safetensors


def estimate(gradients, total):
    into = {"w": torch.zeros(3)}
    add_squared_sum(into, [{"w": g} for g in gradients], len(gradients), total)
    return into["w"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mean_over_all_draws_is_the_square_of_the_sum(count):
    every = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1.0, -1.0])
    found = [estimate(every[list(chosen)], 5) for chosen in combinations(range(5), count)]
    torch.testing.assert_close(torch.stack(found).mean(0), every.sum(0).square())


def test_a_sum_that_cancels_is_not_taken_for_large():
    """Gradients that sum to zero: the square of the extrapolated sum would be far above zero on average."""
    every = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]).expand(4, 3)
    found = torch.stack([estimate(every[list(chosen)], 4) for chosen in combinations(range(4), 2)])
    assert found.mean(0).abs().max() < 1e-5
    assert found.min() < 0 < found.max()


def test_it_adds_and_counts_missing_names_as_zero():
    into = {"w": torch.ones(2), "v": torch.ones(1)}
    add_squared_sum(into, [{"w": torch.ones(2), "v": torch.ones(1)}, {"w": torch.ones(2)}], 2, 2)
    assert into["w"].tolist() == [5.0, 5.0]  # 1 + (1 + 1)²
    assert into["v"].tolist() == [2.0]  # 1 + (1 + 0)²


def test_half_precision_gradients_are_squared_and_summed_in_float32():
    into = {"w": torch.zeros(1)}
    add_squared_sum(into, [{"w": torch.full((1,), 1e-4, dtype=torch.float16)}] * 2, 2, 4)
    assert float(into["w"]) == pytest.approx(1.6e-7, rel=1e-2)  # 16 equal products of 1e-8, zero in float16


def ours(tiny):
    return {name: p for name, p in tiny.weights().items() if "mid_block" in name}


def test_a_file_by_our_names_or_the_original_ones(tiny, tmp_path):
    weights = ours(tiny)
    values = {name: torch.rand_like(p) for name, p in weights.items()}
    config = {"unet": tiny.denoiser.config}
    original = {name: tiny.family.original_key(name, config).key for name in values}
    short = {name: key.removeprefix("model.") for name, key in original.items()}
    assert next(iter(short.values())).startswith("diffusion_model.middle_block.")
    for keys in ({name: name for name in values}, original, short):
        path = tmp_path / "fisher.safetensors"
        save_safetensors(path, {keys[name]: value.half() for name, value in values.items()} | {"more": torch.ones(1)})
        found = read(str(path), places(str(path), tiny, weights))
        assert set(found) == set(values)
        for name, value in values.items():
            assert torch.equal(found[name], value.half().float())


def test_files_that_do_not_fit(tiny, tmp_path):
    weights = ours(tiny)
    whole = {name: torch.rand_like(p) for name, p in weights.items()}
    first = next(iter(whole))
    path = str(tmp_path / "fisher.safetensors")
    save_safetensors(path, {name: value for name, value in whole.items() if name != first})
    with pytest.raises(BadInput, match=f"lacks 1 of {len(weights)} trained weights, such as {first}"):
        places(path, tiny, weights)
    save_safetensors(path, whole | {first: torch.ones(2, 2)})
    with pytest.raises(BadInput, match=rf"of another model: {first} has shape \[2, 2\]"):
        places(path, tiny, weights)
    save_safetensors(path, whole | {first: torch.full_like(whole[first], -1.0)})
    with pytest.raises(BadFile, match=f"no Fisher information: {first} has values that are negative"):
        read(path, places(path, tiny, weights))
    with pytest.raises(BadFile, match="does not exist"):
        places(str(tmp_path / "none.safetensors"), tiny, weights)
    (tmp_path / "full_fisher_dict.pkl").write_bytes(b"x")
    with pytest.raises(BadFile, match="pickle"):
        places(str(tmp_path / "full_fisher_dict.pkl"), tiny, weights)
