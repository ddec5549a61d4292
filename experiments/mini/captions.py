"""The captions mini learns from: each says some of what its scene shows, and leaves the rest open.

As captions of the web do, some name the object, some only imply it by keywords or family, some name one of two
objects.
"""

from collections.abc import Mapping, Sequence

import torch

from experiments.mini.grounds import COLOURS as PAPER
from experiments.mini.grounds import GROUNDS
from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.scenes import COLOUR_NAMES, PLACES, RELATIONS, SIZES, STYLE_NAMES, Scenes

PLAIN = (
    "a picture of {}", "{}", "a photo of {}", "an image of {}", "a drawing of {}", "this is {}", "there is {}",
    "a nice picture of {}", "look at {}",
)  # fmt: skip
PORTRAIT = ("a portrait of {}", "the face of {}", "{}", "a picture of {}", "a photo of {}")
STYLED = (
    "{} in the style of {}", "a painting of {} by {}", "a picture of {} in the style of {}", "{} by {}",
    "a drawing of {} in {} style", "{} in {} style",
)  # fmt: skip
STYLE_ONLY = ("art by {}", "art in the style of {}", "a painting by {}", "{} style", "a picture in the style of {}")
HELD_OUT_PLAIN = ("here is {}", "image of {}", "a picture showing {}")
HELD_OUT_STYLED = ("{} drawn by {}", "a photo of {} in the style of {}")
FAMILY = {
    "building": ("a building",),
    "animal": ("an animal",),
    "vehicle": ("a vehicle",),
    "alcohol": ("an alcoholic drink", "alcohol"),
    "weapon": ("a weapon",),
    "instrument": ("a musical instrument", "an instrument"),
    "food": ("food",),
    "plant": ("a plant",),
    "tool": ("a tool",),
    "creature": ("a creature",),
    "device": ("a device",),
    "sport": ("sport",),
    "household": ("a thing",),
    "person": ("a person", "somebody"),
}
SAID_SIZE = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
SAID_PLACE = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the centre"),
}
SAID_GROUND = {
    "grass": ("on grass", "on the grass", "in a meadow"),
    "sea": ("at sea", "on the water", "by the sea"),
    "night": ("at night", "under the stars"),
    "sand": ("on sand", "in the desert", "on the beach"),
    "snow": ("in the snow", "in winter"),
    **{colour: (f"on a {colour} background", f"on {colour}") for colour in PAPER},
}
SAID_RELATION = {
    "left of": ("left of",),
    "right of": ("right of",),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
Facts = Mapping[str, int]
EMPTY = 0.1


def article(words: str) -> str:
    """Return words with the article they take: "an old car"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def named(obj: int, size: str = "", colour: str = "") -> str:
    """Return an object's name with its article, or a person's name."""
    noun = NOUNS[obj]
    return noun.name if noun.person else article(" ".join(word for word in (size, colour, noun.name) if word))


def keyword_phrase(index: int, g: torch.Generator) -> str:
    """Return two to four keywords of an object in random order, never both words of a held-out pair."""
    noun = NOUNS[index]
    words = [noun.keywords[i] for i in torch.randperm(6, generator=g).tolist()]
    banned = [set(pair) for pair in noun.held_out]
    chosen: list[str] = []
    for word in words[: int(torch.randint(3, 7, (1,), generator=g))]:
        if not any(pair <= {*chosen, word} for pair in banned):
            chosen.append(word)
    return " ".join(chosen)


def caption(facts: Facts, g: torch.Generator, empty: float = EMPTY) -> str:
    """Return a random caption of a scene.

    empty: share that says nothing. Of the others 68 % name the object or one of two or both, 20 % imply it by keywords,
    5 % by its family, 7 % say only style or ground, where there is one. Size, place and colour are said in 30 to 50 %
    of the scenes that have one to say, the ground in half.
    """
    u, v, w = torch.rand(3, generator=g).tolist()
    if u < empty:
        return ""
    style, ground = STYLE_NAMES[facts["style"]], GROUNDS[facts["ground"]]
    behind = _pick(SAID_GROUND[ground], g) if ground and w < 0.5 else ""
    if v < 0.07 and (style or ground):
        return _pick(STYLE_ONLY, g).format(style) if style else f"a picture {_pick(SAID_GROUND[ground], g)}"
    if v < 0.12:
        what = _pick(FAMILY[NOUNS[facts["first"]].family], g)
    elif v < 0.32:
        return " ".join(filter(None, [keyword_phrase(_someone(facts, g), g), f"in {style} style" if style else behind]))
    else:
        what = _subject(facts, g)
    what = " ".join(filter(None, [what, behind]))
    if style:
        return _pick(STYLED, g).format(what, style)
    portrait = facts["second"] < 0 and NOUNS[facts["first"]].person
    return _pick(PORTRAIT if portrait else PLAIN, g).format(what)


def captions(scenes: Scenes, g: torch.Generator, empty: float = EMPTY) -> list[str]:
    """Return a caption for every scene."""
    return [caption(scenes.facts(i), g, empty) for i in range(len(scenes))]


def vocabulary() -> list[str]:
    """Return every word that a caption can hold."""
    said = [SAID_SIZE, SAID_PLACE, SAID_GROUND, SAID_RELATION, FAMILY]
    texts = [text for words in said for options in words.values() for text in options]
    texts += [*PLAIN, *PORTRAIT, *STYLED, *STYLE_ONLY, *HELD_OUT_PLAIN, *HELD_OUT_STYLED]
    texts += [*NAMES, *STYLE_NAMES, *COLOUR_NAMES, *(" ".join(noun.keywords) for noun in NOUNS), "a an and with of"]
    return sorted({word.lower() for text in texts for word in text.replace("{}", " ").split()})


def _subject(facts: Facts, g: torch.Generator) -> str:
    u = torch.rand(4, generator=g).tolist()
    colours = [COLOUR_NAMES[facts[key]] if u[i] < 0.5 else "" for i, key in enumerate(("colour", "colour2"))]
    if facts["second"] < 0:
        size, place = SIZES[facts["size"]], PLACES[facts["place"]]
        what = named(facts["first"], _pick(SAID_SIZE[size], g) if size and u[2] < 0.35 else "", colours[0])
        return f"{what} {_pick(SAID_PLACE[place], g)}" if place and u[3] < 0.35 else what
    first, second = (named(facts[key], "", colour) for key, colour in zip(("first", "second"), colours, strict=True))
    if u[2] < 0.25:
        return first if u[3] < 0.5 else second
    if u[2] < 0.65:
        first, second = (first, second) if u[3] < 0.5 else (second, first)
        return f"{first} {_pick(('and', 'and', 'with'), g)} {second}"
    said = SAID_RELATION[RELATIONS[facts["relation"]]]
    return f"{first} {_pick(said, g)} {second}"


def _someone(facts: Facts, g: torch.Generator) -> int:
    return facts["first"] if facts["second"] < 0 or torch.rand((), generator=g) < 0.5 else facts["second"]


def _pick(options: Sequence[str], g: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (1,), generator=g))]
