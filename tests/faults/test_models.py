"""Model folders and files that are incomplete or odd: each is refused in one line, loaded whole and streamed."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.models.files import stream
from efface.models.model import Model
from efface.util.files import load_safetensors, save_safetensors

Change = Callable[[Path], Any]
UNET, VAE, TEXT = "unet", "vae", "text_encoder"
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


class TooSlow(BaseException):
    """Signal that a call takes too long; no handler of exceptions takes it for an answer."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail when the block takes longer."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"not answered within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def weights(part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def apply(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        tensors, meta = load_safetensors(path)
        save_safetensors(path, change(tensors), meta)

    return apply


def without(part: str, *ends: str) -> Change:
    return weights(part, lambda t: {k: v for k, v in t.items() if not k.endswith(ends)})


def having(part: str, end: str, make: Callable[[Tensor], Tensor]) -> Change:
    return weights(part, lambda t: {k: make(v) if k.endswith(end) else v for k, v in t.items()})


def one(value: float) -> Callable[[Tensor], Tensor]:
    def make(old: Tensor) -> Tensor:
        new = old.clone()
        new.view(-1)[-1] = value
        return new

    return make


def config(file: str, **changes: Any) -> Change:
    """Change entries of a JSON file; ... takes one away."""

    def apply(folder: Path) -> None:
        found = {**json.loads((folder / file).read_text()), **changes}
        (folder / file).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return apply


def text(file: str, content: str | Callable[[str], str]) -> Change:
    def apply(folder: Path) -> None:
        old = (folder / file).read_text() if (folder / file).exists() else ""
        (folder / file).write_text(content if isinstance(content, str) else content(old))

    return apply


def gone(*files: str) -> Change:
    def apply(folder: Path) -> None:
        for file in files:
            shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()

    return apply


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def shards(folder: Path) -> None:
    for number in ("00001", "00002"):
        shutil.copy(
            folder / VAE / "diffusion_pytorch_model.safetensors", folder / VAE / f"x-{number}-of-00002.safetensors"
        )
    (folder / VAE / "diffusion_pytorch_model.safetensors").unlink()


DEEP = "[" * 100_000 + "]" * 100_000
NESTED = '{"a":' * 450 + "1" + "}" * 450
INDEX, SIZES, WORDS = "model_index.json", "unet/config.json", "tokenizer"
NINE = both(config(SIZES, in_channels=9), having(UNET, "conv_in.weight", lambda w: w.repeat(1, 3, 1, 1)[:, :9]))
WEIGHTS: dict[str, tuple[Change, str]] = {
    "text encoder lacks one": (without(TEXT, "final_layer_norm.bias"), r"it has no text_encoder\..*final_layer_norm"),
    "text encoder lacks many": (without(TEXT, "fc1.weight", "fc1.bias", "fc2.bias"), r"fc\d.* \(and 3 more\)"),
    "denoiser lacks one": (without(UNET, "mid_block.resnets.0.conv1.bias"), r"it has no unet\.mid_block"),
    "denoiser lacks a key matrix": (without(UNET, ATTENTION), "attn2.to_k"),
    "autoencoder lacks one": (without(VAE, "post_quant_conv.bias"), "it has no vae.post_quant_conv.bias"),
    "autoencoder lacks its decoder": (
        weights(VAE, lambda t: {k: v for k, v in t.items() if "decoder" not in k}),
        r"it has no vae\.decoder.* more\)",
    ),
    "text encoder has another": (weights(TEXT, lambda t: t | {"x.y": torch.ones(2)}), "has no weight text_encoder.x.y"),
    "denoiser has another": (weights(UNET, lambda t: t | {"x.y": torch.ones(2)}), "has no weight unet.x.y"),
    "autoencoder has another": (weights(VAE, lambda t: t | {"x.y": torch.ones(2)}), "has no weight vae.x.y"),
    "text encoder of another shape": (having(TEXT, "fc1.bias", lambda w: w[:-1]), "inconsistent: text_encoder"),
    "denoiser of another shape": (having(UNET, "conv_out.bias", lambda w: w[:2]), r"unet.conv_out.bias is \[2\]"),
    "autoencoder of another shape": (having(VAE, "encoder.conv_in.bias", lambda w: w[None]), r"is \[1, 32\], expected"),
    "no file of the text encoder": (gone("text_encoder/model.safetensors"), "no .safetensors file"),
    "no file of the autoencoder": (gone("vae/diffusion_pytorch_model.safetensors"), "no .safetensors file"),
    "no folder of the autoencoder": (gone("vae"), "configuration of its vae"),
    "text encoder not a number": (having(TEXT, "fc1.bias", one(float("nan"))), r"not finite .*text_encoder.*fc1\.bias"),
    "text encoder infinite": (having(TEXT, "fc1.bias", one(float("-inf"))), r"not finite .*text_encoder.*fc1\.bias"),
    "key matrix not a number": (having(UNET, ATTENTION, one(float("nan"))), r"not finite .*attn2\.to_k"),
    "weights of eight bits": (having(UNET, "conv_in.weight", lambda w: w.to(torch.int8)), "quantised: unet.conv_in"),
    "packed weights": (
        having(UNET, ATTENTION, lambda w: torch.zeros(w.numel() // 2, 1, dtype=torch.uint8)),
        "quantised: unet.*attn2",
    ),
    "quantised denoiser": (config(SIZES, quantization_config={"load_in_4bit": True}), "quantised: its unet"),
    "quantised text encoder": (
        config("text_encoder/config.json", quantization_config={"quant_method": "gptq"}),
        "quantised: its text_encoder",
    ),
    "one weight in two files": (shards, "twice: in x-00001"),
}
VALUES_ONLY = {  # values of weights that are not read when streaming
    "denoiser not a number": (having(UNET, "conv_in.weight", one(float("nan"))), r"not finite .*unet\.conv_in\.weight"),
    "autoencoder infinite": (having(VAE, "quant_conv.bias", one(float("inf"))), r"not finite .*vae\.quant_conv\.bias"),
}
CONFIGS: dict[str, tuple[Change, str]] = {
    **{
        f"sample size {size!r}": (config(SIZES, sample_size=size), "sample_size")
        for size in (-8, 0, "8", None, 8.5, True, [8], [8, -8], {}, 10**9, ...)
    },
    "nine input channels": (NINE, "reads 9 channels and writes 4"),
    "no configuration": (gone("unet/config.json"), "no configuration of its unet"),
    "a list": (text(SIZES, "[]"), "not valid JSON of an object"),
    "nothing": (text(SIZES, ""), "not valid JSON"),
    "too deep": (text(SIZES, DEEP), "too deep"),
    "a little too deep": (text(SIZES, NESTED), "too deep"),
    "a key twice": (text(SIZES, lambda old: old[:-2] + ',"sample_size": 16}'), "twice"),
    "no text": (text(SIZES, '{"_class_name": "\\ud800"}'), "not valid JSON"),
    "a million layers": (config(SIZES, layers_per_block=10**6), "layers_per_block"),
    "layers in text": (config(SIZES, layers_per_block="one"), "layers_per_block"),
    "channels below 0": (config(SIZES, block_out_channels=[-32, 64]), "block_out_channels"),
    "a hundred levels": (config(SIZES, block_out_channels=[32] * 100), "block_out_channels"),
    "other blocks": (config(SIZES, down_block_types=["NoBlock", "NoBlock"]), "configuration of its unet"),
    "a billion layers of text": (config("text_encoder/config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "a billion positions": (config("text_encoder/config.json", max_position_embeddings=10**10), "max_position"),
    "heads that do not divide": (config("text_encoder/config.json", num_attention_heads=5), "its text_encoder"),
    "an odd autoencoder": (config("vae/config.json", latent_channels=None, block_out_channels="x"), "its vae"),
}
INDEXES: dict[str, tuple[Change, str]] = {
    "another library": (config(INDEX, unet=["os", "system"]), "its unet is"),
    "a further part of another library": (config(INDEX, more=["antigravity", "fly"]), "its more is"),
    "half an entry": (config(INDEX, unet=["diffusers"]), "its unet is"),
    "a number for a class": (config(INDEX, unet=["diffusers", 5]), "its unet is"),
    "an unknown class": (config(INDEX, unet=["diffusers", "NoSuchModel"]), "NoSuchModel"),
    "a path for a part": (config(INDEX, **{"../unet": ["diffusers", "UNet2DConditionModel"]}), "no name of a part"),
    "no denoiser": (config(INDEX, unet=...), "."),
    "null for a part": (config(INDEX, unet=None), "."),
    "a part left out": (config(INDEX, vae=[None, None]), "."),
    "no tokenizer": (config(INDEX, tokenizer=...), "."),
    "no scheduler": (config(INDEX, scheduler=...), "."),
    "no class": (config(INDEX, _class_name=...), "no class"),
    "a number for the class": (config(INDEX, _class_name=5), "no class"),
    "code for the class": (config(INDEX, _class_name=["pipeline", "Own"]), "no class"),
    "an unknown pipeline": (config(INDEX, _class_name="NoSuchPipeline"), "."),
    "a list": (text(INDEX, "[]"), "not valid JSON"),
    "too deep": (text(INDEX, DEEP), "too deep"),
}


def pair(folder: Path) -> None:
    """Store the vocabulary in two files, as most models do."""
    path = folder / WORDS / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / WORDS / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / WORDS / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    path.unlink()


def vocabulary(change: Callable[[dict[str, int]], Any]) -> Change:
    return both(pair, text(f"{WORDS}/vocab.json", lambda t: json.dumps(change(json.loads(t)))))


def merges(change: Callable[[str], str]) -> Change:
    return both(pair, text(f"{WORDS}/merges.txt", change))


def whole(**changes: Any) -> Change:
    """Change the model in tokenizer.json."""
    path = f"{WORDS}/tokenizer.json"
    return text(path, lambda t: json.dumps({**json.loads(t), "model": {**json.loads(t)["model"], **changes}}))


WORDS_CONFIG = f"{WORDS}/tokenizer_config.json"
WORD_FILES: dict[str, tuple[Change, str]] = {
    "no merges": (both(pair, gone(f"{WORDS}/merges.txt")), "neither vocab.json with merges.txt"),
    "no vocabulary": (both(pair, gone(f"{WORDS}/vocab.json")), "neither vocab.json with merges.txt"),
    "neither": (gone(f"{WORDS}/tokenizer.json"), "neither vocab.json with merges.txt"),
    "empty merges": (merges(lambda t: ""), "incomplete: it has 0 merges for"),
    "half the merges": (merges(lambda t: "\n".join(t.split("\n")[:90])), "incomplete: it has 89 merges for"),
    "cut merges": (merges(lambda t: t[:507]), "tokenizer in"),
    "empty vocabulary": (vocabulary(lambda words: {}), "incomplete: it has no vocabulary"),
    "a list": (vocabulary(list), "tokenizer in"),
    "half the vocabulary": (vocabulary(lambda words: dict(list(words.items())[:300])), "tokenizer in"),
    "numbers in text": (vocabulary(lambda words: dict.fromkeys(words, "1")), "no number of its own"),
    "one number for all": (vocabulary(lambda words: dict.fromkeys(words, 1)), "no number of its own"),
    "whole without merges": (whole(merges=[]), "incomplete: it has 0 merges for"),
    "whole without vocabulary": (whole(vocab={}), "incomplete: it has no vocabulary"),
    "whole of another kind": (whole(type="WordPiece"), "tokenizer in"),
    "a deep configuration": (text(WORDS_CONFIG, DEEP), "tokenizer_config.json is nested too deep"),
    "a length in text": (config(WORDS_CONFIG, model_max_length="x"), "tokenizer in"),
    "a length below 0": (config(WORDS_CONFIG, model_max_length=-3), "up to -3"),
    "no length": (config(WORDS_CONFIG, model_max_length=...), "incomplete: its prompts have"),
    "more words than embeddings": (config("text_encoder/config.json", vocab_size=20), "tokens, its text encoder reads"),
    "no folder": (gone(WORDS), "is no tokenizer folder"),
}
SCHEDULES: dict[str, tuple[Change, str]] = {
    "none": (gone("scheduler/scheduler_config.json"), "."),
    "a list": (text("scheduler/scheduler_config.json", "[]"), "."),
    "too deep": (text("scheduler/scheduler_config.json", DEEP), "."),
    "text for a number": (config("scheduler/scheduler_config.json", beta_start="x"), "."),
    "steps below 0": (config("scheduler/scheduler_config.json", num_train_timesteps=-5), "num_train_timesteps"),
    "a trillion steps": (config("scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps"),
}
TABLE = {
    f"{group}: {name}": row
    for group, rows in (
        ("weights", WEIGHTS),
        ("configuration", CONFIGS),
        ("index", INDEXES),
        ("tokenizer", WORD_FILES),
        ("schedule", SCHEDULES),
    )
    for name, row in rows.items()
}


def refused(call: Callable[[], Any], says: str) -> None:
    with within(30), pytest.raises(EffaceError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def changed(folder: Path, tmp_path: Path, change: Change) -> Path:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    change(own)
    return own


@pytest.mark.filterwarnings("default")  # what other libraries warn of is not counted here
@pytest.mark.parametrize("way", [Model.load, stream.open_model], ids=["loaded", "streamed"])
@pytest.mark.parametrize("row", TABLE)
def test_an_odd_folder_is_refused(row: str, way: Callable[[Path], Any], folder: Path, tmp_path: Path):
    change, says = TABLE[row]
    refused(lambda: way(changed(folder, tmp_path, change)), says)


@pytest.mark.parametrize("row", VALUES_ONLY)
def test_weights_that_are_not_finite_are_refused(row: str, folder: Path, tmp_path: Path):
    change, says = VALUES_ONLY[row]
    refused(lambda: Model.load(changed(folder, tmp_path, change)), says)


def test_weights_too_large_for_the_type_are_refused(folder: Path, tmp_path: Path):
    own = changed(folder, tmp_path, having(UNET, "conv_in.weight", one(1e6)))
    Model.load(own)
    refused(lambda: Model.load(own, dtype=torch.float16), r"in torch\.float16: unet\.conv_in\.weight$")


FILES: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor of no part": ({"control_model.x.weight": torch.ones(2)}, "has a weight control_model.x.weight"),
    "adapters": ({f"lora_unet_{i}.alpha": torch.ones(1) for i in range(5)}, r"lora_unet_2.alpha \(and 2 more\)"),
    "not a number": ({"first_stage_model.quant_conv.bias": torch.full((8,), float("nan"))}, "not finite"),
    "eight bits": ({"model.diffusion_model.out.2.bias": torch.ones(4, dtype=torch.int8)}, "quantised"),
}


@pytest.mark.parametrize("row", FILES)
def test_an_odd_single_file_is_refused(row: str, single_file: Path, folder: Path, tmp_path: Path):
    changes, says = FILES[row]
    tensors, meta = load_safetensors(single_file)
    save_safetensors(tmp_path / "odd.safetensors", tensors | changes, meta)
    refused(lambda: Model.load(tmp_path / "odd.safetensors", tokenizer=folder / "tokenizer"), says)


BESIDE = {  # tensors of real checkpoints beside their weights
    "single_file": [
        "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "logvar", "lvlb_weights",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
        "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod", "scale_factor", "model_ema.decay", "model_ema.num_updates",
        "model_ema.diffusion_modelinput_blocks00weight", "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids", "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_projection.weight", "embedding_manager.x", "global_step",
    ],
    "single_file2": [
        "cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection",
        "cond_stage_model.model.transformer.resblocks.2.ln_1.bias", "cond_stage_model.model.attn_mask", "betas",
    ],
    "single_file_xl": [
        "denoiser.sigmas", "denoiser.log_sigmas", "conditioner.embedders.1.model.logit_scale", "ztsnr",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.logit_scale",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_what_real_checkpoints_hold_beside_their_weights_is_read_over(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    path, folder = request.getfixturevalue(kind), request.getfixturevalue(kind.replace("single_file", "folder"))
    tensors, meta = load_safetensors(path)
    more = {name: torch.full((3,), float("nan")) for name in BESIDE[kind]}
    save_safetensors(tmp_path / "real.safetensors", more | tensors, meta)
    found = Model.load(tmp_path / "real.safetensors", tokenizer=folder / "tokenizer").weights("")
    expected = Model.load(path, tokenizer=folder / "tokenizer").weights("")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
