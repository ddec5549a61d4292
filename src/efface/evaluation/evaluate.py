"""Evaluate an edit: the judge's verdicts and metrics on images before and after it."""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.provenance import git, preserved, versions
from efface.errors import BadInput, BadModel, unknown
from efface.evaluation.prompts import Case, Plan, held_out
from efface.evaluation.record import Asked, Base, Cost, Made, Maker, Record, Row, Sampling
from efface.evaluation.store import Store
from efface.evaluation.summary import DIGITS
from efface.judge import Judge
from efface.metric import Metric, Samples
from efface.metrics.presence import Presence
from efface.models.model import Model
from efface.query import Query
from efface.util.progress import progress

FIRST, FIRST_FIVE = Presence(1), Presence(5)
TOLD = {  # keys of an edit's provenance that do not go into `Made.about`
    "format", "method", "fields", "preset", "erase", "preserve", "keep", "seed", "base", "versions", "git", "seconds",
    "created", "op", "parts",
}  # fmt: skip


def evaluate(
    model: Model,
    edit: Edit,
    concept: Concept | Sequence[Concept],
    table: Mapping[str, Concept],
    judge: Judge,
    plan: Plan | None = None,
    store: Store | None = None,
    any_base: bool = False,
    metrics: Sequence[Metric] | None = None,
) -> Record:
    """Judge the same prompts and seeds before and after an edit; return a record with one row per image.

    concept: what was erased (several are pooled). table: the model's concepts, whose `related` names make the
    related group; every other concept is unrelated. The groups are `efface.evaluation.prompts.GROUPS`.
    metrics: scores besides the judge's verdict; None: all that can be computed on this machine.
    Raises BadModel without a table, UnknownName for a concept unknown to the judge, BadInput for a metric that lacks
    what it needs.
    """
    plan, store, began = plan or Plan(), store or Store.default(), time.perf_counter()
    targets = (concept,) if isinstance(concept, Concept) else tuple(concept)
    check_judged(targets, table, judge)
    edit.check(model, any_base)
    made = describe(edit)
    cases = plan.cases(targets, table, held_out(model.name), made.preserved)
    asked = [(case, seed) for case in cases if case.label in judge.names(case.judged) for seed in case.seeds]
    chosen = default_metrics() if metrics is None else tuple(metrics)
    rows: list[Row] = []
    with edit.applied(model, any_base) as edited:
        sides: dict[Maker, tuple[Model, str]] = {"original": (model, ""), "edited": (edited, edit.id)}
        for start in progress(range(0, len(asked), plan.batch * 2), f"{len(asked)} images, before and after"):
            rows += _rows(asked[start : start + plan.batch * 2], sides, plan, judge, store, chosen, metrics is None)
    return Record(
        concepts=tuple(target.name for target in targets), model=Base(name=model.name, id=model.id), edit=made,
        evaluator=judge.profile, sampling=sampling_of(model, plan), rows=tuple(rows),
        whole=_whole(chosen, model, edit, metrics is None), erasing=_erasing(edit), evaluating=_cost(began),
        versions=versions(), git=git(), created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def default_metrics() -> tuple[Metric, ...]:
    """Return every metric of `metrics/` at its defaults, without the judge's verdict, which every row has."""
    found = (registry.get("metrics", name) for name in registry.names("metrics"))
    return tuple(cls() for cls in found if cls is not Presence)


def describe(edit: Edit) -> Made:
    """Return an edit's provenance, for a record."""
    meta: dict[str, Any] = json.loads(json.dumps(dict(edit.meta)))
    return Made(
        id=edit.id, method=str(meta.get("method", "")), preset=str(meta.get("preset", "")),
        fields=meta.get("fields", {}), seed=meta.get("seed"),
        erased=tuple(item["name"] for item in meta.get("erase", ())), preserved=preserved(edit.meta),
        about={key: value for key, value in meta.items() if key not in TOLD},
    )  # fmt: skip


def check_judged(targets: Sequence[Concept], table: Mapping[str, Concept], judge: Judge) -> None:
    """Raise BadModel, BadInput or UnknownName, before any image is generated, for what cannot be judged."""
    if not table:
        raise BadModel(
            "this model has no concept table: put a concepts.json beside it (see the docs, Models) or use --model mini"
        )
    if not targets:
        raise BadInput("nothing to evaluate: name the erased concept")
    for target in targets:
        known = judge.names("style" if target.kind == "style" else "object")
        if target.name not in known:
            raise unknown("concept of the judge", target.name, known)


def images(
    model: Model,
    edit: Edit | None,
    queries: Sequence[Query],
    batch: int = 32,
    any_base: bool = False,
    store: Store | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Return the images of an edited model (None: the model itself), generating only what the store lacks."""
    with generating(model, edit, batch, any_base, store) as generate:
        return generate(queries)


@contextmanager
def generating(
    model: Model, edit: Edit | None, batch: int = 32, any_base: bool = False, store: Store | None = None
) -> Iterator[Callable[[Sequence[Query]], Tensor]]:
    """Yield a function from queries to images (n, 3, h, w) with the edit applied once and the store used."""
    where = store or Store.default()
    key = "" if edit is None else edit.id
    with nullcontext(model) if edit is None else edit.applied(model, any_base) as maker:
        yield lambda queries: where.images(maker, key, queries, batch=batch)


def _rows(
    asked: Sequence[tuple[Case, int]],
    sides: Mapping[Maker, tuple[Model, str]],
    plan: Plan,
    judge: Judge,
    store: Store,
    metrics: Sequence[Metric],
    lenient: bool,
) -> list[Row]:
    """Generate, judge and score a few queries by both models; the images are freed afterwards."""
    queries = [Query(case.prompt, seed, **plan.sampling) for case, seed in asked]
    original, rows = None, []
    for maker, (model, edit_id) in sides.items():
        made = store.images(model, edit_id, queries, batch=plan.batch)
        original = made if original is None else original
        samples = Samples(
            made, original, texts=[query.prompt for query in queries], labels=[case.label for case, _ in asked],
            kinds=[case.judged for case, _ in asked], judge=judge,
        )  # fmt: skip
        scores = {registry.name_of(type(m)): m(samples).tolist() for m in _able(metrics, samples, True, lenient)}
        first, five, seen = FIRST(samples).tolist(), FIRST_FIVE(samples).tolist(), _seen(samples)
        for i, ((case, _), query) in enumerate(zip(asked, queries, strict=True)):
            own = {name: round(values[i], DIGITS) for name, values in scores.items()}
            rows.append(
                Row(
                    made_by=maker, groups=case.groups, concept=case.concept, label=case.label, judged=case.judged,
                    query=Asked(prompt=query.prompt, seed=query.seed, **plan.sampling), seen=seen[i],
                    top1=bool(first[i]), top5=bool(five[i]), scores=own, image=store.key(model, edit_id, query),
                )
            )  # fmt: skip
    return rows


def _able(metrics: Sequence[Metric], samples: Samples, per_image: bool, lenient: bool) -> list[Metric]:
    """Return the metrics per image, or per set; `lenient` leaves out those with missing inputs."""
    sort = [metric for metric in metrics if metric.PER_IMAGE is per_image]
    return [metric for metric in sort if not (lenient and metric.missing(samples))]


def _seen(samples: Samples) -> list[str]:
    """Return the name that the judge gives first to each image."""
    assert samples.judge is not None
    best = {kind: samples.probabilities(kind).argmax(1).tolist() for kind in dict.fromkeys(samples.kinds)}
    return [samples.judge.names(kind)[best[kind][i]] for i, kind in enumerate(samples.kinds)]


def _whole(metrics: Sequence[Metric], model: Model, edit: Edit, lenient: bool) -> dict[str, float]:
    samples = Samples(model=model, edit=edit)
    able = _able(metrics, samples, False, lenient)
    return {registry.name_of(type(metric)): round(float(metric(samples)), DIGITS) for metric in able}


def sampling_of(model: Model, plan: Plan) -> Sampling:
    """Return a plan's sampling settings, for a record."""
    solver = plan.solver or type(model.pipe.scheduler).__name__
    seeds = {name: getattr(plan, name) for name in plan.SEEDS}
    return Sampling(solver=solver, steps=plan.steps, guidance=plan.guidance, seeds=seeds, prompts=plan.templates)


def _erasing(edit: Edit) -> Cost | None:
    seconds = edit.meta.get("seconds")
    return Cost(seconds=float(str(seconds))) if seconds is not None else None


def _cost(began: float) -> Cost:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux reports kB
    return Cost(seconds=round(time.perf_counter() - began, 3), peak_mb=round(peak, 1))
