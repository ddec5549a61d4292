"""The audit of one edit that is there already: a bench without methods, on what the edit says that it erases."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.bench.file import Bench
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job, on_edit


def erased(edit: Edit, table: Mapping[str, Concept]) -> tuple[Concept, ...]:
    """Return the concepts that an edit says it erases, each once, as the model's table has them.

    Raises `BadInput` for an edit that names none.
    """
    meta: Any = edit.meta
    own = [Concept.from_json(one) for one in meta.get("erase", ())]
    found = tuple(table.get(concept.name, concept) for concept in own)
    if not found:
        raise BadInput("the edit has no erased concept on record; name it with --concept")
    return tuple(dict.fromkeys(found))


def audit_jobs(edit: Edit, concepts: Sequence[Concept], bench: Bench, model_id: str) -> list[Job]:
    """Return the jobs of an audit: one evaluation of all concepts, pooled, and every attack for each of them."""
    whole = tuple(concepts)
    judged, _ = on_edit(bench, model_id, whole, (), None, given=edit.id)
    attacked = [job for one in whole for job in on_edit(bench, model_id, (one,), (), None, given=edit.id)[1]]
    return [judged, *attacked]


def begin(edit: Edit, jobs: Sequence[Job], folder: Folder) -> None:
    """Put the edit where the jobs look for it. Raises `WriteError`."""
    folder.make()
    path = folder.path(jobs[0].edit_job)
    if not path.is_file():
        edit.save(path)


def for_one(bench: Bench, concepts: Sequence[Concept]) -> Bench:
    """Return a bench without methods that is about some concepts."""
    return replace(bench, concepts=(tuple(concepts),), methods=())


__all__ = ["audit_jobs", "begin", "erased", "for_one"]
