"""Seeds: the check of every seed of a query, method, attack or flag."""

from efface.errors import BadInput
from efface.util.ranges import short

MAX_SEED = 2**63 - 1  # torch's generators take no more


def check_seed(seed: int, what: str = "a seed") -> int:
    """Return the seed; raises `BadInput`, which begins with `what`, unless it is a whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise BadInput(f"{what} is a whole number from 0 to 2^63 - 1, got {short(seed, 24)}")
    return seed
