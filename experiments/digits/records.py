"""What the experiment writes down: table 1 on the common record, task vectors by length, findings of searches."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError

from efface.errors import BadFile, BadInput
from efface.evaluation.record import Aggregate, Cost, Record
from efface.evaluation.record import read as read_records
from efface.evaluation.summary import Share
from efface.judge import Profile
from efface.util.files import writing
from efface.util.values import Value

Kind = Literal["grid", "gradient", "control", "inversion", "bound"]
CHOICE = 0.015  # the shortest task vector with less than this share of the target left is taken
V = TypeVar("V", bound=Value)
NAME = re.compile(r"([a-z]+)-(.+?)(?:-seed(\d+))?")  # data set, target, seed


class Length(Value):
    """A task vector of one length: shares of the target and of the other classes, together and each."""

    alpha: float
    target: Share
    others: Share
    classes: dict[str, Share]


class Lengths(Value):
    """The lengths of the task vector that were tried.

    weights: id of the vector of length 1. chooser: the judge that was asked. accuracy: of each judge by its name,
    (right, all) on pictures that no training saw. cost: of making table 1, where it was measured as a whole.
    """

    weights: str
    tried: tuple[Length, ...]
    chooser: Profile
    accuracy: dict[str, tuple[int, int]] = Field(default_factory=dict)
    cost: Cost | None = None

    @property
    def chosen(self) -> float:
        """Return the shortest length that leaves less than 1.5 % of the target, or the one that leaves least."""
        enough = [one.alpha for one in self.tried if one.target.value < CHOICE]
        return min(enough) if enough else min(self.tried, key=lambda one: one.target.value).alpha


class Best(Value):
    """The best prompt that a search found, measured with fresh noise.

    second: share of the class by the judge that no search asked; first: by the one that was asked. score: the search's
    own estimate. nearest: the class whose prompt in the original is nearest, and the cosine to it; cosine_to_target: to
    the place of the class in the original. cosine_to_moved: to the attacked model's own prompt of it, where it was
    asked for.
    """

    prompt: str
    second: Share
    first: Share
    score: float
    nearest: str
    cosine: float
    cosine_to_target: float
    cosine_to_moved: float | None = None


class Attacked(Value):
    """What every measurement says: the model, the length of its task vector (0 for others), the id of its weights."""

    model: str
    alpha: float
    weights: str = ""


class Searched(Attacked):
    """One search of one model: its best prompt, images, calls of the denoiser, wall seconds."""

    best: Best
    images: int
    calls: int
    seconds: float

    @property
    def values(self) -> int:
        """Return L, 0 for a search without a grid."""
        return 0


class Ascent(Searched):
    """A search by gradient ascent: the score of every start, best first, and how many calls were differentiated."""

    starts: tuple[float, ...]
    backward: int
    cpu_seconds: float


class Missed(Value):
    """How often screening would drop the best prompt, and one of the n finalists; best_five: all of the best five.

    best_five is None where it was not asked.
    """

    best: float
    finalists: float
    n: int
    best_five: float | None = None


class GridSearch(Searched):
    """A search of all prompts of a grid of L values a number; rounds: what the attack says of each of its rounds."""

    levels: int
    points: int
    prompts: int
    missed: Missed
    rounds: tuple[dict[str, JsonValue], ...]

    @property
    def values(self) -> int:
        """Return L."""
        return self.levels


class Control(Attacked):
    """Random prompts of a grid, sampled in full: how often they give the class, and how well screening ranks them."""

    levels: int
    prompts: int
    draws: int
    marginal: Share
    largest_mean: float
    rank_correlation: float


class Bound(Attacked):
    """An upper bound on the mean probability of the class by any prompt of the sphere.

    value: the bound, 1 where it says nothing. moment: the k that gave it. hits: for each k, how many of `prompts`
    random ones showed the class in all of k images. steepest: the largest of the `slopes` that were measured, per
    radian; the bound is only as sure as this is.
    """

    value: float
    moment: int
    hits: tuple[int, ...]
    prompts: int
    steepest: float
    slopes: tuple[float, ...]
    seconds: float
    cpu_seconds: float


class Searches(Value):
    """Everything that was searched, by kind of search and by model, seed and grid; and the bounds."""

    grid: dict[str, GridSearch] = Field(default_factory=dict)
    gradient: dict[str, Ascent] = Field(default_factory=dict)
    control: dict[str, Control] = Field(default_factory=dict)
    inversion: dict[str, Ascent] = Field(default_factory=dict)
    bound: dict[str, Bound] = Field(default_factory=dict)

    def of(self, kind: Kind) -> Mapping[str, Attacked]:
        """Return the measurements of one kind."""
        return getattr(self, kind)

    def with_(self, kind: Kind, lines: Mapping[str, Attacked]) -> "Searches":
        """Return these with other measurements of one kind."""
        return self.model_copy(update={kind: dict(lines)})


class Experimented(Value):
    """All that is known of one experiment; table1: the original against each edit, named by the edit.

    seed: of the edits' training. lengths: None where no task vector was made.
    """

    dataset: str
    target: str
    seed: int = 0
    lengths: Lengths | None = None
    table1: tuple[Record | Aggregate, ...]
    searches: Searches = Field(default_factory=Searches)


class Speed(Value):
    """Images a second by threads and solver steps, of n images, with the version it was measured with."""

    threads: int
    steps: int
    images_per_second: float
    n: int
    git: str


class Archive(Value):
    """Several experiments in one file, and how fast the model is."""

    speed: tuple[Speed, ...]
    experiments: tuple[Experimented, ...]
    versions: dict[str, str]
    git: str
    processor: str


@dataclass(frozen=True)
class Records:
    """What is stored of one experiment; every file's name begins with its data set and its target.

    folder: where the files are, made when first written to. seed: of the edits' training, part of the names above 0.
    """

    folder: Path
    dataset: str
    target: str
    seed: int = 0

    def path(self, what: str, suffix: str = ".json") -> Path:
        """Return the path of a file; makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        seed = f"-seed{self.seed}" if self.seed else ""
        return self.folder / f"{self.dataset}-{self.target}{seed}-{what}{suffix}"

    def table1(self) -> list[Record | Aggregate]:
        """Return the records of table 1, [] before it was measured."""
        path = self.path("table1", ".jsonl")
        return read_records(path) if path.is_file() else []

    def lengths(self) -> Lengths | None:
        """Return the lengths that were tried, None before."""
        path = self.path("lengths")
        return read(Lengths, path) if path.is_file() else None

    def searches(self) -> Searches:
        """Return what was searched."""
        path = self.path("search")
        return read(Searches, path) if path.is_file() else Searches()

    def all(self) -> Experimented:
        """Return everything; raises `BadInput` before table 1 was measured."""
        table1 = self.table1()
        if not table1:
            raise BadInput(f"no table 1 in {self.folder}: run `python -m experiments.digits table1` first")
        return Experimented(
            dataset=self.dataset,
            target=self.target,
            seed=self.seed,
            lengths=self.lengths(),
            table1=tuple(table1),
            searches=self.searches(),
        )

    def write(self, what: str, value: Value) -> None:
        """Write a value, whole or not at all."""
        write(value, self.path(what))


def experiments(folder: Path) -> tuple[Experimented, ...]:
    """Return every experiment of a folder that has a table 1, the digits first; raises `BadInput` without any."""
    found = sorted(folder.glob("*-table1.jsonl"), key=lambda p: (not p.name.startswith("mnist"), p.name))
    if not found:
        raise BadInput(f"no records in {folder}: run `python -m experiments.digits table1` first")
    named = [NAME.fullmatch(path.name.removesuffix("-table1.jsonl")) for path in found]
    return tuple(Records(folder, one[1], one[2], int(one[3] or 0)).all() for one in named if one)


def read(kind: type[V], path: Path) -> V:
    """Read a value from its JSON file; raises `BadFile`."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is not a record of the experiment: {' '.join(str(error).split())[:200]}") from error


def write(value: Value, path: Path, indent: int | None = 1) -> None:
    """Write a value as a JSON file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(value.model_dump_json(indent=indent) + "\n", encoding="utf-8")
