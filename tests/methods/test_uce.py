"""UCE on a random model, against the formula written out with an inverse per matrix."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadFile, BadInput, BadModel, UnknownName
from efface.methods.closed_form.cache import forget
from efface.methods.closed_form.least_squares import solve
from efface.methods.closed_form.matrices import Factors, Preserved
from efface.methods.closed_form.method import preserved_rows
from efface.methods.closed_form.prompts import Phrase
from efface.methods.closed_form.states import text_edit
from efface.methods.rece import RECE
from efface.methods.uce import UCE
from efface.models.model import Model
from efface.query import Query
from efface.util.files import sha256_text

CHURCH = Concept("church", anchor="house")
SD14 = [320] * 10 + [640] * 10 + [1280] * 12  # heights of the 32 key and value matrices of Stable Diffusion 1.4


def words(model, text):
    """Return the vectors of a prompt and the number of its tokens, counted from the tokenizer's own mask."""
    found = model.part("tokenizer")(text, padding="max_length", return_tensors="pt")
    return model.encode([text]).tokens[0].double(), int(found.attention_mask.sum())


def tail(model, old, new):
    """Pick rows as the published code does, in its own terms."""
    (c, n), (g, m) = words(model, old), words(model, new)
    a, b = n - 2, m - 2
    far, length = max(a, b), len(c)
    return c[a : length - (far - a)], g[b : length - (far - b)]


def plain(weight, c, g, k, ridge, e, p):
    """Solve eq. 7 of the paper for one matrix: sums of outer products and one inverse."""
    weight = weight.detach().double()
    top, bottom = ridge * weight, ridge * torch.eye(weight.shape[1], dtype=torch.float64)
    for source, target, scale in [(c, g, e), (k, k, p)]:
        for x, y in zip(source, target, strict=True):
            top = top + scale * torch.outer(weight @ y, x)
            bottom = bottom + scale * torch.outer(x, x)
    return top @ torch.linalg.inv(bottom) - weight


def assert_dense(edit, model, expected, rtol=1e-5):
    found = edit.dense(model)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert (found[name] - delta).norm() < rtol * delta.norm(), name


def test_paper_preset_is_the_formula(tiny):
    """Published code: rows from the last word on; the empty text and all preserved rows; λ 0.5, p 1 / 2."""
    edit = UCE()(tiny, [Concept("church")], preserve=[Concept("guitar")], seed=0)
    c, g = tail(tiny, "church", "")
    k = torch.cat([words(tiny, "")[0], words(tiny, "guitar")[0]])
    weights = tiny.weights()
    expected = {n: plain(weights[n], c, g, k, 0.5, 1.0, 0.5) for n in tiny.text_weights()}
    assert_dense(edit, tiny, expected)
    assert edit.meta["preset"] == "paper-2023"
    assert set(edit.names) == set(tiny.text_weights())


def test_2025_preset_is_the_formula(tiny):
    """One row a concept, style to "art", no preserved empty prompt; several concepts in one solve."""
    erase = [Concept("neon", kind="style"), CHURCH]
    edit = UCE.preset("repo-2025")(tiny, erase, preserve=[Concept("red car")])

    def row(text):
        vectors, count = words(tiny, text)
        return vectors[count - 2]

    c, g = torch.stack([row("neon"), row("church")]), torch.stack([row("art"), row("house")])
    weights = tiny.weights()
    expected = {n: plain(weights[n], c, g, row("red car")[None], 0.5, 1.0, 1.0) for n in tiny.text_weights()}
    assert_dense(edit, tiny, expected)
    assert edit.maps[0].left.shape[1] == 2


def test_tensor_technique_is_the_formula(tiny):
    """Targets less their component along the concept's own values, a scalar for each matrix and concept."""
    erase = [CHURCH, Concept("dog", anchor="cat")]
    edit = UCE(technique="tensor")(tiny, erase)
    weights, empty = tiny.weights(), words(tiny, "")[0]
    expected = {}
    for name in tiny.text_weights():
        weight = weights[name].detach().double()
        top, bottom = 0.5 * weight, 0.5 * torch.eye(32, dtype=torch.float64) + empty.T @ empty
        top = top + weight @ empty.T @ empty
        for concept in erase:
            c, g = tail(tiny, concept.name, concept.anchor)
            u = c @ weight.T / (c @ weight.T).norm()
            target = g @ weight.T - (u * (g @ weight.T)).sum() * u
            top, bottom = top + target.T @ c, bottom + c.T @ c
        expected[name] = top @ torch.linalg.inv(bottom) - weight
    assert_dense(edit, tiny, expected)
    assert not edit.maps


@pytest.mark.parametrize("preset", ["paper-2023", "repo-2025"])
def test_erased_prompt_reads_as_its_target(tiny, preset):
    """With a large erase scale the edited matrices give for the concept what the base gives for the target."""
    edit = UCE.preset(preset, erase_scale=1e7)(tiny, [CHURCH])
    c, g = tail(tiny, "church", "house")
    with edit.applied(tiny) as edited:
        for name in tiny.text_weights():
            old, new = tiny.weights()[name].double(), edited.weights()[name].double()
            assert (c[:1] @ new.T - g[:1] @ old.T).norm() < 2e-3 * (c[:1] @ old.T - g[:1] @ old.T).norm()


def test_anchor_equal_to_the_concept_changes_nothing(tiny):
    edit = UCE()(tiny, [Concept("church", anchor="church")])
    assert all(not delta.any() for delta in edit.dense(tiny).values())


def test_order_of_concepts_does_not_matter(tiny):
    names = ["church", "dog", "car"]
    one, other = (UCE()(tiny, chosen).dense(tiny) for chosen in (names, names[::-1]))
    for name, delta in one.items():
        torch.testing.assert_close(delta, other[name], rtol=1e-4, atol=1e-5)


def test_preserved_concepts_change_less(tiny):
    k = words(tiny, "guitar")[0]
    moved = []
    for preserve in ([], ["guitar"]):
        delta = UCE(preserve_scale=10.0)(tiny, ["church"], preserve=preserve).dense(tiny)
        moved.append(sum(float((k @ d.double().T).norm()) for d in delta.values()))
    assert moved[1] < 0.5 * moved[0]


def test_templates_and_keywords_add_prompts(tiny):
    church = Concept("church", keywords=("religion", "cross"))
    assert UCE()(tiny, [church]).meta["closed_form"]["texts"] == 1
    assert UCE(keywords=True)(tiny, [church]).meta["closed_form"]["texts"] == 3
    edit = UCE(templates=("{}", "a {} in the style of neon"), keywords=True)(tiny, [church], ["house"])
    assert edit.meta["closed_form"] | {"texts": 6, "preserved_texts": 3} == edit.meta["closed_form"]


def test_templates_that_name_an_erased_concept_are_left_out(tiny):
    """Preserving "a dog by neon" would preserve neon, and "a church in {} style" would preserve church."""
    church, neon = Concept("church"), Concept("Neon", kind="style")
    method = UCE(templates=("{}", "a {} by neon", "a {} by neonate"), style_templates=("a church in {} style",))
    phrases = [phrase.text for phrase in method.preserved_prompts([Concept("dog"), neon], [church], empty=False)]
    assert phrases == ["dog", "a dog by neon", "a dog by neonate", "Neon"]
    phrases = [phrase.text for phrase in method.preserved_prompts([Concept("dog")], [neon], empty=True)]
    assert phrases == ["", "dog", "a dog by neonate"]
    assert [old.text for old, _ in method.phrases([church, neon])[0]] == ["church", "a church by neonate"]
    assert UCE(templates=("a {} by neon",))(tiny, [neon], preserve=["dog"]).meta["closed_form"]["preserved_texts"] == 2


def test_template_with_words_behind_the_name(tiny):
    """Rows start at the name's own last token, wherever it is in the prompt."""
    edit = UCE(templates=("a {} in neon",), preserve_empty=False)(tiny, [Concept("church", anchor="red house")])
    c, g = words(tiny, "a church in neon")[0], words(tiny, "a red house in neon")[0]
    weights = tiny.weights()
    expected = {n: plain(weights[n], c[2:-1], g[3:], c[:0], 0.5, 1.0, 1.0) for n in tiny.text_weights()}
    assert_dense(edit, tiny, expected)


def test_weights_and_embedding_guard_generate_the_same_image(tiny):
    """W T on e is W on T e: the same edit on the weights, or as a guard that touches none."""
    edit = UCE()(tiny, [CHURCH])
    query = [Query("a picture of a church", seed=1, steps=4), Query("a dog", seed=2, steps=4)]
    with edit.applied(tiny) as weights, edit.as_guard().applied(tiny) as guarded:
        assert guarded.denoiser is tiny.denoiser
        by_weights, by_guard, before = (m.generate(query) for m in (weights, guarded, tiny))
    assert (by_weights - by_guard).abs().max() < 1e-3
    assert (by_weights - before).abs().max() > 2e-2


def test_algebra_of_maps_and_dense_deltas(tiny):
    a, b = UCE()(tiny, [CHURCH]), UCE(technique="tensor")(tiny, ["dog"])
    da, db = a.dense(tiny), b.dense(tiny)
    sums = {"a + b": (a + b, 1.0, 1.0), "2a - b": (2.0 * a - b, 2.0, -1.0), "-a": (-a, -1.0, 0.0)}
    for edit, x, y in sums.values():
        for name, delta in edit.dense(tiny).items():
            torch.testing.assert_close(delta, x * da[name] + y * db[name], rtol=1e-4, atol=1e-5)
    values = (a + b).prune(only="to_v")
    assert set(values.names) == {n for n in da if "to_v" in n}


def test_edit_of_one_concept_is_small_and_exact_at_full_size(tmp_path):
    """Stable Diffusion 1.4's geometry: 75 rows, under 0.6 MB on disk, equal to the dense edit to 1e-5."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, 768, generator=g)
    c, t = base + 0.3 * torch.randn(75, 768, generator=g), base + 0.3 * torch.randn(75, 768, generator=g)
    fit = solve(c, t, 0.5, preserved=Preserved.of(base + 0.3 * torch.randn(77, 768, generator=g)))
    names = tuple(f"unet.layer.{i}.to_k.weight" for i in range(len(SD14)))
    edit = text_edit(names, fit.step, {})
    edit.save(tmp_path / "church.safetensors")
    assert (tmp_path / "church.safetensors").stat().st_size < 600_000
    text_map = Edit.load(tmp_path / "church.safetensors").maps[0]
    for height in (320, 640, 1280):
        weight = torch.randn(height, 768, generator=g) / 28
        dense = weight.double() @ fit.step.left @ fit.step.right
        assert (text_map.delta(weight) - dense).norm() < 1e-5 * dense.norm()


def test_the_gram_matrix_of_many_preserved_texts_is_cached(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path))
    monkeypatch.setattr("efface.methods.closed_form.method.MANY", 3)
    phrases = [Phrase("{}", name) for name in ("", "house", "dog", "cat")]
    first = preserved_rows(tiny, phrases, "all", 0.5).matrix()
    torch.testing.assert_close(first, sum(0.5 * (v.T @ v) for v in (words(tiny, s.name)[0] for s in phrases)))
    files = list((tmp_path / "gram").glob("*.safetensors"))
    assert len(files) == 1
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(preserved_rows(tiny, phrases, "all", 0.5).matrix(), first)
    forget()
    assert torch.equal(preserved_rows(tiny, phrases, "all", 1.0).matrix(), 2 * first)
    forget()
    files[0].write_bytes(b"damaged")
    monkeypatch.setattr(Model, "encode", encode)
    assert torch.equal(preserved_rows(tiny, phrases, "all", 0.5).matrix(), first)
    preserved_rows(tiny, phrases, "last", 0.5)
    assert len(list((tmp_path / "gram").glob("*.safetensors"))) == 2
    forget()


def make_xl(base):
    """Make a random SDXL in miniature: two text encoders of different widths side by side."""
    config = base.text_encoder.config.to_dict()
    torch.manual_seed(3)
    two = CLIPTextModelWithProjection(CLIPTextConfig(**{**config, "hidden_size": 48, "num_attention_heads": 1}))
    one = CLIPTextModel(CLIPTextConfig(**config))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=80,
        attention_head_dim=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=one.eval(),
        text_encoder_2=two.eval(),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet.eval(),
        scheduler=base.scheduler,
        add_watermarker=False,
    )
    return Model(pipe, name="tiny-xl")


def test_sdxl_geometry(tiny):
    model = make_xl(tiny.pipe)
    edit = UCE.preset("repo-2025", erase_scale=1e6)(model, [CHURCH], preserve=["dog"])
    assert len(edit.names) == 2 * 2 * 4  # keys and values; two transformer layers in four attentions
    assert edit.maps[0].left.shape == (80, 1)
    c, g = model.pipe.encode_prompt(prompt=["church", "house"], device="cpu", do_classifier_free_guidance=False)[0]
    change = Factors(edit.maps[0].left.double(), edit.maps[0].right.double())
    assert (change.of(c[1:2]) - g[1:2]).norm() < 1e-4 * (c[1:2] - g[1:2]).norm()
    assert all(edit.dense(model)[n].shape == model.weights()[n].shape for n in edit.names)


@pytest.mark.parametrize(
    "fields",
    [
        {"ridge": 0.0},
        {"ridge": float("nan")},
        {"erase_scale": -1.0},
        {"preserve_scale": float("inf")},
        {"templates": ()},
        {"templates": ("a picture",)},
        {"templates": ("{} and {}",)},
    ],
)
def test_bad_fields(fields):
    with pytest.raises(BadInput):
        UCE(**fields)


def test_unknown_field():
    with pytest.raises(UnknownName, match="ridge"):
        UCE.preset("paper-2023", ridg=0.1)


def test_bad_concepts(tiny, monkeypatch):
    with pytest.raises(BadInput, match="same text"):
        UCE()(tiny, ["church", "Church"])
    with pytest.raises(BadInput, match="same text"):
        UCE()(tiny, ["church"], preserve=["CHURCH"])
    with pytest.raises(BadInput, match="both erase and preserve"):
        UCE()(tiny, ["church"], preserve=["church"])
    tokens = type(tiny).tokens
    monkeypatch.setattr(Model, "tokens", lambda self, prompt: tokens(self, prompt.replace("\u2063", "")))
    with pytest.raises(BadInput, match="no tokens"):
        UCE()(tiny, ["\u2063"])


def test_model_without_cross_attention_or_of_another_width(tiny):
    options = {"sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1}
    blind = UNet2DConditionModel(
        **options,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type="UNetMidBlock2D",
    )
    tiny.pipe.unet = blind
    with pytest.raises(BadModel, match="whose only input is the text"):
        UCE()(tiny, ["church"])
    tiny.pipe.unet = UNet2DConditionModel(
        **options,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48,
    )
    with pytest.raises(BadModel, match="width 48"):
        UCE()(tiny, ["church"])


def test_names_in_a_file_are_preserved_too(tiny, tmp_path):
    """Without those that are erased, whatever their case, and those named already; # begins a comment."""
    path = tmp_path / "names.txt"
    path.write_text("# objects\nguitar\n\nCHURCH\ndog  # a pet\nguitar\ncar\n", encoding="utf-8")
    edit = UCE(preserve_file=str(path))(tiny, [CHURCH], preserve=["car"])
    plain = UCE()(tiny, [CHURCH], preserve=["car", "guitar", "dog"])
    assert torch.equal(edit.maps[0].left, plain.maps[0].left)
    report = edit.meta["closed_form"]
    assert report["preserved_texts"] == 4
    assert report["preserve_scale"] == 0.25
    assert report["preserve_file"] == {"names": 2, "sha256": sha256_text("guitar\ndog")}
    assert "preserve_file" not in plain.meta["closed_form"]
    styles = UCE(preserve_file=str(path), style_templates=("art by {}",))
    neon = Concept("neon", kind="style")
    found = [phrase.text for phrase in styles.preserved_prompts([], [neon], empty=False)]
    assert found == ["art by guitar", "art by CHURCH", "art by dog", "art by car"]  # of the erased concept's kind


def test_a_bad_file_of_names_is_refused_at_once(tmp_path):
    with pytest.raises(BadFile, match="cannot read the names"):
        UCE(preserve_file=str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n# nobody\n")
    with pytest.raises(BadInput, match="no names"):
        UCE(preserve_file=str(tmp_path / "empty.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="cannot read the names"):
        UCE(preserve_file=str(tmp_path / "binary.txt"))


@pytest.mark.parametrize(("count", "scale"), [(1, 0.5), (2, 1 / 3), (13, 0.1)])
def test_the_preserve_scale_is_not_rounded(tiny, count, scale):
    """train_erase.py: max(0.1, 1 / number of kept texts), the empty one included; RECE's copy of it rounds to 0.001."""
    names = ["house", "castle", "guitar", "dog", "wolf", "fox", "cat", "car", "taxi", "bus", "truck", "beer", "wine"]
    edit = UCE()(tiny, ["church"], preserve=names[:count])
    assert edit.meta["closed_form"]["preserve_scale"] == scale


def test_every_prompt_is_encoded_once(tiny, monkeypatch):
    """The target of the erased concepts is the preserved empty prompt too."""
    asked: list[str] = []
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda self, prompts: (asked.extend(prompts), encode(self, prompts))[1])
    UCE()(tiny, ["church", "dog"], preserve=["car"])
    assert sorted(asked) == ["", "car", "church", "dog"]
    asked.clear()
    RECE(epochs=2)(tiny, ["church", "dog"], preserve=["car"])
    assert sorted(asked) == ["", "car", "church", "dog"]
