"""Evaluate an edit: the judge's verdicts and metrics on images before and after it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from jaxtyping import Float
from torch import Tensor

from efface import registry
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.edits.provenance import git, preserved, versions
from efface.errors import BadInput, BadModel, unknown
from efface.evaluation.neighbours import look_alikes
from efface.evaluation.prompts import Case, Plan, held_out
from efface.evaluation.record import Asked, Base, Cost, Made, Maker, Record, Row, Sampling
from efface.evaluation.sets import Collected
from efface.evaluation.store import Store
from efface.evaluation.summary import DIGITS
from efface.judge import Judge, Judged
from efface.metric import WORDS, Metric, Need, Samples, SetMetric
from efface.metrics.presence import Presence
from efface.models.model import Model
from efface.query import Query
from efface.util.files import sha256_text
from efface.util.meter import COST, metered
from efface.util.progress import progress

FIRST, FIRST_FIVE = Presence(1), Presence(5)
PER_IMAGE: tuple[Need, ...] = ("images", "original", "texts", "queries", "labels")  # what every evaluation has
TOLD = {  # keys of an edit's provenance that do not go into `Made.about`
    "format", "method", "fields", "preset", "erase", "preserve", "keep", "seed", "base", "versions", "git", "created",
    "op", "parts", *COST,
}  # fmt: skip


def evaluate(
    model: Model,
    edit: Edit,
    concept: str | Concept | Sequence[str | Concept],
    table: Mapping[str, Concept],
    judge: Judge,
    plan: Plan | None = None,
    store: Store | None = None,
    any_base: bool = False,
    metrics: Sequence[Metric] | None = None,
    cases: Sequence[Case] | None = None,
    prompts: str = "",
) -> Record:
    """Judge the same prompts and seeds before and after an edit; return a record with one row per image.

    concept: what was erased, or its name (several are pooled). table: the model's concepts, whose `related` names make
    the related group; every other concept is unrelated. The groups are `efface.evaluation.prompts.GROUPS`.
    metrics: scores besides the judge's verdict; None: all that can be computed on this machine.
    cases: the prompts to ask, in place of the plan's, which then gives the sampling only; needs no table. prompts: a
    hash of what they were made from for any concept, by which records are compared; by default of the cases themselves.
    Raises BadModel without a table, UnknownName for a concept unknown to the judge, BadInput for a metric that lacks
    what it needs.
    """
    plan, store = plan or Plan(), store or Store.default()
    targets = Concept.all_of(concept, "evaluate", lambda name: table.get(name) or Concept(name))
    if cases is None:
        check_judged(targets, table, judge)
    edit.check(model, any_base)
    made = describe(edit)
    asked = [
        (case, seed)
        for case in (
            _planned(model, targets, table, judge, plan, store, made) if cases is None else _known(cases, judge)
        )
        for seed in case.seeds
    ]
    chosen = _chosen(metrics, Samples(None, judge=judge, model=model, edit=edit))
    rows: list[Row] = []
    collected = Collected([m for m in chosen if isinstance(m, SetMetric)], judge)
    with metered() as meter, edit.applied(model, any_base) as edited:
        sides: dict[Maker, tuple[Model, str]] = {"original": (model, ""), "edited": (edited, edit.id)}
        for start in progress(range(0, len(asked), plan.batch * 2), f"{len(asked)} images, before and after"):
            part = asked[start : start + plan.batch * 2]
            rows += _rows(part, sides, plan, judge, store, chosen, collected)
    return Record(
        concepts=tuple(target.name for target in targets), model=Base(name=model.name, id=model.id), edit=made,
        evaluator=judge.profile, sampling=sampling_of(model, plan, cases, prompts), rows=tuple(rows),
        whole=_whole(chosen, model, edit), sets=collected.scores(rows),
        metrics={metric.label: metric.instrument(judge) for metric in chosen}, erasing=_erasing(edit),
        evaluating=Cost(**meter.read()), versions=versions(), git=git(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _planned(
    model: Model, targets: Sequence[Concept], table: Mapping[str, Concept], judge: Judge, plan: Plan, store: Store,
    made: Made,
) -> list[Case]:  # fmt: skip
    """Return the plan's prompts, without those for names that the judge does not know."""
    near = look_alikes(model, targets, table, judge, plan, store)
    cases = plan.cases(targets, table, held_out(model.name), made.preserved, near)
    return [case for case in cases if case.label in judge.names(case.judged)]


def _known(cases: Sequence[Case], judge: Judge) -> Sequence[Case]:
    """Return cases as they are. Raises `BadInput` without any, `UnknownName` for a label that the judge lacks."""
    if not cases:
        raise BadInput("nothing to evaluate: there are no prompts")
    wanted: set[tuple[str, Judged]] = {(case.label, case.judged) for case in cases if case.label}
    for label, judged in sorted(wanted):
        judge.index(label, judged)
    return cases


def default_metrics() -> tuple[Metric, ...]:
    """Return every metric of `metrics/` at its defaults that is usual, without the judge's verdict in every row."""
    found = (registry.get("metrics", name) for name in registry.names("metrics"))
    return tuple(cls() for cls in found if cls is not Presence and cls.USUAL)


def _chosen(metrics: Sequence[Metric] | None, known: Samples) -> tuple[Metric, ...]:
    """Return the metrics to compute: those that were asked for, or all by default that lack nothing.

    known: what there is besides the images. Raises `BadInput`, before any image is generated, for one that was asked
    for and lacks a judge's CLIP, a package or a file, and for two that would have one label.
    """
    made = {WORDS[name] for name in PER_IMAGE}
    lacking = {
        m: [what for what in m.missing(known) if what not in made]
        for m in (default_metrics() if metrics is None else metrics)
    }
    if metrics is None:
        return tuple(metric for metric, what in lacking.items() if not what)
    for metric, what in lacking.items():
        if what:
            raise BadInput(f"the metric {type(metric).__name__} needs {' and '.join(what)}")
    labels = [metric.label for metric in metrics]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise BadInput(f"metrics that would be called the same: {', '.join(twice)}")
    return tuple(metrics)


def describe(edit: Edit) -> Made:
    """Return an edit's provenance, for a record."""
    meta: dict[str, Any] = json.loads(json.dumps(dict(edit.meta)))
    return Made(
        id=edit.id, method=str(meta.get("method", "")), preset=str(meta.get("preset", "")),
        fields=meta.get("fields", {}), seed=meta.get("seed"),
        erased=tuple(item["name"] for item in meta.get("erase", ())), preserved=preserved(edit.meta),
        kinds=tuple(item.get("kind", "object") for item in meta.get("erase", ())),
        about={key: value for key, value in meta.items() if key not in TOLD},
    )  # fmt: skip


def check_judged(targets: Sequence[Concept], table: Mapping[str, Concept], judge: Judge) -> None:
    """Raise BadModel, BadInput or UnknownName, before any image is generated, for what cannot be judged."""
    if not table:
        raise BadModel(
            "there is no concept table, or an empty one, which says what the model can generate: concepts.json in the "
            "model's folder (see the docs, Models); that of mini is efface.concept.table('mini')"
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
    collected: Collected,
) -> list[Row]:
    """Generate, judge and score a few queries by both models; the images are freed afterwards."""
    queries = [_query(case, seed, plan) for case, seed in asked]
    each = [metric for metric in metrics if metric.PER_IMAGE]
    original, rows = None, []
    for maker, (model, edit_id) in sides.items():
        made = store.images(model, edit_id, queries, batch=plan.batch)
        original = made if original is None else original
        samples = Samples(
            made, original, texts=[query.prompt for query in queries], queries=queries,
            labels=[case.label for case, _ in asked], kinds=[case.judged for case, _ in asked], judge=judge,
            model=model, edit=Edit(),
        )  # fmt: skip
        scores = {metric.label: metric(samples).tolist() for metric in each}
        collected.add(maker, made)
        first, five, seen = _verdicts(samples)
        for i, ((case, _), query) in enumerate(zip(asked, queries, strict=True)):
            own = {name: round(values[i], DIGITS) for name, values in scores.items()}
            rows.append(
                Row(
                    made_by=maker, groups=case.groups, concept=case.concept, label=case.label, judged=case.judged,
                    query=as_asked(query), seen=seen[i],
                    top1=first[i], top5=five[i], scores=own, image=store.key(model, edit_id, query),
                )
            )  # fmt: skip
    return rows


def _query(case: Case, seed: int, plan: Plan) -> Query:
    sampling: dict[str, Any] = plan.sampling | ({} if case.guidance is None else {"guidance": case.guidance})
    return Query(case.prompt, seed, **sampling)


def as_asked(query: Query) -> Asked:
    """Return a query as a record keeps it."""
    plain = {"steps": query.steps, "guidance": query.guidance, "solver": query.solver}
    return Asked(prompt=query.prompt, seed=query.seed, **plain)


def _verdicts(samples: Samples) -> tuple[list[bool], list[bool], list[str]]:
    """Return whether the label of each image is the judge's first name, or among its first five, and the first name.

    False and "" for an image without a label.
    """
    n = len(samples.labels)
    first, five, seen = [False] * n, [False] * n, [""] * n
    at = [i for i, label in enumerate(samples.labels) if label]
    if at:
        assert samples.images is not None
        assert samples.judge is not None
        kinds: list[Judged] = [samples.kinds[i] for i in at]
        own = Samples(samples.images[at], labels=[samples.labels[i] for i in at], kinds=kinds, judge=samples.judge)
        best = {kind: own.probabilities(kind).argmax(1).tolist() for kind in dict.fromkeys(kinds)}
        for k, (i, one, more) in enumerate(zip(at, FIRST(own).tolist(), FIRST_FIVE(own).tolist(), strict=True)):
            first[i], five[i], seen[i] = bool(one), bool(more), samples.judge.names(kinds[k])[best[kinds[k]][k]]
    return first, five, seen


def _whole(metrics: Sequence[Metric], model: Model, edit: Edit) -> dict[str, float]:
    samples = Samples(model=model, edit=edit)
    able = [metric for metric in metrics if not metric.PER_IMAGE and not isinstance(metric, SetMetric)]
    return {metric.label: round(float(metric(samples)), DIGITS) for metric in able}


def sampling_of(model: Model, plan: Plan, cases: Sequence[Case] | None = None, prompts: str = "") -> Sampling:
    """Return a plan's sampling settings, for a record; given cases are named by a hash: `prompts`, or their own."""
    solver = plan.solver or type(model.pipe.scheduler).__name__
    seeds = {name: getattr(plan, name) for name in plan.SEEDS}
    seeds |= {name: getattr(plan, name) for name in plan.MORE if getattr(plan, name)}
    texts = plan.templates
    if cases is not None:
        whole = json.dumps([asdict(case) for case in cases], sort_keys=True)
        seeds, texts = {}, {"cases": prompts or sha256_text(whole)}
    return Sampling(solver=solver, steps=plan.steps, guidance=plan.guidance, seeds=seeds, prompts=texts)


def _erasing(edit: Edit) -> Cost | None:
    known = {name: float(str(edit.meta[name])) for name in COST if edit.meta.get(name) is not None}
    return Cost(**known) if "seconds" in known else None
