"""Pictures to learn from: the 10,000 MNIST digits beside this file, or any data set in MNIST's own file format."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from efface.digits.classes import classes
from efface.errors import BadFile, BadInput

DIGITS = Path(__file__).parent / "mnist10k.npz"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
HELD_OUT = 0.1  # share that no training sees


@dataclass(frozen=True, eq=False)
class Pictures:
    """Hold pictures of one data set with their classes' numbers, 0 to 9."""

    pixels: UInt8[Tensor, "n 28 28"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Int[Tensor, " k"]) -> "Pictures":
        return Pictures(self.pixels[rows], self.labels[rows])

    def latents(self, rows: Int[Tensor, " k"]) -> Float[Tensor, "k 1 28 28"]:
        """Return some pictures as the networks read them: one channel in [-1, 1]."""
        return self.pixels[rows, None].float() / 127.5 - 1


def load(dataset: str, folder: Path | None = None) -> Pictures:
    """Load a data set's training pictures.

    folder: where its files are, train-images-idx3-ubyte and train-labels-idx1-ubyte, gzipped or not; by default the
    digits beside this file, and for "fashion" the folder of Debian's package. Raises `BadFile`, `UnknownName`.
    """
    classes(dataset)  # refuses unknown ones
    if folder is None and dataset == "mnist":
        with np.load(DIGITS, allow_pickle=False) as file:
            return Pictures(torch.from_numpy(file["pixels"]), torch.from_numpy(file["labels"]).long())
    folder = folder or FASHION
    images, labels = (idx(_find(folder, f"train-{what}-ubyte")) for what in ("images-idx3", "labels-idx1"))
    if images.shape != (len(labels), 28, 28):
        raise BadFile(f"{folder}: images of shape {list(images.shape)} do not go with {len(labels)} labels")
    return Pictures(torch.from_numpy(images), torch.from_numpy(labels).long())


def split(pictures: Pictures, seed: int = 0) -> tuple[Pictures, Pictures]:
    """Return (to learn from, held out), shuffled by a seed."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    count = round(len(pictures) * HELD_OUT)
    return pictures[order[count:]], pictures[order[:count]]


def idx(path: Path) -> np.ndarray:
    """Read a file in MNIST's format: magic 0x0000 08 rank, sizes as big-endian 32 bits, bytes. Raises `BadFile`."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        sizes = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise BadFile(f"{path} cannot be read as an IDX file: {error}") from error
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if zero or kind != 8 or body.size != int(np.prod(sizes)):
        raise BadFile(f"{path} is not an IDX file of bytes, or is cut off")
    return body.reshape(sizes).copy()


def fetch_mnist(folder: Path) -> Path:
    """Download all of MNIST through torchvision; returns the folder to give to `load`. Raises `BadInput`."""
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise BadInput('torchvision is not installed: pip install "efface[eval]"') from error
    try:
        MNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"MNIST could not be downloaded: {error}") from error
    return folder / "MNIST" / "raw"


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise BadFile(
        f"{folder} holds no {name}[.gz]: for Fashion-MNIST install Debian's dataset-fashion-mnist, or name its folder"
    )
