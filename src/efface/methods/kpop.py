"""KPOP: transfer a concept into a learnable prompt, and erase it where that prompt is absent.

Bui et al. 2024, Removing Undesirable Concepts in Text-to-Image Diffusion Models with Learnable Prompts,
https://arxiv.org/abs/2403.12326.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Loss, Run, prompts_of
from efface.models.learned_prompt import prompted
from efface.models.trajectory import partly_denoise
from efface.training.loop import optimizer


@dataclass(frozen=True)
class KPOP(FineTune):
    """Erase concepts while a prompt learns to restore them; the prompt is a key to them.

    Args:
        size: prompt size k, in lengths of the text context; not used by the additive mechanism
        mechanism: concat puts the prompt beside the text, add adds it
        where: blocks that read the prompt: mid, mid-up or down-mid-up; the additive mechanism uses all
        lam: weight λ of the loss that preserves the concept under the prompt
        neutral: prompt that the concept is mapped to
        prompt_lr: learning rate of the prompt
        init: standard deviation of the random initial prompt, relative to that of the text's context
        prompt_steps: steps of the prompt before each step of the weights
        preserve_weight: weight of the loss on preserved concepts
        source: network that generates z_t: student or base
        guidance: guidance scale while generating z_t
        ddim_steps: steps of a whole trajectory
        reuse: noisy latents taken from one trajectory; must divide batch
        prompts: what of a concept is erased: its bare name (name), or its name and its prompts (all)
    """

    size: int = 10  # "a prompt size of k = 10": section 5.1
    mechanism: Literal["concat", "add"] = "concat"
    where: Literal["mid", "mid-up", "down-mid-up"] = "mid"  # section 5.6.5
    lam: float = 0.1  # section 5.6.3
    neutral: str = "a photo"  # "'a photo' or ' '": section 4.2
    prompt_lr: float = 1e-5  # not stated; the code of its successors
    init: float = 1.0
    prompt_steps: int = 1  # "one-step gradient descent": eq. 6
    preserve_weight: float = 1.0
    source: Literal["student", "base"] = "student"
    guidance: float = 3.0
    ddim_steps: int = 50
    reuse: int = 1
    prompts: Literal["name", "all"] = "name"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "nudity": {"params": "u"},  # section 5.3: "focusing exclusively on … non-cross-attention modules"
        "additive": {"mechanism": "add", "init": 0.0},
        "sibling-code": {"size": 1, "lam": 0.01, "prompt_steps": 2},
        "mini": {
            "steps": 120,
            "lr": 8e-4,
            "batch": 4,
            "prompt_lr": 1e-2,
            "ddim_steps": 8,
            "reuse": 2,
            "size": 1,
        },
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "ddim_steps": 3, "size": 1}
    BY_PRODUCTS: ClassVar[tuple[str, ...]] = ("key",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.size, self.prompt_steps) < 1 or min(self.lam, self.preserve_weight) < 0:
            raise BadInput("size and prompt_steps must be 1 or more, lam and preserve_weight 0 or more")

    def objective(self, run: Run) -> Loss:
        """Return L1 + λ L2 of eq. 7; each call first moves the prompt by eq. 6."""
        c_e = run.contexts([text for concept in run.erase for text in prompts_of(concept, self.prompts)])
        c_n = run.contexts([self.neutral])
        c_k = run.contexts([concept.name for concept in run.preserve]) if run.preserve else None
        p = self._prompt(run, c_e)
        source = {"student": run.student, "base": run.base}[self.source]
        keyed = prompted(run.student, p, self.mechanism, self._where)

        def loss(step: int) -> Float[Tensor, ""]:
            z, t, row = partly_denoise(
                source, c_e, run.null, run.rng, self.batch, self.guidance, self.ddim_steps, reuse=self.reuse
            )
            c = c_e[row]
            with torch.no_grad():
                e_e, e_n = run.base.eps(z, t, c), run.base.eps(z, t, c_n)
            restored = e_e.new_zeros(())
            for _ in range(self.prompt_steps):  # knowledge transfer, eq. 5 and 6
                restored = mse_loss(keyed.eps(z, t, c), e_e)
                p.grad = run.mean(torch.autograd.grad(restored, p)[0])
                run.state.optimizers["prompt"].step()
            value = mse_loss(run.student.eps(z, t, c), e_n)  # L1
            value = value + self.lam * mse_loss(keyed.eps(z, t, c), e_e)  # L2; its gradient on p is not used
            if c_k is not None:
                preserved = c_k[run.pick(len(c_k), self.batch)]
                value = value + self.preserve_weight * mse_loss(
                    run.student.eps(z, t, preserved), run.base.eps(z, t, preserved)
                )
            run.note("restored", float(restored.detach()))
            for name, text in (("similarity", c_e), ("similarity_neutral", c_n)):  # figure 4a
                run.note(name, float(cosine_similarity(p.detach().mean(1), text.tokens.mean((0, 1))[None])))
            return value

        return loss

    def result(self, run: Run) -> tuple[Edit, dict[str, Edit]]:
        """Return the edit of the sanitized model, and the key: the prompt is in the key's file only."""
        about = {"method": "kpop", "mechanism": self.mechanism, "where": self._where}
        prompt = run.state.tensors["prompt"].detach().cpu().clone()
        key = Edit(extra={"prompt": prompt}, meta={"key": about})
        return Edit(delta=run.delta(), meta=run.report()), {"key": key}

    @property
    def _where(self) -> Literal["mid", "mid-up", "down-mid-up"]:
        return "down-mid-up" if self.mechanism == "add" else self.where

    def _prompt(self, run: Run, c_e: Context) -> nn.Parameter:
        """Return a random prompt ("no alignment with any textual inputs": figure 4a), stored in the run's state."""
        words = c_e.tokens
        length = words.shape[1] * (1 if self.mechanism == "add" else self.size)  # m_p = k m_c: section 4.3
        noise = torch.randn(1, length, words.shape[2], generator=run.rng).to(words.device)
        p = nn.Parameter(self.init * words.std() * noise)
        run.state.tensors["prompt"] = p
        run.state.optimizers["prompt"] = optimizer("adam", [p], self.prompt_lr)
        return p
