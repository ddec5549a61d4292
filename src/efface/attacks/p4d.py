"""P4D: search for a prompt with which the edited model predicts what the original predicts for the concept.

Chin, Jiang, Huang, Chen and Chiu, Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding
Problematic Prompts, ICML 2024, https://arxiv.org/abs/2309.06135. Code: https://github.com/joycenerd/P4D. Token vectors
are projected to the nearest tokens as in PEZ (Wen et al. 2023, https://arxiv.org/abs/2302.03668).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from efface.attack import Finding, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.frames import Frame, alone, between
from efface.attacks.search.objective import Objective
from efface.attacks.search.outcome import Found, finding
from efface.attacks.search.relaxations import Nearest
from efface.attacks.search.rows import Rows, plain, rows_of
from efface.attacks.search.token_search import Plan, Rate, Search, TokenSearch
from efface.concept import Concept
from efface.models.token_vectors import ids_of
from efface.query import Query
from efface.training.loop import generator
from efface.util.ranges import COUNT, Ranges


@dataclass(frozen=True)
class P4D(TokenSearch):
    """Search for prompts by the distance of the edited model's prediction to the original's for the target prompt.

    Every `look` steps an image of the prompt found so far is generated. The prompt whose image is most like the
    original model's image of the target prompt is kept: by the CLIP of the asked judge, or, if it has none, by the
    probability of the concept. The papers' search does not stop at the first success, so this is off by default.

    Args:
        variant: n searches a prompt of `tokens` free tokens; k keeps the target prompt and puts free tokens into it
        every: k puts one free token before the target prompt and one after each so many of its tokens
        steps: of AdamW
        look: steps between two images
    """

    variant: Literal["n", "k"] = "n"
    tokens: int = 16  # "P4D-N": prompt_len 16
    every: int = 3  # every_k 3
    steps: int = 3000  # iter 3000
    look: int = 50  # eval_step 50
    lr: float = 0.1
    weight_decay: float = 0.1
    stop: bool = False

    RANGES: ClassVar[Ranges] = {"every": "[1, 75]", "steps": COUNT, "look": COUNT}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"fragments": True},
        "paper-k": {"variant": "k", "fragments": True},
        "mini": {"tokens": 8, "steps": 80, "look": 20, "earlier": 2, "stop": True},
    }
    QUICK: ClassVar[dict[str, Any]] = {"tokens": 2, "steps": 2, "look": 1, "earlier": 1}

    def frame(self, concept: Concept, ids: Sequence[int]) -> Frame:
        """Return a prompt of free tokens only, or the given one with free tokens in it."""
        return alone(self.tokens) if self.variant == "n" else between(ids, self.every)

    @torch.inference_mode(False)
    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return for each query the best prompt found, successes first; scores are the similarities."""
        given = plain(concept, queries)
        frames = [self.frame(concept, ids_of(target.edited, query.prompt)) for query in given]
        rows, vocabulary, cost = rows_of(target, given, frames), self.vocabulary(target, concept), Cost()
        cost.generated(target.source, given)
        steps = [min(self.look, self.steps - done) for done in range(0, self.steps, self.look)]
        plan = Plan(tuple(steps), (None,) * len(steps))
        guidance = self.guidance if target.edited.guards else 1.0
        objective = Objective(target, rows.clean, "score", None, guidance)
        found: dict[int, Found] = {}
        for number, shape in enumerate(dict.fromkeys(frame.shape for frame in frames)):
            chosen = [i for i, frame in enumerate(frames) if frame.shape == shape]
            own = rows.only(chosen)
            start = torch.stack([vocabulary.random((len(shape[1]),), _rng(seed, query)) for query in own.queries])
            rate = likeness(target, concept, own)
            run = Search(
                self, target, concept, own, vocabulary, Nearest(vocabulary, start), objective, plan, rate, seed,
                f"p4d-{number}", cost,
            )  # fmt: skip
            found |= dict(zip(chosen, run(), strict=True))
        return finding(concept, [found[i] for i in range(len(given))], [query.prompt for query in given], cost)


def likeness(target: Target, concept: Concept, rows: Rows) -> Rate:
    """Return how like an image is to the original model's image of its query: the cosine of CLIP's image vectors.

    With a judge without a CLIP it is the probability of the concept.
    """
    judge = target.asked
    if not judge.reads_text:
        return lambda images, _: target.seen(images, concept)
    with torch.no_grad():
        wanted = judge.image_features(target.source.decode(rows.clean))

    def rate(images: Float[Tensor, "r 3 h w"], own: list[int]) -> Float[Tensor, " r"]:
        return (judge.image_features(images) * wanted[own]).sum(1)

    return rate


def _rng(seed: int, query: Query) -> torch.Generator:
    return generator(seed, "start", query.prompt, query.seed)
