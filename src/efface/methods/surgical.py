"""All but One: change the guidance term of a concept only, and preserve the unconditional prediction.

Hong, Lee and Woo 2024, https://arxiv.org/abs/2312.12807.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.context import Context
from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Loss, Run
from efface.models.attention import positions, scaled_maps
from efface.models.trajectory import partly_denoise


class _Prompts(NamedTuple):
    """Hold the concepts' contexts, one row each, with the instructions for each and the positions of its words."""

    contexts: Context
    pushes: list[tuple[float, Context]]  # (g, one context, or one a concept)
    scales: Float[Tensor, "n len"]  # 1, or `suppress` at the words of the concept


@dataclass(frozen=True)
class Surgical(FineTune):
    """Erase concepts by moving γ (ε(c) − ε(∅)) by an erasing signal δ; `preserve` is not used.

    Args:
        gamma1: guidance scale of the frozen model, also while generating z_t
        gamma2: guidance scale of the student
        penalty: weight λ of ‖ε_θ(∅) − ε*(∅)‖²; 0 gives a model that purifies images, above 1.5 hardly erases
        signal: explicit, the instructions below, or implicit, attention to the concept turned down (prompt-to-prompt)
        instruct: signed concepts "-7.5:sexual" and "6.5:pants"; by default the concept itself at -7.5, and its anchor,
            if it has one, at 6.5
        kappa: share of an instruction's noise that is set to zero, the smallest values
        warmup: first solver steps without signal
        start: solver steps without signal, as a share of all
        end: solver step after which there is no signal, as a share of all
        suppress: factor on the attention to the concept, for the implicit signal
        ddim_steps: steps of a whole trajectory
    """

    steps: int = 200  # "200 steps of update"
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"  # "AdamW (a learning rate of 1e-5 …)"
    weight_decay: float = 0.01  # not stated: torch's default
    params: str = "to_out"  # supplement, parameter selection
    gamma1: float = 7.5  # "γ1 = γ2 = 7.5"
    gamma2: float = 7.5
    penalty: float = 1.0  # supplement; "λ = 5" in the main text, where figure 6 calls 1.5 too strong
    signal: Literal["explicit", "implicit"] = "explicit"
    instruct: tuple[str, ...] = ()
    kappa: float = 0.95  # eq. 23
    warmup: int = 5  # "t_warmup = 5"
    start: float = 0.35  # "t_high = ⌊0.35T⌋"
    end: float = 1.0  # "t_low = T"
    suppress: float = 0.0
    ddim_steps: int = 35  # "T = 35"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "paper-main": {"penalty": 5.0},
        "nudity": {"instruct": ("-7.5:sexual", "6.5:bikini", "6.5:pants")},  # eq. 23
        "purification": {"penalty": 0.0, "params": "x"},  # eq. 24
        "implicit": {"signal": "implicit"},
        "mini": {"steps": 100, "lr": 2e-4, "batch": 4, "ddim_steps": 8, "start": 0.0, "warmup": 0},
    }
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "ddim_steps": 3, "warmup": 0, "start": 0.0}

    def objective(self, run: Run) -> Loss:
        """Return algorithm 1's ‖γ2 (ε_θ(c) − sg ε_θ(∅)) − γ1 (ε*(c) − ε*(∅)) − δ‖² + λ ‖ε_θ(∅) − ε*(∅)‖²."""
        prompts = self._prompts(run)

        def guide(z: Tensor, t: Tensor, row: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
            return uncond + self.gamma1 * (cond - uncond) + self._delta(run, prompts, z, t, row, cond, uncond)

        def loss(step: int) -> Float[Tensor, ""]:
            z, t, row = partly_denoise(
                run.base,
                prompts.contexts,
                run.null,
                run.rng,
                self.batch,
                steps=self.ddim_steps,
                jitter=False,
                guide=guide,
            )
            with torch.no_grad():
                e_c, e_0 = run.base.denoise(z, t, prompts.contexts[row], run.null)
                goal = self.gamma1 * (e_c - e_0) + self._delta(run, prompts, z, t, row, e_c, e_0)
            s_c, s_0 = run.student.denoise(z, t, prompts.contexts[row], run.null)
            concept = mse_loss(self.gamma2 * (s_c - s_0.detach()), goal)  # eq. 13 with algorithm 1's sign of δ
            return concept + self.penalty * mse_loss(s_0, e_0)  # eq. 12

        return loss

    def _prompts(self, run: Run) -> _Prompts:
        names = [concept.name for concept in run.erase]
        contexts = run.contexts(names)
        anchored = [concept.anchor or concept.name for concept in run.erase]
        pushes = [(-7.5, contexts)] + ([(6.5, run.contexts(anchored))] if anchored != names else [])
        if self.instruct:
            pushes = [
                (g, contexts if [text] == names else run.contexts([text])) for g, text in map(_signed, self.instruct)
            ]
        scales = torch.ones(contexts.tokens.shape[:2], device=contexts.device)
        for i, name in enumerate(names):
            scales[i, positions(run.base, name, name)] = self.suppress
        return _Prompts(contexts, pushes, scales)

    def _delta(
        self,
        run: Run,
        prompts: _Prompts,
        z: Float[Tensor, "b ch h w"],
        t: Int[Tensor, " b"],
        row: Int[Tensor, " b"],
        cond: Float[Tensor, "b ch h w"],
        uncond: Float[Tensor, "b ch h w"],
    ) -> Float[Tensor, "b ch h w"]:
        """Return the erasing signal δ, zero outside its window of solver steps."""
        total = torch.zeros_like(z)
        done = self.ddim_steps - 1 - t // (run.base.family.schedule.total // self.ddim_steps)
        on = (done >= max(self.warmup, int(self.start * self.ddim_steps))) & (done <= self.end * self.ddim_steps)
        if not on.any():
            return total
        if self.signal == "implicit":
            with scaled_maps(run.base, prompts.scales[row]):
                total = self.gamma1 * (run.base.eps(z, t, prompts.contexts[row]) - cond)
        for g, contexts in prompts.pushes if self.signal == "explicit" else ():
            known = contexts is prompts.contexts  # already computed: saves a quarter of the passes
            difference = (cond if known else run.base.eps(z, t, contexts[row % len(contexts)])) - uncond
            least = difference.abs().flatten(2).quantile(self.kappa, 2)[..., None, None]
            total = total + g * difference * (difference.abs() >= least)  # β of the paper
        return total * on[:, None, None, None]


def _signed(instruction: str) -> tuple[float, str]:
    """Read "6.5:pants" as (6.5, "pants")."""
    number, _, text = instruction.partition(":")
    try:
        return float(number), text.strip()
    except ValueError:
        raise BadInput(f"an instruction looks like -7.5:sexual, got {instruction!r}") from None
