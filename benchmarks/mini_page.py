"""Write docs/mini.md: what the embedded model shares with Stable Diffusion, from metrics.json and the benches' records.

python benchmarks/mini_page.py
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _bench import DOCS, HERE, on_record
from robustness import CLAIMS, compared, first_presets, percent, verdict

import efface.mini
import methods
from efface.evaluation.record import Scored
from efface.evaluation.summary import Share
from efface.util.files import writing

PAGE = """# The embedded model, and Stable Diffusion

`mini` is a Stable Diffusion in miniature: the same stock classes, noise schedule and kinds of layers,
1/70 of the weights, 64 px. It draws emoji-like scenes of 40 objects and six invented persons, in six
styles. What is found on it is found on it; this page says what it shares with Stable Diffusion and
what it does not. Its realism was set on the un-erased model, before any method or attack was tried.

`python benchmarks/mini_page.py` made this page from the model's own `metrics.json`
(`python -m experiments.mini measure`) and from the records of the benches.

## Shared

- A frozen text encoder that maps a name, its keywords and its paraphrases to different places; an
  autoencoder; a denoiser with cross-attention at several resolutions; epsilon prediction;
  classifier-free guidance. Code for Stable Diffusion runs unchanged.
- Captions that say some of a picture and leave the rest open. Guidance matters, and so does what is put
  on its negative side.
- One prompt has many pictures: place, size, ground and colour are open where they are not said.

## Not shared

- Hundreds of words instead of a language; drawings instead of photographs; nothing harmful.
- A concept has about ten artists' drawings behind it, not millions of pictures.
- The judge was trained on the same kind of drawings (other artists held out), so it is more certain
  than a judge of photographs.

## What its language changed

The first mini had a text encoder that gave every paraphrase of a name one vector, and it generated without
guidance what it generated with it. There (ten objects) methods could hardly be told apart: UCE, RECE,
ESD-x, CA and SA erased 100 % by name and 97 to 100 % by keywords and left 96 to 99 % of the others, and UCE was
first or level in every column. On the present one (six objects) no change of weights
both erases every keyword and keeps most of the rest.
Closed forms still keep most (96 to 97 % of the others) and now leak by keywords (83 to 94 % erased); ESD-x
and CA erase every keyword and pay with related concepts (95 and 99 % were left, now 82 and 71); the task
vector and FMN pay most (90 and 82, now 62 and 66). A negative prompt erases 36 % (2 before), SLD-max 99 (42),
and SDD fell from 99 to 83 and keeps 76 of the others. SA and All but One leave a style on both. (Written on
2026-11-29 from [the table](methods/results.md) as it was; the first mini's records are in the repository's history.)

"""


def look_up(found: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, None if it is not there."""
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def number(value: Any) -> float | None:
    """Return the number behind a share, a spread, scores by object (the lowest), or a plain number."""
    if not isinstance(value, Mapping):
        return value
    named = [value[name] for name in ("value", "median") if name in value]
    return named[0] if named else min(value.values(), default=None)


def told(value: Any) -> str:
    """Write a share with its interval, a spread with its quartiles, the lowest of several, or a number."""
    if not isinstance(value, Mapping):
        return "not measured" if value is None else f"{value:g}"
    if "ci95" in value:
        low, high = value["ci95"]
        return f"{100 * value['value']:.1f} % [{100 * low:.0f}, {100 * high:.0f}], n {value['n']}"
    if "median" in value:
        low, high = value["quartiles"]
        return f"{value['median']:.2f} (quartiles {low:.2f}, {high:.2f}), n {value['n']}"
    name = min(value, key=lambda key: value[key])
    return f"{100 * value[name]:.0f} % ({name})"


def aim(row: Mapping[str, Any]) -> str:
    """Write an aim as a range."""
    low, high = row.get("low"), row.get("high")
    if low is None and high is None:
        return ""
    if high is None:
        return f"≥ {low:g}"
    return f"≤ {high:g}" if low is None else f"{low:g} to {high:g}"


def met(row: Mapping[str, Any], value: float | None) -> str:
    """Say whether a value is within its aim."""
    if value is None or not aim(row):
        return ""
    inside = row.get("low", value) <= value <= row.get("high", value)
    return "met" if inside else "**missed**"


class Finding(NamedTuple):
    """A finding of a paper about erasing: of one method's images more are judged so than of another's."""

    text: str
    source: str
    more: str
    less: str
    group: str = "target"


TABLE_2 = "Pham et al. 2024, table 2"
FINDINGS = (
    Finding("a negative prompt leaves more than ESD-x (28.6, 0.2 %)", TABLE_2, "negative", "esd"),
    Finding("SLD leaves more than ESD-x (23.0, 0.2 %)", TABLE_2, "sld", "esd"),
    Finding("the task vector leaves more than UCE (10.8, 2.9 %)", TABLE_2, "task_vector", "uce"),
    Finding("by implicit prompts UCE leaves more than RECE (28.8, 10.2 % of parts)", "Gong et al. 2024, table 1", "uce",
            "rece", "implicit"),
    Finding("by implicit prompts SLD leaves more than ESD-u", "Gong et al. 2024, table 1", "sld", "esd:mini-u",
            "implicit"),
    Finding("All but One keeps more of the others than SDD (SSIM .76, .31)", "Hong et al. 2024, table 1",
            "surgical", "sdd", "unpreserved"),
)  # fmt: skip


def findings(rows: Sequence[Scored]) -> list[str]:
    """Return the papers' findings about erasing as a table; a name without a preset is the first one of the bench."""
    rows = [row for row in rows if methods.kind_of(row) == "object"]
    named: dict[str, list[Scored]] = {}
    for chosen in methods.BENCH.methods:
        own = methods.of(chosen, rows)
        named |= {f"{chosen.name}:{chosen.preset}": own}
        named.setdefault(chosen.name, own)
    lines = ["", "## The papers' findings on erasing", ""]
    lines += ["| finding | source | the first | the second | on mini |", "|---|---|---|---|---|"]
    for one in FINDINGS:
        pair = [methods.score(named.get(name, []), one.group) or Share(hits=0, n=0) for name in (one.more, one.less)]
        lines.append(f"| {one.text} | {one.source} | {percent(pair[0])} | {percent(pair[1])} | {compared(*pair)} |")
    return [*lines, "", "Objects of [every method on mini](methods/results.md), pooled."]


def main() -> None:
    """Write the page."""
    found = json.loads((Path(efface.mini.__file__).with_name("metrics.json")).read_text(encoding="utf-8"))
    rows = tomllib.loads((HERE / "mini.toml").read_text(encoding="utf-8"))
    lines = ["## The un-erased model", "", "| | known of Stable Diffusion | mini |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['source']} | {told(look_up(found, row['value']))} |" for row in rows["known"]]
    lines += [
        "",
        "What it was built to reach, and what it reaches (medians of cosines and SSIM):",
        "",
        "| | first mini | aim | mini | |",
        "|---|---|---|---|---|",
    ]
    for row in rows["aim"]:
        value = look_up(found, row["value"])
        lines.append(
            f"| {row['what']} | {row.get('first', '')} | {aim(row)} | {told(value)} | {met(row, number(value))} |"
        )
    lines += ["", "| guidance | object found |", "|---|---|"]
    lines += [f"| {scale} | {told(score)} |" for scale, score in found["guidance"].items()]
    lines += findings(on_record("methods")[0])
    attacks = first_presets(on_record("robustness")[1])
    if attacks:
        lines += ["", "## The papers' findings under attack", ""]
        lines += ["| finding | source | larger | smaller | on mini |", "|---|---|---|---|---|"]
        for claim in CLAIMS:
            larger, smaller = claim.larger(attacks), claim.smaller(attacks)
            cells = (claim.text, claim.source, percent(larger), percent(smaller), verdict(claim, attacks))
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "*Agrees* and *disagrees*: the 95 % intervals are apart. Details: [robustness](robustness.md)."]
    if (DOCS / "results" / "index.md").exists():
        lines += ["", "The papers' tables in miniature, each beside its numbers: [results](results/index.md)."]
    lines += ["", "Everything measured of it, and how it was trained: [its card](card.md).", ""]
    with writing(DOCS / "mini.md") as path:
        path.write_text(PAGE + "\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
