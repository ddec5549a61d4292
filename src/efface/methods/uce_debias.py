"""UCE's debiasing: edit keys and values so that a concept shows attributes in given shares (Gandikota et al. 2024).

https://arxiv.org/abs/2308.14761
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput, unknown
from efface.judge import Judge, judge_of
from efface.methods.closed_form.method import (
    ClosedForm,
    check_texts,
    encoded,
    key_value_gram,
    preserved_rows,
    text_weights,
)
from efface.methods.closed_form.prompts import Pair, Phrase, Text
from efface.methods.closed_form.states import state
from efface.models.model import Model
from efface.query import Query
from efface.util.ranges import COUNT, GUIDANCE, SHARE, SOLVER_STEPS, WEIGHT, WEIGHT_OR_NONE, Ranges

Shares = Float[Tensor, "concepts attributes"]


@dataclass(frozen=True)
class Debias(ClosedForm):
    """Let each named concept read as c + Σ αᵢ aᵢ, with attributes a weighted by α, and preserve others.

    Without `weights`, α starts at 0 and a judge counts the attributes on generated images, until the shares are right.

    attributes: names of the attributes, two or more.
    shares: share of images that should show each attribute, in their order; by default equal ones.
    weights: α of each attribute, for a single step without a judge.
    step: how much α moves per round, times the missing share.
    tolerance: largest error of a share at which a concept is done; it then keeps its α.
    rounds: of generating and editing, at most.
    images: generated of each concept per round.
    steps: of the solver.
    guidance: classifier-free guidance scale of these images.
    judge: who counts: one of the model's own, or one of any model.
    erase_scale: weight of every edited vector.
    preserve_scale: weight of every preserved vector.
    rows: vectors of a prompt that are edited: the last word's (last), or from it to the end (tail).
    preserve_rows: vectors of a prompt that are preserved.
    preserve_empty: also preserve the empty prompt.
    """

    attributes: tuple[str, ...] = ("male person", "female person")
    shares: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    step: float = 1.0  # the code reads --step_size 0.1 and does not use it
    tolerance: float = 0.05
    rounds: int = 30
    images: int = 10
    steps: int = 20
    guidance: float = 7.5
    judge: str = ""
    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    rows: Literal["last", "tail"] = "last"
    preserve_rows: Literal["last", "all"] = "last"
    preserve_empty: bool = False

    RANGES: ClassVar[Ranges] = {
        "shares": SHARE, "weights": "[-1e6, 1e6]", "step": WEIGHT, "tolerance": SHARE, "rounds": COUNT,
        "images": COUNT, "steps": SOLVER_STEPS, "guidance": GUIDANCE, "erase_scale": WEIGHT,
        "preserve_scale": WEIGHT_OR_NONE,
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"repo-2025": {}}
    QUICK: ClassVar[dict[str, Any]] = {"attributes": ("neon", "sketch"), "weights": (0.5, -0.5)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attributes)) < 2 or len(set(self.attributes)) < len(self.attributes):
            raise BadInput(f"name two or more different attributes, got {', '.join(self.attributes) or 'none'}")
        for name in ("shares", "weights"):
            given: tuple[float, ...] = getattr(self, name)
            if given and len(given) != len(self.attributes):
                raise BadInput(f"{name}: one for each of {len(self.attributes)} attributes, got {len(given)}")
        if self.shares and abs(sum(self.shares) - 1) > 1e-6:
            raise BadInput(f"shares are at least 0 and add up to 1, got {self.shares}")
        if self.weights and self.judge:
            raise BadInput("given weights need no judge: leave one of the two out")

    @property
    def generates(self) -> bool:
        """Return whether a judge looks at images."""
        return not self.weights

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Edit:
        """Compute the edit of the concepts named to be erased; `seed` is of the first image of each round."""
        names = text_weights(model)
        check_texts(model, erase, preserve)
        judge = judge_of(model.name, self.judge) if self.generates else None
        if judge is not None:
            kind_of(judge, self.attributes)
        forms = [[old for old, _ in pairs] for pairs in self.phrases(erase)]
        towards = [[[Phrase(form.template, name) for name in self.attributes] for form in one] for one in forms]
        others = self.preserved_prompts(preserve, erase, self.preserve_empty)
        every = [*chain(*forms), *chain.from_iterable(chain(*towards))]
        known = encoded(model, every, others)
        preserved = preserved_rows(model, others, self.preserve_rows, self.preserve_scale, known)

        def edit_of(alpha: Shares, report: dict[str, Any]) -> Edit:
            edit = state(model, names, "replace", lambda: key_value_gram(model, names))
            pairs: list[Pair] = [
                self._pair(text, others, alpha[i])
                for i, one in enumerate(forms)
                for old, attributes in zip(one, towards[i], strict=True)
                for text, *others in zip(known[old], *(known[a] for a in attributes), strict=True)
            ]
            found = edit.erase(pairs, self.ridge, self.erase_scale, preserved)
            weights = {c.name: [round(float(a), 6) for a in row] for c, row in zip(erase, alpha, strict=True)}
            return edit.edit(
                {"texts": sum(map(len, forms)), "preserved_texts": len(others), "weights": weights, **report, **found}
            )

        if judge is None:
            return edit_of(torch.tensor(self.weights, dtype=torch.float64).expand(len(erase), -1), {})
        return self._loop(model, judge, erase, edit_of, seed)

    def _loop(self, model: Model, judge: Judge, concepts: Sequence[Concept], edit_of: Any, seed: int) -> Edit:
        """Move α by the missing shares until these are within the tolerance (2025 code), at most `rounds` times."""
        count = len(self.attributes)
        wanted = torch.tensor(self.shares or [1 / count] * count, dtype=torch.float64)
        alpha, seen = torch.zeros(len(concepts), count, dtype=torch.float64), []
        edit = edit_of(alpha, {})
        for number in range(self.rounds):
            found = self._counted(model, edit, judge, concepts, seed + number * self.images)
            seen.append([[round(float(share), 4) for share in row] for row in found])
            missing = wanted - found
            missing[missing.abs().amax(1) < self.tolerance] = 0
            if not missing.any():
                break
            alpha = alpha + self.step * missing
            edit = edit_of(alpha, {})
        return edit_of(alpha, {"shares": seen})

    def _counted(self, model: Model, edit: Edit, judge: Judge, concepts: Sequence[Concept], seed: int) -> Shares:
        """Return the share of images of each concept whose first attribute is each one."""
        queries = [
            Query(concept.name, seed + i, self.steps, self.guidance) for concept in concepts for i in range(self.images)
        ]
        with edit.applied(model) as edited:
            chosen = first_attribute(judge, self.attributes, edited.generate(queries))
        counts = torch.nn.functional.one_hot(chosen.reshape(len(concepts), self.images), len(self.attributes))
        return counts.double().mean(1)

    def _pair(self, old: Text, attributes: Sequence[Text], alpha: Float[Tensor, " attributes"]) -> Pair:
        """Return a concept's rows c and the goals c + Σ α a, from the last word of each text on."""
        length = len(old.vectors) - max(old.word, *(one.word for one in attributes)) if self.rows == "tail" else 1
        rows = old.vectors[old.word :][:length]
        goals = rows.double()
        for weight, one in zip(alpha, attributes, strict=True):
            goals = goals + weight * one.vectors[one.word :][:length].double()
        return rows, goals


def kind_of(judge: Judge, names: Sequence[str]) -> Literal["object", "style", "text"]:
    """Return how a judge tells these attributes apart; raises `UnknownName` when it cannot."""
    for kind in ("object", "style"):
        if set(names) <= set(judge.names(kind)):
            return kind
    if judge.reads_text:
        return "text"
    known = {*judge.names("object"), *judge.names("style")}
    raise unknown("attribute of the judge", next((n for n in names if n not in known), names[0]), known)


def first_attribute(judge: Judge, names: Sequence[str], images: Float[Tensor, "n 3 h w"]) -> Int64[Tensor, " n"]:
    """Return the number of the attribute that the judge sees most in each image: by its names, or by its CLIP."""
    images, kind = images.float().to(judge.device), kind_of(judge, names)
    if kind == "text":
        scores = torch.stack([judge.clip_score(images, [name] * len(images)) for name in names], 1)
    else:
        scores = judge.probabilities(images, kind)[:, [judge.index(name, kind) for name in names]]
    return scores.argmax(1).cpu()
