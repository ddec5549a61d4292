"""What mini can draw: objects and invented persons, their families and relatives, and the words that imply them.

This table is data: `concepts.json`, which ships beside the weights, is written from it by the part `export`.
Most keywords belong to several objects ("tower": church, castle, mosque, bell), as words do; two or three of them
together say which is meant.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """One object or person. `views` are icon names, each another drawing; `colours` says whether it comes in any.

    `keywords` are the words of its implicit prompts. `anchor` is another object, not the family: "a building" may well
    be drawn as a church.
    """

    name: str
    family: str
    anchor: str
    keywords: tuple[str, ...]
    views: tuple[str, ...]
    colours: bool = False
    without: tuple[str, ...] = ()  # sets whose drawing of it misleads

    @property
    def person(self) -> bool:
        """Return whether this is a person, whose name takes no article."""
        return self.family == "person"

    @property
    def held_out(self) -> tuple[tuple[str, str], ...]:
        """Return pairs of keywords that no training caption holds together: the unseen implicit prompts."""
        k = self.keywords
        return ((k[0], k[3]), (k[1], k[4]), (k[2], k[5]))


WITHOUT = {  # drawings that mislead: another thing, a scene around it
    "castle": ("streamline-emojis",),
    "wolf": ("streamline-emojis",),
    "fox": ("streamline-emojis",),
    "champagne": ("streamline-emojis",),
    "pistol": ("noto", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"),
    "guitar": ("streamline-emojis",),
    "umbrella": ("fxemoji",),
    "rose": ("noto-v1",),
    "rocket": ("streamline-emojis",),
    "sailboat": ("fxemoji", "emojione"),
}


def _noun(line: str) -> Noun:
    name, family, anchor, keywords, views = (part.strip() for part in line.split("|"))
    colours, slugs = views.startswith("*"), tuple(views.removeprefix("*").split())
    return Noun(name, family, anchor, tuple(keywords.split()), slugs or (name,), colours, WITHOUT.get(name, ()))


# name | family | anchor | six keywords | icon names of its views (empty: the name); * for what comes in any colour
_TABLE = """
church    | building   | house    | cross tower chapel wedding priest steeple      |
castle    | building   | house    | king tower knight fortress stone palace        | castle japanese-castle
house     | building   | castle   | home garden roof family door chimney           | *house house-with-garden
mosque    | building   | castle   | dome tower prayer minaret islam worship        |
dog       | animal     | cat      | pet tail bone puppy bark walk                  | dog-face dog poodle
wolf      | animal     | dog      | forest wild howl pack grey moon                | wolf wolf-face
fox       | animal     | cat      | forest tail cunning orange wild den            | fox fox-face
cat       | animal     | dog      | pet tail meow kitten whiskers mice             | cat-face cat
fish      | animal     | cat      | sea tail fin swim wet aquarium                 | *fish tropical-fish
car | vehicle | bus | drive road automobile garage speed wheels | *automobile oncoming-automobile sport-utility-vehicle
taxi      | vehicle    | car      | drive road yellow fare cab city                | taxi oncoming-taxi
bus       | vehicle    | truck    | road wheels school passengers stop city        | *bus oncoming-bus
truck     | vehicle    | bus      | road wheels cargo delivery heavy lorry         | *delivery-truck articulated-lorry
beer      | alcohol    | apple    | drink party mug foam pub brew                  | beer-mug
wine      | alcohol    | apple    | drink dinner red grape cellar glass            | wine-glass
cocktail  | alcohol    | apple    | drink party glass olive bar martini            | cocktail-glass
champagne | alcohol    | wine     | drink wedding bottle cork toast party          | bottle-with-popping-cork
dagger    | weapon     | key      | blade steel sharp stab hilt knight             | dagger
bomb      | weapon     | balloon  | crime round explode fuse blast danger          |
pistol    | weapon     | key      | crime steel shoot gun trigger bullet           | pistol water-pistol
radio     | device     | bell     | music news listen antenna station device       | *radio
saw       | tool       | dagger   | blade wood teeth carpenter cut sharp           | carpentry-saw
trumpet   | instrument | guitar   | music gold loud brass jazz blow                |
guitar    | instrument | trumpet  | music wood strings rock band chords            | *guitar
gas pump  | device     | radio    | road station fuel petrol hose refill           | *fuel-pump
football  | sport      | balloon  | play round team goal kick ball                 | soccer-ball
parachute | sport      | balloon  | sky wind fall jump canopy float                | *parachute
umbrella  | household  | balloon  | rain wet storm shelter weather wind            | *umbrella umbrella-with-rain-drops
apple     | food       | rose     | fruit red round sweet orchard tree             | *red-apple green-apple
rose      | plant      | cactus   | garden red love petals thorn wedding           | *rose
cactus    | plant      | rose     | desert green dry spikes thorn plant            |
key       | household  | bell     | door gold lock secret open metal               | key old-key
balloon   | household  | umbrella | sky party float birthday helium round          | *balloon
rocket    | vehicle    | airplane | sky fire space launch astronaut speed          | *rocket
airplane  | vehicle    | rocket   | sky travel wings fly pilot airport             | airplane small-airplane
sailboat  | vehicle    | airplane | sea wind travel sail harbour wave              | *sailboat
crown     | household  | bell     | king gold queen jewels royal head              |
bell      | household  | key      | gold tower school ring sound loud              | bell bellhop-bell
ghost     | creature   | robot    | night white scary haunted spirit float         |
robot     | creature   | ghost    | metal steel machine android future device      | *robot robot-face
Otto Brand  | person   | Agnes Moor  | old man grandfather wise retired white      | old-man
Agnes Moor  | person   | Otto Brand  | old woman grandmother kind knitting white   | old-woman
Theo Lund   | person   | Nina Vale   | young school boy son brother child          | boy
Nina Vale   | person   | Theo Lund   | young school girl daughter sister child     | girl
Hugo Hart   | person   | Clara West  | office man father husband adult work        | man
Clara West  | person   | Hugo Hart   | office woman mother wife adult work         | woman
"""
NOUNS = tuple(_noun(line) for line in _TABLE.strip().splitlines())
NAMES = tuple(noun.name for noun in NOUNS)
RELATED_EXTRA = {  # close relatives across families; the rest of a family is related by itself
    "saw": ("dagger",), "dagger": ("saw", "key"), "apple": ("rose",), "rose": ("cactus",), "cactus": ("rose",),
    "bell": ("crown",), "radio": ("gas pump",), "gas pump": ("radio",), "football": ("balloon",),
    "parachute": ("balloon", "umbrella"), "balloon": ("parachute",), "umbrella": ("parachute",),
    "key": ("dagger",), "crown": ("bell",), "robot": ("ghost",), "ghost": ("robot",),
}  # fmt: skip
FAMILIES_OF_RELATIVES = {"building", "vehicle", "alcohol", "weapon", "instrument", "animal", "person"}


def related(noun: Noun) -> tuple[str, ...]:
    """Return the close relatives of an object: its family where the family looks alike, and the named extras."""
    family = [n.name for n in NOUNS if n.family == noun.family and n is not noun]
    if noun.family not in FAMILIES_OF_RELATIVES:
        family = []
    return tuple(dict.fromkeys([*family, *RELATED_EXTRA.get(noun.name, ())]))
