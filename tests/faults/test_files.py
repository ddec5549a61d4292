"""Every kind of file that efface reads, damaged at random or on purpose: only `EffaceError` comes out, soon.

The kinds are in KINDS: how to write a whole file, and how to read and use it.
"""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from efface.concept import Concept, table
from efface.edits.edit import Edit
from efface.edits.guard import Guard
from efface.edits.key import make_key, prompt_of
from efface.edits.parts import TextMap
from efface.edits.provenance import preserved
from efface.errors import BadEdit, BadFile, EffaceError
from efface.evaluation.evaluate import describe
from efface.evaluation.prompts import held_out
from efface.evaluation.record import Asked, Base, Made, Record, Row, Sampling, read
from efface.evaluation.store import Store
from efface.judge import Profile
from efface.methods.sld import SLD
from efface.models import images
from efface.models.files import stream
from efface.models.learned_prompt import unlocked
from efface.models.model import Model
from efface.query import Query
from efface.training.checkpoints import State, checkpoints, current
from efface.training.loop import descend, optimizer
from efface.util.files import load_safetensors, save_safetensors

MODEL_FILES = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json",
    "text_encoder/model.safetensors",
)  # fmt: skip


# --- whole files ---
def an_edit(model: Model, path: Path) -> None:
    names = tuple(model.text_weights())
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((model.width, 2), (2, model.width)))
    whole = Edit(
        delta={"unet.conv_out.bias": torch.ones(4)},
        maps=(TextMap(names, left, right),),
        guards=(Guard(SLD(scale=5.0), (Concept("church", kind="unsafe"),)),),
        meta={
            "method": "test",
            "erase": [{"name": "church"}],
            "fields": {"x": 1.5},
            "base": model.base(["unet.conv_out.bias"]),
        },
    )
    (whole + 2 * replace(whole, guards=())).save(path)


def a_key(model: Model, path: Path) -> None:
    about = {"method": "kpop", "mechanism": "concat", "where": "mid"}
    make_key({"prompt": torch.ones(1, 2, model.width)}, ["church"], about).save(path)


def training() -> State:
    p = nn.Parameter(torch.ones(3))
    return State({"p": p}, {"main": optimizer("adam", [p], 0.1)})


def train(path: Path, steps: int) -> None:
    state = training()
    with checkpoints(path.parent, every=1):
        descend(lambda step: state.tensors["p"].square().sum(), state, steps, label="fit", run={"method": "fit"})


def once(path: Path) -> dict[str, Tensor]:
    with checkpoints(path.parent):
        stored = current()
        assert stored
        return stored.once("latents", {"seed": 1}, lambda: {"latents": torch.arange(6.0)})


def a_record(path: Path) -> None:
    rows = tuple(
        Row(
            made_by=maker, groups=("target",), concept="church", label="church", judged="object", seen="church",
            top1=True, top5=True, scores={"ssim": 0.5}, image="ab",
            query=Asked(prompt="a", seed=0, steps=4, guidance=7.5),
        )
        for maker in ("original", "edited")
    )  # fmt: skip
    sampling = Sampling(solver="DDIM", steps=4, guidance=7.5, seeds={"seeds": (0,)}, prompts={"object": "a {}"})
    Record(
        concepts=("church",), model=Base(name="mini", id="1"), edit=Made(id="2", fields={"a": [1, None]}),
        evaluator=Profile(evaluator="j"), sampling=sampling, rows=rows,
    ).save(path)  # fmt: skip


def two_records(path: Path) -> None:
    a_record(path)
    line = json.dumps(json.loads(path.read_text()))
    path.write_text(f"{line}\n{line}\n")


TABLE = {
    "objects": [{"name": "church", "related": ["house"], "held_out_keywords": ["x"]}],
    "styles": [{"name": "neon"}],
}


# --- readers: as far as a command uses what was read ---
def use_edit(model: Model, path: Path) -> None:
    edit = Edit.load(path)
    assert repr(edit)
    describe(edit)
    preserved(edit.meta)
    edit = 0.5 * (edit + edit.prune("unet")) if not edit.guards else edit + edit
    edit.check(model, any_base=True)
    with edit.applied(model, any_base=True) as edited:
        [guard.start(edited) for guard in edit.guards]


def use_key(model: Model, path: Path) -> None:
    key = Edit.load(path)
    prompt_of(key, "church")
    unlocked(model, key, "church").eps(torch.zeros(1, *model.latent_shape), 5, model.encode(["a church"]))


def use_record(path: Path) -> None:
    for record in read(path):
        assert record.summaries.keys() | record.singles.keys() is not None
        record.mean("ssim", "target")


def use_table(path: Path) -> None:
    table(str(path.parent))
    held_out(str(path.parent))


# --- what can go wrong ---
TOKENS = [b"", b"{", b"[", b"}", b"]", b'"', b",", b":", b"null", b"-1", b"1e999", b"NaN", b"9" * 30, b"\0",
          b"\xff\xff", b"../", b'{"a":' * 500, b"[" * 5000, b'"\\ud800"', b"true", b"8"]  # fmt: skip


@st.composite
def damage(draw: st.DrawFn, whole: bytes, head: int) -> bytes:
    """Draw a damaged file; more than half of the changes are in its first `head` bytes, where structure is."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(data), head if draw(st.booleans()) else len(data))))
        to = min(len(data), at + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("flip", "cut", "token", "double", "delete", "splice", "digit", "word")))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "token":
            data[at:to] = draw(st.sampled_from(TOKENS))
        elif kind == "double":
            data[at:at] = data[at:to]
        elif kind == "delete":
            del data[at:to]
        elif kind == "splice":
            start = draw(st.integers(0, len(whole)))
            data[at:to] = whole[start : start + draw(st.integers(0, 200))]
        elif kind in ("digit", "word"):  # another value where there was one
            found = [i for i, byte in enumerate(data[:head]) if (48 <= byte <= 57) == (kind == "digit") and byte > 32]
            if found:
                data[draw(st.sampled_from(found))] = draw(
                    st.integers(48, 57) if kind == "digit" else st.integers(32, 126)
                )
    assume(bytes(data) != whole)
    return bytes(data)


def refit(data: bytes) -> bytes:
    """Correct the length in front of a damaged safetensors header, so that what is behind it is reached."""
    body = data[8:]
    depth, inside = 0, False
    for i, byte in enumerate(body[:100_000]):
        inside ^= byte == 34 and body[i - 1 : i] != b"\\"
        depth += (not inside) * ((byte == 123) - (byte == 125))
        if depth == 0:
            return struct.pack("<Q", i + 1) + body
    return data


@dataclass(frozen=True)
class Kind:
    """Describe a kind of file: its name, how it is written, how it is read and used, and its bytes of structure."""

    name: str
    write: Callable[[Model, Path], Any]
    use: Callable[[Model, Path], Any]
    head: int = 3000


KINDS = {
    "edit": Kind("edit.safetensors", an_edit, use_edit),
    "key": Kind("key.safetensors", a_key, use_key, 700),
    "checkpoint": Kind("training.safetensors", lambda m, p: train(p, 2), lambda m, p: train(p, 3), 700),
    "stored result": Kind("latents.safetensors", lambda m, p: once(p), lambda m, p: once(p), 400),
    "record": Kind("record.json", lambda m, p: a_record(p), lambda m, p: use_record(p)),
    "records": Kind("record.jsonl", lambda m, p: two_records(p), lambda m, p: use_record(p)),
    "concept table": Kind("concepts.json", lambda m, p: p.write_text(json.dumps(TABLE)), lambda m, p: use_table(p)),
    "image": Kind("a.png", lambda m, p: images_of(p), lambda m, p: images.square(p, 8), 100),
}


def images_of(path: Path) -> None:
    from PIL import Image

    Image.effect_noise((16, 16), 60).convert("RGB").save(path)


def answered(call: Callable[[], Any]) -> None:
    """Run a call that may succeed or be refused in one line of no great length."""
    try:
        call()
    except EffaceError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    assert len(said) < 2000


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_read(kind: str, tiny: Model, tmp_path: Path):
    it = KINDS[kind]
    path = tmp_path / it.name
    it.write(tiny, path)
    whole = path.read_bytes()
    it.use(tiny, path)

    @given(damage(whole, it.head), st.booleans())
    @settings(suppress_health_check=list(HealthCheck))
    def check(data: bytes, corrected: bool) -> None:
        path.write_bytes(refit(data) if corrected and it.name.endswith(".safetensors") else data)
        answered(lambda: it.use(tiny, path))

    check()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("file", MODEL_FILES)
def test_a_model_with_a_damaged_file_is_refused_or_read(file: str, folder: Path, tmp_path: Path):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    whole = (own / file).read_bytes()

    @given(damage(whole, 4000), st.booleans())
    @settings(suppress_health_check=list(HealthCheck), max_examples=max(8, settings.default.max_examples // 5))
    def check(data: bytes, corrected: bool) -> None:
        (own / file).write_bytes(refit(data) if corrected and file.endswith(".safetensors") else data)
        answered(lambda: stream.open_model(own))

    check()


@pytest.mark.filterwarnings("default")
def test_a_damaged_image_in_the_store_is_made_again(tiny: Model, tmp_path: Path):
    store, query = Store(tmp_path), [Query("a church", 0, 1), Query("a dog", 0, 1)]
    good = store.images(tiny, "", query)
    path, other = (store.path(store.key(tiny, "", one)) for one in query)
    whole = path.read_bytes()

    @given(damage(whole, 300))
    @settings(suppress_health_check=list(HealthCheck), max_examples=max(10, settings.default.max_examples // 3))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        assert torch.equal(store.images(tiny, "", query), good)

    check()
    path.write_bytes(other.read_bytes())  # a whole image of another query
    assert torch.equal(store.images(tiny, "", query), good)


# --- on purpose ---
def header(path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change one JSON text in the header of a safetensors file; the tensors and their id stay."""
    tensors, meta = load_safetensors(path)
    found = change(json.loads(meta[name]))
    save_safetensors(path, tensors, {**meta, name: found if isinstance(found, str) else json.dumps(found)})


def nested(levels: int) -> Any:
    found: Any = {}
    for _ in range(levels):
        found = {"a": found}
    return found


CRAFTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nested too deep": lambda h: json.dumps(h)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested a little too deep": lambda h: {**h, "x": nested(450)},
    "a key twice": lambda h: json.dumps(h)[:-1] + ', "format": 1}',
    "not Unicode": lambda h: json.dumps({**h, "method": "x"}).replace('"x"', '"\\udfff"'),
    "erase is a number": lambda h: {**h, "op": "", "parts": [], "erase": 5},
    "erase has no names": lambda h: {**h, "erase": [{}]},
    "preserve of texts": lambda h: {**h, "preserve": ["church"]},
    "parts of texts": lambda h: {**h, "parts": ["church"]},
    "parts that are not there": lambda h: {"op": "+", **{k: v for k, v in h.items() if k != "parts"}},
    "a base of text": lambda h: {**h, "base": "mini"},
    "hashes in a list": lambda h: {**h, "base": {"hashes": ["x"]}},
    "blocks of numbers": lambda h: {**h, "base": {"blocks": {"down": 1}}},
    "readers in text": lambda h: {**h, "base": {"cross_attention": 5}},
    "a scale of text": lambda h: {**h, "op": "*", "scale": "2", "parts": []},
    "a seed of text": lambda h: {**h, "seed": "one"},
    "seconds without end": lambda h: {**h, "seconds": float("inf")},
    "a method of numbers": lambda h: {**h, "method": [1]},
    "fields in a list": lambda h: {**h, "fields": [1]},
    "a guard of numbers": lambda h: {**h, "guards": [1]},
    "a map of text": lambda h: {**h, "maps": ["unet"]},
    "a key of text": lambda h: {**h, "key": "church"},
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_edit_is_refused(name: str, tiny: Model, tmp_path: Path):
    path = tmp_path / "edit.safetensors"
    an_edit(tiny, path)
    header(path, "efface", CRAFTED[name])
    with pytest.raises(BadEdit) as caught:
        Edit.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_that_are_not_finite_are_refused_in_an_edit(tmp_path: Path):
    for edit in (
        Edit(delta={"unet.conv_out.bias": torch.full((4,), float("nan"))}),
        Edit(maps=(TextMap(("a",), torch.full((4, 1), float("inf")), torch.ones(1, 4)),)),
        Edit(delta={"unet.conv_out.bias": torch.ones(4, dtype=torch.int32)}),
    ):
        edit.save(tmp_path / "edit.safetensors")
        with pytest.raises(BadEdit, match="not finite numbers"):
            Edit.load(tmp_path / "edit.safetensors")


def test_an_edit_of_texts_of_another_width_is_refused(tiny: Model):
    names = tuple(tiny.text_weights())
    edit = Edit(maps=(TextMap(names, torch.ones(7, 1), torch.ones(1, 7)),)).as_guard()
    with edit.applied(tiny) as edited, pytest.raises(BadEdit, match="maps texts of width 7, this model reads 32"):
        edited.generate([Query("a church", 0, 1)])


def test_many_edits_added_up_are_read_again_and_too_many_are_refused(tiny: Model, tmp_path: Path):
    one = Edit(
        delta={"unet.conv_out.bias": torch.ones(4)}, meta={"method": "a", "erase": [], "preserve": [{"name": "x"}]}
    )
    total = one
    for _ in range(190):
        total = total + one
    total.save(tmp_path / "many.safetensors")
    assert preserved(Edit.load(tmp_path / "many.safetensors").meta) == ("x",)
    for _ in range(10):
        total = total + one
    with pytest.raises(BadEdit, match="combines too many edits"):
        total.save(tmp_path / "more.safetensors")
    assert not (tmp_path / "more.safetensors").exists()


KEYS: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "where is unknown": ({"where": "up"}, {}),
    "where is a number": ({"where": 5}, {}),
    "where is a list": ({"where": ["mid"]}, {}),
    "mechanism is missing": ({"mechanism": ...}, {}),
    "mechanism is unknown": ({"mechanism": "multiply"}, {}),
    "no concepts": ({"concepts": []}, {}),
    "concepts are numbers": ({"concepts": [1]}, {}),
    "each is text": ({"each": "no"}, {}),
    "a prompt that is not there": ({"each": True}, {}),
    "a prompt of one dimension": ({}, {"extra.prompt": torch.ones(32)}),
    "two prompts": ({}, {"extra.prompt": torch.ones(2, 3, 32)}),
    "an empty prompt": ({}, {"extra.prompt": torch.ones(1, 0, 32)}),
    "not a number": ({}, {"extra.prompt": torch.full((1, 2, 32), float("nan"))}),
    "whole numbers": ({}, {"extra.prompt": torch.ones(1, 2, 32, dtype=torch.int64)}),
    "another width": ({}, {"extra.prompt": torch.ones(1, 2, 31)}),
    "added vectors that do not fit": (
        {"mechanism": "add", "where": "down-mid-up"},
        {"extra.prompt": torch.ones(1, 5, 32)},
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_crafted_key_is_refused(name: str, tiny: Model, tmp_path: Path):
    about, tensors = KEYS[name]
    path = tmp_path / "key.safetensors"
    a_key(tiny, path)
    before, meta = load_safetensors(path)
    save_safetensors(path, before | tensors, meta)
    header(path, "efface", lambda h: {**h, "key": {k: v for k, v in {**h["key"], **about}.items() if v is not ...}})
    with pytest.raises(BadEdit) as caught:
        use_key(tiny, path)
    assert "\n" not in str(caught.value)


STATES: dict[str, Any] = {
    "no step": lambda s: {"history": s["history"]},
    "no history": lambda s: {"step": s["step"]},
    "a step below 0": lambda s: {**s, "step": -1},
    "a step of text": lambda s: {**s, "step": "2"},
    "another step": lambda s: {**s, "step": 1},
    "a history in a list": lambda s: {**s, "history": [1]},
    "losses in text": lambda s: {**s, "history": {"loss": ["a", "b"]}},
    "notes in text": lambda s: {**s, "history": {**s["history"], "restored": "x"}},
    "a list": lambda s: "[1]",
    "a number": lambda s: "5",
    "nothing": lambda s: "",
    "half": lambda s: json.dumps(s)[:-3],
    "nested too deep": lambda s: "[" * 100_000,
}


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_with_a_damaged_state_is_refused(name: str, tmp_path: Path):
    path = tmp_path / "training.safetensors"
    train(path, 2)
    header(path, "efface-state", STATES[name])
    with pytest.raises(BadFile, match=r"damaged|does not fit this run") as caught:
        train(path, 3)
    assert "\n" not in str(caught.value)


RUNS: dict[str, Any] = {"a list": "[1]", "a number": "5", "half": '{"method"', "nested too deep": '{"a":' * 100_000}


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_with_a_damaged_description_is_refused(name: str, tmp_path: Path):
    train(tmp_path / "training.safetensors", 2)
    header(tmp_path / "training.safetensors", "efface-run", lambda run: RUNS[name])
    with pytest.raises(BadFile, match="damaged"):
        train(tmp_path / "training.safetensors", 3)


MOMENTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "none of one kind": lambda t: {k: v for k, v in t.items() if not k.endswith("exp_avg")},
    "of another shape": lambda t: {k: v[:-1] if k.endswith("exp_avg") else v for k, v in t.items()},
    "of another tensor": lambda t: {k.replace("main.0", "main.7"): v for k, v in t.items()},
    "of no number": lambda t: {k.replace("main.0", "main.x"): v for k, v in t.items()},
    "without a name": lambda t: {k.replace("main.0.exp_avg", "main.0"): v for k, v in t.items()},
    "no weights": lambda t: {k: v for k, v in t.items() if not k.startswith("tensor.")},
    "weights of another shape": lambda t: {k: v[:2] if k.startswith("tensor.") else v for k, v in t.items()},
    "one weight for all": lambda t: {k: v[:1] if k.startswith("tensor.") else v for k, v in t.items()},
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_checkpoint_with_other_tensors_is_refused(name: str, tmp_path: Path):
    path = tmp_path / "training.safetensors"
    train(path, 2)
    tensors, meta = load_safetensors(path)
    save_safetensors(path, MOMENTS[name](tensors), meta)
    with pytest.raises(BadFile, match="does not fit this run"):
        train(path, 3)


def test_a_stored_result_that_was_changed_is_refused(tmp_path: Path):
    path = tmp_path / "latents.safetensors"
    assert torch.equal(once(path)["latents"], once(path)["latents"])
    tensors, meta = load_safetensors(path)
    for bad in (
        {"latents": tensors["latents"] + 1},
        {"latents": tensors["latents"][:3]},
        {"other": tensors["latents"]},
    ):
        save_safetensors(path, bad, meta)
        with pytest.raises(BadFile, match="damaged: delete it"):
            once(path)


def entry(dtype: Any = "F32", shape: Any = (2,), at: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


SAFETENSORS: dict[str, Any] = {
    "overlapping": {"a": entry(), "b": entry()},
    "a hole": {"a": entry(shape=[1], at=[4, 8])},
    "another shape": {"a": entry(shape=[3])},
    "shapes below 0": {"a": entry(shape=[-1, -2])},
    "offsets below 0": {"a": entry(shape=[4], at=[-8, 8])},
    "an unknown type": {"a": entry(dtype="F3")},
    "a list for the type": {"a": entry(dtype=["F32"])},
    "text for a shape": {"a": entry(shape="2")},
    "true for a shape": {"a": entry(dtype="F64", shape=[True])},
    "three offsets": {"a": entry(at=[0, 4, 8])},
    "a list for a tensor": {"a": [1]},
    "metadata of numbers": {"__metadata__": {"efface": 5}, "a": entry()},
    "metadata in a list": {"__metadata__": ["x"], "a": entry()},
    "a hundred dimensions": {"a": entry(shape=[2, *[1] * 99])},
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_crafted_safetensors_header_is_refused(name: str, tmp_path: Path):
    raw = json.dumps(SAFETENSORS[name]).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    for call in (load_safetensors, Edit.load, Model.load):
        with pytest.raises(BadFile, match=r"damaged|not a safetensors") as caught:
            call(path)
        assert "\n" not in str(caught.value)
