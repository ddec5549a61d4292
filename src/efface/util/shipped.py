"""The models that ship inside the package, by the names that `Model.load` takes."""

from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parents[1]


class Shipped(NamedTuple):
    """One model of the package.

    about: what it is, on one line. weights: a diffusers folder, or a file that its family opens.
    concepts: its concept table. sampling: the fields of `Query` that suit it, where the usual ones do not.
    judged: those of images that only a judge looks at, where fewer steps do.
    """

    about: str
    weights: Path
    concepts: Path
    sampling: dict[str, Any]
    judged: dict[str, Any] = {}  # noqa: RUF012


def _digits(dataset: str, about: str) -> Shipped:
    folder = PACKAGE / "digits"
    weights, concepts = folder / "weights" / f"{dataset}.safetensors", folder / f"{dataset}.json"
    return Shipped(
        f"{about}, 28 px, a prompt is a class or 8 numbers", weights, concepts, {"steps": 5, "guidance": 1.0}
    )


SHIPPED = {
    "mini": Shipped(
        "a Stable Diffusion in miniature that ships with efface: 64 px, fast on a CPU",
        PACKAGE / "mini" / "weights", PACKAGE / "mini" / "concepts.json", {}, {"steps": 8},
    ),
    "digits:mnist": _digits("mnist", "a small diffusion model of handwritten digits"),
    "digits:fashion": _digits("fashion", "the same of clothes (Fashion-MNIST)"),
}  # fmt: skip
