"""Attack an edit, and judge what was found by a judge that the attack did not ask."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from efface.attack import Attack, Target
from efface.concept import Concept
from efface.criterion import Criterion
from efface.errors import BadInput
from efface.evaluation.asr import ASR, attack_success
from efface.evaluation.store import Store
from efface.finding import Finding
from efface.judge import Judge
from efface.models.model import Model
from efface.models.remembering import Remembering
from efface.query import Query


@dataclass(frozen=True, eq=False)
class Attacked:
    """Hold an attack's finding and the images it is judged by.

    original, edited, attacked: images of the plain queries by both models, and of the finding's queries, one for each
    plain query, (n, 3, h, w) in [0, 1]. before: whether the edited ones succeed. after: whether the attacked ones do.
    keys: of the three images of each query in the store, () without one.
    """

    finding: Finding
    queries: tuple[Query, ...]
    original: Float[Tensor, "n 3 h w"] | None
    edited: Float[Tensor, "n 3 h w"]
    attacked: Float[Tensor, "n 3 h w"]
    before: tuple[bool, ...] = ()
    after: tuple[bool, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()

    @property
    def rates(self) -> ASR | None:
        """Return the attack success rates, None when nobody judged."""
        return attack_success(self.before, self.after) if self.before else None


def attack_edit(
    attack: Attack, target: Target, concept: Concept, queries: Sequence[Query], criterion: Criterion | None,
    seed: int = 0, batch: int = 32, store: Store | None = None,
) -> Attacked:  # fmt: skip
    """Run an attack and judge it.

    store: where images are looked up and kept. criterion: by a judge that the attack did not ask; None leaves it
    unjudged. The finding has the success of each of its queries; the best of them answers each plain query
    (`Finding.answers`). What the attack generated of them is not generated again. Raises what the attack raises, and
    before it starts `UnknownName` when the judge does not know the concept, and `BadInput` when it is the one that is
    asked.
    """
    if criterion is not None:
        criterion.check(concept)
        check_apart(criterion, target.judge)
    asked, attacked_model = tuple(queries), Remembering.of(target.edited)
    original_model = attacked_model if target.original is target.edited else target.original
    target = replace(target, edited=attacked_model, original=original_model)
    found = attack(target, concept, asked, seed)
    edited, own = _images(target.edited, asked, batch, store)
    with _under(found, target.edited) as model:
        attacked, under = _images(model, found.answers(asked), batch, store)
        if criterion is not None:
            found = found.judged(model.generate(found.queries, batch), criterion)
    if target.original is None:
        original, first = None, [""] * len(asked)
    else:
        original, first = _images(target.original, asked, batch, store)
    keys = tuple(zip(first, own, under, strict=True)) if store else ()
    if criterion is None:
        return Attacked(found, asked, original, edited, attacked, keys=keys)
    before, after = (tuple(criterion(images, concept).tolist()) for images in (edited, attacked))
    return Attacked(found, asked, original, edited, attacked, before, after, keys)


def check_apart(criterion: Criterion, asked: Judge | None) -> None:
    """Raise `BadInput` when the judge that an attack may ask has a part in what decides on it."""
    if asked is not None and any(judge.profile == asked.profile for judge in criterion.judges):
        name = asked.profile.evaluator
        raise BadInput(f"the judge {name} cannot decide on an attack that may ask it: name another to decide or to ask")


@contextmanager
def _under(finding: Finding, model: Model) -> Iterator[Model]:
    """Yield the attacked model: with the finding's own edit, where it has one."""
    if finding.edit is None:
        yield model
        return
    with finding.edit.applied(model) as changed:
        yield Remembering.of(changed)


def _images(model: Model, queries: Sequence[Query], batch: int, store: Store | None) -> tuple[Tensor, list[str]]:
    """Return images and their keys in the store."""
    if store is None:
        return model.generate(queries, batch), []
    edit = model.origin[1] if model.origin else ""
    return store.images(model, edit, queries, batch), [store.key(model, edit, query) for query in queries]


def answered(finding: Finding, model: Model, queries: Sequence[Query], batch: int = 32) -> Float[Tensor, "n 3 h w"]:
    """Return one image for each plain query by the attacked model, as the finding answers it.

    Raises `BadInput` for a finding of another model.
    """
    about: Any = finding.meta.get("edited", {})
    if about and about.get("id") != model.id:
        name, own = about.get("name") or "a model", model.name or "this model"
        raise BadInput(f"the finding attacked {name} {str(about.get('id'))[:12]}; {own} is {model.id[:12]}")
    with _under(finding, model) as changed:
        return _images(changed, finding.answers(queries), batch, None)[0]


__all__ = ["Attacked", "answered", "attack_edit"]
