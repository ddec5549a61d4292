"""`efface evaluate` and `efface demo`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli import check, parse
from efface.cli.options import BaseFlag, Common, base_of, say, with_common
from efface.concept import Concept, table, table_path
from efface.errors import BadInput, BadModel

if TYPE_CHECKING:
    from efface.edits.edit import Edit

EditArgument = Annotated[str, typer.Argument(metavar="EDIT", help="An edit file, or a sum of edits.")]
ConceptFlag = Annotated[
    list[str] | None,
    typer.Option("--concept", "-c", metavar="CONCEPT…", help="The erased concepts.", show_default="from the edit"),
]
JsonFlag = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record to this .json file.")]
JudgeFlag = Annotated[str, typer.Option("--judge", help="Which judge, for a model with several.", show_default="")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds of each unrelated concept.")]
RelatedSeeds = Annotated[str, typer.Option("--related-seeds", help="Seeds of each related concept.")]
ImplicitSeeds = Annotated[str, typer.Option("--implicit-seeds", help="Seeds of each implicit prompt.")]
StyledSeeds = Annotated[str, typer.Option("--styled-seeds", help="Seeds of each pair of object and style.")]
TargetSeeds = Annotated[str, typer.Option("--target-seeds", help="Seeds of the erased concept.")]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME[:PRESET][,FIELD=VALUE…]",
        help='A metric: "ssim:all-but-one" or "lpips:kpop,weights=alexnet.safetensors"; may be given again.',
        show_default="all that this machine can compute",
    ),
]


@with_common("embedded")
def evaluate(
    edit: EditArgument,
    common: Common,
    concept: ConceptFlag = None,
    json_file: JsonFlag = None,
    model: BaseFlag = "",
    judge: JudgeFlag = "",
    seeds: Seeds = "0:8",
    related_seeds: RelatedSeeds = "0:16",
    target_seeds: TargetSeeds = "0:32",
    implicit_seeds: ImplicitSeeds = "0:4",
    styled_seeds: StyledSeeds = "0:4",
    metric: MetricFlag = None,
) -> None:
    """Evaluate an edit: the judge's accuracy for each group of prompts, before and after, with 95 % intervals."""
    if json_file:
        check.output(json_file, ".json", "--json")
    given = common.check()
    texts = {"seeds": seeds, "related_seeds": related_seeds, "target_seeds": target_seeds}
    texts |= {"implicit_seeds": implicit_seeds, "styled_seeds": styled_seeds}
    numbers = {name: parse.seeds(text) for name, text in texts.items()}
    terms = parse.terms(edit)
    parse.check_files([terms])
    if model:
        check.model(model)
    metrics = None if metric is None else check.metrics(metric)
    loaded_edit = parse.load(terms)
    where, targets, known = _subject(loaded_edit, model, concept)
    from efface.evaluation.evaluate import check_judged
    from efface.evaluation.evaluate import evaluate as run
    from efface.evaluation.prompts import Plan
    from efface.judge import judge_of
    from efface.report import tables
    from efface.report.verdict import verdicts

    judging = judge_of(where, judge)
    check_judged(targets, known, judging)
    plan = Plan(**numbers, batch=common.batch, **(check.sampling(where) | given))
    loaded = common.load(where)
    if "guidance" not in check.sampling(where) | given:
        plan = replace(plan, guidance=loaded.family.GUIDANCE)
    record = run(loaded, loaded_edit, targets, known, judging, plan, any_base=common.any_base, metrics=metrics)
    if json_file:  # before anything is printed: the reader of the output may have left
        record.save(json_file)
    typer.echo(tables.plain(tables.accuracy([record], ["after"])))
    if metric:
        typer.echo(tables.plain(tables.scores([record], ["after"])))
    for verdict in verdicts(record):
        typer.echo(f"{verdict.text}: {verdict.numbers}")
    if json_file:
        say("", json_file)


def _subject(edit: "Edit", model: str, names: list[str] | None) -> tuple[str, tuple[Concept, ...], dict[str, Concept]]:
    """Return (model, targets, concept table), from the flags or else from the edit's provenance."""
    from efface.evaluation.audit import erased

    where = check.model(model or base_of(edit))
    known = table(where)
    if not known:
        raise BadModel(
            f"{where} has no concept table, so its images cannot be judged: put one at {table_path(where)}, "
            "or use efface compare"
        )
    return where, check.concepts(names, where) if names else erased(edit, known), known


@with_common("embedded", "batch", "tokenizer", "any_base")
def demo(
    common: Common,
    concept: Annotated[str, typer.Option("--concept", "-c", help="What to erase.")] = "church",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the page, the edits and records.")
    ] = Path("demo"),
) -> None:
    """Erase a concept from the embedded model by UCE, ESD, negative prompt and SLD, and write a page about it."""
    given = common.check()
    where = check.model("mini")
    (target, *more) = check.concepts([concept], where)
    if more or target.kind == "style":
        raise BadInput(f"the demo erases one object; {concept} is a {'family' if more else 'style'}")
    check.make_folder(output)
    typer.echo("loading", err=True)
    from efface.judge import judge_of
    from efface.report.demo import PLAN
    from efface.report.demo import demo as run

    judging = judge_of(where)
    model = common.load(where)
    plan = replace(PLAN, **given)
    page = run(output, model, target, table(where), judging, plan, say=lambda line: typer.echo(line, err=True))
    typer.echo(page.resolve())
