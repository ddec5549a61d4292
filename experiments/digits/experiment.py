"""The models of the experiment: the original, two fine-tuned on a prompt, one with a task vector taken away.

Pham et al. 2024, Robust Concept Erasure Using Task Vectors, section 3.3, https://arxiv.org/abs/2404.03631. Both edits
are made by the classes that edit Stable Diffusion.
"""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from efface.attack import Target
from efface.concept import Concept, table
from efface.digits import pipeline
from efface.digits.classes import class_number, classes
from efface.edits.edit import Edit
from efface.errors import BadFile, BadModel, unknown
from efface.judges.digits import DigitJudge
from efface.methods.ca import CA
from efface.methods.task_vector import TaskVector
from efface.models.model import Model
from efface.query import Query
from efface.training.checkpoints import checkpoints
from experiments.digits.records import Records
from experiments.network import bfloat16_is_fast

MODELS = ("original", "fine-tuned", "fixed prompts", "prompt layers", "task vector")
QUERY = Query("", steps=5, guidance=1.0)  # how every image is generated, unless a command changes it

# "fine-tune the model to produce the remaining 9 digits when given 0": each of the nine is an anchor of its own, and
# `prior` replays them. The table of prompts is part of the model and is trained with it. Which of the two is quicker
# decides where the erasure happens: at 1e-3 for the network the prompt hardly moves (docs/digits.md).
FINETUNE = CA(
    steps=150, lr=2e-4, batch=128, optimizer="adam", weight_decay=0.0, clip=0.0, params="full", images=1024,
    image_steps=5, guidance=1.0, target="model", prior=1.0, templates=("{}",), detach_start=False, embedding_lr=1e-2,
)  # fmt: skip
# "fine-tune our model to generate only the target concept", without a prompt; any alpha is made from one of length 1.
# Only the first convolutions of the two blocks in the middle are edited (section 4.3: a subset of the weights erases
# better than all of them). Rate and subset were chosen by what was left of the other digits when 0 was erased, by the
# first judge on seeds of their own: benchmarks/digits_task_vector.py.
TASK_VECTOR = TaskVector(
    steps=80, lr=5e-5, batch=512, accumulate=1, optimizer="adam", weight_decay=0.0, params="full", images=1024,
    image_steps=10, image_batch=32, guidance=1.0, alpha=1.0, only=("mid1.conv1", "mid2.conv1"),
    gradient_checkpointing=False,
)  # fmt: skip

# fixed prompts: the same with the table frozen and a quicker network. prompt layers: of that, only what reads the
# prompt, as is usual for Stable Diffusion. Neither is in the paper.
FIXED = replace(FINETUNE, lr=1e-3, embedding_lr=0.0)
METHODS = {
    "fine-tuned": FINETUNE,
    "fixed prompts": FIXED,
    "prompt layers": replace(FIXED, params="unet.context.*"),
    "task vector": TASK_VECTOR,
}


@dataclass(frozen=True)
class Experiment:
    """One class to erase from one data set's model, and the folder of its edits and records.

    weights: the folder with the trained networks. seed: of the edits' training.
    """

    dataset: str = "mnist"
    target: str = "0"
    folder: Path = Path("digits")
    weights: Path = pipeline.WEIGHTS
    seed: int = 0

    def __post_init__(self) -> None:
        class_number(self.dataset, self.target)

    @property
    def records(self) -> Records:
        """Return the records in the folder."""
        return Records(self.folder, self.dataset, self.target, self.seed)

    @property
    def others(self) -> tuple[str, ...]:
        """Return the classes that must be preserved."""
        return tuple(name for name in classes(self.dataset) if name != self.target)

    @property
    def table(self) -> dict[str, Concept]:
        """Return the model's concept table."""
        return table(f"digits:{self.dataset}")

    @property
    def concept(self) -> Concept:
        """Return the class to erase."""
        return self.table[self.target]

    @cached_property
    def original(self) -> Model:
        """Return the untouched model."""
        path = self.weights / f"{self.dataset}.safetensors"
        if not path.is_file():
            raise BadModel(f"{path} does not exist: train the networks with `python -m experiments.digits train`")
        return replace(Model.load(path), name=f"digits:{self.dataset}")

    @cached_property
    def judge(self) -> DigitJudge:
        """Return the judge that searches may ask."""
        return DigitJudge.load(f"digits:{self.dataset}", "judge", self.weights)

    @cached_property
    def second(self) -> DigitJudge:
        """Return the judge that no search asks, for the numbers that are quoted."""
        return DigitJudge.load(f"digits:{self.dataset}", "judge2", self.weights)

    def edit(self, kind: str) -> Edit:
        """Return an edit, one of METHODS (a task vector of α = 1), made once and then read from the folder.

        Raises `BadFile` when the file there is of other weights, settings or another seed, `UnknownName`.
        """
        if kind not in METHODS:
            raise unknown("edit", kind, METHODS)
        path, method = self.edit_path(kind), METHODS[kind]
        if path.is_file():
            edit = Edit.load(path)
            fields = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(method).items()}
            same = edit.meta["fields"] | {"bf16": method.bf16} == fields  # where it was made decides on bfloat16
            if not same or edit.meta["seed"] != self.seed:
                raise BadFile(f"{path} was made with other settings: delete it or choose another folder")
            return edit
        # the concept once for each anchor, so that its prompt is taught all of them
        erase = (
            [Concept(self.target, anchor=other) for other in self.others] if isinstance(method, CA) else [self.concept]
        )
        with checkpoints(self.records.path(kind.replace(" ", "-"), ".run"), seconds=60.0):
            edit = replace(method, bf16=bfloat16_is_fast())(self.original, erase, seed=self.seed)
        edit.save(path)
        return edit

    def edit_path(self, kind: str) -> Path:
        """Return where an edit is, or will be."""
        return self.records.path(kind.replace(" ", "-"), ".safetensors")

    def changed(self, name: str, alpha: float = 1.0) -> Edit:
        """Return the edit of one of the models; alpha: of the task vector."""
        edit = self.edit(name)
        return alpha * edit if name == "task vector" else edit

    def model(self, name: str, alpha: float = 1.0) -> Model:
        """Return one of the models; alpha: of the task vector."""
        if name == "original":
            return self.original
        with self.changed(name, alpha).applied(self.original) as edited:
            return edited

    def attacked(self, name: str, alpha: float = 1.0) -> Target:
        """Return one of the models as what is attacked."""
        return Target(self.model(name, alpha), self.judge, self.original)


class Clock:
    """Measure wall and processor seconds from when it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self.wall, 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
        }
