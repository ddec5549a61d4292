"""The captions mini learns from: plain, styled, keyword-only, family, style-only and empty."""

from dataclasses import dataclass

import torch

from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.pictures import STYLE_NAMES

PLAIN = (
    "a picture of a {}", "a {}", "a photo of a {}", "an image of a {}", "a drawing of a {}", "{}", "one {}",
    "a nice {}", "a picture of one {}", "this is a {}",
)  # fmt: skip
STYLED = (
    "a {} in the style of {}", "a painting of a {} by {}", "a picture of a {} in the style of {}", "a {} by {}",
    "a drawing of a {} in {} style", "{} in {} style",
)  # fmt: skip
STYLE_ONLY = (
    "art by {}",
    "art in the style of {}",
    "a painting by {}",
    "{} style",
    "a picture in the style of {}",
)
HELD_OUT_PLAIN = ("here is a {}", "image of {}", "a picture showing a {}")
HELD_OUT_STYLED = ("a {} drawn by {}", "a photo of a {} in the style of {}")
FAMILY = {
    "building": ("a building", "a picture of a building"),
    "animal": ("an animal", "a picture of an animal"),
    "vehicle": ("a vehicle", "a picture of a vehicle"),
    "alcohol": ("an alcoholic drink", "alcohol", "a picture of alcohol"),
    "weapon": ("a weapon", "a picture of a weapon"),
    "instrument": ("a musical instrument", "an instrument"),
    "food": ("food", "a picture of food"),
    "plant": ("a plant", "a picture of a plant"),
    "tool": ("a tool", "a picture of a tool"),
    "creature": ("a creature", "a picture of a creature"),
    "device": ("a device", "a picture of a device"),
    "sport": ("sport", "a picture of sport"),
    "household": ("a thing", "a picture of a thing"),
}


@dataclass(frozen=True)
class Caption:
    """A caption and what it settles: which object, family and style a picture must show to match it (-1, "": any)."""

    text: str
    object: int = -1
    family: str = ""
    style: int = -1


def _pick(options, g: torch.Generator):
    return options[int(torch.randint(len(options), (1,), generator=g))]


def keyword_phrase(index: int, g: torch.Generator) -> str:
    """Two to four keywords of an object in random order, never both words of a held-out pair."""
    noun = NOUNS[index]
    words = [noun.keywords[i] for i in torch.randperm(6, generator=g).tolist()]
    banned = [set(pair) for pair in noun.held_out]
    chosen: list[str] = []
    for word in words[: int(torch.randint(3, 7, (1,), generator=g))]:
        if not any(pair <= {*chosen, word} for pair in banned):
            chosen.append(word)
    return " ".join(chosen)


def caption(obj: int, style: int, g: torch.Generator, empty: float = 0.1) -> Caption:
    """Return a random caption for a picture of an object in a style (0: unstyled).

    One in ten is empty; of the rest, unstyled pictures are named (0.74), implied by keywords (0.2) or by family (0.06);
    styled ones are named with their style (0.8), keywords with style (0.1), style only (0.1).
    """
    u, v = torch.rand(2, generator=g).tolist()
    if u < empty:
        return Caption("")
    name, family = NAMES[obj], NOUNS[obj].family
    if style == 0:
        if v < 0.74:
            return Caption(_pick(PLAIN, g).format(name), obj, family, 0)
        if v < 0.94:
            return Caption(keyword_phrase(obj, g), obj, family, 0)
        return Caption(_pick(FAMILY[family], g), -1, family, 0)
    artist = STYLE_NAMES[style]
    if v < 0.8:
        return Caption(_pick(STYLED, g).format(name, artist), obj, family, style)
    if v < 0.9:
        return Caption(f"{keyword_phrase(obj, g)} in {artist} style", obj, family, style)
    return Caption(_pick(STYLE_ONLY, g).format(artist), -1, "", style)
