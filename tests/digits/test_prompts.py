import pytest
import torch

from efface.digits.prompts import Reader, as_prompt, normalised, spread
from efface.errors import BadInput, UnknownName


def test_codes_are_unit_vectors_far_apart():
    codes = spread(10)
    cosines = (codes @ codes.T).fill_diagonal_(0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(10))
    assert cosines.max() < 0.1
    assert cosines.min() > -0.9  # no class is another's opposite
    assert torch.equal(codes, spread(10))


def test_a_prompt_is_a_class_or_8_numbers_or_nothing():
    codes = spread(10)
    read = Reader(tuple("0123456789"), codes)
    ids = read(["3", "", "2 0 0 0 0 0 0 0", " 3 "]).input_ids
    assert ids.shape == (4, 1, 8)
    assert torch.equal(ids[0, 0], codes[3])
    assert torch.equal(ids[3, 0], codes[3])
    assert not ids[1].any()
    assert ids[2, 0].tolist() == [1] + [0] * 7  # normalised


def test_a_vector_is_read_back_from_its_prompt():
    vector = normalised(torch.randn(8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(Reader((), torch.zeros(0, 8)).vector(as_prompt(vector)), vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 4 5 6 7 nan", "1 2 3 4 5 6 7 8 9"])
def test_other_numbers_are_refused(text):
    with pytest.raises(BadInput, match="8 finite numbers"):
        Reader(("zero",), spread(1)).vector(text)
    with pytest.raises(UnknownName, match="did you mean 'zero'"):
        Reader(("zero",), spread(1)).vector("zro")
