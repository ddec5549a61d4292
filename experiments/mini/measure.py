"""Measure mini and its judges property by property; write metrics.json, the model card and contact sheets."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from efface.judges.mini import MiniJudge
from efface.models.model import Model
from efface.util.files import writing
from efface.util.progress import progress
from experiments.mini import properties, scenes
from experiments.mini.artwork import HELD_OUT
from experiments.mini.card import card
from experiments.mini.judges import SEEN
from experiments.mini.sheets import sheets


def report(folder: Path, into: Path) -> None:
    """Measure the model and the judges in `into`; write metrics and card there, and contact sheets into `folder`.

    Resumes: what is measured of this model and this judge is in `folder`/measured.json.
    """
    model, judge = Model.load(into / "weights"), MiniJudge(into / "judges")
    who = {"model": model.id, "judge": judge.profile.model_dump()}
    path, found = folder / "measured.json", dict[str, Any](who)
    if path.exists() and (known := json.loads(path.read_text(encoding="utf-8"))).items() >= who.items():
        found = known
    for name, measure in progress(list(_properties(model, judge, folder).items()), "measuring"):
        at, _, group = name.partition(".")
        if group not in found.get(at, {}) if group else at not in found:
            one = measure()
            found[at] = found.get(at, {}) | {group: one} if group else one
            with writing(path) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (into / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (into / "MODEL_CARD.md").write_text(card(found), encoding="utf-8")
    sheets(model, folder, **properties.HOW)


def _properties(model: Model, judge: MiniJudge, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by its place in metrics.json."""
    seen, held = (
        cache(lambda seed=seed, sets=sets: scenes.pool(folder / "art", 2048, seed, sets=sets))
        for seed, sets in ((99, SEEN), (98, set(HELD_OUT)))
    )
    trained_on = lambda: scenes.pool(folder / "art", scenes.LEARNED, 1, store=folder / "scenes")  # noqa: E731
    asked = properties.prompts()
    return {
        "judges.new_scenes": lambda: properties.judges_on(judge, seen()),
        "judges.unseen_artists": lambda: properties.judges_on(judge, held()),
        **{
            f"generated.{group}": lambda group=group: properties.generated(
                model, judge, asked[group], properties.SEEDS_OF[group], **properties.HOW
            )
            for group in asked
        },
        "guidance": lambda: properties.guidance(model, judge),
        "obeyed": lambda: properties.obeyed(model, judge),
        "language": lambda: properties.language(model),
        "variety": lambda: properties.variety(model, trained_on()),
        "reconstruction": lambda: properties.reconstruction(model, seen()),
        "inversion": lambda: properties.inversion(model, judge),
        "textual_inversion": lambda: properties.textual_inversion(model, judge),
        "speed": lambda: properties.speed(model),
    }
