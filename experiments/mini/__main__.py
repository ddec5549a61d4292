"""Rebuild mini from the artwork: `python -m experiments.mini all --folder build/mini`. Every part resumes.

Parts, in order: data, vae, text, latents, unet, judges, export, measure. On two CPU cores: about two hours. What is
made replaces what ships in the package, or goes to another folder with --into.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

import efface.mini
from efface.mini.nets import Classifier, JudgeCLIP, Words
from efface.util.files import save_safetensors
from experiments.mini import artwork, export, judges, measure, pictures, text, unet, vae
from experiments.mini.nouns import NAMES
from experiments.network import load_averaged

PARTS = ("data", "vae", "text", "latents", "unet", "judges", "export", "measure")
STEPS = {"vae": 2400, "text": 2600, "unet": 4300, "objects": 4000, "styles": 700, "clip": 1200}
PACKAGE = Path(efface.mini.__file__).parent


def data(folder: Path) -> None:
    """Fetch and rasterise the artwork."""
    artwork.fetch(folder / "art")
    artwork.drawings(folder / "art")


def train_vae(folder: Path, steps: int) -> None:
    """Train the autoencoder."""
    vae.train(pictures.pool(folder / "art", 6, seed=1), folder, steps)


def train_text(folder: Path, steps: int) -> None:
    """Train the text encoder beside an image tower."""
    text.train(pictures.pool(folder / "art", 6, seed=2), folder, steps)


def _pool_of_unet(folder: Path) -> pictures.Pictures:
    return pictures.pool(folder / "art", 8, seed=21, strength=0.6, flips=False)


def latents(folder: Path) -> None:
    """Encode the pictures that the denoiser learns from, once."""
    torch.set_num_threads(2)
    codec = load_averaged(vae.autoencoder(), folder / "vae.safetensors")
    codes = unet.latents_of(codec, _pool_of_unet(folder))
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
    unet.train(_pool_of_unet(folder), stored["codes"], float(stored["scale"]), words, encoder, folder, steps)


def train_unet(folder: Path, steps: int, workers: int = 2) -> None:
    """Train the denoiser in two single-thread processes that average their weights: faster than one of two threads."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_unet_worker, (workers, f"{meeting}/store", folder, steps), nprocs=workers)


def train_judges(folder: Path, steps: dict[str, int]) -> None:
    """Train the object judge, the style judge and the judging CLIP."""
    pool = judges.learning_pool(folder / "art")
    judges.train_classifier("objects", pool, folder, steps["objects"])
    judges.train_classifier("styles", pool, folder, steps["styles"])
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
    objects = load_averaged(Classifier(len(NAMES)), folder / "judge_objects.safetensors")
    styles = load_averaged(Classifier(len(pictures.STYLE_NAMES), 16), folder / "judge_styles.safetensors")
    clip = load_averaged(JudgeCLIP(len(vocabulary.words)), folder / "judge_clip.safetensors")
    export.save_judges(objects, styles, clip, vocabulary, into / "judges")
    export.save_concepts(into / "concepts.json")
    (into / "ATTRIBUTION.md").write_text(export.attribution(), encoding="utf-8")


def run(part: str, folder: Path, into: Path, steps: dict[str, int]) -> None:
    """Run one part."""
    match part:
        case "data":
            data(folder)
        case "vae":
            train_vae(folder, steps["vae"])
        case "text":
            train_text(folder, steps["text"])
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


def main(args: list[str] | None = None) -> None:
    """Run one part, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m experiments.mini", description=__doc__)
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--folder", type=Path, default=Path("build/mini"), help="artwork and checkpoints")
    parser.add_argument("--into", type=Path, default=PACKAGE, help="what is made; by default the package's own folder")
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps, metavar="N", help=f"default {steps}")
    options = parser.parse_args(args)
    options.folder.mkdir(parents=True, exist_ok=True)
    steps = {name: getattr(options, f"{name}_steps") for name in STEPS}
    for part in PARTS if options.part == "all" else (options.part,):
        run(part, options.folder, options.into, steps)


if __name__ == "__main__":
    main()
