"""Sheets: every image lands where its row, column and seed say, unharmed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efface.errors import BadInput, WriteError
from efface.report import grid


def flat(value: float, n: int = 1, size: int = 64) -> torch.Tensor:
    return torch.full((n, 3, size, size), value)


def test_to_image_keeps_eight_bits() -> None:
    values = torch.arange(256).repeat(3, 1).reshape(3, 16, 16) / 255
    assert (np.asarray(grid.to_image(values)).reshape(256, 3) == np.arange(256)[:, None]).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_every_cell_is_in_its_place(rows: int, columns: int, seeds: int) -> None:
    """Give every image its own grey and find each as a block of that grey, in reading order."""
    total = rows * columns * seeds
    greys = torch.linspace(0.2, 0.8, total).reshape(rows, columns, seeds)
    cells = [[torch.cat([flat(float(g)) for g in greys[i, j]]) for j in range(columns)] for i in range(rows)]
    sheet = np.asarray(grid.sheet(cells, [f"r{i}" for i in range(rows)], [f"c{j}" for j in range(columns)]))
    centres = {}
    for index, grey in enumerate(greys.flatten().tolist()):
        where = np.argwhere((sheet == round(grey * 255)).all(axis=2))
        assert len(where) >= 128 * 128
        centres[index] = tuple(np.median(where, axis=0).astype(int))
    for i in range(rows):
        across = [centres[(i * columns + j) * seeds + k] for j in range(columns) for k in range(seeds)]
        assert len({y for y, _ in across}) == 1
        assert [x for _, x in across] == sorted({x for _, x in across})
        if i:
            assert across[0][0] > centres[(i - 1) * columns * seeds][0]


def test_labels_are_drawn_and_long_ones_fit() -> None:
    cells = [[flat(0.5), flat(0.5)]]
    short = grid.sheet(cells, ["a"], ["b", "c"])
    long = grid.sheet(cells, ["a very long prompt " * 8], ["an expression " * 6, "x" * 90])
    assert np.asarray(short).min() < 60  # there is ink
    assert long.width < 3 * 128 + 900
    assert long.height > short.height


def test_large_images_are_not_enlarged() -> None:
    sheet = grid.sheet([[flat(0.5, size=512)]], ["a"], ["b"])
    assert (np.asarray(sheet) == 128).all(axis=2).sum() >= 512 * 512


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(BadInput, match="labels"):
        grid.sheet([[flat(0.5)]], ["a", "b"], ["c"])
    with pytest.raises(BadInput, match="one size"):
        grid.sheet([[flat(0.5), flat(0.5, size=32)]], ["a"], ["b", "c"])


def test_save_is_all_or_nothing(tmp_path: Path) -> None:
    grid.save(grid.to_image(flat(0.5)[0]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (64, 64)
    with pytest.raises(WriteError):
        grid.save(grid.to_image(flat(0.5)[0]), tmp_path / "none" / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
