"""Negative prompt: the concept's text takes the place of the empty prompt in classifier-free guidance.

eps = eps(c_neg) + s (eps(c) - eps(c_neg)): Ho and Salimans 2022 (https://arxiv.org/abs/2207.12598), where the
unconditional prediction reads the concept instead of the empty text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from efface.concept import Concept
from efface.context import Context
from efface.edits.guard import Hooks
from efface.method import InferenceMethod
from efface.models.model import Model


@dataclass(frozen=True)
class NegativePrompt(InferenceMethod):
    """Guide images away from the concept by naming it in the negative prompt.

    prompt: the negative prompt; "" means the names of the erased concepts, joined by commas.
    """

    prompt: str = ""

    def text(self, erase: Sequence[Concept]) -> str:
        """Return the negative prompt for these concepts."""
        return self.prompt or ", ".join(concept.name for concept in erase)

    def start(self, model: Model, erase: Sequence[Concept]) -> Hooks:
        """Return hooks whose unconditional context is the negative prompt's."""
        context = model.encode([self.text(erase)])

        def null(c: Context) -> Context:
            return context.to(c).expand(len(c))

        return Hooks(null=null)
