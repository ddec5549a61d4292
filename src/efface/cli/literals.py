"""Values in source code: literals, named constants (also imported ones), and arithmetic on them; nothing is run."""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
Names = Mapping[str, ast.expr]


@cache
def tree(path: Path) -> ast.Module:
    """Return the parsed source file, cached."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(name: str, module: ast.Module, folder: Path) -> ast.Module | None:
    """Return the file under `folder` (the one of a kind) that a module imports a name from, or None."""
    for item in module.body:
        if isinstance(item, ast.ImportFrom) and any((a.asname or a.name) == name for a in item.names):
            path = folder.parent.joinpath(*(item.module or "").split(".")[1:]).with_suffix(".py")
            return tree(path) if path.is_file() and folder in path.parents else None
    return None


def names(module: ast.Module, folder: Path) -> dict[str, ast.expr]:
    """Return the values of a module's names: its own assignments, and those it imports from files under `folder`.

    Its own names take precedence.
    """
    found: dict[str, ast.expr] = {}
    for item in module.body:
        if isinstance(item, ast.ImportFrom):
            source = imported(item.names[0].asname or item.names[0].name, module, folder)
            if source is not None and source is not module:
                theirs = names(source, folder)
                found |= theirs | {a.asname or a.name: theirs[a.name] for a in item.names if a.name in theirs}
        elif isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
            found[item.targets[0].id] = item.value
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            found[item.target.id] = item.value
    return found


def value(node: ast.expr | None, known: Names | None = None) -> Any:
    """Return the value of an expression, or None when it cannot be computed from literals."""
    try:
        return _read(node, known or {})
    except (ValueError, TypeError, ZeroDivisionError, RecursionError):
        return None


def _read(node: ast.expr | None, known: Names) -> Any:
    match node:
        case ast.Name(id=name) if name in known:
            return _read(known[name], known)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            found = [part for item in items for part in _spread(item, known)]
            return tuple(found) if isinstance(node, ast.Tuple) else found
        case ast.Dict(keys=keys, values=values):
            merged: dict[Any, Any] = {}
            for key, item in zip(keys, values, strict=True):  # a key of None is **item
                merged |= _read(item, known) if key is None else {_read(key, known): _read(item, known)}
            return merged
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_read(left, known), _read(right, known))
        case ast.Call(func=func, keywords=keywords) if ast.unparse(func) in ("dict", "field", "dataclasses.field"):
            given = {word.arg: _read(word.value, known) for word in keywords if word.arg}
            return given if ast.unparse(func) == "dict" else given.get("default")
        case None:
            return None
        case _:
            return ast.literal_eval(node)


def _spread(item: ast.expr, known: Names) -> list[Any]:
    return list(_read(item.value, known)) if isinstance(item, ast.Starred) else [_read(item, known)]
