"""Properties of the un-erased mini and of its judges: each function returns what `metrics.json` records of one.

No eraser and no attack is asked here, but for textual inversion, which is a property of a model too.
"""

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from efface.attack import Target
from efface.attacks.inversion import Inversion
from efface.concept import Concept
from efface.evaluation.prompts import implicit_prompts
from efface.evaluation.stats import wilson
from efface.judges.mini import MiniJudge
from efface.models.likelihood import psnr
from efface.models.model import Model, Query
from efface.models.purification import purify
from efface.util.progress import progress
from experiments.mini import scenes
from experiments.mini.captions import HELD_OUT_PLAIN, HELD_OUT_STYLED, SAID_GROUND, SAID_PLACE, named
from experiments.mini.grounds import GROUNDS
from experiments.mini.nouns import NAMES, NOUNS
from experiments.mini.scenes import STYLE_NAMES, Scenes, held_out_pair
from experiments.network import bfloat16_is_fast

SEEDS = range(1000, 1008)
HOW: dict[str, Any] = {"steps": 12}  # with the model's own solver
PLAIN = [f"a picture of {named(i)}" for i in range(len(NAMES))]
FOUND = 0.5  # probability of the surest cell, for an object to count as present among others
Prompt = tuple[str, int, int]  # text, object, style


def share(hits: Tensor) -> dict[str, Any]:
    """Return a proportion with n and its Wilson interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": round(float(hits.float().mean()), 4), "n": len(hits), "ci95": [round(low, 4), round(high, 4)]}


def spread(values: Tensor) -> dict[str, Any]:
    """Return the median of values with their quartiles and n."""
    low, middle, high = (round(float(values.quantile(q)), 4) for q in (0.25, 0.5, 0.75))
    return {"median": middle, "quartiles": [low, high], "n": len(values)}


def _right(probs: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    return (probs.topk(k, -1).indices == labels[:, None]).any(1)


def middles(cells: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each image's object is: x and y of its middle, 0 to 1, and the share of the image it covers."""
    map = cells[torch.arange(len(cells)), objects + 1]
    axis = (torch.arange(8) + 0.5) / 8
    total = map.sum((1, 2)).clamp(min=1e-6)
    return (map.sum(1) * axis).sum(1) / total, (map.sum(2) * axis).sum(1) / total, total / 64


def judges_on(judge: MiniJudge, pool: Scenes) -> dict[str, Any]:
    """Score the judge on scenes of known content."""
    images = pool.pixels.float() / 255
    objects, styles, grounds = judge.objects(images), judge.style_probs(images), judge.ground_probs(images)
    one, plain = pool.second < 0, pool.style == 0
    both = judge.present(images[~one])
    pairs = torch.stack([pool.first[~one], pool.second[~one]], 1)
    right = _right(objects[one], pool.first[one])
    each = {
        n: round(float(right[rows].float().mean()), 3)
        for i, n in enumerate(NAMES)
        if (rows := pool.first[one] == i).any()
    }
    x, y, _ = middles(judge.cells(images[one]), pool.first[one])
    placed = pool.place[one] > 0
    return {
        "object_top1": share(right),
        "object_top5": share(_right(objects[one], pool.first[one], 5)),
        "both_of_two": share((both.gather(1, pairs) > FOUND).all(1)),
        "style_top1": share(_right(styles, pool.style)),
        "ground_top1": share(_right(grounds[plain], pool.ground[plain])),
        "place": share(_place(x[placed], y[placed]) == pool.place[one][placed]),
        "lowest_objects": dict(sorted(each.items(), key=lambda item: item[1])[:6]),
    }


def _place(x: Tensor, y: Tensor) -> Tensor:
    """Return the index in PLACES of a middle: left, right, top or bottom of the inner square, or the middle."""
    dx, dy = x - 0.5, y - 0.5
    aside = torch.where(dx < 0, 1, 2)
    along = torch.where(dy < 0, 3, 4)
    return torch.where(torch.maximum(dx.abs(), dy.abs()) < 0.07, 5, torch.where(dx.abs() > dy.abs(), aside, along))


def prompts() -> dict[str, list[Prompt]]:
    """Return the prompts of every group as (text, object label, style label)."""
    styled = [
        (f"{PLAIN[i]} in the style of {s}", i, j) for i in range(len(NAMES)) for j, s in enumerate(STYLE_NAMES) if j
    ]
    return {
        "plain": [(text, i, 0) for i, text in enumerate(PLAIN)],
        "styled": styled,
        "held_out_templates": [(t.format(named(i)), i, 0) for i in range(len(NAMES)) for t in HELD_OUT_PLAIN],
        "held_out_styled": [
            (HELD_OUT_STYLED[(i + j) % 2].format(named(i), s), i, j)
            for i in range(len(NAMES)) for j, s in enumerate(STYLE_NAMES) if j
        ],
        "keywords": [(phrase, i, 0) for i, noun in enumerate(NOUNS) for phrase in implicit_prompts(noun.keywords)],
        "held_out_keywords": [(" ".join(pair), i, 0) for i, noun in enumerate(NOUNS) for pair in noun.held_out],
    }  # fmt: skip


SEEDS_OF = {
    "plain": 8,
    "styled": 1,
    "held_out_templates": 2,
    "held_out_styled": 1,
    "keywords": 2,
    "held_out_keywords": 2,
}


def generated(model: Model, judge: MiniJudge, asked: Sequence[Prompt], seeds: int, **how: Any) -> dict[str, Any]:
    """Score images of every prompt: object top-1 and top-5, style top-1, CLIP score, per object."""
    queries = [Query(text, SEEDS[s], **how) for text, _, _ in asked for s in range(seeds)]
    objects = torch.tensor([o for _, o, _ in asked for _ in range(seeds)])
    styles = torch.tensor([s for _, _, s in asked for _ in range(seeds)])
    images = model.generate(queries)
    probs = judge.objects(images)
    right = _right(probs, objects)
    each = {n: round(float(right[objects == i].float().mean()), 3) for i, n in enumerate(NAMES)}
    return {
        "object_top1": share(right),
        "object_top5": share(_right(probs, objects, 5)),
        "style_top1": share(_right(judge.style_probs(images), styles)),
        "clip_score": round(float(judge.clip_score(images, [q.prompt for q in queries]).mean()), 4),
        "per_object": each,
    }


def guidance(model: Model, judge: MiniJudge, seeds: int = 4) -> dict[str, Any]:
    """Score plain names at rising guidance; 1 is what a negative prompt that names the concept amounts to."""
    found = {}
    for scale in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0):
        scores = generated(model, judge, prompts()["plain"], seeds, guidance=scale, **HOW)
        found[f"{scale:g}"] = scores["object_top1"]
    return found


def obeyed(model: Model, judge: MiniJudge) -> dict[str, Any]:
    """Score ground, place and size where the prompt says them, and both of two named objects, half of pairs unseen."""
    objects = list(range(0, len(NAMES), 2))

    def draw(cases: list[tuple[str, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        queries = [Query(text, SEEDS[i % 4], **HOW) for i, (text, _, _) in enumerate(cases)]
        first, second = (torch.tensor([case[k] for case in cases]) for k in (1, 2))
        return model.generate(queries), first, second

    ground = [(f"{PLAIN[o]} {SAID_GROUND[k][0]}", o, j) for o in objects[::2] for j, k in enumerate(GROUNDS) if j]
    images, _, wanted = draw(ground)
    found = {"ground": share(_right(judge.ground_probs(images), wanted))}
    place = [(f"{PLAIN[o]} {SAID_PLACE[k][0]}", o, j) for o in objects for j, k in enumerate(scenes.PLACES) if j]
    images, of, wanted = draw(place)
    x, y, _ = middles(judge.cells(images), of)
    found["place"] = share(_place(x, y) == wanted)
    size = [
        (f"a picture of {named(o, word)}", o, j)
        for o in objects
        if not NOUNS[o].person
        for j, word in enumerate(("small", "large"))
    ]
    images, of, wanted = draw([case for case in size for _ in range(2)])
    _, _, area = middles(judge.cells(images), of)
    found["size"] = share((area > 0.3).long() == wanted)
    pairs = [(a, b) for a, b in combinations(range(len(NAMES)), 2) if (a * 31 + b) % 5 == 0][:80]
    cases = [(f"{named(a)} {('and', 'left of')[i % 2]} {named(b)}", a, b) for i, (a, b) in enumerate(pairs)]
    images, first, second = draw(cases)
    both = (judge.present(images).gather(1, torch.stack([first, second], 1)) > FOUND).all(1)
    new = torch.tensor([held_out_pair(a, b) for a, b in pairs])
    return found | {"two_objects": share(both), "two_objects_never_seen_together": share(both[new])}


def language(model: Model) -> dict[str, Any]:
    """Compare end vectors: a name with its keyword phrases, two templates of a name, two objects."""

    def ends(texts: list[str]) -> Tensor:
        context = model.encode(texts).tokens
        places = torch.tensor([model.tokens(text).eos for text in texts])
        return torch.nn.functional.normalize(context[torch.arange(len(texts)), places].float(), dim=-1)

    names, other = ends(PLAIN), ends([f"an image of {named(i)}" for i in range(len(NAMES))])
    phrases = [implicit_prompts(noun.keywords) for noun in NOUNS]
    keyed = [ends(list(few)) @ names[i] for i, few in enumerate(phrases)]
    between = names @ names.T
    return {
        "name_and_keywords": spread(torch.cat(keyed)),
        "two_templates": spread((names * other).sum(1)),
        "two_objects": spread(between[~torch.eye(len(NAMES), dtype=torch.bool)]),
    }


def variety(model: Model, pool: Scenes, seeds: int = 4) -> dict[str, Any]:
    """Compare pictures: seeds of one prompt, name and keywords at the same seed, and the nearest training picture."""

    def draw(texts: Sequence[str]) -> Tensor:
        return model.generate([Query(text, SEEDS[s], **HOW) for text in texts for s in range(seeds)])

    def ssim(a: Tensor, b: Tensor) -> Tensor:
        each = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(each, Tensor)
        return each

    named_, keyed = draw(PLAIN), draw([implicit_prompts(noun.keywords)[0] for noun in NOUNS])
    rows = torch.arange(len(PLAIN) * seeds).view(-1, seeds)
    pairs = [(row[a], row[b]) for row in rows for a, b in combinations(range(seeds), 2)]
    first, second = (torch.stack(list(column)) for column in zip(*pairs, strict=True))
    small = torch.nn.functional.avg_pool2d(pool.pixels.float() / 255, 4).flatten(1)
    asked = torch.nn.functional.avg_pool2d(named_[rows[:, 0]], 4).flatten(1)
    nearest = torch.cdist(asked, small).argmin(1)
    return {
        "ssim_of_seeds": spread(ssim(named_[first], named_[second])),
        "ssim_of_name_and_keywords": spread(ssim(named_, keyed)),
        "ssim_of_nearest_training_picture": spread(ssim(named_[rows[:, 0]], pool.pixels[nearest].float() / 255)),
    }


def inversion(model: Model, judge: MiniJudge) -> dict[str, Any]:
    """Invert generated pictures by DDIM under no text, and generate them again under no text and under another name."""
    objects = torch.arange(0, len(NAMES), 3)
    images = model.generate([Query(PLAIN[o], SEEDS[0], **HOW) for o in objects])
    back = purify(model, images, steps=35)
    each = structural_similarity_index_measure(back, images, data_range=1.0, reduction="none")
    assert isinstance(each, Tensor)
    others = (objects + 7) % len(NAMES)
    again = [purify(model, one[None], PLAIN[o], 35, 7.5, source="") for one, o in zip(images, others, strict=True)]
    now = judge.objects(torch.cat(again))
    return {
        "ssim_null_text": spread(each),
        "object_kept_null_text": share(_right(judge.objects(back), objects)),
        "object_kept_other_name": share(_right(now, objects)),
        "other_object_drawn": share(_right(now, others)),
    }


def reconstruction(model: Model, pool: Scenes, count: int = 256) -> dict[str, Any]:
    """Score what the autoencoder keeps of new scenes, dB."""
    images = pool.pixels[:count].float() / 255
    back = torch.cat([model.decode(model.encode_images(few)) for few in images.split(32)])
    return {"psnr": spread(psnr(back, images))}


def textual_inversion(model: Model, judge: MiniJudge, count: int = 6, seeds: int = 12) -> dict[str, Any]:
    """Learn a vector for objects from eight pictures each, from the word "thing", and score the images it gives."""
    attack, found = Inversion.preset("mini", steps=300, batch=8, images=8, start="thing"), {}
    for o in progress(range(0, len(NAMES), len(NAMES) // count), "textual inversion"):
        concept, asked = Concept(NAMES[o], prompts=(PLAIN[o],)), [Query(PLAIN[o], s, **HOW) for s in range(seeds)]
        finding = attack(Target(model, original=model), concept, asked)
        found[NAMES[o]] = _right(judge.objects(model.generate(finding.queries)), torch.full((seeds,), o))
    return {"found": share(torch.cat(list(found.values()))), "objects": list(found)}


def speed(model: Model, count: int = 64) -> dict[str, Any]:
    """Time the default solver, in float32 and, where the processor has its instructions, in bfloat16."""
    queries = [Query(PLAIN[i % len(PLAIN)], i, **HOW) for i in range(count)]
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    kinds = {"images_per_second": torch.float32, "images_per_second_bf16": torch.bfloat16}
    for name, dtype in kinds.items() if bfloat16_is_fast() else list(kinds.items())[:1]:
        timed = Model.load(model.name, dtype=dtype)
        timed.generate(queries[:8])
        began = time.perf_counter()
        timed.generate(queries)
        found[name] = round(count / (time.perf_counter() - began), 2)
    return found
