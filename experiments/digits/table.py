"""Table 1: does the judge see what was asked for, for the target and for all others, in every model?"""

import tempfile
from pathlib import Path

from efface.edits.edit import Edit
from efface.evaluation.evaluate import evaluate
from efface.evaluation.prompts import Plan
from efface.evaluation.record import Record
from efface.evaluation.store import Store
from efface.judge import Judge
from efface.metrics.changed_weights import ChangedWeights
from experiments.digits.experiment import QUERY, Experiment
from experiments.digits.records import Length, Lengths
from experiments.network import bfloat16

ALPHAS = (3.0, 6.0, 9.0, 12.0, 15.0, 16.0, 17.0, 17.5, 18.0, 18.5, 19.0, 19.5, 20.0, 21.0, 22.0, 24.0, 27.0, 30.0, 36.0)
BATCH = 256
CHOOSING = (40, 300)  # pictures of each other class and of the target, for the choice
FIRST = 10_000  # the first of the seeds that are for choosing


def judged(experiment: Experiment, edit: Edit, judge: Judge, seeds: range, target_seeds: range, store: Store) -> Record:
    """Judge the original and the edited model: the other classes with `seeds` each, the target with its own."""
    plan = Plan(
        target_seeds=tuple(target_seeds), seeds=tuple(seeds), steps=QUERY.steps, guidance=float(QUERY.guidance),
        batch=BATCH,
    )  # fmt: skip
    with bfloat16():
        return evaluate(
            experiment.original,
            edit,
            experiment.concept,
            experiment.table,
            judge,
            plan,
            store,
            metrics=[ChangedWeights()],
        )


def table1(experiment: Experiment, name: str, alpha: float, seeds: int) -> Record:
    """Judge one model by the judge that no search asks; n: 9 × seeds and 9 × seeds. Images stay in `store`."""
    store, edit = Store(experiment.folder / "store"), experiment.changed(name, alpha)
    record = judged(experiment, edit, experiment.second, range(seeds), range(9 * seeds), store)
    return record.model_copy(update={"name": name})


def length(alpha: float, record: Record) -> Length:
    """Return what a record says of a task vector of one length."""
    groups, single = record.summaries, record.singles
    classes = {name: one.after for name, one in single.items() if one.group != "target"}
    return Length(alpha=alpha, target=groups["target"].after, others=groups["unrelated"].after, classes=classes)


def try_lengths(experiment: Experiment) -> Lengths:
    """Judge task vectors of several lengths by the first judge, on seeds of their own; no image is stored for good."""
    seeds, more = (range(FIRST, FIRST + count) for count in CHOOSING)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        edits = {alpha: experiment.changed("task vector", alpha) for alpha in ALPHAS}
        tried = [length(a, judged(experiment, e, experiment.judge, seeds, more, store)) for a, e in edits.items()]
    judges = [judge for judge in (experiment.judge, experiment.second) if judge.accuracy]
    return Lengths(
        weights=experiment.edit("task vector").id, tried=tuple(tried), chooser=experiment.judge.profile,
        accuracy={judge.name: judge.accuracy for judge in judges if judge.accuracy},
    )  # fmt: skip
