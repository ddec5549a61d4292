"""Random Stable Diffusions and SDXL in miniature, made for the test session; they test code, not image quality."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported; set later it is ignored
os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import resource
import runpy
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from efface.models.model import Model
from efface.util.files import save_safetensors

# The same examples on every run and machine; HYPOTHESIS_PROFILE=search looks for new ones, and for more of them.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=40)
settings.register_profile("search", derandomize=False, deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

SENTENCE = (
    "a an the of in on by and picture photo art painting style church house castle guitar dog wolf fox cat car taxi "
    "bus truck neon blueprint sketch pixel beer wine dagger bomb building religion cross red blue robot moon "
    "drawing image photograph rendering view scene with tree"
)


def bpe(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Build a byte-level BPE vocabulary whose merges spell out the given words."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    return vocabulary, merges


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _words(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    vocabulary, merges = bpe(SENTENCE.split())
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, pad_token=pad)


def _text(kind: type, words: CLIPTokenizer, width: int, **config):
    """Make a text encoder of two layers, with its token embeddings scaled up.

    At the usual initialisation the text barely changes the image.
    """
    plain = {"hidden_act": "quick_gelu", "num_attention_heads": 1, "projection_dim": width, **config}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    text = kind(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **sizes, **ids, **plain))
    with torch.no_grad():
        text.get_input_embeddings().weight.mul_(50)
    return text.eval()


def _vae(**config) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        sample_size=16,
        **config,
    ).eval()


def make_pipe(version: int = 1) -> StableDiffusionPipeline:
    """Make a random pipeline with the layout of Stable Diffusion 1.x, or 2.x (v-prediction, linear projections)."""
    torch.manual_seed(version)  # of this process's own test models; the library itself never does this
    words = _words()
    text = _text(CLIPTextModel, words, 32, hidden_act="gelu" if version == 2 else "quick_gelu")
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
    vae = _vae()
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
    first, second = _words(), _words("!")
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
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=_text(CLIPTextModel, first, 32),
        text_encoder_2=_text(CLIPTextModelWithProjection, second, 64, hidden_act="gelu", projection_dim=48),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
