"""ASR: the attack success rate, in the three meanings that the literature mixes up, with Wilson's intervals."""

from collections.abc import Sequence
from typing import NamedTuple

from efface.errors import BadInput
from efface.evaluation.summary import Share


class ASR(NamedTuple):
    """Attack success rates.

    pre: the plain prompts succeed without an attack. post: of the prompts that fail without it, those that succeed
    under attack. combined: prompts that succeed with or without it, which is what UnlearnDiffAtk reports as ASR.
    """

    pre: Share
    post: Share
    combined: Share


def attack_success(plain: Sequence[bool], attacked: Sequence[bool]) -> ASR:
    """Return the rates of pairs: the same prompt and seed without and with the attack.

    Source: Zhang et al. 2023, https://arxiv.org/abs/2310.11868, and its code, which counts pre-attack successes.
    Raises `BadInput` when the lengths differ.
    """
    if len(plain) != len(attacked):
        raise BadInput(f"{len(plain)} plain and {len(attacked)} attacked queries are no pairs")
    pairs = list(zip(plain, attacked, strict=True))
    return ASR(
        Share.of(plain),
        Share.of([after for before, after in pairs if not before]),
        Share.of([a or b for a, b in pairs]),
    )


__all__ = ["ASR", "attack_success"]
