"""`efface audit EDIT`: standard attacks and metrics on one edit, its report and its card."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check, parse
from efface.cli.commands.bench import DataFlag, Jobs, JudgeFlag, check_workers, checked_judge, do, files
from efface.cli.measure import ConceptFlag, EditArgument
from efface.cli.options import BaseFlag, base_of, say
from efface.concept import table
from efface.errors import BadInput, EffaceError

ORDER = 47
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder of the results.", show_default="audits/ + the edit's name"
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="The protocol audit-quick: a few minutes, two attacks, few images.")
]
ProtocolFlag = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="Another protocol by name, or a file: attacks, metrics, seeds and prompts.",
        show_default="audit",
    ),
]


def run(
    edit: EditArgument, output: Output = None, quick: Quick = False, protocol: ProtocolFlag = "",
    concept: ConceptFlag = None, model: BaseFlag = "", judge: JudgeFlag = "", data: DataFlag = None, jobs: Jobs = 1,
) -> None:  # fmt: skip
    """Attack and measure one edit, and write its report and its erasure card, card.md, for a model repository.

    The same command again does what is missing. An attack that fails is said in the card.
    """
    check_workers(jobs)
    if quick and protocol:
        raise BadInput("--quick and --protocol: give one")
    from efface.evaluation import protocol as protocols

    name = protocol.removeprefix(protocols.PREFIX) or ("audit-quick" if quick else "audit")
    path, given = Path(name) if Path(name).is_file() else protocols.find(name), files(data or ())
    terms = parse.terms(edit)
    parse.check_files([terms])
    if model:
        check.model(model)
    loaded = parse.load(terms)
    where = check.model(model or base_of(loaded))
    from efface.evaluation import audit

    known = table(where)
    concepts = check.concepts(concept, where) if concept else audit.erased(loaded, known)
    bench = audit.for_one(protocols.read(path, where, given, ()), concepts)
    if judge:
        bench = replace(bench, judge=checked_judge(where, judge))
    from efface.evaluation.bench.folder import Folder
    from efface.evaluation.bench.run import judge_for
    from efface.evaluation.evaluate import check_judged
    from efface.models.model import Model
    from efface.report import bench as page
    from efface.report import card

    base = Model.load(where)
    loaded.check(base)
    planned = audit.audit_jobs(loaded, concepts, bench, base.id)
    decides = judge_for(planned[0])
    if not planned[0].cases:
        check_judged(concepts, known, decides)
    folder = Folder(output or Path("audits") / f"{Path(terms[0].path).stem}{'-quick' * quick}")
    check.make_folder(folder.root)
    audit.begin(loaded, planned, folder)
    do(planned, folder, jobs, lenient=True)
    failures, records = folder.failures(planned), folder.records(planned)
    if not records:
        raise EffaceError(f"the edit could not be evaluated, so there is no card: {'; '.join(failures.values())}")
    found = card.Audit(records[0], folder.attacks(planned), failures, name)
    text = card.card(found)
    card.save(text, folder.root / "card.md")
    say("", page.report(folder, folder.root / "index.html", jobs=planned))
    say(card.sentence(found), folder.root / "card.md")
