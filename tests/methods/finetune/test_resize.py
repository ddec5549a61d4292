import pytest
import torch

from efface.methods.finetune.resize import WORDS, _resized, masked_error, resized


def draws(size=48, factor=4, count=400):
    image = torch.linspace(0, 1, size).expand(3, size, size)
    return image, [_resized(image, factor, torch.Generator().manual_seed(i)) for i in range(count)]


def test_shares_of_smaller_same_and_larger_images():
    image, made = draws()
    words = [word for _, _, word in made]
    shares = [sum(w in kind for w in words) / len(words) for kind in ((0,), (1, 2), (3, 4))]
    assert shares == pytest.approx([0.4, 0.267, 0.333], abs=0.07)  # 2/3 × 0.6, 2/3 × 0.4, 1/3
    assert all(words.count(w) > 30 for w in (1, 2, 3, 4))
    assert WORDS[0] == ""
    assert all(torch.equal(made_image, image) and mask.all() for made_image, mask, word in made if word == 0)


def test_a_smaller_image_lies_on_grey_inside_its_mask():
    image, made = draws()
    for other, mask, word in made:
        assert other.shape == image.shape
        assert mask.shape == (1, 12, 12)
        if word not in (1, 2):
            assert mask.all()
            continue
        inside = mask[0].repeat_interleave(4, 0).repeat_interleave(4, 1) == 1
        columns = inside.any(0).nonzero().flatten()
        shown = other[0, inside.any(1)][:, columns]
        assert (shown.diff(dim=1) > 0).all()  # the ramp, steeper
        side = int((other[0] != 0.5).any(0).sum())
        assert 48 // 3 - 1 <= side < 0.6 * 48
        assert len(columns) <= side
        outside = other[0].clone()
        outside[(other[0] != 0.5).any(1)] = 0.5
        assert (outside == 0.5).all()


def test_a_larger_image_shows_a_part():
    image, made = draws()
    for other, _, word in made:
        if word in (3, 4):
            slope = float(other[0, 0].diff()[5:-5].mean() / image[0, 0].diff().mean())
            assert 1 / 1.45 < slope < 1 / 1.15


def test_latents_of_the_same_images_are_decoded_and_encoded(tiny):
    clean = tiny.encode_images(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    made = resized(tiny, clean, torch.Generator().manual_seed(1))
    assert made.latents.shape == clean.shape
    assert made.mask.shape == (12, 1, 8, 8)
    again = tiny.encode_images(tiny.decode(clean))
    same = [i for i, word in enumerate(made.words.tolist()) if word == 0]
    assert 0 < len(same) < 12
    torch.testing.assert_close(made.latents[same], again[same], atol=1e-4, rtol=1e-4)
    assert not made.latents.requires_grad


def test_masked_error():
    error = torch.ones(2, 4, 2, 2)
    error[0, :, 0] = 3
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0] = mask[1] = 1
    assert float(masked_error(error, mask)) == (9 + 1) / 2
    assert float(masked_error(error)) == pytest.approx(float(error.square().mean()))
    assert float(masked_error(error, torch.zeros(2, 1, 2, 2))) == 0.0
