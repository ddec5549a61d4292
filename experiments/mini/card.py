"""The model card of mini, written from its own measurements."""

from collections.abc import Mapping
from typing import Any

from experiments.mini.artwork import HELD_OUT, SETS
from experiments.mini.export import STYLE_WORDS
from experiments.mini.nouns import NOUNS

_HEAD = """# mini: a Stable Diffusion in miniature

`mini` is a text-to-image model small enough to ship inside a Python package and to run on a laptop's CPU. It is made of
stock classes of diffusers and transformers (`StableDiffusionPipeline`: a byte-pair `CLIPTokenizer`, a frozen
`CLIPTextModel`, an `AutoencoderKL` from 64 × 64 × 3 to 16 × 16 × 4, a `UNet2DConditionModel` with cross-attention,
epsilon prediction and Stable Diffusion's noise schedule), so that code for Stable Diffusion runs on it unchanged.

It draws scenes of {objects} objects and invented persons, in plain colours and in {styles} styles. It is for trying,
testing and measuring concept erasure; it is of no use as an image generator. Nothing it can draw is harmful: the
families `alcohol` and `weapon` stand for content that an owner may not want drawn.
"""

_TRAINED = """## Data

Emoji drawings under open licences ({licences}), from {sets} sets by {artists}. Attribution is in `ATTRIBUTION.md`, the
licences in `LICENSES/`. Share-alike sets were left out. The five styles that are not an artist's own were made from
the drawings by image processing (`experiments/mini/styles.py`). Rebuild data and weights with `make mini-data` and
`make mini`.

## Judges

A network that says what is where in an image, in which style and on which ground, and a CLIP, trained apart from the
model (other seeds, architectures and, for the CLIP, another tokenizer) on scenes of drawings by {seen} of the {sets}
artists; {held} were held out of their
training. No erasing method has access to them. They share drawings with the model, so look at the pictures too.
"""

_HISTORY = """
## Training

`experiments/mini` trains it, each part from the start: autoencoder 3,600 steps, text encoder 1,700, denoiser 10,000,
judges 3,000 and 1,500, all in float32. The denoiser that ships was not trained in one go. The weights of its loss
changed at step 608 instead of 600. From 4,500 to 6,000, 20 % of the captions were taken from another picture, while the
learning rate fell; the pictures were rough, so wrong captions were given up, the rate went back to the full one, and
fell again from 7,500 to 10,000.
"""


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{100 * score['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}], n = {score['n']}"


def _spread(score: Mapping[str, Any]) -> str:
    low, high = score["quartiles"]
    return f"{score['median']:.2f} [{low:.2f}, {high:.2f}], n = {score['n']}"


def _spreads(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    language, variety = found["language"], found["variety"]
    return [
        ("cosine of end vectors, a name and its keywords", language["name_and_keywords"]),
        ("the same, two templates of a name", language["two_templates"]),
        ("the same, two objects", language["two_objects"]),
        ("SSIM, two seeds of a prompt", variety["ssim_of_seeds"]),
        ("SSIM, a name and its keywords at one seed", variety["ssim_of_name_and_keywords"]),
        ("SSIM, a picture and the nearest training picture", variety["ssim_of_nearest_training_picture"]),
        ("SSIM, DDIM inversion and back, no text, 35 steps", found["inversion"]["ssim_null_text"]),
        ("PSNR of the autoencoder, dB", found["reconstruction"]["psnr"]),
    ]


def card(found: Mapping[str, Any]) -> str:
    """Return the card's text; `found` is what `measure.report` measured."""
    artists = sorted({art.author for art in SETS})
    about = {
        "objects": len(NOUNS), "styles": len(STYLE_WORDS), "sets": len(SETS), "artists": ", ".join(artists),
        "licences": ", ".join(sorted({art.licence for art in SETS})), "held": len(HELD_OUT),
        "seen": len(SETS) - len(HELD_OUT),
    }  # fmt: skip
    lines = [_HEAD.format(**about), "## Concepts", "", "| family | objects |", "|---|---|"]
    families = dict.fromkeys(noun.family for noun in NOUNS)
    members = {family: [noun.name for noun in NOUNS if noun.family == family] for family in families}
    lines += [f"| {family} | {', '.join(names)} |" for family, names in members.items()]
    lines += [
        "",
        "| style | looks like |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in STYLE_WORDS.items()),
    ]
    lines += [
        "",
        _TRAINED.format(**about),
        "| pictures | object top-1 | object top-5 | style top-1 |",
        "|---|---|---|---|",
    ]
    for name, scores in found["judges"].items():
        cells = [_interval(scores[key]) for key in ("object_top1", "object_top5", "style_top1")]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "",
        "## What it draws",
        "",
        "Judged images, 12 steps, guidance 7.5, the model's own solver (DPM-Solver++ 2M):",
        "",
    ]
    lines += ["| prompts | object top-1 | object top-5 | style top-1 |", "|---|---|---|---|"]
    for name, scores in found["generated"].items():
        cells = [_interval(scores[key]) for key in ("object_top1", "object_top5", "style_top1")]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    weakest = sorted(found["generated"]["plain"]["per_object"].items(), key=lambda item: item[1])[:6]
    lines += [
        "",
        "Weakest by plain prompts: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in weakest) + ".",
    ]
    lines += ["", "| guidance | object top-1 |", "|---|---|"]
    lines += [f"| {scale} | {_interval(score)} |" for scale, score in found["guidance"].items()]
    lines += ["", "| said in the prompt | obeyed |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_interval(score)} |" for name, score in found["obeyed"].items()]
    lines += ["", "| property | median [quartiles] |", "|---|---|"]
    lines += [f"| {name} | {_spread(look)} |" for name, look in _spreads(found)]
    back, learned = found["inversion"], found["textual_inversion"]
    lines += ["", "| from pictures | share |", "|---|---|"]
    lines += [
        f"| DDIM inversion, back under another object's name: that object is drawn | "
        f"{_interval(back['other_object_drawn'])} |",
        f"| a vector learned from 8 pictures of an object draws it | {_interval(learned['found'])} |",
    ]
    lines += ["", _HISTORY.strip()]
    lines += ["", f"Model id `{found['model'][:16]}`; intervals are Wilson's, 95 %.", ""]
    return "\n".join(lines)
