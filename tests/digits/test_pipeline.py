"""The digits model fulfils the contract of `Model`; its judges can be differentiated."""

from dataclasses import replace

import pytest
import torch

from efface.digits import pipeline
from efface.digits.classes import CLASSES, class_number
from efface.edits.edit import Edit
from efface.errors import BadModel, UnknownName
from efface.judge import judge_of
from efface.models import schedules
from efface.models.model import Model
from efface.query import Query
from efface.util.files import load_safetensors, save_safetensors
from efface.util.shipped import SHIPPED


def test_eps_is_the_noise_of_the_predicted_velocity(raw):
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 1, 28, 28, generator=g), torch.tensor([0, 300, 700, 999])
    c = raw.encode(["0", "1", "", "2"])
    v = raw.predict(x, t, c)
    alpha, sigma = raw.levels(t)
    torch.testing.assert_close(raw.eps(x, t, c), alpha * v + sigma * x)
    torch.testing.assert_close(raw.eps(x, t, c), schedules.OUTPUTS["v_prediction"].to_eps(v, x, alpha, sigma))


def test_the_prompt_and_the_time_matter_and_the_empty_prompt_is_zero(raw):
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    c, null = raw.encode(["0"]), raw.encode([""])
    assert not null.tokens.any()
    outs = [raw.predict(x, 500, c), raw.predict(x, 500, null), raw.predict(x, 100, c)]
    assert all((a - b).abs().max() > 1e-3 for a, b in ((outs[0], outs[1]), (outs[0], outs[2])))


def test_latents_are_pixels(raw):
    images = torch.rand(2, 1, 28, 28).expand(-1, 3, -1, -1)
    torch.testing.assert_close(raw.decode(raw.encode_images(images)), images)
    assert raw.latent_shape == (1, 28, 28)


def test_an_image_depends_on_its_query_only(raw):
    queries = [Query("3", seed, 3, 1.0) for seed in range(3)] + [Query("3", 1, 3, 2.0)]
    together = raw.generate(queries)
    alone = raw.generate([queries[1]])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    assert (together[1] - together[3]).abs().max() > 1e-4  # guidance
    vector = replace(queries[1], prompt="", context=raw.encode(["3"]))
    torch.testing.assert_close(raw.generate([vector]), alone, atol=1e-4, rtol=1e-4)


def test_a_change_of_the_weights_changes_the_noise(raw):
    edit = Edit(delta={name: 0.1 * torch.ones_like(w) for name, w in raw.weights().items() if ".mid1.conv1." in name})
    x, c = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)), raw.encode(["0"])
    with edit.applied(raw) as edited, torch.no_grad():
        assert (edited.eps(x, 500, c) - raw.eps(x, 500, c)).abs().max() > 1e-3


def test_an_edit_can_move_a_prompt_and_leaves_the_others_and_its_old_place(raw):
    name = "text_encoder.table.weight"
    moved = torch.zeros(10, 8)
    moved[0] = raw.weights("")[name][1] - raw.weights("")[name][0]
    before, place = raw.encode(list("0123")).tokens, " ".join(map(str, raw.encode(["0"]).tokens[0, 0].tolist()))
    with Edit(delta={name: moved}).applied(raw) as edited:
        after = edited.encode(list("0123")).tokens
        torch.testing.assert_close(after[0], before[1])
        assert torch.equal(after[1:], before[1:])
        torch.testing.assert_close(edited.encode([place]).tokens[0], before[0])
        assert edited.id != raw.id
    assert torch.equal(raw.encode(["0"]).tokens[0], before[0])


def test_the_pipeline_itself_generates_nothing(raw):
    with pytest.raises(BadModel, match=r"through efface\.Model"):
        raw.pipe("3")


def test_the_schedule_ends_in_noise_and_its_configuration_is_the_same_in_every_process():
    ends = pipeline.noise_schedule().alphas_cumprod[[0, -1]]
    assert ends[0] > 0.999
    assert ends[1] < 1e-4
    # a scheduler lists its defaults in the order of a set, which differs between processes: so would a model's id
    assert pipeline.noise_schedule().config["_use_default_values"] == []


def test_names_of_classes():
    assert class_number("fashion", "boot") == 9
    with pytest.raises(UnknownName, match="did you mean 'digits:mnist'"):
        Model.load("digits:mnits")
    with pytest.raises(UnknownName, match="class of mnist '10'"):
        class_number("mnist", "10")


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_the_weights_that_ship_are_small_and_tell_their_data_set(dataset):
    path = pipeline.WEIGHTS / f"{dataset}.safetensors"
    assert load_safetensors(path)[1]["dataset"] == dataset
    assert path.stat().st_size < 2_000_000


def test_a_model_without_weights_says_how_to_train_it(tmp_path, monkeypatch):
    gone = SHIPPED["digits:mnist"]._replace(weights=tmp_path / "mnist.safetensors")
    monkeypatch.setitem(SHIPPED, "digits:mnist", gone)
    with pytest.raises(BadModel, match=r"experiments\.digits train"):
        Model.load("digits:mnist")


def test_a_file_of_networks_is_a_model_and_one_that_is_not_whole_is_refused(tmp_path):
    tensors, meta = load_safetensors(pipeline.WEIGHTS / "mnist.safetensors")
    save_safetensors(tmp_path / "mine.safetensors", tensors, meta)
    mine = Model.load(tmp_path / "mine.safetensors")
    assert mine.id == Model.load("digits:mnist").id
    assert mine.name == str(tmp_path / "mine.safetensors")
    for name in ("unet.leave.bias", "text_encoder.table.weight"):
        cut = {key: value for key, value in tensors.items() if key != name}
        save_safetensors(tmp_path / "cut.safetensors", cut, meta)
        with pytest.raises(BadModel, match=rf"not a whole digits model: it has no {name}"):
            Model.load(tmp_path / "cut.safetensors")


def test_a_model_is_loaded_in_another_precision():
    model = Model.load("digits:mnist", dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.weights().values()} == {torch.bfloat16}
    images = model.generate([Query("3", 0, 2, 1.0)])
    assert images.dtype == torch.float32
    assert (images - Model.load("digits:mnist").generate([Query("3", 0, 2, 1.0)])).abs().mean() < 0.05


@pytest.mark.parametrize("dataset", ["mnist", "fashion"])
def test_the_model_that_ships_generates_what_it_is_asked_for(dataset):
    model, judge = Model.load(f"digits:{dataset}"), judge_of(f"digits:{dataset}", "judge2")
    queries = [Query(name, seed, 5, 1.0) for name in CLASSES[dataset] for seed in range(4)]
    named = judge.objects(model.generate(queries)).argmax(1)
    right = (named == torch.arange(10).repeat_interleave(4)).float().mean()
    assert right > (0.9 if dataset == "mnist" else 0.75)  # the judges name 99 and 90 % of real pictures
    assert model.id == Model.load(f"digits:{dataset}").id
