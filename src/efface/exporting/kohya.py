"""Names of kohya's trainer: diffusers' modules for Stable Diffusion 1.x and 2.x, the original ones for SDXL."""

from efface.errors import BadEdit
from efface.exporting.base import Base
from efface.exporting.tools import name_in


def key_of(name: str, base: Base) -> str:
    """Return the name of a weight's or bias's module, "" where it has none."""
    module = name.removeprefix(f"{base.part}.").rpartition(".")[0]
    return name_in("original" if base.architecture == "sdxl" else "kohya", base.architecture, module, base.config)


def only_unets(format: str, base: Base, instead: str) -> None:
    """Raise `BadEdit` for an architecture whose kohya names diffusers and A1111 pass over."""
    if base.architecture not in ("sd", "sdxl"):
        raise BadEdit(
            f"{format} cannot express an edit of {base.title}: of kohya's names for it diffusers passes over the "
            f"modules that read the text, and A1111 does not read them: export to {instead}"
        )


def version(base: Base) -> dict[str, str]:
    """Return the header's entries by which A1111 tells the version; without them SDXL counts as 1.x and is hidden."""
    if base.architecture == "sdxl":
        return {"ss_base_model_version": "sdxl_base_v1-0"}
    second = base.config.get("cross_attention_dim") == 1024
    return {"ss_base_model_version": "sd_v2"} | {"ss_v2": "True"} if second else {"ss_base_model_version": "sd_v1"}
