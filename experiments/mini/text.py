"""The tokenizer and text encoder of mini, trained against an image tower and to keep words apart, then frozen.

A contrastive loss alone knows a caption only by the pictures it goes with: a name and its keywords get one vector.
So the text tower has a second task, to say which words the caption held, read from its end vector.
"""

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
from experiments.mini.captions import captions, vocabulary
from experiments.mini.scenes import Scenes

LENGTH, WIDTH, VOCABULARY = 24, 128, 1600
# the attention whose backward pass is the faster
ATTENTION: Any = {"attn_implementation": "eager" if network.bfloat16_is_fast() else "sdpa"}
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = 1 / 20  # weight of the words' loss, summed over the vocabulary


def train_tokenizer(folder: Path, texts: list[str]) -> CLIPTokenizer:
    """Learn CLIP-style byte-pair merges on the captions and save `vocab.json` and `merges.txt` into `folder`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=list(letters), show_progress=False
    )
    bpe.train_from_iterator([*texts, *vocabulary(), " ".join(letters)] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    ids = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
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
            bos_token_id=ids[START], pad_token_id=ids[END], **ATTENTION,
        )
    )  # fmt: skip


class Towers(nn.Module):
    """Text encoder and image tower with a shared space, and a layer that reads a caption's words."""

    def __init__(self, words: CLIPTokenizer, vocabulary: int):
        super().__init__()
        self.text = text_encoder(words)
        self.image = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, image_size=64,
                patch_size=8, projection_dim=WIDTH, **ATTENTION,
            )
        )  # fmt: skip
        self.to_text = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_image = nn.Linear(WIDTH, WIDTH, bias=False)
        self.read = nn.Linear(WIDTH, vocabulary)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(
        self, ids: Int[Tensor, "b len"], pixels: Float[Tensor, "b 3 64 64"]
    ) -> tuple[Float[Tensor, "b b"], Float[Tensor, "b vocabulary"]]:
        """Return logits of every caption for every picture, and of every word for every caption."""
        end = self.text(input_ids=ids).pooler_output
        text = F.normalize(self.to_text(end), dim=-1)
        image = F.normalize(self.to_image(self.image(pixel_values=pixels).pooler_output), dim=-1)
        return self.scale.exp().clamp(max=50) * text.float() @ image.float().T, self.read(end)


def held(texts: list[str], known: dict[str, int]) -> Float[Tensor, "n vocabulary"]:
    """Say which words each caption holds: 1 or 0."""
    found = torch.zeros(len(texts), len(known))
    for row, text in enumerate(texts):
        found[row, [known[word] for word in text.lower().split()]] = 1
    return found


def train(scenes: Scenes, folder: Path, steps: int, batch: int = 128, lr: float = 7e-4) -> State:
    """Train both towers, one picture to one caption; resumes from `folder`/clip.safetensors."""
    g = torch.Generator().manual_seed(3)
    texts = captions(scenes.rows(torch.arange(min(20_000, len(scenes)))), g, empty=0.0)
    words = train_tokenizer(folder / "tokenizer", texts)
    known = {word: i for i, word in enumerate(vocabulary())}
    torch.manual_seed(1)
    towers = Towers(words, len(known))

    def loss(g: torch.Generator, _: int) -> Tensor:
        chosen = scenes.rows(torch.randint(len(scenes), (batch,), generator=g))
        texts = captions(chosen, g, empty=0.0)
        ids = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with network.bfloat16():
            logits, read = towers(ids, chosen.pixels.float() / 127.5 - 1)
        own = torch.arange(batch)
        paired = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        reading = F.binary_cross_entropy_with_logits(read.float(), held(texts, known), reduction="none")
        return paired + WORDS * reading.sum(1).mean()

    return network.train(towers, folder / "clip.safetensors", loss, steps, lr=lr, weight_decay=0.05)
