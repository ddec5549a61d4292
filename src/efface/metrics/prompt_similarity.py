"""Prompt similarity: how near learned prompts are to texts, as the denoiser reads them.

Bui et al. 2024, figure 4a, https://arxiv.org/abs/2403.12326, follow it over a training; Pham et al. 2024, figure 9,
https://arxiv.org/abs/2404.03631, find that most inversions are nowhere near the concept's name.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from efface.context import Context
from efface.metric import Better, Metric, Need, Samples


@dataclass(frozen=True)
class PromptSimilarity(Metric):
    """Return the cosine of each query's prompt, learned or written, with its text; both less the empty prompt."""

    NEEDS: ClassVar[tuple[Need, ...]] = ("queries", "texts", "model")
    RANGE: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    BETTER: ClassVar[Better] = "as its group"
    USUAL: ClassVar[bool] = False  # says something of learned prompts only

    def measure(self, samples: Samples) -> Float[Tensor, " n"]:
        """Return one cosine per query: of means over all positions but the first, which is the same for all prompts."""
        assert samples.model is not None
        asked, null = samples.model.contexts(samples.queries)
        texts = samples.model.encode(list(samples.texts))
        first, second = (_mean(context) - _mean(null) for context in (asked, texts))
        return cosine_similarity(first, second, dim=1).cpu()


def _mean(context: Context) -> Float[Tensor, "n dim"]:
    return context.tokens[:, 1:].float().mean(1)
