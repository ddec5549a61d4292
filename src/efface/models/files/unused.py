"""Tensors that checkpoints hold beside the weights of a model, and why nothing is lost by leaving them out.

Every other tensor that is not a weight of the model is refused by name.
"""

import re

UNUSED = (  # (names, why)
    (r"(.*\.)?position_ids", "the numbers 0 to 76, which old versions of transformers stored"),
    (r"(.*\.)?attn_mask", "the causal mask of OpenCLIP, which is not learned"),
    (r"(.*\.)?logit_scale", "the scale of CLIP's similarities, for its own training"),
    (
        r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection(\.weight)?",
        "the projection of OpenAI's text encoder, which the denoisers do not read",
    ),
    (r"model_ema\..+", "a running average of the denoiser from its training, beside the denoiser itself"),
    (r"first_stage_model\.(loss|model_ema)\..+", "the autoencoder's loss and average, for its training"),
    (
        r"betas|lvlb_weights|logvar|scale_factor",
        "the noise schedule and the scale of latents, the same in all versions",
    ),
    (
        r"(log_|sqrt_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?",
        "the noise schedule, the same in all versions",
    ),
    (r"posterior_(variance|log_variance_clipped|mean_coef[12])", "the noise schedule, the same in all versions"),
    (r"denoiser\.(log_)?sigmas", "the noise schedule of SDXL, the same in all versions"),
    (r"v_pred|ztsnr", "marks of what the denoiser predicts and of its schedule, which are read as such"),
    (r"embedding_manager\..+", "words of textual inversion, which no prompt reads without its own tokenizer"),
    (r"global_step|epoch", "counters of the training"),
)
_NAMES = re.compile("|".join(f"(?:{names})" for names, _ in UNUSED))


def is_unused(key: str) -> bool:
    """Return whether a stored tensor is known to be no weight of the model."""
    return _NAMES.fullmatch(key) is not None
