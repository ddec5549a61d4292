"""The tokenizer and text encoder of mini, trained contrastively against an image tower and then frozen."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from efface.training.checkpoints import State
from experiments import network
from experiments.mini.captions import Caption, caption
from experiments.mini.nouns import NOUNS
from experiments.mini.pictures import STYLE_NAMES, Pictures

LENGTH, WIDTH, VOCABULARY = 24, 128, 1600
EAGER: Any = {"attn_implementation": "eager"}  # its backward is three times as fast on CPUs
START, END = "<|startoftext|>", "<|endoftext|>"
FAMILIES = tuple(dict.fromkeys(noun.family for noun in NOUNS))


def corpus(count: int = 60_000) -> list[str]:
    """Captions of random (object, style) pairs, to learn word pieces from."""
    g = torch.Generator().manual_seed(3)
    objects = torch.randint(len(NOUNS), (count,), generator=g).tolist()
    styles = torch.randint(len(STYLE_NAMES), (count,), generator=g).tolist()
    return [caption(o, s, g).text for o, s in zip(objects, styles, strict=True)]


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn CLIP-style byte-pair merges on the captions and save `vocab.json` and `merges.txt` into `folder`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=list(letters), show_progress=False
    )
    bpe.train_from_iterator([*corpus(), " ".join(letters)] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return tokenizer(folder)


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Load mini's tokenizer from `vocab.json` and `merges.txt`."""
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH,
        bos_token=START, eos_token=END, unk_token=END, pad_token=END,
    )  # fmt: skip


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained `CLIPTextModel` of mini's shape."""
    ids: Any = words.get_vocab()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH, eos_token_id=ids[END],
            bos_token_id=ids[START], pad_token_id=ids[END], **EAGER,
        )
    )  # fmt: skip


class Towers(nn.Module):
    """Text encoder and image tower with a shared 128-wide space."""

    def __init__(self, words: CLIPTokenizer):
        super().__init__()
        self.text = text_encoder(words)
        self.image = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4, image_size=64,
                patch_size=8, projection_dim=WIDTH, **EAGER,
            )
        )  # fmt: skip
        self.to_text = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_image = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, ids: Int[Tensor, "b len"], pixels: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "b n"]:
        text = F.normalize(self.to_text(self.text(input_ids=ids).pooler_output), dim=-1)
        image = F.normalize(self.to_image(self.image(pixel_values=pixels).pooler_output), dim=-1)
        return self.scale.exp().clamp(max=50) * text.float() @ image.float().T


def matches(captions: list[Caption], objects: Tensor, styles: Tensor) -> Tensor:
    """Say which pictures each caption fits, as rows that sum to one: several pictures may fit one caption."""
    family = torch.tensor([FAMILIES.index(NOUNS[o].family) for o in objects.tolist()])
    want = lambda key: torch.tensor([key(c) for c in captions])[:, None]  # noqa: E731
    obj, style = want(lambda c: c.object), want(lambda c: c.style)
    kin = want(lambda c: FAMILIES.index(c.family) if c.family else -1)
    fits = ((obj == -1) | (obj == objects)) & ((style == -1) | (style == styles)) & ((kin == -1) | (kin == family))
    return fits.float() / fits.float().sum(1, keepdim=True)


def train(pictures: Pictures, folder: Path, steps: int, batch: int = 128, lr: float = 7e-4) -> State:
    """Train both towers on random pictures and captions; resumes from `folder`/clip.safetensors."""
    words = train_tokenizer(folder / "tokenizer")
    torch.manual_seed(1)
    towers = Towers(words)

    def loss(g: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (batch,), generator=g)
        objects, styles = pictures.objects[rows], pictures.styles[rows]
        asked = [caption(o, s, g, empty=0) for o, s in zip(objects.tolist(), styles.tolist(), strict=True)]
        ids = words([c.text for c in asked], padding="max_length", truncation=True, return_tensors="pt").input_ids
        pixels = pictures.pixels[rows].float() / 127.5 - 1
        with network.bfloat16():
            logits = towers(ids, pixels)
        target = matches(asked, objects, styles)
        back = target.T / target.T.sum(1, keepdim=True).clamp(min=1e-6)
        return (F.cross_entropy(logits.float(), target) + F.cross_entropy(logits.float().T, back)) / 2

    return network.train(towers, folder / "clip.safetensors", loss, steps, lr=lr, weight_decay=0.05)
