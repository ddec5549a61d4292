"""Assemble the trained parts: a StableDiffusionPipeline folder, the judges, the concept table, licences."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from efface.mini.nets import Words
from experiments.mini.artwork import HELD_OUT, SETS
from experiments.mini.grounds import GROUNDS
from experiments.mini.nouns import NAMES, NOUNS, related
from experiments.mini.scenes import STYLE_NAMES
from experiments.mini.unet import noise_schedule

STYLE_WORDS = {
    "ink": "black drawing by the artists of Fluent High Contrast and Emoji One Monotone",
    "neon": "glowing magenta tubes on black",
    "blueprint": "white drafting lines on blue",
    "sketch": "pencil hatching on cream paper",
    "pixel": "a mosaic of 16 by 16 squares",
    "poster": "four flat inks on red and teal",
}


def pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, words: CLIPTokenizer, scale: float
) -> StableDiffusionPipeline:
    """Put the parts together; `scale` is the autoencoder's scaling factor. Its own solver is DPM-Solver++ (2M)."""
    vae.register_to_config(scaling_factor=scale)
    absent: Any = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    fast: Any = DPMSolverMultistepScheduler.from_config(noise_schedule().config)
    parts: Any = {"vae": vae, "text_encoder": text, "tokenizer": words, "unet": unet, "scheduler": fast}
    return StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path, words: Path) -> None:
    """Write the pipeline in half precision, in a layout that transformers 4 and 5 both read."""
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    encoder = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(encoder)
    old = {n if n.startswith("text_model.") else f"text_model.{n}": t.half() for n, t in tensors.items()}
    save_file(old, encoder, {"format": "pt"})
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_bytes((words / name).read_bytes())
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    config = folder / "tokenizer" / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k not in ("added_tokens_decoder", "backend")}
    config.write_text(json.dumps(kept | {"tokenizer_class": "CLIPTokenizer"}, indent=2) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def save_judges(scenes: nn.Module, clip: nn.Module, words: Words, folder: Path) -> None:
    """Write the judges' weights in half precision and what their outputs mean."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("scenes", scenes), ("clip", clip)):
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in module.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").chmod(0o644)
    words.save(folder / "words.json")
    about = {
        "objects": list(NAMES),
        "styles": ["plain", *STYLE_NAMES[1:]],
        "grounds": ["paper", *GROUNDS[1:]],
        "input": 64,
    }
    (folder / "judges.json").write_text(json.dumps(about, indent=1) + "\n")


def save_concepts(path: Path) -> None:
    """Write the concept table that ships with the weights."""
    objects = [
        {
            "name": noun.name, "kind": "identity" if noun.person else "object", "family": noun.family,
            "related": list(related(noun)), "keywords": list(noun.keywords),
            "held_out_keywords": [" ".join(pair) for pair in noun.held_out],
            "anchor": noun.anchor, "label": NAMES.index(noun.name),
        }
        for noun in NOUNS
    ]  # fmt: skip
    styles = [
        {
            "name": name, "kind": "style", "family": "style", "related": [], "keywords": [], "held_out_keywords": [],
            "anchor": "", "label": i + 1, "description": STYLE_WORDS[name],
        }
        for i, name in enumerate(STYLE_NAMES[1:])
    ]  # fmt: skip
    rows = lambda items: ",\n".join("  " + json.dumps(item) for item in items)  # noqa: E731
    path.write_text(f'{{"objects": [\n{rows(objects)}\n], "styles": [\n{rows(styles)}\n]}}\n')


def attribution() -> str:
    """Return the attribution of every set of artwork, as it ships."""
    lines = [
        "The embedded model `mini` and its judges were trained on emoji drawings of these sets, unchanged but for",
        "rasterising, placing, and the image processing that makes the styles neon, blueprint, sketch, pixel, poster.",
        "No set is under a share-alike licence. The drawings themselves are not part of the package.",
        "",
    ]
    for art in SETS:
        held = "; never shown to the judges in training" if art.name in HELD_OUT else ""
        lines.append(f"- {art.name} {art.version} (npm @iconify-json/{art.name}), by {art.author}, {art.licence}{held}")
    return "\n".join(lines) + "\n"
