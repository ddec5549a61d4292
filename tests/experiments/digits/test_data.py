import gzip
import struct

import numpy as np
import pytest
import torch

from efface.errors import BadFile
from experiments.digits import data


def test_the_digits_here_are_mnist():
    pictures = data.load("mnist")
    assert pictures.pixels.shape == (10_000, 28, 28)
    counts = torch.bincount(pictures.labels)
    assert len(counts) == 10
    assert counts.min() > 800
    latents = pictures.latents(torch.arange(100))
    assert latents.shape == (100, 1, 28, 28)
    assert latents.min() == -1
    assert latents.max() == 1
    ones, zeros = (pictures.pixels[pictures.labels == k].float().mean() for k in (1, 0))
    assert zeros > 2 * ones  # a 0 takes more ink than a 1


def test_the_held_out_part_is_a_tenth_and_apart():
    pictures = data.load("mnist")
    learn, held = data.split(pictures)
    assert (len(learn), len(held)) == (9000, 1000)
    both = torch.cat([learn.pixels, held.pixels]).flatten(1).double() @ torch.rand(784, dtype=torch.double)
    whole = pictures.pixels.flatten(1).double() @ torch.rand(784, dtype=torch.double)
    assert len(both.unique()) == len(whole.unique())
    again = data.split(pictures)[1]
    assert torch.equal(again.labels, held.labels)


def idx_file(path, array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    body = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_are_read_as_they_were_written(tmp_path, end):
    images, labels = np.random.default_rng(0).integers(0, 256, (5, 28, 28)), np.array([3, 0, 9, 1, 1])
    idx_file(tmp_path / f"train-images-idx3-ubyte{end}", images)
    idx_file(tmp_path / f"train-labels-idx1-ubyte{end}", labels)
    for dataset in ("mnist", "fashion"):
        found = data.load(dataset, tmp_path)
        assert found.pixels.tolist() == images.tolist()
        assert found.labels.tolist() == labels.tolist()


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(BadFile, match=r"holds no train-images-idx3-ubyte\[\.gz\]"):
        data.load("fashion", tmp_path)
    idx_file(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 28, 28)))
    idx_file(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(BadFile, match="do not go with 3 labels"):
        data.load("fashion", tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match="cut off"):
        data.load("fashion", tmp_path)
    path.write_bytes(b"\x00")
    with pytest.raises(BadFile, match="cannot be read"):
        data.load("fashion", tmp_path)
