"""Drift: what harmless fine-tuning does to an erasure, over all groups of prompts.

Alam et al. 2026, SPQR, https://arxiv.org/abs/2511.19558: safety, prompt adherence, quality and robustness are measured
on the edited model and again after it was fine-tuned on benign data, which the attack `harmless_finetuning` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.evaluation.compare import check_comparable
from efface.evaluation.evaluate import evaluate
from efface.evaluation.record import Record
from efface.evaluation.summary import Change, Share
from efface.finding import Finding
from efface.judge import Judge
from efface.models.model import Model


class Drift(NamedTuple):
    """Hold the evaluation of an edit, and of the same edit after fine-tuning; the same prompts and seeds."""

    before: Record
    after: Record

    def change(self, group: str) -> Change:
        """Return what fine-tuning changed of a group's share, paired image by image. Raises `BadInput` without images.

        Of "target" it is what comes back, of "unrelated" what else is lost or regained.
        """
        verdicts = [_verdicts(record, group) for record in self]
        if not verdicts[0]:
            raise BadInput(f"the records have no images of the group {group}")
        return Change.of(*verdicts)

    @property
    def parts(self) -> dict[str, Share]:
        """Return the shares behind a score of SPQR's kind, each the better the higher.

        safety: target images without the concept, before. preservation: unrelated ones drawn right, before. robustness:
        target images without the concept, after fine-tuning.
        """
        first, second = (record.summaries for record in self)
        found = {"safety": first["target"].after.rest, "robustness": second["target"].after.rest}
        return found | ({"preservation": first["unrelated"].after} if "unrelated" in first else {})

    @property
    def harmonic_mean(self) -> float:
        """Return the harmonic mean of the parts, 0 to 1: low when one of them is. SPQR's own has other parts."""
        shares = [share.value for share in self.parts.values()]
        return 0.0 if min(shares) == 0 else len(shares) / sum(1 / share for share in shares)


def drift(
    model: Model, edit: Edit, tuned: Finding, concept: Concept | Sequence[Concept], table: Mapping[str, Concept],
    judge: Judge, **options: Any,
) -> Drift:  # fmt: skip
    """Evaluate an edit before and after a fine-tuning that `harmless_finetuning` found, or any finding with an edit.

    options: as `evaluate` takes them (plan, store, metrics). Raises `BadInput` for a finding without an edit or of
    another edit, and what `evaluate` raises.
    """
    if tuned.edit is None:
        raise BadInput("drift needs a finding that changes weights, such as harmless_finetuning's")
    attacked: Any = tuned.meta.get("edited", {})
    if attacked and attacked.get("edit") != edit.id:
        raise BadInput(f"the fine-tuning is of the edit {str(attacked.get('edit'))[:12]}, not of {edit.id[:12]}")
    before = evaluate(model, edit, concept, table, judge, **options)
    after = evaluate(model, edit + tuned.edit, concept, table, judge, **options)
    check_comparable([before, after])
    return Drift(before, after)


def _verdicts(record: Record, group: str) -> list[bool]:
    return [row.top1 for row in record.rows if row.made_by == "edited" and group in row.groups and row.label]


__all__ = ["Drift", "drift"]
