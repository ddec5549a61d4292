"""Jobs of a bench: frozen values, each of which makes one file. The same bench gives the same jobs."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from efface import registry
from efface.concept import Concept, Kind, table
from efface.evaluation.bench.file import Bench, Chosen
from efface.evaluation.prompts import Case, Plan, preserved


@dataclass(frozen=True)
class Job:
    """An edit (no metrics, no attack), its evaluation, or an attack on it.

    what: "edit", "evaluation" or "attack". model, model_id: where it is loaded from, and the hash of its weights.
    concepts: erased at once; the first is what an attack brings back. preserve: names that the method is told to
    preserve. seed: of method and attack. plan: prompts and seeds of an evaluation; an attack uses its sampling.
    judge: who decides, "" for the model's own. named: what a judge of any names tells apart, () for the model's table.
    cases: prompts in place of the plan's. prompts: a hash of what they were made from. given: the id of an edit that
    was made elsewhere, which then no job makes.
    """

    what: str
    model: str
    model_id: str
    concepts: tuple[Concept, ...]
    preserve: tuple[Concept, ...]
    method: Chosen | None
    seed: int
    plan: Plan
    attack: Chosen | None = None
    attack_seeds: tuple[int, ...] = ()
    metrics: tuple[Chosen, ...] | None = None
    judge: str = ""
    named: tuple[Concept, ...] = ()
    cases: tuple[Case, ...] = ()
    prompts: str = ""
    given: str = ""

    @cached_property
    def id(self) -> str:
        """Return the sha256 of everything that its result depends on, apart from the code."""
        return _sha256(self._values())

    @property
    def edit_job(self) -> "Job":
        """Return the job that makes the edit this one is about."""
        return replace(
            self, what="edit", attack=None, attack_seeds=(), metrics=None, plan=Plan(), judge="", named=(), cases=(),
            prompts="",
        )  # fmt: skip

    @property
    def label(self) -> str:
        """Return "esd:mini church", "inversion:mini on esd:mini church" and the like."""
        by = self.method.label if self.method else f"edit {self.given[:8]}"
        made = f"{by} {'+'.join(c.name for c in self.concepts)}" + f" seed {self.seed}" * bool(self.seed)
        if self.attack:
            return f"{self.attack.label} on {made}"
        return f"erase by {made}" if self.what == "edit" else made

    def _values(self) -> dict[str, Any]:
        if self.what == "edit" and self.method is None:
            return {"what": self.what, "model": self.model_id, "edit": self.given}
        values: dict[str, Any] = {"what": self.what, "model": self.model_id, "seed": self.seed}
        values |= {"concepts": [c.to_json() for c in self.concepts], "preserve": [c.to_json() for c in self.preserve]}
        values |= {"method": registry.to_json(self.method.make())} if self.method else {"edit": self.given}
        if self.what != "edit":
            values |= {"judge": self.judge, "named": [concept.to_json() for concept in self.named]}
        if self.what == "evaluation":
            metrics = None if self.metrics is None else [one.make().instrument() for one in self.metrics]
            values |= {"plan": {k: v for k, v in asdict(self.plan).items() if k != "batch"}, "metrics": metrics}
            values |= {"cases": [asdict(case) for case in self.cases]}
        if self.attack:
            values |= {"attack": registry.to_json(self.attack.make()), "attack_seeds": self.attack_seeds}
            values |= {"sampling": self.plan.sampling}
        return values


def jobs(bench: Bench, model_id: str) -> list[Job]:
    """Return the jobs of a bench: all edits first, then evaluations and attacks, concept by concept."""
    known, named = table(bench.model), names_of(bench)
    edits, others = [], []
    for concepts in bench.concepts:
        names = {concept.name for concept in concepts}
        told = preserved(concepts, known) if bench.preserve is None else bench.preserve
        preserve = tuple(concept for concept in told if concept.name not in names)
        for method in bench.methods:
            for seed in bench.method_seeds:
                judged, attacked = on_edit(bench, model_id, concepts, preserve, method, seed, named=named)
                edits.append(judged.edit_job)
                others += [judged, *attacked]
    return [*edits, *others]


def on_edit(
    bench: Bench, model_id: str, concepts: tuple[Concept, ...], preserve: tuple[Concept, ...], method: Chosen | None,
    seed: int = 0, given: str = "", named: tuple[Concept, ...] = (),
) -> tuple[Job, list[Job]]:  # fmt: skip
    """Return the evaluation of one edit and the attacks on it. given: the id of an edit that is there already."""
    cases = tuple(case for one in bench.prompts for case in one.cases(concepts))
    about = (bench.model, model_id, concepts, preserve, method, seed, bench.plan)
    more: dict[str, Any] = {"judge": bench.judge, "named": named or names_of(bench), "given": given}
    prompts = _sha256([asdict(one) for one in bench.prompts]) if cases else ""
    judged = Job("evaluation", *about, metrics=bench.metrics, cases=cases, prompts=prompts, **more)
    return judged, [Job("attack", *about, attack, bench.attack_seeds, **more) for attack in bench.attacks]


def names_of(bench: Bench) -> tuple[Concept, ...]:
    """Return what a judge of any names tells apart: every concept of the bench, and what it should see in any prompt.

    The same for all its records, or they could not stand in one table; () for a bench without prompts of its own, where
    it is the model's table.
    """
    if not bench.prompts:
        return ()
    known = {concept.name: concept for group in bench.concepts for concept in group}
    cases = (case for one in bench.prompts for group in bench.concepts for case in one.cases(group))
    kinds: dict[str, Kind] = {case.label: case.judged for case in cases if case.label}
    return (*known.values(), *(Concept(name, kind=kind) for name, kind in kinds.items() if name not in known))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


__all__ = ["Job", "jobs", "on_edit"]
