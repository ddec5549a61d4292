"""efface: erase concepts from text-to-image diffusion models, and measure how well it worked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.api import erase, load
    from efface.concept import Concept
    from efface.edits.edit import Edit
    from efface.edits.guard import Guard, Hooks
    from efface.edits.parts import TextMap
    from efface.errors import EffaceError
    from efface.method import InferenceMethod, Method
    from efface.models.attach import attach
    from efface.models.model import Model
    from efface.query import Query

__version__ = "0.1.0"

# Names load on first use, so that `import efface` (and the command line's help) does not import torch.
_HOMES = {
    "Concept": "concept",
    "Edit": "edits.edit",
    "EffaceError": "errors",
    "Guard": "edits.guard",
    "Hooks": "edits.guard",
    "InferenceMethod": "method",
    "Method": "method",
    "Model": "models.model",
    "Query": "query",
    "TextMap": "edits.parts",
    "attach": "models.attach",
    "erase": "api",
    "load": "api",
}

__all__ = [
    "Concept",
    "Edit",
    "EffaceError",
    "Guard",
    "Hooks",
    "InferenceMethod",
    "Method",
    "Model",
    "Query",
    "TextMap",
    "attach",
    "erase",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    value = getattr(import_module(f"efface.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
