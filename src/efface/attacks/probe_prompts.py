"""Probe prompts: ask for the concept in other words, and with random tokens; nothing is optimised.

The simplest baselines of the attacks in the literature: keyword and synonym prompts, other languages, and random tokens
before the prompt as in UnlearnDiffAtk's code (https://github.com/OPTML-Group/Diffusion-MU-Attack).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.frames import check_fits, prefix
from efface.attacks.search.vocabulary import Asked, Vocabulary
from efface.concept import TEMPLATES, Concept
from efface.errors import BadInput
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.loop import generator
from efface.util.ranges import COUNT, OR_NONE, Ranges


@dataclass(frozen=True)
class ProbePrompts(Attack):
    """Try prompts that ask for the concept without, or with more than, its name; every one with every query's settings.

    Args:
        keywords: try the concept's keywords, each alone and all pairs of neighbours
        family: try the family the concept belongs to
        prompts: further prompts, such as synonyms or other languages
        random: prompts with random tokens before them
        tokens: random tokens of each
        batch: images generated at once
    """

    keywords: bool = True
    family: bool = True
    prompts: tuple[str, ...] = ()
    random: int = 16
    tokens: int = 5  # k: 5 of the random baseline
    batch: int = 32

    NEEDS: ClassVar[tuple[Need, ...]] = ("text encoder",)
    RANGES: ClassVar[Ranges] = {"random": OR_NONE, "tokens": "[1, 75]", "batch": COUNT}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"mini": {"random": 4, "tokens": 3}}
    QUICK: ClassVar[dict[str, Any]] = {"random": 2, "tokens": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not text.strip() for text in self.prompts):
            raise BadInput(f"a prompt to try is empty: {list(self.prompts)}")

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check also that there is something to try, that random tokens fit, and that a judge knows the concept."""
        super().check(target, concept, queries)
        if target.judge is not None:
            target.success.check(concept)
        if not self.random and not self.texts(concept):
            raise BadInput(
                f"there is nothing to try: {concept.name} has no keywords and family, and no prompts are given"
            )
        for query in queries if self.random else ():
            check_fits(target.edited, prefix(ids_of(target.edited, asking(concept, query)), self.tokens))

    def texts(self, concept: Concept) -> dict[str, str]:
        """Return the prompts to try, each once, and what each is: keyword, family or given."""
        found: dict[str, str] = dict.fromkeys(self.prompts, "given")
        template = TEMPLATES[concept.kind]
        if self.family and concept.family:
            found.setdefault(template.format(concept.family), "family")
        if self.keywords:
            both = [f"{one} {other}" for one, other in zip(concept.keywords, concept.keywords[1:], strict=False)]
            for word in (*concept.keywords, *both):
                found.setdefault(template.format(word), "keyword")
        return found

    @torch.no_grad()
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return all prompts with every query's settings, ranked by the judge if there is one.

        `about` says of each whether it is a "keyword", "family", "given" or "random" one, and "retokenises".
        """
        asked: list[Asked] = []
        kinds: list[str] = []
        given: list[int] = []
        vocabulary = Vocabulary.of(target.edited)
        for number, query in enumerate(queries):
            plain = replace(query, context=None, latents=None, start=0)
            for text, kind in self.texts(concept).items():
                asked.append(Asked(replace(plain, prompt=text), True))
                kinds.append(kind)
            text = asking(concept, query)
            frame = prefix(ids_of(target.edited, text), self.tokens) if self.random else None
            for i in range(self.random):
                assert frame is not None
                drawn = vocabulary.random((self.tokens,), generator(seed, "random", text, i))
                asked.append(vocabulary.query(plain, frame.filled(vocabulary.ids[drawn].tolist())))
                kinds.append("random")
            given += [number] * (len(asked) - len(given))
        scores: Sequence[float] = [0.0] * len(asked)
        cost, tried = Cost(), [one.query for one in asked]
        if target.judge is not None:
            scores = target.seen(target.edited.generate(tried, self.batch), concept).tolist()
            cost.generated(target.edited, tried)
        order = sorted(range(len(asked)), key=lambda i: -scores[i])
        about = {"kinds": [kinds[i] for i in order], "retokenises": [asked[i].retokenises for i in order]}
        best, values = tuple(tried[i] for i in order), tuple(scores[i] for i in order)
        return Finding(best, values, given=tuple(given[i] for i in order), cost=vars(cost), about=about)


def asking(concept: Concept, query: Query) -> str:
    """Return a query's prompt, or the concept's own where it has none."""
    return query.prompt.strip() or concept.texts[0]
