"""Rebuild mini from the artwork: `python -m experiments.mini all --folder build/mini`. Every part resumes.

Parts, in order: data, scenes, vae, text, latents, unet, judges, export, measure. On two CPU cores without bfloat16
about ten hours. What is made replaces what ships in the package, or goes to another folder with --into.
"""

import argparse
from pathlib import Path

import torch

import efface.mini
from experiments.mini.parts import run

PARTS = ("data", "scenes", "vae", "text", "latents", "unet", "judges", "export", "measure")
STEPS = {"vae": 3600, "text": 1700, "unet": 10_000, "scenes-judge": 3000, "clip": 1500}
PACKAGE = Path(efface.mini.__file__).parent


def main(args: list[str] | None = None) -> None:
    """Run one part, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m experiments.mini", description=__doc__)
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--folder", type=Path, default=Path("build/mini"), help="artwork and checkpoints")
    parser.add_argument("--into", type=Path, default=PACKAGE, help="what is made; by default the package's own folder")
    parser.add_argument("--threads", type=int, default=2, help="of the parts that train in one process")
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps, metavar="N", help=f"default {steps}")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    steps = {name: getattr(options, f"{name.replace('-', '_')}_steps") for name in STEPS}
    for part in PARTS if options.part == "all" else (options.part,):
        run(part, options.folder, options.into, steps)


if __name__ == "__main__":
    main()
