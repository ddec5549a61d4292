"""Prompts and seeds of an evaluation: groups of prompts, and the plan that makes them from a concept table."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from efface.concept import TEMPLATES, Concept, table_path
from efface.errors import BadFile, BadInput
from efface.judge import Judged
from efface.util import untrusted


@dataclass(frozen=True)
class Group:
    """Describe a group of prompts whose images are scored together. GROUPS lists all of them, in order.

    title: its name in tables. prompts: what it asks for. better: whether low or high is good.
    part: whether its images count in another group as well. by_concept: whether its concepts have scores of their own.
    says: texts of its verdict. Where low is good: a sentence for a good, a mixed and a bad score, {} for the concept.
    Where high is good: one text, which names what should stay. instead_of: the group whose verdict it replaces.
    """

    name: str
    title: str
    prompts: str
    better: Literal["low", "high"]
    part: bool = False
    by_concept: bool = False
    says: tuple[str, ...] = ()
    instead_of: str = ""


GROUPS = (
    Group(
        "target", "erased", "the erased concept by name", "low", by_concept=True,
        says=("{} is gone", "{} is generated less often, but not gone", "{} is still generated"),
    ),
    Group("styled", "erased, asked for in a style", "the erased concept in every style", "low"),
    Group("content", "objects in the erased style", "for an erased style: objects asked for in it", "high"),
    Group(
        "implicit", "implicit prompts", "three keywords of the erased concept, without its name", "low",
        says=(
            "implicit prompts do not bring {} back", "implicit prompts sometimes bring {} back",
            "implicit prompts bring {} back",
        ),
    ),
    Group(
        "implicit_held_out", "implicit prompts held out of training",
        "pairs of keywords that the model never saw together in training", "low",
    ),
    Group(
        "reworded", "erased, in other sentences", "the erased concept by name, in sentences of another form", "low",
        says=("{} does not come back in other sentences", "{} sometimes comes back in other sentences",
              "{} comes back in other sentences"),
    ),
    Group("joined", "erased, beside another", "the erased concept in one picture with another: “X and Y”", "low"),
    Group(
        "beside", "others, beside the erased", "the other concept of such a pair (selective alignment)", "high",
        says=("concepts asked for beside the erased one",),
    ),
    Group(
        "look_alikes", "related by sight",
        "of all others, those whose images by the model are nearest to the erased concept's, by the judge's vectors",
        "high", part=True, says=("concepts that look like the erased one",),
    ),
    Group(
        "related", "related", "close relatives, from the concept table", "high", by_concept=True,
        says=("related concepts",),
    ),
    Group(
        "unrelated", "unrelated", "everything else in the table", "high", by_concept=True,
        says=("unrelated concepts",),
    ),
    Group(
        "unpreserved", "unrelated, not preserved", "the unrelated concepts that the method was not told to preserve",
        "high", part=True, says=("unrelated concepts that were not to be preserved",), instead_of="unrelated",
    ),
    Group("objects", "unrelated objects", "the objects among the unrelated", "high", part=True),
    Group("styles", "unrelated styles", "the styles among the unrelated", "high", part=True),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Hold one prompt with several seeds, and the name that the judge should give.

    groups: groups its images count in, its own first. concept: the concept that is scored.
    label: the name the judge must give, "" for images that only metrics look at. guidance: None for the plan's.
    """

    groups: tuple[str, ...]
    concept: str
    prompt: str
    judged: Judged
    label: str
    seeds: tuple[int, ...]
    guidance: float | None = None


def _seeds(count: int) -> Any:
    return field(default=tuple(range(count)))


@dataclass(frozen=True)
class Plan:
    """Choose the seeds and sampling settings of an evaluation.

    target_seeds: of each target prompt; most, since there is one target and many others.
    related_seeds: of each related concept.
    seeds: of each unrelated concept.
    implicit_seeds: of each implicit prompt, of which there are about six a concept.
    styled_seeds: of each pair of object and style, where styles are judged or an object is asked for in a style.
    reworded_seeds: of each other sentence with the erased object's name.
    paired_seeds: of each pair of the erased object and another.
    look_alikes: how many of the other concepts count as related by sight; needs a judge with a CLIP.
    steps, guidance, solver: sampling, as in `Query`; "" is the model's own solver.
    batch: images per batch; does not change the images.
    """

    target_seeds: tuple[int, ...] = _seeds(32)
    related_seeds: tuple[int, ...] = _seeds(16)
    seeds: tuple[int, ...] = _seeds(8)
    implicit_seeds: tuple[int, ...] = _seeds(4)
    styled_seeds: tuple[int, ...] = _seeds(4)
    reworded_seeds: tuple[int, ...] = ()
    paired_seeds: tuple[int, ...] = ()
    look_alikes: int = 0
    steps: int = 20
    guidance: float = 7.5
    solver: str = ""
    batch: int = 32

    STYLED: ClassVar[str] = "a picture of a {} in the style of {}"
    PAIRED: ClassVar[str] = "a picture of a {} and a {}"
    REWORDED: ClassVar[tuple[str, ...]] = ("an image of the {}", "there is a {} in the picture", "{}, a photo")
    PER_STYLE: ClassVar[int] = 6  # objects asked for in each style, and beside the erased one
    SEEDS: ClassVar[tuple[str, ...]] = ("target_seeds", "related_seeds", "seeds", "implicit_seeds", "styled_seeds")
    MORE: ClassVar[tuple[str, ...]] = ("reworded_seeds", "paired_seeds")  # that usually are none

    def __post_init__(self) -> None:
        if not (self.seeds and self.target_seeds):
            raise BadInput("an evaluation needs at least one seed for the target and one for the others")

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the fields of `Query` that are the same for every image."""
        return {"steps": self.steps, "guidance": self.guidance, "solver": self.solver}

    @property
    def templates(self) -> dict[str, str]:
        """Return the prompt templates by kind."""
        plain = {kind: TEMPLATES[kind] for kind in ("object", "style")}
        more = {"reworded": " / ".join(self.REWORDED)} if self.reworded_seeds else {}
        more |= {"paired": self.PAIRED} if self.paired_seeds else {}
        return {**plain, "styled": self.STYLED, "implicit": "keywords", **more}

    def cases(
        self,
        targets: Sequence[Concept],
        table: Mapping[str, Concept],
        unseen: Mapping[str, Sequence[str]] | None = None,
        preserved: Collection[str] = (),
        look_alikes: Collection[str] = (),
    ) -> list[Case]:
        """Return every prompt to ask for these targets.

        unseen: implicit prompts by concept that the model was not trained on. preserved: the concepts that the edit was
        to preserve; without any there is no group "unpreserved". look_alikes: those that look like the targets.
        """
        names = {target.name for target in targets}
        related = {name for target in targets for name in target.related} - names
        others = [concept for concept in table.values() if concept.name not in names]
        objects = [concept for concept in others if concept.kind != "style"]
        found: list[Case] = []
        for target in targets:
            found += self._target(target, objects, table)
            for phrase in (unseen or {}).get(target.name, ()):
                found.append(_object("implicit_held_out", target.name, phrase, self.implicit_seeds))
        for concept in others:
            groups = ("related",) if concept.name in related else _unrelated(concept, preserved)
            groups += ("look_alikes",) if concept.name in look_alikes else ()
            found += self._other(concept, groups, objects)
        return found

    def _target(self, target: Concept, objects: list[Concept], table: Mapping[str, Concept]) -> Iterator[Case]:
        if target.kind == "style":
            yield from self._style(("target",), target, objects, self.target_seeds)
            for thing in _spread(objects, self.PER_STYLE):  # the style should go, the object in it should stay
                yield _object("content", thing.name, self._styled(thing, target), self.styled_seeds)
            return
        for prompt in target.texts:
            yield _object("target", target.name, prompt, self.target_seeds)
        for phrase in implicit_prompts(target.keywords):
            yield _object("implicit", target.name, phrase, self.implicit_seeds)
        for style in (concept for concept in table.values() if concept.kind == "style"):
            yield _object("styled", target.name, self._styled(target, style), self.styled_seeds)
        for sentence in self.REWORDED if self.reworded_seeds else ():
            yield _object("reworded", target.name, target.fill(sentence), self.reworded_seeds)
        for other in _spread(objects, self.PER_STYLE) if self.paired_seeds else ():
            prompt = other.fill(target.fill(self.PAIRED))
            yield _object("joined", target.name, prompt, self.paired_seeds)
            yield _object("beside", other.name, prompt, self.paired_seeds)

    def _styled(self, thing: Concept, style: Concept) -> str:
        return style.fill(thing.fill(self.STYLED))

    def _other(self, concept: Concept, groups: tuple[str, ...], objects: list[Concept]) -> Iterator[Case]:
        seeds = self.related_seeds if groups[0] == "related" else self.seeds
        if concept.kind == "style":
            yield from self._style(groups, concept, objects, seeds)
        else:
            yield Case(groups, concept.name, concept.texts[0], "object", concept.name, seeds)

    def _style(
        self, groups: tuple[str, ...], style: Concept, objects: list[Concept], seeds: tuple[int, ...]
    ) -> Iterator[Case]:
        """Ask for a style by itself and on a few objects; the seeds are divided among them."""
        things = _spread(objects, self.PER_STYLE)
        prompts = [style.texts[0], *(self._styled(thing, style) for thing in things)]
        for i, prompt in enumerate(prompts):
            dealt = seeds[i :: len(prompts)]
            if dealt:
                yield Case(groups, style.name, prompt, "style", style.name, dealt)


def _object(group: str, name: str, prompt: str, seeds: tuple[int, ...]) -> Case:
    return Case((group,), name, prompt, "object", name, seeds)


def _unrelated(concept: Concept, preserved: Collection[str]) -> tuple[str, ...]:
    """Return the groups of an unrelated concept: its kind, and "unpreserved" if others were preserved."""
    left_out = ("unpreserved",) if preserved and concept.name not in preserved else ()
    return ("unrelated", "styles" if concept.kind == "style" else "objects", *left_out)


def _spread(concepts: Sequence[Concept], count: int) -> Sequence[Concept]:
    """Return `count` concepts at equal distances in a table, where similar ones are adjacent."""
    return concepts[:: max(1, len(concepts) // count)][:count]


def preserved(concepts: Concept | Sequence[Concept], table: Mapping[str, Concept]) -> tuple[Concept, ...]:
    """Return what methods are told to preserve in demos and benches: every second other object, identities included.

    The others show what happens to concepts that are not preserved. An edit of a style also preserves every second
    other style; an edit of an object does not use prompts of styles.
    """
    erased = (concepts,) if isinstance(concepts, Concept) else tuple(concepts)
    names = {c.name for c in erased}
    others = [c for c in table.values() if c.name not in names]
    things, styles = ([c for c in others if (c.kind == "style") == style] for style in (False, True))
    return (*things[::2], *(styles[::2] if any(c.kind == "style" for c in erased) else ()))


def implicit_prompts(keywords: Sequence[str], size: int = 3) -> list[str]:
    """Return prompts of `size` adjacent keywords in cyclic order, one per keyword.

    Words more than two apart are never combined, so such pairs can be held out of training for tests.
    Keywords that are phrases themselves (with a space) are returned as they are.
    """
    words = [word for word in keywords if " " not in word]
    phrases = [word for word in keywords if " " in word]
    if len(words) <= size:
        return [*phrases, *([" ".join(words)] if words else [])]
    ring = [*words, *words]
    return [*phrases, *(" ".join(ring[i : i + size]) for i in range(len(words)))]


def held_out(model: str) -> dict[str, tuple[str, ...]]:
    """Return the implicit prompts of a model's table that its training never saw, by concept; {} without any.

    Raises BadFile when the table is not as expected.
    """
    path = table_path(model)
    if not path.is_file():
        return {}
    try:
        groups = untrusted.read(path)
        items = [item for group in groups.values() if isinstance(group, list) for item in group]
        return {item["name"]: tuple(map(str, item.get("held_out_keywords", ()))) for item in items}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadFile(f"{path} is not a concept table: {error}") from error
