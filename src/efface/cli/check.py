"""Check everything that can be checked before a model is loaded, so that a typing error costs no minute."""

import os
import re
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.concept import TEMPLATES, Concept, table
from efface.errors import BadFile, BadInput, BadModel, WriteError, unknown
from efface.util.files import PICKLES, check_safetensors
from efface.util.shipped import SHIPPED

MODELS = {name: shipped.about for name, shipped in SHIPPED.items()}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def output(path: Path, suffix: str, flag: str = "-o") -> Path:
    """Refuse an output that could not be written at the end. Raises BadInput or WriteError."""
    if path.is_dir():
        raise WriteError(f"{flag} {path} is a folder; name a {suffix} file in it")
    if path.suffix.lower() != suffix:
        raise BadInput(f"{flag} {path}: give the file a name that ends in {suffix}")
    folder(path.parent)
    return path


def folder(path: Path) -> None:
    """Refuse a folder that does not exist or that takes no file. Raises WriteError."""
    if not path.exists():
        raise WriteError(f"the folder {path} does not exist; make it first: mkdir -p {path}")
    if not path.is_dir():
        raise WriteError(f"{path} is a file, not a folder; choose another place to write to")
    try:  # os.access is true for root on a read-only disk, so try it
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise WriteError(f"cannot write in {path.resolve()}: {error.strerror}; choose another folder") from error


def make_folder(path: Path) -> None:
    """Make a folder for several outputs, unless it is there. Raises WriteError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {str(path)[:200]}: {error.strerror}; choose another one") from error
    folder(path)


def model(where: str) -> str:
    """Refuse a model that is plainly not there, and keep the network out of it when it is local.

    Returns `where`. Raises BadModel, BadFile for a pickle or a damaged file, UnknownName.
    """
    path = Path(where)
    if where in MODELS or path.exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # counts only before diffusers is imported
    if where in MODELS:
        return where
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise BadModel(f"{where} holds no model_index.json, so it is not a diffusers folder")
    elif path.is_file():
        if path.suffix.lower() in PICKLES or path.suffix.lower() == ".safetensors":
            check_safetensors(path)
        else:
            raise BadFile(f"{where} is not a .safetensors checkpoint")
    elif path.suffix or not HUB_ID.fullmatch(where):
        raise unknown("model", where, MODELS) if os.sep not in where else BadModel(f"no model at {where}")
    return where


def sampling(where: str) -> dict[str, Any]:
    """Return the fields of `Query` that suit a model that ships, where the usual ones do not; {} for any other."""
    return SHIPPED[where].sampling if where in SHIPPED else {}


def concepts(names: Sequence[str], where: str, kind: str = "", anchors: Sequence[str] = ()) -> tuple[Concept, ...]:
    """Look names up in the model's concept table, whatever their case; any name will do for a model without one.

    A family of the table ("weapon") stands for all its members. anchors: none, one for all, or one for each name. With
    a kind, a name that the table lacks is taken as it is. Raises UnknownName (with the nearest match) or BadInput.
    """
    if kind and kind not in TEMPLATES:
        raise unknown("kind", kind, TEMPLATES)
    if len(anchors) > 1 and len(anchors) != len(names):
        raise BadInput(f"--anchor: give one for all or one for each, not {len(anchors)} for {len(names)} concepts")
    known = table(where)
    found: list[Concept] = []
    for i, name in enumerate(names):
        if not name.strip():
            raise BadInput("a concept is empty; name one")
        for concept in _look_up(name.strip(), known, kind):
            concept = replace(concept, kind=kind) if kind else concept  # type: ignore[arg-type]
            found.append(replace(concept, anchor=anchors[i % len(anchors)]) if anchors else concept)
    twice = sorted({c.name for c in found if [d.name for d in found].count(c.name) > 1})
    if twice:
        raise BadInput(f"named twice: {', '.join(twice)}")
    return tuple(found)


def _look_up(name: str, known: dict[str, Concept], kind: str) -> list[Concept]:
    if not known:
        return [Concept(name)]
    lower = {other.casefold(): concept for other, concept in known.items()}
    if found := known.get(name) or lower.get(name.casefold()):
        return [found]
    members = [concept for concept in known.values() if concept.family.casefold() == name.casefold()]
    if members or kind:
        return members or [Concept(name)]
    names = [*known, *{c.family for c in known.values() if c.family}]
    error = unknown("concept", name, names)
    raise type(error)(f"{error}; with --kind, a name that is not in the table is taken as it is")


def apart(erase: Sequence[Concept], preserve: Sequence[Concept]) -> None:
    """Refuse to erase and preserve the same thing. Raises BadInput."""
    both = {concept.name for concept in erase} & {concept.name for concept in preserve}
    if both:
        raise BadInput(f"both erased and preserved: {', '.join(sorted(both))}; take it out of --preserve")


def prompts(texts: Sequence[str]) -> list[str]:
    """Refuse an empty prompt. Raises BadInput."""
    for text in texts:
        if not text.strip():
            raise BadInput("a prompt is empty; say what to generate")
    return list(texts)


def metrics(texts: Sequence[str]) -> list[Any]:
    """Return the metrics that --metric names, each NAME[:PRESET][,FIELD=VALUE…]; a value may hold commas.

    Raises UnknownName, BadInput for a value out of range, a metric named twice, or one that lacks a file or package.
    """
    from efface import registry
    from efface.metric import lacking

    found: list[Any] = []
    for text in texts:
        head, _, rest = text.partition(",")
        settings = re.split(r",(?=\s*\w+\s*=)", rest) if rest else []  # a path may hold a comma
        name, _, preset = head.strip().partition(":")
        made = registry.get("metrics", name).preset(preset, **dict(_setting(one, name) for one in settings))
        if missing := lacking(made):
            raise BadInput(f"--metric {name} needs {' and '.join(missing)}")
        if made.label in [one.label for one in found]:
            raise BadInput(f"--metric: {made.label} is named twice")
        found.append(made)
    return found


def _setting(text: str, metric: str) -> tuple[str, Any]:
    """Read FIELD=VALUE; a value is a number, true, false, or else a text."""
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise BadInput(f"--metric {metric}: {text.strip()!r} is no setting: write FIELD=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return name.strip(), value.strip()
