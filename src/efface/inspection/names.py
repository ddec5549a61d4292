"""What names of weights and keys tell: blocks, families, and how a LoRA's keys are named."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from efface.exporting.architectures import ARCHITECTURES
from efface.exporting.tools import ROLES, TOOLS
from efface.inspection.summary import Group

WIDTHS = {768: "sd", 1024: "sd", 2048: "sdxl"}  # of the texts that a UNet reads; others are of neither
ROWS = {3072: "flux", 1536: "sd3", 2432: "sd3"}  # of context_embedder
HEADS = {  # beginnings of keys -> (how they are named, in words; the way in efface.exporting.tools)
    "lora_unet_input_blocks": ("kohya's names, blocks of the original layout", "original"),
    "lora_unet_middle_block": ("kohya's names, blocks of the original layout", "original"),
    "lora_unet_output_blocks": ("kohya's names, blocks of the original layout", "original"),
    "lora_unet_double_blocks": ("kohya's names for FLUX", "original"),
    "lora_unet_single_blocks": ("kohya's names for FLUX", "original"),
    "lora_unet_txt_in": ("kohya's names for FLUX", "original"),
    "lora_unet_vector_in": ("kohya's names for FLUX", "original"),
    "lora_unet_joint_blocks": ("kohya's names for SD3", "original"),
    "lora_unet_context_embedder": ("kohya's names for SD3", "original"),
    "lora_unet_": ("kohya's names, blocks of diffusers", "kohya"),
    "lora_transformer_": ("OneTrainer's names", "onetrainer"),
    "diffusion_model.": ("names of the original layout", "generic"),
    "unet.": ("PEFT's names, for diffusers", "peft"),
    "transformer.": ("PEFT's names, for diffusers", "peft"),
}
TEXT = ("lora_te", "text_encoder")  # beginnings of keys for text encoders
SIGNS = (  # (pattern in keys or names, architecture)
    (r"double_blocks|single_blocks|single_transformer_blocks|txt_in|vector_in", "flux"),
    (r"joint_blocks|lora_unet_context_embedder", "sd3"),
    (r"(down_blocks|input_blocks).*attentions.*attn2|input_blocks_\d+_1_.*attn2|add_embedding|label_emb", ""),
)


def role(key: str) -> tuple[str, str]:
    """Return (module, role) of a key of a LoRA or of full differences; role is "" for another key."""
    end = next((end for end in ROLES if key.endswith(f".{end}")), "")
    return (key[: -len(end) - 1], ROLES[end]) if end else (key, "")


def layout_of(keys: Iterable[str]) -> tuple[str, str]:
    """Return how keys are named, in words and as a way of naming; ("", "") for others."""
    for key in keys:
        if not key.startswith(TEXT):
            return next((found for head, found in HEADS.items() if key.startswith(head)), ("", ""))
    return "", ""


def readers(way: str, architecture: str, modules: Iterable[str], roles: Collection[str]) -> tuple[str, ...]:
    """Return the tools that read keys named in a way, with these modules and roles, of an architecture."""
    wanted, plain = set(roles), [re.sub(r"^(unet|transformer)\.", "", module) for module in modules]
    return tuple(
        tool.title
        for tool in TOOLS.values()
        for one in tool.reads.get(architecture, ())
        if one.way == way
        and wanted <= {ROLES[end] for end in one.endings}
        and all(re.fullmatch(one.only, module) for module in plain)
    )


def architecture(names: Sequence[str], width: int = 0, rows: int = 0) -> str:
    """Return the architecture that names of weights or keys are of, "" if they do not tell.

    width: of the texts, where it is known. rows: of context_embedder, where they are.
    """
    text = "\n".join(names)
    for pattern, found in SIGNS[:2]:
        if re.search(pattern, text):
            return found
    if rows in ROWS and "context_embedder" in text:
        return ROWS[rows]
    if not re.search(r"(down_|up_|input_|output_)blocks|mid_block|middle_block", text):
        return ""
    if width in WIDTHS:
        return WIDTHS[width]
    if re.search(r"add_embedding|label_emb|lora_te2|text_encoder_2", text):
        return "sdxl"
    if re.search(r"down_blocks[._]0[._]attentions|input_blocks[._][12][._]1[._]", text):
        return "sd"
    return "sdxl" if re.search(r"attn2[._]to_[kv]", text) and _every_level_below(text) else ""


def _every_level_below(text: str) -> bool:
    """Return whether all levels but the first have attention on the text, as in SDXL."""
    return bool(re.search(r"down_blocks[._]1[._]attentions", text) and re.search(r"down_blocks[._]2[._]att", text))


def title(name: str) -> str:
    """Return an architecture's name in messages, "" for none."""
    return ARCHITECTURES[name].title if name else ""


def block(name: str, blocks: Mapping[str, str]) -> str:
    """Return the block that a weight is in, by the family's words, else the first word of its name in the part."""
    dotted = f".{name}."
    for word, inner in blocks.items():
        if f".{inner}." in dotted:
            return word
    plain = re.sub(r"^(lora_unet_|lora_transformer_|diffusion_model\.|unet\.|transformer\.)", "", name)
    known = re.match(r"(down|mid|up|input|middle|output|double|single|joint)_blocks?", plain)
    return known[0] if known else plain.partition(".")[0]


def groups(weights: Mapping[str, str], values: Mapping[str, int], blocks: Mapping[str, str]) -> tuple[Group, ...]:
    """Return the weights by block.

    weights: name -> how it is changed. values: how many numbers are stored for it.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, how in weights.items():
        found[block(name, blocks), how].append(name)
    return tuple(
        Group(where, len(names), _kinds(names), how, sum(values.get(name, 0) for name in names))
        for (where, how), names in sorted(found.items())
    )


def _kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Return the words that tell weights apart in a block, at most six of them."""
    kinds = {re.sub(r"\.(weight|bias)$", "", name).replace(".", "_") for name in names}
    ends = sorted({match[0] for kind in kinds if (match := re.search(r"(attn\d_)?[a-z]+(_[a-z]+)*(_\d)?$", kind))})
    return (*ends[:6], "…") if len(ends) > 6 else tuple(ends)
