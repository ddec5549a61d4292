"""Parts of random models in miniature: tokenizers, text encoders, autoencoders. Loaded by path (`runpy`)."""

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

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


def words(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Make a tokenizer of CLIP's kind, of 16 tokens a prompt."""
    vocabulary, merges = bpe(SENTENCE.split())
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, pad_token=pad)


def clip(kind: type, words: CLIPTokenizer, width: int, **config):
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


def t5_words(length: int = 16) -> T5Tokenizer:
    """Make a tokenizer of T5's kind: no start token, the same words, any other one is unknown."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in dict.fromkeys(SENTENCE.split()))]
    return T5Tokenizer(
        vocab=[(piece, -float(i > 2)) for i, piece in enumerate(pieces)], extra_ids=0, model_max_length=length
    )


def t5(words: T5Tokenizer, width: int) -> T5EncoderModel:
    """Make a T5 encoder of two layers."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 2}
    kind = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1}
    return T5EncoderModel(T5Config(vocab_size=len(words), **sizes, **kind)).eval()


def vae(**config) -> AutoencoderKL:
    """Make an autoencoder of images of 16 × 16 and latents of 4 × 8 × 8."""
    return AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        sample_size=16,
        **config,
    ).eval()
