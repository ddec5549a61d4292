"""Run one job: what a worker does, in this process, another or on another machine."""

import shutil
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cache
from typing import Any

from efface import registry
from efface.attack import Attack, Target
from efface.concept import table
from efface.criterion import Shows
from efface.edits.edit import Edit
from efface.edits.provenance import git, versions
from efface.errors import BadInput
from efface.evaluation.attack_record import AttackRecord, AttackRow, Attempt
from efface.evaluation.attacking import attack_edit
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.evaluate import describe, evaluate
from efface.evaluation.record import Asked, Base, Cost
from efface.evaluation.store import Store
from efface.judge import Judge, asked_of, judge_of
from efface.models.model import Model
from efface.query import Query
from efface.training.checkpoints import checkpoints
from efface.util.meter import metered


def run(job: Job, folder: Folder, store: Store) -> None:
    """Do one job and write its file; does nothing when it is there. An edit that is missing is made first.

    Raises what methods, attacks and metrics raise.
    """
    if folder.done(job):
        return
    if job.what == "edit":
        _edit(job, folder)
    elif job.what == "evaluation":
        _evaluation(job, folder, store)
    else:
        _attack(job, folder, store)
    folder.succeed(job)


@cache
def _model(where: str, model_id: str) -> Model:
    """Load a model once a process, and check that it is the one that the job was planned for."""
    model = Model.load(where)
    if model.id != model_id:
        raise BadInput(f"{where} has changed since the bench began: its weights are {model.id[:12]}")
    return model


def _edit(job: Job, folder: Folder) -> None:
    if job.method is None:
        raise BadInput(f"the edit {job.given[:12]} is no longer in {folder.root}: begin again")
    model, method = _model(job.model, job.model_id), job.method.make()
    with _resumable(job, folder):
        edit = method(model, job.concepts, job.preserve, job.seed)
    edit.save(folder.path(job))
    shutil.rmtree(folder.checkpoints(job), ignore_errors=True)


def _resumable(job: Job, folder: Folder) -> AbstractContextManager[None]:
    return checkpoints(folder.checkpoints(job), seconds=60.0)


def _made(job: Job, folder: Folder) -> Edit:
    if not folder.done(job.edit_job):
        _edit(job.edit_job, folder)
    return Edit.load(folder.path(job.edit_job))


def _evaluation(job: Job, folder: Folder, store: Store) -> None:
    edit, model = _made(job, folder), _model(job.model, job.model_id)
    metrics = None if job.metrics is None else [one.make() for one in job.metrics]
    record = evaluate(
        model, edit, job.concepts, table(job.model), judge_for(job), job.plan, store, metrics=metrics,
        cases=job.cases or None, prompts=job.prompts,
    )  # fmt: skip
    record.model_copy(update={"name": job.label}).save(folder.path(job))


def judge_for(job: Job) -> Judge:
    """Return who decides. Raises what `judge_of` raises."""
    return judge_of(job.model, job.judge, job.named)


def _attack(job: Job, folder: Folder, store: Store) -> None:
    assert job.attack is not None
    edit, model = _made(job, folder), _model(job.model, job.model_id)
    concept, attack = job.concepts[0], job.attack.make()
    queries = [Query(concept.texts[0], seed, **job.plan.sampling) for seed in job.attack_seeds]
    judge = judge_for(job)
    with metered() as meter, edit.applied(model) as edited, _resumable(job, folder):
        target = Target(edited, asked_of(job.model, judge), model)
        done = attack_edit(attack, target, concept, queries, Shows(judge), job.seed, job.plan.batch, store)
    done.finding.save(folder.finding(job))
    _attack_record(job, attack, model, edit, judge, done, Cost(**meter.read())).save(folder.path(job))
    shutil.rmtree(folder.checkpoints(job), ignore_errors=True)


def _attack_record(
    job: Job, attack: Attack, model: Model, edit: Edit, judge: Judge, done: Any, cost: Cost
) -> AttackRecord:
    assert job.attack is not None
    rows = tuple(
        AttackRow(
            query=Asked(prompt=query.prompt, seed=query.seed, **job.plan.sampling), before=before, after=after,
            original=keys[0], edited=keys[1], attacked=keys[2],
        )
        for query, before, after, keys in zip(done.queries, done.before, done.after, done.keys, strict=True)
    )  # fmt: skip
    fields = registry.to_json(attack)["fields"]
    asked = asked_of(job.model, judge)
    return AttackRecord(
        name=job.label, concept=job.concepts[0].name, model=Base(name=model.name, id=model.id), edit=describe(edit),
        attack=Attempt(name=job.attack.name, preset=job.attack.preset, fields=fields, seed=job.seed),
        evaluator=judge.profile, asked=None if asked is None else asked.profile, rows=rows,
        finding=f"findings/{job.id}.safetensors", found=done.finding.success,
        cost={name: float(value) for name, value in done.finding.cost.items()}, attacking=cost, versions=versions(),
        git=git(), created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


__all__ = ["judge_for", "run"]
