"""Judge a model before and after an edit: is the concept gone, and is everything else still there?"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.concept import Concept
from efface.edits.provenance import versions
from efface.errors import BadInput, BadModel, unknown
from efface.evaluation.prompts import Case, Plan, held_out
from efface.evaluation.stats import paired_difference, wilson
from efface.util.progress import progress

if TYPE_CHECKING:
    from efface.edits.edit import Edit
    from efface.evaluation.store import Store
    from efface.models.model import Model
    from efface.query import Query

TOP = 5


@runtime_checkable
class Judge(Protocol):
    """Say which object and which style a picture shows.

    classes, styles: the names it knows, in the order of its probabilities. profile: evaluator, version, sha256 of
    its weights, input size; scores of different profiles are not comparable.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def styles(self) -> tuple[str, ...]: ...
    @property
    def profile(self) -> Any: ...  # a mapping; Any lets it be a cached property too
    def objects(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]: ...
    def style_probs(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n styles"]: ...


@dataclass
class Tally:
    """Collect per-image verdicts of one group, before and after, in the same order of prompt and seed."""

    top1: dict[str, list[bool]] = field(default_factory=lambda: {"before": [], "after": []})
    topk: dict[str, list[bool]] = field(default_factory=lambda: {"before": [], "after": []})

    def add(self, when: str, hits: Iterable[tuple[bool, bool]]) -> None:
        for first, near in hits:
            self.top1[when].append(first)
            self.topk[when].append(near)

    def summary(self) -> dict[str, Any]:
        """Return {"before", "after", "change"}, each with its 95 % interval."""
        change = paired_difference(self.top1["before"], self.top1["after"])
        both = {when: self._side(when) for when in ("before", "after")}
        difference = both["after"]["top1"] - both["before"]["top1"]
        return {**both, "change": {"top1": round(difference, 6), "ci95": _rounded(change)}}

    def _side(self, when: str) -> dict[str, Any]:
        n, hits, near = len(self.top1[when]), sum(self.top1[when]), sum(self.topk[when])
        side = {
            "top1": hits / n if n else 0.0,
            "top5": near / n if n else 0.0,
            "n": n,
            "ci95": _rounded(wilson(hits, n)),
        }
        return {**side, "top5_ci95": _rounded(wilson(near, n))}


def evaluate(
    model: "Model",
    edit: "Edit",
    concept: Concept | Sequence[Concept],
    table: Mapping[str, Concept],
    judge: Judge,
    plan: Plan | None = None,
    store: "Store | None" = None,
    any_base: bool = False,
) -> dict[str, Any]:
    """Judge the same prompts and seeds before and after an edit; return the scores as JSON values.

    concept: what was erased (several are pooled). table: the model's concepts, whose `related` names make the
    related group; every other concept is unrelated. Groups: target, related, unrelated, implicit (keywords that
    only hint at the target), and where there is something to put in them unprotected (unrelated and not among the
    edit's keeps), objects and styles (the unrelated by kind), styled, content and implicit_held_out; see `Plan`.
    A group holds {"before", "after"} of
    {"top1", "top5", "n", "ci95"} (Wilson) and the paired change with its interval (Newcombe).
    Raises BadModel without a table, UnknownName for a concept the judge cannot tell.
    """
    plan = plan or Plan()
    targets = (concept,) if isinstance(concept, Concept) else tuple(concept)
    check_judged(targets, table, judge)
    edit.check(model, any_base)
    cases = plan.cases(targets, table, held_out(model.name))
    cases = [case for case in cases if case.label in _names(judge, case.judged)]
    kept = _kept(edit.meta)
    groups: dict[str, Tally] = {name: Tally() for name in ("target", "related", "unrelated", "implicit")}
    singles: dict[str, Tally] = {}
    where = {case.concept: case.group for case in cases if case.group in ("target", "related", "unrelated")}
    for when, change in (("before", None), ("after", edit)):
        with drawing(model, change, plan.batch, any_base, store) as draw:
            for case, hits in zip(cases, _verdicts(draw, cases, plan, judge, when), strict=True):
                for name in _groups(case, kept):
                    groups.setdefault(name, Tally()).add(when, hits)
                if case.group in ("target", "related", "unrelated"):
                    singles.setdefault(case.concept, Tally()).add(when, hits)
    return {
        "concept": ", ".join(target.name for target in targets),
        "model": model.name,
        "edit": edit.id,
        "method": str(edit.meta.get("method", "")),
        "groups": {name: tally.summary() for name, tally in groups.items()},
        "per_concept": {n: {"group": where[n], "kept": n in kept, **t.summary()} for n, t in singles.items()},
        "profile": _profile(model, judge, plan),
    }


def _kept(meta: Mapping[str, Any]) -> set[str]:
    """Return the names of the concepts kept by an edit, or by any that it was combined, scaled or pruned from."""
    if "op" in meta:  # whose own "keep", if any, is a pattern of weights
        return {name for part in meta.get("parts", ()) for name in _kept(part)}
    return {item["name"] for item in meta.get("keep", ())}


def _groups(case: Case, kept: set[str]) -> Iterator[str]:
    """Yield the groups a case counts in: its own, and for unrelated ones their kind and whether they were protected."""
    yield case.group
    if case.group == "unrelated":
        yield "styles" if case.judged == "style" else "objects"
        if kept and case.concept not in kept:
            yield "unprotected"


def check_judged(targets: Sequence[Concept], table: Mapping[str, Concept], judge: Judge) -> None:
    """Refuse what cannot be judged, before any image is drawn. Raises BadModel, BadInput or UnknownName."""
    if not table:
        raise BadModel(
            "this model has no concept table: put a concepts.json beside it (see the docs, Models) or use --model mini"
        )
    if not targets:
        raise BadInput("nothing to evaluate: name the erased concept")
    for target in targets:
        known = _names(judge, "style" if target.kind == "style" else "object")
        if target.name not in known:
            raise unknown("concept of the judge", target.name, known)


def images(
    model: "Model",
    edit: "Edit | None",
    queries: Sequence["Query"],
    batch: int = 32,
    any_base: bool = False,
    store: "Store | None" = None,
) -> Float[Tensor, "n 3 h w"]:
    """Return the images of an edited model (None: the model itself), drawing only what the store lacks."""
    with drawing(model, edit, batch, any_base, store) as draw:
        return draw(queries)


@contextmanager
def drawing(
    model: "Model", edit: "Edit | None", batch: int = 32, any_base: bool = False, store: "Store | None" = None
) -> Iterator[Callable[[Sequence["Query"]], Tensor]]:
    """Yield a function from queries to images (n, 3, h, w) with the edit applied once, backed by the store."""
    from efface.evaluation.store import Store

    kept = store or Store.default()
    key = "" if edit is None else edit.id
    with nullcontext(model) if edit is None else edit.applied(model, any_base) as drawn:
        yield lambda queries: kept.images(drawn, key, queries, batch=batch)


def _verdicts(
    draw: Callable[[Sequence["Query"]], Tensor], cases: Sequence[Case], plan: Plan, judge: Judge, when: str
) -> Iterator[list[tuple[bool, bool]]]:
    """Yield per case the (top-1, top-5) verdict of each seed; images are judged in chunks and let go."""
    from efface.query import Query

    flat = [(case, seed) for case in cases for seed in case.seeds]
    verdicts: list[tuple[bool, bool]] = []
    size = plan.batch * 2
    for start in progress(range(0, len(flat), size), f"{when}: {len(flat)} images"):
        chunk = flat[start : start + size]
        drawn = draw([Query(case.prompt, seed, **plan.sampling) for case, seed in chunk])
        verdicts += _judge(judge, drawn, [case for case, _ in chunk])
    left = iter(verdicts)
    for case in cases:
        yield [next(left) for _ in case.seeds]


def _judge(judge: Judge, drawn: Float[Tensor, "n 3 h w"], cases: Sequence[Case]) -> list[tuple[bool, bool]]:
    """Return (top-1, top-5) per image, each judged for its own case's object or style."""
    found: list[tuple[bool, bool]] = [(False, False)] * len(cases)
    for kind in ("object", "style"):
        at = [i for i, case in enumerate(cases) if case.judged == kind]
        if at:
            probs = judge.objects(drawn[at]) if kind == "object" else judge.style_probs(drawn[at])
            labels = torch.tensor([_names(judge, kind).index(cases[i].label) for i in at])
            for i, first, near in zip(at, *(hit.tolist() for hit in _hits(probs, labels)), strict=True):
                found[i] = (first, near)
    return found


def _hits(probs: Float[Tensor, "n c"], labels: Tensor) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    ranked = probs.cpu().topk(min(TOP, probs.shape[1]), dim=1).indices  # (n, 5)
    right = ranked == labels[:, None]
    return right[:, 0], right.any(dim=1)


def _names(judge: Judge, kind: str) -> tuple[str, ...]:
    return tuple(judge.classes) if kind == "object" else tuple(judge.styles)


def _profile(model: "Model", judge: Judge, plan: Plan) -> dict[str, Any]:
    solver = plan.solver or type(model.pipe.scheduler).__name__
    return {
        **judge.profile,
        **plan.profile(),
        "solver": solver,
        "model_id": model.id,
        "interval": "Wilson score, 95 %; change: Newcombe's for pairs, 95 %",
        "versions": versions(),
    }


def _rounded(ends: Sequence[float]) -> list[float]:
    return [round(end, 6) for end in ends]
