import pytest
import torch

from efface.context import Context, cat
from efface.errors import BadInput


def context(rows: int = 2, pooled: bool = True) -> Context:
    tokens = torch.arange(rows * 12.0).view(rows, 3, 4)
    return Context(tokens, tokens[:, 0] + 0.5 if pooled else None)


def test_rows_are_taken_of_tokens_and_pooled_vectors_alike():
    c = context(3)
    for rows in (slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True])):
        assert torch.equal(c[rows].tokens, c.tokens[1:])
        assert c[rows].pooled is not None
        assert torch.equal(c[rows].pooled, c.pooled[1:])
    assert len(c[2:]) == 1


def test_one_row_expands_and_other_counts_are_refused():
    c = context(1)
    assert (len(c.expand(4)), c.expand(4).pooled.shape) == (4, (4, 4))
    assert torch.equal(context(4).expand(4).tokens, context(4).tokens)
    with pytest.raises(BadInput, match="2 contexts do not fit 3 images"):
        context(2).expand(3)


def test_contexts_are_joined_row_by_row():
    a, b = context(1), context(2)
    assert torch.equal(cat([a, b]).tokens, torch.cat([a.tokens, b.tokens]))
    assert torch.equal(cat([a, b]).pooled, torch.cat([a.pooled, b.pooled]))
    assert cat([context(1, False), context(2, False)]).pooled is None
    with pytest.raises(BadInput, match="with and without pooled"):
        cat([a, context(1, False)])


def test_dtype_follows_a_dtype_or_another_context():
    half = context().to(torch.bfloat16)
    assert half.tokens.dtype == half.pooled.dtype == torch.bfloat16
    assert context().to(half).pooled.dtype == torch.bfloat16
    assert half.float().tokens.dtype == torch.float32
    assert context().with_tokens(torch.zeros(2, 5, 4)).pooled is not None
