"""All but One: change the guidance term of a concept only, and preserve the unconditional prediction.

Hong, Lee and Woo 2024, https://arxiv.org/abs/2312.12807.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.context import Context
from efface.errors import BadInput
from efface.methods.finetune.method import FineTune, Loss, Run, prompts_of
from efface.models.attention import positions, scaled_maps
from efface.models.trajectory import partly_denoise
from efface.util.ranges import OR_NONE, SHARE, SOLVER_STEPS, WEIGHT, WEIGHT_OR_NONE, Ranges


class _Prompts(NamedTuple):
    """Hold the contexts of the erased prompts, one row each, with the instructions for each row."""

    contexts: Context
    pushes: list[tuple[Float[Tensor, " n"], Context]]  # (g of every row, one context or one a row)
    scales: Float[Tensor, "n len"]  # 1, or `suppress` at the words of the concept


@dataclass(frozen=True)
class Surgical(FineTune):
    """Erase concepts by moving γ (ε(c) − ε(∅)) by an erasing signal δ; `preserve` is not used.

    Args:
        gamma1: guidance scale of the frozen model, also while generating z_t
        gamma2: guidance scale of the student
        penalty: weight λ of ‖ε_θ(∅) − ε*(∅)‖²; 0 gives a model that purifies images, above 1.5 hardly erases
        signal: explicit, the instructions below, or implicit, attention to the concept turned down (prompt-to-prompt)
        instruct: signed concepts "-7.5:sexual" and "6.5:pants", for every prompt; by default the concept itself at
            -7.5, and its anchor, if it has one, at 6.5
        kappa: share of an instruction's noise that is set to zero, the smallest values
        counted: what warmup, start and end count: steps of the solver from noise (the signal acts late, at
            t ≤ 617 of 1,000), or levels of noise from the image (it acts early, at t ≥ 309)
        warmup: count below which there is no signal
        start: count below which there is no signal, as a share of all steps
        end: count above which there is no signal, as a share of all steps
        suppress: factor on the attention to the concept, for the implicit signal
        ddim_steps: steps of a whole trajectory
        prompts: what of a concept is erased: its bare name (name), or its name and its prompts (all)
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
    counted: Literal["steps", "levels"] = "steps"  # as the warm-up and cool-down of semantic guidance, see the docs
    warmup: int = 5  # "t_warmup = 5": without effect beside t_high = 12, whatever is counted
    start: float = 0.35  # "t_high = ⌊0.35T⌋"
    end: float = 1.0  # "t_low = T"
    suppress: float = 0.0
    ddim_steps: int = 35  # "T = 35"
    prompts: Literal["name", "all"] = "name"

    RANGES: ClassVar[Ranges] = {
        "gamma1": WEIGHT, "gamma2": WEIGHT, "penalty": WEIGHT_OR_NONE, "kappa": SHARE, "warmup": OR_NONE,
        "start": SHARE, "end": SHARE, "suppress": WEIGHT_OR_NONE, "ddim_steps": SOLVER_STEPS,
    }  # fmt: skip

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "paper-main": {"penalty": 5.0},
        "count-steps": {"counted": "steps"},  # t_high counted from noise: δ at t ≤ 617
        "count-levels": {"counted": "levels"},  # t_high counted from the image: δ at t ≥ 309
        "nudity": {"instruct": ("-7.5:sexual", "6.5:bikini", "6.5:pants")},  # eq. 23
        "purification": {"penalty": 0.0, "params": "x"},  # eq. 24
        "implicit": {"signal": "implicit"},
        "mini": {  # of latents of 16 × 16, the largest twentieth (κ = .95) is too few places to erase anything
            "steps": 100, "lr": 2e-4, "batch": 4, "ddim_steps": 8, "start": 0.0, "warmup": 0, "prompts": "all",
            "kappa": 0.0,
        },
    }  # fmt: skip
    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "ddim_steps": 3, "warmup": 0, "start": 0.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        for instruction in self.instruct:
            _signed(instruction)

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
        pairs = [(concept, text) for concept in run.erase for text in prompts_of(concept, self.prompts)]
        texts, names = [text for _, text in pairs], [concept.name for concept, _ in pairs]
        contexts = run.contexts(texts)

        def context(wanted: list[str]) -> Context:
            return contexts if wanted == texts else run.contexts(wanted)  # the same object: saves a pass, see `_delta`

        def scale(values: list[float]) -> Float[Tensor, " n"]:
            return torch.tensor(values, device=contexts.device)

        pushes = [(scale([-7.5] * len(pairs)), context(names))]
        if any(concept.anchor for concept in run.erase):  # rows without an anchor are not pushed: their g is 0
            anchored = scale([6.5 if concept.anchor else 0.0 for concept, _ in pairs])
            pushes.append((anchored, context([concept.anchor or concept.name for concept, _ in pairs])))
        if self.instruct:
            pushes = [(scale([g] * len(pairs)), context([text])) for g, text in map(_signed, self.instruct)]
        scales = torch.ones(contexts.tokens.shape[:2], device=contexts.device)
        for i, (concept, text) in enumerate(pairs):
            scales[i, positions(run.base, text, concept.name)] = self.suppress
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
        """Return the erasing signal δ, zero outside its window of timesteps."""
        total, on = torch.zeros_like(z), self._window(t, run.base.family.schedule.total)
        if not on.any():
            return total
        if self.signal == "implicit":
            with scaled_maps(run.base, prompts.scales[row]):
                total = self.gamma1 * (run.base.eps(z, t, prompts.contexts[row]) - cond)
        for g, contexts in prompts.pushes if self.signal == "explicit" else ():
            known = contexts is prompts.contexts  # already computed: saves a quarter of the passes
            difference = (cond if known else run.base.eps(z, t, contexts[row % len(contexts)])) - uncond
            least = difference.abs().flatten(2).quantile(self.kappa, 2)[..., None, None]
            total = total + g[row][:, None, None, None] * difference * (difference.abs() >= least)  # β of the paper
        return total * on[:, None, None, None]

    def _window(self, t: Int[Tensor, " b"], total: int) -> Bool[Tensor, " b"]:
        """Return at which timesteps of the trajectory δ acts: B_c ∩ B_w of the paper."""
        level = (t - 1) // (total // self.ddim_steps) + 1  # 1 … T, where T is noise
        count = self.ddim_steps - level if self.counted == "steps" else level
        first, last = (math.floor(share * self.ddim_steps) for share in (self.start, self.end))  # t_high, t_low
        return (count >= max(self.warmup, first)) & (count <= last)


def _signed(instruction: str) -> tuple[float, str]:
    """Read "6.5:pants" as (6.5, "pants")."""
    number, _, text = instruction.partition(":")
    try:
        g = float(number)
    except ValueError:
        g = math.nan
    if not math.isfinite(g) or not text.strip():
        raise BadInput(f"an instruction looks like -7.5:sexual, got {instruction!r}")
    return g, text.strip()
