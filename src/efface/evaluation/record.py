"""Record: one evaluation of one edit, one row per image, from which tables, verdicts and pages are computed."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from efface.errors import BadFile, BadInput, WriteError
from efface.evaluation.prompts import GROUPS
from efface.evaluation.summary import Change, ConceptSummary, Mean, Share, Summary
from efface.judge import Judged, Profile
from efface.util import untrusted
from efface.util.untrusted import shorten
from efface.util.values import Value

FORMAT = 2
Maker = Literal["original", "edited"]


class Asked(Value):
    """The query of one image: prompt, seed, solver steps, guidance scale, solver ("" for the model's own)."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    solver: str = ""


class Row(Value):
    """Hold one image's query, verdict and scores.

    made_by: the model before the edit or after it. groups: groups it counts in, its own first.
    concept: the concept that is scored. label: the name that the judge should give, "" for an image that only metrics
    look at, which has no verdict; judged: as an object or as a style. seen: the name that the judge gives first.
    top1, top5: whether the label is first, or among the first five.
    scores: of each metric that gives one per image. image: the key of the image in the store.
    """

    made_by: Maker
    groups: tuple[str, ...] = Field(min_length=1)
    concept: str
    label: str
    judged: Judged
    query: Asked
    seen: str
    top1: bool
    top5: bool
    scores: dict[str, float] = Field(default_factory=dict)
    image: str


class Base(Value):
    """Identify the model before the edit: its name, and the hash of its weights and scheduler."""

    name: str
    id: str


class Made(Value):
    """Identify the edit: its id, method, preset, fields, seed, and the erased and preserved concepts.

    kinds: of the erased concepts. about: the method's own report (loss, condition number, …). "" and {} where the edit
    has no such entry.
    """

    id: str
    method: str = ""
    preset: str = ""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | None = None
    erased: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    preserved: tuple[str, ...] = ()
    about: dict[str, JsonValue] = Field(default_factory=dict)


class Sampling(Value):
    """Hold the sampling settings: solver, steps, guidance, and the seeds and templates of each kind of prompt."""

    solver: str
    steps: int
    guidance: float
    seeds: dict[str, tuple[int, ...]]
    prompts: dict[str, str]


class Cost(Value):
    """Hold a cost: wall seconds, processor seconds, the process's peak memory and its memory before, MB."""

    seconds: float
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    loaded_mb: float | None = None


class SetScore(Value):
    """Hold a metric of a set of images: its value, and the number of edited images behind it."""

    value: float
    n: int


class Scored(Value):
    """Hold what every record has about the evaluation as a whole.

    name: a label of the run, or "". concepts: what was erased, pooled. evaluator: the judge's profile.
    whole: scores of the edit as a whole, by metric. sets: scores of all images of a group, by metric and group.
    metrics: what each metric's scores depend on besides the images: its settings, the networks and their hashes.
    erasing, evaluating: costs, where they are known.
    error: why there are no images, or "".
    """

    format: Literal[2] = FORMAT
    name: str = ""
    concepts: tuple[str, ...]
    model: Base
    edit: Made
    evaluator: Profile
    sampling: Sampling
    whole: dict[str, float] = Field(default_factory=dict)
    sets: dict[str, dict[str, SetScore]] = Field(default_factory=dict)
    metrics: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    erasing: Cost | None = None
    evaluating: Cost | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: str = ""
    created: str = ""
    error: str = ""

    @property
    def concept(self) -> str:
        """Return what was erased, as one text."""
        return ", ".join(self.concepts)

    @property
    @abstractmethod
    def summaries(self) -> dict[str, Summary]:
        """Return the summary of every group that has images, in the order of GROUPS."""

    @property
    @abstractmethod
    def groups_scored(self) -> tuple[str, ...]:
        """Return every group with images or scores, judged or only measured, in the order of GROUPS."""

    @property
    def singles(self) -> dict[str, ConceptSummary]:
        """Return the summary of every concept; {} if the record has none."""
        return {}

    @abstractmethod
    def mean(self, metric: str, group: str) -> Mean | None:
        """Return the mean of a metric over the edited images of a group; None if the record has none."""

    @property
    @abstractmethod
    def scored(self) -> tuple[str, ...]:
        """Return the labels of the metrics that have one score per image."""

    def append(self, path: Path) -> None:
        """Append the record to a file with one record per line. Raises `WriteError`."""
        line = (self.model_dump_json() + "\n").encode()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


class Record(Scored):
    """Hold an evaluation with one row per image, in the same order for the original and the edited model."""

    kind: Literal["record"] = "record"
    rows: tuple[Row, ...] = ()

    @property
    def summaries(self) -> dict[str, Summary]:
        """Return the summary of every group that has images, in the order of GROUPS."""
        return {name: _summary(rows) for name, rows in _by_group(self.rows).items()}

    @property
    def groups_scored(self) -> tuple[str, ...]:
        """Return every group with images or scores, judged or only measured, in the order of GROUPS."""
        of_sets = (group for groups in self.sets.values() for group in groups)
        return _ordered([*(group for row in self.rows for group in row.groups), *of_sets])

    @property
    def singles(self) -> dict[str, ConceptSummary]:
        """Return the summary of every concept with prompts of its own."""
        alone = {group.name for group in GROUPS if group.by_concept}
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.label and row.groups[0] in alone:
                found.setdefault(row.concept, []).append(row)
        preserved = set(self.edit.preserved)
        return {
            name: ConceptSummary(**dict(_summary(rows)), group=rows[0].groups[0], preserved=name in preserved)
            for name, rows in found.items()
        }

    def mean(self, metric: str, group: str) -> Mean | None:
        """Return the mean of a metric over the edited images of a group; None if the record has none."""
        rows = [row for row in self.rows if row.made_by == "edited" and group in row.groups and metric in row.scores]
        return Mean.of([row.scores[metric] for row in rows]) if rows else None

    def aggregate(self) -> "Aggregate":
        """Return the record without rows: some hundred times smaller, with the same shares, intervals and means."""
        means = {label: {g: mean for g in self.groups_scored if (mean := self.mean(label, g))} for label in self.scored}
        plain = {name: getattr(self, name) for name in Scored.model_fields}
        return Aggregate(**plain, groups=self.summaries, means=means)

    @property
    def scored(self) -> tuple[str, ...]:
        """Return the labels of the metrics that have one score per image."""
        return tuple(dict.fromkeys(label for row in self.rows for label in row.scores))


class Aggregate(Scored):
    """Hold an evaluation without rows: counts by group, the paired change, means.

    note: why there are no rows, or "". groups: the summary of each group. means: by metric and group.
    """

    kind: Literal["aggregate"] = "aggregate"
    note: str = ""
    groups: dict[str, Summary]
    means: dict[str, dict[str, Mean]] = Field(default_factory=dict)

    @property
    def summaries(self) -> dict[str, Summary]:
        """Return the summary of every group that has images, in the order of GROUPS."""
        return {name: self.groups[name] for name in _ordered(n for n, g in self.groups.items() if g.before.n)}

    @property
    def groups_scored(self) -> tuple[str, ...]:
        """Return every group with images or scores, judged or only measured, in the order of GROUPS."""
        return _ordered([*self.groups, *(g for own in (*self.means.values(), *self.sets.values()) for g in own)])

    def mean(self, metric: str, group: str) -> Mean | None:
        """Return the mean of a metric over the edited images of a group; None if the record has none."""
        return self.means.get(metric, {}).get(group)

    @property
    def scored(self) -> tuple[str, ...]:
        """Return the labels of the metrics that have one score per image."""
        return tuple(self.means)


READER: TypeAdapter[Record | Aggregate] = TypeAdapter(Annotated[Record | Aggregate, Field(discriminator="kind")])


def read(path: Path) -> list[Record | Aggregate]:
    """Read one record (.json), or one per line (.jsonl). Raises `BadFile`."""
    text = untrusted.read_text(path)
    if path.suffix != ".jsonl":
        return [_parse(text, str(path))]
    return [_parse(line, f"line {i} of {path}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]


def _parse(text: str, where: str) -> Record | Aggregate:
    untrusted.parse(text, f"{where} is not a record of format {FORMAT}: it")
    try:
        return READER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = shorten(".".join(map(str, first["loc"])) or "it")
        raise BadFile(
            f"{where} is not a record of format {FORMAT}: {place}: {' '.join(first['msg'].split())}"
        ) from error


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    given = set(names)
    known = [group.name for group in GROUPS if group.name in given]
    return (*known, *sorted(given - set(known)))


def _by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        for group in row.groups if row.label else ():
            found.setdefault(group, []).append(row)
    return {name: found[name] for name in _ordered(found)}


def _summary(rows: Sequence[Row]) -> Summary:
    """Count verdicts before and after. Raises `BadInput` unless both models have the same queries in the same order."""
    before, after = ([row for row in rows if row.made_by == maker] for maker in ("original", "edited"))
    if [row.query for row in before] != [row.query for row in after]:
        raise BadInput("a record needs the same prompts and seeds for the original and the edited model")
    first, second = [row.top1 for row in before], [row.top1 for row in after]
    return Summary(
        before=Share.of(first), after=Share.of(second), before5=Share.of([row.top5 for row in before]),
        after5=Share.of([row.top5 for row in after]), change=Change.of(first, second),
    )  # fmt: skip


__all__ = [
    "Aggregate",
    "Asked",
    "Base",
    "Cost",
    "Made",
    "Record",
    "Row",
    "Sampling",
    "Scored",
    "SetScore",
    "read",
]
