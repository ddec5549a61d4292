"""What a digit's task vector takes from the other digits, by its training and by the weights that it edits.

python -m benchmarks.digits_task_vector --folder digits/task-vectors     # writes records/digits_task_vector.json

Every vector is taken at the shortest length that leaves less than 1.5 % of the target, as table 1 does, and all is
judged by the first judge on the seeds that are for choosing: table 1's seeds and judge are not touched. One training of
all layers serves every choice of weights. Trainings and lines that are there are not made again.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.edits.provenance import git, versions
from efface.methods.task_vector import TaskVector
from efface.util.files import writing
from experiments.digits.experiment import QUERY, TASK_VECTOR, Experiment
from experiments.digits.records import share
from experiments.digits.table import CHOICE, CHOOSING, named

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


def line(experiment: Experiment, edit: Edit) -> dict[str, Any]:
    """Return the length that is taken, and what is left of target and others there."""
    seen: dict[float, dict[str, Any]] = {}

    def right(prompts: tuple[str, ...], count: int, alpha: float) -> Any:
        with (alpha * edit).applied(experiment.original) as model:
            return named(model, experiment.judge, prompts, range(10_000, 10_000 + count), QUERY.steps)

    def left(alpha: float) -> float:
        seen[alpha] = seen.get(alpha) or share(right((experiment.target,), CHOOSING[1], alpha))
        return float(seen[alpha]["share"])

    alpha = shortest(left)
    left(alpha)
    others = right(experiment.others, OTHERS, alpha)
    single = dict(zip(experiment.others, others.double().mean(1).tolist(), strict=True))
    return {"alpha": alpha, "target": seen[alpha], "others": share(others), "classes": single}


def missing(lines: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what is not measured yet."""
    known = {(x["training"], x["parts"]) for x in lines}
    yield from ((t, p) for t in TRAININGS for p in PARTS if (t, p) not in known)


def main() -> None:
    """Measure what is missing, and write the record after every line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("digits/task-vectors"))
    parser.add_argument("--target", default="0")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    experiment = Experiment(target=options.target, folder=options.folder)
    lines = json.loads(options.out.read_text())["lines"] if options.out.is_file() else []
    for training, parts in missing(lines):
        edit = trained(experiment, training)
        found = line(experiment, edit.prune(only=PARTS[parts]))
        lines.append({"training": training, "parts": parts, "vector": edit.id[:16], **found})
        print(f"{training}, {parts}: alpha {found['alpha']:g}, others {found['others']['share']:.1%}")
        about = {
            "target": options.target,
            "judge": experiment.judge.profile.model_dump(),
            "versions": versions(),
            "git": git(),
        }
        with writing(options.out) as temporary:
            temporary.write_text(json.dumps({"lines": lines, **about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
