"""Keys: one prompt for all erased concepts, or one for each."""

import pytest
import torch

from efface.edits.edit import Edit
from efface.edits.key import chosen, make_key, only, prompt_of, tensor_names
from efface.errors import BadEdit, BadInput, UnknownName

ABOUT = {"method": "kpop", "mechanism": "concat", "where": "mid"}
BOTH = ("church", "a red dog")


def key(each: bool, concepts=BOTH) -> Edit:
    names = tensor_names(concepts, each)
    return make_key({name: torch.full((1, 2, 4), float(i)) for i, name in enumerate(names)}, concepts, ABOUT)


def test_a_shared_prompt_opens_every_concept():
    shared = key(each=False)
    assert set(shared.extra) == {"prompt"}
    for concept in ("", *BOTH):
        assert prompt_of(shared, concept) is shared.extra["prompt"]
    with pytest.raises(UnknownName, match="concept of this key 'cat'"):
        prompt_of(shared, "cat")
    with pytest.raises(BadEdit, match="cannot be split: one prompt opens church, a red dog"):
        only(shared, "church")


def test_a_prompt_for_each_concept_by_its_name(tmp_path):
    key(each=True).save(tmp_path / "key.safetensors")
    each = Edit.load(tmp_path / "key.safetensors")
    assert set(each.extra) == {"prompt.church", "prompt.a red dog"}
    assert [float(prompt_of(each, concept).mean()) for concept in BOTH] == [0.0, 1.0]
    with pytest.raises(BadInput, match="a prompt for each of church, a red dog: choose one of them"):
        prompt_of(each)
    with pytest.raises(UnknownName, match="did you mean 'church'"):
        prompt_of(each, "churhc")
    assert float(prompt_of(key(True, ("church",))).mean()) == 0.0  # one concept needs no choice
    assert not each.names


def test_a_key_to_hand_out_has_no_other_prompt():
    one = only(key(each=True), "a red dog")
    assert set(one.extra) == {"prompt.a red dog"}
    assert float(prompt_of(one).mean()) == 1.0
    with pytest.raises(UnknownName, match="'church'"):
        prompt_of(one, "church")


def test_an_edit_that_is_no_key_or_lacks_its_prompt():
    for about in (None, "prompt", {"mechanism": "concat"}):
        with pytest.raises(BadEdit, match="not a key"):
            chosen(about)
    whole = key(each=True)
    with pytest.raises(BadEdit, match=r"incomplete: it has no prompt\.church"):
        prompt_of(Edit(meta=whole.meta), "church")
