"""`efface purify`: remove a concept from an existing image."""

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import check, parse
from efface.cli.options import BaseFlag, Common, EditFlag, base_of, say, with_common
from efface.errors import BadInput

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image; cropped to its central square.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The image file to write, .png.")]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        "--concept", "-c", metavar="CONCEPT…", help="Concepts in the image, as the prompt.", show_default="no text"
    ),
]
Steps = Annotated[int, typer.Option("--steps", help="Steps of DDIM from the image to noise, and back.")]
Guidance = Annotated[float, typer.Option("--guidance", help="Classifier-free guidance scale on the way back.")]
Depth = Annotated[float, typer.Option("--depth", help="Share of the steps to invert, 0 to 1; 1 is pure noise.")]


ORDER = 50


@with_common("steps", "guidance", "embedded", "solver", "batch")
def run(
    image: ImageArgument,
    common: Common,
    edit: EditFlag = None,
    concept: Condition = None,
    output: Output = Path("purified.png"),
    model: BaseFlag = "",
    steps: Steps = 35,
    guidance: Guidance = 1.0,
    depth: Depth = 1.0,
) -> None:
    """Invert an image to noise by DDIM and generate it again, both with the edited model.

    The paper ("All but One") uses the edit of: efface erase surgical CONCEPT --preset purification.
    """
    check.output(output, ".png")
    if not image.is_file():
        raise BadInput(f"no image at {image}")
    common.check()
    if not 1 <= steps <= 1000:
        raise BadInput(f"--steps {steps}: from 1 to 1000")
    if not 0 <= guidance <= 100:
        raise BadInput(f"--guidance {guidance}: from 0 to 100")
    if not 0 <= depth <= 1:
        raise BadInput(f"--depth {depth}: from 0 to 1")
    if not edit:
        raise BadInput("nothing to purify with: give an edit as --edit")
    terms = [term for text in edit for term in parse.terms(text)]
    parse.check_files([terms])
    if model:
        check.model(model)
    total = parse.load(terms)
    where = check.model(model or base_of(total))
    names = [found.name for found in check.concepts(concept or (), where)]
    from efface.models import images, purification
    from efface.report import grid

    images.square(image, 8)  # raises for an unreadable image before the model is loaded
    loaded = common.load(where)
    pixels = images.square(image, loaded.family.image_size)
    with total.applied(loaded, common.any_base) as edited:
        clean = purification.purify(edited, pixels[None], ", ".join(names), steps, guidance, depth)
    grid.save(grid.to_image(clean[0]), output)
    say(f"purified {image} with {where}", output)
