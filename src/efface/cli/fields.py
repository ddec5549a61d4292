"""Read the hyper-parameters of a registered class from its source: no import, so --help needs no torch."""

import ast
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from efface import registry
from efface.cli import literals
from efface.errors import BadInput, unknown
from efface.registry import Field, check_field, check_products
from efface.util import ranges

PACKAGE = Path(__file__).parent.parent
RANGES = Path(ranges.__file__)
PLAIN = {"float": float, "int": int, "bool": bool, "str": str}


@dataclass(frozen=True)
class Sheet:
    """Describe a registered class, from its source file: summary, fields in order, presets, names of base classes.

    by_products: names of what the method returns besides its edit. products: ranges of products of fields.
    """

    name: str
    summary: str
    fields: tuple[Field, ...] = ()
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: str = ""
    bases: tuple[str, ...] = ()
    by_products: tuple[str, ...] = ()
    products: dict[str, str] = field(default_factory=dict)


@cache
def sheet(kind: str, name: str) -> Sheet:
    """Read the class that `kind`/`name`.py registers (kind: "methods", "attacks" or "metrics").

    Fields of base classes from shared files (`_finetune.py`) come first, as dataclasses order them.
    """
    tree = literals.tree(PACKAGE / kind / f"{name}.py")
    classes = _registered(tree)
    if not classes:
        return Sheet(name, _first_line(ast.get_docstring(tree)))
    node = classes[-1]
    lineage = _lineage(node, tree, kind)
    found: dict[str, Field] = {}
    presets: dict[str, dict[str, Any]] = {}
    by_products: tuple[str, ...] = ()
    spans: dict[str, str] = {}
    for cls, module in lineage:  # most distant base first
        known = literals.names(module, PACKAGE / kind)
        for item in cls.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if item.target.id == "PRESETS":
                presets = literals.value(item.value, known) or {}
            elif item.target.id == "RANGES":
                spans |= literals.value(item.value, literals.names(literals.tree(RANGES), PACKAGE)) or {}
            elif item.target.id == "BY_PRODUCTS":
                by_products = literals.value(item.value, known) or ()
            elif "ClassVar" not in ast.unparse(item.annotation) and not item.target.id.startswith("_"):
                found[item.target.id] = _field(item, known)
        for item in cls.body:  # a subclass may restate a default without the type
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                target = item.targets[0].id
                if target in found:
                    found[target] = replace(found[target], default=literals.value(item.value, known))
    helps: dict[str, str] = {}
    for cls, _ in lineage:
        helps |= registry.helps(ast.get_docstring(cls) or "", found)
    fields = tuple(replace(f, help=helps.get(f.name, ""), range=spans.get(f.name, "")) for f in found.values())
    products = {name: span for name, span in spans.items() if " * " in name}
    summaries = _first_line(ast.get_docstring(node)), _first_line(ast.get_docstring(tree))
    bases = (*(cls.name for cls, _ in lineage), *(_called(base) for cls, _ in lineage for base in cls.bases))
    return Sheet(name, summaries[0], fields, presets, summaries[1], bases, by_products, products)


def check_preset(method: Sheet, preset: str) -> None:
    """Raise UnknownName for a preset that the class does not have."""
    if preset and method.presets and preset not in method.presets:
        raise unknown(f"preset of {method.name}", preset, method.presets)
    if preset and not method.presets:
        raise BadInput(f"{method.name} has no presets; leave --preset out")


def check_values(method: Sheet, values: dict[str, Any]) -> None:
    """Check values against the choices and ranges of their fields. Raises UnknownName or BadInput."""
    for f in method.fields:
        if f.name in values:
            check_field(f, values[f.name], f.flag)
    check_products({f.name: f.default for f in method.fields} | values, method.products)


def _registered(tree: ast.Module) -> list[ast.ClassDef]:
    """Return the public dataclasses of a file that have a base; a file registers the last of them."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return [c for c in classes if c.bases and any("dataclass" in ast.unparse(d) for d in c.decorator_list)]


def _called(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0].split(".")[-1]


def _lineage(node: ast.ClassDef, tree: ast.Module, kind: str) -> list[tuple[ast.ClassDef, ast.Module]]:
    """Follow base classes through this file and through `from efface.<kind>._shared import Base`."""
    found: list[tuple[ast.ClassDef, ast.Module]] = []
    for base in node.bases:
        name = _called(base)
        local = [c for c in tree.body if isinstance(c, ast.ClassDef) and c.name == name and c is not node]
        module = tree if local else literals.imported(name, tree, PACKAGE / kind)
        if module is not None:
            parents = [c for c in module.body if isinstance(c, ast.ClassDef) and c.name == name]
            for parent in parents:
                found += _lineage(parent, module, kind)
    return [*found, (node, tree)]


def _field(item: ast.AnnAssign, aliases: literals.Names) -> Field:
    annotation = item.annotation
    if isinstance(annotation, ast.Name) and annotation.id in aliases:
        annotation = aliases[annotation.id]
    text = ast.unparse(annotation).replace("typing.", "")
    optional = "None" in re.split(r"\s*\|\s*", text) or text.startswith("Optional[")
    text = re.sub(r"\s*\|\s*None|None\s*\|\s*|^Optional\[|(?<=\])\]$", "", text)
    many = bool(re.match(r"(tuple|list|Sequence)\[", text))
    inner = re.sub(r"^(tuple|list|Sequence)\[(.*?)(,\s*\.\.\.)?\]$", r"\2", text)
    if inner in aliases:
        inner = ast.unparse(aliases[inner])
    choices = tuple(map(str, _words(inner))) if inner.startswith("Literal[") else ()
    kind = PLAIN.get(inner.split("[")[0].split(" ")[0], str)
    name = item.target.id if isinstance(item.target, ast.Name) else ""
    return Field(name, kind, literals.value(item.value, aliases), "", choices, many, optional)


def _words(literal: str) -> list[Any]:
    value = literals.value(ast.parse(literal.removeprefix("Literal"), mode="eval").body)
    return list(value) if isinstance(value, list | tuple) else [value]


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0].strip()
