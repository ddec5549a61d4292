"""The parts of mini's making, each of which resumes; not in __main__, which spawned processes cannot import."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from efface.mini.nets import JudgeCLIP, SceneNet, Words
from efface.util.files import save_safetensors
from experiments.mini import artwork, export, judges, measure, scenes, text, unet, vae
from experiments.mini.grounds import GROUNDS
from experiments.mini.nouns import NAMES
from experiments.network import load_averaged


def data(folder: Path) -> None:
    """Fetch and rasterise the artwork."""
    artwork.fetch(folder / "art")
    artwork.drawings(folder / "art")


def painted(folder: Path) -> scenes.Scenes:
    """Return the scenes that autoencoder, text encoder and denoiser learn from, painted once."""
    return scenes.pool(folder / "art", scenes.LEARNED, 1, store=folder / "scenes")


def latents(folder: Path) -> None:
    """Encode the scenes, once."""
    codec = load_averaged(vae.autoencoder(), folder / "vae.safetensors")
    codes = unet.latents_of(codec, painted(folder))
    scale = 1 / codes[:, :4].float().std()
    save_safetensors(folder / "latents.safetensors", {"codes": codes, "scale": scale.reshape(1)})


def _text_parts(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    words = text.tokenizer(folder / "tokenizer")
    return words, load_averaged(text.text_encoder(words), folder / "clip.safetensors", "text.")


def _unet_worker(rank: int, workers: int, meeting: str, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    stored = load_file(folder / "latents.safetensors")
    words, encoder = _text_parts(folder)
    unet.train(painted(folder), stored["codes"], float(stored["scale"]), words, encoder, folder, steps)


def train_unet(folder: Path, steps: int, workers: int = 2) -> None:
    """Train the denoiser in two single-thread processes that average their weights: faster than one of two threads."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_unet_worker, (workers, f"{meeting}/store", folder, steps), nprocs=workers)


def train_judges(folder: Path, steps: dict[str, int]) -> None:
    """Train the judge of scenes and the judging CLIP."""
    pool = judges.learning_pool(folder)
    judges.train_scenes(pool, folder, steps["scenes-judge"])
    judges.train_clip(pool, folder, steps["clip"])


def write(folder: Path, into: Path) -> None:
    """Write pipeline, judges, concept table and attribution to where they ship."""
    into.mkdir(parents=True, exist_ok=True)
    words, encoder = _text_parts(folder)
    codec = load_averaged(vae.autoencoder(), folder / "vae.safetensors")
    denoiser = load_averaged(unet.denoiser(), folder / "unet.safetensors")
    scale = float(load_file(folder / "latents.safetensors")["scale"])
    pipe = export.pipeline(codec, denoiser, encoder, words, scale)
    export.save_pipeline(pipe, into / "weights", folder / "tokenizer")
    vocabulary = Words.load(folder / "judge_words.json")
    seen = SceneNet(len(NAMES), len(scenes.STYLE_NAMES), len(GROUNDS))
    seen = load_averaged(seen, folder / "judge_scenes.safetensors")
    clip = load_averaged(JudgeCLIP(len(vocabulary.words)), folder / "judge_clip.safetensors")
    export.save_judges(seen, clip, vocabulary, into / "judges")
    export.save_concepts(into / "concepts.json")
    (into / "ATTRIBUTION.md").write_text(export.attribution(), encoding="utf-8")


def run(part: str, folder: Path, into: Path, steps: dict[str, int]) -> None:
    """Run one part."""
    match part:
        case "data":
            data(folder)
        case "scenes":
            painted(folder)
            judges.learning_pool(folder)
        case "vae":
            vae.train(painted(folder), folder, steps["vae"])
        case "text":
            text.train(painted(folder), folder, steps["text"])
        case "latents":
            latents(folder)
        case "unet":
            train_unet(folder, steps["unet"])
        case "judges":
            train_judges(folder, steps)
        case "export":
            write(folder, into)
        case "measure":
            measure.report(folder, into)
