"""The erasure card: one page of Markdown about an edit, for a model repository. Every sentence is computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efface import __version__, registry
from efface.evaluation.attack_record import AttackRecord
from efface.evaluation.prompts import GROUPS
from efface.evaluation.record import Made, Scored
from efface.evaluation.summary import Share
from efface.report import tables
from efface.report.tables import Table, literal, markdown
from efface.report.verdict import Tone, Verdict, under_attack, verdicts
from efface.util.files import writing

WORST = 3  # single concepts that are named among the failures
LOSS = 0.2  # of accuracy, from which a single concept is named
LONGEST = 300  # characters of a line of the head
MARKS: dict[Tone, str] = {"good": "good", "open": "open", "mixed": "mixed", "bad": "bad"}


class Audit(NamedTuple):
    """Hold what an audit found. record: the evaluation. failures: why jobs could not be done, by label."""

    record: Scored
    attacks: Sequence[AttackRecord] = ()
    failures: Mapping[str, str] = {}
    protocol: str = ""


def card(audit: Audit) -> str:
    """Return the card. Names come from the edit's file, so nothing in them is taken as Markdown or HTML."""
    record = audit.record
    found, attacked = verdicts(record), [under_attack(one) for one in audit.attacks]
    parts = [
        f"# Erasure card: {literal(record.concept)}",
        _head(audit),
        f"## Verdict\n\n**{literal(sentence(audit))}**",
        f"## How well\n\n{_how_well(record, found)}",
        f"## Against what\n\n{_against(audit, attacked)}",
        f"## At what cost\n\n{_cost(record)}",
        f"## Known failures\n\n{_failures(audit, [*found, *attacked])}",
        f"## What this does not say\n\n{_limits(record)}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def save(text: str, path: Path) -> None:
    """Write a card, whole or not at all. Raises `WriteError`."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sentence(audit: Audit) -> str:
    """Return the verdict on the whole in words, which says so when there are too few images to tell."""
    name, record = audit.record.concept, audit.record
    by_name = next((one for one in verdicts(record) if one.group == "target"), None)
    tones = [(one, under_attack(one)) for one in audit.attacks]
    if by_name is None:
        return f"Nothing can be said of {name}: it was not asked for by name"
    if by_name.tone == "open":
        return f"{_capital(by_name.text)}, so nothing is said of attacks"
    if by_name.tone != "good":
        return f"{_capital(by_name.text)}: seen in {record.summaries['target'].after}"
    broken = [(one, v) for one, v in tones if v.tone in ("bad", "mixed")]
    if broken:
        worst = max((one for one, _ in broken), key=lambda one: _after(one).value)
        text = f"{_capital(by_name.text)} by name, but {len(broken)} of {_count(len(tones), 'attack')} bring it back; "
        text += f"the most successful one, {worst.attack.name}, in {_after(worst)} images"
    elif any(v.tone == "open" for _, v in tones):
        few = min(_after(one).n for one, v in tones if v.tone == "open")
        text = f"{_capital(by_name.text)} by name; {few} images are too few to say that it stands the attacks"
    elif not tones:
        text = f"{_capital(by_name.text)} by name; no attack was tried"
    else:
        text = f"{_capital(by_name.text)} by name, and {_count(len(tones), 'attack')} did not bring it back"
    if audit.failures:
        text += f"; {_count(len(audit.failures), 'test')} could not be run"
    others = next((one for one in verdicts(record) if one.group in ("unrelated", "unpreserved")), None)
    return f"{text}. {_capital(others.text)}" if others else text


def _head(audit: Audit) -> str:
    record, edit = audit.record, audit.record.edit
    share = record.whole.get("changed_weights")
    lines = {
        "Erased": record.concept,
        "From": f"{record.model.name or 'a model'}, weights {record.model.id[:12]}",
        "By": " ".join(
            filter(None, [edit.method or "an edit without a method on record", edit.preset, _settings(edit)])
        ),
        "Told to preserve": ", ".join(edit.preserved)[:LONGEST] or "nothing",
        "Edit": f"{edit.id[:12]}"
        + ("" if share is None else f", changes {100 * share:.2g} % of the denoiser's weights"),
        "Judge": f"{record.evaluator.evaluator} ({_hashes(record)}), {record.evaluator.classes} names",
        "Images": f"{record.sampling.solver}, {record.sampling.steps} steps, guidance {record.sampling.guidance:g}",
        "Audited": f"{record.created[:10]}, efface {__version__}, protocol {audit.protocol or 'of its own'}",
    }
    return "\n".join(f"- **{key}**: {literal(value)}" for key, value in lines.items())


def _settings(edit: Made) -> str:
    """Return the fields that are neither the method's defaults nor its preset's, "" for none."""
    usual: dict[str, Any] = {}
    if edit.method in registry.names("methods"):
        cls = registry.get("methods", edit.method)
        usual = {f.name: f.default for f in registry.describe(cls)} | cls.PRESETS.get(edit.preset, {})
    usual = {key: registry.to_json(value) for key, value in usual.items()}
    return ", ".join(f"{key} = {value}" for key, value in edit.fields.items() if usual.get(key) != value)[:LONGEST]


def _hashes(record: Scored) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in record.evaluator.sha256.items()) or "no hash"


def _how_well(record: Scored, found: Sequence[Verdict]) -> str:
    good = {group.name: group.better for group in GROUPS}
    rows = [
        [tables.TITLES.get(name, literal(name)), good.get(name, ""), str(summary.before), str(summary.after)]
        for name, summary in record.summaries.items()
    ]
    said = [f"- {MARKS[one.tone]}: {literal(_capital(one.text))}. {literal(_capital(one.numbers))}." for one in found]
    head = (
        "Share of images in which the judge names the concept first, with Wilson's 95 % interval. Images count as "
        "independent; they share an edit, prompts and seeds, so true intervals are wider."
    )
    table = markdown(Table(["prompts", "good is", "before", "after"], rows)).strip()
    return "\n\n".join([head, table, "\n".join(said)])


def _against(audit: Audit, found: Sequence[Verdict]) -> str:
    if not audit.attacks:
        return "No attack was tried."
    several = len(audit.record.concepts) > 1
    rows = []
    for one, verdict in zip(audit.attacks, found, strict=True):
        preset = f":{one.attack.preset}" if one.attack.preset else ""
        name = f"{one.attack.name}{preset}" + f" on {one.concept}" * several
        rates = one.rates
        rows.append([literal(name), str(rates.pre), str(rates.post), str(rates.combined), MARKS[verdict.tone]])
    head = (
        "Share of plain prompts and seeds whose image shows the concept: without the attack, under it among those that "
        "failed without, and with or without it. Judged by a judge that the attack did not ask."
    )
    return head + "\n\n" + markdown(Table(["attack", "without", "under it (post)", "combined", "verdict"], rows))


def _cost(record: Scored) -> str:
    lines = []
    if record.erasing:
        peak = f" and {record.erasing.peak_mb:.0f} MB of memory at its peak" if record.erasing.peak_mb else ""
        lines.append(f"- The edit took {record.erasing.seconds:.3g} s{peak} to compute.")
    for label in record.scored:
        by_group = {group: record.mean(label, group) for group in ("target", "related", "unrelated")}
        told = [f"{tables.TITLES[g]} {m.value:.3f} ± {m.error:.3f}" for g, m in by_group.items() if m is not None]
        lines += [f"- {literal(label)}: {'; '.join(told)}."] if told else []
    for label, groups in record.sets.items():
        kept = {group: groups[group] for group in ("related", "unrelated") if group in groups}
        told = [f"{tables.TITLES[g]} {score.value:.4g} (n = {score.n})" for g, score in kept.items()]
        lines += [f"- {literal(label)}, to the model before: {'; '.join(told)}."] if told else []
    return "\n".join(lines) or "Nothing was measured."


def _failures(audit: Audit, found: Sequence[Verdict]) -> str:
    lines = [
        f"- {literal(_capital(one.text))} ({literal(one.numbers)})." for one in found if one.tone in ("bad", "mixed")
    ]
    unsettled = "; ".join(one.text for one in found if one.tone == "open")
    lines += [f"- Not settled, for lack of images: {literal(unsettled)}."] if unsettled else []
    singles = [(one.change.value, name, one) for name, one in audit.record.singles.items() if one.group != "target"]
    for change, name, one in sorted(singles, key=lambda item: item[0])[:WORST]:
        if change <= -LOSS:
            lines.append(f"- {literal(name)} falls from {one.before} to {one.after}.")
    lines += [f"- Not run: {literal(label)}: {literal(error)}." for label, error in audit.failures.items()]
    return "\n".join(lines) or "None was found. That is no proof that there are none."


def _limits(record: Scored) -> str:
    return (
        "A judge says what an image is most like, not that a concept is absent. Other attacks, longer searches and "
        "more seeds may succeed where these did not. The numbers are of "
        f"{literal(record.model.name or 'this model')} with these weights, this sampler and these prompts."
    )


def _after(one: AttackRecord) -> Share:
    return Share.of([row.after for row in one.rows])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


__all__ = ["Audit", "card", "save", "sentence"]
