"""Rebuild mini from the artwork: `python -m efface.mini.build all --folder build/mini`. Every part resumes.

Parts, in order: data, vae, text, latents, unet, judges, export, measure. On two CPU cores: about two hours.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from efface.mini import artwork, export, judges, measure, pictures, text, unet, vae
from efface.mini.nets import Classifier, JudgeCLIP, Words
from efface.mini.nouns import NAMES

PARTS = ("data", "vae", "text", "latents", "unet", "judges", "export", "measure")
STEPS = {"vae": 2400, "text": 2600, "unet": 4300, "objects": 4000, "styles": 700, "clip": 1200}
HERE = Path(__file__).parent


def _art(folder: Path) -> Path:
    return folder / "art"


def _generator_pool(folder: Path) -> pictures.Pictures:
    return pictures.pool(_art(folder), 8, seed=21, strength=0.6, flips=False)


def data(folder: Path) -> None:
    """Fetch and rasterise the artwork."""
    artwork.fetch(_art(folder))
    artwork.drawings(_art(folder))


def train_vae(folder: Path) -> None:
    """Train the autoencoder."""
    vae.train(pictures.pool(_art(folder), 6, seed=1), folder, STEPS["vae"])


def train_text(folder: Path) -> None:
    """Train the text encoder beside an image tower."""
    text.train(pictures.pool(_art(folder), 6, seed=2), folder, STEPS["text"])


def latents(folder: Path) -> None:
    """Encode the pictures that the denoiser learns from, once."""
    torch.set_num_threads(2)
    codec = export.load_averaged(vae.autoencoder(), folder / "vae.safetensors")
    codes = unet.latents_of(codec, _generator_pool(folder))
    scale = 1 / codes[:, :4].float().std()
    save_file({"codes": codes, "scale": scale.reshape(1)}, folder / "latents.part")
    (folder / "latents.part").replace(folder / "latents.safetensors")


def _text_parts(folder: Path):
    words = text.tokenizer(folder / "tokenizer")
    return words, export.load_averaged(text.text_encoder(words), folder / "clip.safetensors", "text.")


def _unet_worker(rank: int, workers: int, meeting: str, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    stored = load_file(folder / "latents.safetensors")
    words, encoder = _text_parts(folder)
    unet.train(_generator_pool(folder), stored["codes"], float(stored["scale"]), words, encoder, folder, steps)


def train_unet(folder: Path, workers: int = 2) -> None:
    """Train the denoiser in two single-thread processes that average their weights: faster than one of two threads."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_unet_worker, (workers, f"{meeting}/store", folder, STEPS["unet"]), nprocs=workers)


def train_judges(folder: Path) -> None:
    """Train the object judge, the style judge and the judging CLIP."""
    pool = judges.learning_pool(_art(folder))
    judges.train_classifier("objects", pool, folder, STEPS["objects"])
    judges.train_classifier("styles", pool, folder, STEPS["styles"])
    judges.train_clip(pool, folder, STEPS["clip"])


def write(folder: Path) -> None:
    """Write pipeline, judges, concept table and attribution into the package."""
    words, encoder = _text_parts(folder)
    codec = export.load_averaged(vae.autoencoder(), folder / "vae.safetensors")
    denoiser = export.load_averaged(unet.denoiser(), folder / "unet.safetensors")
    scale = float(load_file(folder / "latents.safetensors")["scale"])
    pipe = export.pipeline(codec, denoiser, encoder, words, scale)
    export.save_pipeline(pipe, HERE / "weights", folder / "tokenizer")
    if (folder / "judge_clip.safetensors").exists():
        vocabulary = Words.load(folder / "judge_words.json")
        objects = export.load_averaged(Classifier(len(NAMES)), folder / "judge_objects.safetensors")
        styles = export.load_averaged(Classifier(len(pictures.STYLE_NAMES), 16), folder / "judge_styles.safetensors")
        clip = export.load_averaged(JudgeCLIP(len(vocabulary.words)), folder / "judge_clip.safetensors")
        export.save_judges(objects, styles, clip, vocabulary, HERE / "judges")
    export.save_concepts(HERE / "concepts.json")
    (HERE / "ATTRIBUTION.md").write_text(export.attribution())


def main() -> None:
    """Run one part, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--folder", type=Path, default=Path("build/mini"))
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    options = parser.parse_args()
    for name in STEPS:
        STEPS[name] = getattr(options, f"{name}_steps")
    options.folder.mkdir(parents=True, exist_ok=True)
    run = {
        "data": data, "vae": train_vae, "text": train_text, "latents": latents, "unet": train_unet,
        "judges": train_judges, "export": write, "measure": measure.report,
    }  # fmt: skip
    for part in PARTS if options.part == "all" else (options.part,):
        run[part](options.folder)


if __name__ == "__main__":
    main()
