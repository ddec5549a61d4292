"""Jobs of a bench: frozen values, each of which makes one file. The same bench gives the same jobs."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from efface import registry
from efface.concept import Concept, table
from efface.evaluation.bench.file import Bench, Chosen
from efface.evaluation.prompts import Plan, preserved


@dataclass(frozen=True)
class Job:
    """An edit (no metrics, no attack), its evaluation, or an attack on it.

    what: "edit", "evaluation" or "attack". model, model_id: where it is loaded from, and the hash of its weights.
    concepts: erased at once; the first is what an attack brings back. preserve: names that the method is told to
    preserve. seed: of method and attack. plan: prompts and seeds of an evaluation; an attack uses its sampling.
    """

    what: str
    model: str
    model_id: str
    concepts: tuple[Concept, ...]
    preserve: tuple[Concept, ...]
    method: Chosen
    seed: int
    plan: Plan
    attack: Chosen | None = None
    attack_seeds: tuple[int, ...] = ()
    metrics: tuple[str, ...] | None = None

    @cached_property
    def id(self) -> str:
        """Return the sha256 of everything that its result depends on, apart from the code."""
        return _sha256(self._values())

    @property
    def edit_job(self) -> "Job":
        """Return the job that makes the edit this one is about."""
        return replace(self, what="edit", attack=None, attack_seeds=(), metrics=None, plan=Plan())

    @property
    def label(self) -> str:
        """Return "esd:mini church", "inversion:mini on esd:mini church" and the like."""
        made = f"{self.method.label} {'+'.join(c.name for c in self.concepts)}" + (
            f" seed {self.seed}" * bool(self.seed)
        )
        if self.attack:
            return f"{self.attack.label} on {made}"
        return f"erase by {made}" if self.what == "edit" else made

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"what": self.what, "model": self.model_id, "seed": self.seed}
        values |= {"concepts": [c.to_json() for c in self.concepts], "preserve": [c.to_json() for c in self.preserve]}
        values |= {"method": registry.to_json(self.method.make())}
        if self.what != "edit":
            values |= {"plan": {k: v for k, v in asdict(self.plan).items() if k != "batch"}, "metrics": self.metrics}
        if self.attack:
            values |= {"attack": registry.to_json(self.attack.make()), "attack_seeds": self.attack_seeds}
        return values


def jobs(bench: Bench, model_id: str) -> list[Job]:
    """Return the jobs of a bench: all edits first, then evaluations and attacks, concept by concept."""
    known = table(bench.model)
    edits, others = [], []
    for concepts in bench.concepts:
        preserve = preserved(concepts, known)
        for method in bench.methods:
            for seed in bench.method_seeds:
                about = (bench.model, model_id, concepts, preserve, method, seed, bench.plan)
                judged = Job("evaluation", *about, metrics=bench.metrics)
                edits.append(judged.edit_job)
                others.append(judged)
                others += [Job("attack", *about, attack, bench.attack_seeds) for attack in bench.attacks]
    return [*edits, *others]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


__all__ = ["Job", "jobs"]
