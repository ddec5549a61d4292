"""What mini learns from: the concept table, the captions, the styles, the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efface.mini
from efface.concept import table
from experiments.mini import artwork, captions, pictures, styles
from experiments.mini.nouns import NAMES, NOUNS, related

HERE = Path(efface.mini.__file__).parent


def drawing(seed: int) -> np.ndarray:
    """A coloured disc on a transparent square."""
    y, x = np.mgrid[: artwork.SIZE, : artwork.SIZE] - artwork.SIZE / 2
    inside = (x**2 + y**2 < (artwork.SIZE * 0.35) ** 2)[..., None]
    colour = np.random.default_rng(seed).integers(40, 216, 3)
    return np.concatenate([inside * colour, inside * 255], -1).astype(np.uint8)


def test_table_has_what_the_project_promises():
    known = table("mini")
    objects = {c.name: c for c in known.values() if c.kind == "object"}
    assert len(objects) >= 40
    assert len(known) - len(objects) >= 6
    assert {"beer", "wine", "cocktail"} <= {c.name for c in objects.values() if c.family == "alcohol"}
    assert {"dagger", "bomb", "pistol"} <= {c.name for c in objects.values() if c.family == "weapon"}
    for group in (
        ("dog", "wolf", "fox", "cat"),
        ("car", "taxi", "bus", "truck"),
        ("church", "castle", "house", "mosque"),
    ):
        for name in group:
            assert set(group) - {name} <= set(objects[name].related)


def test_shipped_table_is_the_one_in_the_code():
    stored = json.loads((HERE / "concepts.json").read_text())
    assert [item["name"] for item in stored["objects"]] == list(NAMES)
    for item, noun in zip(stored["objects"], NOUNS, strict=True):
        assert item["related"] == list(related(noun))
        assert item["keywords"] == list(noun.keywords)
        assert len(set(noun.keywords)) == 6
        assert noun.name not in noun.keywords
        assert set(item["related"]) <= set(NAMES) - {noun.name}


def test_keyword_captions_never_contain_a_held_out_pair():
    g = torch.Generator().manual_seed(0)
    for index, noun in enumerate(NOUNS):
        pairs = [set(pair) for pair in noun.held_out]
        for _ in range(60):
            words = set(captions.keyword_phrase(index, g).split())
            assert words
            assert words <= set(noun.keywords)
            assert not any(pair <= words for pair in pairs)


def test_held_out_templates_are_not_trained_on():
    assert not set(captions.PLAIN) & set(captions.HELD_OUT_PLAIN)
    assert not set(captions.STYLED) & set(captions.HELD_OUT_STYLED)


def test_captions_name_what_they_show():
    g = torch.Generator().manual_seed(1)
    said = [captions.caption(o, s, g) for o in range(len(NAMES)) for s in range(7) for _ in range(4)]
    assert 0.05 < sum(c.text == "" for c in said) / len(said) < 0.16
    named = [c for c in said if c.object >= 0 and NAMES[c.object] in c.text]
    assert len(named) > len(said) / 2
    assert all(c.object == -1 for c in said if not c.text)


@pytest.mark.parametrize("style", styles.STYLES)
def test_styles_differ_from_each_other(style):
    rgba = torch.from_numpy(drawing(0)).permute(2, 0, 1)[None].float() / 255
    rgb, alpha = rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]
    ground = torch.ones(1, 3, 1, 1)
    drawn = styles.STYLES[style](rgb, alpha, ground)
    assert drawn.shape == rgb.shape
    assert drawn.min() >= 0
    assert drawn.max() <= 1 + 1e-6
    if style != "ink":
        assert (drawn - styles.plain(rgb, alpha, ground)).abs().mean() > 0.05


def test_pictures_are_labelled_balanced_and_repeatable():
    drawn = {("church", "noto"): drawing(0), ("dog", "noto"): drawing(1), ("dog", "emojione-monotone"): drawing(2)}
    pool = pictures.make(drawn, copies=2, seed=0)
    assert len(pool) == 2 * (6 + 6 + 1)  # colour drawings: plain and five processed styles; ink ones: ink
    assert pool.pixels.shape[1:] == (3, 64, 64)
    ink = pool.styles == pictures.STYLE_NAMES.index("ink")
    assert (pool.objects[ink] == NAMES.index("dog")).all()
    again = pictures.make(drawn, copies=2, seed=0)
    assert torch.equal(pool.pixels, again.pixels)
    assert not torch.equal(pool.pixels, pictures.make(drawn, copies=2, seed=1).pixels)


def test_artwork_reads_icons_and_aliases():
    data = {
        "icons": {"a": {"body": "<path fill='currentColor'/>"}},
        "aliases": {"b": {"parent": "a"}},
        "width": 8,
        "height": 4,
    }
    text = artwork.svg(data, "b")
    assert text
    assert 'viewBox="0 0 8 4"' in text
    assert "currentColor" not in text
    assert artwork.svg(data, "c") is None


def test_no_share_alike_set():
    assert all("SA" not in art.licence for art in artwork.SETS)
    assert set(artwork.HELD_OUT) < {art.name for art in artwork.SETS}
