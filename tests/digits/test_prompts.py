import pytest
import torch

from efface.digits.prompts import NO_CLASS, Reader, Words, as_prompt, normalised, prompt_vector
from efface.errors import BadInput, UnknownName


def test_a_prompt_is_a_class_or_8_numbers_or_nothing():
    read = Reader(tuple("0123456789"))(["3", "", "2 0 0 0 0 0 0 0", " 3 "])
    assert read.input_ids.tolist() == [[3], [NO_CLASS], [NO_CLASS], [3]]
    assert read.vectors.shape == (4, 1, 8)
    assert not read.vectors[[0, 1, 3]].any()
    assert read.vectors[2, 0].tolist() == [1] + [0] * 7  # normalised


def test_a_class_is_its_row_of_the_table_on_the_sphere_and_vectors_pass():
    words = Words(3)
    words.load_state_dict({"table.weight": torch.arange(24.0).view(3, 8) + 1})
    vectors = torch.zeros(3, 1, 8)
    vectors[1, 0, 4] = 1.0
    context = words(torch.tensor([[2], [NO_CLASS], [NO_CLASS]]), vectors)
    torch.testing.assert_close(context[0, 0], torch.nn.functional.normalize(torch.arange(17.0, 25.0), dim=0))
    assert torch.equal(context[1:], vectors[1:])
    assert not words(torch.tensor([[NO_CLASS]])).any()


def test_the_table_learns_from_the_prompts_that_name_a_class_only():
    words = Words(3)
    (words(torch.tensor([[2], [NO_CLASS]])) * torch.arange(8.0)).sum().backward()
    gradient = words.table.weight.grad
    assert gradient is not None
    assert gradient[2].abs().max() > 0
    assert not gradient[:2].any()
    assert abs(float(gradient[2] @ words.table.weight[2].detach())) < 1e-4  # along the sphere


def test_a_vector_is_read_back_from_its_prompt():
    vector = normalised(torch.randn(8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(Reader(())(as_prompt(vector)).vectors[0, 0], vector, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prompt_vector(as_prompt(vector)), vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 4 5 6 7 nan", "1 2 3 4 5 6 7 8 9"])
def test_other_numbers_are_refused(text):
    with pytest.raises(BadInput, match="8 finite numbers"):
        Reader(("zero",))(text)
    with pytest.raises(UnknownName, match="did you mean 'zero'"):
        Reader(("zero",))("zro")
