"""Measure mini and its judges: what they reach, with n and intervals; write metrics.json and contact sheets."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.evaluation.prompts import implicit_prompts
from efface.evaluation.stats import wilson
from efface.judges.mini import MiniJudge
from efface.models.model import Model, Query
from efface.util.progress import progress
from experiments.mini.artwork import HELD_OUT, drawings
from experiments.mini.captions import HELD_OUT_PLAIN, HELD_OUT_STYLED
from experiments.mini.card import card
from experiments.mini.judges import SEEN
from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.pictures import STYLE_NAMES, Pictures, make

SEEDS = range(1000, 1008)
HOW: dict[str, Any] = {"steps": 12}  # with the model's own solver


def share(hits: Tensor) -> dict[str, Any]:
    """Return a proportion with n and its Wilson interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {
        "value": round(float(hits.float().mean()), 4),
        "n": len(hits),
        "ci95": [round(low, 4), round(high, 4)],
    }


def _right(probs: Tensor, labels: Tensor, k: int) -> Tensor:
    return (probs.topk(k, -1).indices == labels[:, None]).any(1)


def judges_on(judge: MiniJudge, pictures: Pictures) -> dict[str, Any]:
    """Score both judges on pictures of known object and style."""
    images = pictures.pixels.float() / 255
    objects, styles = judge.objects(images), judge.style_probs(images)
    worst = {n: (pictures.objects == i) for i, n in enumerate(NAMES)}
    right = _right(objects, pictures.objects, 1)
    each = {n: round(float(right[rows].float().mean()), 3) for n, rows in worst.items() if rows.any()}
    return {
        "object_top1": share(right),
        "object_top5": share(_right(objects, pictures.objects, 5)),
        "style_top1": share(_right(styles, pictures.styles, 1)),
        "lowest_objects": dict(sorted(each.items(), key=lambda item: item[1])[:6]),
    }


def prompts() -> dict[str, list[tuple[str, int, int]]]:
    """Return the prompts of every group as (text, object label, style label)."""
    plain = [(f"a picture of a {n}", i, 0) for i, n in enumerate(NAMES)]
    styled = [
        (f"a picture of a {n} in the style of {s}", i, j)
        for i, n in enumerate(NAMES)
        for j, s in enumerate(STYLE_NAMES)
        if j
    ]
    return {
        "plain": plain,
        "styled": styled,
        "held_out_templates": [(t.format(n), i, 0) for i, n in enumerate(NAMES) for t in HELD_OUT_PLAIN],
        "held_out_styled": [
            (HELD_OUT_STYLED[(i + j) % 2].format(n, s), i, j)
            for i, n in enumerate(NAMES) for j, s in enumerate(STYLE_NAMES) if j
        ],
        "keywords": [(phrase, i, 0) for i, noun in enumerate(NOUNS) for phrase in implicit_prompts(noun.keywords)],
        "held_out_keywords": [(" ".join(pair), i, 0) for i, noun in enumerate(NOUNS) for pair in noun.held_out],
    }  # fmt: skip


SEEDS_OF = {
    "plain": 8,
    "styled": 1,
    "held_out_templates": 2,
    "held_out_styled": 1,
    "keywords": 1,
    "held_out_keywords": 2,
}


def generated(model: Model, judge: MiniJudge, asked: Sequence[tuple[str, int, int]], seeds: int, **how: Any) -> dict:
    """Score images of every prompt: object top-1 and top-5, style top-1, CLIP score, per object."""
    queries = [Query(text, SEEDS[s], **how) for text, _, _ in asked for s in range(seeds)]
    objects = torch.tensor([o for _, o, _ in asked for _ in range(seeds)])
    styles = torch.tensor([s for _, _, s in asked for _ in range(seeds)])
    images = model.generate(queries)
    probs = judge.objects(images)
    right = _right(probs, objects, 1)
    each = {n: round(float(right[objects == i].float().mean()), 3) for i, n in enumerate(NAMES)}
    return {
        "object_top1": share(right),
        "object_top5": share(_right(probs, objects, 5)),
        "style_top1": share(_right(judge.style_probs(images), styles, 1)),
        "clip_score": round(float(judge.clip_score(images, [q.prompt for q in queries]).mean()), 4),
        "per_object": each,
    }


def contact_sheet(model: Model, path: Path, cells: Callable[[int], Sequence[Query]], rows: Sequence[int]) -> None:
    """Draw one row of images per object and save the sheet, with names."""
    from PIL import Image, ImageDraw

    asked = [cells(row) for row in rows]
    images = model.generate([query for row in asked for query in row])
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    width = len(asked[0])
    sheet = Image.new("RGB", (92 + 66 * width, 66 * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        draw.text((4, 66 * r + 26), NAMES[row], fill="black")
        for c in range(width):
            sheet.paste(Image.fromarray(pixels[r * width + c]), (92 + 66 * c, 66 * r))
    sheet.save(path)


def sheets(model: Model, folder: Path, **how: Any) -> None:
    """Write contact sheets: every object, eight plain seeds; every object in every style, one seed."""
    half = (len(NAMES) + 1) // 2
    for part, rows in (("a", range(half)), ("b", range(half, len(NAMES)))):
        contact_sheet(
            model, folder / f"plain-{part}.png",
            lambda row: [Query(f"a picture of a {NAMES[row]}", s, **how) for s in range(12)], rows,
        )  # fmt: skip
        contact_sheet(
            model, folder / f"styles-{part}.png",
            lambda row: [
                Query(f"a picture of a {NAMES[row]} in the style of {style}", s, **how)
                for style in STYLE_NAMES[1:] for s in range(2)
            ], rows,
        )  # fmt: skip


def report(folder: Path, into: Path) -> None:
    """Measure the model and the judges in `into`; write metrics and card there, and contact sheets into `folder`."""
    torch.set_num_threads(2)
    model, judge = Model.load(into / "weights"), MiniJudge(into / "judges")
    art = drawings(folder / "art")
    found: dict[str, Any] = {
        "judges": {
            "held_out_augmentations": judges_on(judge, make(art, 1, 99, 1.0, sets=SEEN)),
            "unseen_artists": judges_on(judge, make(art, 2, 98, 1.0, sets=set(HELD_OUT))),
        },
        "generated": {},
        "solvers": {},
    }
    for group, asked in progress(list(prompts().items()), "measuring"):
        found["generated"][group] = generated(model, judge, asked, SEEDS_OF[group], **HOW)
    for solver, steps in (("ddim", 20), ("ddim", 50), ("dpm++", 8), ("dpm++", 10), ("dpm++", 20)):
        scores = generated(model, judge, prompts()["plain"], 2, solver=solver, steps=steps)
        found["solvers"][f"{solver} {steps}"] = {k: v for k, v in scores.items() if k != "per_object"}
    for guidance in (3.5, 5.0, 7.5):
        scores = generated(model, judge, prompts()["plain"], 2, guidance=guidance, **HOW)
        found["solvers"][f"guidance {guidance}"] = {k: v for k, v in scores.items() if k != "per_object"}
    half = Model.load(into / "weights", dtype=torch.bfloat16)
    scores = generated(half, judge, prompts()["plain"], 8, **HOW)
    found["solvers"]["bfloat16"] = {k: v for k, v in scores.items() if k != "per_object"}
    found["model"] = model.id
    found["judge"] = judge.profile.model_dump()
    (into / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (into / "MODEL_CARD.md").write_text(card(found), encoding="utf-8")
    sheets(model, folder, **HOW)
