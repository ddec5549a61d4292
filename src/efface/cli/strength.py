"""`efface erase --strength`: a number, or auto."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.cli import check
from efface.cli.options import load_model
from efface.concept import Concept, table
from efface.errors import BadInput

if TYPE_CHECKING:
    from efface.edits.edit import Edit
    from efface.judge import Judge

MOST = 1000.0


def checked(own: dict[str, Any]) -> float | None:
    """Return the scale of an edit, None for auto. Raises BadInput."""
    text, below, embeddings = own["strength"], own["es_below"], own["embeddings"]
    if text != "auto":
        others = (("--es-below", below), ("--embeddings", embeddings), ("--strength-judge", own["strength_judge"]))
        for flag, value in others:
            if value not in (None, ""):
                raise BadInput(f"{flag} needs --strength auto")
        return 1.0 if not text else _number(text)
    if own["stream"]:
        raise BadInput("--strength auto generates images, so it needs the whole model: leave --stream out")
    if below is not None and not -1 <= below <= 1:
        raise BadInput(f"--es-below {below}: a cosine from -1 to 1")
    if embeddings is not None and not embeddings.exists():
        check.output(embeddings, ".safetensors", "--embeddings")
    return None


def judge(where: str, concepts: Sequence[Concept], own: dict[str, Any]) -> "Judge":
    """Return the judge of an automatic strength. Raises BadInput for several concepts, and for a judge without CLIP."""
    if len(concepts) != 1:
        raise BadInput(f"--strength auto looks at one concept, {len(concepts)} are erased")
    from efface.evaluation.auto_strength import controls
    from efface.judge import judge_of

    others = map(Concept, controls(concepts[0], table(where)))  # a CLIP judge is made to tell names apart
    try:
        found = judge_of(where, own["strength_judge"], (*concepts, *others))
    except BadInput as error:
        hint = "give one with a CLIP as --strength-judge clip_zero_shot:FOLDER"
        raise BadInput(f"--strength auto: {error}; {hint}") from error
    if not found.reads_text:
        raise BadInput(f"--strength auto needs a judge with a CLIP, which {found.profile.evaluator} is not")
    return found


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"--strength {text!r}: a number, or auto") from None
    if not math.isfinite(value) or not 0 < abs(value) <= MOST:
        raise BadInput(f"--strength {text}: a number other than 0, at most {MOST:g}")
    return value


def chosen(
    edit: "Edit", where: str, concepts: Sequence[Concept], own: dict[str, Any], judge: "Judge"
) -> "tuple[Edit, str | None]":
    """Return the edit at the strength that fulfils the rules, after saying why, or as it is and why none does."""
    from efface.evaluation import auto_strength as auto
    from efface.finding import Finding

    concept, sampling = concepts[0], check.sampling(where)
    model = load_model(where, own["device"], own["dtype"], own["tokenizer"])
    texts = auto.controls(concept, table(where))
    path: Path | None = own["embeddings"]
    if path is not None and path.exists():
        learned = Finding.load(path)
        auto.check_learned(learned, model, concept)
    else:
        learned = auto.learn(model, concept, "mini" if where == "mini" else "", sampling, own["seed"])
        if path is not None:
            learned.save(path)
    below = own["es_below"]
    below = auto.threshold(model, judge, concept, texts, sampling) if below is None else below
    found = auto.auto_strength(model, edit, concept, judge, learned, texts, sampling, below)
    for one in found.tried:
        typer.echo(
            f"strength {one.strength:g}: Erasure Score {one.score.value:.3f} (mean {one.score.mean:.3f}, "
            f"n {one.score.n}), control {one.control:.3f}"
        )
    if found.chosen is None:
        return edit, found.why
    typer.echo(found.why)
    scaled = found.chosen.strength * edit
    about = {"below": below, "judge": judge.profile.model_dump(), "tried": [one.to_json() for one in found.tried]}
    return replace(scaled, meta={**scaled.meta, "strength": about}), None
