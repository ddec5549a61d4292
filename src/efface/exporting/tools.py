"""Which keys of a LoRA file, or of a file of full differences, the common tools use, and which they pass over.

Almost every wrong key is passed over in silence or with a line in a log, so files are checked against these tables
before they are said to work.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from efface.errors import unknown
from efface.exporting.architectures import ARCHITECTURES, original_module

PEFT = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")
DIFF = ("diff", "diff_b")
ROLES = {
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_down.weight": "down", "lora_up.weight": "up",
    "alpha": "alpha", "diff": "diff", "diff_b": "diff_b",
}  # fmt: skip
ATTENTION = r"transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)"


class Naming(NamedTuple):
    """One way in which a tool names modules: which, with which endings, and of which modules (a pattern)."""

    way: str
    endings: tuple[str, ...]
    only: str = r".+"


class Tool(NamedTuple):
    """A tool that reads such files: its name, what it reads by architecture, and where that is written."""

    title: str
    reads: Mapping[str, tuple[Naming, ...]]
    source: str


ALL = (*PEFT, *KOHYA, *DIFF)
COMFY_UNET = tuple(Naming(way, ALL) for way in ("kohya", "original", "generic", "processor"))
TOOLS = {
    "diffusers": Tool(
        "diffusers",
        {
            "sd": (Naming("peft", PEFT), Naming("kohya", KOHYA)),
            "sdxl": (Naming("peft", PEFT), Naming("kohya", KOHYA), Naming("original", KOHYA)),
            "sd3": (Naming("peft", PEFT),),
            "flux": (Naming("peft", PEFT),),
        },
        "diffusers 0.42: loaders/lora_pipeline.py, loaders/lora_conversion_utils.py; of kohya's names for FLUX it "
        "reads those of double and single blocks only",
    ),
    "comfyui": Tool(
        "ComfyUI",
        {
            "sd": COMFY_UNET,
            "sdxl": COMFY_UNET,
            "sd3": tuple(Naming(way, ALL) for way in ("peft", "onetrainer", "original", "generic")),
            "flux": tuple(Naming(way, ALL) for way in ("peft", "bare", "onetrainer", "original", "generic")),
        },
        "Comfy-Org/ComfyUI: comfy/lora.py (load_lora, model_lora_keys_unet), comfy/utils.py",
    ),
    "a1111": Tool(
        "A1111",
        {
            "sd": (Naming("kohya", (*KOHYA, *DIFF)), Naming("original", (*KOHYA, *DIFF))),
            "sdxl": (Naming("kohya", (*KOHYA, *DIFF)), Naming("original", (*KOHYA, *DIFF))),
            "sd3": (Naming("peft", PEFT, ATTENTION),),
        },
        "AUTOMATIC1111/stable-diffusion-webui 1.10: extensions-builtin/Lora/networks.py, network_full.py, "
        "modules/models/sd3/sd3_model.py; it does not run FLUX",
    ),
}


class Use(NamedTuple):
    """What a key of a file is for: a module of the denoiser in diffusers' names, and its role (down, up, diff, …)."""

    module: str
    role: str


class Reading(NamedTuple):
    """What a tool makes of a file: the keys it uses, those it passes over, and why it refuses the file ("" if not)."""

    used: dict[str, Use]
    ignored: tuple[str, ...]
    refuses: str = ""


def name_in(way: str, architecture: str, module: str, config: Mapping[str, Any]) -> str:
    """Return the name of a module in one of the ways of naming; "" where it has none.

    way: "peft", "bare", "processor" and "kohya" are diffusers' names, "original" and "generic" the original layout's.
    """
    part = ARCHITECTURES[architecture].part
    if way in ("original", "generic"):
        original = original_module(architecture, module, config)
        if not original:
            return ""
        return f"diffusion_model.{original}" if way == "generic" else f"lora_unet_{original.replace('.', '_')}"
    if way == "processor":  # attention processors of old versions of diffusers
        return f"{part}.{module.replace('.to_', '.processor.to_').removesuffix('.0')}"
    names = {"peft": f"{part}.{module}", "bare": module}
    flat = module.replace(".", "_")
    return (names | {"kohya": f"lora_unet_{flat}", "onetrainer": f"lora_transformer_{flat}"})[way]


def reads(
    tool: str, architecture: str, keys: Iterable[str], modules: Collection[str], config: Mapping[str, Any]
) -> Reading:
    """Return what a tool makes of a file with these keys, for a denoiser with these modules.

    modules: names of the denoiser's modules with weights, as in diffusers. config: the denoiser's configuration.
    Raises `UnknownName` for a tool that is not known.
    """
    if tool not in TOOLS:
        raise unknown("tool", tool, TOOLS)
    known: dict[str, Use] = {}
    for naming in TOOLS[tool].reads.get(architecture, ()):
        for module in modules:
            name = name_in(naming.way, architecture, module, config) if re.fullmatch(naming.only, module) else ""
            if name:
                known |= {f"{name}.{end}": Use(module, ROLES[end]) for end in naming.endings}
    keys = list(keys)
    used = {key: known[key] for key in keys if key in known}
    if tool == "comfyui" and ARCHITECTURES[architecture].original:  # a bias in a fused module cannot be named
        fused = [key for key, use in used.items() if use.role == "diff_b" and not _original(architecture, use)]
        used = {key: use for key, use in used.items() if key not in fused}
    return Reading(used, tuple(key for key in keys if key not in used), _refuses(tool, keys, used))


def _original(architecture: str, use: Use) -> str:
    return original_module(architecture, use.module, {})


def _refuses(tool: str, keys: list[str], used: Mapping[str, Use]) -> str:
    if tool == "diffusers" and (full := [key for key in keys if key.endswith((".diff", ".diff_b"))]):
        return f"it raises an error for full differences such as {full[0]}"
    if tool == "a1111":
        whole = {use.module for use in used.values() if use.role == "diff"}
        lone = [use.module for use in used.values() if use.role == "diff_b" and use.module not in whole]
        if lone:
            return f"it raises an error for a bias without a weight beside it: {lone[0]}"
    return ""
