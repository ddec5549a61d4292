"""Random Stable Diffusions and SDXL in miniature, made for the test session; they test code, not image quality."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported; set later it is ignored
os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import resource
import runpy
import signal
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from efface.models.model import Model
from efface.util.files import save_safetensors

# The same examples on every run and machine; HYPOTHESIS_PROFILE=search looks for new ones, and for more of them.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=40)
settings.register_profile("search", derandomize=False, deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

tiny_parts = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny.py"))))
bpe, SENTENCE = tiny_parts.bpe, tiny_parts.SENTENCE

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make_pipe(version: int = 1) -> StableDiffusionPipeline:
    """Make a random pipeline with the layout of Stable Diffusion 1.x, or 2.x (v-prediction, linear projections)."""
    torch.manual_seed(version)  # of this process's own test models; the library itself never does this
    words = tiny_parts.words()
    text = tiny_parts.clip(CLIPTextModel, words, 32, hidden_act="gelu" if version == 2 else "quick_gelu")
    channels = (64, 64) if version == 2 else (32, 64)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=[c // 64 for c in channels] if version == 2 else 8,
        use_linear_projection=version == 2,
    )
    vae = tiny_parts.vae()
    if version == 2:
        scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    else:
        scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_xl_pipe() -> StableDiffusionXLPipeline:
    """Make a random pipeline with the layout of SDXL base: a first level without attention, then 1 and 2 blocks deep.

    The text encoders are 32 and 64 wide, so that contexts are 96 wide; the second's projection is 48 wide.
    """
    torch.manual_seed(3)
    first, second = tiny_parts.words(), tiny_parts.words("!")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=(1, 1, 1),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=tiny_parts.vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=tiny_parts.clip(CLIPTextModel, first, 32),
        text_encoder_2=tiny_parts.clip(CLIPTextModelWithProjection, second, 64, hidden_act="gelu", projection_dim=48),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def one_thread():
    """Restore the number of torch threads: with another one sums round differently, and "bit for bit" means one.

    And what processes get that a test starts: one that forks hangs when it has computed on more than one.
    """
    threads, told = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
    yield
    torch.set_num_threads(threads)
    left, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), told
    assert left == told, "a test changed OMP_NUM_THREADS for those behind it"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache folder of its own: what code kept before it was changed must not answer for it."""
    path = tmp_path_factory.getbasetemp() / "homes" / uuid.uuid4().hex
    monkeypatch.setenv("EFFACE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder with the layout of SD 1.x."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_pipe(1).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def folder2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder with the layout of SD 2.x: v-prediction and linear projections."""
    path = tmp_path_factory.mktemp("models") / "tiny2"
    make_pipe(2).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diffusers folder with the layout of SDXL base."""
    path = tmp_path_factory.mktemp("models") / "tiny_xl"
    make_xl_pipe().save_pretrained(path)
    return path


def _single_file(folder: Path) -> Path:
    to_original = runpy.run_path(str(Path(__file__).with_name("original_layout.py")))["to_original"]
    path = folder.with_suffix(".safetensors")
    tensors = to_original(Model.load(folder).pipe)
    save_safetensors(path, tensors, {"modelspec.resolution": "16x16"})
    return path


@pytest.fixture(scope="session")
def single_file(folder: Path) -> Path:
    """Return the model of `folder` as one file in the original layout of SD 1.x; its tokenizer is in `folder`."""
    return _single_file(folder)


@pytest.fixture(scope="session")
def single_file2(folder2: Path) -> Path:
    """Return the model of `folder2` as one file in the original layout of SD 2.x."""
    return _single_file(folder2)


@pytest.fixture(scope="session")
def single_file_xl(folder_xl: Path) -> Path:
    """Return the model of `folder_xl` as one file in the original layout of SDXL."""
    return _single_file(folder_xl)


@pytest.fixture(scope="session")
def _loaded(folder: Path) -> Model:
    return Model.load(folder)


@pytest.fixture(scope="session")
def _loaded2(folder2: Path) -> Model:
    return Model.load(folder2)


@pytest.fixture(scope="session")
def _loaded_xl(folder_xl: Path) -> Model:
    return Model.load(folder_xl)


def _lend(model: Model):
    """Lend a model to a test and check that it comes back as it was, bit for bit."""
    before = {name: weight.detach().clone() for name, weight in model.weights("").items()}
    yield Model(copy.copy(model.pipe), name=model.name)
    after = model.weights("")
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    with torch.no_grad():
        for name in changed:
            after[name].copy_(before[name])
    for weight in after.values():
        weight.requires_grad_(False).grad = None
    assert not changed, f"the test changed weights of the shared model: {changed[:3]}"


@pytest.fixture
def tiny(_loaded: Model):
    """Return a random tiny Stable Diffusion 1.x: 16 tokens of 32 channels, latents 4×8×8, images 16×16."""
    yield from _lend(_loaded)


@pytest.fixture
def tiny2(_loaded2: Model):
    """Return a random tiny Stable Diffusion 2.x with v-prediction."""
    yield from _lend(_loaded2)


@pytest.fixture
def tiny_xl(_loaded_xl: Model):
    """Return a random tiny SDXL: 16 tokens of 32 + 64 channels, pooled vectors of 48, images 16×16."""
    yield from _lend(_loaded_xl)


# Families whose test makes a random model of theirs, in a function make_pipe: {name: the test's file}.
FAMILIES = {
    path.stem.removeprefix("test_"): path
    for path in sorted(Path(__file__).parent.glob("models/families/test_*.py"))
    if "\ndef make_pipe(" in path.read_text(encoding="utf-8")
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    """Return (family's name) -> a diffusers folder of the random model that the family's own test makes."""

    @cache
    def made(name: str) -> Path:
        path = tmp_path_factory.mktemp("models") / name
        runpy.run_path(str(FAMILIES[name]))["make_pipe"]().save_pretrained(path)
        return path

    return made


@pytest.fixture(scope="session")
def _loaded_of(folder_of):
    return cache(lambda name: Model.load(folder_of(name)))


@pytest.fixture
def tiny_of(_loaded_of):
    """Return (family's name) -> the random model that the family's own test makes."""
    lent = {}

    def lend(name: str) -> Model:
        if name not in lent:
            lent[name] = _lend(_loaded_of(name))
            lent[name] = lent[name], next(lent[name])
        return lent[name][1]

    yield lend
    for lender, _ in lent.values():
        next(lender, None)


@pytest.fixture(params=sorted(FAMILIES))
def tiny_each(request: pytest.FixtureRequest, tiny_of) -> Model:
    """Return the random model of each family that makes one in its own test."""
    return tiny_of(request.param)


@pytest.fixture
def small_disk():
    """Return a context in which no file grows beyond a limit (100 kB), which fails as a full disk does."""

    @contextmanager
    def small(limit: int = 100_000):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return small


@pytest.fixture
def nowhere(_loaded: Model) -> Model:
    """Return the tiny model on the meta device."""
    pipe = copy.copy(_loaded.pipe)
    for part in ("unet", "vae", "text_encoder"):
        setattr(pipe, part, copy.deepcopy(getattr(pipe, part)).to("meta"))
    return Model(pipe)
