"""What a digit's task vector takes from the other digits, by its training and by the weights that it edits.

python -m benchmarks.digits_task_vector --folder digits/task-vectors     # writes records/digits_task_vector.json

Every vector is taken at the shortest length that leaves less than 1.5 % of the target, as table 1 does, and all is
judged by the first judge on the seeds that are for choosing: table 1's seeds and judge are not touched. One training of
all layers serves every choice of weights. Trainings and lines that are there are not made again.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from efface.edits.edit import Edit
from efface.edits.provenance import git, versions
from efface.evaluation.store import Store
from efface.judge import Profile
from efface.methods.task_vector import TaskVector
from efface.util.values import Value
from experiments.digits.experiment import TASK_VECTOR, Experiment
from experiments.digits.records import CHOICE, Length, read, write
from experiments.digits.table import CHOOSING, FIRST, judged, length

RECORD = Path(__file__).parent / "records" / "digits_task_vector.json"
LENGTHS = [round(0.25 * 1.12**k, 3) for k in range(44)]  # 0.25 to 33
OTHERS = 80  # pictures of each other class
TRAININGS: dict[str, TaskVector] = {
    "lr 1e-3, 80 steps": replace(TASK_VECTOR, only=(), lr=1e-3, steps=80, images=1024),
    "lr 2e-4, 80 steps": replace(TASK_VECTOR, only=(), lr=2e-4, steps=80, images=1024),
    "lr 5e-5, 80 steps": replace(TASK_VECTOR, only=(), lr=5e-5, steps=80, images=1024),
    "lr 2e-5, 160 steps": replace(TASK_VECTOR, only=(), lr=2e-5, steps=160, images=2048),
}
BLOCKS = ("down3", "mid1", "mid2")  # at 7 × 7
PARTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "7 × 7, first convolutions": tuple(f"{block}.conv1" for block in BLOCKS),
    "middle": ("mid1", "mid2"),
    "middle, first convolutions": ("mid1.conv1", "mid2.conv1"),
}


def trained(experiment: Experiment, training: str) -> Edit:
    """Return a vector of all layers and length 1, made now or found in the folder."""
    path = experiment.records.path(training.replace(", ", "-").replace(" ", "-"), ".safetensors")
    if not path.is_file():
        TRAININGS[training](experiment.original, [experiment.concept], seed=0).save(path)
    return Edit.load(path)


def shortest(left: Callable[[float], float]) -> float:
    """Return the shortest of LENGTHS that leaves less than CHOICE, by halving; the longest when none does."""
    low, high = -1, len(LENGTHS) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(LENGTHS[middle]) < CHOICE else (middle, high)
    return LENGTHS[high]


class Line(Value):
    """One vector: its training, the weights it edits, its id, and what it leaves at the length that is taken."""

    training: str
    parts: str
    vector: str
    left: Length


class Lines(Value):
    """The record: every vector that was tried, judged by one judge."""

    lines: tuple[Line, ...] = ()
    target: str
    judge: Profile
    versions: dict[str, str]
    git: str


def line(experiment: Experiment, training: str, parts: str, edit: Edit, store: Store) -> Line:
    """Return the length that is taken, and what is left of target and others there."""
    pruned = edit.prune(only=PARTS[parts])

    def at(alpha: float) -> Length:
        seeds, more = (range(FIRST, FIRST + count) for count in (OTHERS, CHOOSING[1]))
        return length(alpha, judged(experiment, alpha * pruned, experiment.judge, seeds, more, store))

    seen = cache(at)
    return Line(
        training=training, parts=parts, vector=edit.id[:16], left=seen(shortest(lambda a: seen(a).target.value))
    )


def main() -> None:
    """Measure what is missing, and write the record after every line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("digits/task-vectors"))
    parser.add_argument("--target", default="0")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    experiment = Experiment(target=options.target, folder=options.folder)
    lines = read(Lines, options.out).lines if options.out.is_file() else ()
    known = {(one.training, one.parts) for one in lines}
    for training, parts in ((t, p) for t in TRAININGS for p in PARTS if (t, p) not in known):
        with tempfile.TemporaryDirectory() as folder:
            lines += (line(experiment, training, parts, trained(experiment, training), Store(Path(folder))),)
        left = lines[-1].left
        print(f"{training}, {parts}: alpha {left.alpha:g}, others {left.others.value:.1%}")
        profile = experiment.judge.profile
        write(Lines(lines=lines, target=options.target, judge=profile, versions=versions(), git=git()), options.out)


if __name__ == "__main__":
    main()
