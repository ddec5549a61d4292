"""ESD: train the model to be guided away from the concept.

Gandikota et al. 2023, https://arxiv.org/abs/2303.07345.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Loss, Run, prompts_of
from efface.models.trajectory import partly_denoise
from efface.util.ranges import GUIDANCE, ROWS, SOLVER_STEPS, Ranges

REPO_2025: dict[str, Any] = {  # esd_sd.py: cross-attention (esd-x)
    "steps": 200,
    "lr": 5e-5,
    "eta": 2.0,
    "around": "concept",
    "source": "base",
    "jitter": False,
}


@dataclass(frozen=True)
class ESD(FineTune):
    """Erase concepts by training ε_θ(z_t, c) to be guided away from c; `preserve` is not used.

    Args:
        eta: strength of the negative guidance
        around: starting point of the negative guidance: null (the paper), concept (the 2025 code; eta 2 around
            the concept is eta 1 around null) or anchor (to replace the concept by its anchor)
        erase_from: prompt to erase the concept from ("glasses" from "scientist"), "" to erase it from its own; only
            this prompt is trained, so that the concept's own name still shows it; needs around = concept, which is
            then this prompt
        source: network that generates z_t: student or base
        guidance: guidance scale while generating z_t
        ddim_steps: steps of a whole trajectory
        jitter: take t uniformly from the bin of the level reached
        reuse: noisy latents taken from one trajectory; must divide batch
        prompts: what of a concept is erased: its bare name (name), or its name and its prompts (all)
    """

    eta: float = 1.0  # "η = 1" in the paper's main experiments; negative_guidance of its code
    around: Literal["null", "concept", "anchor"] = "null"
    erase_from: str = ""
    source: Literal["student", "base"] = "student"  # section 4.1: x_t is sampled with the model being edited
    guidance: float = 3.0  # start_guidance of its code
    ddim_steps: int = 50
    jitter: bool = True
    reuse: int = 1
    prompts: Literal["name", "all"] = "name"

    RANGES: ClassVar[Ranges] = {"eta": "[-1000, 1000]", "guidance": GUIDANCE, "ddim_steps": SOLVER_STEPS, "reuse": ROWS}

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},  # ESD-x: 1,000 steps of Adam at 1e-5, one latent each: the defaults of FineTune
        "paper-u": {"params": "u", "gradient_checkpointing": True},  # ESD-u, "noxattn" of its code
        "repo-2025": REPO_2025,
        "repo-2025-x-strict": {**REPO_2025, "params": "x-strict"},
        "repo-2025-u": {**REPO_2025, "params": "u-linear", "gradient_checkpointing": True},
        "repo-2025-sdxl": {**REPO_2025, "lr": 2e-4, "eta": 1.0, "guidance": 2.0},  # esd_sdxl.py
        "repo-2025-sdxl-u": {  # the same script: "lr = 1e-5" for anything but esd-x
            **REPO_2025,
            "lr": 1e-5,
            "eta": 1.0,
            "guidance": 2.0,
            "params": "u-linear",
            "gradient_checkpointing": True,
        },
        "mini": {"steps": 80, "lr": 4e-4, "batch": 4, "ddim_steps": 8},
        "mini-u": {"steps": 80, "lr": 5e-5, "batch": 4, "ddim_steps": 8, "params": "u"},
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "ddim_steps": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.reuse:
            raise BadInput(f"reuse must divide batch {self.batch}, got {self.reuse}")
        if self.erase_from and self.around != "concept":
            raise BadInput(f"erase_from needs around = concept (as in the preset repo-2025), got {self.around}")

    def objective(self, run: Run) -> Loss:
        """Return ‖ε_θ(z_t, c) − (ε* − η (ε*_e − ε*_∅))‖², ε* frozen (eq. 7), over a batch of z_t.

        e is the erased concept, and c is e or the prompt to erase it from.
        """
        pairs = [(text, concept.anchor) for concept in run.erase for text in prompts_of(concept, self.prompts)]
        erased, anchors = (run.contexts(column) for column in zip(*pairs, strict=True))
        trained = run.contexts([self.erase_from] * len(pairs)) if self.erase_from else erased
        source = {"student": run.student, "base": run.base}[self.source]

        def loss(step: int) -> Float[Tensor, ""]:
            z, t, row = partly_denoise(
                source,
                trained,
                run.null,
                run.rng,
                self.batch,
                self.guidance,
                self.ddim_steps,
                reuse=self.reuse,
                jitter=self.jitter,
            )
            e_e, e_0 = run.base.denoise(z, t, erased[row], run.null)
            if self.around == "anchor" or self.erase_from:
                e = run.base.eps(z, t, (trained if self.erase_from else anchors)[row])
            else:
                e = e_0 if self.around == "null" else e_e
            return mse_loss(run.student.eps(z, t, trained[row]), e - self.eta * (e_e - e_0))  # eq. 7

        return loss
