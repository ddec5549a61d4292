"""`efface attack NAME EDIT`: one command per file in attacks/, its flags read from that file."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import registry
from efface.cli import check, parse, plugins
from efface.cli.fields import Sheet, check_preset, check_values
from efface.cli.options import AnyBaseFlag, BaseFlag, Common, DeviceFlag, DtypeFlag, TokenizerFlag, base_of, say
from efface.concept import Concept
from efface.errors import BadInput
from efface.util.seeds import check_seed

if TYPE_CHECKING:
    from efface.edits.edit import Edit
    from efface.evaluation.attacking import Attacked

ORDER = 35
MAX_QUERIES = 1024

EditArgument = Annotated[
    str,
    typer.Argument(
        metavar="EDIT", help="The edit to attack: a file, or a sum of edits.", show_default="none: the model"
    ),
]
ConceptFlag = Annotated[
    str, typer.Option("--concept", "-c", metavar="CONCEPT", help="What to bring back.", show_default="from the edit")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The finding to write, .safetensors.")]
PromptFlag = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT…", help="Plain prompts to start from.", show_default="the concept's first"),
]
SeedsFlag = Annotated[str, typer.Option("--seeds", help="One query per prompt and seed: 0:8 is 0 to 7; or 0,3,5.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the attack's random numbers.")]
Kind = Annotated[
    str,
    typer.Option("--kind", help="object, style, identity or unsafe.", show_default="from the model's concept table"),
]
JudgeFlag = Annotated[
    str, typer.Option("--judge", help="Who decides whether a query succeeded.", show_default="the model's own, if any")
]
AskFlag = Annotated[
    str,
    typer.Option("--ask", help="A judge that the attack may ask; another one than decides.", show_default="see docs"),
]
SheetFlag = Annotated[
    Path | None, typer.Option("--sheet", metavar="FILE", help="Also draw original, edited and attacked images, .png.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FOLDER", help="Write the search's state here, and resume from it."),
]
QuerySteps = Annotated[int | None, typer.Option("--query-steps", help="Sampling steps of images.", show_default="20")]
QueryGuidance = Annotated[
    float | None, typer.Option("--query-guidance", help="Guidance scale of images.", show_default="the family's, 7.5")
]
QuerySolver = Annotated[
    str | None, typer.Option("--query-solver", help="Solver of images.", show_default="the model's own")
]


def flags(attack: Sheet) -> plugins.Own:
    """Return the flags of an attack's command besides its fields."""
    return [
        ("edit", EditArgument, ""), ("concept", ConceptFlag, ""), ("output", Output, plugins.REQUIRED),
        ("prompt", PromptFlag, None), ("seeds", SeedsFlag, "0:8"), ("kind", Kind, ""),
        ("preset", plugins.preset_flag(attack), ""), ("seed", Seed, 0), ("judge", JudgeFlag, ""), ("ask", AskFlag, ""),
        ("sheet", SheetFlag, None), ("checkpoint", Checkpoint, None), ("query_steps", QuerySteps, None),
        ("query_guidance", QueryGuidance, None), ("query_solver", QuerySolver, None), ("model", BaseFlag, ""),
        ("device", DeviceFlag, "cpu"), ("dtype", DtypeFlag, "fp32"), ("tokenizer", TokenizerFlag, None),
        ("any_base", AnyBaseFlag, False),
    ]  # fmt: skip


def run(attack: Sheet, values: dict[str, Any]) -> None:
    """Check everything, then load the model, attack, judge, and write the finding."""
    fields = plugins.given(attack, values)
    check.output(values["output"], ".safetensors")
    if values["sheet"]:
        check.output(values["sheet"], ".png", "--sheet")
    check_preset(attack, values["preset"])
    check_values(attack, fields)
    check_seed(values["seed"], "--seed")
    if values["checkpoint"]:
        check.make_folder(values["checkpoint"])
    common = Common(
        steps=values["query_steps"], guidance=values["query_guidance"], solver=values["query_solver"],
        device=values["device"], dtype=values["dtype"], tokenizer=values["tokenizer"], any_base=values["any_base"],
    )  # fmt: skip
    given = common.check()
    seeds = parse.seeds(values["seeds"])
    terms = parse.terms(values["edit"]) if values["edit"] else []
    if terms:
        parse.check_files([terms])
    if values["model"]:
        check.model(values["model"])
    edit = parse.load(terms) if terms else None
    where = check.model(values["model"] or (base_of(edit) if edit else "mini"))
    concept = _concept(values["concept"], edit, where, values["kind"])
    prompts = check.prompts(values["prompt"] or concept.texts[:1])
    if len(prompts) * len(seeds) > MAX_QUERIES:
        raise BadInput(f"more than {MAX_QUERIES} queries; give fewer prompts or seeds")
    chosen = registry.get("attacks", attack.name).preset(values["preset"], **fields)  # raises for values out of range
    judges = _judges(where, values["judge"], values["ask"], concept)
    queries = [(prompt, seed) for prompt in prompts for seed in seeds]
    done = _attack(chosen, edit, where, concept, queries, check.sampling(where) | given, judges, values, common)
    done.finding.save(values["output"])
    if values["sheet"]:
        _draw(done, values["sheet"])
    from efface.evaluation.summary import Share

    where_to = values["edit"] or where
    if done.rates is None:
        line = f"{attack.name} on {where_to}: not judged, since there is no judge for {where}; name one as --judge"
    else:
        line = f"{attack.name} on {where_to}: {concept.name} without the attack in {done.rates.pre}, "
        line += f"with it in {Share.of(done.after)}"
    say(line, values["output"])


def _concept(name: str, edit: "Edit | None", where: str, kind: str) -> Concept:
    """Return the concept to bring back: the one named, or the only one that the edit erases."""
    if name:
        (first, *more) = check.concepts([name], where, kind)
        if more:
            raise BadInput(f"--concept {name} is a family of {len(more) + 1} concepts: name one")
        return first
    erased = () if edit is None else edit.meta.get("erase", ())
    if len(erased) != 1:
        names = ", ".join(one["name"] for one in erased) or "none that is known"
        why = "without an edit the model itself is attacked" if edit is None else f"the edit erases {names}"
        raise BadInput(f"name what to bring back as --concept; {why}")
    return Concept.from_json(erased[0])


def _judges(where: str, judge: str, ask: str, concept: Concept) -> tuple[Any, Any]:
    """Return who decides and whom the attack may ask, before a model is loaded; None for a model that has no judge."""
    from efface.criterion import Shows
    from efface.evaluation.attacking import check_apart
    from efface.judge import asked_of, judge_of

    known = bool(judge) or where in check.MODELS
    decides = judge_of(where, judge) if known else None
    if decides is not None:
        Shows(decides).check(concept)
    if not ask:
        return decides, asked_of(where, decides)
    asked = judge_of(where, ask)
    if decides is not None:
        check_apart(Shows(decides), asked)
    return decides, asked


def _attack(
    attack: Any, edit: "Edit | None", where: str, concept: Concept, asked: list[tuple[str, int]],
    sampling: dict[str, Any], judges: tuple[Any, Any], values: dict[str, Any], common: Common,
) -> "Attacked":  # fmt: skip
    from efface.attack import Target
    from efface.criterion import Shows
    from efface.evaluation.attacking import attack_edit
    from efface.query import Query
    from efface.training.checkpoints import checkpoints

    model = common.load(where)
    sampling = {"guidance": model.family.GUIDANCE} | sampling
    queries = [Query(prompt, seed, **sampling) for prompt, seed in asked]
    saved = checkpoints(values["checkpoint"]) if values["checkpoint"] else nullcontext()
    with saved, nullcontext(model) if edit is None else edit.applied(model, common.any_base) as edited:
        target = Target(edited, judges[1], model)
        criterion = None if judges[0] is None else Shows(judges[0])
        return attack_edit(attack, target, concept, queries, criterion, values["seed"], common.batch)


def _draw(done: "Attacked", path: Path) -> None:
    from efface.report import grid

    shown = [("original", done.original), ("edited", done.edited), ("attacked", done.attacked)]
    columns = [(name, images) for name, images in shown if images is not None]
    prompts = list(dict.fromkeys(query.prompt for query in done.queries))
    rows = [[i for i, query in enumerate(done.queries) if query.prompt == prompt] for prompt in prompts]
    cells = [[images[row] for _, images in columns] for row in rows]
    grid.save(grid.sheet(cells, rows=prompts, columns=[name for name, _ in columns]), path)


app = plugins.group("attacks", "Attack an edit: look for what brings an erased concept back.", flags, run)
