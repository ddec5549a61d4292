"""AttackRecord: one attack on one edit, with a row for every plain query."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from efface.errors import BadFile
from efface.evaluation.asr import ASR, attack_success
from efface.evaluation.record import FORMAT, Asked, Base, Cost, Made
from efface.judge import Profile
from efface.util import untrusted
from efface.util.untrusted import shorten
from efface.util.values import Value


class AttackRow(Value):
    """Hold one plain query and what became of it.

    before, after: whether the image shows the concept without and with the attack. original, edited, attacked: keys of
    the three images in the store.
    """

    query: Asked
    before: bool
    after: bool
    original: str
    edited: str
    attacked: str


class Attempt(Value):
    """Identify an attack: its name, preset, fields and seed."""

    name: str
    preset: str = ""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0


class AttackRecord(Value):
    """Hold an attack on an edit, as it was judged by a judge that it did not ask.

    concept: what it brings back. evaluator: who judged. asked: whom the attack asked, None for nobody.
    finding: the file of the finding, relative to the record's folder. found: success of each query of the finding.
    cost: images, calls of the denoiser and of the text encoder, as the attack counts them.
    error: why there are no rows, or "".
    """

    kind: Literal["attack"] = "attack"
    format: Literal[2] = FORMAT
    name: str = ""
    concept: str
    model: Base
    edit: Made
    attack: Attempt
    evaluator: Profile
    asked: Profile | None = None
    rows: tuple[AttackRow, ...] = ()
    finding: str = ""
    found: tuple[bool, ...] = ()
    cost: dict[str, float] = Field(default_factory=dict)
    attacking: Cost | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: str = ""
    created: str = ""
    error: str = ""

    @property
    def rates(self) -> ASR:
        """Return the attack success rates."""
        return attack_success([row.before for row in self.rows], [row.after for row in self.rows])


def read_attack(path: Path) -> AttackRecord:
    """Read what `AttackRecord.save` wrote. Raises `BadFile`."""
    text = untrusted.read_text(path)
    untrusted.parse(text, f"{path} is not a record of an attack: it")
    try:
        return AttackRecord.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = shorten(".".join(map(str, first["loc"])) or "it")
        raise BadFile(f"{path} is not a record of an attack: {place}: {' '.join(first['msg'].split())}") from error


__all__ = ["AttackRecord", "AttackRow", "Attempt", "read_attack"]
