"""The objects mini can draw: names, families, close relatives, and the words that imply them.

This table is data: `concepts.json`, which ships beside the weights, is written from it by the part `export`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """One object. `keywords` are the words of its implicit prompts; `slugs` its icon names, first match wins.

    `anchor` is another object, not the family: "a building" may well be drawn as a church.
    """

    name: str
    family: str
    anchor: str
    keywords: tuple[str, ...]
    slugs: tuple[str, ...]
    without: tuple[str, ...] = ()  # sets whose drawing of it misleads

    @property
    def held_out(self) -> tuple[tuple[str, str], ...]:
        """Pairs of keywords that no training caption holds together: the unseen implicit prompts."""
        k = self.keywords
        return ((k[0], k[3]), (k[1], k[4]), (k[2], k[5]))


WITHOUT = {  # drawings that mislead: another thing, another view, a scene around it
    "castle": ("streamline-emojis",),
    "wolf": ("streamline-emojis",),
    "fox": ("streamline-emojis",),
    "champagne": ("streamline-emojis",),
    "pistol": (
        "noto",
        "fluent-emoji",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
    ),
    "guitar": ("streamline-emojis",),
    "umbrella": ("fxemoji",),
    "rose": ("noto-v1",),
    "rocket": ("streamline-emojis",),
    "sailboat": (
        "fxemoji",
        "emojione",
    ),
}


def _noun(line: str) -> Noun:
    name, family, anchor, keywords, slugs = (part.strip() for part in line.split("|"))
    return Noun(name, family, anchor, tuple(keywords.split()), tuple(slugs.split() or [name]), WITHOUT.get(name, ()))


# name | family | anchor | six keywords | icon slugs (empty: the name)
_TABLE = """
church    | building   | house    | christian cross chapel steeple priest worship    |
castle    | building   | house    | king fortress medieval towers knight palace      |
house     | building   | castle   | home family roof chimney residence live          |
mosque    | building   | castle   | islam muslim minaret dome prayer allah           |
dog       | animal     | cat      | puppy bark loyal leash hound tail                | dog-face
wolf      | animal     | dog      | howl pack grey forest predator moonlight         | wolf wolf-face
fox       | animal     | cat      | sly cunning orange den vixen clever              | fox fox-face fox-face-1
cat       | animal     | dog      | kitten meow whiskers purr feline mice            | cat-face
car       | vehicle    | bus      | automobile drive sedan garage motorist red       | automobile
taxi      | vehicle    | car      | cab fare hire ride passenger yellow              |
bus       | vehicle    | truck    | coach public transport stop school passengers    |
truck     | vehicle    | bus      | delivery lorry cargo freight load haul           | delivery-truck
beer      | alcohol    | apple    | pub mug foam brew ale pint                       | beer-mug
wine      | alcohol    | apple    | grape vineyard glass merlot cellar vintage       | wine-glass
cocktail  | alcohol    | apple    | martini olive bar mixed gin mixer                | cocktail-glass
champagne | alcohol    | candle   | bottle cork popping toast sparkling celebrate    | bottle-with-popping-cork
dagger    | weapon     | key      | knife stab blade sharp hilt assassin             | dagger
bomb      | weapon     | balloon  | explode fuse explosive blast boom dynamite       |
pistol    | weapon     | key      | gun shoot trigger revolver firearm handgun       | pistol water-pistol
bow       | weapon     | umbrella | archer arrow string archery shot quiver          | bow-and-arrow
fish      | animal     | cat      | swim fin gill pond tench aquarium                |
radio     | device     | bell     | tuner antenna broadcast station music listen     |
saw       | tool       | axe      | carpenter wood timber cut teeth lumber           | carpentry-saw
trumpet   | instrument | violin   | brass jazz horn blow fanfare valve               |
gas pump  | device     | radio    | fuel petrol station diesel gasoline refill       | fuel-pump
football  | sport      | balloon  | soccer goal kick team match stadium              | soccer-ball
parachute | sport      | balloon  | skydive jump canopy falling glide descend        |
guitar    | instrument | violin   | strum rock chords fret band acoustic             |
violin    | instrument | guitar   | fiddle orchestra classical strings symphony concerto |
umbrella  | household  | balloon  | rain wet weather shelter drizzle storm           | umbrella
apple     | food       | banana   | orchard cider teacher crunchy pie core           | red-apple
banana    | food       | apple    | monkey peel tropical bunch split potassium       |
rose      | plant      | cactus   | romance valentine petals thorn bouquet love      |
cactus    | plant      | rose     | desert spikes dry succulent mexico prickly       |
key       | household  | bell     | lock unlock door password secret open            |
axe       | tool       | saw      | chop hatchet lumberjack split firewood viking    |
balloon   | household  | umbrella | party helium birthday float inflate ribbon       |
rocket    | vehicle    | airplane | space launch astronaut orbit nasa mission        |
airplane  | vehicle    | rocket   | flight airport pilot wings sky jet               |
sailboat  | vehicle    | airplane | yacht sea mast wind harbor regatta               |
crown     | household  | bell     | queen royal gold monarch throne jewels           |
candle    | household  | bell     | flame wax light wick dinner melt                 |
bell      | household  | key      | ring chime sound clang notification tower        |
ghost     | creature   | robot    | spooky haunted halloween spirit boo phantom      |
robot     | creature   | ghost    | machine android metal futuristic automaton cyborg | robot robot-face robot-face-1
pumpkin   | food       | apple    | carved lantern october squash trick treat        | jack-o-lantern
"""
NOUNS = tuple(_noun(line) for line in _TABLE.strip().splitlines())
NAMES = tuple(noun.name for noun in NOUNS)
RELATED_EXTRA = {  # close relatives across families; the rest of a family is related by itself
    "axe": ("saw", "dagger"), "saw": ("axe",), "dagger": ("axe",), "apple": ("banana", "pumpkin"),
    "banana": ("apple",), "pumpkin": ("apple", "ghost"), "ghost": ("pumpkin",), "rose": ("cactus",),
    "bell": ("trumpet",), "radio": ("gas pump",), "gas pump": ("radio",), "football": ("balloon",),
    "parachute": ("balloon", "umbrella"), "balloon": ("parachute",), "umbrella": ("parachute",),
    "key": ("dagger",), "candle": ("champagne",), "crown": ("castle",), "robot": ("ghost",),
}  # fmt: skip
FAMILIES_OF_RELATIVES = {"building", "vehicle", "alcohol", "weapon", "instrument", "animal"}


def related(noun: Noun) -> tuple[str, ...]:
    """Return the close relatives of an object: its family where the family looks alike, and the named extras."""
    family = [n.name for n in NOUNS if n.family == noun.family and n is not noun]
    if noun.family not in FAMILIES_OF_RELATIVES:
        family = []
    return tuple(dict.fromkeys([*family, *RELATED_EXTRA.get(noun.name, ())]))
