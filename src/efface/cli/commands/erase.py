"""`efface erase METHOD CONCEPT…`: one command per file in methods/, its flags read from that file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import registry
from efface.cli import check, plugins, strength
from efface.cli.fields import Sheet, check_preset, check_values
from efface.cli.keys import made_with
from efface.cli.options import (
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    TokenizerFlag,
    check_dtype,
    load_model,
    say,
)
from efface.errors import BadInput
from efface.util.seeds import check_seed

if TYPE_CHECKING:
    from efface.edits.edit import Edit

ORDER = 10
MAX_EVERY = 1_000_000
Concepts = Annotated[
    list[str], typer.Argument(metavar="CONCEPT…", help="What to erase: names, or a family such as weapon.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The edit to write, .safetensors.")]
Preserve = Annotated[
    list[str] | None, typer.Option("--preserve", "-p", metavar="CONCEPT…", help="Concepts that must stay as they are.")
]
Anchor = Annotated[
    list[str] | None,
    typer.Option("--anchor", metavar="TEXT…", help="What to generate instead: one for all concepts, or one for each."),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="object, style, identity or unsafe; by default from the model's concept table.",
        show_default=False,
    ),
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read only the text encoder, keys and values of the checkpoint, to save memory."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FOLDER", help="Write the training's state here, and resume from it."),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-every",
        metavar="STEPS",
        help="Steps between two checkpoints.",
        show_default="25, or more when writing would take over a twentieth of the time",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Also write the key, with which the model generates the concept again."),
]
Strength = Annotated[
    str,
    typer.Option(
        "--strength",
        help="Scale the edit by a number; auto: the smallest that no embedding of Diverse Inversion gets around.",
        show_default="1",
    ),
]
EsBelow = Annotated[
    float | None,
    typer.Option(
        "--es-below",
        help="With --strength auto: what the Erasure Score must be below (the paper's CLIP: 0.24).",
        show_default="what 95 % of images of other concepts are below",
    ),
]
Embeddings = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        metavar="FILE",
        help="With --strength auto: a finding of diverse_inversion; written when it is not there.",
    ),
]
JudgeFlag = Annotated[
    str,
    typer.Option(
        "--strength-judge", help="With --strength auto: whose CLIP decides.", show_default="the model's own, if any"
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the method's random numbers.")]


OWN = (
    "concepts", "output", "preserve", "anchor", "kind", "preset", "seed", "model", "device", "dtype", "tokenizer",
    "stream", "checkpoint", "checkpoint_every", "key", "strength", "es_below", "embeddings", "strength_judge",
)  # fmt: skip


def flags(method: Sheet) -> plugins.Own:
    """Return the flags of a method's command besides its fields: those of OWN that it has."""
    given: list[tuple[str, Any, Any]] = [
        ("concepts", Concepts, plugins.REQUIRED), ("output", Output, plugins.REQUIRED), ("preserve", Preserve, None),
        ("anchor", Anchor, None), ("kind", Kind, ""), ("preset", plugins.preset_flag(method), ""), ("seed", Seed, 0),
        ("model", ModelFlag, "mini"), ("device", DeviceFlag, "cpu"), ("dtype", DtypeFlag, "fp32"),
        ("tokenizer", TokenizerFlag, None),
    ]  # fmt: skip
    if "InferenceMethod" not in method.bases:
        given += [("strength", Strength, ""), ("es_below", EsBelow, None), ("embeddings", Embeddings, None)]
        given += [("strength_judge", JudgeFlag, "")]
    given += [("stream", Stream, False)] if "ClosedForm" in method.bases else []
    if "FineTune" in method.bases:
        given += [("checkpoint", Checkpoint, None), ("checkpoint_every", CheckpointEvery, None)]
    return [*given, ("key", Key, None)] if "key" in method.by_products else given


def run(method: Sheet, values: dict[str, Any]) -> None:
    """Check everything, then load the model, erase and write the edit."""
    own = {name: values.get(name) for name in OWN}
    given = plugins.given(method, values)
    check.output(values["output"], ".safetensors")
    if own["key"]:
        check.output(own["key"], ".safetensors", "--key")
        if own["key"].resolve() == values["output"].resolve():
            raise BadInput(f"--key {own['key']} is the edit's own file; choose another for the key")
    check_every(own["checkpoint"], own["checkpoint_every"])
    scale = strength.checked(own)
    check_preset(method, values["preset"])
    check_values(method, given)
    check_dtype(values["dtype"])
    check_seed(values["seed"], "--seed")
    where = check.model(values["model"])
    concepts = check.concepts(values["concepts"], where, values["kind"], values["anchor"] or ())
    preserve = check.concepts(values["preserve"] or (), where)
    check.apart(concepts, preserve)
    _check_used(method, given, concepts)
    judge = strength.judge(where, concepts, own) if scale is None else None  # before anything is trained
    if own["checkpoint"]:
        check.make_folder(own["checkpoint"])

    fitted = registry.get("methods", method.name).preset(values["preset"], **given)  # raises for values out of range
    edit, by_products = _fit(fitted, where, concepts, preserve, own)
    seconds, failure = edit.meta.get("seconds", "?"), None
    if judge is not None:
        edit.save(values["output"])  # what was trained is not lost, whatever comes of its strength
        edit, failure = strength.chosen(edit, where, concepts, own, judge)
    elif scale not in (None, 1):
        edit = scale * edit
    edit.save(values["output"])
    if own["key"]:
        made_with(by_products["key"], edit).save(own["key"])
    if failure:
        raise BadInput(f"{failure}; {values['output']} holds the edit at strength 1")
    names = ", ".join(concept.name for concept in concepts)
    say(f"erased {names} from {where} with {method.name} in {seconds} s; preserved {len(preserve)}", values["output"])


def _check_used(method: Sheet, given: dict[str, Any], concepts: Any) -> None:
    """Refuse a target that no concept would take, since each has an anchor. Raises BadInput."""
    for name, styles in (("target", False), ("style_target", True)):
        own = [concept for concept in concepts if (concept.kind == "style") == styles]
        if given.get(name) and "ClosedForm" in method.bases and all(concept.anchor for concept in own):
            flag = "--" + name.replace("_", "-")
            why = f"{own[0].name} has the anchor {own[0].anchor!r}" if own else "there is no concept of its kind"
            raise BadInput(f"{flag} would change nothing, since {why}: give --anchor")


def check_every(folder: Path | None, every: int | None) -> None:
    """Check the steps between checkpoints: at least one, and a folder to write them to."""
    if every is not None and not 1 <= every <= MAX_EVERY:
        raise BadInput(f"--checkpoint-every {every}: from 1 to {MAX_EVERY} steps")
    if every is not None and folder is None:
        raise BadInput("--checkpoint-every needs --checkpoint FOLDER, where the checkpoints are written")


def _fit(fitted: Any, where: str, concepts: Any, preserve: Any, own: dict[str, Any]) -> "tuple[Edit, dict[str, Edit]]":
    """Run the method on a loaded model, with checkpoints if given, or on a checkpoint on disk."""
    if own["stream"]:
        from efface.methods.closed_form.stream import erase as erase_on_disk

        if not Path(where).exists():
            raise BadInput(f"--stream reads a checkpoint folder or file; {where} is neither")
        return erase_on_disk(fitted, where, concepts, preserve, own["seed"], own["tokenizer"]), {}
    model = load_model(where, own["device"], own["dtype"], own["tokenizer"])
    if own["checkpoint"] is None:
        return fitted.run(model, concepts, preserve, seed=own["seed"])
    from efface.methods.finetune.method import checkpoints

    with checkpoints(own["checkpoint"], own["checkpoint_every"] or 0):
        return fitted.run(model, concepts, preserve, seed=own["seed"])


app = plugins.group(
    "methods", "Erase concepts from a model by a method; writes an edit, one small .safetensors file.", flags, run
)
