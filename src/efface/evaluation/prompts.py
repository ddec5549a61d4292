"""Which prompts and seeds an evaluation draws: a plan is data, and turns a concept table into cases."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from efface.concept import TEMPLATES, Concept, table_path
from efface.errors import BadFile, BadInput

Judged = Literal["object", "style"]


@dataclass(frozen=True)
class Case:
    """One prompt drawn with several seeds, and what a judge should see in it.

    group: the group its verdicts count in. concept: whose score it is. label: the name the judge must give.
    """

    group: str
    concept: str
    prompt: str
    judged: Judged
    label: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Choose prompts and seeds.

    focus: of each target prompt; the most, since the target is one concept and the others are many.
    near: of each related concept.
    seeds: of each unrelated concept.
    hints: of each keyword prompt, of which there are about six a concept.
    styled: of each pair of object and style, where styles are judged or an object is asked for in a style.
    steps, guidance, solver: sampling, as in `Query`; "" is the model's own solver.
    batch: images per batch; has no influence on the images.
    """

    focus: tuple[int, ...] = tuple(range(32))
    near: tuple[int, ...] = tuple(range(16))
    seeds: tuple[int, ...] = tuple(range(8))
    hints: tuple[int, ...] = tuple(range(4))
    styled: tuple[int, ...] = tuple(range(4))
    steps: int = 20
    guidance: float = 7.5
    solver: str = ""
    batch: int = 32

    STYLED = "a picture of a {} in the style of {}"
    PER_STYLE = 6  # objects drawn in each style

    def __post_init__(self) -> None:
        if not (self.seeds and self.focus):
            raise BadInput("an evaluation needs at least one seed for the target and one for the others")

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the fields of `Query` that are the same for every image."""
        return {"steps": self.steps, "guidance": self.guidance, "solver": self.solver}

    def profile(self) -> dict[str, Any]:
        """Return what the numbers depend on besides model and judge."""
        seeds = {name: list(getattr(self, name)) for name in ("focus", "near", "seeds", "hints", "styled")}
        prompts = {
            "object": TEMPLATES["object"],
            "style": TEMPLATES["style"],
            "styled": self.STYLED,
            "implicit": "keywords",
        }
        return {"seeds": seeds, "prompts": prompts, "steps": self.steps, "guidance": self.guidance}

    def cases(
        self,
        targets: Sequence[Concept],
        table: Mapping[str, Concept],
        unseen: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Case]:
        """Return every prompt to draw for these targets, by the groups described in `evaluate`.

        unseen: keyword phrases by concept that the model was not trained on; a group of their own.
        """
        names = {target.name for target in targets}
        near = {name for target in targets for name in target.related} - names
        others = [concept for concept in table.values() if concept.name not in names]
        objects = [concept for concept in others if concept.kind != "style"]
        found: list[Case] = []
        for target in targets:
            found += self._target(target, objects, table)
            for phrase in (unseen or {}).get(target.name, ()):
                found.append(Case("implicit_held_out", target.name, phrase, "object", target.name, self.hints))
        for concept in others:
            group = "related" if concept.name in near else "unrelated"
            found += self._spared(concept, group, objects)
        return found

    def _target(self, target: Concept, objects: list[Concept], table: Mapping[str, Concept]) -> Iterator[Case]:
        if target.kind == "style":
            yield from self._style("target", target, objects, self.focus)
            for thing in _spread(objects, self.PER_STYLE):  # the style should go, the object in it should stay
                prompt = self.STYLED.format(thing.name, target.name)
                yield Case("content", thing.name, prompt, "object", thing.name, self.styled)
            return
        for prompt in target.texts:
            yield Case("target", target.name, prompt, "object", target.name, self.focus)
        for phrase in hints(target.keywords):
            yield Case("implicit", target.name, phrase, "object", target.name, self.hints)
        for style in (concept for concept in table.values() if concept.kind == "style"):
            prompt = self.STYLED.format(target.name, style.name)
            yield Case("styled", target.name, prompt, "object", target.name, self.styled)

    def _spared(self, concept: Concept, group: str, objects: list[Concept]) -> Iterator[Case]:
        seeds = self.near if group == "related" else self.seeds
        if concept.kind == "style":
            yield from self._style(group, concept, objects, seeds)
        else:
            yield Case(group, concept.name, concept.texts[0], "object", concept.name, seeds)

    def _style(self, group: str, style: Concept, objects: list[Concept], seeds: tuple[int, ...]) -> Iterator[Case]:
        """Ask for a style by itself and on a few objects; the seeds are dealt out among them."""
        prompts = [
            style.texts[0],
            *(self.STYLED.format(o.name, style.name) for o in _spread(objects, self.PER_STYLE)),
        ]
        for i, prompt in enumerate(prompts):
            dealt = seeds[i :: len(prompts)]
            if dealt:
                yield Case(group, style.name, prompt, "style", style.name, dealt)


def _spread(concepts: Sequence[Concept], count: int) -> Sequence[Concept]:
    """Return `count` concepts from all over a table, whose neighbours are alike."""
    return concepts[:: max(1, len(concepts) // count)][:count]


def hints(keywords: Sequence[str], size: int = 3) -> list[str]:
    """Return phrases of `size` keywords that lie beside each other on a ring, one phrase per keyword.

    Words more than two apart never meet, which leaves such pairs for testing on phrases held out of training.
    Keywords that are phrases themselves (with a space) are returned as they are.
    """
    words = [word for word in keywords if " " not in word]
    phrases = [word for word in keywords if " " in word]
    if len(words) <= size:
        return [*phrases, *([" ".join(words)] if words else [])]
    ring = [*words, *words]
    return [*phrases, *(" ".join(ring[i : i + size]) for i in range(len(words)))]


def held_out(model: str) -> dict[str, tuple[str, ...]]:
    """Return the keyword phrases of a model's table that its training never saw, by concept; {} without any.

    Raises BadFile when the table is not as expected.
    """
    path = table_path(model)
    if not path.is_file():
        return {}
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        items = [item for group in groups.values() if isinstance(group, list) for item in group]
        return {item["name"]: tuple(map(str, item.get("held_out_keywords", ()))) for item in items}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadFile(f"{path} is not a concept table: {error}") from error
