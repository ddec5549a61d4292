"""What mini learns from: the concept table, the captions, the styles, the scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efface.mini
from efface.concept import table
from experiments.mini import artwork, captions, grounds, scenes, styles
from experiments.mini.nouns import NAMES, NOUNS, related
from experiments.mini.scenes import Painter, Scenes

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
    persons = [c for c in known.values() if c.kind == "identity"]
    assert len(objects) + len(persons) >= 40
    assert len(persons) >= 4
    assert len([c for c in known.values() if c.kind == "style"]) == 6
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


def test_a_held_out_pair_of_keywords_means_one_object_though_words_are_shared():
    for noun in NOUNS:
        for pair in noun.held_out:
            assert [other.name for other in NOUNS if set(pair) <= set(other.keywords)] == [noun.name]
    words = [word for noun in NOUNS for word in noun.keywords]
    assert sum(words.count(word) > 1 for word in set(words)) > 40


def test_held_out_templates_are_not_trained_on():
    assert not set(captions.PLAIN) & set(captions.HELD_OUT_PLAIN)
    assert not set(captions.STYLED) & set(captions.HELD_OUT_STYLED)


def facts(**given: int) -> dict[str, int]:
    """Return the facts of a scene with one object that settles nothing else."""
    names = ("first", "second", "style", "ground", "size", "place", "relation", "colour", "colour2")
    return {**dict.fromkeys(names, 0), "second": -1, **given}


def said(count: int = 400, empty: float = 0.0, **given: int) -> list[str]:
    g = torch.Generator().manual_seed(1)
    return [captions.caption(facts(**given), g, empty) for _ in range(count)]


def share(texts: list[str], *words: str) -> float:
    return sum(any(word in text.split() for word in words) for text in texts) / len(texts)


def test_captions_say_some_of_a_scene_and_leave_the_rest_open():
    car = {"first": NAMES.index("car")}
    assert 0.05 < said(empty=0.1, **car).count("") / 400 < 0.16
    assert 0.6 < share(said(**car), "car") < 0.95
    assert 0.1 < share(said(**car), *NOUNS[car["first"]].keywords) < 0.35
    assert 0.1 < share(said(**car, size=1), "small", "little", "tiny") < 0.4
    assert not share(said(**car, size=2), "small", "little", "tiny")
    assert 0.2 < share(said(**car, colour=1), "red") < 0.6
    assert 0.1 < share(said(**car, place=1), "left") < 0.4
    assert 0.3 < share(said(**car, ground=grounds.GROUNDS.index("snow")), "snow", "winter") < 0.7
    assert share(said(**car, style=2), "neon") == 1


def test_captions_of_two_objects_name_one_or_both_and_how_they_lie():
    pair = {"first": NAMES.index("cat"), "second": NAMES.index("car"), "relation": 1}
    texts = said(**pair)
    assert 0.3 < sum("cat" in text.split() and "car" in text.split() for text in texts) / 400 < 0.8
    assert any("a cat left of a car" in text for text in texts)
    assert not any("a car left of a cat" in text for text in texts)
    assert not share(said(first=NAMES.index("Otto Brand")), "a Otto", "an")


def test_each_scene_has_its_own_caption():
    columns = {f: torch.tensor([0, 0]) for f in facts()} | {
        "first": torch.tensor([0, 4]),
        "second": torch.tensor([-1, -1]),
    }
    pool = Scenes(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        artist=torch.zeros(2).long(),
        cells=torch.zeros(2, 8, 8).byte(),
        **columns,
    )
    texts = [captions.captions(pool, torch.Generator().manual_seed(i)) for i in range(300)]
    churches, dogs = ([pair[row] for pair in texts] for row in (0, 1))
    assert share(churches, "church") > 0.5
    assert not share(churches, "dog")
    assert share(dogs, "dog") > 0.5
    assert not share(dogs, "church")


def test_the_vocabulary_has_every_word_of_every_caption():
    known = set(captions.vocabulary())
    for first in range(len(NAMES)):
        for text in said(20, first=first, second=(first + 3) % len(NAMES), relation=1 + first % 4, ground=first % 11):
            assert set(text.lower().split()) <= known


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


@pytest.fixture(scope="module")
def painter() -> Painter:
    """Return a painter that knows every object as a disc, in colour and in ink."""
    sets = ("noto", "emojione-monotone")
    return Painter({(name, art, 0): drawing(i) for i, name in enumerate(NAMES) for art in sets})


@pytest.fixture(scope="module")
def painted(painter: Painter) -> Scenes:
    return painter(512, torch.Generator().manual_seed(0))


def test_scenes_are_repeatable_and_vary(painter: Painter, painted: Scenes):
    again, other = (painter(32, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(painter(32, torch.Generator().manual_seed(1)).pixels, again.pixels)
    assert not torch.equal(again.pixels, other.pixels)
    assert painted.pixels.shape == (512, 3, 64, 64)
    assert 0.1 < float((painted.second >= 0).float().mean()) < 0.3
    assert 0.3 < float((painted.style > 0).float().mean()) < 0.5
    for fact, count in (("ground", 11), ("size", 3), ("place", 6), ("relation", 5), ("style", 7)):
        assert len(getattr(painted, fact).unique()) == count


def test_what_is_held_out_is_in_no_scene(painted: Scenes):
    for row in range(len(painted)):
        seen = painted.facts(row)
        assert seen["second"] < 0 or not scenes.held_out_pair(seen["first"], seen["second"])
        assert not scenes.held_out_colour(seen["first"], seen["colour"])
    assert 0.05 < np.mean([scenes.held_out_pair(a, b) for a in range(46) for b in range(a)]) < 0.2


def test_the_map_says_what_is_where(painted: Scenes):
    """An object on the left covers cells on the left; one left of another has its middle there."""
    for row in torch.nonzero(painted.place > 0)[:, 0].tolist():
        y, x = torch.nonzero(painted.cells[row] == painted.first[row] + 1).float().T + 0.5
        dx, dy = float(x.mean()) / 8 - 0.5, float(y.mean()) / 8 - 0.5
        place = scenes.PLACES[int(painted.place[row])]
        assert {"left": dx < 0, "right": dx > 0, "top": dy < 0, "bottom": dy > 0}.get(place, True)
    for row in torch.nonzero(painted.relation == scenes.RELATIONS.index("left of"))[:, 0].tolist():
        first, second = (painted.cells[row] == key[row] + 1 for key in (painted.first, painted.second))
        assert torch.nonzero(first)[:, 1].float().mean() < torch.nonzero(second)[:, 1].float().mean()


def test_sizes_are_told_apart(painted: Scenes):
    one = (painted.second < 0) & (painted.style == 0)
    area = [float((painted.cells[one & (painted.size == size)] > 0).float().mean()) for size in (1, 0, 2)]
    assert area == sorted(area)
    assert area[2] > 3 * area[0]


def test_recolouring_keeps_greys_and_the_outline(painter: Painter):
    image = torch.zeros(2, 4, 8, 8)
    image[0, :, 2:6, 2:6] = torch.tensor([0.1, 0.7, 0.2, 1.0]).view(4, 1, 1)
    image[1, :, 2:6, 2:6] = torch.tensor([0.5, 0.5, 0.5, 1.0]).view(4, 1, 1)
    red = scenes._recolour(image, [1, 1])
    assert red[0, 0, 3, 3] > 2 * red[0, 1, 3, 3]
    torch.testing.assert_close(red[1], image[1])
    assert torch.equal(red[:, 3], image[:, 3])
    assert torch.equal(scenes._recolour(image, [0, 0]), image)


@pytest.mark.parametrize("kind", grounds.GROUNDS)
def test_grounds_are_colours_and_vary(kind: str):
    g = torch.Generator().manual_seed(0)
    drawn = grounds.draw(kind, 3, 32, g)
    assert drawn.shape == (3, 3, 32, 32)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert not torch.equal(drawn[0], drawn[1])


def test_a_stored_pool_is_painted_once(tmp_path, monkeypatch):
    found = {f"{name}|{art}|0": drawing(i) for i, name in enumerate(NAMES) for art in ("noto", "emojione-monotone")}
    np.savez_compressed(tmp_path / "drawings.npz", **found)
    monkeypatch.setattr(scenes, "CHUNK", 128)
    made = scenes.pool(tmp_path, 200, 1, store=tmp_path / "scenes")
    assert len(made) == 200
    assert len(list((tmp_path / "scenes").iterdir())) == 2
    (tmp_path / "drawings.npz").unlink()  # not read again
    again = scenes.pool(tmp_path, 200, 1, store=tmp_path / "scenes")
    assert torch.equal(made.pixels, again.pixels)
    assert torch.equal(made.cells, again.cells)


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
