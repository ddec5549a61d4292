"""Say in plain words what the numbers of an evaluation show, and no more than they show."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from efface.report.tables import percent

GONE = 0.05  # top-1 accuracy at which a concept counts as erased
MARGIN = 0.05  # loss of accuracy that would matter for what should stay

Tone = Literal["good", "open", "mixed", "bad"]  # open: the images do not settle it


class Verdict(NamedTuple):
    """One claim: the sentence that the numbers support, those numbers, and how they speak for the method."""

    claim: str
    text: str
    numbers: str
    tone: Tone


def verdicts(result: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict per claim: erased, related kept, unrelated kept, robust to hints."""
    groups, name = result["groups"], result["concept"]
    found = [target(groups["target"], name)]
    others = "unprotected" if "unprotected" in groups else "unrelated"  # what no one asked to keep tells more
    words = {"related": "related concepts", "unprotected": "unrelated concepts outside the keep list"}
    drawn = [group for group in ("related", others) if groups[group]["before"]["n"]]
    found += [kept(groups[group], words.get(group, "unrelated concepts")) for group in drawn]
    if groups["implicit"]["before"]["n"]:
        found.append(implied(groups["implicit"], name))
    return found


def target(group: Mapping[str, Any], name: str) -> Verdict:
    """Judge whether the target is gone: after <= 5 % top-1, or at least clearly less than before."""
    after, before = group["after"], group["before"]
    numbers = f"seen in {_count(after)} images, {_interval(after)}; before in {_count(before)}"
    if after["top1"] <= GONE and before["top1"] > 2 * GONE:
        return Verdict("erased", f"{name} is gone", numbers, "good")
    if after["ci95"][1] < before["ci95"][0]:
        return Verdict("erased", f"{name} is drawn less often, but not gone", numbers, "mixed")
    return Verdict("erased", f"{name} is still drawn", numbers, "bad")


def kept(group: Mapping[str, Any], words: str) -> Verdict:
    """Judge whether others stayed, by the paired change and its interval."""
    change, (low, high) = group["change"]["top1"], group["change"]["ci95"]
    sides = f"{percent(group['before']['top1'])} before, {percent(group['after']['top1'])} after"
    numbers = f"{sides}: {_points(change)} points (95 % interval {_points(low)} to {_points(high)})"
    if low >= -MARGIN:
        return Verdict("kept", f"{words} stay", numbers, "good")
    if high < 0:
        how, tone = ("lose a little", "mixed") if change >= -MARGIN else ("suffer", "bad")
        return Verdict("kept", f"{words} {how}", numbers, tone)
    n = group["after"]["n"]
    if change < -MARGIN:
        return Verdict("kept", f"{words} may suffer, {n} images do not settle it", numbers, "mixed")
    return Verdict("kept", f"no clear loss of {words}, but {n} images do not rule one out", numbers, "open")


def implied(group: Mapping[str, Any], name: str) -> Verdict:
    """Judge whether prompts that only hint at the target still bring it."""
    after, before = group["after"], group["before"]
    numbers = f"seen in {_count(after)} images, {_interval(after)}; before in {_count(before)}"
    if after["top1"] <= GONE:
        return Verdict("hints", f"keyword prompts do not bring {name} back", numbers, "good")
    if after["top1"] <= before["top1"] / 2:
        return Verdict("hints", f"keyword prompts sometimes bring {name} back", numbers, "mixed")
    return Verdict("hints", f"keyword prompts bring {name} back", numbers, "bad")


def _count(side: Mapping[str, Any]) -> str:
    return f"{round(side['top1'] * side['n'])} of {side['n']}"


def _interval(side: Mapping[str, Any]) -> str:
    low, high = side["ci95"]
    return f"{percent(side['top1'])} (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def _points(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−").replace("+0", "0").replace("−0", "0")
